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
        cx.random_eligible()
    }

    fn passed_over(&self, _: &PickCx<'_>, _: usize) -> &'static str {
        "was not drawn"
    }
}
