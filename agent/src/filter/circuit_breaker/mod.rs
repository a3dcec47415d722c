//! `circuit_breaker`: stops calling what fails or is slow, and tries it again one call at a time.

mod circuit;
#[cfg(test)]
mod tests;

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Deserialize;

use self::circuit::{CLOSED, Circuit, OPEN, Refused, Rules, Said};
use super::{
    CallCx, Filter, Record, Shows, Trying, Verdict,
    options::{Percent, Time},
};
use crate::{
    call::{
        CallError, ErrorKind, Pairs, Request, Response, ResponseHead, Retry, Side, Status,
        exception::{Exception, Failed},
    },
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
    metrics::OTHER,
};

/// Methods of one service with circuits of their own; further ones share one.
const METHODS: usize = 64;
/// Circuits of endpoints kept before those that nobody uses any more are thrown away.
const KEPT: usize = 256;
/// So long unused, nobody misses a circuit.
const UNUSED: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scope {
    #[default]
    Service,
    Method,
    Endpoint,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    scope: Scope,
    window: Time,
    requests: u32,
    error_percent: Percent,
    slow: Time,
    slow_percent: Percent,
    sleep: Time,
    max_concurrent: u32,
    business_errors: bool,
    timeout: Time,
    replace_errors: bool,
}

impl Default for Options {
    // Those of Motan's own agent, so that a file without options means the same.
    fn default() -> Self {
        Self {
            scope: Scope::Service,
            window: Time(Duration::from_secs(10)),
            requests: 20,
            error_percent: Percent(50.0),
            slow: Time(Duration::ZERO),
            slow_percent: Percent(100.0),
            sleep: Time(Duration::from_secs(5)),
            max_concurrent: 5000,
            business_errors: true,
            timeout: Time(Duration::ZERO),
            replace_errors: false,
        }
    }
}

/// A call that passed its circuit and has not left it yet.
#[derive(Debug)]
pub(super) struct Pass {
    /// The filter it belongs to: there may be several of this kind.
    owner: usize,
    circuit: Arc<Circuit>,
    trial: bool,
}

struct CircuitBreaker {
    scope: Scope,
    rules: Rules,
    business_errors: bool,
    timeout: Duration,
    replace_errors: bool,
    service: Arc<Circuit>,
    methods: Circuits<Box<str>>,
    endpoints: Circuits<SocketAddr>,
    /// Attempts that are trials: the call and the number of its attempt.
    trials: Mutex<Vec<(usize, u32)>>,
    trying: AtomicUsize,
    timed_out: AtomicU64,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let o: Options = kind::options(options)?;
    for (name, zero) in [("window", o.window.0.is_zero()), ("requests", o.requests == 0)] {
        anyhow::ensure!(!zero, "{name}: is 0; write how many are looked at");
    }
    let rules = Rules {
        window: o.window.0,
        requests: o.requests,
        error_percent: o.error_percent.0,
        slow: o.slow.0,
        slow_percent: o.slow_percent.0,
        sleep: o.sleep.0,
        max_concurrent: o.max_concurrent,
    };
    Ok(Arc::new(CircuitBreaker {
        scope: o.scope,
        rules,
        business_errors: o.business_errors,
        timeout: o.timeout.0,
        replace_errors: o.replace_errors,
        service: Arc::new(Circuit::new()),
        methods: Circuits::default(),
        endpoints: Circuits::default(),
        trials: Mutex::default(),
        trying: AtomicUsize::new(0),
        timed_out: AtomicU64::new(0),
    }))
}

impl CircuitBreaker {
    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn said(&self, end: Result<&Response, &CallError>) -> Said {
        match end {
            Ok(response) => match response.status {
                Status::Failed(_) => Said::Bad,
                // What a web service refuses is its caller's mistake; what Motan calls an exception counts there.
                Status::Refused(_) if self.business_errors && matches!(response.head, ResponseHead::Motan2(_)) => {
                    Said::Bad
                }
                Status::Refused(_) | Status::Ok => Said::Good,
            },
            Err(error) if error.side == Side::Downstream => Said::Nothing,
            Err(error) => match error.kind {
                ErrorKind::NoEndpoint
                | ErrorKind::Connect
                | ErrorKind::ConnectTimeout
                | ErrorKind::Timeout
                | ErrorKind::Reset
                | ErrorKind::Protocol => Said::Bad,
                _ => Said::Nothing,
            },
        }
    }

