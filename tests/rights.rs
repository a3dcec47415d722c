//! The agent with a part of root's rights: what works, and what is said of what does not.

use std::path::{Path, PathBuf};

use host::{
    Agent, Backend, Cgroup, Cmd, Need, Net, Temp, agent::Settings, agent::sockmesh, lacks, program, until, until_some,
};
use serde_json::Value;

const WEB: &str = "240.0.0.1:80";
/// Without the third the verifier lets nobody follow pointers as our programs do.
const TWO: [&str; 2] = ["bpf", "net_admin"];
/// The least that the mode `ebpf` needs.
const HOOKS: [&str; 3] = ["bpf", "net_admin", "perfmon"];

/// A bpffs of the test's own: an agent without CAP_SYS_ADMIN mounts none.
struct Bpffs(PathBuf, #[expect(dead_code, reason = "removed when it is dropped")] Temp);

impl Bpffs {
    fn new() -> Self {
        let temp = Temp::new();
        let dir = temp.file("bpf");
        std::fs::create_dir(&dir).unwrap();
        Cmd::line("mount -t bpf none").arg(dir.display()).run().ok();
        Self(dir, temp)
    }

    fn pins(&self) -> PathBuf {
        self.0.join("sockmesh")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Cmd::new("umount").arg(self.0.display()).run();
    }
}

struct World {
    agent: Agent,
    callers: Cgroup,
    _groups: [Cgroup; 2],
    bpffs: Bpffs,
    dir: Temp,
    _web: Backend,
    _server: host::Proc,
}

impl World {
    /// An agent with `powers`, of two services: `web` through it, `name` past it.
    fn new(powers: &[&str], redirect: &str) -> Option<Self> {
        if lacks(&[Need::Kernel, Need::Program("curl"), Need::Program("ip"), Need::Program("python3")]) {
            return None;
        }
        let (callers, servers, own) = (Cgroup::new("callers"), Cgroup::new("servers"), Cgroup::new("agent"));
        let (bpffs, dir) = (Bpffs::new(), Temp::new());
        let web = Backend::http(|_| host::http::ok("mesh"));
        let server = program::python("stream.py").args(["serve", "a"]).cgroup(&servers).spawn(&dir.file("serve"));
        let at = until_some("the server listens", || {
            let line: Value = serde_json::from_str(server.lines().first()?).ok()?;
            line["at"].as_str().map(str::to_owned)
        });
        let services = format!(
            "referers:\n  - {{service: web, protocol: http, address: \"{WEB}\", endpoints: [{}]}}\n\
             \x20 - {{service: name, protocol: tcp, path: kernel, address: \"240.0.0.2:80\", endpoints: [\"{at}\"]}}\n",
            web.addr()
        );
        let capture = format!("redirect: {redirect}, bpffs: {}", bpffs.0.display());
        let settings = Settings {
            enroll: &[&callers, &servers],
            join: true,
            cgroup: Some(&own),
            powers: Some(powers),
            capture: &capture,
            ..Settings::default()
        };
        let agent = Agent::with(&settings, &services);
        Some(Self { agent, callers, _groups: [servers, own], bpffs, dir, _web: web, _server: server })
    }

    fn curl(&self) -> Cmd {
        Cmd::new("curl").args(["-sS", "--noproxy", "*", "--max-time", "5", "http://240.0.0.1/"]).cgroup(&self.callers)
    }

    fn stream(&self, verb: &str) -> Cmd {
        program::python("stream.py").args([verb, "240.0.0.2", "80"]).cgroup(&self.callers)
    }

    fn outcome(&self, name: &str) -> f64 {
        self.agent.metric("sockmesh_capture_total", &[&format!("outcome=\"{name}\"")])
    }

    /// How the bytes of a connection to `name` go that is held open.
    fn held(&self, turn: u32) -> Option<String> {
        let held = self.stream("idle").spawn(&self.dir.file(&format!("idle{turn}")));
        until("it is answered", || !held.lines().is_empty());
        let rows = self.agent.sockets();
        let row = rows.iter().find(|row| row["pid"] == held.pid()).unwrap_or_else(|| panic!("{rows:?}"));
        row["redirect"].as_str().map(str::to_owned)
    }
}

#[test]
fn rights_of_three_capabilities_are_enough_at_home() {
    let Some(mut world) = World::new(&HOOKS, "on") else { return };
    assert_eq!(world.curl().run().ok(), "mesh");
    assert!(world.stream("calls").arg(5).run().ok().contains("\"a\""));
    let names = program::python("names.py").args(["ask", "sendto", "192.0.2.53", "web.mesh"]).cgroup(&world.callers);
    assert_eq!(names.run().ok().trim(), "0 240.0.0.1");
    until("bytes go past TCP", || {
        world.curl().run().ok();
        world.outcome("redirected") > 0.0
    });
    assert_eq!(world.held(0).as_deref(), Some("joined"));
    // Enrolling and releasing, and what takes more says so.
    let other = Cgroup::new("other");
    world.agent.cli(&format!("enroll {}", other.path().display())).ok();
    assert_eq!(world.curl().cgroup(&other).run().ok(), "mesh");
    world.agent.cli(&format!("release {}", other.path().display())).ok();
    assert!(!world.curl().cgroup(&other).run().out.contains("mesh"));
    let net = Net::new();
    let said = world.agent.cli(&format!("enroll netns:/run/netns/{}", net.name())).failed();
    assert!(said.contains("it takes CAP_SYS_ADMIN") && said.contains("run as root, or grant it"), "{said}");
    // A program of an enrolled group in another network namespace.
    let abroad = world.curl().netns(&net);
    assert!(!abroad.run().out.contains("mesh"));
    let note = until_some("it is told why", || {
        let _ = abroad.run();
        let page = world.agent.json("/enrolled");
        page["refused"].as_array().unwrap().first().map(|note| note.as_str().unwrap().to_owned())
    });
    assert!(note.contains("it takes CAP_SYS_"), "{note}");
    assert!(world.agent.log().contains("connect directly") && world.agent.log().contains("CAP_SYS_"));
    assert!(world.agent.cli("enroll").ok().contains(&note));
    assert_eq!(world.curl().run().ok(), "mesh");
    assert!(world.agent.stop().success());
    assert!(!world.bpffs.pins().exists(), "nothing is left");
}

#[test]
fn rights_to_look_at_programs_are_what_auto_needs() {
    // How the bytes of a held connection go, once that is as `wanted`.
    let way = |world: &World, wanted: &dyn Fn(&str) -> bool| {
        let python = program::python("client.py").args(["hold", "240.0.0.1", "80"]).cgroup(&world.callers);
        let held = python.spawn(&world.dir.file("held"));
        until_some("it is listed", || {
            let rows = world.agent.sockets();
            let how = rows.iter().find(|row| row["pid"] == held.pid())?["redirect"].as_str()?.to_owned();
            wanted(&how).then_some(how)
        })
    };
    // Connections from before that stay as they are.
    let tested = |world: &World| {
        let before = |how: &str| how.contains("self-test") || how.contains("came before");
        until("the self-test is done", || !before(&way(world, &|_| true)));
    };
    let Some(world) = World::new(&HOOKS, "auto") else { return };
    tested(&world);
    // The callers here have all of root's rights, more than the agent.
    let how = way(&world, &|_| true);
    assert!(how.starts_with("learning (0 of 3") && how.ends_with("takes CAP_SYS_PTRACE"), "{how}");
    assert!(world.agent.log().contains("CAP_SYS_PTRACE"));
    drop(world);
    let Some(world) = World::new(&[&HOOKS[..], &["sys_ptrace"]].concat(), "auto") else { return };
    tested(&world);
    // What it is depends on the Python of this host: something is known of it.
    let how = way(&world, &|how| !how.contains("(0 of 3"));
    assert!(!how.contains("cannot be read") && !how.contains("CAP_"), "{how}");
}

/// Whether the verifier asks nobody for CAP_PERFMON.
fn mitigations_are_off() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains("mitigations=off"))
}

