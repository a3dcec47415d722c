//! motan-go's configuration as this agent's: its files, flags and environment become the tree that a native
//! file would be, and that is read like one. Positions stay those of the original.
//!
//! `files` merges what was written, `url` reads entries, `entries` and `filters` translate them, `table` has
//! every name with what becomes of it, `yaml` prints the result.

mod dynamic;
mod entries;
mod files;
mod filters;
mod http;
mod table;
mod tree;
mod url;
mod yaml;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

pub(in crate::config) use self::tree::Sources;
pub use self::{
    dynamic::{Dynamic, NodeUrl, asked, registered, registry_names, subscribed, with_dynamic},
    table::{Fate, PARTS, Part, Row},
};
use self::{
    tree::{Out, go_value, word},
    url::Url,
};
use super::{
    keys::{self, Section},
    node::{At, Data, Entry, Node},
    problem::Report,
    read::Place,
};
use crate::kind::BuildCx;

/// What the command line says, beside the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-port`: where programs call.
    pub port: Option<u16>,
    /// `-eport`: where services that are registered later are exported.
    pub eport: Option<u16>,
    /// `-hport`: the HTTP forward proxy.
    pub hport: Option<u16>,
    /// `-mport`: management.
    pub mport: Option<u16>,
    /// `-mhost`: address of the management port.
    pub mhost: Option<IpAddr>,
    /// `-pidfile`.
    pub pidfile: Option<PathBuf>,
    /// `-localIP`: the address told to callers.
    pub local_ip: Option<IpAddr>,
    /// `-idc`: replaces `${idc}` in groups.
    pub idc: Option<String>,
    /// `-pool`: `APP-IDC-LEVEL`.
    pub pool: Option<String>,
    /// `-application`, for pool mode.
    pub application: Option<String>,
    /// `-log_dir`.
    pub log_dir: Option<PathBuf>,
    /// `-rotate_per_hour`.
    pub rotate_per_hour: Option<bool>,
    /// `-log_structured`.
    pub log_structured: Option<bool>,
    /// `-log_buffer_size`, lines.
    pub log_buffer_size: Option<u32>,
}

/// What surrounds a file and decides with it.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The command line.
    pub flags: Flags,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Base name of the program, in the name of the access log.
    pub program: String,
    /// Where relative paths start.
    pub directory: PathBuf,
}

impl Surroundings {
    /// Those of this process, with `flags`.
    pub fn of_process(flags: Flags) -> Self {
        let program = std::env::args_os().next().map(PathBuf::from);
        let program = program.and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self {
            flags,
            environment: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            program: program.unwrap_or_else(|| "sockmesh".to_owned()),
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
        }
    }
}

/// A registry of the file, as management calls name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryName {
    /// `protocol` of the file.
    pub protocol: String,
    /// `host` of the file; empty when it lists addresses.
    pub host: String,
    /// `port` of the file.
    pub port: u16,
    /// Whether this agent has such a registry.
    pub usable: bool,
}

/// A motan-go configuration in its native form.
#[derive(Clone, Debug)]
pub struct Imported {
    pub(super) node: Node,
    /// The original as merged, in YAML.
    pub merged: String,
    /// The level of the agent's own log that the file asks for.
    pub log_level: Option<String>,
    /// Registries by id.
    pub registries: BTreeMap<String, RegistryName>,
    /// Filters that every entry gets.
    pub filters: Vec<String>,
    pub(super) structured: bool,
    pub(super) meta_prefix: String,
}

impl Imported {
    /// The native form as text.
    pub fn yaml(&self) -> String {
        yaml::render(&self.node)
    }
}

/// Whether a file with this top is motan-go's: it has one of its sections.
pub(super) fn is_motan(top: &Node) -> bool {
    let Data::Map(entries) = &top.data else { return false };
    // Names that a native file could have as well say nothing.
    entries.iter().any(|e| !matches!(e.key.as_str(), "metrics" | "switchers") && table::SECTIONS.row(&e.key).is_some())
}

/// Reads motan-go's file or folder. What is not supported goes to `report` as warnings, wrong values as
/// mistakes, with lines as `sources` counts them; `None` when nothing can be made of it.
pub(super) fn import(
    path: &Path,
    around: &Surroundings,
    sources: &mut Sources,
    report: &mut Report,
) -> Option<Imported> {
    let top = files::read(path, &around.flags, sources, report)?;
    let mut importer = Importer::new(&top, around, report)?;
    Some(importer.import(&top, report))
}

