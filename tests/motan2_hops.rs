//! What one hop changes of a Motan2 call and its answer, against frames recorded of motan-go's agent
//! (`docs/wire/motan2.md`, "A hop").

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex,
        mpsc::{Receiver, sync_channel},
    },
};

use host::{
    Agent, Backend, free_port,
    motan::{self, Client, Frame, GZIP, ONE_WAY, PROXY, RESPONSE},
    wait::PATIENCE,
};

const SERVICE: &str = "kit.EchoService";

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// A frame of a real motan-go run.
fn golden(name: &str) -> Frame {
    let path = host::source_dir().join("data/motan2").join(format!("{name}.hex"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let digits: Vec<_> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let bytes: Vec<_> =
        digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect();
    Frame::read(&bytes[..]).unwrap().expect("a whole frame")
}

/// One agent between the caller and a server that tells what it was asked.
struct Hop {
    _agent: Agent,
    to: SocketAddr,
    server: Backend,
    seen: Mutex<Receiver<Frame>>,
}

impl Hop {
    /// The agent of the caller's side.
    fn near(service: &str, more: &str, answer: impl Fn(&Frame) -> Option<Frame> + Send + Sync + 'static) -> Self {
        Self::new(answer, |to, server| {
            format!(
                "application: top
referers:
  - {{service: {service}, group: kit-group, protocol: motan2, listen: {to}, endpoints: ['{server}'], application: ep-agent{more}}}"
            )
        })
    }

    /// The agent of the program's side.
    fn far(service: &str, answer: impl Fn(&Frame) -> Option<Frame> + Send + Sync + 'static) -> Self {
        Self::new(answer, |to, server| {
            format!(
                "services:\n  - {{service: {service}, group: kit-group, protocol: motan2, export: {to}, local: '{server}'}}"
            )
        })
    }

    fn new(
        answer: impl Fn(&Frame) -> Option<Frame> + Send + Sync + 'static,
        config: impl Fn(SocketAddr, SocketAddr) -> String,
    ) -> Self {
        let (tx, rx) = sync_channel(64);
        let server = motan::server(move |request| {
            tx.send(request.clone()).unwrap();
            answer(request)
        });
        let to = addr();
        Self { _agent: Agent::start(&config(to, server.addr())), to, server, seen: Mutex::new(rx) }
    }

    /// Sends a frame as it is. What the server was asked, and what came back.
    fn call(&self, frame: &Frame) -> (Frame, Frame) {
        let mut client = Client::open(self.to).unwrap();
        client.send(frame.bytes()).unwrap();
        let seen = self.seen.lock().unwrap().recv_timeout(PATIENCE).expect("the server is asked");
        (seen, client.receive().unwrap().expect("an answer"))
    }
}

fn echo(request: &Frame) -> Option<Frame> {
    Some(request.answer(&request.body))
}

/// All of a frame but its id.
fn but_id(frame: &Frame) -> (u8, u8, u8, BTreeMap<String, String>, Vec<u8>) {
    (frame.kind, frame.status, frame.serialization, frame.meta.clone(), frame.body.clone())
}

#[test]
fn motan2_hop_passes_on_what_the_original_passed_on() {
    let recorded = golden("v8-one-way.forwarded-answer");
    let hop = Hop::near("kit.SpecialService", "", move |request| Some(Frame { id: request.id, ..recorded.clone() }));
    let request = golden("v8-one-way.request");
    let (seen, answer) = hop.call(&request);
    let forwarded = golden("v8-one-way.forwarded");
    assert_eq!(but_id(&seen), but_id(&forwarded));
    assert_eq!(seen.kind, ONE_WAY | PROXY);
    assert!(seen.id != request.id && seen.meta("M_rid") == request.id.to_string());
    assert_eq!((answer.kind, answer.id), (RESPONSE | PROXY, request.id), "one-way calls are answered all the same");
    assert_eq!((answer.meta("M_pt"), answer.meta("x-forwarded-for")), ("0", &*hop.server.addr().to_string()));

    let recorded = golden("v9-null.forwarded-answer");
    let hop = Hop::near("kit.SpecialService", "", move |request| Some(Frame { id: request.id, ..recorded.clone() }));
    let forwarded = golden("v9-null.forwarded");
    let mut request = Frame { kind: 0, id: forwarded.meta("M_rid").parse().unwrap(), ..forwarded.clone() };
    request.meta.retain(|key, _| !["M_rid", "M_s", "host"].contains(&key.as_str()));
    let (seen, answer) = hop.call(&request);
    assert_eq!(but_id(&seen), but_id(&forwarded));
    assert_eq!((answer.id, answer.status, answer.body.len()), (request.id, 0, 0));
}

#[test]
fn motan2_hop_adds_only_what_is_not_there() {
    let hop = Hop::near(SERVICE, "", |request| {
        let mut answer = request.answer(&request.body);
        answer.meta.insert("M_pt".into(), "77".into());
        answer.meta.insert("x-forwarded-for".into(), "1.1.1.1:1".into());
        Some(answer)
    });
    let base = Frame { id: u64::MAX - 1, ..Frame::call(SERVICE, "echo", "x") };
    let (seen, answer) = hop.call(&base);
    let meta = |frame: &Frame, keys: [&str; 4]| keys.map(|key| frame.meta.get(key).cloned().unwrap_or_default());
    let keys = ["M_rid", "M_s", "host", "M_g"];
    assert_eq!(meta(&seen, keys), ["-2", "ep-agent", "127.0.0.1", "kit-group"], "ids are signed texts");
    // The first server that says how long it took is believed; the last agent says who answered.
    assert_eq!((answer.meta("M_pt"), answer.meta("x-forwarded-for")), ("77", &*hop.server.addr().to_string()));

    let there = base.with("M_rid", "5").with("M_s", "own").with("host", "9.9.9.9").with("M_g", "other");
    assert_eq!(meta(&hop.call(&there).0, keys), ["5", "own", "127.0.0.1", "kit-group"]);
    let attached = Frame::call(SERVICE, "echo", "x").with("application", "attached");
    assert_eq!(hop.call(&attached).0.meta("M_s"), "attached");
    assert!(!hop.call(&attached).0.meta.contains_key("x-forwarded-for"), "the program's side adds it");
}

#[test]
fn motan2_hop_of_the_programs_side_says_who_called() {
    let hop = Hop::far(SERVICE, echo);
    let forwarded = |frame: Frame| {
        let seen = hop.call(&frame).0;
        ["x-forwarded-for", "X-Forwarded-For"].map(|key| seen.meta.get(key).cloned().unwrap_or_default())
    };
    let call = || Frame::call(SERVICE, "echo", "x").with("M_g", "kit-group");
    assert_eq!(forwarded(call()), ["127.0.0.1", ""]);
    assert_eq!(forwarded(call().with("x-forwarded-for", "8.8.8.8")), ["8.8.8.8", ""]);
    assert_eq!(forwarded(call().with("X-Forwarded-For", "7.7.7.7")), ["", "7.7.7.7"]);
    // The way in: a wrong group finds the only service of that name and stays as it came.
    assert_eq!(hop.call(&call().with("M_g", "other")).0.meta("M_g"), "other");
}

#[test]
fn motan2_hop_carries_any_serialization_untouched() {
    let hop = Hop::near(SERVICE, "", echo);
    for number in [0, 1, 2, 3, 5, 6, 7, 8, 31] {
        let frame = Frame { serialization: number, body: vec![0xff, number, 0], ..Frame::call(SERVICE, "echo", "") };
        let (seen, answer) = hop.call(&frame);
        let both = [&seen, &answer].map(|f| (f.serialization, &*f.body));
        assert_eq!(both, [(number, &[0xff, number, 0][..]); 2]);
    }
}

#[test]
fn motan2_hop_packs_bodies_that_are_longer_and_unpacks_answers() {
    let packed = golden("v6-gzip.request").body;
    let hop = Hop::near(SERVICE, ", gzip_over: 100", move |request| {
        Some(match request.meta("M_m") {
            "packed" => Frame { kind: RESPONSE | GZIP, ..request.answer(&packed) },
            // What only says that it is packed is passed on with its mark.
            "not" => Frame { kind: RESPONSE | GZIP, ..request.answer(b"rubbish") },
            _ => request.answer(b"\0"),
        })
    });
    let call =
        |method: &str, length: usize| hop.call(&Frame { body: vec![b'z'; length], ..Frame::call(SERVICE, method, "") });
    let (seen, _) = call("m", 100);
    assert_eq!((seen.kind & GZIP, seen.body.len()), (0, 100), "as long is not longer");
    let (seen, _) = call("m", 101);
    assert_eq!((seen.kind & GZIP, &seen.body[..2]), (GZIP, &[0x1f, 0x8b][..]));
    let (_, answer) = call("packed", 1);
    assert_eq!((answer.kind, &*answer.body), (RESPONSE | PROXY, &b"\x01\0\0\0\x01z"[..]));
    let (_, answer) = call("not", 1);
    assert_eq!((answer.kind, &*answer.body), (RESPONSE | PROXY | GZIP, &b"rubbish"[..]));
}

#[test]
fn motan2_hop_exceptions_have_the_texts_that_clients_compare() {
    // Nobody there.
    let (to, gone) = (addr(), addr());
    let _agent = Agent::start(&format!(
        "registries: {{none: {{kind: direct, instances: []}}}}
referers:
  - {{service: none, protocol: motan2, listen: {to}, registry: none}}
  - {{service: gone, protocol: motan2, listen: {to}, endpoints: ['{gone}']}}"
    ));
    let thrown = |to: SocketAddr, service: &str| {
        let answer = Client::open(to).unwrap().call(Frame::call(service, "m", "x").with("M_g", "g")).unwrap();
        assert_eq!((answer.kind, answer.status, answer.serialization), (RESPONSE | PROXY, 1, 0), "{answer:?}");
        answer.thrown()
    };
    let (code, kind, text) = thrown(to, "none");
    assert_eq!((code, kind), (1001, 1));
    assert!(text.starts_with("No refers for request, RequestID: 1001, Request info: map["), "{text}");
    assert_eq!(thrown(to, "gone"), (1002, 1, "can not get a channel".to_owned()));

    // The program of a provided service is gone.
    let export = addr();
    let _far =
        Agent::start(&format!("services:\n  - {{service: gone, protocol: motan2, export: {export}, local: '{gone}'}}"));
    let unavailable = (503, 503, "reverse proxy call err: motanProvider is unavailable".to_owned());
    assert_eq!(thrown(export, "gone"), unavailable);

    // Its connection breaks during the call.
    let server = Backend::tcp(|io| drop(Frame::read(&io)));
    let to = addr();
    let _near = Agent::start(&format!(
        "referers:\n  - {{service: s, protocol: motan2, listen: {to}, endpoints: ['{}'], retries: 0}}",
        server.addr()
    ));
    assert_eq!(thrown(to, "s"), (400, 1, "channel call error:the channel has been shutdown".to_owned()));
}

#[test]
fn motan2_hop_obeys_a_callers_time_only_within_the_range() {
    let hop = Hop::near(SERVICE, ", timeout: 1s", |request| {
        std::thread::park_timeout(std::time::Duration::from_millis(300));
        echo(request)
    });
    let status = |ms: &str| hop.call(&Frame::call(SERVICE, "slow", "x").with("M_tmo", ms)).1.status;
    // Half to twice the service's own.
    for ignored in ["100", "499", "0", "-1", "soon", "999999999999"] {
        assert_eq!(status(ignored), 0, "{ignored} ms");
    }
    assert_eq!(status("500"), 0);
}

#[test]
fn motan2_hop_answers_calls_of_its_own_services() {
    let hop = Hop::far(SERVICE, echo);
    let call = |service: &str, method: &str| {
        let frame = Frame { body: Vec::new(), ..Frame::call(service, method, "") }.with("M_fws", "y");
        Client::open(hop.to).unwrap().call(frame).unwrap()
    };
    let meta = call("com.weibo.api.motan.runtime.meta.MetaService", "getDynamicMeta");
    assert_eq!((meta.status, meta.serialization, &*meta.body), (0, 6, &b"\x02\0\0\0\0"[..]));
    assert_eq!(call("com.example.Unknown", "m").thrown(), (501, 1, "service not support".to_owned()));
}
