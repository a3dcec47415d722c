//! Every call of the API is sent what its description allows, and what it does not. Nothing panics, nothing is
//! answered in another form than all errors are, no memory is taken by what is merely claimed.

use model::center::{NewToken, Role};
use serde_json::Value;

use crate::{
    schema::{Call, Maker, percent},
    served::{Answer, Served},
};

/// Requests to each call: short in a test, long in `cargo xtask soak`.
fn rounds() -> u64 {
    if std::env::var_os("SOCKMESH_SOAK").is_some() { 3000 } else { 100 }
}

/// The most memory a centre may have taken for it; a debug build takes some sixty without being asked anything.
const PEAK_MIB: u64 = 600;

fn check(what: &str, answer: &Answer) {
    // Absent store or source: not for a fuzzer to bring about on its own data.
    assert!(answer.status < 500 || answer.status == 503, "{what}: {answer}");
    if answer.status >= 400 {
        answer.problem();
    }
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{what}: {answer}");
}

fn path(call: &Call, maker: &mut Maker<'_>) -> String {
    let mut path = call.path.clone();
    let mut query = Vec::new();
    for (place, name, schema) in &call.parameters {
        let text = match maker.value(name, schema, 0) {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let text: String = text.chars().take(3000).collect();
        if place == "path" {
            path = path.replace(&format!("{{{name}}}"), &percent(&text));
        } else if maker.choose(&[true, true, false]) {
            query.push(format!("{name}={}", percent(&text)));
        }
    }
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

/// Sends a call what it is described to take, then more and more odd things.
async fn send(served: &mut Served, api: &Value, call: &Call, n: usize, bearer: Option<&str>, counts: &mut [u64; 6]) {
    let headers: Vec<_> = bearer.into_iter().map(|bearer| ("Authorization", bearer)).collect();
    for round in 0..rounds() {
        let seed = (n as u64) << 32 | round;
        let hostile = [0, 40, 12, 5][(round % 4) as usize];
        let mut maker = Maker::new(api, seed, hostile);
        let path = path(call, &mut maker);
        let body = call.body.as_ref().map(|schema| maker.value("", schema, 0).to_string().into_bytes());
        let body = body.map(|body| if hostile == 5 { broken(&mut maker, body) } else { body });
        let answer = served.ask(&call.method, &path, &headers, body.as_deref()).await;
        check(&format!("seed {seed}: {} {path}", call.method), &answer);
        counts[usize::from(answer.status / 100)] += 1;
        assert!(served.lives(), "seed {seed}: {} {path} ended the centre", call.method);
    }
}

/// Accounts would have everyone log in: tried by themselves.
fn of_accounts(call: &Call) -> bool {
    call.changes() && ["/v1/users", "/v1/tokens", "/v1/login"].iter().any(|path| call.path.starts_with(path))
}

fn told(what: &str, served: &Served, counts: &[u64; 6]) {
    let all: u64 = counts.iter().sum();
    let peak = served.peak_mib();
    println!("{what}: {all} answers: 2xx {}, 4xx {}, 5xx {}, peak {peak} MiB", counts[2], counts[4], counts[5]);
    assert!(counts[2] > 0 && counts[4] > 0, "{counts:?}");
    assert!(peak < PEAK_MIB, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_stands_what_it_is_sent() {
    let mut served = Served::open();
    let api = served.description().await;
    let calls = Call::all(&api);
    assert!(calls.len() > 10, "{calls:?}");
    let mut counts = [0; 6];
    for (n, call) in calls.iter().enumerate().filter(|(_, call)| !of_accounts(call)) {
        send(&mut served, &api, call, n, None, &mut counts).await;
    }
    told(&format!("{} calls", calls.len()), &served, &counts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_stand_what_they_are_sent() {
    let (mut served, password) = Served::closed("");
    let root = served.login("root", &password).await;
    let admin = NewToken { roles: vec![("*".to_owned(), Role::Admin)], ..NewToken::default() };
    let bearer = format!("Bearer {}", served.token(&root, &admin).await);
    let api = served.description().await;
    let mut counts = [0; 6];
    for (n, call) in Call::all(&api).iter().enumerate().filter(|(_, call)| of_accounts(call)) {
        send(&mut served, &api, call, n, Some(&bearer), &mut counts).await;
    }
    told("accounts", &served, &counts);
    // Nothing of it took the admin's rights away.
    assert_eq!(served.ask("GET", "/v1/users", &[("Authorization", &bearer)], None).await.status, 200);
}

/// Bytes that are no JSON any more, now and then.
fn broken(maker: &mut Maker<'_>, mut body: Vec<u8>) -> Vec<u8> {
    match maker.choose(&[0, 1, 2, 3, 4, 5]) {
        0 => body.truncate(body.len() / 2),
        1 => body.push(0xff),
        2 => body.splice(0..0, "[".repeat(5000).bytes()).for_each(drop),
        3 => body = b"{\"a\":1e999999}".to_vec(),
        _ => {}
    }
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_and_broken_frames_cost_nothing() {
    let mut served = Served::open();
    let host = format!("Host: {}\r\n", served.at);
    let json = "Content-Type: application/json\r\n";
    let head = |rest: &str| format!("PUT /v1/agent/registrations HTTP/1.1\r\n{host}{json}{rest}");
    let many_headers: String = (0..5000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let mut samples: Vec<Vec<u8>> = [
        // Claims of ten billion bytes, of a number that is none, of two lengths, of both forms.
        head("Content-Length: 10000000000\r\nConnection: close\r\n\r\n{"),
        head("Content-Length: -1\r\n\r\n{}"),
        head("Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        head("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        head("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}"),
        head("Transfer-Encoding: chunked\r\n\r\nx\r\n"),
        format!("GET / HTTP/9.9\r\n{host}\r\n"),
        format!("GET {} HTTP/1.1\r\n{host}\r\n", "/x".repeat(100_000)),
        format!("GET /v1/me HTTP/1.1\r\n{host}{many_headers}\r\n"),
        format!("GET /v1/me HTTP/1.1\r\n{host}Cookie: {}\r\nConnection: close\r\n\r\n", "a=b;".repeat(4000)),
        format!("GET /v1/%ff%00%zz HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        format!("GET /v1/../v1/me HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        format!("GET http://evil.example/v1/me HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        "GET /v1/me HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /v1/me HTTP/1.0\r\n\r\n".to_owned(),
        format!("CONNECT 127.0.0.1:22 HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        format!("TRACE / HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        format!("OPTIONS * HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        "\r\n\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    let mut random = fastrand::Rng::with_seed(7);
    samples.extend((0..50).map(|_| (0..random.usize(1..2000)).map(|_| random.u8(..)).collect()));
    for sample in &samples {
        let mut io = tokio::net::TcpStream::connect(served.at).await.unwrap();
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let _ = io.write_all(sample).await;
        // Whoever claims more than comes is waited for; who goes away is forgotten.
        let _ = io.shutdown().await;
        let mut answer = Vec::new();
        let end = tokio::time::timeout(std::time::Duration::from_secs(60), io.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "no end after {:?}", String::from_utf8_lossy(&sample[..sample.len().min(200)]));
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 5"), "{answer}");
        assert!(served.lives());
    }
    let peak = served.peak_mib();
    assert!(peak < PEAK_MIB, "{peak} MiB");
    assert_eq!(served.ask("GET", "/v1/me", &[], None).await.status, 200);
}
