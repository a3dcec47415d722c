//! `failover`: another endpoint, when sending again is safe.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{
    Attempts, HaStrategy, Sent,
    attempts::Resend,
    budget::{self, Budget},
};
use crate::{
    call::{CallError, Request},
    kind::{self, BuildCx, Value},
};

struct Failover(Budget);

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn HaStrategy>> {
    let options: budget::Options = kind::options(options)?;
    Ok(Arc::new(Failover(Budget::new(options.check()?))))
}

impl HaStrategy for Failover {
    fn call<'a>(&'a self, attempts: &'a Attempts<'a>, req: &'a mut Request) -> BoxFuture<'a, Result<Sent, CallError>> {
        Box::pin(run(attempts, req, &self.0))
    }
}

/// Tries until an attempt is good or may not be followed by another.
pub(super) async fn run(attempts: &Attempts<'_>, req: &mut Request, budget: &Budget) -> Result<Sent, CallError> {
    loop {
        let result = attempts.send(req).await;
        if !attempts.go_on(&result, Resend::of(req), budget) {
            return result;
        }
    }
}
