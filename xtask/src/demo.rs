//! `cargo xtask run`: a mesh of programs nobody here wrote, on this machine, until Ctrl-C.

mod center;
pub mod cgroup;
pub mod guard;
pub mod process;
mod programs;
mod shop;
pub mod standin;

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{IsTerminal, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use self::{
    guard::Guard,
    process::Process,
    programs::{Places, Program},
};
use crate::{
    build::{self, Ebpf},
    packages, sh, sys,
};

/// A provider that was stopped comes back after this long, so that its return can be watched too.
const BACK_AFTER: Duration = Duration::from_secs(15);
/// Between two pictures on a terminal, and between two in a file.
const REFRESH: Duration = Duration::from_secs(1);
const REFRESH_FILE: Duration = Duration::from_secs(5);

/// What the user asked for.
#[derive(clap::Args)]
pub struct Options {
    /// Programs dial the agent's own listeners instead of being captured by eBPF
    #[arg(long)]
    port_mode: bool,
    /// Stops by itself after this many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Installs no package; what is missing is stood in for
    #[arg(long)]
    no_install: bool,
    /// Uses the built-in stand-ins for all programs, as on a machine that has none of them
    #[arg(long)]
    stand_ins: bool,
    /// Prints the configuration that the agent would get, and starts nothing
    #[arg(long)]
    config_only: bool,
}

/// Runs the demo until a stop signal, the end of its time, or the end of its agent.
pub fn run(options: &Options) -> Result<()> {
    let name = format!("demo-{}", std::process::id());
    if options.config_only {
        let top = callers_group(options, &Ebpf::Built).ok();
        let places = Places::find(top.map(|top| top.join("callers")))?;
        print!("{}", places.yaml(&name));
        return Ok(());
    }
    if !options.no_install && !options.stand_ins {
        for line in packages::provide(programs::WANTED) {
            println!("a stand-in takes the place of {line}");
        }
    }
    let ebpf = build::all()?;
    // From here on a stop signal means: in order. Before, there is nothing to put in order.
    let signals = sys::Signals::catch()?;
    let top = match callers_group(options, &ebpf) {
        Ok(top) => Some(top),
        Err(_) if options.port_mode => None,
        Err(why) => {
            println!("no eBPF capture: {why:#}; the demo runs in port mode");
            None
        }
    };
    let guard = Guard::start()?;
    let mut demo = Demo {
        name,
        top,
        guard,
        stand_ins: options.stand_ins,
        servers: Vec::new(),
        center: None,
        agent: None,
        callers: Vec::new(),
    };
    let end = demo.start(&signals).and_then(|started| demo.watch(&signals, options, &started));
    println!("\nstopping");
    let summary = demo.stop();
    print!("{summary}");
    demo.guard.finish()?;
    match end {
        // A stop signal while something was starting is an end like another.
        Err(_) if signals.wait(Duration::ZERO) => Ok(()),
        end => end,
    }
}

/// The demo's control group if the kernel is to bring connections to the agent; an error says why it
/// cannot. Makes nothing.
fn callers_group(options: &Options, ebpf: &Ebpf) -> Result<PathBuf> {
    if options.port_mode {
        anyhow::bail!("--port-mode was given");
    }
    if !sys::is_root() {
        anyhow::bail!("it needs root");
    }
    if *ebpf == Ebpf::Missing {
        anyhow::bail!("the agent was built without its eBPF object (the reason is above)");
    }
    let mount = cgroup::mount().context("no cgroup v2 is mounted")?;
    if !options.config_only {
        can_capture()?;
    }
    Ok(mount.join(format!("sockmesh-demo-{}", std::process::id())))
}

/// Asks the agent whether this host can do what the demo needs: being root is not having the rights, and
/// not every kernel has the hooks.
fn can_capture() -> Result<()> {
    let wanted = std::env::temp_dir().join(format!("sockmesh-can-capture-{}.yaml", std::process::id()));
    // Port 0: whether ports are free is looked after elsewhere.
    fs::write(&wanted, "capture: ebpf\nports: {outbound: 0, inbound: 0, admin: 127.0.0.1:0}\n")?;
    let said = Command::new(build::agent()).arg("check").arg("-c").arg(&wanted).output();
    fs::remove_file(&wanted)?;
    let said = said.context("cannot start the agent")?;
    if said.status.success() {
        return Ok(());
    }
    let lines = String::from_utf8_lossy(&said.stdout);
    let first = lines.lines().find_map(|line| line.strip_prefix("✗ ")).unwrap_or("`sockmesh check` says no");
    anyhow::bail!("{first}")
}

/// Everything that was started.
struct Demo {
    name: String,
    top: Option<PathBuf>,
    guard: Guard,
    stand_ins: bool,
    servers: Vec<Running>,
    center: Option<Process>,
    agent: Option<Process>,
    callers: Vec<Running>,
}

struct Running {
    program: Program,
    process: Process,
    /// Since when it is down.
    down: Option<Instant>,
}

/// What the screen needs to know of a demo that has started.
struct Started {
    dir: PathBuf,
    places: Places,
}

impl Demo {
    fn start(&mut self, signals: &sys::Signals) -> Result<Started> {
        let dir = sh::target("demo").join(std::process::id().to_string());
        self.guard.watch_dir(&dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        if let Some(top) = &self.top {
            self.guard.watch_cgroup(top)?;
            // The agent takes its pins away itself; this is for one that was killed.
            self.guard.watch_dir(&Path::new("/sys/fs/bpf/sockmesh").join(&self.name))?;
        }
        let places = Places::find(self.top.as_ref().map(|top| top.join("callers")))?;
        if let Some(line) = places.unusual() {
            println!("{line}");
        }
        let config = dir.join("demo.yaml");
        fs::write(&config, places.yaml(&self.name))?;

        let find = if self.stand_ins { |_: &str| None } else { sh::find };
        for program in programs::servers(&dir, &places, find)? {
            let mut process = self.spawn(&program, &dir)?;
            let addr = program.listens.context("a server listens")?;
            let ready = process.wait_until(signals, || process::accepts(addr));
            self.servers.push(Running { program, process, down: None });
            ready?;
        }

        // Before the agent: the group that it is told to enrol has to exist.
        self.procs("callers")?;
        self.start_center(signals, &dir, &places)?;
        let mut command = Command::new(build::agent());
        // A trace of a crash would push its message out of what is shown of the log.
        command.args(["run", "-c"]).arg(&config).env_remove("RUST_BACKTRACE");
        let procs = self.procs("agent")?;
        let agent = Process::start("sockmesh", command, procs.as_ref(), dir.join("agent.log"), &self.guard)?;
        let agent = self.agent.insert(agent);
        agent.wait_until(signals, || process::answers(places.admin, "/ready"))?;
        // Callers know nothing of the mesh, so they come when it knows everything.
        agent.wait_until(signals, || center::is_known(places.admin))?;

        for program in programs::callers(&dir, &places, find)? {
            let process = self.spawn(&program, &dir)?;
            self.callers.push(Running { program, process, down: None });
        }
        Ok(Started { dir, places })
    }

    /// Before the agent, which would say that its registry is not there.
    fn start_center(&mut self, signals: &sys::Signals, dir: &Path, places: &Places) -> Result<()> {
        fs::write(dir.join(center::LOAD), "1\n")?;
        let config = dir.join("center.yaml");
        fs::write(&config, center::yaml(places, dir))?;
        let mut command = Command::new(build::center());
        command.arg("--config").arg(&config).env_remove("RUST_BACKTRACE");
        let procs = self.procs("center")?;
        let center = Process::start("sockmesh-center", command, procs.as_ref(), dir.join("center.log"), &self.guard)?;
        self.center.insert(center).wait_until(signals, || process::answers(places.center, "/healthz"))
    }

    fn procs(&self, group: &str) -> Result<Option<File>> {
        self.top.as_ref().map(|top| cgroup::make(&top.join(group))).transpose()
    }

    fn spawn(&self, program: &Program, dir: &Path) -> Result<Process> {
        let log = dir.join(format!("{}-{}.log", program.group, program.name.replace(' ', "-")));
        Process::start(&program.name, program.command(), self.procs(program.group)?.as_ref(), log, &self.guard)
    }

    /// Shows what happens until the end.
    fn watch(&mut self, signals: &sys::Signals, options: &Options, started: &Started) -> Result<()> {
        let terminal = std::io::stdout().is_terminal();
        let end = options.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut first = true;
        loop {
            for process in self.agent.iter_mut().chain(&mut self.center) {
                if !process.runs() {
                    return Err(process.obituary());
                }
            }
            self.bring_back(&started.dir)?;
            let picture = self.picture(started);
            show(&picture, terminal, first);
            first = false;
            let refresh = if terminal { REFRESH } else { REFRESH_FILE };
            let left = end.map_or(refresh, |end| end.saturating_duration_since(Instant::now()).min(refresh));
            if signals.wait(left) || end.is_some_and(|end| Instant::now() >= end) {
                return Ok(());
            }
        }
    }

    /// Starts providers again that were stopped a while ago.
    fn bring_back(&mut self, dir: &Path) -> Result<()> {
        for index in 0..self.servers.len() {
            let running = &mut self.servers[index];
            if running.process.runs() {
                running.down = None;
            } else if running.down.get_or_insert_with(Instant::now).elapsed() >= BACK_AFTER {
                let process = self.spawn(&self.servers[index].program, dir)?;
                self.servers[index].process = process;
            }
        }
        Ok(())
    }

    fn picture(&mut self, started: &Started) -> String {
        let mut text = String::new();
        let way = if self.top.is_some() { "captured by eBPF" } else { "port mode" };
        let agent = self.agent.as_ref().map_or(0, Process::pid);
        _ = writeln!(text, "Sockmesh demo ({way}), agent pid {agent}. Ctrl-C stops everything.");
        _ = writeln!(text, "Console: http://{}/\n", started.places.center);
        for running in self.servers.iter_mut().chain(&mut self.callers) {
            let program = &running.program;
            let counts = program.counts.as_deref().map(counts).unwrap_or_default();
            let state = match running.down {
                None => format!("pid {}", running.process.pid()),
                Some(since) => {
                    format!("stopped, comes back in {} s", BACK_AFTER.saturating_sub(since.elapsed()).as_secs())
                }
            };
            _ = writeln!(text, "  {:<24} {:<34} {state:<14} {counts}", program.name, program.part);
        }
        text.push('\n');
        text += &stat(started.places.admin);
        text.push('\n');
        text += &self.hints(&started.places);
        text
    }

    /// What to type next, in another terminal.
    fn hints(&self, places: &Places) -> String {
        let nginx = self.servers.first().map_or(0, |running| running.process.pid());
        let agent = build::agent();
        let agent = agent.strip_prefix(sh::root()).unwrap_or(&agent).display();
        let admin = places.admin;
        let with = if admin.port() == 8002 { String::new() } else { format!(" --admin {admin}") };
        let lines = [
            (
                format!("kill {nginx}"),
                format!("stop one nginx: no call fails; it is back after {} s", BACK_AFTER.as_secs()),
            ),
            (
                format!(
                    "{agent} switch web --percent 20 --from idc-a --to idc-b --reason try --center {}",
                    places.center
                ),
                "move a fifth; or in the console, with a preview".to_owned(),
            ),
            (format!("{agent} sockets{with}"), "who is connected to what".to_owned()),
            (format!("{agent} endpoints{with}"), "which endpoints are in rotation".to_owned()),
            (format!("curl -s http://{admin}/metrics"), "what is counted".to_owned()),
        ];
        let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
        let lines = lines.map(|(line, what)| format!("  {line:<width$}  # {what}\n"));
        format!("In another terminal:\n{}", lines.concat())
    }

    /// Stops callers first, so that none of them sees the end of the others; returns what they counted.
    fn stop(&mut self) -> String {
        let mut summary = String::new();
        for running in &mut self.callers {
            running.process.stop(Duration::from_secs(3));
            let counts = running.program.counts.as_deref().map(counts).unwrap_or_default();
            _ = writeln!(summary, "  {:<24} {counts}", running.program.name);
        }
        if let Some(agent) = &mut self.agent {
            // Longer than its own drain of 2 s.
            agent.stop(Duration::from_secs(6));
        }
        if let Some(center) = &mut self.center {
            // Longer than the servers that it started take.
            center.stop(Duration::from_secs(6));
        }
        for running in &mut self.servers {
            running.process.stop(Duration::from_secs(3));
        }
        summary
    }
}

/// What a caller counted.
fn counts(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    match text.trim().split_once(' ') {
        Some((good, bad)) => format!("{good} calls, {bad} failed"),
        None => "no call finished yet".to_owned(),
    }
}

/// The live table of the agent, as the operator's verb prints it.
fn stat(admin: SocketAddr) -> String {
    let mut command = Command::new(build::agent());
    command.args(["stat", "--once", "--admin", &admin.to_string()]);
    match sh::read(&mut command) {
        Ok(table) => table + "\n",
        Err(e) => format!("no table: {e:#}\n"),
    }
}

/// In place on a terminal; one after the other elsewhere.
fn show(picture: &str, terminal: bool, first: bool) {
    let mut out = std::io::stdout().lock();
    let text = if terminal {
        let (lines, columns) = sys::terminal_size().unwrap_or((usize::MAX, usize::MAX));
        // A line that wraps would push the rest out of place.
        let cut = |line: &str| line.chars().take(columns - 1).collect::<String>();
        let shown: Vec<_> = picture.lines().take(lines - 1).map(cut).collect();
        // Home, each line cleared to its end, the rest of the screen cleared: no flicker.
        let clear = if first { "\x1b[2J" } else { "" };
        format!("{clear}\x1b[H{}\x1b[K\n\x1b[J", shown.join("\x1b[K\n"))
    } else {
        format!("{picture}\n")
    };
    // Nobody may be left to read it; the demo goes on until it is told to stop.
    _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
