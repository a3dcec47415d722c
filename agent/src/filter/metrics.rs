//! `metrics`: counts and latencies by method.

use std::sync::Arc;

use super::Filter;
use crate::kind::{BuildCx, Value};

pub(super) fn build(_: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    unimplemented!()
}
