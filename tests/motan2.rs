//! Motan2 through two agents, as a motan-go client and server would see them (`docs/wire/motan2.md`).

use std::{
    net::{Shutdown, SocketAddr},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::Duration,
};

use host::{
    Agent, Backend, free_port,
    motan::{self, Client, Frame, GZIP, ONE_WAY, PROXY, RESPONSE},
    until,
    wait::PATIENCE,
};

const SERVICE: &str = "kit.EchoService";

/// caller -> `near` (referer) -> `far` (service) -> `server`.
struct Chain {
    near: Agent,
    to: SocketAddr,
    far: Agent,
    export: SocketAddr,
    server: Backend,
    /// What the server was asked.
    seen: Mutex<Receiver<Frame>>,
}

impl Chain {
    fn new(more: &str) -> Self {
        let (tx, rx) = sync_channel(4096);
        let server = motan::server(move |request| {
            tx.send(request.clone()).unwrap();
            answer(request)
        });
        let (to, export) = (addr(), addr());
        let far = Agent::start(&format!(
            "services:
  - {{service: {SERVICE}, group: kit-group, protocol: motan2, export: {export}, local: {}}}",
            server.addr()
        ));
        let near = Agent::start(&format!(
            "application: near
referers:
  - service: {SERVICE}
    group: kit-group
    protocol: motan2
    listen: {to}
    endpoints: [{export}]
    filters: [access_log, metrics]
{more}"
        ));
        Self { near, to, far, export, server, seen: Mutex::new(rx) }
    }

    fn client(&self) -> Client {
        Client::open(self.to).unwrap()
    }

    fn seen(&self) -> Frame {
        self.seen.lock().unwrap().recv_timeout(PATIENCE).expect("the server is asked")
    }

