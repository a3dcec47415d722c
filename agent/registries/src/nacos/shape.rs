//! Names and JSON that both APIs of Nacos have in common.

use std::{collections::BTreeMap, net::SocketAddr};

use model::{DEFAULT_WEIGHT, Instance, ServiceKey};
use serde::{Deserialize, Serialize};

use model::value::endpoint_address;

use crate::{Provided, Scope};

/// Group of what has none.
const DEFAULT_GROUP: &str = "DEFAULT_GROUP";
/// Nacos' own cluster of an instance that names none.
const DEFAULT_CLUSTER: &str = "DEFAULT";
/// Largest weight in the configuration.
const MAX_WEIGHT: f64 = 10_000.0;

/// The namespace, and what things are called in it.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The id of the namespace as configurations want it: empty for the public one.
    pub tenant: String,
}

/// A service or a configuration: what it is called, and in which group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub name: String,
    pub group: String,
}

impl Names {
    pub fn new(namespace: Option<String>) -> Self {
        Self { tenant: namespace.filter(|n| n != "public").unwrap_or_default() }
    }

    /// The id of the namespace as services want it.
    pub fn namespace(&self) -> &str {
        if self.tenant.is_empty() { "public" } else { &self.tenant }
    }
}

/// Where a service lies.
pub(super) fn service(key: &ServiceKey) -> Place {
    Place { name: key.service.clone(), group: group(&key.group) }
}

/// Where commands lie.
pub(super) fn commands(scope: &Scope) -> Place {
    match scope {
        Scope::Group(name) => Place { name: "motan.command".to_owned(), group: group(name) },
        Scope::Agent(name) => Place { name: "motan.agent.command".to_owned(), group: group(name) },
    }
}

fn group(name: &str) -> String {
    if name.is_empty() { DEFAULT_GROUP.to_owned() } else { name.to_owned() }
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Host {
    pub ip: String,
    pub port: u16,
    #[serde(default = "one")]
    pub weight: f64,
    #[serde(default = "yes")]
    pub healthy: bool,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(default = "yes")]
    pub ephemeral: bool,
    #[serde(default)]
    pub cluster_name: Option<String>,
    #[serde(default)]
    pub service_name: Option<String>,
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

/// A service as it is answered and pushed. Hosts are read one by one, so that an odd one costs only itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceInfo {
    pub name: String,
    pub group_name: Option<String>,
    pub hosts: Option<Vec<serde_json::Value>>,
    pub last_ref_time: i64,
}

impl ServiceInfo {
    /// Whether this is about `place`: names come with and without their group before them.
    pub fn is(&self, place: &Place) -> bool {
        let (group, name) = match self.name.split_once("@@") {
            Some((group, name)) => (Some(group), name),
            None => (self.group_name.as_deref(), self.name.as_str()),
        };
        name == place.name && group.is_none_or(|group| group == place.group)
    }

    /// The endpoints for callers of `key`. An error when there are instances and none can be called for a mistake
    /// in them.
    pub fn instances(&self, key: &ServiceKey) -> Result<Vec<Instance>, String> {
        let mut found = Vec::new();
        let mut wrong = None;
        for host in self.hosts.iter().flatten() {
            let read = serde_json::from_value::<Host>(host.clone()).map_err(|e| e.to_string());
            match read.and_then(|host| host.instance(key)) {
                Ok(instance) => found.extend(instance),
                Err(why) => wrong = Some(why),
            }
        }
        match wrong {
            Some(why) if found.is_empty() => Err(format!("no instance in Nacos can be called: {why}")),
            Some(why) => {
                tracing::debug!(service = %key, why, "an instance is left out");
                Ok(found)
            }
            None => Ok(found),
        }
    }
}

impl Host {
    fn instance(self, key: &ServiceKey) -> Result<Option<Instance>, String> {
        if !self.enabled || !self.healthy {
            return Ok(None);
        }
        let place = if self.ip.contains(':') {
            format!("[{}]:{}", self.ip, self.port)
        } else {
            format!("{}:{}", self.ip, self.port)
        };
        let address = endpoint_address(&place).map_err(|wrong| format!("`{place}` {}", wrong.problem))?;
        let metadata = self.metadata.unwrap_or_default();
        let of = |name: &str| metadata.get(name).cloned().unwrap_or_default();
        let cluster = self.cluster_name.filter(|cluster| cluster != DEFAULT_CLUSTER).unwrap_or_default();
        let weight = (self.weight * f64::from(DEFAULT_WEIGHT)).clamp(0.0, MAX_WEIGHT);
        // Small but wanted is not the same as taken out.
        let weight = if weight > 0.0 { weight.round().max(1.0) as u32 } else { 0 };
        let zone = of("zone");
        Ok(Some(Instance {
            group: key.group.clone(),
            weight,
            zone: if zone.is_empty() { cluster } else { zone },
            version: of("version"),
            metadata: metadata.into(),
            ..Instance::at(address.to_string())
        }))
    }

    /// What is told of a service of ours; `None` when its address is none.
    pub fn of(provided: &Provided, available: bool) -> Option<Self> {
        let at: SocketAddr = provided.instance.address.parse().ok()?;
        Some(Self {
            ip: at.ip().to_string(),
            port: at.port(),
            weight: f64::from(provided.instance.weight) / f64::from(DEFAULT_WEIGHT),
            healthy: true,
            enabled: available,
            ephemeral: true,
            cluster_name: Some(DEFAULT_CLUSTER.to_owned()),
            service_name: Some(provided.key.service.clone()),
            metadata: Some(provided.metadata()),
        })
    }
}

/// What is said when someone was faster.
pub(super) fn changed(place: &Place, found: &str) -> anyhow::Error {
    anyhow::anyhow!("Nacos' configuration {} of group {} holds something else by now: {found}", place.name, place.group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_one_by_one() {
        let key = ServiceKey { service: "s".into(), group: "g".into(), version: String::new() };
        let info = |hosts: &str| {
            serde_json::from_str::<ServiceInfo>(&format!("{{\"name\": \"g@@s\", \"hosts\": {hosts}}}")).unwrap()
        };
        let all = info(
            r#"[{"ip": "10.0.0.1", "port": 80, "weight": 2.5, "metadata": {"zone": "a", "version": "2"}, "clusterName": "DEFAULT"},
                {"ip": "10.0.0.2", "port": 80, "healthy": false}, {"ip": "10.0.0.3", "port": 80, "enabled": false},
                {"ip": "10.0.0.4", "port": 80, "weight": 0.01, "clusterName": "bj", "metadata": null},
                {"ip": "10.0.0.5", "port": 80, "weight": 0}, {"ip": "nowhere", "port": 80}, {"port": 1}, 7]"#,
        );
        let found = all.instances(&key).unwrap();
        let shown: Vec<_> =
            found.iter().map(|i| (&i.address[7..], i.weight, i.zone.as_str(), i.version.as_str())).collect();
        assert_eq!(shown, [("1:80", 25, "a", "2"), ("4:80", 1, "bj", ""), ("5:80", 0, "", "")]);
        assert!(info("[{\"ip\": \"nowhere\", \"port\": 80}]").instances(&key).unwrap_err().contains("nowhere"));
        assert!(info("null").instances(&key).unwrap().is_empty());
        assert!(all.is(&service(&key)) && !all.is(&Place { group: "h".into(), ..service(&key) }));
    }
}
