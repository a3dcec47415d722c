//! From text to [`Config`]: reading the file, its top and everything but the services.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    AccessLog, Capture, CaptureMode, Config, ConfigErrors, Iptables, Limits, Ports, Problem, Redirect, RegistryConfig,
    Rotate, center,
    checks::{self, Seen},
    enroll, exempt, governance, graphite, http_proxy, keys, kinds,
    motan::{self, Flags, Imported, Sources, Surroundings},
    node::{Data, Entry, Node},
    problem::Report,
    read::{Map, Others, Place, entries, items, join, scalar},
    services,
    values::{self, Wrong, number, positive_duration, size},
};
use crate::{call::Text, kind::BuildCx};

/// A good configuration and what is odd about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is probably not meant, or not supported, in the order of the file.
    pub warnings: Vec<Problem>,
    /// The file was one of motan-go's.
    pub motan: Option<Imported>,
    /// What it was read from.
    pub base: Base,
}

/// What a configuration was read from, for more to be added to it.
#[derive(Clone, Debug)]
pub struct Base {
    pub(super) node: Node,
    pub(super) base_dir: PathBuf,
    /// The access log is JSON.
    pub(super) structured: bool,
    /// What variables begin with that are registered.
    pub(super) meta_prefix: String,
}

impl Config {
    /// Name of this agent in the site: `HOST/NAME`.
    pub fn agent(&self) -> Text {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{host}/{}", self.name).as_str().into()
    }

    /// How the governance centre is reached, for registries.
    pub fn access(&self) -> Option<std::sync::Arc<registries::Center>> {
        self.center.as_ref().map(|center| center.access.clone().into())
    }

    /// Reads and checks the file at `path`; warnings go to the log. Blocks on the disk.
    ///
    /// # Errors
    /// All mistakes at once, each with line, key and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let Loaded { config, warnings, .. } = load(path)?;
        for warning in warnings {
            tracing::warn!(file = %path.display(), %warning, "odd configuration");
        }
        Ok(config)
    }

    /// Checks `text`, in which relative paths start at `base_dir`.
    ///
    /// # Errors
    /// All mistakes at once, each with line, key and remedy.
    pub fn parse(text: &str, base_dir: &Path) -> Result<Self, ConfigErrors> {
        parse(text, base_dir).map(|loaded| loaded.config)
    }
}

/// Like [`Config::load`], but hands out the warnings.
///
/// # Errors
/// All mistakes at once, each with line, key and remedy.
pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    load_with(path, &Surroundings::of_process(Flags::default()))
}

/// Like [`load`], of a file or folder of either form, native or motan-go's, with what surrounds it. Which form
/// it is is seen by its top-level keys; a folder is motan-go's.
///
/// # Errors
/// All mistakes at once, each with line, key and remedy.
pub fn load_with(path: &Path, around: &Surroundings) -> Result<Loaded, ConfigErrors> {
    let whole = |problem| ConfigErrors { path: Some(path.to_owned()), mistakes: vec![problem], warnings: Vec::new() };
    if path.is_dir() {
        return load_motan(path, around);
    }
    let text = read_file(path).map_err(whole)?;
    // A broken file is told by the reader of the native form.
    let top = Node::parse(&text, &mut Report::default());
    if top.ok().flatten().is_some_and(|top| motan::is_motan(&top)) {
        return load_motan(path, around);
    }
    let base_dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut loaded = parse(&text, base_dir).map_err(|errors| ConfigErrors { path: Some(path.to_owned()), ..errors })?;
    motan::override_native(&mut loaded.config, &around.flags).map_err(whole)?;
    Ok(loaded)
}

fn load_motan(path: &Path, around: &Surroundings) -> Result<Loaded, ConfigErrors> {
    let mut report = Report::default();
    let mut sources = Sources::default();
    let imported = motan::import(path, around, &mut sources, &mut report);
    let config = imported.as_ref().and_then(|imported| top(&imported.node, &around.directory, &mut report));
    report.sort();
    sources.locate(&mut report.mistakes);
    sources.locate(&mut report.warnings);
    match (config, imported) {
        (Some(config), Some(imported)) if report.mistakes.is_empty() => {
            let base = Base {
                node: imported.node.clone(),
                base_dir: around.directory.clone(),
                structured: imported.structured,
                meta_prefix: imported.meta_prefix.clone(),
            };
            Ok(Loaded { config, warnings: report.warnings, motan: Some(imported), base })
        }
        _ => Err(ConfigErrors { path: Some(path.to_owned()), mistakes: report.mistakes, warnings: report.warnings }),
    }
}

