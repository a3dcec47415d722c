//! One way in a network namespace and control groups of its own: its server, its agent, its callers.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    cell::Cell,
    pair, peers,
    way::{ADMIN, Way},
};
use crate::{
    build,
    demo::{
        cgroup,
        guard::Guard,
        process::{self, Process},
    },
    sh, sys,
};

/// More than a caller waits for one answer by itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the memory of the agent.
const LOOK: Duration = Duration::from_millis(100);
/// Memory that has stayed the same for this long, give or take [`STILL_BYTES`], is that of an agent at rest.
const STILL: Duration = Duration::from_secs(1);
const STILL_BYTES: u64 = 100 * 1024;
/// How long that is waited for.
const SETTLES: Duration = Duration::from_secs(10);

/// A way, ready to be measured.
pub struct World {
    /// Which one.
    pub way: Way,
    network: OwnedFd,
    groups: PathBuf,
    dir: PathBuf,
    server: Process,
    /// Loads that are served, with the server's ports.
    ports: &'static [(&'static str, u16)],
    /// The server's agent first, where there are two.
    agents: Vec<Process>,
    /// Resident memory before any call, bytes: the larger agent's, where there are two.
    pub idle: Option<u64>,
}

/// What came of asking for a way.
pub enum Made {
    /// It can be measured.
    World(Box<World>),
    /// This agent or this host does not have it: why.
    Unavailable(String),
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Calls in a second; megabytes of the bulk load.
    pub rate: f64,
    /// Half of the calls were answered within this, microseconds. None for the bulk load.
    pub p50_us: Option<f64>,
    /// All but a hundredth of the calls were answered within this, microseconds. None for the bulk load.
    pub p99_us: Option<f64>,
    /// All calls, those before the measured time included; megabytes of the bulk load.
    pub total: f64,
    /// CPU time of the agent for all of them, seconds. None where there is no agent.
    pub agent_cpu: Option<f64>,
    /// Most resident memory of the agent that was seen, bytes. None where there is no agent.
    pub agent_memory: Option<u64>,
}

/// What every world is made with.
pub struct Ground<'a> {
    /// Clears everything away if this process cannot.
    pub guard: &'a Guard,
    /// The stop signals.
    pub signals: &'a sys::Signals,
    /// The folder of this run.
    pub dir: &'a Path,
    /// The control group of this run.
    pub top: &'a Path,
}

