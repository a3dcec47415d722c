//! Instances as Consul lists them, and as both layouts read and write them.

use std::collections::BTreeMap;

use anyhow::Context as _;
use form_urlencoded::byte_serialize;
use model::{DEFAULT_WEIGHT, Instance, ServiceKey};
use serde::Deserialize;
use serde_json::{Value, json};

use model::value::endpoint_address;

use crate::{Provided, url::Url};

/// Before a group in the name of a service of Motan's.
pub(super) const SERVICE_PREFIX: &str = "motanrpc_";
/// Before the protocol in a tag.
const PROTOCOL_TAG: &str = "protocol_";
/// Before the node's whole URL, form-encoded once more, in a tag.
const URL_TAG: &str = "URL_";
/// Largest weight in the configuration.
const MAX_WEIGHT: u32 = 10_000;

/// One instance that may be called.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// Its id in Consul.
    pub id: String,
    address: String,
    port: u16,
    /// Share as Consul has it: 1 is usual.
    share: u32,
    tags: Vec<String>,
    meta: BTreeMap<String, String>,
    url: Option<Url>,
}

/// Reads a list of `/v1/health/service/…`. Those with a critical check are left out; those that cannot be
/// read at all are counted. An answer that is no list at all is an error.
pub(super) fn read(body: &[u8]) -> anyhow::Result<(Vec<Entry>, usize)> {
    let all: Vec<Value> = serde_json::from_slice(body).context("not what Consul answers for a service")?;
    let count = all.len();
    let mut odd = 0;
    let mut entries = Vec::with_capacity(count);
    for value in all {
        match serde_json::from_value::<Health>(value) {
            Ok(health) => entries.extend(health.entry()),
            Err(_) => odd += 1,
        }
    }
    if odd == count && count > 0 {
        anyhow::bail!("none of {count} instances in Consul's answer can be read");
    }
    Ok((entries, odd))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    node: Option<Node>,
    service: Service,
    checks: Option<Vec<Check>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    address: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    service: String,
    address: Option<String>,
    port: u16,
    tags: Option<Vec<String>>,
    meta: Option<BTreeMap<String, String>>,
    weights: Option<Weights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    status: String,
}

impl Health {
    fn entry(self) -> Option<Entry> {
        let checks = self.checks.unwrap_or_default();
        let any = |status: &str| checks.iter().any(|check| check.status == status);
        if checks.iter().any(|check| !matches!(check.status.as_str(), "passing" | "warning")) {
            return None;
        }
        let Service { id, service, address, port, tags, meta, weights } = self.service;
        let weights = weights.unwrap_or(Weights { passing: 1, warning: 1 });
        let address = address.filter(|a| !a.is_empty()).or_else(|| self.node.unwrap_or_default().address);
        let (address, tags) = (address.unwrap_or_default(), tags.unwrap_or_default());
        let url = service.strip_prefix(SERVICE_PREFIX).map(|group| url(&id, group, &address, port, &tags));
        let share = if any("warning") { weights.warning } else { weights.passing };
        Some(Entry { id, address, port, share, tags, meta: meta.unwrap_or_default(), url })
    }
}

/// The node that an instance of a group is: what its tag says, else what can be told from its id.
fn url(id: &str, group: &str, address: &str, port: u16, tags: &[String]) -> Url {
    let whole = tags.iter().find_map(|tag| tag.strip_prefix(URL_TAG)).and_then(|text| {
        // Without `=` and `&` this decodes the text as a whole.
        let (text, _) = form_urlencoded::parse(text.as_bytes()).next()?;
        Url::parse(&text, false).ok()
    });
    whole.unwrap_or_else(|| {
        let protocol = tags.iter().find_map(|tag| tag.strip_prefix(PROTOCOL_TAG)).unwrap_or("motan2");
        let place = join(address, port);
        let path = id.strip_prefix(&format!("{place}-")).or_else(|| id.split_once('-').map(|(_, path)| path));
        Url {
            protocol: protocol.to_owned(),
            path: path.unwrap_or_default().to_owned(),
            parameters: [("group".to_owned(), group.to_owned())].into(),
            address: place,
        }
    })
}

fn join(address: &str, port: u16) -> String {
    if address.contains(':') && !address.starts_with('[') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

impl Entry {
    /// The endpoint that it is for callers of `key` in Motan's layout; `None` when it is none of theirs.
    pub fn motan(&self, key: &ServiceKey) -> Result<Option<Instance>, String> {
        let Some(url) = self.url.as_ref().filter(|url| url.path == key.service) else { return Ok(None) };
        let mut url = url.clone();
        if endpoint_address(&url.address).is_err() {
            // A host name, say; what Consul itself was told may be better.
            url.address = join(&self.address, self.port);
        }
        url.instance(key)
    }

    /// The endpoint that it is for callers of `key` in Consul's own layout. The group that is asked for, and
    /// `tag`, must be among its tags.
    pub fn plain(&self, key: &ServiceKey, tag: Option<&str>) -> Result<Option<Instance>, String> {
        let has = |wanted: &str| wanted.is_empty() || self.tags.iter().any(|tag| tag == wanted);
        if !has(&key.group) || !has(tag.unwrap_or_default()) {
            return Ok(None);
        }
        let place = join(&self.address, self.port);
        let address = endpoint_address(&place).map_err(|wrong| format!("`{place}` {}", wrong.problem))?;
        let of = |name: &str| self.meta.get(name).cloned().unwrap_or_default();
        let mut metadata = self.meta.clone();
        if !self.tags.is_empty() {
            metadata.insert("tags".to_owned(), self.tags.join(","));
        }
        Ok(Some(Instance {
            group: key.group.clone(),
            weight: self.share.saturating_mul(DEFAULT_WEIGHT).min(MAX_WEIGHT),
            zone: of("zone"),
            version: of("version"),
            metadata: metadata.into(),
            ..Instance::at(address.to_string())
        }))
    }
}

/// The id of what this agent provides; in Motan's layout as its clients read it.
pub(super) fn id(provided: &Provided) -> String {
    format!("{}-{}", provided.instance.address, provided.key.service)
}

/// Name and body of a registration in Motan's layout.
pub(super) fn motan_registration(provided: &Provided, group: &str) -> Value {
    let url: String = byte_serialize(Url::of(provided).encoded().as_bytes()).collect();
    json!({
        "Name": format!("{SERVICE_PREFIX}{group}"),
        "Tags": [format!("{PROTOCOL_TAG}{}", provided.protocol), format!("{URL_TAG}{url}")],
    })
}

/// Name and body of a registration in Consul's own layout.
pub(super) fn plain_registration(provided: &Provided) -> Value {
    let share = (provided.instance.weight / DEFAULT_WEIGHT).max(1);
    let tags: Vec<_> = Some(&provided.key.group).filter(|group| !group.is_empty()).into_iter().collect();
    json!({
        "Name": provided.key.service,
        "Tags": tags,
        "Meta": provided.metadata(),
        "Weights": {"Passing": share, "Warning": share},
    })
}
