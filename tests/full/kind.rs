//! A kind of registry by itself, as the agent builds it.

use std::{sync::Arc, time::Duration};

use agent::{
    kind,
    registry::{BuildCx, CommandText, Provided, Registry, Scope, Standing, Wanted, kinds},
};
use model::{Instance, ServiceKey, Snapshot};
use tokio::{runtime::Runtime, sync::watch, time::timeout};

/// How long a hung server may stay unnoticed, and more on a crowded machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A registry on a runtime of its own.
pub struct Kind {
    runtime: Runtime,
    registry: Arc<dyn Registry>,
}

impl Kind {
    /// Builds it from its options in YAML.
    #[track_caller]
    pub fn new(name: &str, options: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let options = serde_json::from_str(options).unwrap_or_else(|e| panic!("{options}: {e}"));
        let registry = kind::build("registry", &kinds(), name, &options, &BuildCx::default()).unwrap();
        Self { runtime, registry }
    }

    pub fn watch(&self, key: &ServiceKey) -> Followed<Snapshot> {
        let _in = self.runtime.enter();
        Followed { handle: self.runtime.handle().clone(), rx: self.registry.watch(key) }
    }

    pub fn commands(&self, scope: &Scope) -> Followed<CommandText> {
        let _in = self.runtime.enter();
        Followed { handle: self.runtime.handle().clone(), rx: self.registry.commands(scope).unwrap() }
    }

    pub fn write(&self, scope: &Scope, expected: Option<&str>, text: &str) -> Result<(), String> {
        let written = self.runtime.block_on(self.registry.write_commands(scope, expected, text));
        written.map_err(|e| format!("{e:#}"))
    }

    pub fn register(&self, provided: &Provided) -> Registered {
        let _in = self.runtime.enter();
        let (want, wanted) = watch::channel(Wanted::Available);
        let standing = self.registry.register(provided, wanted).unwrap();
        Registered { handle: self.runtime.handle().clone(), want, standing }
    }
}

/// A channel of the registry, read by a test that is not async.
pub struct Followed<T> {
    handle: tokio::runtime::Handle,
    pub rx: watch::Receiver<Arc<T>>,
}

impl<T: std::fmt::Debug + Send + Sync> Followed<T> {
    #[track_caller]
    pub fn until(&mut self, what: &str, fits: impl FnMut(&Arc<T>) -> bool) -> Arc<T> {
        let found =
            self.handle.block_on(async { timeout(PATIENCE, self.rx.wait_for(fits)).await.map(|r| r.unwrap().clone()) });
        found.unwrap_or_else(|_| panic!("waited for {what}, have {:?}", self.rx.borrow()))
    }
}

impl Followed<Snapshot> {
    /// Waits for exactly these addresses, in any order, and whether they are stale.
    #[track_caller]
    pub fn list(&mut self, addresses: &[&str], stale: bool) -> Arc<Snapshot> {
        let mut wanted = addresses.to_vec();
        wanted.sort_unstable();
        self.until(&format!("{addresses:?}, stale: {stale}"), |now| {
            let mut has: Vec<_> = now.instances.iter().map(|i| i.address.as_str()).collect();
            has.sort_unstable();
            has == wanted && now.stale.is_some() == stale && (stale || now.revision > 0)
        })
    }
}

/// One registration.
pub struct Registered {
    handle: tokio::runtime::Handle,
    want: watch::Sender<Wanted>,
    standing: watch::Receiver<Standing>,
}

impl Registered {
    pub fn want(&self, wanted: Wanted) {
        self.want.send_replace(wanted);
    }

    #[track_caller]
    pub fn until(&mut self, standing: &Standing) {
        let found = self
            .handle
            .block_on(async { timeout(PATIENCE, self.standing.wait_for(|s| s == standing)).await.map(drop) });
        assert!(found.is_ok(), "waited for {standing:?}, have {:?}", self.standing.borrow());
    }

    /// Waits until the registry is known to be out of reach, and says why.
    #[track_caller]
    pub fn until_pending(&mut self) -> String {
        let reason = |s: &Standing| match s {
            Standing::Pending(why) => why.clone(),
            _ => None,
        };
        let found = self.handle.block_on(async {
            timeout(PATIENCE, self.standing.wait_for(|s| reason(s).is_some())).await.map(|s| reason(&s.unwrap()))
        });
        match found {
            Ok(Some(why)) => why,
            _ => panic!("waited for a reason, have {:?}", self.standing.borrow()),
        }
    }
}

pub fn key(service: &str, group: &str) -> ServiceKey {
    ServiceKey { service: service.into(), group: group.into(), version: String::new() }
}

/// A service at an address where nobody listens.
pub fn provided(service: &str, group: &str, address: &str) -> Provided {
    Provided {
        key: key(service, group),
        protocol: "motan2".into(),
        instance: Instance { weight: 20, zone: "z1".into(), ..Instance::at(address) },
        application: "shop".into(),
        parameters: [("serialization".to_owned(), "simple".to_owned())].into(),
    }
}
