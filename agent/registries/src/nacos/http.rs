//! The HTTP API of Nacos 1.x: lists are asked for every two seconds, registrations live by beats.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ::http::{Method, StatusCode};
use anyhow::{Context as _, bail, ensure};
use futures_util::future::BoxFuture;
use model::{ServiceKey, Snapshot};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::{
    login::Login,
    shape::{self, Host, Names, Place, ServiceInfo},
};
use crate::{
    CommandText, Provided, Registry, Scope, Standing, Wanted,
    fetch::{Answer, Peer},
    followed::Followed,
    keep,
    pause::Pause,
    publish,
};

/// How often lists and commands are asked for. Nacos 1.x pushes over UDP, which gets lost unseen.
const POLL: Duration = Duration::from_secs(2);
/// Nacos takes an instance for ill after 15 s without a beat and forgets it after 30 s.
const BEAT: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(5);
/// What a beat is answered for an instance that the server does not know.
const UNKNOWN: i64 = 20404;

pub(super) struct Http {
    api: Arc<Api>,
    lists: Followed<ServiceKey, Arc<Snapshot>>,
    texts: Followed<Scope, Arc<CommandText>>,
}

struct Api {
    peers: Vec<Peer>,
    /// The server that answered last.
    at: AtomicUsize,
    names: Names,
    login: Login,
}

impl Http {
    pub fn new(peers: Vec<Peer>, names: Names, login: Login) -> Self {
        let api = Api { peers, at: AtomicUsize::new(0), names, login };
        Self { api: Arc::new(api), lists: Followed::default(), texts: Followed::default() }
    }
}

impl Api {
    /// Asks one server after the other, beginning with the one that answered last, until one has an answer that is
    /// not its own failure.
    async fn ask(&self, method: Method, path: &str, pairs: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let token = self.login.token().await?;
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(pairs)
            .extend_pairs(token.map(|token| ("accessToken", token)))
            .finish();
        let first = self.at.load(Relaxed);
        let mut error = anyhow::anyhow!("there is no server");
        for at in (0..self.peers.len()).map(|n| (first + n) % self.peers.len()) {
            let peer = &self.peers[at];
            let answer = if method == Method::POST {
                let headers = [("content-type", "application/x-www-form-urlencoded")];
                peer.ask(method.clone(), path, &headers, form.clone(), PATIENCE).await
            } else {
                peer.ask(method.clone(), &format!("{path}?{form}"), &[], bytes::Bytes::new(), PATIENCE).await
            };
            match answer {
                Ok(answer) if answer.status.is_server_error() => {
                    error = answer
                        .success()
                        .map(drop)
                        .expect_err("the status is one of an error")
                        .context(peer.to_string());
                }
                Ok(answer) => {
                    self.at.store(at, Relaxed);
                    if answer.status == StatusCode::FORBIDDEN {
                        self.login.refused().await;
                    }
                    return Ok(answer);
                }
                Err(why) => error = why,
            }
        }
        Err(error)
    }

    async fn list(&self, place: &Place) -> anyhow::Result<ServiceInfo> {
        let pairs = [
            ("serviceName", place.name.as_str()),
            ("groupName", &place.group),
            ("namespaceId", self.names.namespace()),
            ("healthyOnly", "false"),
        ];
        let answer = self.ask(Method::GET, "/nacos/v1/ns/instance/list", &pairs).await?;
        let body = answer.success()?;
        let value: serde_json::Value = serde_json::from_slice(&body).context("not what Nacos answers for a service")?;
        ensure!(value.get("hosts").is_some(), "not what Nacos answers for a service: there is no `hosts`");
        serde_json::from_value(value).context("not what Nacos answers for a service")
    }

    async fn follow(&self, key: &ServiceKey, to: &watch::Sender<Arc<Snapshot>>) {
        let place = shape::service(key);
        let mut pause = Pause::default();
        loop {
            let found = self.list(&place).await.and_then(|info| info.instances(key).map_err(anyhow::Error::msg));
            let next = match found {
                Ok(instances) => {
                    pause.reset();
                    if publish::good(to, |list| list.instances = crate::select(key, &instances)) {
                        tracing::info!(service = %key, "Nacos answers again");
                    }
                    POLL.mul_f64(0.9 + fastrand::f64() / 5.0)
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if publish::stale(to, &error) {
                        tracing::warn!(service = %key, error, "Nacos gives no list, keeping the last one");
                    }
                    pause.next()
                }
            };
            tokio::time::sleep(next).await;
        }
    }

    async fn config(&self, place: &Place) -> anyhow::Result<Option<String>> {
        let pairs = [("dataId", place.name.as_str()), ("group", &place.group), ("tenant", &self.names.tenant)];
        let answer = self.ask(Method::GET, "/nacos/v1/cs/configs", &pairs).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let text = String::from_utf8(answer.success()?.to_vec()).context("a configuration that is not UTF-8")?;
        Ok(Some(text).filter(|text| !text.trim().is_empty()))
    }