    /// The same answer as a plain error with the original text: what breakers of Motan's own agent make of it.
    fn replaced(end: &Result<Response, CallError>, direction: crate::call::Direction) -> Option<CallError> {
        let text = match end {
            Ok(response) => {
                let ResponseHead::Motan2(head) = &response.head else { return None };
                let thrown = head.meta.get("M_e")?;
                serde_json::from_str::<serde_json::Value>(&thrown).ok()?["errmsg"].as_str()?.to_owned().into()
            }
            Err(error) if error.verbatim => return None,
            Err(error) => Exception::of(error, Failed { direction, id: 0, meta: &Pairs::default() }).text,
        };
        let (kind, side, endpoint) = match end {
            Ok(response) => (ErrorKind::Rejected, Side::Upstream, response.endpoint),
            Err(error) => (error.kind, error.side, error.endpoint),
        };
        Some(CallError { side, endpoint, ..CallError::mesh(kind, text).verbatim() })
    }
}

fn refused(why: Refused) -> CallError {
    let text = match why {
        Refused::Open => "hystrix: circuit open",
        Refused::MaxConcurrent => "hystrix: max concurrency",
    };
    CallError::mesh(ErrorKind::CircuitOpen, text).verbatim()
}

fn call_of(cx: &CallCx) -> usize {
    std::ptr::from_ref(cx).addr()
}

impl Filter for CircuitBreaker {
    fn on_request(&self, cx: &mut CallCx, req: &mut Request) -> Verdict {
        if !self.timeout.is_zero() {
            req.call.deadline = req.call.deadline.min(cx.started + self.timeout);
        }
        let circuit = match self.scope {
            Scope::Service => self.service.clone(),
            Scope::Method => self.methods.limited(&req.call.method),
            Scope::Endpoint => return Verdict::Continue,
        };
        match circuit.enter(&self.rules) {
            Ok(trial) => {
                cx.notes.breaker.push(Pass { owner: self.id(), circuit, trial });
                Verdict::Continue
            }
            Err(why) => Verdict::fail(refused(why)),
        }
    }

    fn on_attempt(&self, cx: &CallCx, attempt: &Trying<'_>, _: &mut Request) -> Verdict {
        if self.scope != Scope::Endpoint {
            return Verdict::Continue;
        }
        match self.endpoints.get(&attempt.to.addr).enter(&self.rules) {
            Ok(trial) => {
                if trial {
                    self.trials.lock().push((call_of(cx), attempt.number));
                    self.trying.fetch_add(1, Relaxed);
                }
                Verdict::Continue
            }
            // Nothing was sent: another endpoint may take it.
            Err(why) => Verdict::fail(CallError { retry: Retry::NotSent, ..refused(why) }),
        }
    }

    fn on_attempt_end(&self, cx: &CallCx, attempt: &Trying<'_>, end: Result<&Response, &CallError>) {
        if self.scope != Scope::Endpoint {
            return;
        }
        let trial = self.trying.load(Relaxed) > 0 && {
            let mut trials = self.trials.lock();
            let found = trials.iter().position(|t| *t == (call_of(cx), attempt.number));
            found.map(|i| trials.swap_remove(i)).is_some()
        };
        if trial {
            self.trying.fetch_sub(1, Relaxed);
        }
        let circuit = self.endpoints.get(&attempt.to.addr);
        // Balancers pass it over, so that calls do not have to find out one by one.
        match circuit.leave(&self.rules, trial, self.said(end), attempt.started.elapsed()) {
            Some(OPEN) => attempt.to.bar.raise(self.rules.sleep),
            Some(CLOSED) => attempt.to.bar.lower(),
            _ => {}
        }
    }