/// Go's `strconv.ParseBool`.
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The native word for a level of motan-go's log, in either case.
pub fn log_level(text: &str) -> Option<&'static str> {
    const WORDS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];
    let word = text.to_ascii_lowercase();
    if matches!(word.as_str(), "dpanic" | "panic" | "fatal") {
        return Some("error");
    }
    WORDS.into_iter().find(|known| *known == word)
}

/// One import.
struct Importer<'a> {
    flags: &'a Flags,
    environment: &'a BTreeMap<String, String>,
    around: &'a Surroundings,
    agent: Url,
    application: String,
    registries: BTreeMap<String, RegistryName>,
    /// Address of ports where programs call.
    host: IpAddr,
    http: http::Http,
    /// Where refers are called.
    forward: (At, String),
    structured: bool,
    meta_prefix: String,
}

impl<'a> Importer<'a> {
    /// What entries need to know of the rest.
    fn new(top: &Node, around: &'a Surroundings, report: &mut Report) -> Option<Self> {
        let flags = &around.flags;
        let none = Node { at: top.at, data: Data::Null };
        let section = top.get("motan-agent").unwrap_or(&none);
        let agent = Url::read("motan-agent", "motan-agent".to_owned(), section, &[&table::AGENT], report)?;
        let application = agent.get("application").or(agent.get("group")).unwrap_or("default_agent_group").to_owned();
        let port = flags.port.or_else(|| port_of(&agent, "port", report)).unwrap_or(9981);
        let host = match agent.get("host") {
            Some(host) => host.parse::<IpAddr>().ok().or_else(|| {
                let local = host.eq_ignore_ascii_case("localhost").then_some(Ipv4Addr::LOCALHOST.into());
                if local.is_none() {
                    let problem = format!("`{host}` is not an IP address");
                    report.mistake(agent.place("host").problem(problem, "write the address to listen on"));
                }
                local
            }),
            None => None,
        };
        let host = host.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let forward = match agent.get("unixSock") {
            Some(path) => {
                let joined = around.directory.join(path.strip_prefix("unix://").unwrap_or(path));
                (agent.at("unixSock"), format!("unix:{}", joined.display()))
            }
            None => (agent.at("port"), std::net::SocketAddr::new(host, port).to_string()),
        };
        let structured = agent.boolean("log_structured", report).or(flags.log_structured).unwrap_or(false);
        let prefix = top.get("envMetaPrefix").map(|n| go_value(n).1).filter(|p| !p.is_empty());
        Some(Self {
            flags,
            environment: &around.environment,
            around,
            host,
            http: http::Http::read(top, report),
            forward,
            agent,
            application,
            registries: BTreeMap::new(),
            structured,
            meta_prefix: prefix.unwrap_or_else(|| "META_".to_owned()),
        })
    }

    fn import(&mut self, top: &Node, report: &mut Report) -> Imported {
        if let Data::Map(entries) = &top.data {
            let tops: Vec<&str> = keys::TOP.keys.iter().map(|k| k.name).collect();
            for entry in entries {
                let place = Place { at: entry.at, key: entry.key.clone(), value: None };
                match table::SECTIONS.row(&entry.key) {
                    Some(row) if row.fate == Fate::Refused => report.warn(place.problem("is not supported", row.says)),
                    Some(_) => {}
                    None if tops.contains(&entry.key.as_str()) => {
                        let remedy = "keep one of the two forms; `sockmesh import` prints the native one";
                        report.mistake(place.problem("is a key of the native form in a file of motan-go", remedy));
                    }
                    None => report.warn(place.problem("is a section that only embedders read", "it is left out")),
                }
            }
        }
        let registries = self.read_registries(top, report);
        let (mut referers, mut services) = (Vec::new(), Vec::new());
        let templates = self.templates(top, "motan-basicRefer", &[&table::REFER], report);
        for (mut url, suffixed) in self.refers(top, &templates, report) {
            if suffixed {
                let group =
                    format!("{}{}", url.get("group").unwrap_or_default(), self.variable("MESH_MULTI_SUB_GROUP_SUFFIX"));
                url.set("group", group);
            }
            let path = url.place("path");
            if let Some(node) = self.refer(&url, report) {
                push_unlike(&mut referers, node, &["service", "group", "version"], &path, report);
            }
        }
        let clients = self.entries(top, "http-client", &[&table::REFER, &table::CLIENT], report);
        let clients = clients.into_iter().map(|url| url.over_template("basicRefer", &templates, report)).collect();
        let http_proxy = self.http_proxy(clients, &mut referers, report);
        let parts = &[&table::SERVICE, &table::PROVIDER];
        let templates = self.templates(top, "motan-basicService", parts, report);
        for url in self.entries(top, "motan-service", parts, report) {
            let url = url.over_template("basicService", &templates, report);
            let path = url.place("path");
            for node in self.service(&url, report) {
                push_unlike(&mut services, node, &["service", "group", "version", "export"], &path, report);
            }
        }
        let content = self.content_bytes(top, report);
        let mut out = Out::new(At::default());
        self.head(top, content, &mut out, report);
        if !registries.is_empty() {
            out.put("registries", registries.into_node());
        }
        if !referers.is_empty() {
            out.list("referers", At::default(), referers);
        }
        if !services.is_empty() {
            out.list("services", At::default(), services);
        }
        if let Some(proxy) = http_proxy {
            out.put("http_proxy", proxy);
        }
        Imported {
            node: self.checked(out, &[&keys::TOP], report),
            merged: yaml::render(top),
            log_level: self.agent.get("log_level").map(str::to_owned),
            registries: std::mem::take(&mut self.registries),
            filters: [
                self.agent.list("defaultFilter"),
                self.agent.list("globalFilter"),
                url::commas(self.variable("MESH_FILTERS")),
            ]
            .concat(),
            structured: self.structured,
            meta_prefix: self.meta_prefix.clone(),
        }
    }

