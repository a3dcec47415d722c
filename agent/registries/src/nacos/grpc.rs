//! The gRPC API of Nacos 2.x: lists are pushed, registrations live as long as the connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use model::{ServiceKey, Snapshot};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use tonic::transport::Endpoint;

use super::{
    GRPC_OFFSET,
    follow::{List, Text, follow},
    link::{self, Conn, Servers, State},
    login::Login,
    proto::{NOT_FOUND, Refused},
    shape::{self, Host, Names, Place},
};
use crate::{CommandText, Provided, Registry, Scope, Standing, Wanted, followed::Followed, keep};

/// A registration is made anew after this time: somebody's hand may have taken it out.
const RENEW_EVERY: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(3);
/// How long a registration or a write waits for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Number of no connection.
const NONE: u64 = u64::MAX;

/// The registry on these servers' gRPC ports.
pub(super) fn registry(addresses: Vec<String>, names: Names, login: Login) -> anyhow::Result<Arc<dyn Registry>> {
    let mut endpoints = Vec::new();
    for address in addresses {
        let (host, port) = address.rsplit_once(':').with_context(|| format!("address: `{address}` has no port"))?;
        let port: u16 = port.parse().with_context(|| format!("address: `{port}` is no port"))?;
        let port = port.checked_add(GRPC_OFFSET).with_context(|| {
            format!(
                "address: gRPC is at {GRPC_OFFSET} above the port of HTTP, which {port} does not allow; use `api: http`"
            )
        })?;
        let endpoint =
            Endpoint::from_shared(format!("http://{host}:{port}")).with_context(|| format!("address: {address}"))?;
        endpoints.push(endpoint.connect_timeout(CONNECT).tcp_nodelay(true));
    }
    let servers = Servers { endpoints, names, login: Arc::new(login) };
    let shared = Shared { servers: Arc::new(servers), link: Followed::default() };
    Ok(Arc::new(Grpc { shared: Arc::new(shared), lists: Followed::default(), texts: Followed::default() }))
}

struct Grpc {
    shared: Arc<Shared>,
    lists: Followed<ServiceKey, Arc<Snapshot>>,
    texts: Followed<Scope, Arc<CommandText>>,
}

/// What all tasks of a registry share.
pub(super) struct Shared {
    pub servers: Arc<Servers>,
    link: Followed<(), State>,
}

impl Shared {
    /// The one connection, opened by the first who needs it and closed after the last.
    pub fn link(&self) -> watch::Receiver<State> {
        let servers = self.servers.clone();
        self.link.join((), State::Down(None), |to| link::run(servers, to))
    }

    /// What a request says of a service.
    pub fn about(&self, place: &Place) -> Value {
        json!({
            "module": "naming", "namespace": self.servers.names.namespace(),
            "serviceName": place.name, "groupName": place.group,
        })
    }

    /// What a request says of a configuration.
    fn config(&self, place: &Place) -> Value {
        json!({"module": "config", "dataId": place.name, "group": place.group, "tenant": self.servers.names.tenant})
    }

