//! Requests of the API: which there are, who may ask, what they answer.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN},
};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use model::command::Kind;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{mpsc::error::TrySendError, oneshot};

use super::{
    Command, Handles, Steered,
    enrolled::{self, Asked},
    explain, export,
    motan::{self, Periods},
    orders::{self, Orders},
    process::Process,
    registered, stat, view,
};
use crate::metrics::{prometheus, window::Windows};

/// No request has a body worth reading.
const BODY_BYTES: usize = 4096;
/// How long a reload may take before its asker is told to look later.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) type Answer = Response<Full<Bytes>>;

/// All requests: method, path, what it is for.
pub(super) const ROUTES: &[(Method, &str, &str)] = &[
    (Method::GET, "/ready", "200 while the agent serves, 503 before and while it drains"),
    (Method::GET, "/health", "200 as long as the process answers"),
    (Method::GET, "/metrics", "everything that is counted, as Prometheus text"),
    (Method::GET, "/stat", "rates, success and latency of services and their endpoints"),
    (Method::GET, "/endpoints", "endpoints, whether they are in rotation and why not"),
    (Method::GET, "/sockets", "connections of programs that exist now"),
    (Method::GET, "/enrolled", "who is enrolled, since when, and what that stands for now"),
    (Method::GET, "/names", "names under .mesh, their addresses and services"),
    (Method::GET, "/registrations", "provided services in registries, and whether callers may come"),
    (Method::GET, "/explain", "recent calls of `?service=`, step by step, and its connections"),
    (Method::POST, "/explain/next", "has the next call of `?service=` tell all its steps"),
    (Method::GET, "/config", "the configuration in use and how connections are captured"),
    (Method::GET, "/version", "version of the running agent"),
    (Method::GET, "/commands", "commands in registries, and what they make of services"),
    (Method::POST, "/reload", "applies the configuration file as it is now, as a whole or not at all"),
    (Method::POST, "/enroll", "enrolls `?what=`, with `&confirm_within=` for a time unless confirmed"),
    (Method::POST, "/confirm", "confirms `?what=`, or all that wait for it"),
    (Method::POST, "/release", "enrolls `?what=` no more"),
    (Method::POST, "/availability", "turns registrations `?to=available` or `?to=unavailable`"),
    (
        Method::POST,
        "/switch",
        "writes `?service=`'s `&groups=a:80,b:20` into its registry; `&for=10m`, `&end`, `&dry_run`",
    ),
    (Method::POST, "/degrade", "has calls of `?service=` answered at once with an error; `&for=10m`, `&end`"),
    (Method::POST, "/endpoints/confirm", "believes the registry that `?service=` lost so many endpoints"),
    (Method::POST, "/drain", "stops gracefully"),
];

/// Answers requests.
pub(super) struct Api {
    pub(super) handles: Arc<Handles>,
    /// `None`: a unix socket, which no web page reaches.
    at: Option<SocketAddr>,
    windows: Mutex<Windows>,
    pub(super) periods: Periods,
    pub(super) process: Process,
    orders: Arc<Orders>,
}

impl Api {
    pub(super) fn new(handles: Arc<Handles>, at: Option<SocketAddr>) -> Self {
        Self {
            handles,
            at,
            windows: Mutex::default(),
            periods: Periods::default(),
            process: Process::new(),
            orders: Arc::default(),
        }
    }

    /// Takes up what a former run left to do.
    pub(super) fn resume(&self) {
        self.orders.resume(&self.handles);
    }

    /// Moves the windows on.
    pub(super) fn sample(&self) {
        let clusters = self.handles.clusters.load_full();
        self.windows.lock().sample(stat::counted(&clusters));
        if self.handles.motan.enabled {
            self.periods.sample(self);
        }
    }

