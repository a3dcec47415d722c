//! How pools grow and shrink: drivers that start and stop instances.
//!
//! What a driver may do (a command to run, a cluster to speak to, a secret to sign with) stands in the centre's file
//! only. Policies, which come over the API too, choose among the drivers that are named there.

mod api;
mod kubernetes;
mod process;
mod warm;
mod webhook;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use model::{
    center::{PoolPolicy, ScaleEvent, ScaleInstance},
    kind::{self, Value},
};
use parking_lot::Mutex;
use serde::Deserialize;

pub use self::{api::routes, process::Ports};
use crate::{
    audit::Audit,
    auth::Actor,
    clock::now_ms,
    error::{Code, Error},
    registry::Registry,
    store::Store,
};

/// A row of [`KINDS`].
pub type Kind = kind::Kind<dyn Driver, BuildCx>;

/// Drivers by name.
pub const KINDS: &[Kind] = &[
    Kind { name: "process", build: process::build },
    Kind { name: "kubernetes", build: kubernetes::build },
    Kind { name: "webhook", build: webhook::build },
];

/// What a driver may need while it is built.
#[derive(Clone, Default)]
pub struct BuildCx {
    /// The service whose pool it scales.
    pub service: String,
    /// Its group.
    pub group: String,
    /// Directory of what drivers keep.
    pub data: PathBuf,
    /// What is registered.
    pub registry: Option<Arc<Registry>>,
    /// Ports that drivers of this centre have given out.
    pub ports: Ports,
}

impl BuildCx {
    /// A directory of its own for this pool, and nobody else's: names cannot climb out of [`BuildCx::data`].
    pub fn directory(&self) -> PathBuf {
        self.data.join(format!("{}@{}", file_name(&self.service), file_name(&self.group)))
    }
}

/// A name as one part of a path.
fn file_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' };
    let name: String = name.chars().take(100).map(plain).collect();
    if name.chars().all(|c| c == '.') { format!("_{}", name.len()) } else { name }
}

/// Why a driver ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The centre does: what was started goes too, unless the driver was told to leave it.
    Center,
    /// Another one, with other options, takes over what it runs.
    Replaced,
}

/// Starts and stops instances of one pool.
///
/// ```
/// use center::scale::Driver;
/// use futures_util::future::BoxFuture;
///
/// struct Fixed(u32);
///
/// impl Driver for Fixed {
///     fn size(&self) -> BoxFuture<'_, anyhow::Result<u32>> {
///         Box::pin(async move { Ok(self.0) })
///     }
///     fn scale<'a>(&'a self, size: u32, _key: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
///         Box::pin(async move { anyhow::bail!("{size} instances: this pool has {} for ever", self.0) })
///     }
/// }
/// ```
pub trait Driver: Send + Sync + 'static {
    /// How many instances it runs or was last asked for.
    fn size(&self) -> BoxFuture<'_, anyhow::Result<u32>>;

    /// Makes it `size` instances. Resolves when the request is accepted, not when they serve; `key` names the request,
    /// so that a repeated one does nothing more.
    fn scale<'a>(&'a self, size: u32, key: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;

    /// The instances, where it runs them itself.
    fn instances(&self) -> Vec<ScaleInstance> {
        Vec::new()
    }

    /// Ends what it runs, or lets go of it. It is not used afterwards.
    fn end(&self, _why: Ending) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// `scale:` of the centre's file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Drivers by the names that policies say.
    pub drivers: BTreeMap<String, DriverChoice>,
    /// Where drivers keep what they run, and logs of instances [default: `scale` in the centre's data].
    pub directory: Option<PathBuf>,
    /// New instances of pools that have a driver rise to their weight over this time, unless the policy's option
    /// `warm_up` says another.
    #[serde(deserialize_with = "kind::duration")]
    pub warm_up: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { drivers: BTreeMap::new(), directory: None, warm_up: Duration::from_secs(20) }
    }
}

/// A driver that policies may name.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverChoice {
    /// A name in [`KINDS`].
    pub kind: String,
    /// The kind's own.
    #[serde(default)]
    pub options: Value,
    /// Options that a policy may give or replace, such as the name of a Deployment.
    #[serde(default)]
    pub allow: Vec<String>,
}

/// Options of a policy that are the centre's, whatever the driver.
const OF_CENTER: &[&str] = &["warm_up"];

/// Changes that are remembered for operators.
const EVENTS: usize = 500;

/// Drivers that may be in use at once.
const DRIVERS: usize = 5_000;

