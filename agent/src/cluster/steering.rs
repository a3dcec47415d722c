//! What commands make of a cluster: shares of groups, and calls that are answered at once.

use model::command::{GroupShare, is_weighted};

use crate::call::{CallError, ErrorKind};

/// What callers are told while a service is degraded; clients compare this text.
const DEGRADED: &str = "cluster not available, maybe caused by degrade";

/// What holds for a cluster beside its endpoints, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// Where the groups and rules in force come from, for operators; `None` when nothing is ordered.
    pub by: Option<String>,
    /// Groups in use; the own one when empty.
    pub groups: Vec<GroupShare>,
    /// Why calls are answered at once with an error; `None` when they are not.
    pub degraded: Option<String>,
    /// What is ordered and not done, and why.
    pub troubles: Vec<String>,
}

impl Steering {
    /// Groups with their shares; `None` when all endpoints are one pool.
    pub(super) fn shares(&self) -> Option<Vec<(&str, u32)>> {
        // Beside groups with a weight, one without counts 1.
        is_weighted(&self.groups)
            .then(|| self.groups.iter().map(|g| (g.group.as_str(), g.weight.unwrap_or(1))).collect())
    }

    /// The answer to every call while degraded.
    pub(super) fn refusal(&self) -> Option<CallError> {
        self.degraded.as_ref().map(|_| CallError::mesh(ErrorKind::Degraded, DEGRADED))
    }
}