impl World {
    /// Starts server and agent of a way on the CPUs that this thread may use. `name` is unique on the host.
    pub fn start((way, ports): (Way, &'static [(&'static str, u16)]), name: &str, ground: &Ground<'_>) -> Result<Made> {
        let (dir, groups) = (ground.dir.join(name), ground.top.join(name));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let network = sys::new_network().context("cannot make a network namespace")?;
        // Ends of connections wait for a minute; a run makes more of them than there are usual ports.
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "16384 65535").ok();
        if way.needs_route()
            && let Err(e) = route()
        {
            return Ok(Made::Unavailable(format!("{e:#}")));
        }
        let mut command = Command::new(load());
        command.args(["serve", "127.0.0.1"]);
        let servers = cgroup::make(&groups.join("servers"))?;
        let mut server = Process::start("load", command, Some(&servers), dir.join("server.log"), ground.guard)?;
        server.wait_until(ground.signals, || {
            ports.iter().all(|(_, port)| process::accepts(([127, 0, 0, 1], *port).into()))
        })?;
        cgroup::make(&groups.join("callers"))?;
        let mut world = Self { way, network, groups, dir, server, ports, agents: Vec::new(), idle: None };
        match world.start_agent(name, ground) {
            Ok(()) => Ok(Made::World(Box::new(world))),
            Err(e) if ground.signals.wait(Duration::ZERO) => Err(e),
            Err(e) => {
                world.stop();
                Ok(Made::Unavailable(format!("{e:#}")))
            }
        }
    }

    fn start_agent(&mut self, name: &str, ground: &Ground<'_>) -> Result<()> {
        if self.way.is_pair() {
            for pair::Launch { command, ready } in pair::launches(self.way, name, &self.dir)? {
                self.spawn_agent(command, ground, || ready.now())?;
            }
            return Ok(());
        }
        if self.way.is_peer() {
            let command = peers::command(self.way, &self.dir, sys::cpus()?.len())?;
            let dialed = self.dialed()?;
            return self.spawn_agent(command, ground, || dialed.iter().all(|addr| process::accepts(*addr)));
        }
        let config = self.dir.join("mesh.yaml");
        let mut wrong = None;
        for yaml in self.way.yaml(name, &self.groups, self.ports) {
            fs::write(&config, yaml)?;
            let said = Command::new(build::agent()).arg("config").arg(&config).output()?;
            if said.status.success() {
                wrong = None;
                break;
            }
            let lines = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
            let first = lines.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
            wrong = Some(first.replace(&format!("{}", config.display()), "the agent's configuration"));
        }
        if let Some(why) = wrong {
            bail!("this agent does not know it: {why}");
        }
        if self.way.yaml(name, &self.groups, self.ports).is_empty() {
            return Ok(());
        }
        ground.guard.watch_dir(&Path::new("/sys/fs/bpf/sockmesh").join(name))?;
        let mut command = Command::new(build::agent());
        command.args(["run", "-c"]).arg(&config).env_remove("RUST_BACKTRACE");
        let admin = ADMIN.parse()?;
        self.spawn_agent(command, ground, || process::answers(admin, "/ready"))
    }

    fn spawn_agent(&mut self, command: Command, ground: &Ground<'_>, ready: impl Fn() -> bool) -> Result<()> {
        let number = self.agents.len();
        let group = cgroup::make(&self.agent_group(number))?;
        let log = self.dir.join(format!("agent{number}.log"));
        let mut agent = Process::start(self.way.name(), command, Some(&group), log, ground.guard)?;
        let ready = agent.wait_until(ground.signals, ready);
        // Kept in any case: it is stopped with the others.
        self.agents.push(agent);
        ready?;
        self.idle = Some(self.settled(ground));
        Ok(())
    }

    /// Resident memory once a start is over: the self-test goes on after an agent is ready, and what a start needed is
    /// given back at its end.
    fn settled(&self, ground: &Ground<'_>) -> u64 {
        let deadline = Instant::now() + SETTLES;
        let (mut seen, mut since) = (self.memory(), Instant::now());
        while since.elapsed() < STILL && Instant::now() < deadline && !ground.signals.wait(LOOK) {
            let now = self.memory();
            if now.abs_diff(seen) > STILL_BYTES {
                (seen, since) = (now, Instant::now());
            }
        }
        seen
    }

    fn agent_group(&self, number: usize) -> PathBuf {
        self.groups.join(format!("agent{number}"))
    }

    /// Everything that callers of this way dial.
    fn dialed(&self) -> Result<Vec<SocketAddr>> {
        let loads = self.ports.iter().map(|(load, _)| *load).filter(|load| self.way.carries(load));
        loads.map(|load| self.way.dialed(load)).collect()
    }

    /// Measures once.
    pub fn measure(&mut self, cell: Cell, times: [Duration; 2], ground: &Ground<'_>) -> Result<Sample> {
        sys::enter_network(&self.network).context("cannot enter a network namespace")?;
        let mut command = Command::new(load());
        command.args(["call", cell.load]).arg(self.way.dialed(cell.load)?.to_string());
        command.arg(cell.callers.to_string()).args(times.map(|time| time.as_millis().to_string()));
        let log = self.dir.join("callers.log");
        fs::remove_file(&log).ok();
        let procs = cgroup::make(&self.groups.join("callers"))?;
        let (before, redirected) = (self.agent_cpu(), self.redirected());
        let mut callers = Process::start("load", command, Some(&procs), log.clone(), ground.guard)?;
        let deadline = Instant::now() + times[0] + times[1] + PATIENCE;
        let mut memory = 0;
        let status = loop {
            if let Some(status) = callers.wait(LOOK)? {
                break status;
            }
            memory = memory.max(self.memory());
            if ground.signals.wait(Duration::ZERO) || Instant::now() > deadline {
                callers.stop(Duration::ZERO);
                bail!("callers were stopped: by a signal, or after {} s", PATIENCE.as_secs());
            }
        };
        memory = memory.max(self.memory());
        let after = self.agent_cpu();
        let said = fs::read_to_string(&log).unwrap_or_default();
        if !status.success() {
            bail!("{}", said.trim());
        }
        for agent in &mut self.agents {
            if !agent.runs() {
                return Err(agent.obituary());
            }
        }
        let [rate, p50, p99, total] = figures(&said).with_context(|| format!("not understood: {said:?}"))?;
        if self.way.is_redirected() && times[0] > Duration::ZERO && self.redirected() == redirected {
            bail!("no byte went past TCP");
        }
        let latency = |value| (cell.load != "bulk").then_some(value);
        Ok(Sample {
            rate,
            p50_us: latency(p50),
            p99_us: latency(p99),
            total,
            agent_cpu: (!self.agents.is_empty()).then_some(after - before),
            agent_memory: (!self.agents.is_empty()).then_some(memory),
        })
    }

    /// Messages that went from socket to socket so far, as the agent says.
    fn redirected(&self) -> Option<u64> {
        let page = process::get(ADMIN.parse().ok()?, "/metrics").ok()?;
        let line = page.lines().find(|line| line.contains("outcome=\"redirected\""))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// CPU seconds of all agents and of all that they started.
    fn agent_cpu(&self) -> f64 {
        let of = |(number, agent): (usize, &Process)| {
            used(&self.agent_group(number)).or_else(|| ticks_of(agent.pid())).unwrap_or(0.0)
        };
        self.agents.iter().enumerate().map(of).sum()
    }

    /// Resident memory of the largest agent and of all that it started, bytes.
    fn memory(&self) -> u64 {
        let resident = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim();
            line.strip_suffix(" kB")?.trim().parse::<u64>().ok()
        };
        let of = |number| cgroup::pids(&self.agent_group(number)).iter().filter_map(resident).sum::<u64>() * 1024;
        (0..self.agents.len()).map(of).max().unwrap_or(0)
    }

    /// Stops everything of it. What does not go is left to the guard.
    pub fn stop(&mut self) {
        // The caller's agent first, so that nobody misses the other.
        for agent in self.agents.iter_mut().rev() {
            // Longer than its own drain of 1 s.
            agent.stop(Duration::from_secs(5));
        }
        self.server.stop(Duration::from_secs(2));
        cgroup::remove(&self.groups);
    }
}