    async fn follow_config(&self, place: &Place, to: &watch::Sender<Arc<CommandText>>) {
        let mut pause = Pause::default();
        loop {
            let next = match self.config(place).await {
                Ok(text) => {
                    pause.reset();
                    publish::good(to, |now| now.text = text);
                    POLL.mul_f64(0.9 + fastrand::f64() / 5.0)
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if publish::stale(to, &error) {
                        tracing::warn!(
                            group = place.group,
                            error,
                            "Nacos does not tell the commands, keeping the last ones"
                        );
                    }
                    pause.next()
                }
            };
            tokio::time::sleep(next).await;
        }
    }

    async fn write_config(&self, place: &Place, expected: Option<&str>, text: &str) -> anyhow::Result<()> {
        let found = self.config(place).await?.unwrap_or_default();
        if found != expected.unwrap_or_default() {
            return Err(shape::changed(place, &found));
        }
        let pairs = [
            ("dataId", place.name.as_str()),
            ("group", &place.group),
            ("tenant", &self.names.tenant),
            ("content", text),
            ("type", "json"),
        ];
        let said = self.ask(Method::POST, "/nacos/v1/cs/configs", &pairs).await?.success()?;
        ensure!(said.trim_ascii() == b"true", "Nacos did not take the commands");
        // This API compares nothing: at least whoever came in between is seen.
        let now = self.config(place).await?.unwrap_or_default();
        if now != text.trim() && now != text {
            return Err(shape::changed(place, &now));
        }
        Ok(())
    }
}

impl Registry for Http {
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let (api, key) = (self.api.clone(), service.clone());
        self.lists.join(service.clone(), Arc::default(), |to| async move { api.follow(&key, &to).await })
    }

    fn register(&self, provided: &Provided, wanted: watch::Receiver<Wanted>) -> Option<watch::Receiver<Standing>> {
        let place = shape::service(&provided.key);
        Some(keep::keep(Registration { api: self.api.clone(), place, provided: provided.clone() }, wanted))
    }

    fn commands(&self, scope: &Scope) -> Option<watch::Receiver<Arc<CommandText>>> {
        let (api, place) = (self.api.clone(), shape::commands(scope));
        Some(self.texts.join(scope.clone(), Arc::default(), |to| async move { api.follow_config(&place, &to).await }))
    }

    fn write_commands<'a>(
        &'a self,
        scope: &'a Scope,
        expected: Option<&'a str>,
        text: &'a str,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move { self.api.write_config(&shape::commands(scope), expected, text).await })
    }
}

struct Registration {
    api: Arc<Api>,
    place: Place,
    provided: Provided,
}

impl Registration {
    fn host(&self, available: bool) -> anyhow::Result<Host> {
        Host::of(&self.provided, available)
            .with_context(|| format!("`{}` is no address", self.provided.instance.address))
    }

    /// A request about the instance; what it is comes after who it is.
    async fn send(&self, method: Method, path: &str, host: &Host, more: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let port = host.port.to_string();
        let mut pairs = vec![
            ("serviceName", self.place.name.as_str()),
            ("groupName", &self.place.group),
            ("namespaceId", self.api.names.namespace()),
            ("ip", &host.ip),
            ("port", &port),
            ("clusterName", "DEFAULT"),
            ("ephemeral", "true"),
        ];
        pairs.extend(more);
        self.api.ask(method, path, &pairs).await
    }
}

impl keep::Hold for Registration {
    async fn put(&self, available: bool) -> anyhow::Result<()> {
        let host = self.host(available)?;
        let (weight, metadata) = (host.weight.to_string(), serde_json::to_string(&host.metadata)?);
        let more = [
            ("weight", weight.as_str()),
            ("enabled", if available { "true" } else { "false" }),
            ("healthy", "true"),
            ("metadata", &metadata),
        ];
        self.send(Method::POST, "/nacos/v1/ns/instance", &host, &more).await?.success().map(drop)
    }

    async fn renew(&self, available: bool) -> anyhow::Result<()> {
        if !available {
            // A beat may bring back as open what it does not find.
            return self.put(false).await;
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Beaten {
            code: i64,
        }
        let host = self.host(true)?;
        let grouped = format!("{}@@{}", self.place.group, self.place.name);
        let beat = json!({
            "serviceName": grouped, "ip": host.ip, "port": host.port, "weight": host.weight, "cluster": "DEFAULT",
            "metadata": host.metadata, "ephemeral": true, "scheduled": true, "period": BEAT.as_millis() as u64,
        });
        let answer =
            self.send(Method::PUT, "/nacos/v1/ns/instance/beat", &host, &[("beat", &beat.to_string())]).await?;
        let said: Beaten = serde_json::from_slice(&answer.success()?).unwrap_or_default();
        if said.code == UNKNOWN {
            bail!("Nacos does not know the instance");
        }
        Ok(())
    }

    async fn take(&self) -> anyhow::Result<()> {
        let host = self.host(false)?;
        self.send(Method::DELETE, "/nacos/v1/ns/instance", &host, &[]).await?.success().map(drop)
    }

    fn every(&self) -> Duration {
        BEAT
    }

    fn name(&self) -> String {
        format!("nacos {} {}", self.place.name, self.provided.instance.address)
    }
}
