//! `direct`: instances listed in the configuration.

use std::sync::Arc;

use anyhow::bail;
use model::{Instance, ServiceKey, Snapshot};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Registry, select};
use model::kind::Value;
use registries::BuildCx;

use crate::config::{Node, Report, instances};

/// A list that never changes, the same for every service (but for group and version).
struct Direct {
    instances: Vec<Instance>,
    // Kept, so that the channels stay open as long as the registry.
    senders: Mutex<Vec<watch::Sender<Arc<Snapshot>>>>,
}

/// The registry of instances that a service lists itself; their addresses are taken as checked.
pub fn inline(instances: Vec<Instance>) -> Arc<dyn Registry> {
    Arc::new(Direct { instances, senders: Mutex::default() })
}

/// The list of one service, complete and final. Needs no runtime.
impl Registry for Direct {
    fn may_err(&self) -> bool {
        false
    }

    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let snapshot = Snapshot { revision: 1, instances: select(service, &self.instances), stale: None };
        let (sender, receiver) = watch::channel(Arc::new(snapshot));
        let mut senders = self.senders.lock();
        senders.retain(|s| s.receiver_count() > 0);
        senders.push(sender);
        receiver
    }
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let options: Options = crate::kind::options(options)?;
    let Some(list) = options.instances.filter(|v| !v.is_null()) else {
        bail!("the option `instances` is missing; add `instances: [IP:PORT]`");
    };
    let mut report = Report::default();
    let found = instances(&Node::from_value(&list), "instances", &mut report);
    // The configuration is read by a person who can correct it: nothing is left out silently.
    report.mistakes.extend(found.left_out);
    if !report.mistakes.is_empty() {
        // One line each: the reader of the configuration finds the place of each.
        let lines: Vec<_> = report.mistakes.iter().map(ToString::to_string).collect();
        bail!("{}", lines.join("\n"));
    }
    Ok(inline(found.good))
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    instances: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(yaml: &str) -> anyhow::Result<Arc<dyn Registry>> {
        build(&serde_yaml::from_str(yaml).unwrap(), &BuildCx::default())
    }

    #[test]
    fn gives_its_list_to_everybody_and_stays_open() {
        let registry = built("{instances: ['1.1.1.1:1', {address: '1.1.1.2:1', group: g, weight: 3}]}").unwrap();
        let key = |group: &str| ServiceKey { service: "any".into(), group: group.into(), version: String::new() };
        let all = registry.watch(&key(""));
        assert_eq!(all.borrow().revision, 1);
        assert_eq!(all.borrow().instances.iter().map(|i| i.weight).collect::<Vec<_>>(), [10, 3]);
        assert_eq!(registry.watch(&key("other")).borrow().instances.len(), 1);
        assert_eq!(all.has_changed().ok(), Some(false), "open and unchanged");
    }

    #[test]
    fn says_what_is_wrong_with_its_options() {
        let told = |yaml: &str| built(yaml).err().unwrap().to_string();
        assert!(told("{}").contains("`instances` is missing"));
        assert!(told("{instance: []}").contains("unknown field `instance`"));
        let all = told("{instances: ['1.1.1.1', {address: '1.1.1.1:1', wieght: 3}]}");
        assert!(all.contains("instances[0]: `1.1.1.1` has no port"), "{all}");
        assert!(all.contains("instances[1].wieght: unknown key; did you mean `weight`?"), "{all}");
    }
}
