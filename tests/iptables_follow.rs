//! The mode `iptables` follows who is enrolled and what the file says, and is chosen where nothing better works.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use host::{
    Agent, Backend, Cgroup, Cmd, Need, Net, Temp, agent::Settings, agent::sockmesh, lacks, need::which, net::Inside,
    until,
};
use serde_json::Value;

use crate::iptables::PROGRAMS;

const WEB: &str = "240.0.0.1:80";

/// An agent that has enrolled nobody of interest, in a namespace that this thread is in.
struct World {
    agent: Agent,
    /// Behind the service `web`.
    meshed: Backend,
    /// An address of the service `web`, reached when it is left alone.
    direct: Backend,
    services: String,
    _nobody: Cgroup,
    _inside: Inside,
    _net: Net,
}

impl World {
    fn new(mode: &str, capture: &str) -> Option<Self> {
        Self::started(mode, capture, None)
    }

    /// Its programs are searched in the folder `path` first.
    fn started(mode: &str, capture: &str, path: Option<&Path>) -> Option<Self> {
        if lacks(&[Need::Kernel]) || lacks(&PROGRAMS.map(Need::Program)) {
            return None;
        }
        let (net, nobody) = (Net::new(), Cgroup::new("nobody"));
        let inside = net.enter();
        let (meshed, direct) = (Backend::named("meshed"), Backend::named("direct"));
        let services = format!(
            "referers:\n  - {{service: web, protocol: http, address: [\"{WEB}\", \"{}\"], endpoints: [{}]}}\n",
            direct.addr(),
            meshed.addr()
        );
        let settings = Settings { enroll: &[&nobody], mode, capture, path, ..Settings::default() };
        let agent = Agent::with(&settings, &services);
        Some(Self { agent, meshed, direct, services, _nobody: nobody, _inside: inside, _net: net })
    }

    /// Who answers a program in `group` that becomes `uid` first.
    fn who(&self, group: &Cgroup, uid: u32) -> String {
        let script = "import os, socket, sys\n\
                      os.setresuid(*3 * [int(sys.argv[3])])\n\
                      s = socket.socket(); s.settimeout(10); s.connect((sys.argv[1], int(sys.argv[2])))\n\
                      s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n\
                      data = b''\n\
                      while not data.endswith((b'direct', b'meshed')): data += s.recv(999) or sys.exit('cut')\n\
                      print(data.decode().rsplit('\\n', 1)[-1])";
        let at = self.direct.addr();
        let run =
            Cmd::line("python3 -c").arg(script).args([at.ip().to_string(), at.port().to_string(), uid.to_string()]);
        run.cgroup(group).run().ok().trim().to_owned()
    }
}

fn follows(backend: &str) {
    let Some(world) = World::new("iptables", &format!("iptables: {backend}")) else { return };
    // Tests beside this one have groups of their own.
    let name = format!("shop-{backend}");
    let first = Cgroup::new(&name);
    assert_eq!(world.who(&first, 0), "direct");

    // By pattern: those that are there, and those that come and go.
    let folder = first.path().parent().unwrap().display().to_string();
    let pattern = format!("{folder}/*-{name}");
    world.agent.cli(&format!("enroll {pattern}")).ok();
    assert_eq!(world.who(&first, 0), "meshed");
    let second = Cgroup::new(&name);
    until("one that came later is enrolled", || world.who(&second, 0) == "meshed");
    // Made anew under the same path it is another group to the kernel's rules.
    fs::remove_dir(first.path()).unwrap();
    let path = format!("\"{}\"", first.path().display());
    until("its rule is gone", || !world.agent.page("/enrolled").contains(&path));
    fs::create_dir(first.path()).unwrap();
    until("the new one of that name is enrolled", || world.who(&first, 0) == "meshed");
    world.agent.cli(&format!("release {pattern}")).ok();
    for group in [&first, &second] {
        assert_eq!(world.who(group, 0), "direct");
    }

    // By user, in whatever group, and on trial.
    assert!(world.agent.cli("enroll uid:12345 --confirm-within 60s").ok().contains("unless"));
    assert_eq!((&*world.who(&first, 0), &*world.who(&first, 12345)), ("direct", "meshed"));
    world.agent.cli("release uid:12345").ok();
    assert_eq!(world.who(&second, 12345), "direct");

    // By namespace: this one is everyone, and no other can be.
    let other = Net::new();
    let said = world.agent.cli(&format!("enroll netns:/run/netns/{}", other.name())).failed();
    assert!(said.contains("cannot be enrolled by rules"), "{said}");
    world.agent.cli(&format!("enroll netns:/proc/{}/ns/net", world.agent.pid())).ok();
    assert_eq!(world.who(&first, 0), "meshed");
}

