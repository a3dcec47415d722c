//! Bytes past TCP on both legs, between programs nobody here wrote: learned, whole, and held back.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
};

use host::{
    Agent, Cgroup, Cmd, Need, Temp,
    agent::Settings,
    database, free_port, lacks,
    need::which,
    program::{self, Place, Server},
    until, until_some,
};

/// Programs and servers in two groups, both enrolled, and an agent that learns.
struct World {
    callers: Cgroup,
    agent: Agent,
}

impl World {
    /// The servers of `groups` are at the addresses of [`at`] for their places in `endpoints`.
    fn new(servers: &Cgroup, redirect: &str, endpoints: &[SocketAddr]) -> Self {
        let callers = Cgroup::new("callers");
        let services: String = endpoints
            .iter()
            .enumerate()
            .map(|(i, endpoint)| {
                format!("  - {{service: s{i}, protocol: tcp, address: \"{}\", endpoints: [{endpoint}]}}\n", at(i))
            })
            .collect();
        let settings = Settings { enroll: &[&callers, servers], capture: redirect, ..Settings::default() };
        let agent = Agent::with(&settings, &format!("referers:\n{services}"));
        until("the self-test has been made", || agent.page("/metrics").contains("sockmesh_redirect_selftest{"));
        Self { callers, agent }
    }

    fn counter(&self, outcome: &str) -> f64 {
        self.agent.metric("sockmesh_capture_total", &[&format!("outcome=\"{outcome}\"")])
    }

    /// Runs `call`, one connection that lasts long enough to be looked at, until both its legs are redirected.
    #[track_caller]
    fn learns(&self, what: &str, mut call: impl FnMut()) {
        let mut paired = 0.0;
        let learned = host::wait::within(host::wait::PATIENCE, || {
            let before = self.counter("paired");
            call();
            paired = self.counter("paired") - before;
            (paired >= 4.0).then_some(())
        });
        assert!(
            learned.is_some(),
            "{what}: {paired} sockets of one more connection entered the table\n{}",
            self.agent.page("/metrics")
        );
    }

    /// What is shown of the one connection to a service.
    #[track_caller]
    fn shown(&self, service: &str) -> String {
        let row = until_some("the connection is shown", || {
            let rows = self.agent.sockets();
            rows.into_iter().find(|row| row["service"] == service && row["sent_bytes"].as_u64() > Some(0))
        });
        row["redirect"].as_str().unwrap_or_else(|| panic!("no column for redirect: {row}")).to_owned()
    }

    fn curl(&self, args: &str) -> Cmd {
        Cmd::line(&format!("curl -sSf --max-time 50 {args}")).cgroup(&self.callers)
    }

    /// The messages that `action` redirected.
    #[track_caller]
    fn redirecting<T>(&self, action: impl FnOnce() -> T) -> T {
        let before = self.counter("redirected");
        let done = action();
        assert!(self.counter("redirected") > before, "nothing was redirected\n{}", self.agent.page("/metrics"));
        done
    }
}

/// The address of a service.
fn at(index: usize) -> String {
    format!("240.0.8.{}:80", index + 1)
}

/// What `sh` is to do in the group.
fn sh(group: &Cgroup, script: &str) -> Cmd {
    Cmd::new("sh").args(["-c", script]).cgroup(group)
}

