//! Golden frames and a small Motan2 server, for the tests of this folder.

use std::{collections::BTreeMap, future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    NAME, build,
    codec::{Decoded, Frame, Head, decode, encode_head, kind},
    inbox::Inbox,
    server::{Caller, serve},
};
use crate::{
    call::{Pairs, Text},
    cluster::{Cluster, Parts},
    config,
    drain::Drainer,
    kind::BuildCx,
    route::{Direction, Route},
};

/// A recorded frame from `tests/data/motan2/`.
pub(super) fn golden(name: &str) -> Bytes {
    let path = format!("{}/../tests/data/motan2/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// All recorded frames, by name.
pub(super) fn all_golden() -> Vec<(String, Bytes)> {
    let folder = format!("{}/../tests/data/motan2", env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter_map(|name| Some(name.strip_suffix(".hex")?.to_owned())).collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), golden(&name))).collect()
}

/// Generous end of everything a test waits for.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// One side of a connection that speaks frames.
pub(super) struct Peer<I> {
    pub io: I,
    inbox: Inbox,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Peer<I> {
    pub(super) fn new(io: I) -> Self {
        Self { io, inbox: Inbox::new(64 << 20) }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// The next frame or Motan1 message; `None` at the end, however it came.
    pub(super) async fn next(&mut self) -> Option<Decoded> {
        let next = async {
            loop {
                if let Some(decoded) = self.inbox.next().unwrap() {
                    return Some(decoded);
                }
                match poll_fn(|cx| self.inbox.poll_fill(&mut self.io, cx)).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a frame or the end in time")
    }

    pub(super) async fn frame(&mut self) -> Frame {
        match self.next().await {
            Some(Decoded::Frame(frame)) => frame,
            other => panic!("no frame but {other:?}"),
        }
    }

    pub(super) async fn is_closed(&mut self) -> bool {
        self.next().await.is_none()
    }
}

/// A frame as bytes.
pub(super) fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_head(frame.head, &frame.meta, &[], frame.body.len(), &mut out);
    out.extend_from_slice(&frame.body);
    out.to_vec()
}

/// The frame at the start of `bytes`.
pub(super) fn frame_of(bytes: &[u8]) -> Frame {
    match decode(&mut BytesMut::from(bytes), 64 << 20).unwrap() {
        Decoded::Frame(frame) => frame,
        other => panic!("{other:?}"),
    }
}

/// Metadata as a map: what is compared, because its order means nothing.
pub(super) fn meta_of(frame: &Frame) -> BTreeMap<String, String> {
    frame.meta.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

/// A request as a client library writes it.
pub(super) fn request(id: u64, meta: &[(&'static str, &str)], body: &'static [u8]) -> Frame {
    let meta = Pairs::from_iter(meta.iter().map(|(k, v)| (*k, *v)));
    let head = Head { kind: 0, status: 0, serialization: 6, id };
    Frame { head, meta, body: Bytes::from_static(body) }
}

/// The good answer to `request`, with its own body.
pub(super) fn echo(request: &Frame) -> Frame {
    let meta = Pairs::from_iter([("M_pt", "0")]);
    Frame { head: Head { kind: kind::RESPONSE, ..request.head }, meta, body: request.body.clone() }
}

/// A listener for a test's own server.
pub(super) struct Backend {
    listener: TcpListener,
    pub addr: SocketAddr,
}

impl Backend {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> Peer<TcpStream> {
        let accepted = tokio::time::timeout(PATIENCE, self.listener.accept()).await;
        Peer::new(accepted.expect("a connection in time").unwrap().0)
    }

    /// Answers whatever comes with `answer` from now on.
    pub(super) fn serve(self, answer: fn(&Frame) -> Frame) {
        tokio::spawn(async move {
            while let Ok((io, _)) = self.listener.accept().await {
                tokio::spawn(async move {
                    let mut peer = Peer::new(io);
                    loop {
                        let Ok(Some(Decoded::Frame(frame))) = tokio::time::timeout(PATIENCE, peer.next()).await else {
                            return;
                        };
                        if peer.io.write_all(&bytes_of(&answer(&frame))).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }
}

/// A cluster of `service` with these endpoints.
pub(super) fn cluster(
    direction: Direction,
    (service, group): (&str, &str),
    endpoints: &[SocketAddr],
    tweak: impl FnOnce(&mut config::Cluster),
) -> Arc<Cluster> {
    let mut config = config::Cluster { connections: 1, ..config::Cluster::default() };
    config.filters.clear();
    tweak(&mut config);
    let cx = BuildCx { application: Text::from_static("ep-agent"), ..BuildCx::default() };
    let protocol = build(&config::Limits::default());
    let cluster = Cluster::build(Parts {
        key: model::ServiceKey { service: service.into(), group: group.into(), version: String::new() },
        direction,
        protocol: NAME,
        config: &config,
        connector: protocol.connector(&config, &cx).unwrap(),
        introduce: None,
        own: crate::stream::OwnSockets::default(),
        cx: &cx,
    });
    let cluster = Arc::new(cluster.unwrap());
    let instances = endpoints.iter().map(|a| model::Instance::at(a.to_string())).collect();
    cluster.apply(&model::Snapshot { revision: 1, instances, stale: None });
    cluster
}

/// An agent that serves one route on a real listener.
pub(super) struct Agent {
    pub addr: SocketAddr,
    _drainer: Drainer,
}

impl Agent {
    /// Serves `clusters`.
    pub(super) async fn new(clusters: Vec<Arc<Cluster>>, limits: config::Limits) -> Self {
        let direction = clusters[0].info.direction;
        let route = Arc::new(Route::new(direction, NAME, clusters));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (drainer, drain) = crate::drain::new();
        tokio::spawn(async move {
            let mut stopping = drain.clone();
            loop {
                let (io, peer) = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap(),
                    () = stopping.graceful() => return,
                };
                let caller = Caller { peer, live: None, route: route.clone(), limits: limits.clone() };
                tokio::spawn(serve(io, caller, drain.clone()));
            }
        });
        Self { addr, _drainer: drainer }
    }

    /// An agent that carries `kit.EchoService` of group `kit-group` to `endpoints`.
    pub(super) async fn outbound(endpoints: &[SocketAddr]) -> Self {
        let cluster = cluster(Direction::Outbound, ("kit.EchoService", "kit-group"), endpoints, |_| {});
        Self::new(vec![cluster], config::Limits::default()).await
    }

    /// A caller's connection.
    pub(super) async fn connect(&self) -> Peer<TcpStream> {
        Peer::new(TcpStream::connect(self.addr).await.unwrap())
    }
}
