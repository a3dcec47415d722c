//! Services registered and subscribed while the agent runs, by management calls: how they are written, kept
//! and added to a configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    super::{
        Config, Loaded,
        load::{Base, top},
        node::{At, Data, Entry, Node},
        problem::{ConfigErrors, Report},
    },
    Importer, RegistryName, Surroundings, push_unlike,
    url::{Url, commas},
};

/// A node as motan-go's management calls and `registry.snap` write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeUrl {
    /// Protocol that callers speak.
    pub protocol: String,
    /// Host; empty in what comes in.
    #[serde(deserialize_with = "text")]
    pub host: String,
    /// Port: of the local program in what comes in, of the agent's export in what is kept.
    pub port: u16,
    /// Service.
    #[serde(deserialize_with = "text")]
    pub path: String,
    /// Group.
    #[serde(deserialize_with = "text")]
    pub group: String,
    /// Everything else.
    #[serde(deserialize_with = "texts")]
    pub parameters: BTreeMap<String, String>,
}

/// `null` as nothing, as Go reads it.
fn text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(from).map(Option::unwrap_or_default)
}

fn texts<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    Option::<BTreeMap<String, String>>::deserialize(from).map(Option::unwrap_or_default)
}

impl NodeUrl {
    /// A parameter that is not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.parameters.get(key).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// What tells it from others: protocol, address, service, group.
    pub fn identity(&self) -> String {
        let Self { protocol, host, port, path, group, .. } = self;
        format!("{protocol}://{host}:{port}/{path}?group={group}")
    }

    /// [`NodeUrl::identity`] with the registry.
    pub fn identity_with_registry(&self) -> String {
        format!("{}&registry={}", self.identity(), self.get("registry").unwrap_or_default())
    }

    /// motan-go's text form («ext info»): parameters sorted, nothing escaped.
    pub fn ext_info(&self) -> String {
        let mut text = self.identity();
        for (key, value) in &self.parameters {
            text += &format!("&{key}={value}");
        }
        text
    }

    fn url(&self, kind: &str) -> Url {
        let mut params = self.parameters.clone();
        params.insert("path".to_owned(), self.path.clone());
        params.insert("group".to_owned(), self.group.clone());
        params.insert("protocol".to_owned(), self.protocol.clone());
        let id = self.get("conf-id").unwrap_or(&self.path).to_owned();
        Url::of(id, format!("{kind} {}", self.identity()), params)
    }
}

/// All such nodes, as `registry.snap` has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dynamic {
    /// Services that local programs provide.
    #[serde(deserialize_with = "nodes")]
    pub register_nodes: Vec<NodeUrl>,
    /// Services that local programs call.
    #[serde(deserialize_with = "nodes")]
    pub subscribe_nodes: Vec<NodeUrl>,
}

fn nodes<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<NodeUrl>, D::Error> {
    Option::<Vec<NodeUrl>>::deserialize(from).map(Option::unwrap_or_default)
}

impl Dynamic {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.register_nodes.is_empty() && self.subscribe_nodes.is_empty()
    }
}

/// How a configuration names its registries in management calls, by id.
pub fn registry_names(loaded: &Loaded) -> BTreeMap<String, RegistryName> {
    match &loaded.motan {
        Some(imported) => imported.registries.clone(),
        None => native_names(&loaded.config),
    }
}

fn native_names(config: &Config) -> BTreeMap<String, RegistryName> {
    let name = |(id, registry): (&String, &super::super::RegistryConfig)| {
        let address = &registry.options["address"];
        let first = address.as_str().or_else(|| address.get(0)?.as_str()).unwrap_or_default();
        let (host, port) = first.rsplit_once(':').unwrap_or((first, ""));
        let port = port.parse().unwrap_or(0);
        (id.clone(), RegistryName { protocol: registry.kind.clone(), host: host.to_owned(), port, usable: true })
    };
    config.registries.iter().map(name).collect()
}

