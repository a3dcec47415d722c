//! Raw TCP and protocols that nobody declared.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::mpsc::sync_channel,
};

use host::{
    Agent, Backend, backend, free_port,
    http::{self, Conn},
    motan::{self, Frame},
    wait::PATIENCE,
};

/// An agent with one service of `protocol` (a whole YAML line, or nothing) in front of `endpoint`.
fn mesh(protocol: &str, endpoint: SocketAddr) -> (Agent, SocketAddr) {
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let agent = Agent::start(&format!(
        "referers:
  - service: svc
    listen: {listen}
    endpoints: [{endpoint}]
{protocol}"
    ));
    (agent, listen)
}

fn open(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn rest(mut stream: &TcpStream) -> Result<String, ErrorKind> {
    let mut text = String::new();
    stream.read_to_string(&mut text).map(|_| text).map_err(|e| e.kind())
}

/// Both ways a service can be raw TCP: told so, and found out.
fn each(check: impl Fn(&str)) {
    for protocol in ["    protocol: tcp\n", ""] {
        check(protocol);
    }
}

#[test]
fn tcp_each_half_closes_on_its_own() {
    each(|protocol| {
        // The server answers only after the caller's end: a half-closed caller still gets it.
        let server = Backend::tcp(|mut stream| {
            let asked = rest(&stream).unwrap();
            stream.write_all(format!("you said {asked}").as_bytes()).unwrap();
        });
        let (_agent, to) = mesh(protocol, server.addr());
        let mut stream = open(to);
        stream.write_all(b"all of it").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&stream).unwrap(), "you said all of it");

        // The other way round: the server ends first and still reads.
        let (tx, rx) = sync_channel(1);
        let server = Backend::tcp(move |mut stream| {
            stream.write_all(b"bye").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            tx.send(rest(&stream)).unwrap();
        });
        let (_agent, to) = mesh(protocol, server.addr());
        let mut stream = open(to);
        assert_eq!(rest(&stream).unwrap(), "bye");
        stream.write_all(b"last words").unwrap();
        drop(stream);
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap().unwrap(), "last words");
    });
}

#[test]
fn tcp_a_reset_stays_a_reset() {
    each(|protocol| {
        let (tx, rx) = sync_channel(1);
        let server = Backend::tcp(move |mut stream| {
            stream.write_all(b"ready").unwrap();
            tx.send(rest(&stream)).unwrap();
        });
        let (_agent, to) = mesh(protocol, server.addr());
        let mut stream = open(to);
        stream.write_all(b"\0half").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        backend::reset(stream);
        let seen = rx.recv_timeout(PATIENCE).unwrap();
        assert_eq!(seen, Err(ErrorKind::ConnectionReset), "{protocol:?}: the server must not take it for an end");

        let server = Backend::tcp(|mut stream| {
            stream.write_all(b"ready").unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
            backend::reset_all(&stream);
        });
        let (_agent, to) = mesh(protocol, server.addr());
        let mut stream = open(to);
        stream.read_exact(&mut [0; 5]).unwrap();
        stream.write_all(b"\0").unwrap();
        assert_eq!(rest(&stream), Err(ErrorKind::ConnectionReset), "{protocol:?}: nor the caller");
    });
}

#[test]
fn tcp_a_server_that_speaks_first_waits_for_nobody() {
    each(|protocol| {
        let server = Backend::tcp(|mut stream| {
            stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
            let mut conn = Conn::of(stream);
            while let Ok(line) = conn.line() {
                conn.send(format!("250 {line}\r\n")).unwrap();
            }
        });
        // Longer than the test may take: only a banner that waits for no detection comes in time.
        let (agent, to) = mesh(protocol, server.addr());
        let mut conn = Conn::open(to).unwrap();
        assert_eq!(conn.line().unwrap(), "220 mail.example ESMTP");
        conn.send("EHLO me\r\n").unwrap();
        assert_eq!(conn.line().unwrap(), "250 EHLO me");
        let row = &agent.sockets()[0];
        assert_eq!((&row["protocol"], &row["service"]), (&"tcp".into(), &"svc".into()), "{row}");
    });
}

#[test]
fn tcp_one_undeclared_service_takes_every_protocol() {
    // A server that speaks whatever it is spoken to, as a port behind a multiplexer does.
    let server = Backend::tcp(|stream| {
        let mut first = [0; 2];
        while stream.peek(&mut first).is_ok_and(|n| n == 1) {}
        match &first {
            b"GE" => {
                let mut conn = Conn::of(stream);
                while let Ok(Some(request)) = conn.request() {
                    conn.send(http::ok(&request.line)).unwrap();
                }
            }
            [0xf1, 0xf1] => {
                while let Ok(Some(frame)) = Frame::read(&stream) {
                    (&stream).write_all(&frame.answer(&frame.body).bytes()).unwrap();
                }
            }
            _ => {
                let _ = std::io::copy(&mut &stream, &mut &stream);
            }
        }
    });
    let (agent, to) = mesh("", server.addr());
    let protocol = || agent.sockets().last().expect("the connection is live")["protocol"].as_str().unwrap().to_owned();

    let mut conn = Conn::open(to).unwrap();
    assert_eq!(conn.get("/x").unwrap().text(), "GET /x HTTP/1.1");
    assert_eq!(conn.get("/y").unwrap().text(), "GET /y HTTP/1.1");
    assert_eq!(protocol(), "http");

    let mut client = motan::Client::open(to).unwrap();
    assert_eq!(client.call(Frame::call("svc", "echo", "hello")).unwrap().text(), "hello");
    assert_eq!(protocol(), "motan2");

    let mut raw = open(to);
    let mut back = [0; 9];
    raw.write_all(b"PING\r\n\0\x01\x02").unwrap();
    raw.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"PING\r\n\0\x01\x02");
    assert_eq!(protocol(), "tcp");

    // A prefix that could still become HTTP and does not.
    let mut slow = open(to);
    slow.write_all(b"PO").unwrap();
    let mut back = [0; 2];
    slow.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"PO", "what stays undecided is carried as bytes");
}

#[test]
fn tcp_nobody_there_closes_at_once() {
    each(|protocol| {
        let nobody = backend::Refusing::new();
        let (agent, to) = mesh(protocol, nobody.addr());
        // The reset may come before the caller has even heard that it is connected.
        let end = TcpStream::connect_timeout(&to, PATIENCE).map_err(|e| e.kind()).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            rest(&stream)
        });
        assert!(matches!(end.as_deref(), Ok("") | Err(ErrorKind::ConnectionReset)), "{end:?}");
        host::until("the failure is counted", || agent.metric("sockmesh_requests_total", &[r#"service="svc""#]) > 0.0);
    });
}

#[test]
fn tcp_bytes_arrive_whole_under_both_directions_at_once() {
    each(|protocol| {
        let server = Backend::echo();
        let (agent, to) = mesh(protocol, server.addr());
        let mut stream = open(to);
        let bytes: Vec<u8> = (0..8_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (mut half, sent) = (stream.try_clone().unwrap(), bytes.clone());
        let writer = std::thread::spawn(move || half.write_all(&sent));
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).unwrap();
        writer.join().unwrap().unwrap();
        assert!(back == bytes, "8 MB came back changed");
        host::until("bytes are counted", || {
            let row = &agent.sockets()[0];
            row["received_bytes"] == bytes.len() && row["sent_bytes"] == bytes.len()
        });
    });
}
