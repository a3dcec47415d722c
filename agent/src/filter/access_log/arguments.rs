//! Arguments of calls in the access log, without those that must not be there.

use bytes::Bytes;
use serde_json::Value as Json;

use crate::{
    call::{Body, Head, Request, Text},
    serialize::{
        Value,
        format::{Format, Part, declared},
        json,
    },
};

/// Bodies that are longer are not read for a line.
const READ_BYTES: usize = 64 << 10;
/// Longest text of the arguments of one call; longer ones end in `…`.
pub(super) const SHOWN_BYTES: usize = 2048;
/// What stands in place of what is masked.
const HIDDEN: &str = "***";
/// Metadata of a call that describes its parameters.
const DESCRIPTION: &str = "M_md";

/// The arguments of one call as they came.
#[derive(Clone, Debug)]
pub(in crate::filter) struct Came {
    serialization: u8,
    description: Option<Text>,
    body: Bytes,
}

impl Came {
    /// Of a Motan2 call whose arguments are at hand.
    pub(super) fn of(req: &Request) -> Option<Self> {
        let Head::Motan2(head) = &req.head else { return None };
        let body = match &req.body {
            _ if head.gzip => return None,
            Body::Empty => Bytes::new(),
            Body::Full(body) => body.clone(),
            Body::Stream(_) => return None,
        };
        Some(Self { serialization: head.serialization, description: head.meta.get(DESCRIPTION), body })
    }
}

/// What is not shown.
#[derive(Debug, Default)]
pub(super) struct Mask {
    /// Arguments by their place, from 0.
    places: Vec<usize>,
    /// Names of fields and keys, in lower case.
    names: Vec<String>,
}

impl Mask {
    /// `#1` is the first argument, everything else the name of a field.
    pub(super) fn new(masked: Vec<String>) -> anyhow::Result<Self> {
        let mut mask = Self::default();
        for name in masked {
            match name.strip_prefix('#') {
                None if name.is_empty() => anyhow::bail!("mask: an empty name; write that of a field, or #1"),
                None => mask.names.push(name.to_lowercase()),
                Some(place) => match place.parse::<usize>() {
                    Ok(place @ 1..) => mask.places.push(place - 1),
                    _ => anyhow::bail!("mask: `{name}` is no argument; the first is #1"),
                },
            }
        }
        Ok(mask)
    }

    /// The list of arguments as JSON; `None` when they cannot be read, and so not be masked.
    pub(super) fn show(&self, came: &Came) -> Option<String> {
        if came.body.len() > READ_BYTES {
            return None;
        }
        let types = came.description.as_ref().map(|names| declared(names));
        let format = Format::of_number(came.serialization)?;
        let mut values = format.read(came.body.clone(), Part::Arguments, types.as_ref()).ok()?;
        values.iter_mut().for_each(|value| self.hide(value));
        for place in &self.places {
            if let Some(value) = values.get_mut(*place) {
                *value = Value::from(HIDDEN);
            }
        }
        Some(values.iter().map(json::to_json).collect::<Json>().to_string())
    }

    fn is_masked(&self, name: &str) -> bool {
        !self.names.is_empty() && self.names.contains(&name.to_lowercase())
    }

    /// Nested no deeper than what is read.
    fn hide(&self, value: &mut Value) {
        if self.names.is_empty() {
            return;
        }
        let hide_text = |key: &str, text: &mut Text| match self.is_masked(key) {
            true => *text = Text::from_static(HIDDEN),
            false => self.hide_in_text(text),
        };
        match value {
            Value::String(text) => self.hide_in_text(text),
            Value::Strings(texts) => texts.iter_mut().for_each(|text| self.hide_in_text(text)),
            Value::Array(list) => list.iter_mut().for_each(|value| self.hide(value)),
            Value::StringMap(map) => map.iter_mut().for_each(|(key, text)| hide_text(key, text)),
            Value::Map(map) => {
                for (key, value) in map {
                    match key {
                        Value::String(key) if self.is_masked(key) => *value = Value::from(HIDDEN),
                        _ => self.hide(value),
                    }
                }
            }
            Value::Message(message) => {
                let (name, fields) = &mut **message;
                for (number, value) in fields {
                    if self.is_masked(&format!("{name}.{number}")) {
                        *value = Value::from(HIDDEN);
                    } else {
                        self.hide(value);
                    }
                }
            }
            // Bytes may be anything, also what is masked elsewhere.
            Value::Bytes(bytes) if self.is_named_in(&String::from_utf8_lossy(bytes)) => *value = Value::from(HIDDEN),
            _ => {}
        }
    }