    fn on_response(&self, cx: &mut CallCx, end: &mut Result<Response, CallError>) {
        let took = cx.started.elapsed();
        let said = self.said(end.as_ref());
        let own = cx.notes.breaker.iter().position(|pass| pass.owner == self.id());
        if let Some(Pass { circuit, trial, .. }) = own.map(|i| cx.notes.breaker.remove(i)) {
            circuit.leave(&self.rules, trial, said, took);
        }
        match end {
            Err(error) if error.kind == ErrorKind::Timeout && !self.timeout.is_zero() && took >= self.timeout => {
                self.timed_out.fetch_add(1, Relaxed);
                error.message = "hystrix: timeout".into();
                error.verbatim = true;
            }
            _ if self.replace_errors && said == Said::Bad => {
                if let Some(error) = Self::replaced(end, cx.cluster.direction) {
                    *end = Err(error);
                }
            }
            _ => {}
        }
    }

    fn on_end(&self, record: &Record) {
        // Still there only when no answer came: its caller went away.
        for pass in record.notes.breaker.iter().filter(|pass| pass.owner == self.id()) {
            pass.circuit.leave(&self.rules, pass.trial, Said::Nothing, Duration::ZERO);
        }
    }

    fn on_endpoint(&self, endpoint: &Endpoint) {
        if self.scope == Scope::Endpoint {
            self.endpoints.forget_idle();
            self.endpoints.get(&endpoint.addr);
        }
    }

    fn figures(&self, show: &mut Shows<'_>) {
        let mut one = |of: &str, circuit: &Circuit| {
            show.state("circuit", of, circuit.state().into());
            show.state("in_flight", of, circuit.in_flight().into());
            show.event("opened", of, circuit.opened.load(Relaxed));
            show.event("refused_open", of, circuit.refused_open.load(Relaxed));
            show.event("refused_concurrent", of, circuit.refused_concurrent.load(Relaxed));
        };
        match self.scope {
            Scope::Service => one("", &self.service),
            Scope::Method => self.methods.each(|name, circuit| one(name, circuit)),
            Scope::Endpoint => self.endpoints.each(|addr, circuit| one(&addr.to_string(), circuit)),
        }
        if !self.timeout.is_zero() {
            show.event("timed_out", "", self.timed_out.load(Relaxed));
        }
    }
}

/// Circuits by method or by address. Finding one takes no lock.
#[derive(Debug)]
struct Circuits<K> {
    map: ArcSwap<HashMap<K, Arc<Circuit>>>,
    /// Taken to add one only.
    adding: Mutex<()>,
}

impl<K> Default for Circuits<K> {
    fn default() -> Self {
        Self { map: ArcSwap::from_pointee(HashMap::new()), adding: Mutex::new(()) }
    }
}

impl<K: Hash + Eq + Clone> Circuits<K> {
    fn get<Q: Hash + Eq + ToOwned + ?Sized>(&self, key: &Q) -> Arc<Circuit>
    where
        K: Borrow<Q>,
        Q::Owned: Into<K>,
    {
        if let Some(circuit) = self.map.load().get(key) {
            return circuit.clone();
        }
        let _adding = self.adding.lock();
        let map = self.map.load();
        if let Some(circuit) = map.get(key) {
            return circuit.clone();
        }
        let circuit = Arc::new(Circuit::new());
        let mut more = HashMap::clone(&map);
        more.insert(key.to_owned().into(), circuit.clone());
        self.map.store(Arc::new(more));
        circuit
    }

    /// Throws away what nobody uses any more, once there are many.
    fn forget_idle(&self) {
        if self.map.load().len() < KEPT {
            return;
        }
        let _adding = self.adding.lock();
        let map = self.map.load();
        if map.values().any(|circuit| circuit.is_idle(UNUSED)) {
            let used = map.iter().filter(|(_, circuit)| !circuit.is_idle(UNUSED));
            self.map.store(Arc::new(used.map(|(k, c)| (k.clone(), c.clone())).collect()));
        }
    }

    fn each(&self, mut show: impl FnMut(&K, &Circuit)) {
        self.map.load().iter().for_each(|(key, circuit)| show(key, circuit));
    }
}

impl Circuits<Box<str>> {
    /// The circuit of a method; names come from the wire, so there are [`METHODS`] and one for all others.
    fn limited(&self, method: &str) -> Arc<Circuit> {
        let known = self.map.load();
        let name = if known.len() < METHODS || known.contains_key(method) { method } else { OTHER };
        self.get(name)
    }
}
