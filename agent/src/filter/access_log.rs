//! `access_log`: one line per call.

use std::sync::Arc;

use super::Filter;
use crate::kind::{BuildCx, Value};

pub(super) fn build(_: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    unimplemented!()
}