/// Time for a driver to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The drivers.
pub struct Scalers {
    config: Config,
    registry: Arc<Registry>,
    audit: Arc<Audit>,
    ports: Ports,
    /// Held while a driver is built: two of one pool would fight for its instances. Whether none may be built any more.
    building: tokio::sync::Mutex<bool>,
    drivers: Mutex<HashMap<(String, String), Built>>,
    events: Mutex<VecDeque<ScaleEvent>>,
    /// Drivers that could not be built, and what was said then: said once.
    broken: Mutex<HashMap<(String, String), String>>,
}

/// A driver in use, and what it was made of.
#[derive(Clone)]
struct Built {
    name: String,
    options: Value,
    driver: Arc<dyn Driver>,
}

impl Scalers {
    /// From what it builds on.
    pub fn new(config: Config, registry: Arc<Registry>, audit: Arc<Audit>) -> Arc<Self> {
        Arc::new(Self {
            config,
            registry,
            audit,
            ports: Ports::default(),
            building: tokio::sync::Mutex::default(),
            drivers: Mutex::default(),
            events: Mutex::default(),
            broken: Mutex::default(),
        })
    }

    /// From now on, while this centre leads: drivers of `policies` go on with what they ran, and new instances warm up.
    pub fn run(
        self: &Arc<Self>,
        store: Arc<dyn Store>,
        policies: impl Fn() -> Vec<PoolPolicy> + Send + Sync + 'static,
    ) {
        tokio::spawn(warm::run(Arc::downgrade(self), store, policies));
    }

    /// Has the driver of a policy there.
    async fn wake(&self, policy: &PoolPolicy) {
        let key = (policy.service.clone(), policy.group.clone());
        let error = self.driver(policy).await.err().map(|error| error.to_string());
        let mut broken = self.broken.lock();
        match error {
            None => drop(broken.remove(&key)),
            Some(error) if broken.get(&key) == Some(&error) => {}
            Some(error) => {
                tracing::warn!(service = %key.0, group = %key.1, %error, "a pool has no driver");
                broken.insert(key, error);
            }
        }
    }

    /// Sets the size of a pool by its policy's driver, on behalf of the centre itself.
    ///
    /// # Errors
    /// The policy names no driver, the size is out of its bounds, or the driver failed.
    pub async fn set(&self, policy: &PoolPolicy, size: u32, key: &str) -> Result<(), Error> {
        self.set_by(&Actor::center(), policy, size, key, key).await
    }

    /// As [`Scalers::set`], for somebody and with a reason.
    ///
    /// # Errors
    /// As [`Scalers::set`].
    pub async fn set_by(
        &self,
        actor: &Actor,
        policy: &PoolPolicy,
        size: u32,
        key: &str,
        reason: &str,
    ) -> Result<(), Error> {
        let (service, group) = (&policy.service, &policy.group);
        if size < policy.min || size > policy.max {
            return Err(Error::bad(
                format!("{size} instances of `{service}` in `{group}` are outside of {} to {}", policy.min, policy.max),
                "ask for a size within the policy's `min` and `max`, or change these",
            ));
        }
        let driver = self.driver(policy).await?;
        let target = format!("{group}/{service}");
        let detail = serde_json::json!({"size": size, "driver": policy.driver, "key": key, "reason": reason});
        self.audit.record(actor, "pool.scale", &target, "ok", detail.clone()).await?;
        let from = in_time(driver.size()).await.ok();
        let done = in_time(driver.scale(size, key)).await;
        let outcome = done.as_ref().err().map_or_else(|| "ok".to_owned(), |e| format!("{e:#}"));
        tracing::info!(%target, ?from, to = size, by = %actor.name, %outcome, "scaled a pool");
        self.remember(ScaleEvent {
            at_ms: now_ms(),
            service: service.clone(),
            group: group.clone(),
            from,
            to: size,
            by: actor.name.clone(),
            reason: reason.to_owned(),
            outcome: outcome.clone(),
        });
        if done.is_err() {
            self.audit.record(actor, "pool.scale", &target, &outcome, detail).await?;
        }
        done.map_err(|_| failed(policy, &outcome))
    }

    /// How long new instances of the pool are not warm.
    pub fn warm_up(&self, policy: &PoolPolicy) -> Duration {
        warm::time(policy, self.config.warm_up)
    }

    /// The present size of a pool as its driver says.
    ///
    /// # Errors
    /// As [`Scalers::set`].
    pub async fn size(&self, policy: &PoolPolicy) -> Result<u32, Error> {
        let driver = self.driver(policy).await?;
        in_time(driver.size()).await.map_err(|e| failed(policy, &format!("{e:#}")))
    }