    /// Everything but registries, referers and services.
    fn head(&self, top: &Node, content: Option<(At, u64)>, out: &mut Out, report: &mut Report) {
        let agent = &self.agent;
        let place = |key: &str| agent.at(key);
        out.word("application", place("application"), self.application.as_str());
        let (at, forward) = &self.forward;
        let mut ports = Out::new(*at);
        if !forward.starts_with("unix:") {
            ports.plain("forward", *at, forward);
        }
        let eport = self.flags.eport.or_else(|| port_of(agent, "eport", report)).unwrap_or(9982);
        ports.plain("reverse", place("eport"), format!("0.0.0.0:{eport}"));
        let variable = self.environment.get("mport").and_then(|text| text.parse().ok());
        let mport = self.flags.mport.filter(|p| *p > 0).or(variable).or_else(|| port_of(agent, "mport", report));
        let mhost =
            self.flags.mhost.or_else(|| agent.strict("mhost", ip, report)).unwrap_or(Ipv4Addr::LOCALHOST.into());
        ports.plain("admin", place("mport"), std::net::SocketAddr::new(mhost, mport.unwrap_or(8002)));
        if let Some(path) = agent.get("managementUnixSock") {
            let path = self.absolute(path.strip_prefix("unix://").unwrap_or(path));
            ports.word("admin_socket", place("managementUnixSock"), path);
        } else if let Some(range) = agent.get("managementPortRange") {
            let ends = range
                .split_once('-')
                .and_then(|(a, b)| Some((a.trim().parse::<u16>().ok()?, b.trim().parse::<u16>().ok()?)));
            match ends {
                Some((from, to)) if 0 < from && from <= to => {
                    ports.plain("admin_range", place("managementPortRange"), format!("{from}-{to}"));
                }
                _ => {
                    let problem = format!("`{range}` is not a range of ports");
                    report.mistake(agent.place("managementPortRange").problem(problem, "write it like 8002-8010"));
                }
            }
        }
        ports.plain("motan_management", *at, true);
        if agent.boolean("debugPages", report) == Some(true) {
            ports.plain("debug_pages", place("debugPages"), true);
        }
        out.put("ports", self.checked(ports, &[&keys::PORTS], report));
        out.plain("capture", At::default(), "port");
        if let Some(ip) = self.flags.local_ip {
            out.plain("advertise", At::default(), ip);
        }
        self.graphite(top, out, report);
        if let Some((at, bytes)) = content {
            let mut limits = Out::new(at);
            limits.plain("content_bytes", at, bytes);
            out.put("limits", limits.into_node());
        }
        let mut log = Out::new(place("log_dir"));
        let flag = self.flags.log_dir.as_deref().map(|p| p.to_string_lossy().into_owned());
        let folder = flag.or(agent.get("log_dir").map(str::to_owned)).unwrap_or_else(|| ".".to_owned());
        if folder != "stdout" {
            let path = format!("{folder}/{}-access.log", self.around.program);
            log.word("path", place("log_dir"), self.absolute(&path));
            if agent.boolean("rotate_per_hour", report).or(self.flags.rotate_per_hour).unwrap_or(true) {
                log.plain("rotate", place("rotate_per_hour"), "hourly");
            }
        }
        let lines = agent.positive("log_buffer_size", report).or(self.flags.log_buffer_size.map(u64::from));
        if let Some(lines) = lines {
            log.plain("buffer_lines", place("log_buffer_size"), lines);
        }
        if !log.is_empty() {
            out.put("access_log", log.into_node());
        }
        let pidfile = self.flags.pidfile.as_ref().map(|p| p.to_string_lossy().into_owned());
        let pidfile = pidfile.or(agent.get("pidfile").map(str::to_owned)).unwrap_or_else(|| "./agent.pid".to_owned());
        out.word("pidfile", place("pidfile"), self.absolute(&pidfile));
        out.word(
            "runtime_dir",
            place("runtime_dir"),
            self.absolute(agent.get("runtime_dir").unwrap_or("./agent_runtime")),
        );
        out.word("snapshots", place("snapshot_dir"), self.absolute(agent.get("snapshot_dir").unwrap_or("./snapshot")));
        out.plain("start_unavailable", At::default(), true);
        let mut switchers = Out::new(At::default());
        for section in ["switcher", "switchers"] {
            let Some(Node { data: Data::Map(entries), .. }) = top.get(section) else { continue };
            for Entry { key, at, value } in entries {
                match go_value(value) {
                    (tree::Type::Bool, text) => drop(switchers.plain(key, *at, text)),
                    (ty, _) => {
                        let place = Place { at: *at, key: format!("{section}.{key}"), value: Some(value.show()) };
                        report
                            .mistake(place.problem(format!("is {}, not a boolean", ty.what()), "write true or false"));
                    }
                }
            }
        }
        if !switchers.is_empty() {
            out.put("switchers", switchers.into_node());
        }
    }

