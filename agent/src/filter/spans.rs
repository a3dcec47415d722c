//! `tracing`: continues the context of a trace and tells a collector about calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use serde::Deserialize;
use smallvec::SmallVec;

use super::{CallCx, Filter, Outcome, Record, Shows, Trying, Verdict, code_of, options::Time};
use crate::{
    call::{CallError, Head, Request, Response, Text},
    kind::{self, BuildCx, Value},
    trace::{Attribute, Context, Decision, Exporter, Forms, Kind, Span, Target},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    sample: f64,
    slow: Time,
    export: Option<Export>,
    queue: usize,
    propagate: Vec<Form>,
}

/// `{otlp: URL}` or `{zipkin: URL}`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Export {
    otlp: Option<String>,
    zipkin: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    W3c,
    B3,
    B3Multi,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sample: 0.01,
            slow: Time(Duration::from_millis(500)),
            export: None,
            queue: 4096,
            propagate: vec![Form::W3c],
        }
    }
}

struct Tracing {
    sample: f64,
    slow: Duration,
    target: String,
    exporter: Option<Arc<Exporter>>,
    /// In which forms traces that begin here go on.
    forms: Forms,
    recorded: AtomicU64,
    by_share: AtomicU64,
}

/// What is known of a call's trace until its end.
#[derive(Debug)]
pub(super) struct Traced {
    context: Context,
    /// The call's own span.
    span: u64,
    attempts: Mutex<SmallVec<[Attempted; 2]>>,
}

#[derive(Clone, Debug)]
struct Attempted {
    number: u32,
    span: u64,
    to: std::net::SocketAddr,
    /// After the call began.
    began: Duration,
    took: Duration,
    code: u32,
    error: Option<String>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let o: Options = kind::options(options)?;
    anyhow::ensure!((0.0..=1.0).contains(&o.sample), "sample: {} is no share; write a number from 0 to 1", o.sample);
    anyhow::ensure!((1..=1_000_000).contains(&o.queue), "queue: {} is no length; write 1 to 1000000", o.queue);
    anyhow::ensure!(!o.propagate.is_empty(), "propagate: is empty; write `[w3c]`, `[b3]` or `[b3_multi]`");
    let target = match o.export {
        None => None,
        Some(Export { otlp: Some(url), zipkin: None }) => Some(Target::Otlp(url)),
        Some(Export { otlp: None, zipkin: Some(url) }) => Some(Target::Zipkin(url)),
        Some(_) => anyhow::bail!("export: names not one collector; write `{{otlp: URL}}` or `{{zipkin: URL}}`"),
    };
    if let Some(target) = &target {
        target.parse().map_err(|e| anyhow::anyhow!("export: {e}"))?;
    }
    let exporter = match (&target, &cx.exporters) {
        (Some(target), Some(exporters)) => Some(exporters.get(target, &cx.application, o.queue)?),
        _ => None,
    };
    let mut forms = Forms::default();
    for form in o.propagate {
        match form {
            Form::W3c => forms.w3c = true,
            Form::B3 => forms.b3 = true,
            Form::B3Multi => forms.b3_multi = true,
        }
    }
    Ok(Arc::new(Tracing {
        sample: o.sample,
        slow: o.slow.0,
        target: target.map(|target| target.to_string()).unwrap_or_default(),
        exporter,
        forms,
        recorded: AtomicU64::new(0),
        by_share: AtomicU64::new(0),
    }))
}

/// A value by its name: headers in any case, metadata as written or in small letters.
fn find(head: &Head, name: &'static str) -> Option<Text> {
    match head {
        Head::Motan2(head) => head.meta.get(name).or_else(|| {
            let small = name.bytes().any(|b| b.is_ascii_uppercase());
            small.then(|| head.meta.get(&name.to_ascii_lowercase())).flatten()
        }),
        Head::Http(head) => head.headers.get(name).and_then(|value| value.to_str().ok()).map(Text::from),
        Head::None => None,
    }
}

fn put(head: &mut Head, name: &'static str, value: String) {
    match head {
        Head::Motan2(head) => head.meta.set(Text::from_static(name), value.into()),
        Head::Http(head) => {
            let name = HeaderName::try_from(name).expect("names of headers");
            head.headers.insert(name, HeaderValue::try_from(value).expect("hex digits and `-`"));
        }
        Head::None => {}
    }
}

fn new_span() -> u64 {
    // Never 0, which means none.
    fastrand::u64(1..)
}

