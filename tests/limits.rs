//! Too much of everything: the agent holds what it promises, and nobody else notices.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use host::{
    Agent, Backend, Cmd, Need,
    agent::Settings,
    http::{self, Conn},
    lacks, net,
    program::{self, Place},
    until,
    wait::PATIENCE,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn start(top: &str, descriptors: Option<u32>, protocol: &str, endpoint: SocketAddr) -> (Agent, SocketAddr) {
    let at = net::free_addr();
    let service = format!("{{service: s, protocol: {protocol}, listen: {at}, endpoints: [{endpoint}]}}");
    let settings = Settings { top, descriptors, ..Settings::default() };
    (Agent::with(&settings, &format!("referers:\n  - {service}\n")), at)
}

/// Lets this process hold many descriptors. False, having said so, where it may not.
fn room_for(descriptors: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < descriptors) {
        host::need::skip(&format!("needs {descriptors} descriptors, {:?} allowed", limit.maximum));
        return false;
    }
    if limit.current.is_some_and(|now| now < descriptors) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(descriptors), maximum: limit.maximum }).unwrap();
    }
    true
}

#[test]
fn limits_5000_callers_held_open_at_once() {
    const CALLERS: usize = 5000;
    if lacks(&[Need::Program("nginx")]) || !room_for(CALLERS as u64 + 1000) {
        return;
    }
    let _heavy = host::heavy();
    let server = program::nginx("x", &Place::default());
    let (agent, at) = start("", None, "http", server.addr());
    let get = |conn: &mut Conn| assert_eq!(conn.get("/").unwrap().text(), "x");
    get(&mut Conn::open(at).unwrap());
    let before = agent.memory();
    let mut open: Vec<Conn> = Vec::with_capacity(CALLERS);
    for _ in 0..CALLERS {
        let mut conn = Conn::open(at).unwrap();
        get(&mut conn);
        open.push(conn);
    }
    assert!(agent.sockets().len() >= CALLERS);
    let each = agent.memory().saturating_sub(before) / CALLERS as u64;
    println!("{each} bytes of the agent's memory for an idle caller");
    // hyper's two buffers of 8 KiB are most of it; this finds leaks and buffers kept for nothing.
    assert!(each < 32 * 1024, "{each} bytes for an idle caller");
    open.iter_mut().for_each(get);
    drop(open);
    until("all are gone", || agent.sockets().is_empty());
}

#[test]
fn limits_2000_raw_connections_held_open_at_once() {
    if !room_for(6000) {
        return;
    }
    let _heavy = host::heavy();
    let server = Backend::echo();
    let (agent, at) = start("", None, "tcp", server.addr());
    let ping = |mut stream: &TcpStream| {
        stream.write_all(b"p").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    };
    let open: Vec<_> = (0..2000)
        .map(|_| {
            let stream = TcpStream::connect_timeout(&at, PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            ping(&stream);
            stream
        })
        .collect();
    open.iter().for_each(ping);
    assert_eq!(agent.sockets().len(), 2000);
    drop(open);
    until("all are gone", || agent.sockets().is_empty());
}

#[test]
fn limits_without_descriptors_accepting_pauses_and_admin_answers() {
    let server = Backend::named("x");
    let top = "limits: {connections: 8192, reserved_descriptors: 32}";
    // Few from the start: the agent takes no more connections than it has descriptors for. Fewer later on:
    // what it had counted on is not there.
    for (from_the_start, later) in [(Some(160), None), (None, Some(80))] {
        let (agent, at) = start(top, from_the_start, "http", server.addr());
        if let Some(most) = later {
            Cmd::line(&format!("prlimit --pid {} --nofile={most}", agent.pid())).run().ok();
        }
        let mut first = Conn::open(at).unwrap();
        first.get("/").unwrap();
        // The kernel keeps in the listener's queue what the agent cannot take.
        let held: Vec<_> = (0..300).map(|_| Conn::open(at).unwrap()).collect();
        if later.is_some() {
            until("accepting pauses", || agent.metric("sockmesh_accept_paused_total", &[]) > 0.0);
        }
        for _ in 0..20 {
            assert!(agent.is_ready());
            assert!(!agent.sockets().is_empty());
        }
        assert_eq!(first.get("/").unwrap().text(), "x", "those it took before are served");
        drop(held);
        until("new callers are served again", || http::get(at, "/").is_ok_and(|a| a.text() == "x"));
    }
}

#[test]
fn limits_connections_beyond_the_configured_number_wait_or_are_closed() {
    let server = Backend::named("x");
    let (agent, at) = start("limits: {connections: 5}", None, "http", server.addr());
    let mut held: Vec<_> = (0..5).map(|_| Conn::open(at).unwrap()).collect();
    held.iter_mut().for_each(|conn| assert_eq!(conn.get("/").unwrap().text(), "x"));
    let mut more = Conn::open(at).unwrap();
    more.socket().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    more.get("/").unwrap_err();
    assert_eq!(agent.sockets().len(), 5);
    held.iter_mut().for_each(|conn| assert_eq!(conn.get("/").unwrap().text(), "x"));
    held.truncate(2);
    until("there is room again", || http::get(at, "/").is_ok_and(|a| a.text() == "x"));
}

#[test]
fn limits_a_head_that_never_ends_is_given_up() {
    let server = Backend::named("x");
    let (agent, at) = start("limits: {header_timeout: 300ms}", None, "http", server.addr());
    let mut slow = Conn::open(at).unwrap();
    slow.send("GET / HTTP/1.1\r\nHost: t\r\nX-").unwrap();
    let mut other = Conn::open(at).unwrap();
    for _ in 0..10 {
        assert_eq!(other.get("/").unwrap().text(), "x");
    }
    let end = slow.rest().unwrap();
    assert!(end.is_empty() || end.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&end));
    until("it is off the books", || agent.sockets().len() <= 1);
}