/// CPU seconds that a control group has used; `None` where the kernel does not count them.
pub fn used(group: &Path) -> Option<f64> {
    let text = fs::read_to_string(group.join("cpu.stat")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    line.parse::<f64>().ok().map(|micros| micros / 1e6)
}

/// CPU seconds of one process (proc(5): the fields `utime` and `stime`).
pub fn ticks_of(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / sys::ticks())
}

/// The program of package `tests` that serves and calls.
fn load() -> PathBuf {
    sh::target("release/load")
}

/// A way out that leads nowhere, for addresses that NAT rules change.
fn route() -> Result<()> {
    let lines = [
        "link add out type veth peer name nowhere",
        "addr add 192.0.2.1/24 dev out",
        "link set out up",
        "link set nowhere up",
        "route add default dev out",
    ];
    lines.iter().try_for_each(|line| sh::read(Command::new("ip").args(line.split(' '))).map(|_| ()))?;
    // Each connection leaves an entry; two minutes of them would fill the table that all namespaces share.
    fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1").ok();
    Ok(())
}

/// `rate=1 p50_us=2 p99_us=3 total=4`, as `load call` says it.
fn figures(said: &str) -> Option<[f64; 4]> {
    let mut words = said.split_whitespace();
    let mut next = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
    Some([next("rate")?, next("p50_us")?, next("p99_us")?, next("total")?])
}

/// The name of this run on the host, and of its control group.
pub fn run_name() -> String {
    format!("sockmesh-bench-{}", std::process::id())
}

/// Opens the control group of a run; everything is started below it.
pub fn top() -> Result<PathBuf> {
    let mount = cgroup::mount().context("no cgroup v2 is mounted, and the benchmark needs control groups")?;
    let top = mount.join(run_name());
    let _: File = cgroup::make(&top)?;
    Ok(top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_callers_are_understood() {
        let said = "rate=12.500 p50_us=1.000 p99_us=2.000 total=30.000\n";
        assert_eq!(figures(said), Some([12.5, 1.0, 2.0, 30.0]));
        assert_eq!(figures("error: no"), None);
        assert!(ticks_of(std::process::id()).is_some());
    }
}