    /// A configuration's text, which is `None` when there is none, and its checksum.
    pub async fn read(&self, conn: &Conn, place: &Place) -> anyhow::Result<(Option<String>, String)> {
        match conn.call::<Config>("ConfigQueryRequest", &self.config(place)).await {
            Ok(found) => {
                let text = found.content.filter(|text| !text.trim().is_empty());
                Ok((text, found.md5.unwrap_or_default()))
            }
            Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == NOT_FOUND) => {
                Ok((None, String::new()))
            }
            Err(error) => Err(error),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    content: Option<String>,
    md5: Option<String>,
}

/// Waits for a connection; `down` is told each reason why there is none.
pub(super) async fn up(link: &mut watch::Receiver<State>, mut down: impl FnMut(&str)) -> Arc<Conn> {
    loop {
        match &*link.borrow_and_update() {
            State::Up(conn) => return conn.clone(),
            State::Down(Some(why)) => down(why),
            State::Down(None) => {}
        }
        if link.changed().await.is_err() {
            // The task of the link ends with its last receiver, which this is not.
            std::future::pending::<()>().await;
        }
    }
}

/// A connection soon, or why there is none.
async fn up_soon(link: &mut watch::Receiver<State>) -> anyhow::Result<Arc<Conn>> {
    let mut reason = None;
    let conn = timeout(PATIENCE, up(link, |why| reason = Some(why.to_owned()))).await;
    conn.map_err(|_| anyhow::anyhow!("{}", reason.unwrap_or_else(|| "no connection to Nacos yet".to_owned())))
}

/// Returns when the connection is another than this or none.
pub(super) async fn gone(link: &mut watch::Receiver<State>, number: u64) {
    let other = |state: &State| !matches!(state, State::Up(conn) if conn.number == number);
    if link.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Registry for Grpc {
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let (shared, key) = (self.shared.clone(), service.clone());
        self.lists.join(service.clone(), Arc::default(), |to| follow(shared, List::of(key), to))
    }

    fn register(&self, provided: &Provided, wanted: watch::Receiver<Wanted>) -> Option<watch::Receiver<Standing>> {
        let registration = Registration {
            shared: self.shared.clone(),
            link: self.shared.link(),
            place: shape::service(&provided.key),
            provided: provided.clone(),
            made_on: AtomicU64::new(NONE),
            closed: AtomicBool::new(false),
        };
        Some(keep::keep(registration, wanted))
    }

    fn commands(&self, scope: &Scope) -> Option<watch::Receiver<Arc<CommandText>>> {
        let (shared, text) = (self.shared.clone(), Text::of(scope));
        Some(self.texts.join(scope.clone(), Arc::default(), |to| follow(shared, text, to)))
    }

    fn write_commands<'a>(
        &'a self,
        scope: &'a Scope,
        expected: Option<&'a str>,
        text: &'a str,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let place = shape::commands(scope);
            let mut link = self.shared.link();
            let conn = up_soon(&mut link).await?;
            let (found, md5) = self.shared.read(&conn, &place).await?;
            let found = found.unwrap_or_default();
            if found != expected.unwrap_or_default() {
                return Err(shape::changed(&place, &found));
            }
            let mut body = self.shared.config(&place);
            body["content"] = text.into();
            body["additionMap"] = json!({"type": "json"});
            if !md5.is_empty() {
                body["casMd5"] = md5.into();
            }
            conn.call::<Value>("ConfigPublishRequest", &body).await?;
            // Not every server compares the checksum: at least whoever came in between is seen.
            let (now, _) = self.shared.read(&conn, &place).await?;
            match now.unwrap_or_default() {
                now if now.trim() == text.trim() => Ok(()),
                now => Err(shape::changed(&place, &now)),
            }
        })
    }
}

struct Registration {
    shared: Arc<Shared>,
    link: watch::Receiver<State>,
    place: Place,
    provided: Provided,
    /// Number of the connection that it belongs to.
    made_on: AtomicU64,
    /// The server was told to keep callers away.
    closed: AtomicBool,
}

impl Registration {
    async fn send(&self, what: &str, available: bool) -> anyhow::Result<()> {
        let host = Host::of(&self.provided, available)
            .with_context(|| format!("`{}` is no address", self.provided.instance.address))?;
        let conn = up_soon(&mut self.link.clone()).await?;
        let mut body = self.shared.about(&self.place);
        body["type"] = what.into();
        body["instance"] = serde_json::to_value(host)?;
        conn.call::<Value>("InstanceRequest", &body).await?;
        self.made_on.store(conn.number, Relaxed);
        Ok(())
    }
}

impl keep::Hold for Registration {
    async fn put(&self, available: bool) -> anyhow::Result<()> {
        if available && self.closed.load(Relaxed) {
            // Not every server opens what is registered as closed when it is registered again.
            self.send("deregisterInstance", false).await?;
        }
        self.closed.store(!available, Relaxed);
        self.send("registerInstance", available).await
    }

    async fn renew(&self, available: bool) -> anyhow::Result<()> {
        self.put(available).await
    }

    /// What was made on a connection that is gone went with it.
    async fn take(&self) -> anyhow::Result<()> {
        self.send("deregisterInstance", false).await
    }

    fn every(&self) -> Duration {
        RENEW_EVERY
    }

    async fn lost(&self) {
        gone(&mut self.link.clone(), self.made_on.load(Relaxed)).await;
    }

    fn name(&self) -> String {
        format!("nacos {} {}", self.place.name, self.provided.instance.address)
    }
}
