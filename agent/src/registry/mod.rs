//! Where lists of endpoints come from. Registries publish whole snapshots and never see a call.

mod direct;
mod entry;
mod file;
mod merge;

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

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
    /// Must be called within a tokio runtime. Work for it ends when the receiver is dropped.
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>>;
}

/// What of `all` is for `service`: instances of another group or version are left out silently,
/// duplicates and addresses nobody can connect to are left out and named in the second part.
fn tidy(all: &[Instance], service: &ServiceKey) -> (Vec<Instance>, Option<String>) {
    let fits = |wanted: &str, has: &str| wanted.is_empty() || has.is_empty() || wanted == has;
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    let mut kept = Vec::new();
    for instance in all {
        if !fits(&service.group, &instance.group) || !fits(&service.version, &instance.version) {
            continue;
        }
        match instance.address.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 || address.ip().is_unspecified() => {
                problems.push(format!("`{}` left out: nobody can connect to that", instance.address));
            }
            Ok(address) if !seen.insert((address, instance.group.as_str())) => {
                problems.push(format!("`{}` left out: listed twice", instance.address));
            }
            Ok(_) => kept.push(instance.clone()),
            Err(_) => problems.push(format!("`{}` left out: not IP:PORT", instance.address)),
        }
    }
    (kept, (!problems.is_empty()).then(|| problems.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_left_out_and_named() {
        let all: Vec<Instance> = ["127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:0", "0.0.0.0:5", "localhost:80", "[::1]:7"]
            .map(Instance::at)
            .into();
        let (kept, problems) = tidy(&all, &ServiceKey::default());
        assert_eq!(kept, [Instance::at("127.0.0.1:1"), Instance::at("[::1]:7")]);
        assert_eq!(problems.unwrap().matches("left out").count(), 4);
    }

    #[test]
    fn every_file_of_the_folder_is_a_kind() {
        let ground = ["mod.rs", "entry.rs", "merge.rs"];
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/registry")).unwrap() {
            let file = file.unwrap().file_name().into_string().unwrap();
            let name = file.trim_end_matches(".rs");
            assert!(ground.contains(&file.as_str()) || KINDS.iter().any(|k| k.name == name), "{file} is not in KINDS");
        }
    }
}
