//! `broadcast`: every endpoint, and all of them must agree.

use std::sync::Arc;

use futures_util::{StreamExt, future::BoxFuture, stream};

use super::{Attempts, HaStrategy, Sent, attempts::Original};
use crate::{
    call::{CallError, ErrorKind, Request},
    kind::{self, BuildCx, Value},
};

/// Attempts at once. More endpoints than this are reached one after another.
const AT_ONCE: usize = 64;

struct Broadcast;

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn HaStrategy>> {
    kind::no_options(options)?;
    Ok(Arc::new(Broadcast))
}

impl HaStrategy for Broadcast {
    /// Goes to the end even after an error, so that one endpoint that fails keeps nothing from the others.
    fn call<'a>(&'a self, attempts: &'a Attempts<'a>, req: &'a mut Request) -> BoxFuture<'a, Result<Sent, CallError>> {
        Box::pin(async move {
            let Some(original) = Original::of(req) else {
                let message = "a streamed body exists once and cannot be broadcast";
                return Err(CallError::mesh(ErrorKind::Rejected, message));
            };
            let weighed = (0..attempts.set.endpoints.len()).filter(|&i| attempts.set.endpoints[i].weight > 0);
            let copies: Vec<_> = weighed.map(|index| (index, original.copy())).collect();
            let mut ends = stream::iter(copies)
                .map(|(index, mut copy)| async move { attempts.send_to(index, &mut copy).await })
                .buffer_unordered(AT_ONCE);
            let (mut good, mut bad) = (None, None);
            while let Some(end) = ends.next().await {
                let is_bad = end.as_ref().map_or(true, |sent| sent.response.status.is_failure());
                // The first of each kind.
                if is_bad {
                    bad.get_or_insert(end)
                } else {
                    good.get_or_insert(end)
                };
            }
            bad.or(good).unwrap_or_else(|| Err(attempts.nobody()))
        })
    }
}