impl Tracing {
    /// The spans of a call that has ended.
    fn spans(record: &Record, traced: &Traced) -> Vec<Span> {
        let now = SystemTime::now();
        let start = now.checked_sub(record.total).unwrap_or(SystemTime::UNIX_EPOCH);
        let (call, cluster) = (&record.call, &record.cluster);
        let name = format!("{}.{}", cluster.service, call.method);
        let mut attributes = vec![
            ("rpc.system", text(cluster.protocol)),
            ("rpc.service", text(&cluster.service)),
            ("rpc.method", text(&call.method)),
            ("sockmesh.direction", text(cluster.direction.name())),
            ("sockmesh.attempts", Attribute::Number(record.attempts.into())),
            ("sockmesh.code", Attribute::Number(record.code.into())),
        ];
        for (key, value) in
            [("url.path", &call.path), ("sockmesh.group", &call.group), ("sockmesh.application", &call.application)]
        {
            if !value.is_empty() {
                attributes.push((key, text(value)));
            }
        }
        if call.request_id != 0 {
            attributes.push(("sockmesh.request_id", text(&call.request_id.cast_signed().to_string())));
        }
        let error = match &record.outcome {
            Outcome::Answered(status) if status.is_failure() => Some(format!("code {}", record.code)),
            Outcome::Answered(_) => None,
            Outcome::Failed(error) => Some(format!("{}: {}", error.kind.name(), error.message)),
        };
        let of_call = Span {
            trace: traced.context.trace,
            id: traced.span,
            parent: traced.context.span,
            name,
            kind: Kind::Server,
            start,
            duration: record.total,
            peer: call.peer,
            service: cluster.service.clone(),
            error,
            attributes,
            state: traced.context.state.clone(),
        };
        let attempts = traced.attempts.lock().clone();
        let mut spans = Vec::with_capacity(1 + attempts.len());
        spans.push(of_call);
        for attempt in attempts {
            spans.push(Span {
                id: attempt.span,
                parent: Some(traced.span),
                kind: Kind::Client,
                start: start + attempt.began,
                duration: attempt.took,
                peer: Some(attempt.to),
                error: attempt.error,
                attributes: vec![
                    ("sockmesh.attempt", Attribute::Number(attempt.number.into())),
                    ("sockmesh.code", Attribute::Number(attempt.code.into())),
                ],
                ..spans[0].clone()
            });
        }
        spans
    }
}

fn text(text: &str) -> Attribute {
    Attribute::Text(text.to_owned())
}

impl Filter for Tracing {
    fn on_request(&self, cx: &mut CallCx, req: &mut Request) -> Verdict {
        if cx.notes.traced.is_some() {
            // A second one of this kind tells another collector of the same spans.
            return Verdict::Continue;
        }
        let mut context = Context::read(|name| find(&req.head, name));
        context.decide(self.sample);
        if context.forms.is_empty() {
            context.forms = self.forms;
        }
        cx.notes.traced = Some(Box::new(Traced { context, span: new_span(), attempts: Mutex::default() }));
        Verdict::Continue
    }

    fn on_attempt(&self, cx: &CallCx, attempt: &Trying<'_>, req: &mut Request) -> Verdict {
        let Some(traced) = &cx.notes.traced else { return Verdict::Continue };
        if traced.attempts.lock().iter().any(|known| known.number == attempt.number) {
            return Verdict::Continue;
        }
        let span = new_span();
        traced.context.write(span, traced.context.forms, |name, value| put(&mut req.head, name, value));
        traced.attempts.lock().push(Attempted {
            number: attempt.number,
            span,
            to: attempt.to.addr,
            began: attempt.started - cx.started,
            took: Duration::ZERO,
            code: 0,
            error: None,
        });
        Verdict::Continue
    }

    fn on_attempt_end(&self, cx: &CallCx, attempt: &Trying<'_>, end: Result<&Response, &CallError>) {
        let Some(traced) = &cx.notes.traced else { return };
        let mut attempts = traced.attempts.lock();
        let Some(noted) = attempts.iter_mut().find(|noted| noted.number == attempt.number) else { return };
        noted.took = attempt.started.elapsed();
        match end {
            Ok(response) => {
                noted.code = code_of(response);
                noted.error = response.status.is_failure().then(|| format!("code {}", noted.code));
            }
            Err(error) => noted.error = Some(format!("{}: {}", error.kind.name(), error.message)),
        }
    }