#[test]
fn iptables_follows_groups_and_users_with_nft() {
    follows("nft");
}

#[test]
fn iptables_follows_groups_and_users_with_iptables() {
    follows("iptables");
}

fn reloads(backend: &str) {
    let Some(world) = World::new("iptables", &format!("iptables: {backend}")) else { return };
    let group = Cgroup::new("callers");
    world.agent.cli(&format!("enroll {}", group.path().display())).ok();
    // One connection after another until its input ends; each that reaches the other server is told.
    let script = "import select, socket, sys\n\
                  at, calls, wrong = (sys.argv[1], int(sys.argv[2])), 0, []\n\
                  open(sys.argv[3], 'w').close()\n\
                  import os\n\
                  while os.path.exists(sys.argv[3]):\n\
                  \x20   s = socket.socket(); s.settimeout(10)\n\
                  \x20   try:\n\
                  \x20       s.connect(at); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); data = b''\n\
                  \x20       while not data.endswith((b'direct', b'meshed')): data += s.recv(999) or 1 / 0\n\
                  \x20       if data.endswith(b'direct'): wrong.append('past the mesh')\n\
                  \x20   except Exception as e: wrong.append(repr(e))\n\
                  \x20   s.close(); calls += 1\n\
                  print(calls, wrong[:3])";
    let at = world.direct.addr();
    let flag = world.agent.dir().file("calling");
    let log = world.agent.dir().file("calls.log");
    let mut calling = Cmd::line("python3 -c")
        .arg(script)
        .args([at.ip().to_string(), at.port().to_string(), flag.display().to_string()])
        .cgroup(&group)
        .spawn(&log);
    until("it calls", || flag.exists());
    for n in 0..20 {
        // Another service comes and goes, for both families.
        let more = format!(
            "  - {{service: more, protocol: http, address: [\"240.0.1.{n}:80\", \"[fd00:5eed::{n}]:80\"], endpoints: [{}]}}\n",
            world.meshed.addr()
        );
        world.agent.rewrite(&format!("{}{}", world.services, if n % 2 == 0 { &more } else { "" }));
        world.agent.cli("reload").ok();
    }
    fs::remove_file(&flag).unwrap();
    assert!(calling.wait().success());
    let said = calling.said();
    let (calls, wrong) = said.trim().split_once(' ').unwrap();
    assert_eq!(wrong, "[]", "no call sees a rule missing");
    assert!(calls.parse::<u32>().unwrap() > 20, "{said}");
}

#[test]
fn iptables_reloads_without_a_gap_with_nft() {
    reloads("nft");
}

#[test]
fn iptables_reloads_without_a_gap_with_iptables() {
    reloads("iptables");
}

