//! Registries of this agent: those that sites run (package `registries`), and those that are files or lists of its
//! own. Around all of them: what is remembered, and what is not believed at once.

mod direct;
mod file;
mod guard;
mod merge;
mod refers;
mod snapshot;

pub use registries::{BuildCx, CommandText, Kind, Provided, Registry, Scope, Standing, Wanted, select, speaks};

pub use self::{
    direct::inline,
    guard::{Guards, Held, Holding},
    merge::merge,
    refers::{ReferFilter, ReferRule, sift},
    snapshot::{Recalled, Store, Written},
};

/// Kinds that are files or lists of this agent.
const OWN: &[Kind] = &[Kind { name: "direct", build: direct::build }, Kind { name: "file", build: file::build }];

/// Registries by name.
pub fn kinds() -> Vec<Kind> {
    registries::KINDS.iter().chain(OWN).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_this_folder_is_a_kind() {
        let ground = ["mod", "guard", "merge", "refers", "snapshot"];
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/registry");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let known = ground.contains(&name) || OWN.iter().any(|k| k.name == name);
            assert!(known, "{} is not in registry::OWN", path.display());
        }
    }
}
