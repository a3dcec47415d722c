//! A mesh of one protocol on loopback, for the tests of protocols.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use model::{Instance, ServiceKey, Snapshot};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use super::{Accepted, KINDS, Protocol, tcp};
use crate::{
    accept::Downstream,
    cluster::{Cluster, Parts},
    config,
    drain::{self, Drain, Drainer},
    kind::BuildCx,
    metrics::LiveTable,
    route::{Direction, Route},
    stream::OwnSockets,
};

/// A listener of the mesh; everything it runs ends when it is dropped.
pub struct Front {
    pub addr: SocketAddr,
    pub cluster: Arc<Cluster>,
    pub live: Arc<LiveTable>,
    pub drainer: Option<Drainer>,
    _tasks: JoinSet<()>,
}

/// What tests change of it.
#[derive(Default)]
pub struct Settings {
    pub cluster: config::Cluster,
    pub limits: config::Limits,
    /// Further services behind the same listener.
    pub more: Vec<(&'static str, Vec<SocketAddr>)>,
}

pub fn protocol(name: &str, limits: &config::Limits) -> Arc<dyn Protocol> {
    (KINDS.iter().find(|k| k.name == name).unwrap().build)(limits)
}

fn cluster(
    service: &str,
    kind: &'static str,
    protocol: &dyn Protocol,
    config: &config::Cluster,
    endpoints: &[SocketAddr],
) -> Arc<Cluster> {
    let cx = BuildCx::default();
    let cluster = Cluster::build(Parts {
        key: ServiceKey { service: service.to_owned(), ..Default::default() },
        direction: Direction::Outbound,
        protocol: kind,
        config,
        connector: super::connector(protocol, config, &config::Limits::default(), &cx).unwrap(),
        // For those whose settings ask for it.
        introduce: Some(Arc::new(|_, _| Ok(()))),
        own: OwnSockets::default(),
        cx: &cx,
    })
    .unwrap();
    let instances = endpoints.iter().map(|addr| Instance::at(addr.to_string())).collect();
    cluster.apply(&Snapshot { revision: 1, instances, stale: None });
    Arc::new(cluster)
}

/// Starts a mesh that speaks `name` and sends to `endpoints` in turn.
pub async fn front(name: &'static str, endpoints: &[SocketAddr], settings: Settings) -> Front {
    let protocol = protocol(name, &settings.limits);
    let lb = config::Named::plain("round_robin");
    let config = config::Cluster { filters: Vec::new(), lb, ..settings.cluster };
    let mut clusters = vec![cluster("web", name, &*protocol, &config, endpoints)];
    for (service, endpoints) in &settings.more {
        clusters.push(cluster(service, name, &*protocol, &config, endpoints));
    }
    serve(protocol, name, clusters).await
}

/// Starts a listener of `protocol` in front of `clusters`, of which there must be one.
pub async fn serve(protocol: Arc<dyn Protocol>, name: &'static str, clusters: Vec<Arc<Cluster>>) -> Front {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    tcp::ready_to_copy(&socket).unwrap();
    let listener = socket.listen(1024).unwrap();
    let addr = listener.local_addr().unwrap();
    let live = Arc::new(LiveTable::default());
    let first = clusters[0].clone();
    let route = Arc::new(Route::new(Direction::Outbound, name, clusters));
    let (drainer, drain) = drain::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, protocol, route, live.clone(), drain));
    Front { addr, cluster: first, live, drainer: Some(drainer), _tasks: tasks }
}

async fn accept(
    listener: TcpListener,
    protocol: Arc<dyn Protocol>,
    route: Arc<Route>,
    live: Arc<LiveTable>,
    drain: Drain,
) {
    let mut connections = JoinSet::new();
    let mut asked = drain.clone();
    loop {
        let (io, peer) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            () = asked.graceful() => break,
        };
        if route.protocol != tcp::NAME {
            tcp::end_on_close(&io);
        }
        let destination = io.local_addr().unwrap();
        let guard = live.add(peer, destination, (0, String::new()), false, None);
        let io = Downstream::new(io.into(), Bytes::new(), guard.live.clone());
        let conn = Accepted { io, peer, guard, dialled: None };
        connections.spawn(protocol.clone().serve(conn, route.clone(), drain.clone()));
    }
    drop((asked, drain));
    while connections.join_next().await.is_some() {}
}

impl Front {
    pub async fn connect(&self) -> TcpStream {
        let io = TcpStream::connect(self.addr).await.unwrap();
        io.set_nodelay(true).unwrap();
        io
    }
}

/// A port where nobody listens.
pub async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
