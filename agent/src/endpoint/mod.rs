//! One running copy of a service as this agent sees it: address, health, connections.

mod bar;
mod clock;
mod dial;
mod ewma;
mod health;
mod hot;

use std::{
    any::Any,
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use futures_util::future::BoxFuture;
use model::{Instance, Metadata};

pub use self::{
    bar::Bar,
    dial::{DialOptions, Introduce, dial, dial_for},
    ewma::Ewma,
    health::{Health, Standing, probe_forever},
    hot::{Hot, Slab, Slabs, Slot},
};
use crate::{
    call::{CallError, Request, Response, Text},
    config,
    metrics::Histogram,
    stream::Stream,
};

/// One running copy of a service.
pub struct Endpoint {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Group it belongs to.
    pub group: Text,
    /// Relative share of calls; 0 is out.
    pub weight: u32,
    /// Failure domain, may be empty.
    pub zone: Text,
    /// Version it runs, may be empty.
    pub version: Text,
    /// Whatever else its registry knows about it.
    pub metadata: Metadata,
    /// Whether it may be picked.
    pub health: Arc<Health>,
    /// Raised by filters that keep calls of this cluster from it.
    pub bar: Arc<Bar>,
    shared_bar: OnceLock<Arc<Bar>>,
    /// What every pick looks at.
    pub hot: Arc<Slot>,
    /// What was seen of it.
    pub stats: Arc<Stats>,
    /// Connect timeout, marks and the like, for whoever dials it.
    pub dial: DialOptions,
    /// Asks it whether it is back; `None`: a connection is enough.
    pub prober: Option<Arc<dyn Connector>>,
    /// The connector's connections to it.
    pool: OnceLock<Arc<dyn Any + Send + Sync>>,
}

/// What was seen of an endpoint. Counters only grow; pairs of them instead of gauges where a race would show.
#[derive(Default)]
pub struct Stats {
    /// Attempts begun.
    pub started: AtomicU64,
    /// Attempts ended, well or not.
    pub ended: AtomicU64,
    /// Attempts ended badly.
    pub failed: AtomicU64,
    /// Time of an attempt, as far as the body of the answer.
    pub latency: Histogram,
    /// Answers that came after their call was over, dropped.
    pub late: AtomicU64,
}

impl Endpoint {
    /// An endpoint nobody has talked to yet.
    pub fn new(addr: SocketAddr, group: Text, weight: u32, eject: config::Eject, dial: DialOptions) -> Self {
        Self::new_at(Slot::alone(), addr, group, weight, eject, dial)
    }

    /// The same, with its hot state beside that of others.
    pub fn new_at(
        slot: Arc<Slot>,
        addr: SocketAddr,
        group: Text,
        weight: u32,
        eject: config::Eject,
        dial: DialOptions,
    ) -> Self {
        let bar = Arc::new(Bar::default());
        bar.keep(&slot);
        Self {
            addr,
            group,
            weight,
            zone: Text::default(),
            version: Text::default(),
            metadata: Metadata::default(),
            health: Arc::new(Health::new(eject, slot.clone())),
            bar,
            shared_bar: OnceLock::new(),
            hot: slot,
            stats: Arc::default(),
            dial,
            prober: None,
            pool: OnceLock::new(),
        }
    }

    /// Takes over what an instance says besides address, group and weight.
    pub fn describe(&mut self, instance: &Instance) {
        self.zone = Text::from(instance.zone.as_str());
        self.version = Text::from(instance.version.as_str());
        self.metadata = instance.metadata.clone();
    }

    /// Whether it is as `instance` says, address and group apart.
    pub fn is_as(&self, instance: &Instance) -> bool {
        self.weight == instance.weight
            && self.zone == *instance.zone
            && self.version == *instance.version
            && self.metadata == instance.metadata
    }

    /// The connector's own state for this endpoint, made on first use.
    ///
    /// # Panics
    /// When two connectors of different types use one endpoint: a cluster has exactly one connector.
    pub fn pool<P: Any + Send + Sync>(&self, make: impl FnOnce() -> P) -> &P {
        let pool = self.pool.get_or_init(|| Arc::new(make()));
        pool.downcast_ref().expect("a cluster has one connector, so its endpoints hold one type of pool")
    }

    /// Takes over connections, counters and standing of `before`, which is this endpoint with another weight or
    /// description.
    pub fn inherit(&mut self, before: &Self) {
        if let Some(pool) = before.pool.get() {
            self.pool = OnceLock::from(pool.clone());
        }
        self.stats = before.stats.clone();
        self.health = before.health.clone();
        self.bar = before.bar.clone();
        self.hot = before.hot.clone();
    }

    /// A bar that is the same for all services of the host that have an endpoint at its address. Set once, by the
    /// filter that keeps it, before the endpoint is picked.
    pub fn share_bar(&self, bar: Arc<Bar>) {
        bar.keep(&self.hot);
        let _ = self.shared_bar.set(bar);
    }

    /// What [`Endpoint::share_bar`] was told.
    pub fn shared_bar(&self) -> Option<&Arc<Bar>> {
        self.shared_bar.get()
    }

    /// The connector's state if any call was made yet.
    pub fn existing_pool<P: Any + Send + Sync>(&self) -> Option<&P> {
        self.pool.get()?.downcast_ref()
    }

    /// Whether it may be picked: in rotation, and not barred by a filter.
    pub fn is_available(&self) -> bool {
        self.health.is_available() && !self.bar.is_up() && !self.shared_bar.get().is_some_and(|bar| bar.is_up())
    }

    /// Looks whether nothing at all stands against it, and if so lets balancers know, which need not look again.
    pub fn look_closer(&self) {
        let nothing_set = || !self.bar.is_set() && !self.shared_bar.get().is_some_and(|bar| bar.is_set());
        self.hot.clear(|| self.health.is_available() && nothing_set());
    }

    /// Attempts in flight.
    pub fn in_flight(&self) -> u32 {
        self.hot.in_flight()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("addr", &self.addr).field("group", &self.group).finish_non_exhaustive()
    }
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// As good an answer as the protocol can give.
    Answers,
    /// A connection, but no answer: perhaps it hangs, perhaps it does not know the question.
    Connects,
}

/// Sends calls to endpoints in one protocol: pool, encode, await the answer.
///
/// Dropping the returned future cancels the attempt: its answer slot is freed, and a connection that
/// cannot be reused after that is closed rather than pooled.
pub trait Connector: Send + Sync + 'static {
    /// Sends `req` to `to` and waits for the answer's head until `req.call.deadline`.
    ///
    /// The body is taken out of `req` only when a connection is at hand: after an error with
    /// [`crate::call::Retry::NotSent`] the request is whole and can be sent elsewhere. Implementations
    /// whose requests are replayable leave the body in place (a clone of `Bytes`).
    fn call<'a>(&'a self, to: &'a Arc<Endpoint>, req: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>>;

    /// Whether [`Connector::call`] is over by `req.call.deadline` in any case, so that nobody else must see to it.
    fn watches_deadline(&self) -> bool {
        false
    }

    /// The connection of `caller` has ended: connections to `to` that are good for nobody else may go.
    fn left(&self, _to: &Arc<Endpoint>, _caller: SocketAddr) {}

    /// Takes a connection to `to` that someone else dialled (detection dials on accept), or drops it.
    fn adopt(&self, _to: &Arc<Endpoint>, _io: Stream) {}

    /// Looks whether `to`, which is out of rotation, is fit for calls again. An error says that it is not.
    /// Where the protocol has no way to ask, a connection is all there is to see.
    fn probe<'a>(&'a self, to: &'a Arc<Endpoint>) -> BoxFuture<'a, Result<Probed, CallError>> {
        Box::pin(async move { dial(to.addr, &to.dial).await.map(|_| Probed::Answers) })
    }

    /// Time for a call when neither the configuration nor the call says.
    fn default_timeout(&self) -> Duration;
}
