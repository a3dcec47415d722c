//! A node of a registry as Motan writes it: `PROTOCOL://HOST:PORT/PATH?key=value&...`, in two dialects.
//!
//! Java form-encodes values and ends with `&`; motan-go sorts keys, escapes nothing and ends without. The
//! closing `&` tells which of them a text is.

use std::{collections::BTreeMap, fmt::Write};

use form_urlencoded::byte_serialize;
use model::{DEFAULT_WEIGHT, Instance, ServiceKey};

use super::Provided;
use model::value::endpoint_address;

/// Version of a node that names none, as Motan Java takes it.
const DEFAULT_VERSION: &str = "1.0";
/// Group of what has none, as Motan names it.
pub(super) const DEFAULT_GROUP: &str = "default_rpc";
/// Largest weight in the configuration.
const MAX_WEIGHT: u32 = 10_000;

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Url {
    /// What it speaks.
    pub protocol: String,
    /// `HOST:PORT` as written.
    pub address: String,
    /// Service name.
    pub path: String,
    /// Everything else.
    pub parameters: BTreeMap<String, String>,
}

impl Url {
    /// Reads a text of either dialect. `encoded` says that the text is Java's for certain, whatever its end.
    /// The error has no text of the node's, which may be anything.
    pub fn parse(text: &str, encoded: bool) -> Result<Self, &'static str> {
        let text = text.trim_matches(['\0', ' ', '\n', '\r', '\t']);
        let encoded = encoded || text.ends_with('&');
        let (protocol, rest) = text.split_once("://").ok_or("is no URL")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (address, path) = place.split_once('/').unwrap_or((place, ""));
        if protocol.is_empty() || protocol.contains(char::is_whitespace) || address.is_empty() {
            return Err("is no URL");
        }
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.filter(|(key, _)| !key.is_empty()).map(|(key, value)| {
            if encoded { (decoded(key), decoded(value)) } else { (key.to_owned(), value.to_owned()) }
        });
        Ok(Self {
            protocol: protocol.to_owned(),
            address: address.to_owned(),
            path: path.to_owned(),
            parameters: pairs.collect(),
        })
    }

    /// What this agent tells of a service that it provides.
    pub fn of(provided: &Provided) -> Self {
        let mut parameters = (*provided.instance.metadata).clone();
        parameters.extend(provided.parameters.clone());
        let mut set = |key: &str, value: &str| parameters.insert(key.to_owned(), value.to_owned());
        set("nodeType", "service");
        set("group", group_of(&provided.key));
        set("version", if provided.key.version.is_empty() { DEFAULT_VERSION } else { &provided.key.version });
        if !provided.application.is_empty() {
            set("application", &provided.application);
        }
        if provided.instance.weight != DEFAULT_WEIGHT {
            set("META_WEIGHT", &provided.instance.weight.to_string());
        }
        if !provided.instance.zone.is_empty() {
            set("zone", &provided.instance.zone);
        }
        Self {
            protocol: provided.protocol.clone(),
            address: provided.instance.address.clone(),
            path: provided.key.service.clone(),
            parameters,
        }
    }

    /// The text as Java writes it.
    pub fn encoded(&self) -> String {
        let mut text = self.head();
        for (key, value) in &self.parameters {
            text.extend(byte_serialize(key.as_bytes()));
            text.push('=');
            text.extend(byte_serialize(value.as_bytes()));
            text.push('&');
        }
        text
    }

    /// The text as motan-go writes it. Values that cannot be written without escapes make it Java's.
    pub fn plain(&self) -> String {
        let tears = |text: &str| text.contains(|c: char| matches!(c, '&' | '=') || c.is_control());
        if self.parameters.iter().any(|(key, value)| tears(key) || tears(value)) {
            return self.encoded();
        }
        let mut text = self.head();
        let pairs: Vec<_> = self.parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
        text.push_str(&pairs.join("&"));
        text
    }

    fn head(&self) -> String {
        let mut text = String::new();
        let _ = write!(text, "{}://{}/{}?", self.protocol, self.address, self.path);
        text
    }

    /// The endpoint that this node is for callers of `service`: `Ok(None)` when it is none of theirs (another
    /// path or version, not a server), an error when nobody can connect to it.
    pub fn instance(mut self, service: &ServiceKey) -> Result<Option<Instance>, String> {
        let mut take = |key: &str| self.parameters.remove(key).unwrap_or_default();
        let (kind, version) = (take("nodeType"), take("version"));
        // Where it lies says which group it is in.
        take("group");
        let asked = &service.version;
        let fits = asked.is_empty() || version.is_empty() || *asked == version;
        if self.path != service.service || !fits || !(kind.is_empty() || kind == "service") {
            return Ok(None);
        }
        let weight = self.parameters.get("META_WEIGHT").and_then(|text| text.parse::<u32>().ok());
        let zone = self.parameters.get("zone").cloned().unwrap_or_default();
        let address =
            endpoint_address(&self.address).map_err(|wrong| format!("`{}` {}", self.address, wrong.problem))?;
        self.parameters.insert("protocol".to_owned(), self.protocol);
        Ok(Some(Instance {
            group: service.group.clone(),
            weight: weight.map_or(DEFAULT_WEIGHT, |weight| weight.min(MAX_WEIGHT)),
            zone,
            version,
            metadata: self.parameters.into(),
            ..Instance::at(address.to_string())
        }))
    }
}

