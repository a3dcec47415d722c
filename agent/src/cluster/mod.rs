//! One service as its callers see it: filters, HA, balancing, endpoints and timeouts, swapped as one.

mod end;
mod preview;
mod steering;
mod story;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use model::Snapshot;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use self::end::End;
pub use self::{preview::Load, steering::Steering};
use crate::{
    call::{Call, CallError, ErrorKind, Request, Response, Text},
    config,
    endpoint::{Connector, DialOptions, Endpoint, Introduce, Slabs},
    filter::{self, CallCx, ClusterInfo, Direction, Filter},
    ha::{self, Attempt, Attempts, HaStrategy, Sent},
    kind::{self, BuildCx},
    lb::{self, EndpointSet, LoadBalancer, Traits},
    metrics::ServiceStats,
    stream::{OwnSockets, Stream},
};

/// One service as its callers see it.
pub struct Cluster {
    /// Names and counters.
    pub info: Arc<ClusterInfo>,
    /// What it was built from; a reload keeps clusters whose configuration is equal.
    pub config: config::Cluster,
    filters: Box<[Arc<dyn Filter>]>,
    ha: Arc<dyn HaStrategy>,
    lb: Arc<dyn LoadBalancer>,
    connector: Arc<dyn Connector>,
    dial: DialOptions,
    set: ArcSwap<EndpointSet>,
    /// Places of the endpoints' hot state, side by side.
    slabs: Mutex<Slabs>,
    steering: ArcSwap<Steering>,
}

/// How much later than the connector the cluster gives up: of two timers for one moment the
/// connector's must come first, because it knows whom to blame.
const DEADLINE_GRACE: Duration = Duration::from_millis(10);

/// What a cluster is built from.
pub struct Parts<'a> {
    /// Service, group and version.
    pub key: model::ServiceKey,
    /// Which way its calls go.
    pub direction: Direction,
    /// Name of the protocol towards endpoints.
    pub protocol: &'static str,
    /// How calls are made.
    pub config: &'a config::Cluster,
    /// Sends calls.
    pub connector: Arc<dyn Connector>,
    /// What the capture wants of connections to endpoints.
    pub own: OwnSockets,
    /// Shows endpoints the callers, for clusters whose configuration says so.
    pub introduce: Option<Introduce>,
    /// For the kinds it is made of.
    pub cx: &'a BuildCx,
}

impl Cluster {
    /// Builds a cluster without endpoints. Errors name the kind that is unknown or badly configured.
    pub fn build(parts: Parts<'_>) -> anyhow::Result<Self> {
        let Parts { key, direction, protocol, config, connector, own, introduce, cx } = parts;
        let filters: anyhow::Result<Vec<_>> =
            config.filters.iter().map(|f| kind::build("filter", filter::KINDS, &f.name, &f.options, cx)).collect();
        let lb = kind::build("load balancer", lb::KINDS, &config.lb.name, &config.lb.options, cx)?;
        let none = EndpointSet::new(0, lb.picker(&[]), Vec::new());
        Ok(Self {
            info: Arc::new(ClusterInfo {
                service: Text::from(key.service.as_str()),
                key,
                direction,
                protocol,
                stats: Arc::new(ServiceStats::within(&cx.rows)),
            }),
            filters: filters?.into_boxed_slice(),
            ha: kind::build("HA strategy", ha::KINDS, &config.ha.name, &config.ha.options, cx)?,
            lb,
            connector,
            dial: DialOptions {
                connect_timeout: config.connect_timeout,
                own,
                introduce: introduce.filter(|_| config.client_address),
                unix: config.local_unix.as_deref().map(Arc::from),
            },
            set: ArcSwap::from_pointee(none),
            slabs: Mutex::new(Slabs::new(config.max_in_flight)),
            steering: ArcSwap::default(),
            config: config.clone(),
        })
    }

    /// Puts a filter in place of all others.
    #[cfg(test)]
    pub(crate) fn filter_with(&mut self, name: &str, filter: Arc<dyn Filter>) {
        self.filters = Box::new([filter]);
        self.config.filters = vec![config::Named::plain(name)];
    }

