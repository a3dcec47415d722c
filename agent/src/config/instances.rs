//! Endpoints as people write them: in the configuration, in a `direct` registry, in a registry's file.

use std::collections::HashSet;

use model::{DEFAULT_WEIGHT, Instance};

use super::{
    governance::texts,
    keys::{FILE, INSTANCE},
    node::{Data, Entry, Node},
    problem::{Problem, Report},
    read::{Map, Others, Place, entries, items, scalar},
    values,
};

/// A list of endpoints as far as it can be used.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    /// In order, each address and group once.
    pub good: Vec<Instance>,
    /// Endpoints left out: bad address, port 0, or listed before.
    pub left_out: Vec<Problem>,
}

/// Reads a list of endpoints. Addresses nobody can connect to are left out and told in the result; every
/// other mistake goes to `report`.
pub(crate) fn instances(node: &Node, path: &str, report: &mut Report) -> Instances {
    let mut result = Instances::default();
    let mut seen = HashSet::new();
    for (path, node) in items(node, path, report) {
        // The address is read apart, so that the caller decides what a bad one means.
        let mut bad = Report::default();
        let instance = instance(node, &path, &mut bad, report);
        result.left_out.append(&mut bad.mistakes);
        let Some(instance) = instance else { continue };
        if seen.insert((instance.address.clone(), instance.group.clone())) {
            result.good.push(instance);
        } else {
            let problem = format!("`{}` is listed twice", instance.address);
            result.left_out.push(Place::of(node, path).problem(problem, "keep one of them"));
        }
    }
    result
}

/// The services in the file of a registry.
pub(crate) fn registry_file<'a>(node: &'a Node, report: &mut Report) -> &'a [Entry] {
    let Some(map) = Map::open(node, "", &[&FILE], Others::Unknown, report) else { return &[] };
    let Some(services) = map.get("services") else { return &[] };
    if matches!(services.data, Data::Null) {
        report.mistake(Place::of(services, "services").problem("has no value", "write {} if there are none"));
    }
    entries(services, "services", report).unwrap_or_default()
}

fn instance(node: &Node, path: &str, bad: &mut Report, report: &mut Report) -> Option<Instance> {
    let address = |text: &str| values::endpoint_address(text).map(|a| a.to_string());
    match &node.data {
        Data::Scalar { .. } => Some(Instance::at(scalar(node, path, address, bad)?)),
        Data::Map(_) => {
            let before = report.mistakes.len();
            let map = Map::open(node, path, &[&INSTANCE], Others::Unknown, report)?;
            let mut instance = Instance::at(String::new());
            debug_assert_eq!(instance.weight, DEFAULT_WEIGHT);
            map.set("weight", values::number(0..=10_000), &mut instance.weight, report);
            map.set("group", values::optional_word, &mut instance.group, report);
            map.set("zone", values::optional_word, &mut instance.zone, report);
            map.set("version", values::optional_word, &mut instance.version, report);
            if let Some(node) = map.get("metadata") {
                instance.metadata = texts(node, &map.key("metadata"), report);
            }
            instance.address = map.read("address", address, bad)?;
            (report.mistakes.len() == before).then_some(instance)
        }
        _ => {
            let problem = format!("is {}, not an endpoint", node.what());
            report.mistake(Place::of(node, path).problem(problem, "write IP:PORT or {address: IP:PORT, ...}"));
            None
        }
    }
}
