//! Endpoints that fail, in every way they can, and callers that do not notice.

use std::{
    io::{ErrorKind, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use host::{
    Agent, Backend, Load, Need,
    backend::{self, BlackHole, Refusing},
    http::{self, Conn},
    lacks,
    motan::{self, Client, Frame},
    net,
    program::{self, Place},
    until,
};

use crate::http::mesh;

/// Every one of `calls` GETs is answered by `who`.
#[track_caller]
fn check(to: SocketAddr, calls: usize, who: &str) {
    for _ in 0..calls {
        let answer = http::get(to, "/").unwrap();
        assert_eq!((answer.status(), answer.text().as_str()), (200, who));
    }
}

#[test]
fn ha_no_call_fails_when_an_nginx_stops_and_it_is_used_again_when_back() {
    if lacks(&[Need::Program("nginx")]) {
        return;
    }
    let _heavy = host::heavy();
    let (a, mut b) = (program::nginx("a", &Place::default()), program::nginx("b", &Place::default()));
    let (agent, to) = mesh(&[a.addr(), b.addr()], "");
    let load = Load::http(8, to, "/");
    load.more(200);
    b.proc.stop();
    load.more(500);
    b.again();
    until("b is back in rotation", || agent.has_in_rotation(b.addr()));
    load.more(200);
    let tally = load.stop();
    tally.all_good(900);
    assert!(tally.good["a"] > 0 && tally.good["b"] > 0, "{tally:?}");
    let b_only = http::get(b.addr(), "/").unwrap();
    assert_eq!(b_only.text(), "b");
}

#[test]
fn ha_a_refusing_endpoint_costs_no_call_and_leaves() {
    let (refusing, good) = (Refusing::new(), Backend::named("good"));
    let (agent, to) = mesh(&[refusing.addr(), good.addr()], "    lb: round_robin\n");
    check(to, 20, "good");
    assert!(!agent.has_in_rotation(refusing.addr()));
    assert!(agent.has_in_rotation(good.addr()));
    // A body that has not been sent is not lost either.
    let (refusing, good) = (Refusing::new(), Backend::http(|request| http::ok(&request.body)));
    let (_agent, to) = mesh(&[refusing.addr(), good.addr()], "    lb: round_robin\n");
    for _ in 0..4 {
        assert_eq!(http::post(to, "/", b"precious").unwrap().text(), "precious");
    }
}

#[test]
fn ha_a_black_hole_costs_a_connect_timeout_and_leaves_until_it_answers() {
    let (hole, good) = (BlackHole::new(), Backend::named("good"));
    let more = "    lb: round_robin\n    eject: {connect_failures: 1, pause: 100ms, max_pause: 200ms}\n";
    let (agent, to) = mesh(&[hole.addr(), good.addr()], more);
    check(to, 10, "good");
    assert!(!agent.has_in_rotation(hole.addr()));
    let back = hole.revive("back");
    until("the endpoint is found to answer again", || agent.has_in_rotation(back.addr()));
    until("and is used", || http::get(to, "/").unwrap().text() == "back");
}

#[test]
fn ha_a_vanished_host_costs_no_call() {
    if lacks(&[Need::Root, Need::Program("ip"), Need::Program("nginx")]) {
        return;
    }
    let _heavy = host::heavy();
    let nets = [net::Net::new(), net::Net::new()];
    let [a, b] = ["a", "b"].map(|name| {
        let net = &nets[usize::from(name == "b")];
        program::nginx(name, &Place { net: Some(net), ..Place::default() })
    });
    let (agent, to) = mesh(&[a.addr(), b.addr()], "    lb: round_robin\n    idle_connections: 0\n");
    let load = Load::http(4, to, "/");
    load.more(100);
    // Nothing comes back from there any more: connects hang, calls under way get no answer.
    let tally = load.stop();
    tally.all_good(100);
    nets[1].black_hole();
    let load = Load::http(4, to, "/");
    until("the vanished host is out", || !agent.has_in_rotation(b.addr()));
    load.more(100);
    nets[1].heal();
    until("it is back", || agent.has_in_rotation(b.addr()));
    load.more(100);
    load.stop().all_good(200);
}

#[test]
fn ha_when_all_are_out_the_least_bad_is_tried() {
    let addrs = [net::free_addr(), net::free_addr()];
    let more = "    eject: {connect_failures: 1, pause: 1h, max_pause: 1h}\n";
    let (agent, to) = mesh(&addrs, more);
    until("both are out", || {
        let answer = http::get(to, "/").unwrap();
        assert!(matches!(answer.status(), 502 | 503), "{answer:?}");
        addrs.iter().all(|a| !agent.has_in_rotation(*a))
    });
    // No probe will come for an hour: only a call can find out.
    let _back = Backend::named_at(addrs[0], "back");
    until("a call finds the one that is back", || http::get(to, "/").unwrap().status() == 200);
    check(to, 5, "back");
}

#[test]
fn ha_a_body_that_breaks_off_never_looks_complete() {
    let _heavy = host::heavy();
    let body = vec![b'x'; 200_000];
    // How the server frames it, and whether it breaks with a reset or an early end.
    for framing in ["Content-Length: 200000\r\n", "Transfer-Encoding: chunked\r\n"] {
        for with_reset in [true, false] {
            for at in [0, 1, 1000, 16_384, 65_536, 199_999] {
                let part = body[..at].to_vec();
                let server = Backend::tcp(move |mut stream| {
                    let mut conn = Conn::of(stream.try_clone().unwrap());
                    let Ok(Some(_)) = conn.request() else { return };
                    let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n").as_bytes());
                    if framing.starts_with('T') {
                        let _ = stream.write_all(b"30d40\r\n");
                    }
                    let _ = stream.write_all(&part);
                    if with_reset {
                        // Only once it has left: a reset throws away what has not.
                        until("the part is sent", || unsent(&stream) == 0);
                        backend::reset_all(&stream);
                    }
                });
                let (_agent, to) = mesh(&[server.addr()], "    retries: 0\n");
                for version in ["1.1", "1.0"] {
                    let mut conn = Conn::open(to).unwrap();
                    conn.send(format!("GET / HTTP/{version}\r\nHost: t\r\n\r\n")).unwrap();
                    let got = conn.answer();
                    let cut = match &got {
                        Err(e) => matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset),
                        // Nothing had been passed on yet: an error of the mesh's own is as good.
                        Ok(answer) => answer.status() == 502,
                    };
                    assert!(
                        cut,
                        "{framing:?} cut at {at}, reset {with_reset}, HTTP/{version}: {:?}",
                        got.map(|a| a.line)
                    );
                }
            }
        }
    }
}

fn unsent(stream: &std::net::TcpStream) -> i32 {
    // What the peer has not acknowledged, from the kernel's own table.
    let (local, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let end = |a: SocketAddr| match a {
        SocketAddr::V4(a) => format!("{:08X}:{:04X}", u32::from_ne_bytes(a.ip().octets()), a.port()),
        SocketAddr::V6(_) => unreachable!("test servers listen on IPv4"),
    };
    let (local, peer) = (end(local), end(peer));
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|f| f.len() > 4 && f[1] == local && f[2] == peer)
        .map_or(0, |f| i32::from_str_radix(f[4].split(':').next().unwrap(), 16).unwrap())
}

#[test]
fn ha_garbage_is_a_bad_gateway() {
    for garbage in
        ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/9.9 200 OK\r\n\r\n", "\0\0\0\0\0\0\0\0", "HTTP/1.1 abc\r\n\r\n", ""]
    {
        let server = Backend::tcp(move |mut stream| {
            let mut conn = Conn::of(stream.try_clone().unwrap());
            if let Ok(Some(_)) = conn.request() {
                let _ = stream.write_all(garbage.as_bytes());
            }
        });
        let (_agent, to) = mesh(&[server.addr()], "    retries: 0\n");
        let answer = http::get(to, "/").unwrap();
        assert_eq!(answer.status(), 502, "{garbage:?}: {answer:?}");
    }
}

#[test]
fn ha_only_what_is_safe_is_sent_twice() {
    /// A server that takes a request and closes without a word.
    fn rude(count: &'static AtomicUsize) -> Backend {
        Backend::tcp(move |stream| {
            if let Ok(Some(_)) = Conn::of(stream).request() {
                count.fetch_add(1, SeqCst);
            }
        })
    }
    static RUDE: AtomicUsize = AtomicUsize::new(0);
    let (a, b) = (rude(&RUDE), rude(&RUDE));
    let (_agent, to) = mesh(&[a.addr(), b.addr()], "    retries: 1\n");
    assert_eq!(http::post(to, "/", b"pay").unwrap().status(), 502);
    assert_eq!(RUDE.swap(0, SeqCst), 1, "a POST may have been carried out: once only");
    assert_eq!(http::get(to, "/").unwrap().status(), 502);
    assert_eq!(RUDE.swap(0, SeqCst), 2, "a GET is tried at the other endpoint");

    let (_agent, to) = mesh(&[a.addr(), b.addr()], "    retries: 1\n    idempotent: true\n");
    assert_eq!(http::post(to, "/", b"set").unwrap().status(), 502);
    assert_eq!(RUDE.swap(0, SeqCst), 2, "declared idempotent: tried at the other endpoint");
}

#[test]
fn ha_a_slow_endpoint_is_a_timeout_not_a_hang() {
    let server = Backend::tcp(|stream| {
        let mut conn = Conn::of(stream);
        let _ = conn.request();
        let _ = conn.rest();
    });
    let (_agent, to) = mesh(&[server.addr()], "    timeout: 200ms\n    retries: 0\n");
    assert_eq!(http::get(to, "/").unwrap().status(), 504);
}

/// Servers that refuse every call, and how many they have seen.
fn refusing(protocol: &str) -> (Vec<Backend>, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let server = |_| {
        let seen = seen.clone();
        if protocol == "http" {
            // Hangs up when it has read the request.
            return Backend::tcp(move |stream| {
                let mut conn = Conn::of(stream.try_clone().unwrap());
                if let Ok(Some(_)) = conn.request() {
                    seen.fetch_add(1, SeqCst);
                }
                backend::reset_all(&stream);
            });
        }
        motan::server(move |request| {
            seen.fetch_add(1, SeqCst);
            Some(request.exception(503, 1, "busy"))
        })
    };
    ((0..3).map(server).collect(), seen)
}

#[test]
fn ha_a_hundredfold_load_on_endpoints_that_all_refuse_becomes_little_more_than_itself() {
    let _heavy = host::heavy();
    for protocol in ["http", "motan2"] {
        let (servers, seen) = refusing(protocol);
        let to = net::free_addr();
        let list: Vec<_> = servers.iter().map(|s| s.addr().to_string()).collect();
        let agent = Agent::start(&format!(
            "referers:
  - {{service: web, protocol: {protocol}, listen: {to}, endpoints: [{}], retries: 3, methods: {{hello: {{idempotent: true}}}}}}
",
            list.join(", ")
        ));
        let one = move || -> Result<String, String> {
            let refused = match protocol {
                "http" => http::get(to, "/").map_err(|e| e.to_string())?.status() >= 500,
                _ => {
                    let mut client = Client::open(to).map_err(|e| e.to_string())?;
                    client.call(Frame::call("web", "hello", "x")).map_err(|e| e.to_string())?.status == 1
                }
            };
            if refused { Ok("refused".to_owned()) } else { Err("an answer from nowhere".to_owned()) }
        };
        // A usual load of some calls a second; retries are made.
        let began = Instant::now();
        let mut usual = 0;
        while seen.load(SeqCst) <= usual || usual < 8 {
            one().unwrap();
            usual += 1;
            std::thread::park_timeout(Duration::from_millis(250));
            assert!(usual < 200, "{protocol}: no call was ever retried");
        }
        let rate = usual as f64 / began.elapsed().as_secs_f64();
        let (before, began) = (seen.load(SeqCst), Instant::now());
        let load = Load::start(32, || one);
        let mut made = 0;
        while (made as f64) < rate * 100.0 * began.elapsed().as_secs_f64() || made < 3000 {
            load.more(500);
            made += 500;
            assert!(began.elapsed() < host::wait::PATIENCE * 3, "{protocol}: only {made} calls, at first {rate}/s");
        }
        let tally = load.stop();
        let took = began.elapsed();
        assert!(tally.bad.is_empty(), "{protocol}: {:?}", &tally.bad[..tally.bad.len().min(3)]);
        let (calls, upstream) = (tally.good["refused"] as f64, (seen.load(SeqCst) - before) as f64);
        // What was saved up in the ten seconds before, as long as it is kept, comes on top.
        let saved = 10.0 * (10.0 + 0.2 * rate);
        let most = 1.2 * calls + 10.0 * took.as_secs_f64() + saved;
        println!("{protocol}: {rate:.0}/s, then {calls} calls in {took:?}: {upstream} reached a server, {most:.0} may");
        assert!(upstream <= most, "{protocol}: {calls} calls in {took:?} became {upstream}, more than {most}");
        assert!(upstream > calls / 10.0, "{protocol}: nothing was tried: {upstream} of {calls}");
        drop(agent);
    }
}
