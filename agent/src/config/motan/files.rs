//! motan-go's files: one, or the folder of its pool mode, merged into one tree.

use std::{collections::BTreeMap, path::Path};

use super::{
    super::{
        node::{Data, Node},
        problem::Report,
        read::Place,
    },
    Flags,
    tree::{Sources, fill, go_value, merge},
};

/// Reads `path`, a file or a folder, and replaces its placeholders.
pub(super) fn read(path: &Path, flags: &Flags, sources: &mut Sources, report: &mut Report) -> Option<Node> {
    let mut node = if path.is_dir() {
        Pool { root: path, flags, sources, imported: Vec::new() }.read(report)?
    } else {
        sources.read(path, report)?
    };
    placeholders(&mut node, flags.pool.as_deref().unwrap_or_default(), report);
    Some(node)
}

struct Pool<'a> {
    root: &'a Path,
    flags: &'a Flags,
    sources: &'a mut Sources,
    /// Files of `http/location/` that were taken; each counts once.
    imported: Vec<String>,
}

impl Pool<'_> {
    fn read(mut self, report: &mut Report) -> Option<Node> {
        let pool = self.flags.pool.clone().unwrap_or_default();
        let application = self.flags.application.clone().unwrap_or_default();
        let whole = Place::default();
        if pool.is_empty() && application.is_empty() {
            let remedy = "add -pool APP-IDC-LEVEL or -application APP";
            report.mistake(whole.problem("a folder is read by pool or application, and neither is given", remedy));
            return None;
        }
        let application = match application.as_str() {
            "" => pool.split('-').next().unwrap_or_default().to_owned(),
            name => name.to_owned(),
        };
        if let Some(name) = [&pool, &application].into_iter().find(|n| n.contains('/') || n.contains("..")) {
            report.mistake(whole.problem(format!("`{name}` is no name of a pool"), "write it like app-idc-level"));
            return None;
        }
        let mut merged = Node { at: super::super::node::At::default(), data: Data::Map(Vec::new()) };
        let basic = self.file("basic.yaml", report);
        merged.merge(basic);
        for file in [format!("http/service/{application}.yaml"), format!("http/pools/{pool}.yaml")] {
            let node = self.file(&file, report);
            self.locations(node.as_ref(), &mut merged, report);
            merged.merge(node);
        }
        let app = self.file(&format!("applications/{application}.yaml"), report);
        for (name, place) in names(app.as_ref(), "import-refer", report) {
            let file = format!("services/{name}.yaml");
            let Some(node) = self.file(&file, report) else {
                report.warn(place.problem(format!("{file} does not exist"), "it is left out, as motan-go does"));
                continue;
            };
            self.locations(Some(&node), &mut merged, report);
            merged.merge(Some(node));
        }
        merged.merge(app);
        let mut base = String::new();
        for part in pool.split('-') {
            base.push_str(part);
            let node = self.file(&format!("pools/{base}.yaml"), report);
            merged.merge(node);
            base.push('-');
        }
        if self.sources.files().next().is_none() {
            let problem = format!("has no file for the application `{application}` or the pool `{pool}`");
            report.mistake(whole.problem(problem, "check -c, -pool and -application"));
            return None;
        }
        Some(merged)
    }

    fn file(&mut self, name: &str, report: &mut Report) -> Option<Node> {
        self.sources.read(&self.root.join(name), report)
    }

    /// What `node` imports of `http/location/`, and what that imports in turn.
    fn locations(&mut self, node: Option<&Node>, merged: &mut Node, report: &mut Report) {
        for (name, place) in names(node, "import-http-location", report) {
            if self.imported.contains(&name) {
                continue;
            }
            self.imported.push(name.clone());
            let file = format!("http/location/{name}.yaml");
            let Some(node) = self.file(&file, report) else {
                report.warn(place.problem(format!("{file} does not exist"), "it is left out, as motan-go does"));
                continue;
            };
            self.locations(Some(&node), merged, report);
            merged.merge(Some(node));
        }
    }
}

trait Merge {
    fn merge(&mut self, later: Option<Node>);
}

impl Merge for Node {
    fn merge(&mut self, later: Option<Node>) {
        if let Some(later) = later {
            merge(self, later);
        }
    }
}

/// The names in the list `key`.
fn names(node: Option<&Node>, key: &str, report: &mut Report) -> Vec<(String, Place)> {
    let Some(list) = node.and_then(|n| n.get(key)) else { return Vec::new() };
    let Data::List(items) = &list.data else {
        if !matches!(list.data, Data::Null) {
            let problem = format!("is {}, not a list of names of files", list.what());
            report.mistake(Place::of(list, key).problem(problem, "write each as `- NAME`"));
        }
        return Vec::new();
    };
    items.iter().map(|item| (go_value(item).1, Place::of(item, key))).filter(|(n, _)| !n.contains("..")).collect()
}

/// Replaces `${name}` by what `dynamic-param` says for `pool`.
fn placeholders(node: &mut Node, pool: &str, report: &mut Report) {
    let Some(section) = node.get("dynamic-param").cloned() else { return };
    let Data::Map(entries) = &section.data else {
        if !matches!(section.data, Data::Null) {
            let place = Place::of(&section, "dynamic-param");
            report.mistake(place.problem(format!("is {}, not a mapping", section.what()), "write `name: value` lines"));
        }
        return;
    };
    let mut params = BTreeMap::new();
    for entry in entries {
        let value = match &entry.value.data {
            Data::Map(_) => entry.value.get(pool).or_else(|| entry.value.get("default")),
            _ => Some(&entry.value),
        };
        if let Some(value) = value.filter(|v| !matches!(v.data, Data::Null)) {
            params.insert(entry.key.clone(), value.data.clone());
        }
    }
    fill(node, &params);
}