/// `base` with `dynamic`.
///
/// # Errors
/// All mistakes at once; a node that cannot be had is one.
pub fn with_dynamic(base: &Base, dynamic: &Dynamic, around: &Surroundings) -> Result<Config, ConfigErrors> {
    let mut report = Report::default();
    let errors = |report: Report| ConfigErrors { path: None, mistakes: report.mistakes, warnings: report.warnings };
    let plain = top(&base.node, &base.base_dir, &mut report);
    let Some(plain) = plain.filter(|_| report.mistakes.is_empty()) else { return Err(errors(report)) };
    if dynamic.is_empty() {
        return Ok(plain);
    }
    let mut report = Report::default();
    let mut node = base.node.clone();
    let mut environment = around.environment.clone();
    // Groups were settled when the calls came in.
    for settled in
        ["MESH_SERVICE_ADDITIONAL_GROUP", "MESH_MULTI_SUB_GROUP_SUFFIX", "RPC_REG_GROUP_SUFFIX", "MESH_FILTERS"]
    {
        environment.remove(settled);
    }
    let mut importer = Importer {
        flags: &around.flags,
        environment: &environment,
        around,
        agent: Url::default(),
        application: plain.application.to_string(),
        registries: native_names(&plain),
        host: std::net::Ipv4Addr::UNSPECIFIED.into(),
        http: Default::default(),
        forward: (At::default(), plain.ports.forward.map(|at| at.to_string()).unwrap_or_default()),
        structured: base.structured,
        meta_prefix: base.meta_prefix.clone(),
    };
    for subscribed in &dynamic.subscribe_nodes {
        let url = subscribed.url("subscribed");
        if plain.ports.forward.is_none() {
            report.mistake(url.place("").problem("there is no port where programs call", "set `ports.forward`"));
            continue;
        }
        let found = importer.refer(&url, &mut report);
        add(&mut node, "referers", found, &url, &mut report);
    }
    for registered in &dynamic.register_nodes {
        let url = registered.url("registered");
        let found = importer.service(&url, &mut report);
        add(&mut node, "services", found, &url, &mut report);
    }
    // A warning about a node that was left out is the reason why the call fails.
    let lost = std::mem::take(&mut report.warnings);
    let mut report = Report { mistakes: report.mistakes, warnings: Vec::new() };
    let config = top(&node, &base.base_dir, &mut report);
    match config {
        Some(config) if report.mistakes.is_empty() => Ok(config),
        _ => {
            report.warnings.extend(lost);
            Err(errors(report))
        }
    }
}

fn add(top: &mut Node, list: &str, found: impl IntoIterator<Item = Node>, url: &Url, report: &mut Report) {
    let Data::Map(entries) = &mut top.data else { return };
    let at = match entries.iter().position(|e| e.key == list) {
        Some(at) => at,
        None => {
            let value = Node { at: At::default(), data: Data::List(Vec::new()) };
            entries.push(Entry { key: list.to_owned(), at: At::default(), value });
            entries.len() - 1
        }
    };
    let value = &mut entries[at].value;
    if !matches!(value.data, Data::List(_)) {
        value.data = Data::List(Vec::new());
    }
    let Data::List(known) = &mut value.data else { return };
    let mut any = false;
    for node in found {
        any = true;
        push_unlike(known, node, &["service", "group", "version", "export"], &url.place("path"), report);
    }
    if !any {
        let why = report.warnings.pop().map(|p| p.to_string()).unwrap_or_default();
        report.mistake(url.place("path").problem("cannot be had", why));
    }
}

/// What a management call asks for, one node for each of its groups; `Err` with the answer's text.
pub fn asked(
    body: &[u8],
    registries: &BTreeMap<String, RegistryName>,
    filters: &[String],
    around: &Surroundings,
) -> Result<Vec<NodeUrl>, String> {
    let mut node: NodeUrl = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    if node.group.is_empty() {
        node.group = node.parameters.remove("group").unwrap_or_default();
    }
    let more = around.environment.get("MESH_SERVICE_ADDITIONAL_GROUP").map_or("", String::as_str);
    let groups = commas(&format!("{},{more}", node.group));
    let named = |text: &str| {
        let same = |r: &RegistryName| format!("{}://{}:{}", r.protocol, r.host, r.port) == text;
        registries.iter().find(|(_, registry)| same(registry)).map(|(id, _)| id.clone())
    };
    let escaped = |text: &str| {
        let text = form_urlencoded::parse(format!("u={}", text.replace('&', "%26").replace('=', "%3D")).as_bytes())
            .next()
            .map(|(_, value)| value.into_owned())?;
        let (protocol, rest) = text.split_once("://")?;
        let authority = rest.split(['/', '?']).next()?;
        named(&format!("{protocol}://{authority}"))
    };
    let registry = node
        .get("proxyRegistry")
        .and_then(named)
        .or_else(|| escaped(node.get("proxyRegistryUrlString")?))
        .ok_or("registry not found")?;
    node.parameters.insert("registry".to_owned(), registry);
    // Filters of the caller's own library are not the agent's.
    let own = commas(node.get("filter").unwrap_or_default());
    let own = own.iter().filter_map(|f| f.strip_prefix("af_").map(str::trim)).filter(|f| !f.is_empty());
    let all = commas(&filters.iter().map(String::as_str).chain(own).collect::<Vec<_>>().join(","));
    match all.is_empty() {
        true => drop(node.parameters.remove("filter")),
        false => drop(node.parameters.insert("filter".to_owned(), all.join(","))),
    }
    let groups = if groups.is_empty() { vec![String::new()] } else { groups };
    Ok(groups.into_iter().map(|group| NodeUrl { group, ..node.clone() }).collect())
}