#[test]
fn iptables_brings_the_kernel_way_to_the_agent_unless_it_has_a_policy() {
    let Some(world) = World::new("iptables", "iptables: auto") else { return };
    let group = Cgroup::new("callers");
    world.agent.cli(&format!("enroll {}", group.path().display())).ok();
    let services = world.services.replace("protocol: http", "protocol: tcp, path: kernel");
    world.agent.rewrite(&services);
    world.agent.cli("reload").ok();
    assert_eq!(world.who(&group, 0), "meshed");
    assert_eq!(world.agent.metric("sockmesh_capture_total", &["outcome=\"redirected\""]), 1.0);
    world.agent.rewrite(&services.replace("path: kernel", "path: kernel, deny: [{uid: 12345}]"));
    let said = world.agent.cli("reload").failed();
    assert!(said.contains("`web`") && said.contains("needs `capture: ebpf`"), "{said}");
    assert_eq!(world.who(&group, 0), "meshed", "what was in force stays");
}

#[test]
fn iptables_is_what_auto_takes_where_hooks_cannot_be_and_it_says_why() {
    // Maps and links have nowhere to be kept: the hooks cannot be used.
    let Some(mut world) = World::new("auto", "bpffs: /dev/null") else { return };
    let chosen = |agent: &Agent| {
        let config = agent.json("/config");
        let word = |key: &str| config[key].as_str().unwrap().to_owned();
        (word("capture"), word("capture_reason"))
    };
    let (name, reason) = chosen(&world.agent);
    assert_eq!(name, "iptables", "{reason}");
    assert!(reason.contains("no eBPF here: ") && reason.contains("/dev/null"), "{reason}");
    assert!(world.agent.log().contains("capture=\"iptables\"") && world.agent.log().contains("no eBPF here"));
    let stat = world.agent.cli("stat --once").ok();
    assert!(stat.contains("capture iptables: ") && stat.contains("no eBPF here"), "{stat}");
    let file = world.agent.dir().file("mesh.yaml");
    let check = |file: &Path| sockmesh("check -c").arg(file.display()).run().out;
    let line = |said: String| said.lines().find(|l| l.contains("capture: auto")).unwrap_or_default().to_owned();
    let said = line(check(&file));
    assert!(said.contains("`iptables`, no eBPF here: bpffs: /dev/null is no directory"), "{said}");
    let group = Cgroup::new("callers");
    world.agent.cli(&format!("enroll {}", group.path().display())).ok();
    assert_eq!(world.who(&group, 0), "meshed");

    // Rules cannot tell another namespace, so that `auto` goes down to `port`, and leaves nothing in the kernel.
    let other = Net::new();
    world.agent.kill9();
    let enroll = format!("netns: /run/netns/{}", other.name());
    let path = format!("cgroup: {}", world._nobody.path().display());
    let services = world.services.clone();
    world.agent.rewrite_head(&path, &enroll, &services);
    world.agent.again();
    let (name, reason) = chosen(&world.agent);
    assert_eq!(name, "port", "{reason}");
    assert!(reason.contains("no eBPF here: ") && reason.contains("; no iptables here: "), "{reason}");
    assert!(reason.contains(other.name()), "{reason}");
    assert!(!Cmd::line("nft list tables").run().out.contains("sockmesh"));
    let said = line(check(&file));
    assert!(said.contains("`port`, no eBPF here: ") && said.contains("no iptables here: "), "{said}");

    // And with nothing in the way it is `ebpf`.
    world.agent.stop();
    world.agent.rewrite_head(&enroll, &path, &services);
    world.agent.rewrite_head(", bpffs: /dev/null", "", &services);
    world.agent.again();
    assert_eq!(chosen(&world.agent).0, "ebpf");
    assert!(line(check(&file)).contains("`ebpf`"));
}

