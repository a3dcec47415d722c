//! The command of an instance, with what differs from one to the next.

use std::{borrow::Cow, collections::BTreeMap};

use anyhow::bail;

/// What stands for the placeholders.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// `{port}`.
    pub port: Option<u16>,
    /// `{name}`.
    pub name: &'a str,
    /// `{service}`.
    pub service: &'a str,
    /// `{group}`.
    pub group: &'a str,
    /// `{slot}`.
    pub slot: u32,
}

impl Values<'_> {
    fn get(&self, placeholder: &str) -> Option<Cow<'_, str>> {
        Some(match placeholder {
            "port" => self.port.map(|port| port.to_string()).unwrap_or_default().into(),
            "name" => self.name.into(),
            "service" => self.service.into(),
            "group" => self.group.into(),
            "slot" => self.slot.to_string().into(),
            _ => return None,
        })
    }
}

/// Any values, to see which placeholders there are.
const PROBE: Values<'static> = Values { port: None, name: "", service: "", group: "", slot: 0 };

/// Program, arguments and environment.
#[derive(Clone, Debug)]
pub struct Template {
    command: Vec<String>,
    environment: BTreeMap<String, String>,
}

impl Template {
    /// Refuses what cannot be a command, and words in braces that are no placeholder.
    pub fn new(command: &[String], environment: &BTreeMap<String, String>) -> anyhow::Result<Self> {
        let Some(program) = command.first().filter(|program| !program.is_empty()) else {
            bail!("`command` is empty; write program and arguments as a list");
        };
        if program.contains('{') {
            bail!("`command` starts with `{program}`; the program itself cannot differ from instance to instance");
        }
        for text in command.iter().chain(environment.values()) {
            if let Some(word) = words(text).into_iter().find(|word| PROBE.get(word).is_none()) {
                bail!("`{{{word}}}` in `{text}` is no placeholder; there are port, name, service, group and slot");
            }
            if text.contains('\0') {
                bail!("`command` or `environment` has a zero byte");
            }
        }
        if let Some(name) = environment.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            bail!("`environment` has the name `{name}`; names are not empty and without `=`");
        }
        Ok(Self { command: command.to_vec(), environment: environment.clone() })
    }

    /// Whether an instance needs a port.
    pub fn wants_port(&self) -> bool {
        self.command.iter().chain(self.environment.values()).any(|text| words(text).contains(&"port"))
    }

    /// The program, its arguments and its environment.
    pub fn fill(&self, values: &Values<'_>) -> (String, Vec<String>, Vec<(String, String)>) {
        let mut command = self.command.iter().map(|text| fill(text, values));
        let program = command.next().unwrap_or_default();
        let environment = self.environment.iter().map(|(name, text)| (name.clone(), fill(text, values)));
        (program, command.collect(), environment.collect())
    }
}

/// Words in braces. Braces around anything else, such as JSON, are text.
fn words(text: &str) -> Vec<&str> {
    let inside = text.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(word, _)| word));
    inside.filter(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase())).collect()
}

fn fill(text: &str, values: &Values<'_>) -> String {
    let mut filled = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let value = after.split_once('}').and_then(|(word, tail)| values.get(word).map(|value| (value, tail)));
        if let Some((value, tail)) = value {
            filled.push_str(&value);
            rest = tail;
        } else {
            filled.push('{');
            rest = after;
        }
    }
    filled.push_str(rest);
    filled
}

/// `20000-20099`: first and last.
pub fn ports(text: &str) -> anyhow::Result<(u16, u16)> {
    let range = text.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match range {
        Some((first, last)) if first > 0 && first <= last => Ok((first, last)),
        _ => bail!("`ports: {text}` is not a range of ports; write it like 20000-20099"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(command: &[&str]) -> anyhow::Result<Template> {
        Template::new(&command.iter().map(|&s| s.to_owned()).collect::<Vec<_>>(), &BTreeMap::new())
    }

    #[test]
    fn placeholders_are_filled_and_other_braces_are_text() {
        let text = ["srv", "--listen=127.0.0.1:{port}", "{name}{slot}", r#"{"a": {"b": "{service}"}}"#, "{", "a}{"];
        let template = template(&text).unwrap();
        assert!(template.wants_port());
        let values = Values { port: Some(80), name: "n{slot}", service: "s", group: "g", slot: 3 };
        let (program, arguments, _) = template.fill(&values);
        assert_eq!(program, "srv");
        assert_eq!(arguments, ["--listen=127.0.0.1:80", "n{slot}3", r#"{"a": {"b": "s"}}"#, "{", "a}{"]);
    }

    #[test]
    fn what_cannot_be_a_command_is_refused() {
        for (command, part) in [
            (&[][..], "is empty"),
            (&[""], "is empty"),
            (&["{name}"], "cannot differ"),
            (&["srv", "{prot}"], "`{prot}` in `{prot}` is no placeholder"),
            (&["srv", "\0"], "zero byte"),
        ] {
            let said = template(command).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
        for text in ["", "1", "0-5", "9-8", "1-70000", "a-b"] {
            assert!(ports(text).unwrap_err().to_string().contains("20000-20099"));
        }
        assert_eq!(ports("5 - 5").unwrap(), (5, 5));
    }
}