    /// Answers one request.
    pub(super) async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut answer = match self.refuse(request.headers(), request.version()) {
            Some(refusal) => refusal,
            None => self.admitted(request).await,
        };
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    /// Keeps web pages out that a browser on this host shows: by name (DNS rebinding) and by origin.
    fn refuse(&self, headers: &HeaderMap, version: http::Version) -> Option<Answer> {
        let at = self.at?;
        let mut hosts = headers.get_all(HOST).iter();
        let ok = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().is_ok_and(|host| is_own_host(host, at.ip())),
            // No browser speaks HTTP/1.0.
            (None, None) => version == http::Version::HTTP_10,
            _ => false,
        };
        if !ok {
            let message = format!("the Host header must be `localhost` or an IP address of the agent, as {at}");
            return Some(error(StatusCode::FORBIDDEN, message));
        }
        headers
            .contains_key(ORIGIN)
            .then(|| error(StatusCode::FORBIDDEN, "requests of web pages (with an Origin header) are not answered"))
    }

    async fn admitted<B>(&self, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let own_path = ROUTES.iter().any(|(_, known, _)| *known == path);
        if self.handles.motan.enabled && motan::takes(&head, own_path) {
            return match Limited::new(body, motan::BODY_BYTES).collect().await {
                Ok(body) => motan::answer(self, &head, body.to_bytes()).await,
                Err(_) => error(StatusCode::PAYLOAD_TOO_LARGE, format!("{path} takes no such body")),
            };
        }
        let mut methods = ROUTES.iter().filter(|(_, known, _)| *known == path).map(|(method, ..)| method);
        let wanted = if head.method == Method::HEAD { &Method::GET } else { &head.method };
        let Some(allowed) = methods.next() else {
            let known: Vec<_> = ROUTES.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
            return error(StatusCode::NOT_FOUND, format!("no such path: {path}; there are {}", known.join(", ")));
        };
        if allowed != wanted {
            let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, format!("{path} is asked with {allowed}"));
            let allowed = HeaderValue::from_str(allowed.as_str()).expect("a method is a token");
            answer.headers_mut().insert(ALLOW, allowed);
            return answer;
        }
        if Limited::new(body, BODY_BYTES).collect().await.is_err() {
            return error(StatusCode::PAYLOAD_TOO_LARGE, format!("{path} takes no body"));
        }
        self.get(path, head.uri.query()).await
    }

    async fn get(&self, path: &str, query: Option<&str>) -> Answer {
        let handles = &*self.handles;
        match path {
            "/ready" if *handles.ready.borrow() => done("ready"),
            "/ready" => error(StatusCode::SERVICE_UNAVAILABLE, "not serving: the agent is starting or draining"),
            "/health" => done("alive"),
            "/metrics" => {
                let text = export::metrics(handles, &self.process);
                respond(StatusCode::OK, prometheus::CONTENT_TYPE, text.into())
            }
            "/stat" => json(StatusCode::OK, &stat::stat(handles, &self.windows.lock())),
            "/endpoints" => json(StatusCode::OK, &stat::endpoints(handles, &self.windows.lock())),
            "/sockets" => json(StatusCode::OK, &stat::sockets(handles)),
            "/names" => json(StatusCode::OK, &stat::names(handles)),
            "/explain" => match explain::page(handles, query) {
                Ok(page) => json(StatusCode::OK, &page),
                Err(wrong) => error(StatusCode::NOT_FOUND, wrong),
            },
            "/explain/next" => match explain::ask(handles, query) {
                Ok(done) => json(StatusCode::OK, &view::Done { done }),
                Err(wrong) => error(StatusCode::NOT_FOUND, wrong),
            },
            "/config" => json(StatusCode::OK, &stat::config(handles)),
            "/version" => json(StatusCode::OK, &view::Version { version: handles.version.to_owned() }),
            "/registrations" => json(StatusCode::OK, &registered::page(handles)),
            "/availability" => match registered::turn(handles, query) {
                Ok(said) => done(&said),
                Err(wrong) => error(StatusCode::BAD_REQUEST, wrong),
            },
            "/commands" => json(StatusCode::OK, &self.orders.page(handles).await),
            "/switch" | "/degrade" => self.order(path, query).await,
            "/endpoints/confirm" => match orders::Asked::read(query) {
                Ok(asked) => done(&asked.confirm(handles)),
                Err(wrong) => error(StatusCode::BAD_REQUEST, wrong),
            },
            "/enrolled" => json(StatusCode::OK, &enrolled::page(handles)),
            "/reload" => self.told(Command::Reload).await,
            "/enroll" | "/confirm" | "/release" => self.enroll(path, query).await,
            "/drain" => self
                .command(Command::Drain)
                .unwrap_or_else(|| json(StatusCode::ACCEPTED, &view::Done { done: "draining".to_owned() })),
            _ => error(StatusCode::NOT_FOUND, "a path of the table without an answer"),
        }
    }

    /// Passes a command on; the answer if it cannot be taken.
    fn command(&self, command: Command) -> Option<Answer> {
        match self.handles.commands.try_send(command).err()? {
            TrySendError::Full(_) => Some(error(StatusCode::CONFLICT, "other commands are under way: ask again")),
            TrySendError::Closed(_) => Some(error(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping")),
        }
    }

    async fn order(&self, path: &str, query: Option<&str>) -> Answer {
        let asked = match orders::Asked::read(query) {
            Ok(asked) => asked,
            Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong),
        };
        let handles = &*self.handles;
        let done_so = if asked.is_dry() && path == "/switch" {
            let rates = |steered: &Steered| stat::rates(&self.windows.lock(), &steered.cluster);
            Orders::preview(handles, &asked, rates).await.map(|preview| json(StatusCode::OK, &preview))
        } else {
            let kind = if path == "/switch" { Kind::Traffic } else { Kind::Degrade };
            self.orders.give(handles, &asked, kind).await.map(|said| done(&said))
        };
        done_so.unwrap_or_else(|wrong| error(StatusCode::UNPROCESSABLE_ENTITY, wrong))
    }

    async fn enroll(&self, path: &str, query: Option<&str>) -> Answer {
        let asked = Asked::read(query).and_then(|asked| {
            let within = asked.confirm_within;
            Ok(match path {
                "/confirm" => (asked.who, None),
                _ => (Some(asked.who()?), within),
            })
        });
        match asked {
            Err(wrong) => error(StatusCode::BAD_REQUEST, wrong),
            Ok((Some(who), within)) if path == "/enroll" => {
                self.told(|answer| Command::Enroll(who, within, answer)).await
            }
            Ok((Some(who), _)) if path == "/release" => self.told(|answer| Command::Release(who, answer)).await,
            Ok((who, _)) => self.told(|answer| Command::Confirm(who, answer)).await,
        }
    }

    /// Passes a command on and waits for what it says.
    async fn told(&self, command: impl FnOnce(oneshot::Sender<Result<String, String>>) -> Command) -> Answer {
        let (answer, result) = oneshot::channel();
        if let Some(busy) = self.command(command(answer)) {
            return busy;
        }
        match tokio::time::timeout(RELOAD_TIMEOUT, result).await {
            Ok(Ok(Ok(done))) => json(StatusCode::OK, &view::Done { done }),
            Ok(Ok(Err(mistakes))) => error(StatusCode::UNPROCESSABLE_ENTITY, mistakes),
            Ok(Err(_)) => error(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping"),
            Err(_) => error(StatusCode::GATEWAY_TIMEOUT, "it goes on: look at /config and /enrolled for its end"),
        }
    }
}

/// Whether `host`, with or without a port, can only be meant for this agent: `localhost`, a loopback
/// address, or the address it listens on. Ports are not compared: tunnels change them.
fn is_own_host(host: &str, own: IpAddr) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    // Scripts that manage many hosts call each by its name; a page cannot make that name its own.
    if own.is_unspecified()
        && rustix::system::uname().nodename().to_str().is_ok_and(|own| own.eq_ignore_ascii_case(name))
    {
        return true;
    }
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    // Listening everywhere, every address of the host is the agent's; a literal cannot be rebound.
    bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback() || ip == own || own.is_unspecified())
}

pub(super) fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut text = serde_json::to_vec_pretty(value).expect("views have text keys and finite numbers");
    text.push(b'\n');
    respond(status, "application/json", text.into())
}

fn done(what: &str) -> Answer {
    json(StatusCode::OK, &view::Done { done: what.to_owned() })
}

fn error(status: StatusCode, message: impl Into<String>) -> Answer {
    json(status, &view::Error { error: message.into() })
}
