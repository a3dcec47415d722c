//! What a registry's file says.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use model::{Instance, ServiceKey};

use crate::{
    config::{Data, Instances, Node, Problem, Report, instances, registry_file},
    registry::{Scope, select},
};

/// Larger files are refused: they are read as a whole.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Mistakes told at once; a file broken by a tool is broken in every line.
const TOLD: usize = 3;

/// Everything a good file says.
#[derive(Debug, Default)]
pub(super) struct Content {
    services: BTreeMap<String, Instances>,
    commands: HashMap<Scope, String>,
}

impl Content {
    /// The command text of `scope`.
    pub fn command(&self, scope: &Scope) -> Option<&str> {
        self.commands.get(scope).map(String::as_str)
    }

    /// Instances of `service`, and what was left out of its list. `None` when all of it was.
    pub fn of(&self, service: &ServiceKey) -> (Option<Vec<Instance>>, Option<String>) {
        let Some(listed) = self.services.get(&service.service) else { return (Some(Vec::new()), None) };
        if listed.left_out.is_empty() {
            return (Some(select(service, &listed.good)), None);
        }
        let told = format!("{} left out: {}", listed.left_out.len(), told(&listed.left_out));
        let usable = !listed.good.is_empty();
        (usable.then(|| select(service, &listed.good)), Some(told))
    }
}

/// Reads the file. The error is one line for operators, with the line in the file where there is one.
pub(super) fn read(path: &Path) -> Result<Content, String> {
    let cannot = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let length = std::fs::metadata(path).map_err(cannot)?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("{} has {length} bytes, more than {MAX_FILE_BYTES}", path.display()));
    }
    let bytes = std::fs::read(path).map_err(cannot)?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    parse(&text).map_err(|reason| format!("{}: {reason}", path.display()))
}

fn parse(text: &str) -> Result<Content, String> {
    let mut report = Report::default();
    let node = match Node::parse(text, &mut report) {
        Ok(Some(node)) => node,
        Ok(None) => return Err("the file is empty; write `services: {}` if there are none".to_owned()),
        Err(problem) => {
            // JSON is YAML but for corners such as surrogate pairs.
            let json = text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok()).flatten();
            let Some(value) = json else { return Err(told(&[problem])) };
            Node::from_value(&value)
        }
    };
    let mut content = Content::default();
    let file = registry_file(&node, &mut report);
    content.commands.extend(file.groups.into_iter().map(|(name, text)| (Scope::Group(name), text)));
    content.commands.extend(file.agents.into_iter().map(|(name, text)| (Scope::Agent(name), text)));
    for entry in file.services {
        let path = format!("services.{}", entry.key);
        if matches!(entry.value.data, Data::Null) {
            let problem = "has no list".to_owned();
            let remedy = "write [] if it has no instance".to_owned();
            let (line, column) = (entry.at.line, entry.at.column);
            report.mistake(Problem { file: None, line, column, key: path, value: None, problem, remedy });
            continue;
        }
        content.services.insert(entry.key.clone(), instances(&entry.value, &path, &mut report));
    }
    if report.mistakes.is_empty() { Ok(content) } else { Err(told(&report.mistakes)) }
}

fn told(problems: &[Problem]) -> String {
    let line = |p: &Problem| match p.line {
        0 => p.to_string(),
        line => format!("line {line}: {}", Problem { line: 0, ..p.clone() }),
    };
    let mut lines: Vec<_> = problems.iter().take(TOLD).map(line).collect();
    if problems.len() > TOLD {
        lines.push(format!("and {} more", problems.len() - TOLD));
    }
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(content: &Content, service: &str) -> String {
        let key = ServiceKey { service: service.into(), ..ServiceKey::default() };
        let list = content.of(&key).0.unwrap();
        list.iter().map(|i| i.address.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn reads_yaml_and_json() {
        let yaml = "services:\n  web: [127.0.0.1:1, {address: '[::1]:2', weight: 3, metadata: {k: v}}]\n  none: []\n";
        let content = parse(yaml).unwrap();
        assert_eq!(addresses(&content, "web"), "127.0.0.1:1 [::1]:2");
        assert_eq!((addresses(&content, "none"), addresses(&content, "other")), (String::new(), String::new()));
        assert_eq!(content.services["web"].good[1].weight, 3);

        let json = "{\n\t\"services\": {\"web\": [\"127.0.0.1:1\", {\"address\": \"127.0.0.1:2\", \"zone\": \"\\ud83d\\ude00\"}]}}";
        let content = parse(json).unwrap();
        assert_eq!(addresses(&content, "web"), "127.0.0.1:1 127.0.0.1:2");
        assert_eq!(content.services["web"].good[1].zone, "\u{1f600}");
        assert_eq!(addresses(&parse("services: {}").unwrap(), "web"), "");
    }

    #[test]
    fn says_in_which_line_it_is_broken() {
        for (text, expected) in [
            ("", "the file is empty"),
            ("# nothing\n\n", "the file is empty"),
            ("services:\n", "line 1: services: has no value"),
            ("service: {}\n", "did you mean `services`?"),
            ("- a\n", "line 1: is a list, not a mapping"),
            ("services:\n  web:\n", "line 2: services.web: has no list"),
            (
                "services:\n  web: [{address: 1.1.1.1:1, wieght: 1}]\n",
                "line 2: services.web[0].wieght: unknown key; did you mean `weight`?",
            ),
            ("services:\n  web: [1.1.1.1:1\n  api: [1.1.1.1:1]\n", "this is not YAML"),
            ("{\"services\": {\"web\": [\"1.1.1.1:1\"", "this is not YAML"),
            ("services:\n  web: 1.1.1.1:1\n", "line 2: services.web: is a single value, not a list"),
        ] {
            let told = parse(text).unwrap_err();
            assert!(told.contains(expected), "{text:?}: {told}");
        }
    }

    #[test]
    fn unusable_addresses_cost_only_themselves() {
        let content =
            parse("services:\n  web: [1.1.1.1:1, 1.1.1.1:0, {address: nowhere}, 1.1.1.1:1]\n  bad: [x]\n").unwrap();
        assert_eq!(addresses(&content, "web"), "1.1.1.1:1");
        let key = |service: &str| ServiceKey { service: service.into(), ..ServiceKey::default() };
        let told = content.of(&key("web")).1.unwrap();
        assert!(told.starts_with("3 left out: line 2: services.web[1]: `1.1.1.1:0` has port 0"), "{told}");
        assert!(told.contains("`1.1.1.1:1` is listed twice"), "{told}");
        assert_eq!(content.of(&key("bad")).0, None, "a list of nothing but mistakes is no empty list");
    }
}
