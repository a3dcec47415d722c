//! What commands see of the rest of the centre, and of nothing else.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use model::{
    ServiceKey, Snapshot,
    center::{CommandScope, Figures, Histogram, Of},
};

use crate::{auth::Actor, capacity::Capacities, error::Error, monitor::Monitor, registry::Registry, scale::Scalers};

/// Services, figures and command texts.
pub(super) trait Site: Send + Sync + 'static {
    /// Every service in every group that is registered or was seen called.
    fn keys(&self) -> Vec<ServiceKey>;
    /// The instances of `service` that callers may use; an empty group means all groups.
    fn snapshot(&self, service: &str, group: &str) -> Arc<Snapshot>;
    /// Figures of the last ten seconds.
    fn lately(&self, of: &Of) -> Figures;
    /// Times of the calls of the last ten seconds.
    fn times(&self, of: &Of) -> Histogram;
    /// Applications that call a service, and their calls a second.
    fn callers(&self, service: &str, group: &str) -> Vec<(String, f64)>;
    /// Calls a second that an instance of usual weight can take.
    fn capacity(&self, service: &str, group: &str) -> Option<f64>;
    /// A command text and its revision.
    fn text(&self, scope: &CommandScope) -> (u64, Option<String>);
    /// How many instances the driver of a pool runs or was last asked for.
    fn size<'a>(&'a self, service: &'a str, group: &'a str) -> BoxFuture<'a, Result<u32, Error>>;
    /// Asks it for so many, on behalf of `actor`; `key` names the request, so that a repeated one does nothing more.
    fn scale<'a>(
        &'a self,
        actor: &'a Actor,
        pool: (&'a str, &'a str),
        size: u32,
        key: &'a str,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), Error>>;
    /// See [`Registry::set_text`]; only while this centre leads in `epoch`.
    fn set_text<'a>(
        &'a self,
        scope: &'a CommandScope,
        expected: u64,
        text: Option<String>,
        epoch: u64,
    ) -> BoxFuture<'a, Result<u64, Error>>;
}

/// The centre's own parts.
pub(super) struct Parts {
    pub(super) registry: Arc<Registry>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) capacity: Arc<Capacities>,
    pub(super) scalers: Arc<Scalers>,
}

impl Site for Parts {
    fn keys(&self) -> Vec<ServiceKey> {
        let mut keys = self.registry.keys();
        let seen = self.monitor.services().into_iter();
        keys.extend(seen.map(|(service, group)| ServiceKey { service, group, version: String::new() }));
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn snapshot(&self, service: &str, group: &str) -> Arc<Snapshot> {
        let key = ServiceKey { service: service.to_owned(), group: group.to_owned(), version: String::new() };
        self.registry.snapshot(&key)
    }

    fn lately(&self, of: &Of) -> Figures {
        self.monitor.lately(of)
    }

    fn times(&self, of: &Of) -> Histogram {
        self.monitor.times(of).1
    }

    fn callers(&self, service: &str, group: &str) -> Vec<(String, f64)> {
        let callers = self.monitor.callers(service, group).into_iter();
        callers.map(|(caller, figures, _)| (caller, figures.rate)).collect()
    }

    fn capacity(&self, service: &str, group: &str) -> Option<f64> {
        self.capacity.estimate(service, group).map(|capacity| capacity.per_instance)
    }

    fn text(&self, scope: &CommandScope) -> (u64, Option<String>) {
        self.registry.text(scope)
    }

    fn size<'a>(&'a self, service: &'a str, group: &'a str) -> BoxFuture<'a, Result<u32, Error>> {
        Box::pin(async move { self.scalers.size(&self.capacity.policy(service, group)).await })
    }

    fn scale<'a>(
        &'a self,
        actor: &'a Actor,
        (service, group): (&'a str, &'a str),
        size: u32,
        key: &'a str,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            // As it is now, with the bounds and the driver of now.
            let policy = self.capacity.policy(service, group);
            self.scalers.set_by(actor, &policy, size, key, reason).await
        })
    }

    fn set_text<'a>(
        &'a self,
        scope: &'a CommandScope,
        expected: u64,
        text: Option<String>,
        epoch: u64,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(self.registry.set_text(scope, expected, text, Some(epoch)))
    }
}
