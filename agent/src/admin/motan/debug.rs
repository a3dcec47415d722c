//! `/debug/*`: pages for whoever looks for a fault. Answered with `ports.debug_pages` only.
//!
//! What motan-go tells of Go's runtime there is refused with a word on what serves instead.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{StatusCode, request::Parts};
use serde::Serialize;
use tokio::time::{Instant, interval, sleep};

use super::{Answer, Api, Form, go_json, system, text};
use crate::{
    admin::routes::respond,
    cluster::Cluster,
    metrics::{Kept, Step, Story},
};

/// How often the next call of each service is asked to tell its steps.
const TICK: Duration = Duration::from_millis(10);
/// Calls that one answer holds.
const TRACES: usize = 1000;
/// Seconds that a trace takes when nothing is said, as in motan-go, and the most.
const SECONDS: u64 = 30;

/// Whether the pages are there, and open.
#[derive(Clone, Default)]
pub struct Debug(Option<Arc<AtomicBool>>);

impl Debug {
    /// Pages that are there and open, or not there at all.
    pub fn new(there: bool) -> Self {
        Self(there.then(|| Arc::new(AtomicBool::new(true))))
    }
}

/// Pages with what they show.
const PAGES: &[(&str, &str)] = &[
    ("/debug/pprof/cmdline", "how the agent was started"),
    ("/debug/mesh/trace", "calls of the next `seconds` (30) with their steps; `group`, `service`, `addr`, `ratio`"),
    ("/debug/stat/system", "this host"),
    ("/debug/stat/process", "the agent's process"),
    ("/debug/stat/openFiles", "files that it holds"),
    ("/debug/stat/connections", "its TCP connections"),
    ("/debug/pprof/sw", "header `ctr: cp` closes these pages, `ctr: op` opens them"),
];

/// Answers a page below `/debug`.
pub(super) async fn answer(api: &Api, head: &Parts, form: &Form) -> Answer {
    let path = head.uri.path();
    let Some(open) = &api.handles.motan.debug.0 else {
        let how = "set `debugPages: true` in `motan-agent` (`ports: {debug_pages: true}` in a native file) and restart";
        return refused(StatusCode::FORBIDDEN, format!("{path}: the pages below /debug are off; {how}\n"));
    };
    if path == "/debug/pprof/sw" {
        let to = head.headers.get("ctr").map_or(&b""[..], |value| value.as_bytes());
        let (to, said) = match to {
            b"op" => (true, "T"),
            b"cp" => (false, "F"),
            _ => return refused(StatusCode::BAD_REQUEST, "send the header `ctr: op` or `ctr: cp`\n".to_owned()),
        };
        open.store(to, Relaxed);
        tracing::info!(target: "audit", open = to, "pages below /debug");
        return text(said);
    }
    if !open.load(Relaxed) {
        let how = "send the header `ctr: op` to /debug/pprof/sw";
        return refused(StatusCode::FORBIDDEN, format!("{path}: the pages below /debug were closed; {how}\n"));
    }
    match path {
        "/debug/pprof/cmdline" => text(std::fs::read("/proc/self/cmdline").unwrap_or_default()),
        "/debug/mesh/trace" => trace(api, form).await,
        "/debug/stat/system" => text(go_json(&system::host().await)),
        "/debug/stat/process" => text(go_json(&system::process(&api.process, api.handles.started).await)),
        "/debug/stat/openFiles" => text(go_json(&system::open_files())),
        "/debug/stat/connections" => text(go_json(&system::connections())),
        "/debug/pprof/profile" | "/debug/pprof/symbol" | "/debug/pprof/block" | "/debug/pprof/mutex" => {
            instead(path, &format!("`perf record -g -p {} -- sleep 30` shows where time goes", std::process::id()))
        }
        "/debug/pprof/trace" => instead(path, "`sockmesh explain SERVICE --next` shows the steps of a call"),
        "/debug/pprof/heap" | "/debug/pprof/allocs" | "/debug/pprof/goroutine" => {
            instead(path, "/metrics has the memory in use, and its tasks")
        }
        _ => text(PAGES.iter().fold(String::new(), |mut page, (path, what)| {
            let _ = writeln!(page, "{path}\t{what}");
            page
        })),
    }
}

fn refused(status: StatusCode, said: String) -> Answer {
    respond(status, "text/plain; charset=utf-8", said.into())
}

fn instead(path: &str, what: &str) -> Answer {
    refused(StatusCode::NOT_IMPLEMENTED, format!("{path}: there is no Go runtime here; {what}\n"))
}

