//! HTTP through a mesh on loopback, with callers and backends that speak it byte by byte.

mod bodies;
mod connections;
mod continues;
mod messages;
mod refused;
mod upgrades;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::NAME;
use crate::protocol::testing::{Front, Settings, front};

/// Anything here takes milliseconds; a hang must fail, not stall.
const LIMIT: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("takes milliseconds when it works")
}

/// One end of a connection that is spoken to in plain text.
struct Peer {
    io: TcpStream,
    seen: Vec<u8>,
}

/// A message as it came.
#[derive(Debug)]
struct Message {
    head: String,
    body: Vec<u8>,
    /// What followed the last chunk.
    trailers: String,
    /// Whether the body ended where its head said.
    complete: bool,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Peer {
    fn new(io: TcpStream) -> Self {
        Self { io, seen: Vec::new() }
    }

    async fn send(&mut self, text: impl AsRef<[u8]>) {
        within(self.io.write_all(text.as_ref())).await.unwrap();
    }

    /// Receives until there are `n` bytes or the connection ends; whether there are.
    async fn fill(&mut self, n: usize) -> bool {
        while self.seen.len() < n {
            if !matches!(within(self.io.read_buf(&mut self.seen)).await, Ok(1..)) {
                return false;
            }
        }
        true
    }

    async fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        self.fill(n).await.then(|| self.seen.drain(..n).collect())
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(lf) = self.seen.iter().position(|b| *b == b'\n') {
                return Some(String::from_utf8(self.seen.drain(..=lf).collect()).unwrap());
            }
            if !self.fill(self.seen.len() + 1).await {
                return None;
            }
        }
    }

    /// Everything up to an empty line, which is not in it.
    async fn block(&mut self) -> Option<String> {
        let mut all = String::new();
        loop {
            match self.line().await?.as_str() {
                "\r\n" => return Some(all),
                line => all.push_str(line),
            }
        }
    }

    /// The next request or answer; `None` when the connection ends instead.
    async fn message(&mut self) -> Option<Message> {
        let head = self.block().await?;
        Some(self.body(head, false).await)
    }

    /// The answer to a HEAD request.
    async fn head(&mut self) -> Option<Message> {
        let head = self.block().await?;
        Some(self.body(head, true).await)
    }

    async fn body(&mut self, head: String, none: bool) -> Message {
        let mut message = Message { head, body: Vec::new(), trailers: String::new(), complete: true };
        let answer = message.head.starts_with("HTTP/");
        if none || (answer && matches!(message.status(), 101 | 204 | 304)) {
            return message;
        }
        if message.header("transfer-encoding").is_some() {
            message.complete = self.chunks(&mut message).await.is_some();
        } else if let Some(length) = message.header("content-length").map(|v| v.parse().unwrap()) {
            message.complete = self.fill(length).await;
            message.body = self.seen.drain(..length.min(self.seen.len())).collect();
        } else if answer {
            let rest = within(self.io.read_to_end(&mut self.seen)).await;
            message.complete = rest.is_ok();
            message.body = std::mem::take(&mut self.seen);
        }
        message
    }

    async fn chunks(&mut self, message: &mut Message) -> Option<()> {
        loop {
            let size = usize::from_str_radix(self.line().await?.trim(), 16).unwrap();
            if size == 0 {
                message.trailers = self.block().await?;
                return Some(());
            }
            message.body.extend(self.take(size).await?);
            assert_eq!(self.line().await?, "\r\n");
        }
    }

    async fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request).await;
        self.message().await.expect("an answer")
    }

    /// Whether the other end has closed, and nothing was left to read.
    async fn is_over(&mut self) -> bool {
        self.seen.is_empty() && matches!(within(self.io.read(&mut [0])).await, Ok(0) | Err(_))
    }
}

/// A server that treats its connections as the test says.
struct Backend {
    addr: SocketAddr,
    /// Connections so far.
    connections: Arc<AtomicUsize>,
    /// Requests that the test's code has counted.
    requests: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Backend {
    /// Calls `serve` with the number of each connection, from 0.
    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(usize, Peer, Arc<AtomicUsize>) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (connections, requests) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (count, counted) = (connections.clone(), requests.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (io, _) = listener.accept().await.unwrap();
                io.set_nodelay(true).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                open.spawn(serve(number, Peer::new(io), counted.clone()));
            }
        });
        Self { addr, connections, requests, _task: task }
    }

    /// Answers every request with what `answer` makes of it.
    async fn answering(answer: impl Fn(&Message) -> String + Clone + Send + Sync + 'static) -> Self {
        Self::start(move |_, mut peer, requests| {
            let answer = answer.clone();
            async move {
                while let Some(request) = peer.message().await {
                    requests.fetch_add(1, Ordering::SeqCst);
                    peer.send(answer(&request)).await;
                }
            }
        })
        .await
    }

    /// Answers with the head and body it was asked with.
    async fn mirror() -> Self {
        Self::answering(|request| ok(&format!("{}\n{}", request.head, String::from_utf8_lossy(&request.body)))).await
    }

    async fn mesh(&self) -> Front {
        self.mesh_with(Settings::default()).await
    }

    async fn mesh_with(&self, settings: Settings) -> Front {
        front(NAME, &[self.addr], settings).await
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

impl Front {
    async fn caller(&self) -> Peer {
        Peer::new(self.connect().await)
    }

    /// Waits until nobody is connected.
    async fn quiet(&self) {
        within(async {
            while !self.live.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Calls that succeeded and failed.
    fn ended(&self) -> (u64, u64) {
        let stats = &self.cluster.info.stats;
        let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        (load(&stats.succeeded), load(&stats.failed))
    }
}