    /// Within a text that is JSON fields have names as well; another text in which one of them occurs, such as a form,
    /// is hidden as a whole.
    fn hide_in_text(&self, text: &mut Text) {
        if !self.is_named_in(text) {
            return;
        }
        *text = match serde_json::from_str::<Json>(text) {
            Ok(mut json @ (Json::Object(_) | Json::Array(_))) => {
                self.hide_in_json(&mut json);
                Text::from(json.to_string())
            }
            _ => Text::from_static(HIDDEN),
        };
    }

    fn hide_in_json(&self, json: &mut Json) {
        match json {
            Json::Array(list) => list.iter_mut().for_each(|json| self.hide_in_json(json)),
            Json::Object(map) => {
                for (key, value) in map {
                    if self.is_masked(key) { *value = HIDDEN.into() } else { self.hide_in_json(value) }
                }
            }
            Json::String(text) if self.is_named_in(text) => *text = HIDDEN.to_owned(),
            _ => {}
        }
    }

    fn is_named_in(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        self.names.iter().any(|name| text.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Call, Motan2Head},
        serialize::{breeze, protobuf, simple},
    };

    fn came(serialization: u8, body: Bytes) -> Came {
        Came { serialization, description: None, body }
    }

    fn shown(mask: &[&str], values: &[Value]) -> String {
        let mask = Mask::new(mask.iter().map(|name| (*name).to_owned()).collect()).unwrap();
        mask.show(&came(breeze::NUMBER, breeze::write(values).unwrap())).unwrap()
    }

    #[test]
    fn what_is_named_is_hidden_wherever_it_is() {
        let text = |key: &str, value: &str| (Text::from(key), Text::from(value));
        let values = [
            Value::from("plain"),
            Value::StringMap(vec![text("user", "ann"), text("Password", "s3cret")]),
            Value::Map(vec![
                (Value::from("n"), Value::Array(vec![Value::StringMap(vec![text("token", "s3cret")])])),
                (Value::from("password"), Value::Int32(5)),
                (Value::Int32(1), Value::Null),
            ]),
            Value::Message(Box::new(("Order".into(), vec![(1, Value::Int64(7)), (2, Value::from("s3cret"))]))),
            Value::from(r#"{"a":[{"TOKEN":"s3cret"}],"b":"password=s3cret"}"#),
            Value::from("user=ann&password=s3cret"),
            Value::Strings(vec!["token s3cret".into(), "ok".into()]),
            Value::Bytes(Bytes::from_static(b"password: s3cret")),
            Value::from("s3cret"),
        ];
        let line = shown(&["password", "token", "order.2", "#9"], &values);
        assert!(!line.contains("s3cret"), "{line}");
        for kept in ["plain", "ann", "$int64", r#"\"a\""#, "ok"] {
            assert!(line.contains(kept), "{kept}: {line}");
        }
        assert_eq!(line.matches(HIDDEN).count(), 10, "{line}");
        assert_eq!(shown(&[], &values[..1]), r#"["plain"]"#);
        assert_eq!(shown(&["#3"], &values[..1]), r#"["plain"]"#);
    }

    #[test]
    fn what_cannot_be_read_is_not_shown() {
        let mask = Mask::default();
        assert_eq!(mask.show(&came(0, "Hxyz".into())), None);
        assert_eq!(mask.show(&came(simple::NUMBER, "\x63".into())), None);
        assert_eq!(mask.show(&came(protobuf::NUMBER, "\0\x01".into())), None, "no types");
        let typed = Came { description: Some("boolean".into()), ..came(protobuf::NUMBER, "\0\x01".into()) };
        assert_eq!(mask.show(&typed).unwrap(), "[true]");
        let long = simple::write(&[Value::from(&*"x".repeat(READ_BYTES))]).unwrap();
        assert_eq!(mask.show(&came(simple::NUMBER, long)), None);
        assert_eq!(mask.show(&came(simple::NUMBER, Bytes::new())).unwrap(), "[]");

        let mut req = Request {
            call: Call::new("s".into(), "m".into()),
            head: Head::Motan2(Motan2Head { gzip: true, ..Motan2Head::default() }),
            body: Body::Empty,
        };
        assert!(Came::of(&req).is_none(), "packed");
        req.head = Head::None;
        assert!(Came::of(&req).is_none());
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |name: &str| Mask::new(vec![name.to_owned()]).unwrap_err().to_string();
        assert!(wrong("#0").contains("the first is #1") && wrong("#x").contains("`#x`"));
        assert!(wrong("").contains("empty name"));
    }
}
