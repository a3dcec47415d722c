//! A cluster whose endpoints act as a test says.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use model::{Instance, Snapshot};
use parking_lot::Mutex;
use tokio::time::advance;

use crate::{
    call::{Body, Call, CallError, ErrorKind, Head, Request, Response, ResponseHead, Retry, Status, Text},
    cluster::{Cluster, Parts},
    config::{self, Named},
    endpoint::{Connector, Endpoint},
    filter::Direction,
    kind::BuildCx,
    stream::OwnSockets,
};

/// What an endpoint does with an attempt.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    Answer(Status),
    Slow(Duration),
    Refuse,
    Reset,
    Hang,
}

type Decide = dyn Fn(u16, &Call) -> Act + Send + Sync;

/// Endpoints that act as a function of their port says.
pub(crate) struct Stage {
    act: Box<Decide>,
    /// Port and mark of each attempt.
    asked: Mutex<Vec<(u16, u32)>>,
}

impl Connector for Stage {
    fn call<'a>(&'a self, to: &'a Arc<Endpoint>, req: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            let port = to.addr.port();
            self.asked.lock().push((port, req.call.retry));
            let answer = |status| {
                let body = Body::Full(port.to_string().into());
                Ok(Response { status, head: ResponseHead::None, body, endpoint: Some(to.addr) })
            };
            match (self.act)(port, &req.call) {
                Act::Answer(status) => answer(status),
                Act::Slow(time) => {
                    tokio::time::sleep(time).await;
                    answer(Status::Ok)
                }
                Act::Refuse => Err(CallError::upstream(ErrorKind::Connect, Retry::NotSent, "refused")),
                Act::Reset => Err(CallError::upstream(ErrorKind::Reset, Retry::IfIdempotent, "reset")),
                Act::Hang => std::future::pending().await,
            }
        })
    }

    fn default_timeout(&self) -> Duration {
        Duration::from_secs(1)
    }
}

pub(crate) struct Bench {
    pub(crate) cluster: Arc<Cluster>,
    stage: Arc<Stage>,
}

/// `name` or `{name: options}`.
pub(crate) fn named(yaml: &str) -> Named {
    match serde_yaml::from_str(yaml).unwrap() {
        serde_yaml::Value::Mapping(map) => {
            let (name, options) = map.iter().next().unwrap();
            Named { name: name.as_str().unwrap().to_owned(), options: options.clone() }
        }
        name => Named::plain(name.as_str().unwrap()),
    }
}

/// A cluster of endpoints 127.0.0.1:1.. in turn, whose calls may be repeated, twice at most.
pub(crate) fn bench(endpoints: u16, ha: &str, act: impl Fn(u16, &Call) -> Act + Send + Sync + 'static) -> Bench {
    let instances = (1..=endpoints).map(|i| Instance::at(format!("127.0.0.1:{i}"))).collect();
    bench_of(config::Cluster { ha: named(ha), ..config() }, instances, act)
}

pub(crate) fn config() -> config::Cluster {
    let lb = Named::plain("round_robin");
    config::Cluster { retries: 2, idempotent: true, lb, filters: Vec::new(), ..Default::default() }
}

pub(crate) fn bench_of(
    config: config::Cluster,
    instances: Vec<Instance>,
    act: impl Fn(u16, &Call) -> Act + Send + Sync + 'static,
) -> Bench {
    // Which endpoint a round begins with is drawn.
    fastrand::seed(1);
    let stage = Arc::new(Stage { act: Box::new(act), asked: Mutex::default() });
    let cluster = Cluster::build(Parts {
        key: model::ServiceKey { service: "echo".to_owned(), ..Default::default() },
        direction: Direction::Outbound,
        protocol: "stage",
        config: &config,
        connector: stage.clone(),
        introduce: None,
        own: OwnSockets::default(),
        cx: &BuildCx::default(),
    })
    .unwrap();
    cluster.apply(&Snapshot { revision: 1, instances, stale: None });
    Bench { cluster: Arc::new(cluster), stage }
}

pub(crate) fn request() -> Request {
    let call = Call::new(Text::from_static("echo"), Text::from_static("say"));
    Request { call, head: Head::None, body: Body::Full("hello".into()) }
}

impl Bench {
    pub(crate) async fn call(&self) -> Result<Response, CallError> {
        self.cluster.call(&mut request()).await
    }

    /// Ports asked so far, and the marks they saw.
    pub(super) fn asked(&self) -> (Vec<u16>, Vec<u32>) {
        std::mem::take(&mut *self.stage.asked.lock()).into_iter().unzip()
    }

    /// Attempts that `calls` a second for `seconds` come to.
    pub(super) async fn storm(&self, calls: u64, seconds: u64) -> u64 {
        let pause = Duration::from_secs(1) / calls as u32;
        for _ in 0..calls * seconds {
            let _ = self.call().await;
            advance(pause).await;
        }
        self.asked().0.len() as u64
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.cluster.endpoints().endpoints.iter().map(|e| e.in_flight()).sum()
    }
}