    /// The endpoints as they are now.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.set.load_full()
    }

    /// What commands say.
    pub fn steering(&self) -> Arc<Steering> {
        self.steering.load_full()
    }

    /// Takes what commands say. Calls are answered at once from now on if so ordered; shares of groups hold from
    /// the next [`Cluster::apply`] on.
    pub fn steer(&self, steering: Steering) {
        self.steering.store(Arc::new(steering));
    }

    /// Takes a new list of endpoints. Endpoints that stay keep their connections, health and counters;
    /// calls in flight go on with the list they began with. Returns those that are new, for probing.
    /// An instance whose address is no socket address is left out and reported.
    pub fn apply(&self, snapshot: &Snapshot) -> Vec<Weak<Endpoint>> {
        let old = self.set.load_full();
        let mut known: HashMap<(SocketAddr, &str), &Arc<Endpoint>> =
            old.endpoints.iter().map(|e| ((e.addr, &*e.group), e)).collect();
        let mut fresh = Vec::new();
        let mut endpoints = Vec::with_capacity(snapshot.instances.len());
        let mut slabs = self.slabs.lock();
        for instance in &snapshot.instances {
            let Ok(addr) = instance.address.parse::<SocketAddr>() else {
                tracing::warn!(service = %self.info.key, address = instance.address,
                    "instance left out: its address is not IP:PORT");
                continue;
            };
            let group = if instance.group.is_empty() { &self.info.key.group } else { &instance.group };
            match known.remove(&(addr, group.as_str())) {
                Some(same) if same.is_as(instance) => endpoints.push(same.clone()),
                changed => {
                    let slot = match changed {
                        Some(before) => before.hot.clone(),
                        None => slabs.take(snapshot.instances.len() - endpoints.len()),
                    };
                    let mut endpoint = Endpoint::new_at(
                        slot,
                        addr,
                        Text::from(group.as_str()),
                        instance.weight,
                        self.config.eject.clone(),
                        self.dial.clone(),
                    );
                    endpoint.describe(instance);
                    endpoint.prober = Some(self.connector.clone());
                    if let Some(before) = changed {
                        endpoint.inherit(before);
                    }
                    self.filters.iter().for_each(|filter| filter.on_endpoint(&endpoint));
                    let endpoint = Arc::new(endpoint);
                    fresh.push(Arc::downgrade(&endpoint));
                    endpoints.push(endpoint);
                }
            }
        }
        let picker = self.picker(&endpoints, &self.steering.load());
        slabs.shrink();
        self.set.store(Arc::new(EndpointSet::new(snapshot.revision, picker, endpoints)));
        fresh
    }

    /// What picks among `endpoints` under `steering`.
    fn picker(&self, endpoints: &[Arc<Endpoint>], steering: &Steering) -> Box<dyn lb::Picker> {
        let lb = match &steering.canary {
            Some(canary) => Arc::new(lb::Canaried::new(self.lb.clone(), canary.clone())),
            None => self.lb.clone(),
        };
        match steering.shares() {
            Some(shares) => lb::grouped(&*lb, endpoints, &shares),
            None => lb.picker(endpoints),
        }
    }

    /// Its filters with their names, outermost first.
    pub fn filters(&self) -> impl Iterator<Item = (&str, &dyn Filter)> {
        self.config.filters.iter().zip(&self.filters).map(|(named, filter)| (named.name.as_str(), &**filter))
    }

    /// Time that a call gets: what came with it if that is within the configured range, else the
    /// method's, the service's or the protocol's default.
    pub fn timeout(&self, method: &str, wire: Option<Duration>) -> Duration {
        let configured = self.config.methods.get(method).and_then(|m| m.timeout).or(self.config.timeout);
        let base = configured.unwrap_or_else(|| self.connector.default_timeout());
        let (min, max) = self.config.timeout_range.unwrap_or((base / 2, base * 2));
        wire.filter(|w| (min..=max).contains(w)).unwrap_or(base)
    }

    /// Whether `call` may be sent twice: what the configuration says of its method or of all, else what
    /// its protocol says.
    pub fn may_repeat(&self, call: &Call) -> bool {
        let method = self.config.methods.get(&*call.method).and_then(|m| m.idempotent);
        method.unwrap_or(self.config.idempotent || call.idempotent)
    }

    /// Gives the connector a connection to `addr` that someone else dialled; dropped if it is of no use.
    pub fn adopt(&self, addr: SocketAddr, io: Stream) {
        let set = self.set.load();
        if let Some(endpoint) = set.endpoints.iter().find(|e| e.addr == addr) {
            self.connector.adopt(endpoint, io);
        }
    }

    /// The connection of `caller` has ended, and with it the use of connections that were opened for it alone.
    pub fn left(&self, caller: SocketAddr) {
        if self.dial.introduce.is_some() {
            self.set.load().endpoints.iter().for_each(|endpoint| self.connector.left(endpoint, caller));
        }
    }

    /// Sends a call to an endpoint and returns the head of the answer. Dropping the future cancels it.
    ///
    /// Filters are told the end when a streamed body is through or dropped. `req` is borrowed all the way to
    /// the connector, because every stage that owned it would hold room for one more; what is left of it
    /// afterwards is of no use.
    pub async fn call(self: &Arc<Self>, req: &mut Request) -> Result<Response, CallError> {
        let cx = CallCx::new(self.info.clone());
        req.call.deadline = cx.started + self.timeout(&req.call.method, req.call.wire_timeout);
        self.info.stats.started.fetch_add(1, Relaxed);
        let mut end = End::new(self, req, cx);
        if let Some(refusal) = self.steering.load().refusal() {
            end.cx.trail.note("a command has the service degraded: nothing is picked");
            // Before the filters, none of which shall wait or count against anybody; they are told the end.
            let result = Err(refusal);
            end.head(&result);
            return result;
        }
        let (mut result, attempt) = match filter::enter(&self.filters, &mut end.cx, req).await {
            Ok(()) => {
                end.entered(req);
                self.attempts(req, &mut end).await
            }
            Err(answer) => (*answer, None),
        };
        for filter in self.filters[..end.cx.entered].iter().rev() {
            filter.on_response(&mut end.cx, &mut result);
        }
        end.head(&result);
        if let Ok(response) = &mut result
            && !end.is_with(response)
        {
            end.watch(response, attempt);
        }
        result
    }

    async fn attempts(&self, req: &mut Request, end: &mut End) -> (Result<Response, CallError>, Option<Attempt>) {
        let set = self.set.load_full();
        let method = self.config.methods.get(&*req.call.method);
        let mut attempts = Attempts::new(&set, &*self.connector, &self.filters, &end.cx, &end.record.call);
        attempts.retries = method.and_then(|m| m.retries).unwrap_or(self.config.retries);
        attempts.idempotent = self.may_repeat(&req.call);
        attempts.max_in_flight = self.config.max_in_flight;
        attempts.traits = Traits { hash: self.lb.hash(req), marked: self.steering.load().marks(req) };
        let deadline = req.call.deadline;
        let result = in_time(deadline + DEADLINE_GRACE, self.ha.call(&attempts, req), || attempts.is_watched()).await;
        let (count, last) = (attempts.count(), attempts.last().map(|e| e.addr));
        end.record.attempts = count;
        end.record.endpoint = last;
        match result {
            Some(Ok(Sent { response, attempt })) => {
                end.record.endpoint = Some(attempt.endpoint().addr);
                (Ok(response), Some(attempt))
            }
            Some(Err(error)) => (Err(error), None),
            None => {
                // Connectors watch the deadline themselves; this catches time lost elsewhere.
                let mut error = CallError::mesh(ErrorKind::Timeout, "no answer before the deadline");
                error.endpoint = end.record.endpoint;
                (Err(error), None)
            }
        }
    }
}

/// What `call` comes to, or nothing after the deadline. While it is with someone `else_watched` by the deadline no
/// timer is set: one for each call would cost more than all the books that are kept of it.
async fn in_time<T>(deadline: Instant, mut call: BoxFuture<'_, T>, else_watched: impl Fn() -> bool) -> Option<T> {
    let mut timer = pin!(None::<Sleep>);
    poll_fn(|cx| {
        if let Poll::Ready(result) = call.as_mut().poll(cx) {
            return Poll::Ready(Some(result));
        }
        if timer.is_none() {
            if else_watched() {
                return Poll::Pending;
            }
            timer.set(Some(tokio::time::sleep_until(deadline)));
        }
        let timer = timer.as_mut().as_pin_mut().expect("just set");
        timer.poll(cx).map(|()| None)
    })
    .await
}