/// The folder of a service's group.
pub(super) fn group_of(service: &ServiceKey) -> &str {
    if service.group.is_empty() { DEFAULT_GROUP } else { &service.group }
}

fn decoded(text: &str) -> String {
    // Given a text without `=` and `&`, this decodes it as a whole.
    form_urlencoded::parse(text.as_bytes()).next().map(|(key, _)| key.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from Motan Java 1.2.6.
    const JAVA: &str = "motan2://127.0.0.1:28002/bars.BarService?maxContentLength=16777216&module=bars&nodeType=service&version=1.0&serialization=simple&x=a+b%2Fc%26d%3D%E4%B8%AD&protocol=motan2&application=bars-server&export=motan2%3A28002&group=bars&";

    fn key(service: &str, group: &str, version: &str) -> ServiceKey {
        ServiceKey { service: service.into(), group: group.into(), version: version.into() }
    }

    #[test]
    fn both_dialects_are_read_as_they_are_meant() {
        let java = Url::parse(JAVA, false).unwrap();
        assert_eq!((java.parameters["x"].as_str(), java.parameters["export"].as_str()), ("a b/c&d=中", "motan2:28002"));
        let go = Url::parse("motan2://10.0.0.1:1/s?group=g&k=a+b%2F&odd&=x&two=a=b", false).unwrap();
        assert_eq!((go.parameters["k"].as_str(), go.parameters["group"].as_str()), ("a+b%2F", "g"));
        assert_eq!(Url::parse("motan2://10.0.0.1:1/s?k=a+b", true).unwrap().parameters["k"], "a b");
        for bad in ["", "hello", "://a", "motan2:///s", "\u{1}\u{2}"] {
            assert!(Url::parse(bad, false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let provided = Provided {
            key: key("s.S", "g", ""),
            protocol: "motan2".into(),
            instance: Instance { weight: 30, zone: "a".into(), ..Instance::at("10.0.0.1:80") },
            application: "app".into(),
            parameters: [("serialization".to_owned(), "simple".to_owned())].into(),
        };
        let url = Url::of(&provided);
        let text = "motan2://10.0.0.1:80/s.S?META_WEIGHT=30&application=app&group=g&nodeType=service&serialization=simple&version=1.0&zone=a";
        assert_eq!(url.plain(), text);
        assert_eq!(url.encoded(), format!("{text}&"));
        for text in [url.plain(), url.encoded()] {
            assert_eq!(Url::parse(&text, false).as_ref(), Ok(&url));
        }
        let mut odd = url.clone();
        odd.parameters.insert("k".into(), "a&b=c d".into());
        assert_eq!(Url::parse(&odd.plain(), false), Ok(odd));

        let instance = url.instance(&key("s.S", "g", "")).unwrap().unwrap();
        assert_eq!((instance.weight, instance.zone.as_str(), instance.version.as_str()), (30, "a", "1.0"));
        assert_eq!(instance.metadata["serialization"], "simple");
        assert_eq!(instance.metadata["protocol"], "motan2");
    }

    #[test]
    fn nodes_of_others_are_none_of_ours() {
        let of = |text: &str, version: &str| {
            let instance = Url::parse(text, false).unwrap().instance(&key("s", "g", version));
            instance.map(|i| i.map(|i| i.address)).map_err(|e| e.to_string())
        };
        let ours = Ok(Some("10.0.0.1:1".to_owned()));
        assert_eq!(of("motan2://10.0.0.1:1/s?nodeType=service&version=2.0", ""), ours);
        assert_eq!(of("motan2://10.0.0.1:1/s?group=other", "2.0"), ours);
        assert_eq!(of("motan2://10.0.0.1:1/s?version=1.0", "2.0"), Ok(None));
        assert_eq!(of("motan2://10.0.0.1:1/other?", ""), Ok(None));
        assert_eq!(of("motan2://10.0.0.1:1/s?nodeType=referer", ""), Ok(None));
        for address in ["10.0.0.1:0", "10.0.0.1", "nowhere:1", "0.0.0.0:1"] {
            assert!(of(&format!("motan2://{address}/s?"), "").is_err(), "{address}");
        }
    }
}
