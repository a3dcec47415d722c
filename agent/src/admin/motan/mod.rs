//! motan-go's management calls, with its answers' forms (`docs/motan.md`). Served beside the agent's own API, whose
//! paths go first; a path that neither has is the status page, as in motan-go.

mod calls;
mod debug;
mod info;
mod log;
mod nodes;
mod refers;
mod system;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, StatusCode, header::ACCEPT, request::Parts};
use parking_lot::Mutex;
use serde::Serialize;

pub use self::{debug::Debug, log::LogControl};
use super::routes::{Answer, Api, respond};
use crate::{
    config::motan::{Dynamic, NodeUrl, RegistryName, Surroundings},
    registry::ReferFilter,
    switcher::Switchers,
};

/// Largest body: a node with its parameters.
pub(super) const BODY_BYTES: usize = 1 << 20;

/// What management calls need besides the rest.
#[derive(Clone, Default)]
pub struct Motan {
    /// Whether they are answered at all.
    pub enabled: bool,
    /// What of the configuration they show and compare with.
    pub shown: Arc<ArcSwap<Shown>>,
    /// Flags that operators turn.
    pub switchers: Switchers,
    /// What of the log is shown.
    pub log: LogControl,
    /// Pages below `/debug`.
    pub debug: Debug,
    /// Endpoints that calls leave out.
    pub refers: ReferFilter,
}

/// What management calls show of the configuration in force.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// The configuration as merged, in YAML, when it is motan-go's.
    pub text: Option<String>,
    /// Registries by id, as callers name them.
    pub registries: BTreeMap<String, RegistryName>,
    /// Filters that every service gets.
    pub filters: Vec<String>,
    /// Flags and environment.
    pub around: Surroundings,
    /// Port where programs call.
    pub forward: Option<u16>,
    /// Port where services that are registered are exported.
    pub reverse: Option<u16>,
    /// Address told to callers.
    pub host: String,
    /// Services of the configuration itself.
    pub services: Vec<NodeUrl>,
    /// Referers of the configuration itself.
    pub refers: Vec<NodeUrl>,
    /// What management calls brought.
    pub dynamic: Dynamic,
}

/// What a management call changes.
#[derive(Clone, Debug)]
pub enum DynamicChange {
    /// Services that local programs provide are made known.
    Register(Vec<NodeUrl>),
    /// They are taken back.
    Unregister(Vec<NodeUrl>),
    /// Services that local programs want to call are followed.
    Subscribe(Vec<NodeUrl>),
}

/// Calls of each method in the last period that is over, for `/status`.
#[derive(Default)]
pub(super) struct Periods(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    steps: u32,
    before: HashMap<(usize, Box<str>), u64>,
    last: HashMap<(usize, Box<str>), u64>,
}

/// Whether a request is one for here: nobody else has its path, or it asks for `/version` and does not say that
/// it is a client of the agent's own API.
pub(super) fn takes(head: &Parts, own_path: bool) -> bool {
    let own_client = || head.headers.get(ACCEPT).is_some_and(|accept| accept == "application/json");
    !own_path || (head.uri.path() == "/version" && !own_client())
}

/// Answers a management call.
pub(super) async fn answer(api: &Api, head: &Parts, body: Bytes) -> Answer {
    let form = Form::of(head, &body);
    match head.uri.path() {
        "/200" => calls::turn(api, true),
        "/503" => calls::turn(api, false),
        "/version" => text("1.2.0"),
        "/status" => info::status(api),
        "/registry/status" => info::registry_status(api),
        "/getConfig" => info::config(api),
        "/getReferService" => info::refer_services(api),
        "/getAllService" => info::all_services(api),
        "/switcher/set" => calls::set_switcher(api, &form),
        "/switcher/get" => calls::get_switcher(api, &form),
        "/switcher/getAll" => calls::all_switchers(api),
        "/logConfig/get" => log::get(api),
        "/logConfig/set" => log::set(api, &form),
        "/registry/register" | "/registry/unregister" | "/registry/subscribe" | "/registry/list" | "/registry/info" => {
            nodes::answer(api, head, &body).await
        }
        "/meta/update" => calls::update_meta(&form),
        "/meta/delete" => calls::delete_meta(&form),
        "/meta/get" => calls::get_meta(&form),
        "/meta/getAll" => calls::all_meta(),
        "/reload/clusters" => nodes::reload(api).await,
        "/runtime/info" => info::runtime(api, &form),
        "/refers/filter/set" => refers::set(api, &form),
        "/refers/filter/get" => refers::get(api),
        path if path.starts_with("/debug/") => debug::answer(api, head, &form).await,
        _ => status_page(api),
    }
}

fn status_page(api: &Api) -> Answer {
    let status = match is_available(api) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut answer = text(status.canonical_reason().unwrap_or_default());
    *answer.status_mut() = status;
    answer
}

/// A draining agent is not, whatever it was told.
fn is_available(api: &Api) -> bool {
    api.handles.availability.get() && *api.handles.ready.borrow()
}

/// Fields of a query and of a form in the body, which goes first.
struct Form(Vec<(String, String)>);

impl Form {
    fn of(head: &Parts, body: &[u8]) -> Self {
        let owned = |(key, value): (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)| {
            (key.into_owned(), value.into_owned())
        };
        let mut fields = Vec::new();
        if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
            fields.extend(form_urlencoded::parse(body).map(owned));
        }
        fields.extend(form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()).map(owned));
        Self(fields)
    }

    /// The first value of a field; empty when there is none.
    fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value.as_str())
    }

    /// Each field once.
    fn all(&self) -> BTreeMap<&str, &str> {
        self.0.iter().rev().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }
}

fn text(text: impl Into<Bytes>) -> Answer {
    respond(StatusCode::OK, "text/plain; charset=utf-8", text.into())
}

/// JSON as Go writes it: no spaces, and what could end a script is escaped.
fn go_json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("views have text keys and finite numbers");
    text.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

impl Periods {
    /// Steps that make a period of 5 s, motan-go's default.
    const STEPS: u32 = 5;

    /// Counts on; called every second.
    pub(super) fn sample(&self, api: &Api) {
        let mut counts = self.0.lock();
        counts.steps += 1;
        if counts.steps >= Self::STEPS {
            counts.steps = 0;
            let now = totals(api);
            counts.before = std::mem::replace(&mut counts.last, now);
        }
    }
}

fn totals(api: &Api) -> HashMap<(usize, Box<str>), u64> {
    let clusters = api.handles.clusters.load();
    let rows = clusters.iter().flat_map(|cluster| {
        let key = Arc::as_ptr(&cluster.info) as usize;
        let tables = [cluster.info.stats.attempts.rows(), cluster.info.stats.methods.rows()];
        // Both count the same calls: the larger number is whole.
        tables.into_iter().flatten().map(move |(name, row)| ((key, name), row.total()))
    });
    let mut totals = HashMap::new();
    for (key, total) in rows {
        let known = totals.entry(key).or_insert(0);
        *known = total.max(*known);
    }
    totals
}