/// What `sockmesh check` says with these of root's powers.
fn check(powers: &[&str]) -> Vec<String> {
    let said = sockmesh("check").powers(powers).run();
    said.out.lines().map(str::to_owned).collect()
}

#[test]
fn rights_that_are_missing_are_told_by_check() {
    if lacks(&[Need::Kernel]) {
        return;
    }
    let line = |lines: &[String], name: &str| {
        let found = lines.iter().find(|l| l.split(' ').nth(1) == Some(&format!("{name}:")));
        found.unwrap_or_else(|| panic!("no {name} in {lines:?}")).clone()
    };
    let all = ["bpf", "net_admin", "perfmon", "sys_ptrace", "sys_admin", "net_raw"];
    let said = check(&all);
    for name in ["rights", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_NET_RAW"] {
        assert!(line(&said, name).starts_with('✓'), "{said:?}");
    }
    let said = check(&HOOKS);
    assert!(line(&said, "rights").starts_with('✓') && line(&said, "CAP_PERFMON").starts_with('✓'), "{said:?}");
    let lacks = line(&said, "CAP_SYS_ADMIN");
    assert!(lacks.starts_with("! CAP_SYS_ADMIN: missing, needed for entering other network namespaces"), "{lacks}");
    assert!(lacks.contains(" -> programs in other network namespaces connect directly"), "{lacks}");
    assert!(lacks.ends_with("run as root, or grant it (`AmbientCapabilities=`, `setcap`)"), "{lacks}");
    let hooks: Vec<_> = said.iter().filter(|l| l.contains("program mesh_")).collect();
    assert!(hooks.iter().all(|l| l.starts_with('✓')), "every program loads: {hooks:?}");
    let said = check(&TWO);
    assert!(line(&said, "CAP_PERFMON").starts_with("! CAP_PERFMON: missing, needed for programs"), "{said:?}");
    if !mitigations_are_off() {
        let connect = said.iter().find(|l| l.contains("program mesh_connect4")).unwrap();
        assert!(connect.starts_with('!') && connect.contains("CAP_PERFMON is missing"), "{connect}");
    }
    let said = check(&["net_admin"]);
    assert!(line(&said, "rights").contains("lacks CAP_BPF"), "{said:?}");
}

