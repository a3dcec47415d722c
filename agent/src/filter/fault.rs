//! `fault`: delays and aborts a share of the calls, to see who minds.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use http::StatusCode;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    CallCx, Filter, Shows, Verdict, answer,
    options::{Percent, Times},
};
use crate::{
    call::{CallError, ErrorKind, Request, exception::Exception},
    kind::{self, BuildCx, Value},
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    delay: Option<Delay>,
    abort: Option<Abort>,
    methods: BTreeMap<String, OfMethod>,
    applications: Vec<String>,
    switcher: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OfMethod {
    delay: Option<Delay>,
    abort: Option<Abort>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Delay {
    time: Times,
    #[serde(default = "always")]
    percent: Percent,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Abort {
    code: u16,
    #[serde(default = "always")]
    percent: Percent,
    #[serde(default = "text")]
    text: String,
    #[serde(default = "service", rename = "type")]
    errtype: i64,
}

const fn always() -> Percent {
    Percent(100.0)
}

fn text() -> String {
    "aborted by the filter fault".to_owned()
}

const fn service() -> i64 {
    1
}

struct Fault {
    all: OfMethod,
    methods: BTreeMap<String, OfMethod>,
    applications: Vec<String>,
    on: Option<Arc<AtomicBool>>,
    delayed: AtomicU64,
    aborted: AtomicU64,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let Options { delay, abort, methods, applications, switcher } = kind::options(options)?;
    let given = delay.is_some() || abort.is_some() || !methods.is_empty();
    anyhow::ensure!(given, "no fault is given; write `delay`, `abort` or `methods`");
    Ok(Arc::new(Fault {
        all: OfMethod { delay, abort },
        methods,
        applications,
        on: switcher.map(|name| cx.switchers.register(&name, true)),
        delayed: AtomicU64::new(0),
        aborted: AtomicU64::new(0),
    }))
}

impl Filter for Fault {
    fn on_request(&self, _: &mut CallCx, req: &mut Request) -> Verdict {
        let meant = self.applications.is_empty() || self.applications.iter().any(|a| *req.call.application == **a);
        if !meant || self.on.as_ref().is_some_and(|on| !on.load(Relaxed)) {
            return Verdict::Continue;
        }
        let OfMethod { delay, abort } = self.methods.get(&*req.call.method).unwrap_or(&self.all);
        let abort = abort.as_ref().filter(|abort| abort.percent.hits()).map(|abort| {
            self.aborted.fetch_add(1, Relaxed);
            let exception =
                Exception { code: abort.code.into(), text: abort.text.clone().into(), errtype: abort.errtype };
            // A Motan code need not be one of HTTP's.
            let status = StatusCode::from_u16(abort.code).ok().filter(|s| s.as_u16() >= 200 && s.as_u16() < 600);
            let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Verdict::Stop(Box::new(answer::exception(&req.head, &exception, status)))
        });
        let after = abort.unwrap_or(Verdict::Continue);
        let Some(delay) = delay.filter(|delay| delay.percent.hits()) else { return after };
        self.delayed.fetch_add(1, Relaxed);
        let (at, deadline) = (Instant::now() + delay.time.pick(), req.call.deadline);
        Verdict::Wait(Box::pin(async move {
            tokio::time::sleep_until(at.min(deadline)).await;
            if at > deadline {
                return Verdict::fail(CallError::mesh(ErrorKind::Timeout, "fault: the delay ends after the deadline"));
            }
            after
        }))
    }

    fn figures(&self, show: &mut Shows<'_>) {
        show.event("delayed", "", self.delayed.load(Relaxed));
        show.event("aborted", "", self.aborted.load(Relaxed));
        if let Some(on) = &self.on {
            show.state("on", "", on.load(Relaxed).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        call::{Head, Status},
        filter::testing::{Bench, http, motan},
    };

    #[tokio::test(start_paused = true)]
    async fn aborts_with_a_code_in_each_protocol() {
        let b = Bench::new(build, "{abort: {code: 503}, methods: {odd: {abort: {code: 30412, type: 2}}, fine: {}}}");
        let status = async |req: Request| b.call(req, || Ok(b.good())).await.map(|r| r.status);
        assert_eq!(status(motan("echo")).await.unwrap(), Status::Failed(503));
        assert_eq!(status(http("GET")).await.unwrap(), Status::Failed(503));
        assert_eq!(status(motan("odd")).await.unwrap(), Status::Refused(30412));
        assert_eq!(status(http("odd")).await.unwrap(), Status::Failed(500));
        assert_eq!(status(motan("fine")).await.unwrap(), Status::Ok);
        let raw = Request { head: Head::None, ..motan("echo") };
        assert_eq!(status(raw).await.unwrap_err().kind, ErrorKind::Rejected);
        assert_eq!(b.event("aborted", ""), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_up_to_the_deadline_and_aborts_afterwards() {
        let b = Bench::new(
            build,
            "{delay: {time: 100ms}, methods: {long: {delay: {time: 2s}}, both: {delay: {time: 5ms}, abort: {code: 500}}}}",
        );
        let took = async |method: &str| {
            let before = Instant::now();
            let end = b.call(motan(method), || Ok(b.good())).await;
            (end.map(|r| r.status).map_err(|e| e.kind), before.elapsed())
        };
        assert_eq!(took("echo").await, (Ok(Status::Ok), Duration::from_millis(100)));
        assert_eq!(took("long").await, (Err(ErrorKind::Timeout), Duration::from_secs(1)));
        assert_eq!(took("both").await, (Ok(Status::Failed(500)), Duration::from_millis(5)));
        assert_eq!(b.event("delayed", ""), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn only_its_share_of_the_callers_it_is_meant_for() {
        let cx = BuildCx::default();
        let b = Bench::with(build, "{abort: {code: 500, percent: 20}, applications: [shop], switcher: chaos}", &cx);
        let call = async |application: &'static str| {
            let mut req = motan("echo");
            req.call.application = application.into();
            u32::from(b.call(req, || Ok(b.good())).await.unwrap().status.is_failure())
        };
        let (mut shop, mut other) = (0, 0);
        for _ in 0..10_000 {
            shop += call("shop").await;
            other += call("else").await;
        }
        assert!((1800..2200).contains(&shop) && other == 0, "{shop} {other}");
        cx.switchers.set("chaos", false);
        for _ in 0..100 {
            assert_eq!(call("shop").await, 0);
        }
        assert_eq!((b.state("on", ""), b.event("aborted", "")), (0, u64::from(shop)));
    }

    #[test]
    fn options_are_checked() {
        for (wrong, says) in [("{}", "no fault"), ("{delay: {time: x}}", "duration"), ("{abort: {}}", "code")] {
            let options: Value = serde_yaml::from_str(wrong).unwrap();
            let error = build(&options, &BuildCx::default()).err().unwrap().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
