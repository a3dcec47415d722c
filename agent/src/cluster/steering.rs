//! What commands make of a cluster: shares of groups, a version that is tried, calls that are answered at once.

use model::{
    command::{Canary, GroupShare},
    share,
};

use crate::call::{CallError, ErrorKind, Head, Request};

/// What callers are told while a service is degraded; clients compare this text.
const DEGRADED: &str = "cluster not available, maybe caused by degrade";

/// What holds for a cluster beside its endpoints, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// Where the groups and rules in force come from, for operators; `None` when nothing is ordered.
    pub by: Option<String>,
    /// Groups in use; the own one when empty.
    pub groups: Vec<GroupShare>,
    /// A version that is tried.
    pub canary: Option<Canary>,
    /// Why calls are answered at once with an error; `None` when they are not.
    pub degraded: Option<String>,
    /// What is ordered and not done, and why.
    pub troubles: Vec<String>,
}

impl Steering {
    /// Groups with their shares; `None` when all endpoints are one pool.
    pub(super) fn shares(&self) -> Option<Vec<(&str, u32)>> {
        share::shares(&self.groups)
    }

    /// Whether `req` carries the header of a canary.
    pub(super) fn marks(&self, req: &Request) -> bool {
        let Some((name, value)) = self.canary.as_ref().and_then(|canary| canary.header.as_ref()) else { return false };
        match &req.head {
            Head::Motan2(head) => head.meta.get(name).is_some_and(|it| *it == **value),
            Head::Http(head) => head.headers.get_all(name).iter().any(|it| it == value.as_str()),
            Head::None => false,
        }
    }

    /// The answer to every call while degraded.
    pub(super) fn refusal(&self) -> Option<CallError> {
        self.degraded.as_ref().map(|_| CallError::mesh(ErrorKind::Degraded, DEGRADED))
    }
}
