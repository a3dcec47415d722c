//! `sockmesh check`: what this host can do, found out by trying, one line each.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
};

use aya::maps::MapType;
use ebpf_common::{Offsets, program};
use serde::Serialize;

use crate::{
    capture::{
        clients::{Listens, who_listens},
        ebpf,
        enroll::{self, Cgroup, PROGRAMS},
        iptables::{self, Backend},
        pins,
        redirect::{self, selftest},
        rights,
    },
    config::{self, CaptureMode, Config, Who},
    sys::{self, Hook},
};

/// Arguments of `sockmesh check`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Also check what this configuration asks for
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only try out what redirecting does to sockets here: the self-test that `redirect: auto` follows
    #[arg(long)]
    pub redirect: bool,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: Format,
}

/// How to print what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A ticked line each.
    Text,
    /// One object: `ok` and the list of checks.
    Json,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Something is missing that nobody asked for, or that the agent copes with.
    Warning,
    /// Something that the configuration asks for is missing.
    Failed,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it went.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it; none when all is well.
    pub hint: Option<String>,
}

/// Runs every check and prints them; the exit code is not 0 when something is missing that the
/// configuration asks for. An error means that the configuration could not be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.redirect {
        return self_test(args.output);
    }
    let config = args.config.as_deref().map(Config::load).transpose()?;
    let checks = all(config.as_ref());
    let ok = checks.iter().all(|c| c.state != State::Failed);
    let text = match args.output {
        Format::Text => text(&checks),
        Format::Json => format!("{:#}\n", serde_json::json!({ "ok": ok, "checks": checks })),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the self-test of redirecting and prints it; the exit code is not 0 when `auto` redirects nothing here.
fn self_test(output: Format) -> anyhow::Result<ExitCode> {
    let report = selftest::of_this_host();
    let text = match output {
        Format::Text => report.text(),
        Format::Json => format!("{:#}\n", report.json()),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(if report.refusal().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every check of this host, and of what `config` asks for.
pub fn all(config: Option<&Config>) -> Vec<Check> {
    let defaults = Config::default();
    let asked = config.unwrap_or(&defaults);
    let mut report = Report {
        checks: Vec::new(),
        // Only `capture: ebpf` cannot do without.
        missing: match asked.capture.mode {
            CaptureMode::Ebpf => State::Failed,
            CaptureMode::Auto | CaptureMode::Iptables | CaptureMode::Port => State::Warning,
        },
        no_hooks: Vec::new(),
        no_rules: Vec::new(),
    };
    report.host(&asked.capture.bpffs);
    report.programs(asked.has_inbound());
    report.enrolled(&asked.capture);
    report.introduced(asked);
    report.rules(asked);
    if asked.capture.mode == CaptureMode::Auto {
        report.auto(config);
    }
    report.ipv6();
    report.ports(asked, if config.is_some() { State::Failed } else { State::Warning });
    report.checks
}

fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let tick = match check.state {
            State::Ok => '✓',
            State::Warning => '!',
            State::Failed => '✗',
        };
        let _ = write!(text, "{tick} {}: {}", check.name, check.found);
        if let Some(hint) = &check.hint {
            let _ = write!(text, " -> {hint}");
        }
        text.push('\n');
    }
    text
}

struct Report {
    checks: Vec<Check>,
    /// What a missing part of `ebpf` is.
    missing: State,
    /// Why `ebpf` would not do, as far as could be tried.
    no_hooks: Vec<String>,
    /// Why `iptables` would not do; empty when one of its programs would.
    no_rules: Vec<String>,
}

impl Report {
    fn ok(&mut self, name: impl Into<String>, found: impl Into<String>) {
        self.checks.push(Check { name: name.into(), state: State::Ok, found: found.into(), hint: None });
    }

    fn bad(&mut self, state: State, name: impl Into<String>, found: impl Into<String>, hint: &str) {
        let hint = Some(hint.to_owned()).filter(|h| !h.is_empty());
        self.checks.push(Check { name: name.into(), state, found: found.into(), hint });
    }

    /// Something that `ebpf` cannot do without.
    fn lack(&mut self, name: impl Into<String>, found: impl Into<String>, hint: &str) {
        let (name, found) = (name.into(), found.into());
        self.no_hooks.push(format!("{name}: {found}"));
        self.bad(self.missing, name, found, hint);
    }

    fn host(&mut self, bpffs: &Path) {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        match version(&release) {
            Some(v) if v < (5, 14) => self.lack(
                "kernel",
                release,
                "connect hooks need Linux 5.14 or newer; `capture: iptables` and `capture: port` do not",
            ),
            _ => self.ok("kernel", release),
        }
        if Path::new("/sys/kernel/btf/vmlinux").exists() {
            self.ok("kernel type information (BTF)", "present");
        } else {
            let hint = "not needed by connect hooks; a kernel with CONFIG_DEBUG_INFO_BTF has it";
            self.bad(State::Warning, "kernel type information (BTF)", "absent", hint);
        }
        match enroll::mount() {
            Some(path) => self.ok("cgroup v2", format!("mounted at {}", path.display())),
            None => {
                self.lack("cgroup v2", "not mounted", "mount it, e.g. `mount -t cgroup2 none /sys/fs/cgroup/unified`")
            }
        }
        if pins::is_bpffs(bpffs) {
            self.ok("bpffs", format!("mounted at {}", bpffs.display()));
        } else if bpffs.is_dir() {
            self.ok("bpffs", format!("not mounted at {}; an agent with rights mounts it", bpffs.display()));
        } else {
            self.lack(
                "bpffs",
                format!("{} is no directory", bpffs.display()),
                "create it, or set `capture.bpffs` to one that exists",
            );
        }
        match ebpf::missing_rights() {
            None => self.ok("rights", "CAP_BPF and CAP_NET_ADMIN"),
            Some(lacks) => {
                self.lack("rights", format!("lacks {lacks}"), "run as root, or grant those capabilities");
            }
        }
        for right in rights::ALL.iter().skip(2) {
            if right.is_held() {
                self.ok(right.name, format!("present, for {}", right.purpose));
            } else {
                let hint = format!("{}; {}", right.without, rights::REMEDY);
                self.bad(State::Warning, right.name, format!("missing, needed for {}", right.purpose), &hint);
            }
        }
        match aya::sys::is_map_supported(MapType::SkStorage) {
            Ok(true) => self.ok("socket storage", "supported"),
            Ok(false) => self.lack("socket storage", "not supported", "Linux 5.2 or newer has it"),
            Err(e) => self.lack("socket storage", format!("unknown: {e}"), "run as root"),
        }
        match ebpf::own_netns() {
            Ok(cookie) => self.ok("network namespace", format!("cookie {cookie}")),
            Err(e) => self.lack("network namespace", format!("{e:#}"), ""),
        }
    }

    /// Loads every program and lets it go again.
    fn programs(&mut self, inbound: bool) {
        let Some(object) = ebpf::OBJECT else {
            self.lack("eBPF object", "not in this build", "run `cargo xtask build`");
            return;
        };
        self.ok("eBPF object", format!("{} KiB in this build", object.len() / 1024));
        let (offsets, mut no_redirect) = redirect::offsets();
        let mut tried = match Tried::new(object, &offsets) {
            Ok(tried) => tried,
            Err(e) => return self.lack("maps", format!("{e:#}"), "run as root on Linux 5.14 or newer"),
        };
        self.ok("maps", "created");
        // As the agent does: without what redirect needs the rest may still load.
        if let (None, Some(refused)) = (&no_redirect, tried.first_refusal())
            && let Ok(again) = Tried::new(object, &Offsets::default())
        {
            no_redirect = Some(refused);
            tried = again;
        }
        let hint = match rights::PERFMON.is_held() {
            true => "`docs/kernel.md` has the minimum kernel of each hook",
            false => "CAP_PERFMON is missing, without which the verifier forbids what it lets pass otherwise",
        };
        for (what, refused) in tried.hooks {
            match refused {
                None => self.ok(what, "the kernel takes it"),
                Some(refused) => self.lack(what, refused, hint),
            }
        }
        let what = format!("program {} ({:?})", program::INBOUND, Hook::SkLookup);
        match refusal(&mut tried.loaded, program::INBOUND) {
            None => self.ok(what, "the kernel takes it"),
            Some(refused) if inbound => self.lack(what, refused, hint),
            Some(refused) => {
                self.bad(State::Warning, what, refused, "`services[].inbound` needs it, nothing else does")
            }
        }
        for name in [program::MSG, program::FILL, program::SELFTEST] {
            let what = format!("program {name} (redirect)");
            let refused = match &no_redirect {
                Some(reason) if name != program::SELFTEST => Some(reason.clone()),
                _ => refusal(&mut tried.loaded, name),
            };
            match refused {
                None => self.ok(what, "the kernel takes it"),
                Some(refused) => self.bad(State::Warning, what, refused, "nothing is redirected: bytes go by TCP"),
            }
        }
    }

    /// What every entry of `capture.enroll` stands for now, and who else has the hooks there.
    fn enrolled(&mut self, capture: &config::Capture) {
        for entry in &capture.enroll {
            if let (Who::Cgroup(path), false) = (&entry.who, entry.who.is_pattern()) {
                self.group(path);
                continue;
            }
            let name = format!("enrolled {}", entry.who);
            let resolved = match enroll::resolve(std::slice::from_ref(entry), |_| true) {
                Ok(resolved) => resolved,
                Err(e) => {
                    self.lack(name, format!("{e:#}"), "create it, or take it out of `enroll`");
                    continue;
                }
            };
            for matched in &resolved.matched {
                let found = match &entry.who {
                    Who::Uid(_) => "every process of this user".to_owned(),
                    _ => format!("{} now", matched.found.len()),
                };
                match &matched.note {
                    None => self.ok(&name, found),
                    Some(note) => self.bad(State::Warning, &name, format!("{found}; {note}"), ""),
                }
                if !matches!(entry.who, Who::Netns(_)) {
                    for path in &matched.found {
                        self.group(Path::new(path));
                    }
                }
            }
        }
        if capture.enroll.iter().any(|e| e.who.is_asked_for())
            && let Some(root) = capture.root.clone().or_else(enroll::mount)
        {
            self.group(&root);
        }
    }

    /// Whether the programs that are to see their callers can be shown them.
    fn introduced(&mut self, config: &Config) {
        for service in config.services.iter().filter(|s| s.cluster.client_address) {
            let name = format!("client_address of {}", service.key);
            let cannot = match config.capture.mode {
                CaptureMode::Port => Some("`capture: port` cannot show a program its callers"),
                CaptureMode::Iptables => Some("`capture: iptables` cannot show a program its callers"),
                CaptureMode::Auto | CaptureMode::Ebpf => None,
            };
            if let Some(found) = cannot {
                self.bad(State::Warning, name, found, "set `capture: ebpf`, or take `client_address` out");
                continue;
            }
            match who_listens(service.local, &[]) {
                Listens::In(groups) => {
                    let paths: Vec<_> = groups.iter().map(|group| group.path.display().to_string()).collect();
                    self.ok(name, format!("who listens on {} is in {}", service.local, paths.join(", ")));
                }
                Listens::Unreachable(reason) => {
                    self.bad(State::Warning, name, reason, "until then the program sees the agent as its peer");
                }
            }
        }
    }

    /// Who else has the hooks of an enrolled control group.
    fn group(&mut self, path: &Path) {
        let name = format!("control group {}", path.display());
        let group = match Cgroup::open(path) {
            Ok(group) => group,
            Err(e) => return self.lack(name, format!("{e:#}"), ""),
        };
        let mut others = Vec::new();
        for (_, hook) in PROGRAMS {
            for (i, at) in group.path.ancestors().enumerate() {
                let Ok(group) = Cgroup::open(at) else { break };
                let there = match group.attached(hook) {
                    Ok(there) => there,
                    Err(e) => {
                        return self.lack(name, format!("cannot ask for its programs: {e}"), "run as root");
                    }
                };
                let foreign = there.programs.iter().map(|id| enroll::describe(*id)).filter(|d| !d.contains("(mesh_"));
                for program in foreign {
                    let exclusive = match there.flags {
                        0 => true,
                        // Overridable: only in the way where it is attached itself.
                        sys::Attached::OVERRIDE => i == 0,
                        _ => false,
                    };
                    if exclusive {
                        let found = format!("{hook:?} belongs to program {program} of {}", at.display());
                        let hint = "detach it (`bpftool cgroup detach`), or have its owner attach it with `multi`";
                        return self.lack(name, found, hint);
                    }
                    others.push(format!("{hook:?} {program} of {}", at.display()));
                }
            }
        }
        if others.is_empty() {
            self.ok(name, "its hooks are free");
        } else {
            let hint = "who also rewrites connects must leave the services' addresses alone";
            self.bad(State::Warning, name, format!("shared with {}", others.join(", ")), hint);
        }
    }

    /// Whether rules could redirect here; the mode `iptables` needs one of the two programs.
    fn rules(&mut self, config: &Config) {
        let asked = config.capture.mode == CaptureMode::Iptables;
        let found = Backend::ALL.map(|backend| (backend, iptables::check(backend, config)));
        let wanted = Backend::wanted(config.capture.iptables);
        let some = found.iter().any(|(backend, found)| wanted.contains(backend) && found.is_ok());
        for (backend, found) in found {
            let name = format!("redirecting rules by {backend}");
            match found {
                Ok(found) => self.ok(name, found),
                Err(e) => {
                    if !some && wanted.contains(&backend) {
                        self.no_rules.push(format!("{e:#}"));
                    }
                    let state = if asked && !some { State::Failed } else { State::Warning };
                    self.bad(state, name, format!("{e:#}"), "`capture: iptables` needs it, other ways do not");
                }
            }
        }
    }

    /// What `capture: auto` would be here, and why nothing better.
    fn auto(&mut self, config: Option<&Config>) {
        let name = "capture: auto";
        if config.is_some_and(|c| c.capture.enroll.is_empty() && !c.has_inbound()) {
            return self.ok(name, "`port`: nothing is enrolled");
        }
        if self.no_hooks.is_empty() {
            return self.ok(name, "`ebpf`");
        }
        let no_hooks = self.no_hooks.join("; ");
        if self.no_rules.is_empty() {
            let hint = "there is no bypass when the agent is gone; what `ebpf` lacks is told above";
            return self.bad(State::Warning, name, format!("`iptables`, no eBPF here: {no_hooks}"), hint);
        }
        let found = format!("`port`, no eBPF here: {no_hooks}; no iptables here: {}", self.no_rules.join("; "));
        self.bad(State::Warning, name, found, "programs dial the `listen` addresses");
    }

    fn ipv6(&mut self) {
        match TcpListener::bind("[::1]:0") {
            Ok(_) => self.ok("IPv6 loopback", "present"),
            Err(e) => self.bad(
                State::Warning,
                "IPv6 loopback",
                format!("absent: {e}"),
                "connects to IPv6 services go directly; `sysctl net.ipv6.conf.lo.disable_ipv6=0`",
            ),
        }
    }

    fn ports(&mut self, config: &Config, missing: State) {
        let mut addresses: Vec<(&str, SocketAddr)> = vec![("ports.admin", config.ports.admin)];
        if config.capture.mode != CaptureMode::Port {
            addresses.push(("ports.outbound", SocketAddr::from(([127, 0, 0, 1], config.ports.outbound))));
        }
        addresses.extend(config.referers.iter().filter_map(|r| Some(("listen", r.listen?))));
        addresses.extend(config.services.iter().filter_map(|s| Some(("export", s.export?))));
        addresses.sort_unstable_by_key(|(_, address)| *address);
        addresses.dedup_by_key(|(_, address)| *address);
        for (key, address) in addresses {
            let name = format!("{key} {address}");
            match TcpListener::bind(address) {
                Ok(_) => self.ok(name, "free"),
                Err(e) => {
                    let hint = "is an agent running already? Stop who has it (`ss -ltnp`), or choose another";
                    self.bad(missing, name, e.to_string(), hint);
                }
            }
        }
    }
}

/// The programs of the hooks, each loaded if the kernel takes it.
struct Tried {
    loaded: aya::Ebpf,
    /// What each is, and why the kernel refuses it, if it does.
    hooks: Vec<(String, Option<String>)>,
}

impl Tried {
    /// An error when not even the maps can be made.
    fn new(object: &[u8], offsets: &Offsets) -> anyhow::Result<Self> {
        let mut loaded = ebpf::probe(object, offsets)?;
        let hooks = PROGRAMS
            .into_iter()
            .map(|(name, hook)| (format!("program {name} ({hook:?})"), refusal(&mut loaded, name)))
            .collect();
        Ok(Self { loaded, hooks })
    }

    fn first_refusal(&self) -> Option<String> {
        self.hooks.iter().find_map(|(_, refused)| refused.clone())
    }
}

/// Why the kernel does not take a program; none if it does.
fn refusal(loaded: &mut aya::Ebpf, name: &str) -> Option<String> {
    ebpf::load_program(loaded, name).err().map(|e| format!("{:#}", ebpf::refusal(name, &e)))
}

/// Major and minor number of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Enroll;

    #[test]
    fn kernel_releases() {
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("5.10.0-28-amd64"), Some((5, 10)));
        assert_eq!(version("odd"), None);
    }

    #[test]
    fn what_nobody_asked_for_is_no_failure() {
        let checks = all(None);
        assert!(checks.iter().all(|c| c.state != State::Failed), "{}", text(&checks));
        assert!(checks.iter().any(|c| c.name == "kernel"));
    }

    #[test]
    fn what_was_asked_for_and_is_missing_fails_with_a_hint() {
        let mut config = Config::default();
        config.capture.enroll = vec![Enroll::cgroup("/nowhere/at/all")];
        let group = |config: &Config| all(Some(config)).into_iter().find(|c| c.name.contains("/nowhere")).unwrap();
        assert_eq!(group(&config).state, State::Warning, "auto copes");
        config.capture.mode = CaptureMode::Ebpf;
        assert_eq!(group(&config).state, State::Failed);
        assert!(text(&[group(&config)]).starts_with("✗ control group /nowhere/at/all: "));
    }

    #[test]
    fn a_port_in_use_fails() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::default();
        config.capture.mode = CaptureMode::Port;
        config.ports.admin = taken.local_addr().unwrap();
        let checks = all(Some(&config));
        let admin = checks.iter().find(|c| c.name.starts_with("ports.admin")).unwrap();
        assert_eq!(admin.state, State::Failed);
        assert!(!checks.iter().any(|c| c.name.starts_with("ports.outbound")), "port mode does not need it");
    }
}