    /// `metrics`.
    fn graphite(&self, top: &Node, out: &mut Out, report: &mut Report) {
        let Some(section) = top.get("metrics") else { return };
        let Data::Map(entries) = &section.data else { return };
        // Its list of servers is no single value.
        let rest = entries.iter().filter(|e| e.key != "graphite").cloned().collect();
        let rest = Node { at: section.at, data: Data::Map(rest) };
        let Some(keys) = Url::read("metrics", "metrics".to_owned(), &rest, &[&table::METRICS], report) else { return };
        let period = keys.positive("period", report).unwrap_or(5);
        let mut servers = Vec::new();
        if let Some(Node { data: Data::List(list), .. }) = section.get("graphite") {
            for (i, node) in list.iter().enumerate() {
                let Some(server) = Url::read("", format!("metrics.graphite[{i}]"), node, &[], report) else { continue };
                let (Some(host), Some(port)) = (server.get("host"), port_of(&server, "port", report)) else {
                    report.warn(
                        Place::of(node, server.path.as_str()).problem("has no host or no port", "it is left out"),
                    );
                    continue;
                };
                let mut one = Out::new(node.at);
                one.word("address", node.at, format!("{host}:{port}")).plain("form", node.at, "motan");
                one.plain("interval", keys.at("period"), format!("{period}s"));
                servers.push(one.into_node());
            }
        }
        if !servers.is_empty() {
            out.list("graphite", section.at, servers);
        }
    }

    /// Entries of a section, in the order of the file.
    fn entries(&self, top: &Node, section: &str, parts: &[&Part], report: &mut Report) -> Vec<Url> {
        let Some(node) = top.get(section) else { return Vec::new() };
        let entries = match &node.data {
            Data::Map(entries) => entries.as_slice(),
            Data::Null => &[],
            _ => {
                let problem = format!("is {}, not a mapping", node.what());
                report.mistake(Place::of(node, section).problem(problem, "write `ID:` and its keys below it"));
                &[]
            }
        };
        let read = |e: &Entry| {
            let mut url = Url::read(&e.key, super::read::join(section, &e.key), &e.value, parts, report)?;
            url.at = e.at;
            Some(url)
        };
        entries.iter().filter_map(read).collect()
    }

    fn templates(&self, top: &Node, section: &str, parts: &[&Part], report: &mut Report) -> BTreeMap<String, Url> {
        self.entries(top, section, parts, report).into_iter().map(|url| (url.id.clone(), url)).collect()
    }

