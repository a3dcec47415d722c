//! `random`: uniform.

use std::sync::Arc;

use super::{LoadBalancer, PickCx, Picker};
use crate::{
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
};

struct Random;

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    kind::no_options(options)?;
    Ok(Arc::new(Random))
}

impl LoadBalancer for Random {
    fn picker(&self, _: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        Box::new(Self)
    }
}

impl Picker for Random {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        let n = cx.endpoints.len();
        if n == 0 {
            return None;
        }
        let first = fastrand::usize(..n);
        if cx.eligible(first) {
            return Some(first);
        }
        // From a second random point on, so that the neighbour of a dead endpoint does not get its share on top.
        cx.first_eligible_from(fastrand::usize(..n))
    }
}
