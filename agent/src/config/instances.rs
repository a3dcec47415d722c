//! Endpoints as people write them: in the configuration, in a `direct` registry, in a registry's file.

use std::collections::HashSet;

use model::{DEFAULT_WEIGHT, Instance};

use super::{
    governance::texts,
    keys::{FILE, FILE_COMMANDS, INSTANCE},
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

/// What the file of a registry says.
#[derive(Debug, Default)]
pub(crate) struct RegistryFile<'a> {
    /// Services with their lists.
    pub services: &'a [Entry],
    /// Command texts of groups.
    pub groups: Vec<(String, String)>,
    /// Command texts of applications.
    pub agents: Vec<(String, String)>,
}

/// Reads the file of a registry, its lists apart.
pub(crate) fn registry_file<'a>(node: &'a Node, report: &mut Report) -> RegistryFile<'a> {
    let mut file = RegistryFile::default();
    let Some(map) = Map::open(node, "", &[&FILE], Others::Unknown, report) else { return file };
    if let Some(services) = map.get("services") {
        if matches!(services.data, Data::Null) {
            report.mistake(Place::of(services, "services").problem("has no value", "write {} if there are none"));
        }
        file.services = entries(services, "services", report).unwrap_or_default();
    }
    if let Some(node) = map.get("unavailable") {
        entries(node, "unavailable", report);
    }
    if let Some(node) = map.get("commands")
        && let Some(map) = Map::open(node, "commands".to_owned(), &[&FILE_COMMANDS], Others::Unknown, report)
    {
        file.groups = texts_of(&map, "groups", report);
        file.agents = texts_of(&map, "agents", report);
    }
    file
}

/// Command texts by name: as text, or as the mapping that the text would be.
fn texts_of(map: &Map<'_>, name: &str, report: &mut Report) -> Vec<(String, String)> {
    let Some(node) = map.get(name) else { return Vec::new() };
    let text = |node: &Node| match &node.data {
        Data::Null => None,
        Data::Scalar { text, .. } => Some(text.clone()),
        _ => serde_json::to_string(&node.to_value()).ok(),
    };
    let list = entries(node, &map.key(name), report).unwrap_or_default();
    list.iter().filter_map(|entry| Some((entry.key.clone(), text(&entry.value)?))).collect()
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
                instance.metadata = texts(node, &map.key("metadata"), report).into();
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
