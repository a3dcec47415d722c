//! Where lists of endpoints come from. Registries publish whole snapshots and never see a call.

mod direct;
mod file;
mod merge;

use std::{collections::HashSet, sync::Arc};

use model::{Instance, ServiceKey, Snapshot};
use tokio::sync::watch;

pub use self::{direct::inline, merge::merge};
use crate::kind::Kind;

/// Registries by name.
pub const KINDS: &[Kind<dyn Registry>] =
    &[Kind { name: "direct", build: direct::build }, Kind { name: "file", build: file::build }];

/// A source of endpoint lists. Runs on the control runtime.
pub trait Registry: Send + Sync + 'static {
    /// The instances of `service`, now and at every change. The value in the channel is the last good
    /// list; a source that is gone or broken keeps it and says so in [`Snapshot::stale`]. Starts with
    /// what is known at once (revision 0 and no instances if nothing is).
    ///
    /// When the channel closes, its last value is final: nothing will change any more. Background work
    /// ends when the last receiver is dropped. Must be called within a tokio runtime.
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>>;
}

/// The instances that `service` asks for: those of its group and version, and those that name none.
/// Keeps the order and only the first of each address and group.
fn select(service: &ServiceKey, instances: &[Instance]) -> Vec<Instance> {
    let fits = |asked: &str, has: &str| asked.is_empty() || has.is_empty() || asked == has;
    let mut seen = HashSet::new();
    let chosen = instances.iter().filter(|i| fits(&service.group, &i.group) && fits(&service.version, &i.version));
    chosen.filter(|i| seen.insert((i.address.as_str(), i.group.as_str()))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_and_version_choose_and_duplicates_go() {
        let at = |address: &str, group: &str, version: &str| Instance {
            group: group.into(),
            version: version.into(),
            ..Instance::at(address)
        };
        let all =
            [at("a:1", "x", "1"), at("b:1", "y", "1"), at("c:1", "", "2"), at("a:1", "x", "2"), at("a:1", "y", "")];
        let chosen = |group: &str, version: &str| {
            let key = ServiceKey { service: "s".into(), group: group.into(), version: version.into() };
            let list = select(&key, &all);
            list.iter().map(|i| format!("{}/{}", i.group, &i.address[..1])).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(chosen("", ""), "x/a y/b /c y/a");
        assert_eq!(chosen("x", ""), "x/a /c");
        assert_eq!(chosen("y", "1"), "y/b y/a");
        assert_eq!(chosen("z", "1"), "");
    }

    #[test]
    fn every_file_of_this_folder_is_a_kind() {
        let ground = ["mod", "merge"];
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/registry");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let known = ground.contains(&name) || KINDS.iter().any(|k| k.name == name);
            assert!(known, "{} is not in registry::KINDS", path.display());
        }
    }
}