/// One call, in motan-go's words.
#[derive(Serialize)]
struct Trace {
    requestid: u64,
    address: String,
    values: BTreeMap<&'static str, String>,
    request_spans: Vec<Span>,
    response_spans: Vec<Span>,
}

#[derive(Serialize)]
struct Span {
    name: String,
    address: String,
    /// UTC.
    time: String,
    /// Nanoseconds.
    duration: u64,
}

/// Has calls tell their steps for a while, and shows those that fit.
async fn trace(api: &Api, form: &Form) -> Answer {
    let number = |key: &str| form.get(key).trim().parse::<u64>().unwrap_or(0);
    let seconds = match number("seconds") {
        0 => SECONDS,
        seconds => seconds.min(SECONDS),
    };
    let ratio = match number("ratio") {
        ratio @ 1..=99 => ratio as u32,
        _ => 100,
    };
    let [group, service, addr] = ["group", "service", "addr"].map(|key| form.get(key).trim());
    let fits = |cluster: &&Arc<Cluster>| {
        let key = &cluster.info.key;
        (group.is_empty() || key.group == group) && (service.is_empty() || key.service == service)
    };
    // Each with the last story that was seen of it.
    let last = |cluster: Arc<Cluster>| {
        let last = cluster.info.stats.recent.stories().last().map_or(0, |story| story.id);
        (cluster, last)
    };
    let mut wanted: Vec<_> = api.handles.clusters.load().iter().filter(fits).cloned().map(last).collect();
    let mut found: Vec<Arc<Story>> = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut ticks = interval(TICK);
    while Instant::now() < end && found.len() < TRACES {
        ticks.tick().await;
        for (cluster, seen) in &mut wanted {
            let before = *seen;
            for story in cluster.info.stats.recent.stories().into_iter().filter(|story| story.id > before) {
                *seen = story.id;
                let from = story.peer.map(|peer| peer.ip().to_string()).unwrap_or_default();
                if story.kept == Kept::Asked && from.starts_with(addr) {
                    found.push(story);
                }
            }
            if ratio == 100 || fastrand::u32(0..100) < ratio {
                cluster.info.stats.recent.ask();
            }
        }
    }
    // As motan-go writes it, a comma of full width included.
    let mut page = format!("mesh trace finish. trace size:{}， time unit:ns\n", found.len());
    let indented = || serde_json::ser::PrettyFormatter::with_indent(b"    ");
    for (i, story) in found.iter().enumerate() {
        let mut shown = Vec::new();
        let mut out = serde_json::Serializer::with_formatter(&mut shown, indented());
        spans(story).serialize(&mut out).expect("texts and numbers");
        let _ = writeln!(page, "{{\"No\":{i},\"trace\":{}}}", String::from_utf8_lossy(&shown));
    }
    text(page)
}

/// The steps of a call, one after the other: the time of each is when it was over.
fn spans(story: &Story) -> Trace {
    let mut at = story.at - story.total_micros as f64 / 1e6;
    let (mut request, mut response, mut remote) = (Vec::new(), Vec::new(), 0);
    for step in &story.steps {
        let (name, address, micros, back) = match step {
            Step::Filter { name, at, micros, .. } => (format!("{name} {at}"), String::new(), *micros, at == "response"),
            Step::Pick { picked, .. } => {
                ("pick".to_owned(), picked.map(|p| p.to_string()).unwrap_or_default(), 0, false)
            }
            Step::Try { endpoint, micros, end, .. } => {
                remote += micros;
                (format!("receive: {end}"), endpoint.to_string(), *micros, true)
            }
            Step::Note { text } => (text.clone(), String::new(), 0, !response.is_empty()),
        };
        at += micros as f64 / 1e6;
        let span = Span { name, address, time: system::time(at), duration: micros * 1000 };
        if back { response.push(span) } else { request.push(span) }
    }
    let text = |micros: u64| (micros * 1000).to_string();
    let values = BTreeMap::from([
        ("service", story.service.clone()),
        ("method", story.method.clone()),
        ("outcome", story.outcome.clone()),
        ("totalTime", text(story.total_micros)),
        ("remoteTime", text(remote)),
    ]);
    let address = story.peer.map(|peer| peer.to_string()).unwrap_or_default();
    Trace { requestid: story.request_id, address, values, request_spans: request, response_spans: response }
}

/// Waits for what is counted by the second.
pub(super) async fn second() {
    sleep(Duration::from_secs(1)).await;
}
