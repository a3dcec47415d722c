//! `failfast`: keeps calls from an address that failed several times in a row, whatever service called it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde::Deserialize;

use super::{CallCx, Filter, Shows, Trying, Verdict, options::Time};
use crate::{
    call::{CallError, ErrorKind, Request, Response, ResponseHead, Retry, Side, Status},
    endpoint::{Bar, Endpoint},
    kind::{self, BuildCx, Value},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    failures: u32,
    retry_every: Time,
}

impl Default for Options {
    fn default() -> Self {
        Self { failures: 10, retry_every: Time(Duration::from_secs(10)) }
    }
}

/// What is known of addresses, shared by all services of the host. An address is forgotten with the last
/// endpoint that has it.
#[derive(Default)]
struct Book(Mutex<HashMap<SocketAddr, Weak<Bar>>>);

impl Book {
    fn bar(&self, addr: SocketAddr) -> Arc<Bar> {
        let mut known = self.0.lock();
        if let Some(bar) = known.get(&addr).and_then(Weak::upgrade) {
            return bar;
        }
        // Grows by doubling: looked through only when it would have to grow.
        if known.len() == known.capacity() {
            known.retain(|_, bar| bar.strong_count() > 0);
        }
        let bar = Arc::new(Bar::default());
        known.insert(addr, Arc::downgrade(&bar));
        bar
    }
}

struct Failfast {
    book: Arc<Book>,
    failures: u32,
    retry_every: Duration,
    barred: AtomicU64,
    refused: AtomicU64,
    trials: AtomicU64,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let Options { failures, retry_every } = kind::options(options)?;
    anyhow::ensure!(failures > 0, "failures: 0 would keep every call away; write a number from 1");
    Ok(Arc::new(Failfast {
        book: cx.shared.get(),
        failures,
        retry_every: retry_every.0,
        barred: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        trials: AtomicU64::new(0),
    }))
}

/// Whether an attempt failed; `None`: it says nothing about the endpoint.
fn is_failure(end: Result<&Response, &CallError>) -> Option<bool> {
    match end {
        // As Motan's own agent counts: an exception of any type, the user's own included.
        Ok(Response { head: ResponseHead::Motan2(_), status, .. }) => Some(*status != Status::Ok),
        Ok(response) => Some(response.status.is_failure()),
        Err(error) if error.side == Side::Upstream => Some(true),
        Err(_) => None,
    }
}

impl Filter for Failfast {
    fn on_endpoint(&self, endpoint: &Endpoint) {
        endpoint.share_bar(self.book.bar(endpoint.addr));
    }

    fn on_attempt(&self, _: &CallCx, attempt: &Trying<'_>, _: &mut Request) -> Verdict {
        let Some(bar) = attempt.to.shared_bar().filter(|bar| bar.is_set()) else { return Verdict::Continue };
        if bar.pass_one(self.retry_every) {
            self.trials.fetch_add(1, Relaxed);
            return Verdict::Continue;
        }
        self.refused.fetch_add(1, Relaxed);
        let message = format!("failfast: {} failed {} times in a row", attempt.to.addr, self.failures);
        Verdict::fail(CallError { retry: Retry::NotSent, ..CallError::mesh(ErrorKind::NoEndpoint, message) })
    }

    fn on_attempt_end(&self, _: &CallCx, attempt: &Trying<'_>, end: Result<&Response, &CallError>) {
        let (Some(bar), Some(failed)) = (attempt.to.shared_bar(), is_failure(end)) else { return };
        if !failed {
            // A load in the usual case.
            if bar.failures.load(Relaxed) != 0 {
                bar.failures.store(0, Relaxed);
            }
            bar.lower();
        } else if bar.failures.fetch_add(1, Relaxed) + 1 >= self.failures && !bar.is_set() {
            bar.raise(self.retry_every);
            self.barred.fetch_add(1, Relaxed);
            tracing::warn!(endpoint = %attempt.to.addr, failures = self.failures, "failfast: calls are kept away");
        }
    }