#[test]
fn limits_callers_that_do_not_read_cost_little() {
    let _heavy = host::heavy();
    let body = vec![b'x'; 30_000_000];
    let server = Backend::http(move |_| http::ok(&body));
    let (agent, at) = start("", None, "http", server.addr());
    http::get(at, "/").unwrap();
    let before = agent.memory();
    let mut idle: Vec<_> = (0..10).map(|_| Conn::open(at).unwrap()).collect();
    for conn in &mut idle {
        conn.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    }
    let moved = || agent.sockets().iter().map(|row| row["sent_bytes"].as_u64().unwrap()).sum::<u64>();
    until("answers are under way", || {
        agent.sockets().iter().filter(|r| r["sent_bytes"].as_u64() > Some(0)).count() >= 10
    });
    let mut last = 0;
    until("they are stuck", || {
        let now = moved();
        std::thread::park_timeout(Duration::from_millis(50));
        std::mem::replace(&mut last, now) == now
    });
    let grown = agent.memory().saturating_sub(before);
    assert!(grown < 20_000_000, "{grown} bytes for 10 callers of 30 MB each that read nothing");
    assert_eq!(http::get(at, "/").unwrap().body.len(), 30_000_000, "others do not notice");
    assert_eq!(idle[0].answer().unwrap().body.len(), 30_000_000, "and who reads at last gets all of it");
}

#[test]
fn limits_noise_on_every_port_bothers_nobody() {
    let (server, tcp) = (Backend::named("x"), Backend::echo());
    let ports: Vec<_> = (0..4).map(|_| net::free_addr()).collect();
    let (web, raw) = (server.addr(), tcp.addr());
    let agent = Agent::start(&format!(
        "referers:
  - {{service: web, protocol: http, listen: {}, endpoints: [{web}]}}
  - {{service: rpc, protocol: motan2, listen: {}, endpoints: [{web}]}}
  - {{service: raw, protocol: tcp, listen: {}, endpoints: [{raw}]}}
  - {{service: any, listen: {}, endpoints: [{raw}]}}
",
        ports[0], ports[1], ports[2], ports[3]
    ));
    let mut seed = 0x5eed_u64;
    let mut random = move || {
        // Knuth's MMIX generator: the same noise in every run.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32
    };
    // Beginnings that lead further into each decoder than chance would.
    let starts: [&[u8]; 5] = [b"", b"GET / HTTP/1.1\r\nHost: t\r\n", b"\xf1\xf1\0\x08\x30", b"\xf1\xf1\0\0", b"POST "];
    let mut noise = |to: SocketAddr, admin: bool| {
        let mut bytes = starts[random() as usize % starts.len()].to_vec();
        bytes.extend((0..random() % 600).map(|_| random() as u8));
        let mut conn = Conn::open(to).unwrap();
        let _ = conn.send(&bytes);
        let _ = conn.socket().shutdown(std::net::Shutdown::Write);
        // Whatever is said, it ends.
        if let Err(error) = conn.rest() {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{to} {admin}: {bytes:02x?}");
        }
    };
    let rounds = |noise: &mut dyn FnMut(SocketAddr, bool), count: usize| {
        for _ in 0..count {
            ports.iter().for_each(|to| noise(*to, false));
            noise(agent.admin(), true);
        }
    };
    rounds(&mut noise, 50);
    let before = agent.memory();
    rounds(&mut noise, 250);
    let grown = agent.memory().saturating_sub(before);
    assert!(grown < 4_000_000, "{grown} bytes for 1250 connections that are gone");
    assert_eq!(http::get(ports[0], "/").unwrap().text(), "x");
    until("none is left", || agent.sockets().is_empty());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}