/// What is kept of a service that was registered: called at `node.port` here, exported at `reverse`.
pub fn registered(node: NodeUrl, reverse: u16, host: &str, application: &str, around: &Surroundings) -> NodeUrl {
    let mut kept = node;
    kept.parameters.insert("proxy".to_owned(), format!("{}:{}", kept.protocol, kept.port));
    kept.parameters.insert("export".to_owned(), format!("{}:{reverse}", kept.protocol));
    kept.parameters.entry("application".to_owned()).or_insert_with(|| application.to_owned());
    kept.port = reverse;
    kept.host = host.to_owned();
    let suffix = around.environment.get("RPC_REG_GROUP_SUFFIX").map_or("", String::as_str);
    if !kept.group.ends_with(suffix) {
        kept.group += suffix;
    }
    kept
}

/// What is kept of a service that was subscribed, once more where the environment asks for another group.
pub fn subscribed(node: NodeUrl, around: &Surroundings) -> Vec<NodeUrl> {
    let kept = NodeUrl { host: String::new(), port: 0, ..node };
    let suffix = around.environment.get("MESH_MULTI_SUB_GROUP_SUFFIX").map_or("", String::as_str);
    if suffix.is_empty() || kept.group.ends_with(suffix) {
        return vec![kept];
    }
    let other = NodeUrl { group: format!("{}{suffix}", kept.group), ..kept.clone() };
    vec![kept, other]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::super::parse, *};

    fn registries() -> BTreeMap<String, RegistryName> {
        let name = RegistryName { protocol: "direct".into(), host: "h".into(), port: 9, usable: true };
        BTreeMap::from([("r".to_owned(), name)])
    }

    fn ask(json: &str) -> Result<Vec<NodeUrl>, String> {
        asked(json.as_bytes(), &registries(), &["metrics".to_owned()], &Surroundings::default())
    }

    #[test]
    fn a_call_names_its_registry_and_filters() {
        let all = ask(r#"{"protocol":"motan2","host":"","port":8100,"path":"S","group":"a, b","parameters":
               {"proxyRegistry":"direct://h:9","filter":"accessLog,af_failfast,af_metrics"}}"#)
        .unwrap();
        assert_eq!(all.iter().map(|n| n.group.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((all[0].get("registry"), all[0].get("filter")), (Some("r"), Some("metrics,failfast")));
        let escaped =
            r#"{"path":"S","parameters":{"group":"g","proxyRegistryUrlString":"direct%3A%2F%2Fh%3A9%2Fx%3Fgroup%3D"}}"#;
        assert_eq!(ask(escaped).unwrap()[0].group, "g");
        assert_eq!(ask(r#"{"path":"S"}"#).unwrap_err(), "registry not found");
        assert!(ask("{").is_err());
    }

    #[test]
    fn nodes_join_the_configuration_or_say_why_not() {
        let text = "ports: {forward: 127.0.0.1:9981, reverse: 0.0.0.0:9982}\nregistries: {r: {kind: file, path: f}}\n";
        let base = parse(text, Path::new("/x")).unwrap().base;
        let around = Surroundings::default();
        let node = ask(
            r#"{"protocol":"motan2","port":8100,"path":"S","group":"g","parameters":{"proxyRegistry":"direct://h:9"}}"#,
        );
        let node = node.unwrap().remove(0);
        let dynamic = Dynamic {
            register_nodes: vec![registered(node.clone(), 9982, "10.0.0.1", "app", &around)],
            subscribe_nodes: subscribed(node.clone(), &around),
        };
        let config = with_dynamic(&base, &dynamic, &around).unwrap();
        assert_eq!(config.services[0].local, "127.0.0.1:8100".parse().unwrap());
        assert_eq!(config.services[0].export, Some("0.0.0.0:9982".parse().unwrap()));
        assert_eq!(config.services[0].registration.registries, ["r"]);
        assert_eq!((config.referers[0].listen, config.referers[0].registries.len()), (config.ports.forward, 1));
        let again: Dynamic = serde_json::from_str(&serde_json::to_string(&dynamic).unwrap()).unwrap();
        assert_eq!(again, dynamic);
        let grpc = NodeUrl { protocol: "local".into(), ..node };
        let bad = Dynamic { subscribe_nodes: vec![grpc], ..Dynamic::default() };
        let told = with_dynamic(&base, &bad, &around).unwrap_err().to_string();
        assert!(told.contains("`local` is not spoken"), "{told}");
    }
}