    /// Calls once more on a connection of its own: what a test did to others must not show here.
    #[track_caller]
    fn still_works(&self) {
        let answer = self.client().call(Frame::call(SERVICE, "echo", "still there")).unwrap();
        assert_eq!(answer.text(), "still there");
    }
}

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// The server's business, by method name.
fn answer(request: &Frame) -> Option<Frame> {
    match request.meta("M_m") {
        "biz" => Some(request.exception(30412, 2, r#"kit biz \"quoted\" 中文"#)),
        "slow" => {
            thread::park_timeout(Duration::from_millis(request.text().parse().unwrap()));
            Some(request.answer(&request.body))
        }
        "never" => None,
        "empty" => Some(request.answer(&[])),
        _ => Some(request.answer(&request.body)),
    }
}

/// A frame of a real motan-go run.
fn golden(name: &str) -> Vec<u8> {
    let path = host::source_dir().join("data/motan2").join(format!("{name}.hex"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let digits: Vec<_> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn frame(name: &str) -> Frame {
    Frame::read(&golden(name)[..]).unwrap().expect("a whole frame")
}

#[test]
fn motan2_a_call_goes_through_both_roles() {
    let chain = Chain::new("");
    let mut client = chain.client();
    client.send(golden("v1-string.request")).unwrap();
    let answer = client.receive().unwrap().unwrap();
    let recorded = frame("v1-string.answer");
    let plain = |frame: &Frame| (frame.kind, frame.status, frame.serialization, frame.id, frame.body.clone());
    assert_eq!(plain(&answer), plain(&recorded));
    assert!(answer.meta.keys().eq(recorded.meta.keys()), "{:?} {:?}", answer.meta, recorded.meta);
    assert_eq!(answer.meta("x-forwarded-for"), chain.export.to_string());
    assert!(answer.meta("M_pt").parse::<u32>().is_ok(), "{answer:?}");

    let seen = chain.seen();
    assert_eq!((seen.kind, seen.serialization, seen.text().as_str()), (PROXY, 6, "hello motan"));
    assert_ne!(seen.id, answer.id, "each hop numbers its own requests");
    assert_eq!(seen.meta("M_rid"), answer.id.to_string());
    for (key, value) in [("M_p", SERVICE), ("M_m", "echoString"), ("M_g", "kit-group"), ("M_s", "near")] {
        assert_eq!(seen.meta(key), value, "{key} of {seen:?}");
    }
    assert_eq!((seen.meta("host"), seen.meta("x-forwarded-for")), ("127.0.0.1", "127.0.0.1"));
    until("both agents count it", || {
        [&chain.near, &chain.far].iter().all(|a| a.metric("sockmesh_requests_total", &[SERVICE]) == 1.0)
    });
    until("a line in the access log", || chain.near.access_log().len() == 1);
}

#[test]
fn motan2_exceptions_of_the_callee_arrive_as_thrown() {
    let chain = Chain::new("    retries: 3\n");
    let answer = chain.client().call(Frame::call(SERVICE, "biz", "x")).unwrap();
    let recorded = frame("v2-business-exception.answer");
    let plain = |frame: &Frame| (frame.kind, frame.status, frame.serialization, frame.thrown(), frame.body.clone());
    assert_eq!(plain(&answer), plain(&recorded));
    chain.seen();
    assert!(chain.seen.lock().unwrap().try_recv().is_err(), "what the user's code threw is not tried again");
}

#[test]
fn motan2_unknown_services_are_named() {
    let chain = Chain::new("");
    let mut near = chain.client();
    let answer = near.call(Frame::call("kit.NoSuchService", "echo", "x")).unwrap();
    let recorded = frame("v3-agent-exception.answer");
    let plain = |frame: &Frame| (frame.kind, frame.status, frame.serialization, frame.thrown());
    assert_eq!(plain(&answer), plain(&recorded));
    let answer = near.call(Frame::call("", "echo", "x")).unwrap();
    let text = "cluster not found. cluster: empty service is not supported. service: ";
    assert_eq!(answer.thrown(), (400, 1, text.to_owned()));

    let mut far = Client::open(chain.export).unwrap();
    let answer = far.call(Frame::call("kit.NoSuchService", "echo", "x").with("M_g", "g")).unwrap();
    assert_eq!(answer.thrown(), (404, 1, "provider not exist serviceKey=g_kit.NoSuchService".to_owned()));
    assert_eq!(near.call(Frame::call(SERVICE, "echo", "same connection")).unwrap().text(), "same connection");
}

#[test]
fn motan2_heartbeats_are_answered_on_every_port() {
    let chain = Chain::new("");
    for port in [chain.to, chain.export] {
        let mut client = Client::open(port).unwrap();
        for name in ["v4-heartbeat", "v5-motan1-heartbeat"] {
            client.send(golden(&format!("{name}.request"))).unwrap();
            let recorded = golden(&format!("{name}.answer"));
            assert_eq!(client.raw(recorded.len()).unwrap(), recorded, "{name} on {port}");
        }
        assert_eq!(client.call(Frame::call(SERVICE, "echo", "and on")).unwrap().text(), "and on");
    }
}

#[test]
fn motan2_a_call_out_of_time_says_so_and_the_connection_goes_on() {
    let chain = Chain::new("    timeout: 400ms\n    timeout_range: 50ms..2s\n    retries: 0\n");
    let mut client = chain.client();
    let recorded = frame("v11-timeout.answer").thrown();
    let answer = client.call(Frame::call(SERVICE, "never", "x")).unwrap();
    assert_eq!(answer.thrown(), recorded);
    let answer = client.call(Frame::call(SERVICE, "slow", "700").with("M_tmo", "100")).unwrap();
    assert_eq!(answer.thrown(), recorded, "the caller's own time within the range is obeyed");
    // The late answer must not be taken for that of a later call.
    let answer = client.call(Frame::call(SERVICE, "slow", "900").with("M_tmo", "2000")).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (0, "900"), "{answer:?}");
}

#[test]
fn motan2_answers_come_in_any_order_to_their_own_callers() {
    let chain = Chain::new("    timeout: 10s\n    connections: 1\n");
    let chain = Arc::new(chain);
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let mut client = chain.client();
            thread::spawn(move || {
                let asked: Vec<_> = (0..50)
                    .map(|i| {
                        let text = format!("{}", (50 - i) * 4 + caller);
                        (client.begin(Frame::call(SERVICE, "slow", &text)).unwrap(), text)
                    })
                    .collect();
                let mut in_order = true;
                for (id, _) in &asked {
                    let answer = client.receive().unwrap().unwrap();
                    in_order &= answer.id == *id;
                    let (_, text) = asked.iter().find(|(id, _)| *id == answer.id).expect("one of ours");
                    assert_eq!(&answer.text(), text);
                }
                in_order
            })
        })
        .collect();
    for caller in callers {
        assert!(!caller.join().unwrap(), "slow calls do not hold up others on the same connection");
    }
    assert!(chain.server.accepted() <= 2, "{} connections for 200 calls", chain.server.accepted());
}

#[test]
fn motan2_one_way_is_passed_on_and_still_answered() {
    let chain = Chain::new("");
    let call = Frame { kind: ONE_WAY, ..Frame::call(SERVICE, "echo", "go") };
    assert_eq!(chain.client().call(call).unwrap().text(), "go");
    assert_eq!(chain.seen().kind, ONE_WAY | PROXY);
}

#[test]
fn motan2_compressed_bodies_are_opened_at_the_first_hop() {
    let chain = Chain::new("");
    let mut client = chain.client();
    client.send(golden("v6-gzip.request")).unwrap();
    let (answer, recorded) = (client.receive().unwrap().unwrap(), frame("v6-gzip.answer"));
    assert_eq!((answer.kind, &answer.body), (RESPONSE | PROXY, &recorded.body));
    let seen = chain.seen();
    assert_eq!((seen.kind & GZIP, &seen.body), (0, &recorded.body));
    // What only claims to be compressed goes on as it is, to whoever can make sense of it.
    let call = Frame { kind: GZIP, ..Frame::call(SERVICE, "echo", "not gzip") };
    assert_eq!(client.call(call).unwrap().text(), "not gzip");
}

#[test]
fn motan2_bodies_up_to_the_limit_pass_and_one_byte_more_closes() {
    let _heavy = host::heavy();
    let chain = Chain::new("    timeout: 20s\n");
    let mut client = chain.client();
    let mut call = Frame::call(SERVICE, "echo", "");
    call.body = vec![7; 10 * 1024 * 1024];
    let answer = client.call(call.clone()).unwrap();
    assert!(answer.body == call.body, "10 MiB came back changed");
    let before = chain.near.memory();
    for _ in 0..20 {
        // Only the claim: nobody may make room for it.
        let mut frame = Frame::call(SERVICE, "echo", "").bytes();
        let body = frame.len() - 9;
        frame[body..body + 4].copy_from_slice(&(10 * 1024 * 1024 + 1u32).to_be_bytes());
        closes(&chain, &frame);
    }
    assert!(chain.near.memory() < before + 8 * 1024 * 1024, "{before} -> {}", chain.near.memory());
    assert_eq!(client.call(Frame::call(SERVICE, "echo", "same")).unwrap().text(), "same", "others do not notice");
}

/// The agent closes on `bytes` without a word.
#[track_caller]
fn closes(chain: &Chain, bytes: &[u8]) {
    let mut client = chain.client();
    // It may close before all of it is written.
    let _ = client.send(bytes);
    match client.receive() {
        Ok(None) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("{bytes:02x?}: {other:?}"),
    }
}

#[test]
fn motan2_what_is_no_frame_is_closed_without_an_answer() {
    let chain = Chain::new("");
    let good = golden("v1-string.request");
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for (name, frame) in [
        ("wrong magic", with(0, &[0xf1, 0xf2])),
        ("version 2", with(3, &[0x10])),
        ("version 31", with(3, &[0xf8])),
        ("metadata of 2^31", with(13, &[0x80, 0, 0, 0])),
        ("metadata of 2^32-1", with(13, &[0xff; 4])),
        ("metadata over 10 MiB", with(13, &(10 * 1024 * 1024 + 1u32).to_be_bytes())),
        ("body of 2^31", with(77, &[0x80, 0, 0, 0])),
        ("body of 2^32-1", with(77, &[0xff; 4])),
    ] {
        println!("{name}");
        closes(&chain, &frame);
    }
    // "M_p" and two thirds of a pair: an odd number of parts.
    closes(&chain, b"\xf1\xf1\0\x08\x30\0\0\0\0\0\0\0\x07\0\0\0\x07M_p\ns\nx\0\0\0\0");
    chain.still_works();
}

#[test]
fn motan2_frames_cut_anywhere_wait_and_then_end() {
    let chain = Chain::new("");
    let good = golden("v1-string.request");
    for cut in 1..good.len() {
        let mut client = chain.client();
        client.send(&good[..cut]).unwrap();
        client.socket().shutdown(Shutdown::Write).unwrap();
        match client.receive() {
            Ok(None) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("cut at {cut}: {other:?}"),
        }
    }
    // In pieces it is the same call.
    let mut client = chain.client();
    for byte in &good {
        client.send([*byte]).unwrap();
    }
    assert_eq!(client.receive().unwrap().unwrap().text(), "hello motan");
    chain.still_works();
}

#[test]
fn motan2_a_lost_server_is_not_the_end() {
    let (tx, rx) = sync_channel(64);
    let one = motan::server(|request| Some(request.answer(b"\x01\0\0\0\x03one")));
    let mut two = motan::server(move |request| {
        tx.send(()).unwrap();
        (request.meta("M_m") != "hang").then(|| request.answer(b"\x01\0\0\0\x03two"))
    });
    let to = addr();
    let agent = Agent::start(&format!(
        "referers:
  - {{service: s, protocol: motan2, listen: {to}, endpoints: [{}, {}], lb: round_robin, timeout: 5s}}",
        one.addr(),
        two.addr()
    ));
    let mut client = Client::open(to).unwrap();
    let texts: Vec<_> = (0..10).map(|_| client.call(Frame::call("s", "m", "")).unwrap().text()).collect();
    assert!(texts.contains(&"one".to_owned()) && texts.contains(&"two".to_owned()), "{texts:?}");
    // A call that may have been carried out is not sent again.
    while rx.try_recv().is_ok() {}
    let hung = thread::spawn(move || {
        let mut client = Client::open(to).unwrap();
        (0..2).map(|_| client.call(Frame::call("s", "hang", "")).unwrap()).collect::<Vec<_>>()
    });
    rx.recv_timeout(PATIENCE).unwrap();
    two.stop();
    let answers = hung.join().unwrap();
    assert_eq!(answers.iter().filter(|a| a.status == 1).count(), 1, "{answers:?}");
    for _ in 0..50 {
        assert_eq!(client.call(Frame::call("s", "m", "")).unwrap().text(), "one");
    }
    assert!(!agent.has_in_rotation(two.addr()));
}