    fn figures(&self, show: &mut Shows<'_>) {
        show.event("barred", "", self.barred.load(Relaxed));
        show.event("trials", "", self.trials.load(Relaxed));
        show.event("refused", "", self.refused.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::testing::{Bench, failed};

    fn reset() -> Result<(), CallError> {
        Err(failed(ErrorKind::Reset))
    }

    #[tokio::test(start_paused = true)]
    async fn ten_in_a_row_bar_an_address_for_all_services_and_one_success_opens_it() {
        let cx = BuildCx::default();
        let (b, other) = (Bench::with(build, "{}", &cx), Bench::with(build, "{}", &cx));
        let (one, same, two) = (b.endpoint(1), other.endpoint(1), b.endpoint(2));
        for _ in 0..9 {
            b.attempt(&one, reset()).unwrap();
        }
        b.attempt(&one, Ok(())).unwrap();
        for _ in 0..9 {
            other.attempt(&same, reset()).unwrap();
        }
        assert!(one.is_available(), "a success in between begins anew");
        b.attempt(&one, reset()).unwrap();
        assert!(!one.is_available() && !same.is_available() && two.is_available());
        let refused = other.attempt(&same, Ok(())).unwrap_err();
        assert_eq!((refused.kind, refused.retry), (ErrorKind::NoEndpoint, Retry::NotSent));
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(10)).await;
            assert!(one.is_available(), "picked for a trial");
            b.attempt(&one, reset()).unwrap();
            b.attempt(&one, Ok(())).unwrap_err();
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        other.attempt(&same, Ok(())).unwrap();
        assert!(one.is_available());
        b.attempt(&one, Ok(())).unwrap();
        assert_eq!((b.event("barred", ""), b.event("trials", ""), b.event("refused", "")), (1, 3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn exceptions_of_any_type_count_and_callers_that_go_away_do_not() {
        let b = Bench::new(build, "{failures: 2, retry_every: 1s}");
        let one = b.endpoint(1);
        for _ in 0..5 {
            b.attempt(&one, Err(CallError::downstream(ErrorKind::Cancelled, ""))).unwrap();
        }
        assert!(one.is_available());
        let response = |status, head| Response { status, head, ..b.good() };
        let motan = || ResponseHead::Motan2(Default::default());
        assert_eq!(is_failure(Ok(&response(Status::Refused(30412), motan()))), Some(true));
        assert_eq!(is_failure(Ok(&response(Status::Ok, motan()))), Some(false));
        assert_eq!(is_failure(Ok(&response(Status::Refused(404), ResponseHead::None))), Some(false));
        assert_eq!(is_failure(Ok(&response(Status::Failed(503), ResponseHead::None))), Some(true));
    }

    #[test]
    fn addresses_are_forgotten_with_their_endpoints() {
        let book = Book::default();
        for port in 1..5000 {
            book.bar(SocketAddr::from(([127, 0, 0, 1], port)));
        }
        let kept = book.bar(SocketAddr::from(([127, 0, 0, 2], 1)));
        assert!(Arc::ptr_eq(&kept, &book.bar(SocketAddr::from(([127, 0, 0, 2], 1)))));
        assert!(book.0.lock().len() < 100, "{}", book.0.lock().len());
        let wrong: Value = serde_yaml::from_str("{failures: 0}").unwrap();
        assert!(build(&wrong, &BuildCx::default()).is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_ten_thousand_one_tries() {
        let b = Arc::new(Bench::new(build, "{failures: 1, retry_every: 1ms}"));
        let one = b.endpoint(1);
        b.attempt(&one, reset()).unwrap();
        one.shared_bar().unwrap().raise(Duration::ZERO);
        let slow = Arc::new(Bench::new(build, "{retry_every: 1h}"));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..10_000 {
            let (slow, one) = (slow.clone(), one.clone());
            tasks.spawn(async move { slow.attempt(&one, reset()).is_ok() });
        }
        let mut passed = 0;
        while let Some(done) = tasks.join_next().await {
            passed += u32::from(done.unwrap());
        }
        assert_eq!(passed, 1);
    }
}
