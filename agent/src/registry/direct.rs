//! `direct`: instances listed in the configuration.

use std::sync::Arc;

use model::{Instance, ServiceKey, Snapshot};
use serde::Deserialize;
use tokio::sync::watch;

use super::{Registry, entry::Entry, tidy};
use crate::kind::{BuildCx, Value};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    instances: Vec<Entry>,
}

/// A list that never changes.
struct Direct {
    instances: Vec<Instance>,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let Options { instances } = serde_yaml::from_value(options.clone())?;
    Ok(inline(instances.into_iter().map(Instance::from).collect()))
}

/// The registry of instances that a service lists itself.
pub fn inline(instances: Vec<Instance>) -> Arc<dyn Registry> {
    Arc::new(Direct { instances })
}

impl Registry for Direct {
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let (instances, problems) = tidy(&self.instances, service);
        watch::channel(Arc::new(Snapshot { revision: 1, instances, stale: problems })).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_what_it_was_given() {
        let options = serde_yaml::from_str("instances: [127.0.0.1:1, {address: 127.0.0.1:2, group: b}]").unwrap();
        let direct = build(&options, &BuildCx::default()).unwrap();
        let list = direct.watch(&ServiceKey { service: "any".into(), ..Default::default() });
        assert_eq!(list.borrow().instances.len(), 2);
        let of_a = direct.watch(&ServiceKey { service: "any".into(), group: "a".into(), ..Default::default() });
        assert_eq!(of_a.borrow().instances, [Instance::at("127.0.0.1:1")]);
    }
}