    /// The instances of a pool, where its driver runs them itself and is in use.
    pub fn instances(&self, service: &str, group: &str) -> Vec<ScaleInstance> {
        let driver = self.drivers.lock().get(&(service.to_owned(), group.to_owned())).map(|b| b.driver.clone());
        driver.map_or_else(Vec::new, |driver| driver.instances())
    }

    /// Pools whose drivers are in use: service and group.
    pub fn in_use(&self) -> Vec<(String, String)> {
        self.drivers.lock().keys().cloned().collect()
    }

    /// The latest changes of a pool, newest first.
    pub fn events(&self, service: &str, group: &str, limit: usize) -> Vec<ScaleEvent> {
        let events = self.events.lock();
        let of_pool = events.iter().rev().filter(|event| event.service == service && event.group == group);
        of_pool.take(limit).cloned().collect()
    }

    /// Stops what drivers of this process run, before it ends; nothing is scaled from then on.
    pub async fn stop(&self) {
        // Whoever still looks at pools would have a driver built anew, and its instances would outlive this process.
        *self.building.lock().await = true;
        let drivers: Vec<_> = self.drivers.lock().drain().map(|(_, built)| built.driver).collect();
        futures_util::future::join_all(drivers.iter().map(|driver| driver.end(Ending::Center))).await;
    }

    fn remember(&self, event: ScaleEvent) {
        let mut events = self.events.lock();
        if events.len() >= EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// The driver of a pool, built when it is first asked for, and again when its options are others.
    async fn driver(&self, policy: &PoolPolicy) -> Result<Arc<dyn Driver>, Error> {
        let choice = self.choice(policy)?;
        let options = options(choice, policy)?;
        let key = (policy.service.clone(), policy.group.clone());
        let same = |built: &Built| built.name == policy.driver && built.options == options;
        let found = |drivers: &HashMap<_, Built>| drivers.get(&key).filter(|built| same(built)).cloned();
        if let Some(built) = found(&self.drivers.lock()) {
            return Ok(built.driver);
        }
        let ended = self.building.lock().await;
        if *ended {
            return Err(failed(policy, "the centre is ending"));
        }
        if let Some(built) = found(&self.drivers.lock()) {
            return Ok(built.driver);
        }
        let full = self.drivers.lock().len() >= DRIVERS;
        if full {
            return Err(Error::new(
                Code::TooMany,
                format!("{DRIVERS} pools have drivers already"),
                "take drivers out of policies that need none",
            ));
        }
        let old = self.drivers.lock().remove(&key);
        if let Some(old) = old {
            old.driver.end(Ending::Replaced).await;
        }
        let cx = BuildCx {
            service: key.0.clone(),
            group: key.1.clone(),
            data: self.config.directory.clone().unwrap_or_else(|| PathBuf::from("scale")),
            registry: Some(self.registry.clone()),
            ports: self.ports.clone(),
        };
        let built = kind::build("driver", KINDS, &choice.kind, &options, &cx);
        let driver = built.map_err(|error| {
            Error::bad(
                format!("driver `{}` of `{}` in `{}`: {error:#}", policy.driver, key.0, key.1),
                "correct it in `scale: drivers:` of the centre's file",
            )
        })?;
        let built = Built { name: policy.driver.clone(), options, driver: driver.clone() };
        self.drivers.lock().insert(key, built);
        Ok(driver)
    }

    fn choice(&self, policy: &PoolPolicy) -> Result<&DriverChoice, Error> {
        let (service, group) = (&policy.service, &policy.group);
        if policy.driver.is_empty() {
            return Err(Error::not_found(
                format!("`{service}` in `{group}` has no driver"),
                "name one in its policy (`driver`)",
            ));
        }
        self.config.drivers.get(&policy.driver).ok_or_else(|| {
            let known: Vec<_> = self.config.drivers.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Error::not_found(
                format!("no driver `{}` for `{service}` in `{group}`; there are: {known}", policy.driver),
                "write it into `scale: drivers:` of the centre's file",
            )
        })
    }
}

/// A driver's options: those of the file, with those that a policy may give.
fn options(choice: &DriverChoice, policy: &PoolPolicy) -> Result<Value, Error> {
    let mut options = choice.options.clone();
    let given = match &policy.options {
        serde_json::Value::Null => return Ok(options),
        serde_json::Value::Object(given) => given,
        other => return Err(Error::bad(format!("`options` of a policy are `{other}`"), "write key: value pairs")),
    };
    for (name, value) in given.iter().filter(|(name, _)| !OF_CENTER.contains(&name.as_str())) {
        if !choice.allow.contains(name) {
            return Err(Error::bad(
                format!("a policy may not give the option `{name}` of driver `{}`", policy.driver),
                "write it into `scale: drivers:` of the centre's file, or add its name to `allow` there",
            ));
        }
        if !options.is_mapping() {
            options = Value::Mapping(serde_yaml::Mapping::new());
        }
        let value = serde_yaml::to_value(value).map_err(|e| Error::bad(format!("option `{name}`: {e}"), ""))?;
        if let Value::Mapping(map) = &mut options {
            map.insert(Value::String(name.clone()), value);
        }
    }
    Ok(options)
}

async fn in_time<T>(asked: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}")))
}

