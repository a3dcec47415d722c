//! A tree as YAML text that reads back as the same tree.

use super::super::node::{Data, Entry, Node, plain_value};
use crate::kind::Value;

/// The text of `node`, a mapping at the top of a file.
pub(super) fn render(node: &Node) -> String {
    let mut text = String::new();
    if let Data::Map(entries) = &node.data {
        map(entries, 0, false, &mut text);
    }
    text
}

fn map(entries: &[Entry], indent: usize, mut begun: bool, text: &mut String) {
    for entry in entries {
        if !std::mem::take(&mut begun) {
            text.push_str(&" ".repeat(indent));
        }
        text.push_str(&scalar(&entry.key, true));
        text.push(':');
        value(&entry.value, indent, text);
    }
}

/// What stands behind `key:` or, for single values, behind `- `.
fn value(node: &Node, indent: usize, text: &mut String) {
    match &node.data {
        Data::Map(entries) if !entries.is_empty() => {
            text.push('\n');
            map(entries, indent + 2, false, text);
        }
        Data::List(list) if list.iter().all(|n| matches!(n.data, Data::Scalar { .. })) => {
            let items: Vec<_> = list.iter().map(single).collect();
            text.push_str(&format!(" [{}]\n", items.join(", ")));
        }
        Data::List(list) => {
            text.push('\n');
            for item in list {
                text.push_str(&" ".repeat(indent + 2));
                text.push('-');
                match &item.data {
                    Data::Map(entries) if !entries.is_empty() => {
                        text.push(' ');
                        map(entries, indent + 4, true, text);
                    }
                    _ => value(item, indent + 2, text),
                }
            }
        }
        _ => {
            text.push(' ');
            text.push_str(&single(node));
            text.push('\n');
        }
    }
}

fn single(node: &Node) -> String {
    match &node.data {
        Data::Null => "null".to_owned(),
        Data::Scalar { text, quoted } => scalar(text, *quoted),
        Data::List(_) => "[]".to_owned(),
        Data::Map(_) => "{}".to_owned(),
    }
}

fn scalar(text: &str, quoted: bool) -> String {
    let first = text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '$'));
    let rest = text.chars().all(|c| c.is_alphanumeric() || "/._-:$+*();=@".contains(c)) && !text.ends_with(':');
    let same = !quoted || matches!(plain_value(text), Value::String(_));
    // Other readers take these for booleans.
    let boolean = matches!(text.to_ascii_lowercase().as_str(), "y" | "n" | "yes" | "no" | "on" | "off");
    if first && rest && same && !boolean {
        return text.to_owned();
    }
    // JSON's strings are YAML's, but for what no name contains.
    Value::String(text.to_owned()).as_str().map_or_else(String::new, |s| serde_json::Value::from(s).to_string())
}

#[cfg(test)]
mod tests {
    use super::{super::super::problem::Report, *};

    #[test]
    fn what_is_written_reads_back() {
        let yaml = "a: 1\n\"1\": \"2\"\nb: {c: [x, \"y: z\", '3'], d: {}, e: [{f: 1, g: [{h: 0.0.0.0:1}]}, [a, b]]}\n\
                    w: \"yes\"\nq: \"a\\\"b\\n\\u4e2d\"\nn: null\nempty: ''\n'*': '[::]:80'\n";
        let read = |text: &str| Node::parse(text, &mut Report::default()).unwrap().unwrap();
        let node = read(yaml);
        let text = render(&node);
        assert_eq!(read(&text).to_value(), node.to_value(), "{text}");
        assert!(text.contains("c: [x, \"y: z\", \"3\"]\n"), "{text}");
        assert!(text.contains("    - f: 1\n      g:\n        - h: 0.0.0.0:1\n"), "{text}");
    }
}