/// Larger files are no configuration.
const MAX_FILE_BYTES: u64 = 16 << 20;

pub(super) fn read_file(path: &Path) -> Result<String, Problem> {
    let whole = |problem: String, remedy: &str| Place::default().problem(problem, remedy);
    let cannot = |e: std::io::Error| whole(format!("cannot read the file: {e}"), "check the path and its permissions");
    let length = std::fs::metadata(path).map_err(cannot)?.len();
    if length > MAX_FILE_BYTES {
        return Err(whole(format!("the file has {length} bytes"), "is it a configuration?"));
    }
    let bytes = std::fs::read(path).map_err(cannot)?;
    String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        whole(format!("line {line} is not UTF-8"), "save the file as UTF-8")
    })
}

/// Like [`Config::parse`], but hands out the warnings.
///
/// # Errors
/// All mistakes at once, each with line, key and remedy.
pub fn parse(text: &str, base_dir: &Path) -> Result<Loaded, ConfigErrors> {
    let mut report = Report::default();
    // Absolute from here on: the agent may change its directory, and paths are joined once only.
    let base_dir = std::path::absolute(base_dir).unwrap_or_else(|_| base_dir.to_owned());
    let mut root = NOTHING;
    let config = match Node::parse(text, &mut report) {
        Ok(Some(node)) => {
            root = node;
            top(&root, &base_dir, &mut report)
        }
        Ok(None) => {
            let empty = Place::default().problem("the file is empty", "begin with `referers:` or `services:`");
            report.mistake(empty);
            None
        }
        Err(problem) => {
            report.mistake(problem);
            None
        }
    };
    report.sort();
    match config {
        Some(config) if report.mistakes.is_empty() => {
            let base = Base { node: root, base_dir, structured: false, meta_prefix: "META_".to_owned() };
            Ok(Loaded { config, warnings: report.warnings, motan: None, base })
        }
        _ => Err(ConfigErrors { path: None, mistakes: report.mistakes, warnings: report.warnings }),
    }
}

