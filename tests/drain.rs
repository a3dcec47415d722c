//! A stop that was asked for: nobody is cut who can finish in time.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc::sync_channel,
    thread,
    time::{Duration, Instant},
};

use host::{
    Agent, Backend, Load,
    agent::Settings,
    http::{self, Conn},
    motan::{self, Client, Frame},
    net, until,
};
use rustix::process::Signal;

fn start(drain: &str, protocol: &str, endpoint: SocketAddr) -> (Agent, SocketAddr) {
    let at = net::free_addr();
    let top = format!("drain: {drain}");
    let settings = Settings { top: &top, ..Settings::default() };
    let service = format!("{{service: s, protocol: {protocol}, listen: {at}, endpoints: [{endpoint}], timeout: 20s}}");
    (Agent::with(&settings, &format!("referers:\n  - {service}\n")), at)
}

#[test]
fn drain_under_http_load_fails_no_call() {
    let _heavy = host::heavy();
    let server = Backend::named("fine");
    let (mut agent, at) = start("10s", "http", server.addr());
    let load = Load::http(8, at, "/");
    load.more(300);
    agent.signal(Signal::TERM);
    let status = agent.wait();
    let tally = load.stop();
    assert!(status.success(), "{status}\n{}", agent.log());
    // The agent is gone: connects are refused. A connect that the kernel had taken and nobody accepted may
    // be reset. Nothing that was being served may fail.
    let lost: Vec<_> = tally.bad.iter().filter(|e| !e.starts_with("connect:")).collect();
    assert!(lost.is_empty(), "{} calls failed, such as {:?}", lost.len(), lost[0]);
}

#[test]
fn drain_tells_http_callers_to_go() {
    let (tx, rx) = sync_channel(1);
    let server = Backend::tcp(move |stream| {
        let mut conn = Conn::of(stream);
        while let Ok(Some(request)) = conn.request() {
            let path = request.line.split(' ').nth(1).unwrap().to_owned();
            if path == "/slow" {
                tx.send(()).unwrap();
                thread::park_timeout(Duration::from_millis(700));
            }
            let _ = conn.send(http::ok(path));
        }
    });
    let (mut agent, at) = start("10s", "http", server.addr());
    let (mut idle, mut busy) = (Conn::open(at).unwrap(), Conn::open(at).unwrap());
    idle.get("/").unwrap();
    busy.send("GET /slow HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    rx.recv_timeout(host::wait::PATIENCE).unwrap();
    agent.signal(Signal::TERM);
    assert_eq!(idle.rest().unwrap(), b"", "an idle connection is closed");
    let answer = busy.answer().unwrap();
    assert_eq!((answer.text().as_str(), answer.closes()), ("/slow", true));
    assert!(agent.wait().success());
    assert!(Conn::open(at).is_err());
}

#[test]
fn drain_lets_motan2_finish_what_it_holds() {
    let (tx, rx) = sync_channel(20);
    let server = motan::server(move |request| {
        tx.send(()).unwrap();
        thread::park_timeout(Duration::from_millis(700));
        Some(request.answer(&request.body))
    });
    let (mut agent, at) = start("10s", "motan2", server.addr());
    let mut client = Client::open(at).unwrap();
    let asked: Vec<_> = (0..20).map(|i| client.begin(Frame::call("s", "m", &i.to_string())).unwrap()).collect();
    for _ in 0..20 {
        rx.recv_timeout(host::wait::PATIENCE).expect("all are under way");
    }
    agent.signal(Signal::TERM);
    let mut answered: Vec<_> = (0..20).map(|_| client.receive().unwrap().expect("all are answered").id).collect();
    answered.sort_unstable();
    assert_eq!(answered, asked);
    assert_eq!(client.receive().unwrap(), None, "and then it closes");
    assert!(agent.wait().success());
}

#[test]
fn drain_ends_the_rest_at_the_deadline() {
    let (tx, rx) = sync_channel(2);
    let server = Backend::tcp(move |mut stream| {
        tx.send(()).unwrap();
        let _ = stream.read(&mut [0; 1]);
    });
    let (mut agent, at) = start("1s", "tcp", server.addr());
    let mut raw = TcpStream::connect(at).unwrap();
    rx.recv_timeout(host::wait::PATIENCE).unwrap();
    let begun = Instant::now();
    agent.signal(Signal::TERM);
    raw.set_read_timeout(Some(host::wait::PATIENCE)).unwrap();
    let end = raw.read(&mut [0; 1]);
    assert!(matches!(&end, Ok(0)) || end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{end:?}");
    assert!(begun.elapsed() >= Duration::from_millis(900), "not before the deadline: {:?}", begun.elapsed());
    assert!(agent.wait().success(), "a deadline that passed is no failure of the stop");
}

#[test]
fn drain_lets_raw_connections_end_by_themselves() {
    let server = Backend::echo();
    let (mut agent, at) = start("10s", "tcp", server.addr());
    let mut raw = TcpStream::connect(at).unwrap();
    raw.set_read_timeout(Some(host::wait::PATIENCE)).unwrap();
    let mut ping = |text: &[u8; 4]| {
        raw.write_all(text).unwrap();
        let mut back = [0; 4];
        raw.read_exact(&mut back).unwrap();
        assert_eq!(&back, text);
    };
    ping(b"ping");
    agent.signal(Signal::TERM);
    until("it drains", || !agent.is_ready());
    ping(b"pong");
    drop(raw);
    assert!(agent.wait().success());
}
