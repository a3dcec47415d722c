//! A real etcd, asked through its HTTP gateway.

use std::{fs, net::SocketAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    Cmd, Temp, http,
    need::which,
    net::{free_addr, free_port},
    program::{Place, Server},
    tls::Authority,
    until,
};

/// A member of its own with no keys, which takes values of up to 20 MB.
pub fn etcd(place: &Place<'_>) -> Server {
    let (dir, addr) = (Temp::new(), SocketAddr::new(place.ip(), free_port()));
    let (client, peer) = (format!("http://{addr}"), format!("http://127.0.0.1:{}", free_port()));
    let data = dir.file("data");
    let cmd = Cmd::new(which("etcd").expect("asked for before")).arg("--data-dir").arg(data.display());
    let cmd = cmd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    let cmd = cmd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    let cmd = cmd.args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"]);
    let cmd = cmd.args(["--max-request-bytes", "20000000", "--log-level", "warn"]);
    let server = Server::start(addr, dir, place.put(cmd));
    serves(&server);
    server
}

/// A member that speaks TLS to holders of a certificate of `ca` at the address beside it, and plainly to its administrator.
pub fn secured(ca: &Authority) -> (Server, SocketAddr) {
    let (dir, addr, tls) = (Temp::new(), free_addr(), free_addr());
    let (urls, peer) = (format!("https://{tls},http://{addr}"), format!("http://127.0.0.1:{}", free_port()));
    let (cert, key) = ca.issue("member");
    let cmd = Cmd::new(which("etcd").expect("asked for before")).arg("--data-dir").arg(dir.file("data").display());
    let cmd = cmd.args(["--listen-client-urls", &urls, "--advertise-client-urls", &urls]);
    let cmd = cmd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    let cmd = cmd.args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync", "--client-cert-auth"]);
    let cmd = cmd.args(
        ["--trusted-ca-file", "--cert-file", "--key-file"]
            .iter()
            .zip([ca.ca(), cert, key])
            .flat_map(|(option, file)| [(*option).to_owned(), file.display().to_string()]),
    );
    let server = Server::start(addr, dir, cmd.args(["--log-level", "error"]));
    serves(&server);
    (server, tls)
}

/// A call about users and roles, by an administrator's token once there is one.
pub fn auth(server: SocketAddr, token: &str, call: &str, body: &str) -> Value {
    by(server, token, &format!("auth/{call}"), body)
}

/// The keys that begin with `prefix`, by a token.
pub fn keys_by(server: SocketAddr, token: &str, prefix: &str) -> Vec<String> {
    let end = format!("{prefix}\u{7f}");
    let range = json!({"key": STANDARD.encode(prefix), "range_end": STANDARD.encode(end), "keys_only": true});
    let answer = by(server, token, "kv/range", &range.to_string());
    let key = |kv: &Value| String::from_utf8(STANDARD.decode(kv["key"].as_str().unwrap()).unwrap()).unwrap();
    answer["kvs"].as_array().map(|all| all.iter().map(key).collect()).unwrap_or_default()
}

fn by(server: SocketAddr, token: &str, call: &str, body: &str) -> Value {
    let mut conn = http::Conn::open(server).unwrap();
    let token = if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
    let length = body.len();
    conn.send(format!("POST /v3/{call} HTTP/1.1\r\nHost: etcd\r\n{token}Content-Length: {length}\r\n\r\n{body}"))
        .unwrap();
    let answer = conn.answer().unwrap();
    assert_eq!(answer.status(), 200, "{call}: {}", answer.text());
    serde_json::from_str(&answer.text()).unwrap()
}

/// Three members that know each other.
pub fn cluster() -> [Server; 3] {
    let addrs = [(); 3].map(|()| (free_port(), free_port()));
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let all: Vec<_> = addrs.iter().enumerate().map(|(i, (_, peer))| format!("m{i}={}", url(*peer))).collect();
    let all = all.join(",");
    let mut names = ["m0", "m1", "m2"].into_iter();
    let servers = addrs.map(|(client, peer)| {
        let dir = Temp::new();
        let data = dir.file("data");
        let cmd = Cmd::new(which("etcd").expect("asked for before")).arg("--data-dir").arg(data.display());
        let cmd = cmd.args(["--name", names.next().unwrap(), "--unsafe-no-fsync", "--log-level", "error"]);
        let cmd = cmd.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
        let cmd = cmd.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
        let cmd = cmd.args(["--initial-cluster", &all]);
        Server::start(SocketAddr::from(([127, 0, 0, 1], client)), dir, cmd)
    });
    servers.iter().for_each(serves);
    servers
}

