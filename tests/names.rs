//! Services have names, whatever resolver a program uses, and no program loses its own resolver.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use host::{
    Agent, Backend, Cgroup, Cmd, Need, Net, Temp,
    agent::Settings,
    lacks,
    program::{go, musl, python},
    temp, until,
};

/// What the resolver of these tests answers for every name but those that begin with `big`.
const ELSEWHERE: &str = "192.0.2.7";
/// How many addresses names that begin with `big` have: too many for a datagram.
const BIG: u16 = 200;

/// A resolver made by the test. Its threads end with the test's process.
struct Resolver {
    ip: IpAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    udp: AtomicUsize,
    tcp: AtomicUsize,
    ports: Mutex<BTreeSet<u16>>,
}

impl Resolver {
    /// One on a loopback address of its own.
    fn new() -> Self {
        let [a, b] = [std::process::id(), temp::serial()].map(|n| (n % 250) as u8 + 1);
        Self::at(Ipv4Addr::new(127, 53, a, b).into())
    }

    fn at(ip: IpAddr) -> Self {
        let at = SocketAddr::new(ip, 53);
        let (udp, tcp) = (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap());
        let seen = Arc::new(Seen::default());
        let counted = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((n, from)) = udp.recv_from(&mut buffer) {
                counted.udp.fetch_add(1, Relaxed);
                counted.ports.lock().unwrap().insert(from.port());
                let _ = udp.send_to(&answer(&buffer[..n], true), from);
            }
        });
        let counted = seen.clone();
        std::thread::spawn(move || {
            for mut io in tcp.incoming().flatten() {
                let counted = counted.clone();
                std::thread::spawn(move || {
                    let mut length = [0; 2];
                    while io.read_exact(&mut length).is_ok() {
                        let mut question = vec![0; u16::from_be_bytes(length).into()];
                        if io.read_exact(&mut question).is_err() {
                            return;
                        }
                        counted.tcp.fetch_add(1, Relaxed);
                        let answer = answer(&question, false);
                        let framed = [&(answer.len() as u16).to_be_bytes(), &answer[..]].concat();
                        if io.write_all(&framed).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { ip, seen }
    }

    fn asked(&self) -> usize {
        self.seen.udp.load(Relaxed) + self.seen.tcp.load(Relaxed)
    }
}

/// The question with addresses behind it: for A what the constants say, for all else none.
fn answer(question: &[u8], datagram: bool) -> Vec<u8> {
    let name = 12 + question[12..].iter().position(|b| *b == 0).unwrap() + 1;
    let big = question[13..].starts_with(b"big");
    let cut = big && datagram;
    let count = match question[name..name + 2] {
        [0, 1] if big && !cut => BIG,
        [0, 1] if !cut => 1,
        _ => 0,
    };
    let mut answer = question[..name + 4].to_vec();
    answer[2..4].copy_from_slice(&[if cut { 0x83 } else { 0x81 }, 0x80]);
    answer[6..12].copy_from_slice(&[(count >> 8) as u8, count as u8, 0, 0, 0, 0]);
    for n in 0..count {
        let last = if big { n as u8 } else { 7 };
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, last]);
    }
    answer
}

/// An agent with the services `web` (its own address) and `plain` (a virtual one), callers, a resolver.
struct World {
    callers: Cgroup,
    agent: Agent,
    resolver: Resolver,
    dir: Temp,
    _web: Backend,
}

impl World {
    fn new(mode: &str) -> Self {
        Self::of(Cgroup::new("callers"), mode, "", true)
    }

    /// With `callers` enrolled from the beginning, or nobody.
    fn of(callers: Cgroup, mode: &str, capture: &str, enrolled: bool) -> Self {
        let web = Backend::named("web");
        let services = format!(
            "referers:
  - {{service: web, group: idc-a, protocol: http, address: \"240.0.0.1:80\", endpoints: [{0}]}}
  - {{service: com.example.Plain_One, protocol: http, endpoints: [{0}]}}
",
            web.addr()
        );
        let enroll = [&callers];
        let settings = Settings { enroll: if enrolled { &enroll } else { &[] }, mode, capture, ..Settings::default() };
        let agent = Agent::with(&settings, &services);
        Self { callers, agent, resolver: Resolver::new(), dir: Temp::new(), _web: web }
    }

    /// Runs `line` as a caller whose `/etc/resolv.conf` names `resolver`.
    fn with_resolver(&self, resolver: IpAddr, cmd: &[&str]) -> Cmd {
        self.with_resolvers(&[resolver], cmd)
    }

    /// The same with several.
    fn with_resolvers(&self, resolvers: &[IpAddr], cmd: &[&str]) -> Cmd {
        let lines: String = resolvers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
        let file = self.dir.write(&format!("resolv.conf-{}", temp::serial()), format!("{lines}options timeout:2\n"));
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let cmd = Cmd::line("unshare -m sh -c").arg(script).arg(file.display()).args(cmd);
        cmd.cgroup(&self.callers)
    }

    fn glibc(&self, line: &str) -> String {
        let words: Vec<_> = line.split(' ').collect();
        self.with_resolver(self.resolver.ip, &words).run().ok()
    }

    fn python(&self, args: &[&str]) -> String {
        python("names.py").args(args).cgroup(&self.callers).run().ok().trim().to_owned()
    }

    /// The virtual address of `plain`.
    fn plain(&self) -> String {
        self.plain_of("ipv4")
    }

    fn plain_of(&self, family: &str) -> String {
        let names = self.agent.json("/names");
        let rows = names["names"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == "com.example.plain-one.mesh").unwrap();
        row[family].as_str().unwrap().to_owned()
    }

    /// The answers to all that a C library may be asked.
    fn expected(&self) -> String {
        let mut plain = [self.plain(), self.plain_of("ipv6")];
        plain.sort();
        format!(
            "web.mesh 240.0.0.1\ncom.example.plain-one.mesh {}\nnone.mesh not found\nwww.example {ELSEWHERE}\n",
            plain.join(" ")
        )
    }
}

#[test]
fn names_over_tcp_stay_on_tcp() {
    if lacks(&[Need::Kernel, Need::Program("python3")]) {
        return;
    }
    let world = World::of(Cgroup::new("callers"), "", "redirect: on", true);
    assert_eq!(world.python(&["stream", &world.resolver.ip.to_string(), "web.mesh"]), "0 240.0.0.1");
    assert_eq!(world.agent.metric("sockmesh_names_questions_total", &["transport=\"tcp\""]), 1.0);
}

#[test]
fn names_glibc() {
    if lacks(&[Need::Kernel, Need::Program("curl"), Need::Program("getent"), Need::Program("unshare")]) {
        return;
    }
    let mut world = World::new("");
    assert_eq!(world.glibc("curl -sS -m 20 http://web.mesh/"), "web");
    assert_eq!(world.glibc("curl -sS -m 20 http://WEB.idc-a.mesh./"), "web");
    assert_eq!(world.glibc("curl -sS -m 20 http://com.example.plain-one.mesh:1234/"), "web");
    assert_eq!(world.resolver.asked(), 0, "names of services do not leave the host");
    let first = |name: &str| world.glibc(&format!("getent ahostsv4 {name}")).split(' ').next().map(str::to_owned);
    assert_eq!(first("web.mesh").as_deref(), Some("240.0.0.1"));
    assert_eq!(first("www.example").as_deref(), Some(ELSEWHERE));
    let big = world.glibc("getent ahostsv4 big.example");
    assert_eq!(big.matches("STREAM").count(), usize::from(BIG), "a truncated answer is asked for again over TCP");
    assert!(world.resolver.seen.tcp.load(Relaxed) > 0);
    world.with_resolver(world.resolver.ip, &["getent", "ahosts", "none.mesh"]).run().failed();
    let said = world.agent.cli("names").ok();
    assert!(said.contains("web.idc-a.mesh") && said.contains("240.0.0.1"), "{said}");
    assert!(world.agent.metric("sockmesh_names_answered_total", &[]) >= 5.0);
    assert!(world.agent.metric("sockmesh_names_questions_total", &["transport=\"tcp\""]) >= 1.0);
    let plain = world.plain();
    world.agent.stop();
    world.agent.again();
    assert_eq!(world.plain(), plain, "stable across restarts");
}

#[test]
fn names_small_resolvers_see_the_resolver_they_asked() {
    if lacks(&[Need::Kernel, Need::Program("python3")]) {
        return;
    }
    let world = World::new("");
    let resolver = world.resolver.ip.to_string();
    for how in ["sendto", "mapped", "connected"] {
        assert_eq!(world.python(&["ask", how, &resolver, "web.mesh"]), "0 240.0.0.1", "{how}");
        assert_eq!(world.python(&["ask", how, &resolver, "www.example"]), format!("0 {ELSEWHERE}"), "{how}");
        assert_eq!(world.python(&["ask", how, &resolver, "web.mesh", "28"]), "0", "{how}: no AAAA, no waiting");
        assert_eq!(world.python(&["ask", how, &resolver, "web.mesh", "65"]), "0", "{how}: no HTTPS");
        assert_eq!(world.python(&["ask", how, &resolver, "none.mesh"]), "3", "{how}");
    }
    let dead = format!("127.53.{}.251", std::process::id() % 250 + 1);
    assert_eq!(world.python(&["ask", "sendto", &dead, "web.mesh"]), "0 240.0.0.1", "nobody need be there");
    assert_eq!(world.python(&["ask", "sendto", &dead, "www.example"]), "2", "SERVFAIL, at once");
}

#[test]
fn names_ipv6_resolver() {
    if lacks(&[Need::Kernel, Need::Program("python3"), Need::Program("curl")]) {
        return;
    }
    let world = World::new("");
    let six = Resolver::at(Ipv6Addr::LOCALHOST.into());
    for how in ["six", "connected"] {
        assert_eq!(world.python(&["ask", how, "::1", "web.mesh"]), "0 240.0.0.1", "{how}");
        assert_eq!(world.python(&["ask", how, "::1", "www.example"]), format!("0 {ELSEWHERE}"), "{how}");
        assert_eq!(world.python(&["ask", how, "fd00:5eed::53", "web.mesh"]), "0 240.0.0.1", "{how}");
    }
    let via = |cmd: &[&str]| world.with_resolver(six.ip, cmd).run().ok();
    assert_eq!(via(&["curl", "-sS", "-m", "20", "http://web.mesh/"]), "web");
    assert_eq!(via(&["getent", "ahostsv4", "big.example"]).matches("STREAM").count(), usize::from(BIG));
    assert!(six.seen.tcp.load(Relaxed) > 0);
}

#[test]
fn names_go() {
    if lacks(&[Need::Kernel, Need::Program("go"), Need::Program("unshare")]) {
        return;
    }
    let world = World::new("");
    let program = go("names.go").program().to_owned();
    let mut cmd = vec!["env", "GODEBUG=netdns=go", &program];
    cmd.extend(["web.mesh", "none.mesh", "_http._tcp.web.mesh", "www.example", "big.example"]);
    let said = world.with_resolver(world.resolver.ip, &cmd).run().ok();
    let expected = format!(
        "web.mesh [240.0.0.1]\nnone.mesh not found\n_http._tcp.web.mesh web.mesh. 80\n\
         www.example [{ELSEWHERE}]\nbig.example {BIG}\n"
    );
    assert_eq!(said, expected);
}

/// What a program wrote, with the addresses of each line in order.
fn in_order(said: &str) -> String {
    let line = |line: &str| {
        let mut words: Vec<_> = line.split(' ').collect();
        if !line.ends_with("not found") {
            words[1..].sort_unstable();
        }
        words.join(" ") + "\n"
    };
    said.lines().map(line).collect()
}

const ALL: [&str; 4] = ["web.mesh", "com.example.plain-one.mesh", "none.mesh", "www.example"];

#[test]
fn names_musl() {
    if lacks(&[Need::Kernel, Need::Program("musl-gcc"), Need::Program("unshare")]) {
        return;
    }
    let world = World::new("");
    let program = musl("names.c").program().to_owned();
    let cmd = [&[program.as_str()], &ALL[..]].concat();
    let (second, dead) = (Resolver::new(), Ipv4Addr::new(127, 53, 251, (std::process::id() % 250) as u8).into());
    // It asks every resolver of the file at once, from one socket that is not connected.
    for resolvers in [&[world.resolver.ip][..], &[world.resolver.ip, second.ip], &[dead, world.resolver.ip, second.ip]]
    {
        let said = world.with_resolvers(resolvers, &cmd).run().ok();
        assert_eq!(in_order(&said), world.expected(), "{resolvers:?}");
    }
    assert!(world.resolver.asked() >= 6 && second.asked() >= 4, "each of them was asked for what is not ours");
}

#[test]
fn names_of_both_families_at_once_from_one_socket() {
    if lacks(&[Need::Kernel, Need::Program("python3")]) {
        return;
    }
    let world = World::new("");
    let (first, second) = (world.resolver.ip.to_string(), Resolver::new());
    let second = second.ip.to_string();
    let mut plain = [world.plain(), world.plain_of("ipv6")];
    plain.sort();
    for resolvers in [&[first.as_str()][..], &[&first, &second], &[&first, "fd00:5eed::53", &second]] {
        let both = |name: &str| world.python(&[&["both", name], resolvers].concat());
        assert_eq!(both("com.example.plain-one.mesh"), plain.join(" "), "{resolvers:?}");
        assert_eq!(both("web.mesh"), "240.0.0.1", "{resolvers:?}");
        assert_eq!(both("www.example"), ELSEWHERE, "{resolvers:?}");
    }
}

#[test]
fn names_in_another_network_namespace() {
    let programs = ["python3", "curl", "unshare", "ip", "musl-gcc"].map(Need::Program);
    if lacks(&[&[Need::Kernel][..], &programs].concat()) {
        return;
    }
    // A resolver on loopback inside, as systemd-resolved is one; the agent is outside.
    let (net, callers) = (Net::new(), Cgroup::new("callers"));
    let mode = format!("ebpf, root: {}", callers.path().display());
    let mut world = World::of(callers, &mode, "", false);
    let (stub, six) = {
        let _inside = net.enter();
        (Resolver::at(Ipv4Addr::new(127, 0, 0, 53).into()), Resolver::at(Ipv6Addr::LOCALHOST.into()))
    };
    let here = |cmd: &[&str]| world.with_resolver(stub.ip, cmd).netns(&net);
    let web = ["curl", "-sS", "-m", "20", "http://web.mesh/"];
    here(&web).run().failed();
    world.agent.cli(&format!("enroll netns:/run/netns/{}", net.name())).ok();
    until("the agent is in there", || here(&web).run().out == "web");
    let asked = stub.asked();
    assert_eq!(here(&web).run().ok(), "web");
    assert_eq!(here(&["curl", "-sS", "-m", "20", "http://com.example.plain-one.mesh:1234/"]).run().ok(), "web");
    assert_eq!(stub.asked(), asked, "names of services do not get as far as the resolver");
    let first = |name: &str| here(&["getent", "ahostsv4", name]).run().ok().split(' ').next().map(str::to_owned);
    assert_eq!(first("www.example").as_deref(), Some(ELSEWHERE), "who else is asked than the resolver inside?");
    assert!(stub.asked() > asked && world.resolver.asked() == 0);
    let big = here(&["getent", "ahostsv4", "big.example"]).run().ok();
    assert_eq!(big.matches("STREAM").count(), usize::from(BIG));
    assert!(stub.seen.tcp.load(Relaxed) > 0);

    let program = musl("names.c").program().to_owned();
    let cmd = [&[program.as_str()], &ALL[..]].concat();
    for resolvers in [&[stub.ip][..], &[six.ip], &[stub.ip, six.ip]] {
        let said = world.with_resolvers(resolvers, &cmd).netns(&net).run().ok();
        assert_eq!(in_order(&said), world.expected(), "{resolvers:?}");
    }
    assert!(six.asked() > 0);
    let python = |args: &[&str]| python("names.py").args(args).cgroup(&world.callers).netns(&net).run().ok();
    for how in ["sendto", "mapped", "connected"] {
        assert_eq!(python(&["ask", how, "127.0.0.53", "web.mesh"]).trim(), "0 240.0.0.1", "{how}");
        assert_eq!(python(&["ask", how, "127.0.0.53", "www.example"]).trim(), format!("0 {ELSEWHERE}"), "{how}");
    }
    let many = python(&["many", "127.0.0.53", "400"]);
    assert_eq!(many.trim(), format!("{ELSEWHERE} 200 240.0.0.1 200"));
    assert_eq!(world.agent.metric("sockmesh_names_failed_total", &[]), 0.0);

    // Whoever is released, or whose agent is gone, has the resolver alone again.
    let asks = || python(&["ask", "sendto", "127.0.0.53", "web.mesh"]).trim().to_owned();
    let direct = format!("0 {ELSEWHERE}");
    world.agent.cli(&format!("release netns:/run/netns/{}", net.name())).ok();
    assert_eq!(asks(), direct);
    world.agent.cli(&format!("enroll netns:/run/netns/{}", net.name())).ok();
    until("the agent is in there again", || asks() == "0 240.0.0.1");
    world.agent.kill9();
    let asks = || {
        let ask = host::program::python("names.py").args(["ask", "sendto", "127.0.0.53", "web.mesh"]);
        // What is asked before the death is noticed gets no answer.
        ask.cgroup(&world.callers).netns(&net).run().out.trim().to_owned()
    };
    until("a dead agent is passed by", || asks() == direct);
}

#[test]
fn names_reach_programs_of_a_group_wherever_they_live() {
    if lacks(&[Need::Kernel, Need::Program("python3"), Need::Program("ip")]) {
        return;
    }
    let (world, net) = (World::new(""), Net::new());
    let stub = {
        let _inside = net.enter();
        Resolver::at(Ipv4Addr::new(127, 0, 0, 53).into())
    };
    let ask = python("names.py").args(["ask", "sendto", "127.0.0.53", "web.mesh"]).cgroup(&world.callers);
    let here = ask.netns(&net);
    // Asking is enough for the agent to come; nobody connects.
    until("the agent is in there", || here.run().ok().trim() == "0 240.0.0.1");
    assert!(stub.asked() > 0, "the first question went to the resolver");
    let other = python("names.py").args(["ask", "sendto", "127.0.0.53", "www.example"]).cgroup(&world.callers);
    assert_eq!(other.netns(&net).run().ok().trim(), format!("0 {ELSEWHERE}"));
}

#[test]
fn names_many_at_once() {
    if lacks(&[Need::Kernel, Need::Program("python3")]) {
        return;
    }
    let world = World::new("");
    let said = world.python(&["many", &world.resolver.ip.to_string(), "400"]);
    assert_eq!(said, format!("{ELSEWHERE} 200 240.0.0.1 200"));
    assert_eq!(world.resolver.seen.udp.load(Relaxed), 200);
    let ports = world.resolver.seen.ports.lock().unwrap().len();
    assert!(ports > 150, "the agent asks from a new port each time: {ports}");
    assert_eq!(world.agent.metric("sockmesh_names_failed_total", &[]), 0.0);
}

#[test]
fn names_resolvers_are_asked_directly_when_the_agent_is_gone() {
    if lacks(&[Need::Kernel, Need::Program("python3")]) {
        return;
    }
    let mut world = World::new("");
    let resolver = world.resolver.ip.to_string();
    let asks =
        |world: &World| python("names.py").args(["ask", "sendto", &resolver, "web.mesh"]).cgroup(&world.callers).run();
    assert_eq!(asks(&world).ok().trim(), "0 240.0.0.1");
    let direct = format!("0 {ELSEWHERE}");
    world.agent.pause();
    until("a silent agent is passed by", || {
        let out = asks(&world);
        out.out.trim() == direct
    });
    world.agent.resume();
    until("it is back", || asks(&world).out.trim() == "0 240.0.0.1");
    world.agent.kill9();
    until("a dead agent is passed by", || asks(&world).out.trim() == direct);
    world.agent.again();
    assert_eq!(asks(&world).ok().trim(), "0 240.0.0.1");
    world.agent.stop();
    assert_eq!(asks(&world).ok().trim(), direct);
}

#[test]
fn names_can_be_turned_off() {
    if lacks(&[Need::Kernel, Need::Program("python3")]) {
        return;
    }
    let callers = Cgroup::new("callers");
    let settings = Settings { enroll: &[&callers], mode: "ebpf, dns: false", ..Settings::default() };
    let services = "referers: [{service: web, address: \"240.0.0.1:80\", endpoints: [\"127.0.0.1:9\"]}]\n";
    let agent = Agent::with(&settings, services);
    let resolver = Resolver::new();
    let ask = python("names.py").args(["ask", "sendto", &resolver.ip.to_string(), "web.mesh"]).cgroup(&callers);
    assert_eq!(ask.run().ok().trim(), format!("0 {ELSEWHERE}"));
    assert!(agent.cli("names").ok().contains("no names"));
}