    /// The refers, each once more where the environment asks for another group of it.
    fn refers(&self, top: &Node, templates: &BTreeMap<String, Url>, report: &mut Report) -> Vec<(Url, bool)> {
        let entries = self.entries(top, "motan-refer", &[&table::REFER], report);
        let urls = entries.into_iter().map(|url| url.over_template("basicRefer", templates, report));
        let suffix = self.variable("MESH_MULTI_SUB_GROUP_SUFFIX");
        let mut all: Vec<(Url, bool)> = urls.map(|url| (url, false)).collect();
        if !suffix.is_empty() {
            let plain = |url: &Url| url.get("group").is_none_or(|g| !g.ends_with(suffix));
            let doubled: Vec<_> =
                all.iter().filter(|(url, _)| plain(url)).map(|(url, _)| (url.clone(), true)).collect();
            all.extend(doubled);
        }
        all
    }

    fn read_registries(&mut self, top: &Node, report: &mut Report) -> Out {
        let mut out = Out::new(At::default());
        for url in self.entries(top, "motan-registry", &[&table::REGISTRY], report) {
            let protocol = url.get("protocol").unwrap_or_default().to_owned();
            let host = url.get("host").unwrap_or_default().to_owned();
            let port = port_of(&url, "port", report).unwrap_or(0);
            let node = self.registry(&url, &protocol, &host, port, report);
            let usable = node.is_some();
            if let Some(node) = node {
                out.put(&url.id, node);
            }
            self.registries.insert(url.id.clone(), RegistryName { protocol, host, port, usable });
        }
        out
    }

    fn registry(&self, url: &Url, protocol: &str, host: &str, port: u16, report: &mut Report) -> Option<Node> {
        let place = if url.get("host").is_some() { url.place("host") } else { url.place("address") };
        let listed = |default: u16| -> Vec<String> {
            match host {
                "" => url.list("address"),
                host => vec![format!("{host}:{}", if port == 0 { default } else { port })],
            }
        };
        let mut out = Out::new(url.at);
        let addresses = |list: Vec<String>| list.into_iter().map(|a| word(place.at, a)).collect::<Vec<_>>();
        out.word("kind", url.at("protocol"), protocol);
        match protocol {
            "direct" => {
                let mut instances = Vec::new();
                for text in listed(0) {
                    let address = self.address(&text, &place, report)?;
                    let mut instance = Out::new(place.at);
                    instance.plain("address", place.at, address);
                    if let Some(group) = url.get("group") {
                        instance.word("group", url.at("group"), group);
                    }
                    instances.push(instance.into_node());
                }
                out.list("instances", place.at, instances);
            }
            "zookeeper" => {
                out.list("address", place.at, addresses(listed(2181)));
                if let Some(seconds) = url.positive("registrySessionTimeout", report) {
                    out.plain("session_timeout", url.at("registrySessionTimeout"), format!("{seconds}s"));
                }
            }
            "etcd" => drop(out.list("address", place.at, addresses(listed(2379)))),
            "nacos" => drop(out.list("address", place.at, addresses(listed(8848)))),
            "consul" | "mesh" => {
                let default = if protocol == "mesh" { 8002 } else { 8500 };
                let first = listed(default).into_iter().next().unwrap_or_else(|| format!("127.0.0.1:{default}"));
                out.word("address", place.at, first);
            }
            other => {
                let problem = match other {
                    "" => "names no protocol".to_owned(),
                    other => format!("the registry `{other}` is not supported"),
                };
                report.warn(
                    url.place("protocol").problem(problem, "it is left out; entries with no other registry as well"),
                );
                return None;
            }
        }
        let node = out.into_node();
        if let Err(error) = super::load::accepts_registry(&node, &self.cx()) {
            report
                .warn(url.place("protocol").problem(format!("the registry cannot be had: {error}"), "it is left out"));
            return None;
        }
        Some(node)
    }

    /// The largest `maxContentLength` of all.
    fn content_bytes(&self, top: &Node, report: &mut Report) -> Option<(At, u64)> {
        let mut silent = Report::default();
        let mut all: Vec<_> = ["motan-basicRefer", "motan-refer", "motan-basicService", "motan-service"]
            .iter()
            .flat_map(|section| self.entries(top, section, &[], &mut silent))
            .collect();
        all.push(self.agent.clone());
        let key = "maxContentLength";
        let sized = all.iter().filter_map(|url| Some((url.at(key), url.positive(key, report)?)));
        sized.max_by_key(|(_, bytes)| *bytes).map(|(at, bytes)| (at, bytes.clamp(1 << 10, 1 << 30)))
    }