/// Writes `bytes` of which no eight are like the eight at another place.
fn fill(path: &Path, bytes: usize) {
    let mut file = fs::File::create(path).unwrap();
    let mut block = vec![0; 1 << 20];
    for from in (0..bytes).step_by(block.len()) {
        for (i, word) in block.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&((from / 8 + i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        file.write_all(&block[..block.len().min(bytes - from)]).unwrap();
    }
}

/// An nginx with a file `big` of so many bytes, and where that is.
fn nginx(group: &Cgroup, bytes: usize) -> (Server, PathBuf) {
    let server = program::nginx("n", &Place { cgroup: Some(group), ..Place::default() });
    let big = server.dir().join("files/big");
    fill(&big, bytes);
    (server, big)
}

#[test]
fn redirect_auto_learns_programs_and_leaves_those_on_tcp_that_would_notice() {
    if lacks(&[Need::Kernel, Need::Program("nginx"), Need::Program("curl")])
        || lacks(&[Need::Program("python3"), Need::Program("go")])
    {
        return;
    }
    let servers = Cgroup::new("servers");
    let (server, big) = nginx(&servers, 8 << 20);
    let world = World::new(&servers, "redirect: auto", &[server.addr(), server.addr(), server.addr()]);
    // Long enough for a look at both programs.
    let slow = world.curl("--limit-rate 5M -o /dev/null http://240.0.8.1/files/big");
    assert_eq!(world.counter("paired"), 0.0);
    world.learns("curl and nginx", || drop(slow.run().ok()));
    let redirected = world.counter("redirected");
    assert!(redirected > 8.0, "{redirected} messages");
    let log = world.agent.dir().file("curl.log");
    let kept = world.curl("--limit-rate 1M -o /dev/null http://240.0.8.1/files/big").spawn(&log);
    assert_eq!(world.shown("s0"), "on");
    let table = world.agent.cli("sockets").ok();
    assert!(table.contains("REDIRECT") && table.contains(" on"), "{table}");
    drop(kept);

    // A program that blocks, and could splice: newer versions offer that, older ones do not.
    let paired = world.counter("paired");
    let log = world.agent.dir().file("python.log");
    let blocking = "import socket; s = socket.socket(); s.connect(('240.0.8.2', 80)); \
                    s.sendall(b'GET / HTTP/1.1\\r\\nHost: t\\r\\n\\r\\n'); s.recv(4096); s.recv(1)";
    let hold = || Cmd::new("/usr/bin/python3").args(["-c", blocking]).cgroup(&world.callers).spawn(&log);
    let reasons = ["off: can splice sockets", "off: uses blocking sockets"];
    let held = hold();
    until("python was looked at", || reasons.contains(&world.shown("s1").as_str()));
    drop(held);
    until("it is gone", || world.agent.sockets().is_empty());
    let held = hold();
    let shown = world.shown("s1");
    assert!(reasons.contains(&shown.as_str()), "{shown}");
    drop(held);
    // The other leg is nginx's, which is redirected whoever calls.
    assert_eq!(world.counter("paired") - paired, 4.0, "only nginx's legs");

    // A Go program, which would splice.
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let log = world.agent.dir().file("go.log");
    let proxy = program::go("copy.go").arg(listen).arg("240.0.8.3:80").cgroup(&world.callers).spawn(&log);
    until("the proxy listens", || proxy.said().contains("listens"));
    let through = |more: &str| Cmd::line(&format!("curl -sSf --max-time 50 {more} http://{listen}/files/big"));
    let log = world.agent.dir().file("curl2.log");
    let held = through("--limit-rate 1M -o /dev/null").spawn(&log);
    until("the proxy was looked at", || world.shown("s2") == "off: Go runtime splices");
    drop(held);
    let script = format!("curl -sSf --max-time 50 http://{listen}/files/big | cmp - {}", big.display());
    Cmd::new("sh").args(["-c", &script]).run().ok();
    assert_eq!(world.counter("pair_failed") + world.counter("pair_busy") + world.counter("pair_full"), 0.0);
}

/// Nobody knows a server before the first connection to it, which goes by TCP for life: calls that keep coming must not
/// keep it.
#[test]
fn redirect_reaches_calls_whose_connection_is_older_than_the_verdict() {
    if lacks(&[Need::Kernel, Need::Program("nginx"), Need::Program("curl")]) {
        return;
    }
    let servers = Cgroup::new("servers");
    let (server, _) = nginx(&servers, 100);
    let settings = Settings { enroll: &[&servers], capture: "redirect: auto", ..Settings::default() };
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let service = format!("{{service: s, protocol: http, listen: \"{listen}\", endpoints: [{}]}}", server.addr());
    let agent = Agent::with(&settings, &format!("referers:\n  - {service}\n"));
    until("the self-test has been made", || agent.page("/metrics").contains("sockmesh_redirect_selftest{"));
    let call = || assert_eq!(Cmd::line(&format!("curl -sSf --max-time 50 http://{listen}/")).run().ok(), "n");
    let redirected = || agent.metric("sockmesh_capture_total", &["outcome=\"redirected\""]);
    call();
    assert_eq!(redirected(), 0.0, "the first connection is dialled before nginx is known");
    until("calls go past TCP", || {
        call();
        redirected() > 0.0
    });
}

#[test]
fn redirect_moves_a_gigabyte_unchanged_and_holds_little_of_it() {
    if lacks(&[Need::Kernel, Need::Program("nginx"), Need::Program("curl"), Need::Program("cmp")]) {
        return;
    }
    let _heavy = host::heavy();
    let servers = Cgroup::new("servers");
    let (server, big) = nginx(&servers, 1 << 30);
    let world = World::new(&servers, "redirect: auto", &[server.addr()]);
    let slow = world.curl("--limit-rate 5M -r 0-8000000 -o /dev/null http://240.0.8.1/files/big");
    world.learns("curl and nginx", || drop(slow.run().ok()));

    let before = world.agent.memory();
    // By write() and by sendfile().
    for path in ["files", "sent"] {
        let script = format!("set -e; curl -sSf --max-time 100 http://240.0.8.1/{path}/big | cmp - {}", big.display());
        let (paired, messages) = (world.counter("paired"), world.counter("redirected"));
        sh(&world.callers, &script).limit(std::time::Duration::from_secs(110)).run().ok();
        assert_eq!(world.counter("paired") - paired, 4.0, "both legs of {path}");
        let messages = world.counter("redirected") - messages;
        assert!(messages > 2000.0, "{messages} redirected messages of {path}");
    }
    let grown = world.agent.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "the agent grew by {grown} bytes");

    let up = server.dir().join("up");
    fill(&up, 90 << 20);
    world.redirecting(|| world.curl("http://240.0.8.1/files/up -T").arg(up.display()).run().ok());
    Cmd::new("cmp").arg(up.display()).arg(server.dir().join("files/up").display()).run().ok();

    // One that reads nothing: what nginx has read of the file is held somewhere on the way.
    let read = || {
        let io = fs::read_to_string(format!("/proc/{}/io", server.proc.pid())).unwrap();
        let line = io.lines().find_map(|l| l.strip_prefix("rchar: ")).expect("every process has it");
        line.parse::<u64>().unwrap()
    };
    let before = read();
    let log = world.agent.dir().file("stuck.log");
    let stuck = world.curl("--limit-rate 10K -o /dev/null http://240.0.8.1/files/big").spawn(&log);
    until("it has begun", || read() - before > 1 << 20);
    stuck.signal(rustix::process::Signal::STOP);
    let mut last = 0;
    until("it is stuck", || {
        thread::park_timeout(std::time::Duration::from_millis(300));
        let now = read();
        std::mem::replace(&mut last, now) == now
    });
    let held = read() - before;
    assert!(held < 12 << 20, "{held} bytes are held for a program that reads nothing");
    // Others do not notice, and when it goes all of it is given back.
    assert_eq!(world.curl("http://240.0.8.1/").run().ok(), "n");
    drop(stuck);
    until("it is gone", || world.agent.sockets().is_empty());
}

#[test]
fn redirect_carries_a_jvm_on_both_sides() {
    if lacks(&[Need::Kernel, Need::Program("javac")]) {
        return;
    }
    let _heavy = host::heavy();
    let (dir, servers) = (Temp::new(), Cgroup::new("servers"));
    Cmd::new("javac").arg("-d").arg(dir.path().display()).arg(program::client("Nio.java").display()).run().ok();
    let java = || Cmd::line("java -XX:TieredStopAtLevel=1 -Xmx64m -cp").arg(dir.path().display()).arg("Nio");
    let port = free_port();
    let log = dir.file("server.log");
    let _server = java().args(["serve", "127.0.0.1", &port.to_string()]).cgroup(&servers).spawn(&log);
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    until("the server listens", || std::net::TcpStream::connect(addr).is_ok());
    let world = World::new(&servers, "redirect: auto", &[addr]);
    let talk = |bytes: u32, count: u32| {
        let cmd = java().args(["talk", "240.0.8.1", "80", &bytes.to_string(), &count.to_string()]);
        assert_eq!(cmd.cgroup(&world.callers).run().ok().trim(), "whole");
    };
    // The first ones are learned from.
    world.learns("the JVM", || talk(16 << 20, 1));
    let paired = world.counter("paired");
    world.redirecting(|| talk(8 << 20, 16));
    assert_eq!(world.counter("paired") - paired, 64.0, "both ends of both legs of 16 connections");
}

#[test]
fn redirect_carries_pipelined_redis() {
    if lacks(&[Need::Kernel, Need::Program("redis-server"), Need::Program("redis-benchmark")])
        || lacks(&[Need::Program("redis-cli")])
    {
        return;
    }
    let _heavy = host::heavy();
    let servers = Cgroup::new("servers");
    let redis = program::redis(&Place { cgroup: Some(&servers), ..Place::default() });
    let world = World::new(&servers, "redirect: auto", &[redis.addr()]);
    let bench = |more: &str| {
        let line = format!("redis-benchmark -h 240.0.8.1 -p 80 -q {more}");
        let said = Cmd::line(&line).cgroup(&world.callers).run().ok();
        assert!(said.contains("requests per second") && !said.contains("rror"), "{said}");
    };
    world.learns("redis and its benchmark", || bench("-c 1 -n 100000 -P 16 -t set"));
    world.redirecting(|| bench("-c 20 -n 100000 -P 16 -r 1000 -d 1000 -t set,get,lpush,lrange_100,mset"));
    // What is there is what a caller without a mesh sees.
    let direct = |what: &str| {
        let port = redis.addr().port();
        sh(&world.callers, &format!("redis-cli -h 127.0.0.1 -p {port} --no-raw {what}")).run().ok()
    };
    let meshed = |what: &str| sh(&world.callers, &format!("redis-cli -h 240.0.8.1 -p 80 --no-raw {what}")).run().ok();
    for what in ["dbsize", "lrange mylist 0 20000", "keys '*'", "get key:000000000001", "info keyspace"] {
        let said = direct(what);
        assert!(said.len() > 4, "{what}: {said}");
        assert!(said == meshed(what), "{what} differs");
    }
}

#[test]
fn redirect_carries_postgres() {
    if lacks(&[Need::Kernel, Need::Program("postgres"), Need::Program("pgbench"), Need::Program("psql")]) {
        return;
    }
    let _heavy = host::heavy();
    let servers = Cgroup::new("servers");
    let server = database::postgres(&Place { cgroup: Some(&servers), ..Place::default() });
    let world = World::new(&servers, "redirect: auto", &[server.addr()]);
    let program = |name| which(name).expect("asked for before").display().to_string();
    let to = "-h 240.0.8.1 -p 80 -U mesh";
    let psql = |to: &str, sql: &str| {
        sh(&world.callers, &format!("{} {to} -qtA -c \"{sql}\" postgres", program("psql"))).run().ok()
    };
    sh(&world.callers, &format!("{} {to} -i -q -s 1 postgres", program("pgbench"))).run().ok();
    // Each is learned by itself: the load tool, the shell, and the server.
    let bench = |more: &str| {
        let said = sh(&world.callers, &format!("{} {to} {more} postgres", program("pgbench"))).run().ok();
        assert!(said.contains("number of failed transactions: 0"), "{said}");
        said
    };
    world.learns("pgbench and postgres", || drop(bench("-n -S -c 1 -T 1")));
    let said = world.redirecting(|| bench("-n -c 8 -j 2 -t 200"));
    assert!(said.contains("actually processed: 1600/1600"), "{said}");
    let sums = "select sum(abalance) from pgbench_accounts union all select sum(bbalance) from pgbench_branches \
                union all select sum(tbalance) from pgbench_tellers union all select sum(delta) from pgbench_history";
    let sums = psql(to, sums);
    let sums: Vec<_> = sums.lines().collect();
    assert!(sums.len() == 4 && sums.iter().all(|s| *s == sums[0]), "the books do not balance: {sums:?}");
    // 14 MB of rows, with and without the mesh.
    let copy = "copy (select *, repeat(md5(aid::text), 3) from pgbench_accounts order by aid) to stdout";
    let direct = format!("-h 127.0.0.1 -p {} -U mesh", server.addr().port());
    let direct = psql(&direct, copy);
    assert!(direct.len() > 10_000_000);
    assert!(direct == psql(to, copy), "rows differ");
}

#[test]
fn redirect_carries_mariadb_or_leaves_it_on_tcp() {
    if lacks(&[Need::Kernel, Need::Program("mariadbd"), Need::Program("mariadb-slap")]) {
        return;
    }
    let _heavy = host::heavy();
    let servers = Cgroup::new("servers");
    let server = database::mariadb(&Place { cgroup: Some(&servers), ..Place::default() });
    // Not learned but told: whatever these programs do with their sockets must do here as well.
    for redirect in ["redirect: auto", "redirect: on"] {
        let world = World::new(&servers, redirect, &[server.addr()]);
        let line = "mariadb-slap --no-defaults -h 240.0.8.1 -P 80 -u root --auto-generate-sql --concurrency=8 \
                    --auto-generate-sql-load-type=mixed --number-of-queries=1600 --number-char-cols=20 \
                    --auto-generate-sql-add-autoincrement";
        let said = Cmd::line(line).cgroup(&world.callers).run().ok();
        assert!(said.contains("Number of clients running queries: 8"), "{said}");
        let sql = |to: &str, sql: &str| {
            let line = format!("mariadb --no-defaults {to} -u root -N -e \"{sql}\" mesh");
            sh(&world.callers, &line).run().ok()
        };
        let (to, direct) = ("-h 240.0.8.1 -P 80", format!("-h 127.0.0.1 -P {}", server.addr().port()));
        let table = "create or replace table t as select seq, repeat(md5(seq), 6) as text from seq_1_to_50000";
        sql(to, table);
        let rows = sql(&direct, "select * from t order by seq");
        assert!(rows.len() > 9_000_000);
        assert!(rows == sql(to, "select * from t order by seq"), "rows differ with {redirect}");
        if redirect.ends_with("on") {
            assert!(world.counter("redirected") > 1000.0, "{}", world.agent.page("/metrics"));
        }
    }
}
