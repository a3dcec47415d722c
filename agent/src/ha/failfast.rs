//! `failfast`: one try.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Attempts, HaStrategy, Sent};
use crate::{
    call::{CallError, Request},
    kind::{self, BuildCx, Value},
};

struct Failfast;

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn HaStrategy>> {
    kind::no_options(options)?;
    Ok(Arc::new(Failfast))
}

impl HaStrategy for Failfast {
    fn call<'a>(&'a self, attempts: &'a Attempts<'a>, req: &'a mut Request) -> BoxFuture<'a, Result<Sent, CallError>> {
        Box::pin(async move { attempts.send(req).await })
    }
}