#[test]
fn rights_that_hooks_lack_are_named_by_the_agent() {
    if lacks(&[Need::Kernel]) {
        return;
    }
    let (group, dir) = (Cgroup::new("g"), Temp::new());
    let run = |bpffs: &Path, powers: &[&str]| {
        let text = format!(
            "name: rights-{}\nports: {{admin: \"127.0.0.1:0\", outbound: 0, dns: 0}}\n\
             capture: {{mode: ebpf, bpffs: {}, enroll: [{{cgroup: {}}}]}}\n",
            std::process::id(),
            bpffs.display(),
            group.path().display()
        );
        let file = dir.write("mesh.yaml", text);
        sockmesh("run -c").arg(file.display()).powers(powers).run().failed()
    };
    let bpffs = Bpffs::new();
    let said = run(&bpffs.0, &["net_admin", "perfmon"]);
    assert!(said.contains("lacks CAP_BPF"), "{said}");
    let said = run(&bpffs.0, &["bpf", "perfmon"]);
    assert!(said.contains("lacks CAP_NET_ADMIN"), "{said}");
    if !mitigations_are_off() {
        let said = run(&bpffs.0, &TWO);
        assert!(said.contains("it takes CAP_PERFMON: run as root, or grant it"), "{said}");
        assert!(!bpffs.pins().exists(), "a start that fails leaves nothing");
    }
    let none = dir.file("none");
    std::fs::create_dir(&none).unwrap();
    let said = run(&none, &HOOKS);
    assert!(said.contains("mounting one takes CAP_SYS_ADMIN") && said.contains("mount -t bpf bpf"), "{said}");
}
