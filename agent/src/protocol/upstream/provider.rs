//! HTTP/1.1 towards a local program that knows nothing of Motan2 (docs/wire/http-mesh.md, "Provider").

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Upstream,
    attach::attachments,
    convert::{self, Outgoing, Way},
    motan2, raw, thrown,
};
use crate::{
    call::{
        self, Body, Call, CallError, ErrorKind, HttpHead, Motan2Head, Pairs, Request, Response, ResponseHead, Retry,
        Status, Text,
    },
    config,
    endpoint::{Connector, Endpoint},
    kind::{self, BuildCx, Value},
    protocol::{
        http1,
        locations::{Location, Locations},
    },
    serialize::simple,
};

/// As of Motan2 calls, which these are to their callers.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// `errtype` of all exceptions of this side: what a program answers is the user's own.
const BUSINESS: i64 = 2;

/// What is written under `upstream: {http: ...}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    /// `Host` of requests that name none.
    pub host: String,
    /// Method of calls that name none; `GET` when empty.
    method: String,
    /// A URL in which `%s` stands for the call's method. Makes calls formatted ones.
    url: String,
    /// The same two for single methods; `default` for those that are not listed.
    methods: BTreeMap<String, OfMethod>,
    locations: Vec<Location>,
    /// Whether paths without a location are refused. By default if there are locations.
    pub require_location: Option<bool>,
    /// Whether answers from 400 on are exceptions.
    error_exceptions: bool,
}

/// What one method does differently.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OfMethod {
    method: String,
    url: String,
}

impl Options {
    fn of(&self, method: &str) -> Option<&OfMethod> {
        self.methods.get(method).or_else(|| self.methods.get("default"))
    }

    /// The HTTP method for a call of `method` that does not say.
    pub fn method_of(&self, method: &str) -> &str {
        let own = self.of(method).map(|of| of.method.as_str()).filter(|m| !m.is_empty());
        own.unwrap_or(if self.method.is_empty() { "GET" } else { &self.method })
    }

    /// The URL for a call of `method`, if its calls are formatted.
    pub fn url_of(&self, method: &str) -> Option<&str> {
        let own = self.of(method).map(|of| of.url.as_str()).filter(|url| !url.is_empty());
        own.or(Some(self.url.as_str()).filter(|url| !url.is_empty()))
    }
}