    fn on_end(&self, record: &Record) {
        let (Some(exporter), Some(traced)) = (&self.exporter, &record.notes.traced) else { return };
        let share = traced.context.decision.is_yes();
        let slow = !self.slow.is_zero() && record.latency() >= self.slow;
        let denied = traced.context.decision == Decision::Deny;
        if denied || !(share || slow || !record.is_success()) {
            return;
        }
        self.recorded.fetch_add(1, Relaxed);
        self.by_share.fetch_add(share.into(), Relaxed);
        exporter.take(Self::spans(record, traced));
    }

    fn figures(&self, show: &mut Shows<'_>) {
        show.event("recorded", "", self.recorded.load(Relaxed));
        show.event("recorded_by_share", "", self.by_share.load(Relaxed));
        if let Some(exporter) = &self.exporter {
            let (exported, failed, dropped) = exporter.counts();
            show.event("spans_exported", &self.target, exported);
            show.event("spans_failed", &self.target, failed);
            show.event("spans_dropped", &self.target, dropped);
            show.state("queued", &self.target, exporter.queued() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::ErrorKind,
        filter::testing::{Bench, failed, http, motan},
        trace::Exporters,
    };

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// What an endpoint sees of a call that came with `pairs`.
    fn seen(b: &Bench, mut req: Request, pairs: &[(&'static str, &str)]) -> Request {
        pairs.iter().for_each(|(name, value)| put(&mut req.head, name, (*value).to_owned()));
        let begun = b.begin(req);
        let to = b.endpoint(1);
        let mut sent = begun.req.replay().unwrap();
        let trying = Trying { call: &begun.req.call, to: &to, number: 1, started: tokio::time::Instant::now() };
        assert!(matches!(b.filter.on_attempt(&begun.cx, &trying, &mut sent), Verdict::Continue));
        sent
    }

    #[tokio::test]
    async fn contexts_go_on_in_the_form_they_came_through_both_protocols() {
        let b = Bench::new(build, "{sample: 0}");
        for req in [motan("echo"), http("GET")] {
            let got = seen(&b, req.replay().unwrap(), &[("traceparent", PARENT), ("tracestate", "a=1")]);
            let parent = find(&got.head, "traceparent").unwrap();
            assert!(parent.starts_with(&PARENT[..36]) && parent.ends_with("-01") && parent != PARENT, "{parent}");
            assert_eq!(find(&got.head, "tracestate").unwrap(), "a=1");
            let got = seen(&b, req.replay().unwrap(), &[("b3", "8448eb211c80319c-b7ad6b7169203331-1")]);
            assert!(find(&got.head, "b3").unwrap().ends_with("-1-b7ad6b7169203331"));
            assert_eq!(find(&got.head, "traceparent"), None);
            let ids = [("X-B3-TraceId", "8448eb211c80319c"), ("X-B3-SpanId", "b7ad6b7169203331")];
            let got = seen(&b, req.replay().unwrap(), &ids);
            assert_eq!(find(&got.head, "X-B3-TraceId").unwrap(), "8448eb211c80319c");
            assert_eq!(find(&got.head, "X-B3-ParentSpanId").unwrap(), "b7ad6b7169203331");
            assert_eq!(find(&got.head, "X-B3-Sampled").unwrap(), "0", "decided here");
            let new = seen(&b, req, &[]);
            assert!(find(&new.head, "traceparent").unwrap().ends_with("-00"));
        }
        let small =
            seen(&b, motan("echo"), &[("x-b3-traceid", "8448eb211c80319c"), ("x-b3-spanid", "b7ad6b7169203331")]);
        assert_eq!(find(&small.head, "X-B3-TraceId").unwrap(), "8448eb211c80319c");
        let raw = Request { head: Head::None, ..motan("echo") };
        assert!(find(&seen(&b, raw, &[]).head, "traceparent").is_none());
        let b3 = Bench::new(build, "{propagate: [b3, b3_multi], sample: 1}");
        let new = seen(&b3, motan("echo"), &[]);
        assert!(find(&new.head, "b3").unwrap().ends_with("-1"));
        assert_eq!(find(&new.head, "X-B3-Sampled").unwrap(), "1");
    }

    /// Which calls are recorded, with the queue left standing.
    struct Kept {
        bench: Bench,
    }

    impl Kept {
        fn new(options: &str) -> Self {
            let exporters = Exporters::new(tokio::runtime::Handle::current());
            let cx = BuildCx { exporters: Some(exporters), application: "shop".into(), ..BuildCx::default() };
            let options = options.replace('}', ", export: {otlp: 'http://127.0.0.1:9'}, queue: 1000}");
            Self { bench: Bench::with(build, &options, &cx) }
        }

        async fn call(&self, came: &[(&'static str, &str)], ms: u64, end: Result<(), CallError>) -> bool {
            let before = self.bench.event("recorded", "");
            let mut req = motan("echo");
            came.iter().for_each(|(name, value)| put(&mut req.head, name, (*value).to_owned()));
            let begun = self.bench.begin(req);
            let to = self.bench.endpoint(1);
            let _ = begun.attempt(1, &to, end.clone());
            tokio::time::advance(Duration::from_millis(ms)).await;
            let _ = begun.end(end.map(|()| self.bench.good()));
            self.bench.event("recorded", "") > before
        }
    }

    #[tokio::test(start_paused = true)]
    async fn errors_and_slow_calls_are_always_kept_and_the_head_decides_the_rest() {
        let none = Kept::new("{sample: 0}");
        let error = || Err(failed(ErrorKind::Reset));
        assert!(!none.call(&[], 1, Ok(())).await);
        assert!(none.call(&[], 500, Ok(())).await, "slow");
        assert!(none.call(&[], 1, error()).await, "an error");
        assert!(!none.call(&[], 1, Err(CallError::downstream(ErrorKind::Cancelled, ""))).await);
        assert!(none.call(&[("traceparent", PARENT)], 1, Ok(())).await, "the head says yes");
        let all = Kept::new("{sample: 1, slow: 0s}");
        assert!(all.call(&[], 1, Ok(())).await);
        let no = PARENT.replace("-01", "-00");
        assert!(!all.call(&[("traceparent", &no)], 1000, Ok(())).await, "the head says no, and nothing is slow");
        assert!(all.call(&[("traceparent", &no)], 1, error()).await, "an error all the same");
        assert!(!all.call(&[("b3", "0")], 1, error()).await, "denied is denied");
        assert_eq!((all.bench.event("recorded", ""), all.bench.event("recorded_by_share", "")), (2, 1));
        assert_eq!(all.bench.event("spans_dropped", "http://127.0.0.1:9"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn spans_say_what_happened() {
        let b = Bench::new(build, "{sample: 1}");
        let mut req = motan("echo");
        put(&mut req.head, "traceparent", PARENT.to_owned());
        req.call.request_id = 7;
        let mut begun = b.begin(req);
        let (one, two) = (b.endpoint(1), b.endpoint(2));
        begun.attempt(1, &one, Err(failed(ErrorKind::Reset))).unwrap();
        tokio::time::advance(Duration::from_millis(20)).await;
        begun.attempt(2, &two, Ok(())).unwrap();
        let record = Record {
            total: begun.cx.started.elapsed(),
            attempts: 2,
            notes: std::mem::take(&mut begun.cx.notes),
            ..super::super::sample()
        };
        let spans = Tracing::spans(&record, record.notes.traced.as_ref().unwrap());
        let [call, first, second] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((call.name.as_str(), call.parent), ("web.echo", Some(0xb7ad_6b71_6920_3331)));
        assert_eq!(call.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert!(call.attributes.contains(&("sockmesh.attempts", Attribute::Number(2))), "{call:?}");
        assert_eq!((first.parent, second.parent), (Some(call.id), Some(call.id)));
        assert_eq!((first.error.as_deref(), second.error.as_deref()), (Some("reset: scripted"), None));
        assert_eq!(second.start.duration_since(call.start).unwrap(), Duration::from_millis(20));
        assert_eq!(second.peer.unwrap().port(), 2);
    }

    #[test]
    fn options_are_checked() {
        for (wrong, says) in [
            ("{sample: 1.5}", "sample: 1.5"),
            ("{queue: 0}", "queue: 0"),
            ("{propagate: []}", "propagate"),
            ("{export: {}}", "export"),
            ("{export: {otlp: 'http://a', zipkin: 'http://b'}}", "export"),
            ("{export: {otlp: 'ftp://a'}}", "ftp://a"),
        ] {
            let options: Value = serde_yaml::from_str(wrong).unwrap();
            let error = build(&options, &BuildCx::default()).err().unwrap().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
        assert!(build(&Value::Null, &BuildCx::default()).is_ok(), "without a collector contexts go on all the same");
    }
}
