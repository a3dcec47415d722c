//! What is followed over gRPC: asked for once, then pushed, and asked for again now and then all the same.

use std::{convert::Infallible, sync::Arc, time::Duration};

use model::{ServiceKey, Snapshot};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::{
        broadcast::{Receiver, error::RecvError},
        watch,
    },
    time::sleep,
};

use super::{
    grpc::{Shared, gone, up},
    link::{Conn, Push},
    shape::{self, Place, ServiceInfo},
};
use crate::{
    CommandText, Scope,
    pause::Pause,
    publish::{self, Told},
};

/// Everything is asked for again after this time, whatever was pushed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Something that a server holds and pushes.
pub(super) trait Subject: Sync {
    /// What its readers are given.
    type Value: Told + Sync + Send;

    /// Keeps `to` current on one connection until something fails.
    fn on(
        &self,
        shared: &Shared,
        conn: &Conn,
        to: &watch::Sender<Arc<Self::Value>>,
        pause: &mut Pause,
    ) -> impl Future<Output = anyhow::Result<Infallible>> + Send;

    /// Logs why the last value has to do.
    fn failed(&self, error: &str);
}

/// Keeps `to` current on one connection after the other.
pub(super) async fn follow<S: Subject>(shared: Arc<Shared>, subject: S, to: watch::Sender<Arc<S::Value>>) {
    let mut link = shared.link();
    let mut pause = Pause::default();
    loop {
        let down = |why: &str| _ = publish::stale(&to, why);
        let conn = up(&mut link, down).await;
        tokio::select! {
            () = gone(&mut link, conn.number) => {}
            Err(error) = subject.on(&shared, &conn, &to, &mut pause) => {
                let error = format!("{error:#}");
                if publish::stale(&to, &error) {
                    subject.failed(&error);
                }
                sleep(pause.next()).await;
            }
        }
    }
}

/// Gives each push to `take` until it is time to look again: that is due, `take` wants it, or pushes were missed.
async fn pushed(pushes: &mut Receiver<Push>, mut take: impl FnMut(&Push) -> bool) -> anyhow::Result<()> {
    let look = sleep(LOOK_EVERY.mul_f64(0.9 + fastrand::f64() / 5.0));
    tokio::pin!(look);
    loop {
        tokio::select! {
            () = &mut look => return Ok(()),
            push = pushes.recv() => match push {
                Ok(push) => if take(&push) { return Ok(()) },
                Err(RecvError::Lagged(_)) => return Ok(()),
                Err(RecvError::Closed) => anyhow::bail!("the connection to Nacos ended"),
            },
        }
    }
}

/// The instances of a service.
pub(super) struct List {
    key: ServiceKey,
    place: Place,
}

impl List {
    /// Of this service.
    pub fn of(key: ServiceKey) -> Self {
        Self { place: shape::service(&key), key }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subscribed {
    service_info: Option<ServiceInfo>,
}

impl Subject for List {
    type Value = Snapshot;

    async fn on(
        &self,
        shared: &Shared,
        conn: &Conn,
        to: &watch::Sender<Arc<Snapshot>>,
        pause: &mut Pause,
    ) -> anyhow::Result<Infallible> {
        let mut about = shared.about(&self.place);
        about["subscribe"] = true.into();
        about["clusters"] = "".into();
        let mut pushes = conn.pushes();
        // Pushes and answers overtake each other; the server's own time tells which is newer.
        let mut newest = i64::MIN;
        let mut tell = |info: &ServiceInfo| {
            if info.last_ref_time >= newest {
                newest = info.last_ref_time;
                match info.instances(&self.key) {
                    Ok(found) => publish::good(to, |list| list.instances = crate::select(&self.key, &found)),
                    Err(why) => publish::stale(to, &why),
                };
            }
        };
        loop {
            let answer: Subscribed = conn.call("SubscribeServiceRequest", &about).await?;
            // A service that was never heard of may come without anything.
            tell(&answer.service_info.unwrap_or(ServiceInfo { last_ref_time: i64::MIN, ..ServiceInfo::default() }));
            pause.reset();
            let take = |push: &Push| {
                if let Push::Service(info) = push
                    && info.is(&self.place)
                {
                    tell(info);
                }
                false
            };
            pushed(&mut pushes, take).await?;
        }
    }

    fn failed(&self, error: &str) {
        tracing::warn!(service = %self.key, error, "Nacos gives no list, keeping the last one");
    }
}

/// A text of commands.
pub(super) struct Text(Place);

impl Text {
    /// The one that governs `scope`.
    pub fn of(scope: &Scope) -> Self {
        Self(shape::commands(scope))
    }
}

impl Subject for Text {
    type Value = CommandText;

    async fn on(
        &self,
        shared: &Shared,
        conn: &Conn,
        to: &watch::Sender<Arc<CommandText>>,
        pause: &mut Pause,
    ) -> anyhow::Result<Infallible> {
        let Self(place) = self;
        let mut pushes = conn.pushes();
        loop {
            let (text, md5) = shared.read(conn, place).await?;
            publish::good(to, |now| now.text = text);
            pause.reset();
            let context = json!({
                "dataId": place.name, "group": place.group, "tenant": shared.servers.names.tenant, "md5": md5,
            });
            let listen = json!({"module": "config", "listen": true, "configListenContexts": [context]});
            let answer: Value = conn.call("ConfigBatchListenRequest", &listen).await?;
            // Changed between the two requests.
            if answer["changedConfigs"].as_array().is_some_and(|changed| !changed.is_empty()) {
                sleep(pause.next()).await;
                continue;
            }
            let is_it = |push: &Push| matches!(push, Push::Config(it) if it.0 == place.name && it.1 == place.group);
            pushed(&mut pushes, is_it).await?;
        }
    }

    fn failed(&self, error: &str) {
        tracing::warn!(group = self.0.group, error, "Nacos does not tell the commands, keeping the last ones");
    }
}