/// Stand-ins for the programs that write rules, on a kernel that has no match for control groups: they refuse what has
/// one, in the words of the real ones, and are the real ones otherwise.
fn without_cgroup_match() -> Temp {
    let dir = Temp::new();
    for (program, word, says) in [
        ("iptables-restore", "-m cgroup", "iptables-restore: Couldn't load match cgroup: No such file or directory"),
        ("ip6tables-restore", "-m cgroup", "ip6tables-restore: Couldn't load match cgroup: No such file or directory"),
        ("nft", "socket cgroupv2", "Error: Could not process rule: No such file or directory"),
    ] {
        let real = which(program).unwrap();
        let file = dir.write(
            program,
            format!(
                "#!/bin/sh\nrules=$(cat)\ncase $rules in *'{word}'*) echo \"{says}\" >&2; exit 2;; esac\n\
                 printf '%s\\n' \"$rules\" | exec {} \"$@\"\n",
                real.display()
            ),
        );
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

fn widens(backend: &str) {
    let programs = without_cgroup_match();
    let Some(world) = World::started("iptables", &format!("iptables: {backend}"), Some(programs.path())) else {
        return;
    };
    let reason = world.agent.json("/config")["capture_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("EVERY program of this network namespace"), "{reason}");
    assert!(world.agent.cli("stat --once").ok().contains("EVERY program"), "operators see it");
    // Nobody enrolled this group, and the agent's own connections still arrive.
    let stranger = Cgroup::new("stranger");
    assert_eq!(world.who(&stranger, 0), "meshed");
    assert_eq!(world.who(&stranger, 1234), "meshed");
    assert!(world.meshed.accepted() > 0 && world.direct.accepted() == 0);
    // Nobody at all: then nothing is redirected either.
    world.agent.cli(&format!("release {}", world._nobody.path().display())).ok();
    assert_eq!(world.who(&stranger, 0), "direct");
    let file = world.agent.dir().file("mesh.yaml");
    let path = format!("PATH={}:{}", programs.path().display(), std::env::var("PATH").unwrap_or_default());
    let said = sockmesh("check -c").arg(file.display()).under(&["env", &path]).run().out;
    assert!(said.contains("it redirects everyone"), "{said}");
}

#[test]
fn iptables_widens_to_everybody_where_groups_cannot_be_matched_with_nft() {
    widens("nft");
}

#[test]
fn iptables_widens_to_everybody_where_groups_cannot_be_matched_with_iptables() {
    widens("iptables");
}

#[test]
fn iptables_never_widens_unless_it_is_asked_for_by_name() {
    let programs = without_cgroup_match();
    let Some(world) = World::started("auto", "bpffs: /dev/null", Some(programs.path())) else { return };
    let config = world.agent.json("/config");
    let reason = config["capture_reason"].as_str().unwrap();
    assert_eq!(config["capture"], "port", "{reason}");
    assert!(reason.contains("no iptables here: ") && reason.contains("No such file or directory"), "{reason}");
    assert_eq!(world.who(&world._nobody, 0), "direct");
}

#[test]
fn iptables_says_which_enrolled_programs_its_rules_do_not_reach() {
    let Some(world) = World::new("iptables", "iptables: auto") else { return };
    let (group, other, dir) = (Cgroup::new("callers"), Net::new(), Temp::new());
    world.agent.cli(&format!("enroll {}", group.path().display())).ok();
    let refused = || world.agent.json("/enrolled")["refused"].clone();
    let mut elsewhere = Cmd::line("sleep 300").cgroup(&group).netns(&other).spawn(&dir.file("sleep"));
    let _here = Cmd::line("sleep 300").cgroup(&group).spawn(&dir.file("sleep"));
    until("the one elsewhere is told", || refused().as_array().is_some_and(|notes| !notes.is_empty()));
    let said = world.agent.cli("enroll").ok();
    let wanted = format!("! process {} in another network namespace (net:[", elsewhere.pid());
    assert!(said.contains(&wanted) && said.contains("use `capture: ebpf`"), "{said}");
    assert!(world.agent.log().contains("enrolled programs that no rule reaches connect directly"));
    elsewhere.stop();
    until("nobody is told any more", || refused() == Value::Array(Vec::new()));
    // A namespace as a whole is refused at once.
    let said = world.agent.cli(&format!("enroll netns:/run/netns/{}", other.name())).failed();
    assert!(said.contains("cannot be enrolled by rules") && said.contains("`capture: ebpf`"), "{said}");
}