pub(super) fn top(node: &Node, base_dir: &Path, report: &mut Report) -> Option<Config> {
    let map = Map::open(node, "", &[&keys::TOP], Others::Unknown, report)?;
    let mut config = Config { base_dir: base_dir.to_owned(), ..Config::default() };
    let mut seen = Seen::default();

    map.set("name", values::folder_name, &mut config.name, report);
    let application = |text: &str| values::word(text).map(Text::from);
    map.set("application", application, &mut config.application, report);
    map.set("threads", number(1..=1024), &mut config.threads, report);
    map.set("drain", values::duration, &mut config.drain, report);
    config.advertise = map.read("advertise", governance::own_address, report);
    map.set("zone", |text: &str| values::optional_word(text).map(Text::from), &mut config.zone, report);
    config.snapshots = map.read("snapshots", values::path, report).map(|p| base_dir.join(p));
    if let Some(node) = map.get("hold_back") {
        governance::hold_back(node, &map.key("hold_back"), &mut config.hold_back, report);
    }
    map.set("start_unavailable", values::boolean, &mut config.start_unavailable, report);
    if let Some(node) = map.get("limits") {
        limits(node, &map.key("limits"), &mut config.limits, report);
    }
    if let Some(node) = map.get("access_log") {
        access_log(node, &map.key("access_log"), base_dir, &mut config.access_log, report);
    }
    if let Some(node) = map.get("graphite") {
        graphite::graphite(node, &map.key("graphite"), &mut config.graphite, report);
    }
    if let Some(node) = map.get("series") {
        graphite::series(node, &map.key("series"), &mut config.series, report);
    }
    if let Some(node) = map.get("center") {
        config.center = center::center(node, &map.key("center"), base_dir, report);
    }
    ports(map.get("ports").unwrap_or(&NOTHING), &map.key("ports"), &mut config.ports, &mut seen, report);
    if let Some(node) = map.get("capture") {
        capture(node, &map.key("capture"), &mut config.capture, report);
        seen.capture = map.place("capture");
    }
    seen.names = config.capture.has_names();

    let cx = BuildCx {
        application: config.application.clone(),
        zone: config.zone.clone(),
        service: Text::default(),
        base_dir: base_dir.to_owned(),
        agent: config.agent(),
        center: config.access(),
        ..BuildCx::default()
    };
    config.pidfile = map.read("pidfile", values::path, report).map(|p| base_dir.join(p));
    config.runtime_dir = map.read("runtime_dir", values::path, report).map(|p| base_dir.join(p));
    if let Some(node) = map.get("switchers") {
        for entry in entries(node, &map.key("switchers"), report).unwrap_or_default() {
            if let Some(on) = scalar(&entry.value, &join("switchers", &entry.key), values::boolean, report) {
                config.switchers.insert(entry.key.clone(), on);
            }
        }
    }
    if let Some(node) = map.get("registries") {
        for entry in entries(node, &map.key("registries"), report).unwrap_or_default() {
            // A registry with mistakes is declared all the same: what refers to it is not at fault.
            seen.registries.insert(entry.key.clone());
            if let Some(found) = registry(entry, &join("registries", &entry.key), &cx, report) {
                config.registries.insert(entry.key.clone(), found);
            }
        }
    }
    seen.http_proxy = map.get("http_proxy").is_some();
    if let Some(node) = map.get("referers") {
        for (path, node) in items(node, "referers", report) {
            config.referers.extend(services::referer(node, &path, &cx, &mut seen, report));
        }
    }
    if let Some(node) = map.get("services") {
        for (path, node) in items(node, "services", report) {
            config.services.extend(services::service(node, &path, &cx, &mut seen, report));
        }
    }
    if let Some(node) = map.get("http_proxy") {
        config.http_proxy = http_proxy::read(node, &map.key("http_proxy"), &config.referers, &mut seen, report);
    }
    checks::check(&config, &seen, report);
    Some(config)
}

const NOTHING: Node = Node { at: super::node::At { line: 0, column: 0 }, data: Data::Null };

fn ports(node: &Node, path: &str, ports: &mut Ports, seen: &mut Seen, report: &mut Report) {
    let Some(map) = Map::open(node, path, &[&keys::PORTS], Others::Unknown, report) else { return };
    map.set("outbound", number(0..=65535), &mut ports.outbound, report);
    map.set("inbound", number(0..=65535), &mut ports.inbound, report);
    map.set("dns", number(0..=65535), &mut ports.dns, report);
    map.set("admin", values::listen_address, &mut ports.admin, report);
    ports.admin_range = map.read("admin_range", values::port_range, report);
    ports.admin_socket = map.read("admin_socket", values::absolute_path, report);
    ports.forward = map.read("forward", values::listen_address, report);
    ports.reverse = map.read("reverse", values::listen_address, report);
    map.set("motan_management", values::boolean, &mut ports.motan_management, report);
    map.set("debug_pages", values::boolean, &mut ports.debug_pages, report);
    seen.ports = ["outbound", "inbound", "dns", "admin"].map(|name| map.place(name));
}

fn limits(node: &Node, path: &str, limits: &mut Limits, report: &mut Report) {
    let Some(map) = Map::open(node, path, &[&keys::LIMITS], Others::Unknown, report) else { return };
    map.set("connections", number(1..=1_000_000), &mut limits.connections, report);
    map.set("reserved_descriptors", number(0..=65_536), &mut limits.reserved_descriptors, report);
    map.set("header_bytes", size(1 << 10..=16 << 20), &mut limits.header_bytes, report);
    map.set("header_timeout", positive_duration, &mut limits.header_timeout, report);
    map.set("content_bytes", size(1 << 10..=1 << 30), &mut limits.content_bytes, report);
    map.set("calls_per_connection", number(1..=1_000_000), &mut limits.calls_per_connection, report);
    map.set("detect_timeout", positive_duration, &mut limits.detect_timeout, report);
    map.set("idle_timeout", values::duration, &mut limits.idle_timeout, report);
}