pub(super) fn build(value: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Upstream>> {
    let options: Options = kind::options(value)?;
    let locations = Locations::new(&options.locations).map_err(|e| anyhow::anyhow!("locations{e:#}"))?;
    let methods = options.methods.iter();
    let urls = methods.map(|(name, of)| (format!("methods.{name}.url"), &of.url));
    for (key, url) in urls.chain([("url".to_owned(), &options.url)]).filter(|(_, url)| !url.is_empty()) {
        if url.matches("%s").count() > 1 {
            anyhow::bail!("{key}: `{url}` has more than one `%s`; one stands for the call's method");
        }
    }
    Ok(Arc::new(Http { options: Arc::new(options), locations: Arc::new(locations) }))
}

struct Http {
    options: Arc<Options>,
    locations: Arc<Locations>,
}

impl Upstream for Http {
    fn connector(&self, config: &config::Cluster, limits: &config::Limits, cx: &BuildCx) -> Arc<dyn Connector> {
        Arc::new(HttpConnector {
            inner: http1::HttpConnector::new(config, limits.header_bytes),
            options: self.options.clone(),
            locations: self.locations.clone(),
            content_bytes: limits.content_bytes,
            application: cx.application.clone(),
        })
    }
}

struct HttpConnector {
    inner: http1::HttpConnector,
    options: Arc<Options>,
    locations: Arc<Locations>,
    content_bytes: usize,
    application: Text,
}

impl HttpConnector {
    fn outgoing(&self, to: &Endpoint, req: &Request) -> Result<Result<Outgoing, convert::Refusal>, CallError> {
        let (head, body) = motan2(req)?;
        if head.serialization != simple::NUMBER && !body.is_empty() {
            let what = format!("serialization {} cannot be converted to HTTP", head.serialization);
            return Ok(Err((400, what)));
        }
        let pairs = attachments(&req.call, head, &self.application, &to.group);
        Ok(convert::request(&req.call, &pairs, body, &self.options, &self.locations))
    }

    async fn exchange(&self, to: &Arc<Endpoint>, call: &Call, out: Outgoing) -> Result<Response, CallError> {
        let way = out.way;
        let request_call = Call {
            path: Text::from(out.uri.path()),
            idempotent: out.method.is_idempotent() && call.idempotent,
            ..call.clone()
        };
        let http = HttpHead { method: out.method, uri: out.uri, headers: out.headers, upgrade: None };
        let mut request = Request {
            call: request_call,
            head: call::Head::Http(Box::new(http)),
            body: if out.body.is_empty() { Body::Empty } else { Body::Full(out.body) },
        };
        let answer = self.inner.call(to, &mut request).await?;
        let body = self.gather(to, answer.body, call.deadline).await?;
        let ResponseHead::Http(mut head) = answer.head else {
            return Err(CallError::mesh(ErrorKind::Protocol, "an HTTP endpoint gave no HTTP answer"));
        };
        let code = u32::from(head.status.as_u16());
        if self.options.error_exceptions && code >= 400 {
            let status = if code >= 500 { Status::Failed(code) } else { Status::Refused(code) };
            let text = String::from_utf8_lossy(&body);
            return Ok(thrown(status, code.into(), BUSINESS, &text, Some(to.addr)));
        }
        raw::strip(&mut head.headers);
        let mut meta = Pairs::default();
        if way != Way::Raw {
            for (name, value) in &head.headers {
                if let Ok(value) = value.to_str() {
                    meta.set(Text::from(raw::canonical(name.as_str())), Text::from(value));
                }
            }
            meta.set(Text::from_static("Content-Length"), Text::from(body.len().to_string()));
        }
        meta.set(Text::from_static("upstreamCode"), Text::from(code.to_string()));
        head.headers.insert(http::header::CONTENT_LENGTH, body.len().into());
        let value = convert::answer(way, head.status, &head.headers, &body);
        Ok(Response {
            status: Status::Ok,
            head: ResponseHead::Motan2(Motan2Head { serialization: simple::NUMBER, meta, ..Motan2Head::default() }),
            body: Body::Full(value),
            endpoint: Some(to.addr),
        })
    }

    async fn gather(&self, to: &Endpoint, body: Body, deadline: Instant) -> Result<Bytes, CallError> {
        let mut stream = match body {
            Body::Empty => return Ok(Bytes::new()),
            Body::Full(bytes) => return Ok(bytes),
            Body::Stream(stream) => stream,
        };
        let mut all = BytesMut::new();
        let late = |_| {
            let what = format!("{} did not finish its answer in time", to.addr);
            CallError::upstream(ErrorKind::Timeout, Retry::Never, what)
        };
        while let Some(frame) = tokio::time::timeout_at(deadline, stream.frame()).await.map_err(late)? {
            let Ok(data) = frame?.into_data() else { continue };
            if all.len() + data.len() > self.content_bytes {
                let what = format!("an answer of {} is over {} bytes", to.addr, self.content_bytes);
                return Err(CallError::upstream(ErrorKind::TooLarge, Retry::Never, what));
            }
            all.extend_from_slice(&data);
        }
        Ok(all.freeze())
    }
}

impl Connector for HttpConnector {
    fn call<'a>(&'a self, to: &'a Arc<Endpoint>, req: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            let outgoing = match self.outgoing(to, req)? {
                Ok(outgoing) => outgoing,
                Err((code, text)) => {
                    let status = Status::Refused(u32::try_from(code).unwrap_or(400));
                    return Ok(thrown(status, code, BUSINESS, &text, None));
                }
            };
            let call = req.call.clone();
            // A local program is the only one there is: its callers are told at once what it said.
            let elsewhere = matches!(&req.head, call::Head::Motan2(head) if !head.inbound);
            let exchange = Box::pin(self.exchange(to, &call, outgoing));
            match exchange.await {
                Err(error) if elsewhere && error.retry == Retry::NotSent => Err(error),
                Err(error) => {
                    let text = if error.kind == ErrorKind::Timeout { "timeout" } else { &*error.message };
                    Ok(thrown(Status::Failed(503), 503, BUSINESS, text, Some(to.addr)))
                }
                answered => answered,
            }
        })
    }

    fn default_timeout(&self) -> Duration {
        DEFAULT_TIMEOUT
    }
}