    fn variable(&self, name: &str) -> &str {
        self.environment.get(name).map_or("", String::as_str)
    }

    fn absolute(&self, path: &str) -> String {
        let joined = self.around.directory.join(path);
        std::path::absolute(&joined).unwrap_or(joined).to_string_lossy().into_owned()
    }

    fn cx(&self) -> BuildCx {
        BuildCx {
            application: self.application.as_str().into(),
            base_dir: self.around.directory.clone(),
            ..BuildCx::default()
        }
    }

    /// `out` without what this version has no key for, which is told.
    fn checked(&self, out: Out, sections: &[&Section], report: &mut Report) -> Node {
        let mut node = out.into_node();
        if let Data::Map(entries) = &mut node.data {
            entries.retain(|e| {
                let known = sections.iter().any(|s| s.keys.iter().any(|k| k.name == e.key));
                if !known {
                    let place = Place { at: e.at, key: e.key.clone(), value: Some(e.value.show()) };
                    report.warn(place.problem("this version has no such setting", "it is left out"));
                }
                known
            });
        }
        node
    }
}

/// Adds an entry unless one that calls cannot tell from it is there.
fn push_unlike(list: &mut Vec<Node>, node: Node, keys: &[&str], place: &Place, report: &mut Report) {
    let key = |n: &Node| keys.iter().map(|k| n.get(k).map(Node::show)).collect::<Vec<_>>();
    if list.iter().any(|known| key(known) == key(&node)) {
        let remedy = "the first is used: tell them apart by group or version";
        report.warn(place.problem("is declared before, with the same group and version", remedy));
        return;
    }
    list.push(node);
}

fn ip(text: &str) -> Result<IpAddr, super::values::Wrong> {
    text.parse().map_err(|_| super::values::Wrong::new("is not an IP address", "write it like 127.0.0.1 or 0.0.0.0"))
}

/// A port that is given and not 0.
fn port_of(url: &Url, key: &str, report: &mut Report) -> Option<u16> {
    let number = url.strict(key, super::values::number(0..=u16::MAX), report);
    number.filter(|port| *port > 0)
}

/// Applies flags to a native configuration, as far as they mean something there.
///
/// # Errors
/// Names a flag that does not.
pub(super) fn override_native(config: &mut super::Config, flags: &Flags) -> Result<(), super::Problem> {
    let Flags { port, eport, hport, mport, mhost, pidfile, local_ip, .. } = flags;
    let without = [
        ("-hport", hport.is_some()),
        ("-idc", flags.idc.is_some()),
        ("-pool", flags.pool.is_some()),
        ("-application", flags.application.is_some()),
        ("-log_dir", flags.log_dir.is_some()),
        ("-log_structured", flags.log_structured.is_some()),
        ("-rotate_per_hour", flags.rotate_per_hour.is_some()),
        ("-log_buffer_size", flags.log_buffer_size.is_some()),
        ("-port", port.is_some() && config.ports.forward.is_none()),
        ("-eport", eport.is_some() && config.ports.reverse.is_none()),
    ];
    if let Some((flag, _)) = without.iter().find(|(_, given)| *given) {
        let problem = format!("{flag} has no meaning for a configuration in the native form");
        return Err(Place::default().problem(problem, "write it into the file: docs/config.md has the keys"));
    }
    let ports = &mut config.ports;
    if let (Some(port), Some(forward)) = (port, ports.forward) {
        for listen in config.referers.iter_mut().filter_map(|r| r.listen.as_mut()).filter(|l| **l == forward) {
            listen.set_port(*port);
        }
        ports.forward = Some(std::net::SocketAddr::new(forward.ip(), *port));
    }
    if let (Some(port), Some(export)) = (eport, &mut ports.reverse) {
        export.set_port(*port);
    }
    if let Some(port) = mport.filter(|port| *port > 0) {
        ports.admin.set_port(port);
    }
    if let Some(ip) = mhost {
        ports.admin.set_ip(*ip);
    }
    if let Some(file) = pidfile {
        config.pidfile = Some(file.clone());
    }
    config.advertise = local_ip.or(config.advertise);
    Ok(())
}
