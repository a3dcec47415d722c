//! `failover`: another endpoint, when sending again is safe.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Attempts, HaStrategy, Sent};
use crate::{
    call::{Body, CallError, Request, Retry},
    kind::{self, BuildCx, Value},
};

struct Failover;

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn HaStrategy>> {
    kind::no_options(options)?;
    Ok(Arc::new(Failover))
}

impl HaStrategy for Failover {
    fn call<'a>(&'a self, attempts: &'a Attempts<'a>, req: &'a mut Request) -> BoxFuture<'a, Result<Sent, CallError>> {
        Box::pin(async move {
            let replayable = !matches!(req.body, Body::Stream(_));
            loop {
                match attempts.send(req).await {
                    Ok(sent) => {
                        let again = sent.response.status.is_failure()
                            && replayable
                            && attempts.may_retry_failure(req.call.deadline);
                        if !again {
                            return Ok(sent);
                        }
                    }
                    Err(error) => {
                        let whole = error.retry == Retry::NotSent || replayable;
                        if !whole || !attempts.may_retry(&error, req.call.deadline) {
                            return Err(error);
                        }
                        tracing::debug!(%error, tries = attempts.count(), "trying another endpoint");
                    }
                }
            }
        })
    }
}