fn access_log(node: &Node, path: &str, base_dir: &Path, log: &mut AccessLog, report: &mut Report) {
    let Some(map) = Map::open(node, path, &[&keys::ACCESS_LOG], Others::Unknown, report) else { return };
    log.path = map.read("path", values::path, report).map(|p| base_dir.join(p));
    map.set("buffer_lines", number(1..=1_000_000), &mut log.buffer_lines, report);
    map.set("rotate", values::choice(ROTATE), &mut log.rotate, report);
}

const ROTATE: &[(&str, Rotate)] = &[("never", Rotate::Never), ("hourly", Rotate::Hourly)];

const MODES: &[(&str, CaptureMode)] = &[
    ("auto", CaptureMode::Auto),
    ("ebpf", CaptureMode::Ebpf),
    ("iptables", CaptureMode::Iptables),
    ("port", CaptureMode::Port),
];

const IPTABLES: &[(&str, Iptables)] =
    &[("auto", Iptables::Auto), ("iptables", Iptables::Iptables), ("nft", Iptables::Nft)];

pub(super) const REDIRECT: &[(&str, Redirect)] =
    &[("auto", Redirect::Auto), ("on", Redirect::On), ("off", Redirect::Off)];

fn capture(node: &Node, path: &str, capture: &mut Capture, report: &mut Report) {
    if let Data::Scalar { .. } = node.data {
        capture.mode = scalar(node, path, values::choice(MODES), report).unwrap_or(capture.mode);
        return;
    }
    let Some(map) = Map::open(node, path, &[&keys::CAPTURE], Others::Unknown, report) else { return };
    map.set("mode", values::choice(MODES), &mut capture.mode, report);
    map.set("stale_after", stale_after, &mut capture.stale_after, report);
    map.set("max_connections", number(1024..=4_194_304), &mut capture.max_connections, report);
    map.set("bpffs", values::absolute_path, &mut capture.bpffs, report);
    capture.root = map.read("root", values::absolute_path, report);
    map.set("dns", values::boolean, &mut capture.dns, report);
    map.set("iptables", values::choice(IPTABLES), &mut capture.iptables, report);
    if let Some(node) = map.get("exempt") {
        capture.exempt = exempt::exempt(node, &map.key("exempt"), report);
    }
    if let Some(node) = map.get("enroll") {
        enroll::read(node, &map.key("enroll"), &mut capture.enroll, report);
    }
    map.set("redirect", values::choice(REDIRECT), &mut capture.redirect, report);
}

/// The agent shows life every 100 ms; anything near that would bypass a healthy one.
fn stale_after(text: &str) -> Result<Duration, Wrong> {
    match positive_duration(text)? {
        d if d < Duration::from_millis(200) => Err(Wrong::new("is too short", "write 200ms to 1m")),
        d if d > Duration::from_secs(60) => Err(Wrong::new("is too long", "write 200ms to 1m")),
        d => Ok(d),
    }
}

/// Whether a registry's mapping is one that can be built; else what is wrong with it.
pub(super) fn accepts_registry(node: &Node, cx: &BuildCx) -> Result<(), String> {
    let entry = Entry { key: String::new(), at: node.at, value: node.clone() };
    let mut report = Report::default();
    registry(&entry, "", cx, &mut report);
    report.mistakes.into_iter().next().map_or(Ok(()), |p| Err(p.problem))
}

fn registry(entry: &Entry, path: &str, cx: &BuildCx, report: &mut Report) -> Option<RegistryConfig> {
    let node = &entry.value;
    if matches!(node.data, Data::Null) {
        report.mistake(
            Place { at: entry.at, key: path.to_owned(), value: None }
                .problem("has no value", "add `kind: file` and its options below it"),
        );
        return None;
    }
    let map = Map::open(node, path, &[&keys::REGISTRY], Others::Options, report)?;
    let kind = map.read("kind", |text| kinds::REGISTRY.name(text), report)?;
    let Data::Map(entries) = &node.data else { return None };
    let rest: Vec<_> = entries.iter().filter(|e| e.key != "kind").cloned().collect();
    let data = if rest.is_empty() { Data::Null } else { Data::Map(rest) };
    let options = Node { at: node.at, data };
    kinds::REGISTRY.check(&kind, &options, path, cx, report);
    Some(RegistryConfig { kind, options: options.to_value() })
}