fn failed(policy: &PoolPolicy, why: &str) -> Error {
    Error::new(
        Code::Unavailable,
        format!("driver `{}` of `{}` in `{}`: {why}", policy.driver, policy.service, policy.group),
        "look at the driver's options and at what it speaks to",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;

    fn scalers(yaml: &str) -> Arc<Scalers> {
        let store: Arc<dyn Store> = Arc::new(Memory::new("one"));
        let audit = Audit::new(store.clone());
        let registry = Registry::new(crate::registry::Config::default(), store, audit.clone());
        Scalers::new(serde_yaml::from_str(yaml).unwrap(), registry, audit)
    }

    fn policy(driver: &str, options: serde_json::Value) -> PoolPolicy {
        let (service, group) = ("echo".to_owned(), "a".to_owned());
        PoolPolicy { service, group, driver: driver.to_owned(), options, max: 5, ..PoolPolicy::default() }
    }

    #[tokio::test]
    async fn policies_choose_among_drivers_of_the_file_and_give_only_what_it_allows() {
        let hook = "drivers: {hook: {kind: webhook, options: {url: 'http://127.0.0.1:1/', attempts: 1}, \
                    allow: [timeout]}, odd: {kind: tractor}}";
        let scalers = scalers(hook);
        for (policy, size, part) in [
            (policy("", serde_json::Value::Null), 1, "has no driver; name one in its policy"),
            (policy("process", serde_json::Value::Null), 1, "there are: hook, odd; write it into `scale: drivers:`"),
            (
                policy("odd", serde_json::Value::Null),
                1,
                "unknown driver `tractor`; known: process, kubernetes, webhook",
            ),
            (policy("hook", serde_json::json!({"url": "http://evil/"})), 1, "may not give the option `url`"),
            (policy("hook", serde_json::json!([1])), 1, "write key: value pairs"),
            (policy("hook", serde_json::json!({"timeout": "1"})), 1, "has no unit"),
            (policy("hook", serde_json::json!({"warm_up": "3s"})), 6, "outside of 1 to 5"),
            (policy("hook", serde_json::json!({"warm_up": "3s"})), 0, "outside of 1 to 5"),
        ] {
            let said = scalers.set(&policy, size, "k").await.unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
        assert!(scalers.events("echo", "a", 10).is_empty(), "nothing was tried");
        let refused = scalers.set(&policy("hook", serde_json::json!({"warm_up": "3s", "timeout": "1s"})), 2, "k").await;
        assert_eq!(refused.unwrap_err().code, Code::Unavailable);
        let events = scalers.events("echo", "a", 10);
        assert_eq!((events.len(), events[0].to, events[0].by.as_str()), (1, 2, "centre"));
        assert_ne!(events[0].outcome, "ok");
    }

    #[tokio::test]
    async fn nothing_is_scaled_once_the_centre_ends() {
        let scalers = scalers("drivers: {hook: {kind: webhook, options: {url: 'http://127.0.0.1:1/', attempts: 1}}}");
        scalers.stop().await;
        let refused = scalers.set(&policy("hook", serde_json::Value::Null), 2, "k").await.unwrap_err();
        assert!(refused.to_string().contains("the centre is ending"), "{refused}");
        assert!(scalers.in_use().is_empty());
    }

    #[test]
    fn names_stay_below_their_directory() {
        for name in ["..", ".", "../../etc", "a/b", "", "\0", &"x".repeat(300)] {
            let cx = BuildCx { service: name.to_owned(), group: name.to_owned(), ..BuildCx::default() };
            let path = cx.directory();
            assert_eq!(path.components().count(), 1, "{name}: {}", path.display());
            assert!(path.as_os_str().len() < 250);
        }
    }
}