/// Whether this member leads the others.
pub fn leads(server: SocketAddr) -> bool {
    let status = gateway(server, "maintenance/status", &json!({}));
    status["leader"] == status["header"]["member_id"]
}

/// Waits until it does more than listen.
pub fn serves(server: &Server) {
    if server.addr().ip().is_loopback() {
        until("etcd serves", || http::get(server.addr(), "/health").is_ok_and(|said| said.text().contains("true")));
    }
}

/// Starts it again after it was stopped, with nothing of what it knew.
pub fn again_empty(server: &mut Server) {
    fs::remove_dir_all(server.dir().join("data")).unwrap();
    server.again();
    serves(server);
}

/// A key's value, and the lease it is under (0 for none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Value.
    pub value: Vec<u8>,
    /// Lease.
    pub lease: u64,
}

/// Writes a key that stays.
pub fn put(server: SocketAddr, key: &str, value: &[u8]) {
    gateway(server, "kv/put", &json!({"key": STANDARD.encode(key.as_bytes()), "value": STANDARD.encode(value)}));
}

/// Writes many keys, many at a time.
pub fn put_all(server: SocketAddr, pairs: impl Iterator<Item = (String, String)>) {
    let pairs: Vec<_> = pairs.collect();
    // The most that one transaction takes.
    for some in pairs.chunks(128) {
        let puts: Vec<_> = some
            .iter()
            .map(|(k, v)| json!({"requestPut": {"key": STANDARD.encode(k.as_bytes()), "value": STANDARD.encode(v.as_bytes())}}))
            .collect();
        gateway(server, "kv/txn", &json!({"success": puts}));
    }
}

/// Deletes a key.
pub fn delete(server: SocketAddr, key: &str) {
    gateway(server, "kv/deleterange", &json!({"key": STANDARD.encode(key.as_bytes())}));
}

/// A key, if it is there.
pub fn get(server: SocketAddr, key: &str) -> Option<Found> {
    let answer = gateway(server, "kv/range", &json!({"key": STANDARD.encode(key.as_bytes())}));
    let kv = answer["kvs"].get(0)?;
    let value = kv["value"].as_str().map(|text| STANDARD.decode(text).unwrap()).unwrap_or_default();
    Some(Found { value, lease: kv["lease"].as_str().map_or(0, |id| id.parse::<i64>().unwrap() as u64) })
}

/// Forgets all history up to now.
pub fn compact(server: SocketAddr) {
    let now = gateway(server, "kv/range", &json!({"key": STANDARD.encode(b"x")}))["header"]["revision"].clone();
    gateway(server, "kv/compaction", &json!({"revision": now, "physical": true}));
}

/// A lease of `seconds`; its number.
pub fn grant(server: SocketAddr, seconds: u32) -> u64 {
    let answer = gateway(server, "lease/grant", &json!({"TTL": seconds}));
    answer["ID"].as_str().unwrap().parse::<i64>().unwrap() as u64
}

/// Ends a lease with its keys.
pub fn revoke(server: SocketAddr, lease: u64) {
    gateway(server, "kv/lease/revoke", &json!({"ID": lease.to_string()}));
}

/// Writes a key under a lease.
pub fn put_under(server: SocketAddr, key: &str, value: &[u8], lease: u64) {
    let put =
        json!({"key": STANDARD.encode(key.as_bytes()), "value": STANDARD.encode(value), "lease": lease.to_string()});
    gateway(server, "kv/put", &put);
}

fn gateway(server: SocketAddr, what: &str, body: &Value) -> Value {
    let answer = http::post(server, &format!("/v3/{what}"), body.to_string().as_bytes()).unwrap();
    assert_eq!(answer.status(), 200, "{what}: {}", answer.text());
    serde_json::from_str(&answer.text()).unwrap()
}
