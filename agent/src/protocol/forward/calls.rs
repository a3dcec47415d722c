//! Requests that become Motan2 calls.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response as HttpResponse, StatusCode, header, uri::Authority};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use serde::Deserialize;

use super::{
    Domain, Forward,
    server::{Answer, host_value, own},
};
use crate::{
    call::{
        Body, Call, CallError, Head, Motan2Head, Pairs, Request as CallRequest, Response, ResponseHead, Status, Text,
        exception::{Exception, Failed},
    },
    metrics::Live,
    protocol::upstream::{convert::PROXY, raw},
    route::{Direction, Route},
    serialize::{Value, simple},
};

/// `errcode` of a call that found no endpoint.
const NO_ENDPOINT: i64 = 1001;

/// What calls are made of beside the request.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub forward: &'a Forward,
    pub route: &'a Arc<Route>,
    pub peer: SocketAddr,
    pub live: &'a Arc<Live>,
}

/// What became of a request of a known domain.
pub(super) enum Outcome {
    /// There is an answer.
    Answer(Answer),
    /// Nobody provides the service: the request back, with its body in memory.
    NoEndpoint(Box<Request<UnsyncBoxBody<Bytes, hyper::Error>>>),
}

/// Whether there is a cluster for a service.
pub(super) fn is_served(route: &Route, service: &str, group: &Text) -> bool {
    route.serves(&named(service, group, ""))
}

fn named(service: &str, group: &Text, method: &str) -> Call {
    let mut call = Call::new(Text::from(service), Text::from(method));
    call.group = group.clone();
    call
}

/// Sends a request as it is.
pub(super) async fn http(
    parts: Parts<'_>,
    domain: &Domain,
    service: &str,
    path: &str,
    target: &Authority,
    request: Request<Incoming>,
) -> Outcome {
    let (mut head, body) = request.into_parts();
    let body = match Limited::new(body, parts.forward.proxy.body_bytes).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Outcome::Answer(own(StatusCode::PAYLOAD_TOO_LARGE, "err_msg: the body is too large"));
        }
        Err(error) => return Outcome::Answer(own(StatusCode::BAD_REQUEST, format!("err_msg: {error}"))),
    };
    raw::strip(&mut head.headers);
    head.headers.remove(header::EXPECT);
    head.headers.insert(header::HOST, host_value(target));
    if !body.is_empty() {
        head.headers.insert(header::CONTENT_LENGTH, body.len().into());
    }
    let target = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let wanted = raw::put_request(&head.method, target, &head.headers);
    let arguments = simple::write_blocks(&[Value::Bytes(wanted), Value::Bytes(body.clone())]);

    // What metadata cannot carry: the path as it was written says the same.
    let path = if path.contains('\n') { head.uri.path() } else { path };
    let call = Call { idempotent: head.method.is_idempotent(), ..named(service, &domain.group, path) };
    let result = send(parts, call, &[(PROXY, "true")], arguments).await;
    let failure = match result {
        Ok(value) => match answer(value) {
            Ok(answer) => return Outcome::Answer(answer),
            Err(text) => text,
        },
        Err((NO_ENDPOINT, _)) => {
            head.headers.remove(header::CONTENT_LENGTH);
            let body = Full::new(body).map_err(|never: std::convert::Infallible| match never {});
            return Outcome::NoEndpoint(Box::new(Request::from_parts(head, body.boxed_unsync())));
        }
        Err((_, text)) => text,
    };
    Outcome::Answer(own(StatusCode::BAD_GATEWAY, format!("err_msg: {failure}")))
}

/// The HTTP answer inside a value.
fn answer((values, _): (Vec<Value>, Pairs)) -> Result<Answer, String> {
    let items = match <[Value; 1]>::try_from(values) {
        Ok([Value::Array(items)]) => items,
        Ok([one]) => vec![one],
        Err(several) => several,
    };
    let mut bytes = items.into_iter().map(|item| match item {
        Value::Bytes(bytes) => Ok(bytes),
        Value::String(text) => Ok(text.as_bytes().clone()),
        Value::Null => Ok(Bytes::new()),
        _ => Err("the answer is no HTTP message".to_owned()),
    });
    let head = bytes.next().unwrap_or_else(|| Err("the answer is empty".to_owned()))?;
    let body = bytes.next().unwrap_or_else(|| Ok(Bytes::new()))?;
    let raw::ResponseHead { status, mut headers } =
        raw::response(&head).map_err(|what| format!("the answer: {what}"))?;
    let length = headers.get(header::CONTENT_LENGTH).cloned();
    raw::strip(&mut headers);
    if let Some(length) = length.filter(|_| body.is_empty()) {
        // Of the answer to HEAD.
        headers.insert(header::CONTENT_LENGTH, length);
    }
    let mut answer = HttpResponse::new(whole(body));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    Ok(answer)
}

fn whole(body: Bytes) -> UnsyncBoxBody<Bytes, hyper::Error> {
    Full::new(body).map_err(|never: std::convert::Infallible| match never {}).boxed_unsync()
}

/// `/proxy_to_rpc?service=S&method=M&group=G&arg_type=string&arg=A`: a call with one text.
pub(super) async fn rpc(parts: Parts<'_>, request: Request<Incoming>) -> Answer {
    let bad = |text: String| own(StatusCode::BAD_REQUEST, text);
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, parts.forward.proxy.body_bytes).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return bad(format!("err_msg: {error}")),
    };
    let form: Vec<_> = [head.uri.query().unwrap_or_default().as_bytes(), &body]
        .into_iter()
        .flat_map(|text| form_urlencoded::parse(text).into_owned())
        .collect();
    let value = |name: &str| form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    let (service, method) = (value("service"), value("method"));
    if service.is_empty() || method.is_empty() {
        return bad(format!("service:{service} or method:{method} musn't be empty"));
    }
    if value("arg_type") != "string" {
        return bad(format!("arg_type {} not support now", value("arg_type")));
    }
    let group = Text::from(value("group"));
    let argument = simple::write_blocks(&[Value::from(value("arg"))]);
    let names: Vec<_> = head.headers.iter().map(|(name, value)| (raw::canonical(name.as_str()), value)).collect();
    let fields = names.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let fields: Vec<_> = fields.filter(|(_, value)| !value.is_empty()).collect();
    let (values, meta) = match send(parts, named(service, &group, method), &fields, argument).await {
        Ok(answered) => answered,
        Err((_, text)) => return own(StatusCode::BAD_GATEWAY, text),
    };
    let body = match values.into_iter().next() {
        None | Some(Value::Null) => Bytes::new(),
        Some(Value::String(text)) => text.as_bytes().clone(),
        Some(Value::Bytes(bytes)) => bytes,
        Some(_) => {
            return own(StatusCode::BAD_GATEWAY, "get response body failed: it is neither a string nor bytes");
        }
    };
    let mut answer = HttpResponse::new(whole(body));
    for (key, value) in meta.iter() {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key.as_str()), HeaderValue::from_str(&value)) {
            answer.headers_mut().insert(name, value);
        }
    }
    raw::strip(answer.headers_mut());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

/// Makes a call. The values of the answer and its attachments, or code and text of the exception.
async fn send(
    parts: Parts<'_>,
    mut call: Call,
    fields: &[(&str, &str)],
    arguments: Bytes,
) -> Result<(Vec<Value>, Pairs), (i64, String)> {
    let own = [("M_p", &call.service), ("M_m", &call.method), ("M_g", &call.group)];
    let own = own.into_iter().map(|(key, value)| (Text::from_static(key), value.clone()));
    let fields = fields.iter().map(|(key, value)| (Text::from(*key), Text::from(*value)));
    let protocol = (Text::from_static("M_pp"), Text::from_static("motan2"));
    let meta: Pairs = own.chain(fields).chain([protocol]).collect();
    call.peer = Some(parts.peer);
    call.request_bytes = arguments.len() as u64;
    call.request_id = fastrand::u64(..) >> 1;
    let id = call.request_id;
    let failed = |error: &CallError| {
        let exception = Exception::of(error, Failed { direction: Direction::Outbound, id, meta: &meta });
        (exception.code, exception.text.into_owned())
    };
    let cluster = parts.route.select(&call).map_err(|error| failed(&error))?;
    let head = Motan2Head { serialization: simple::NUMBER, meta: meta.clone(), ..Motan2Head::default() };
    let body = Body::Full(arguments);
    let result = cluster.call(&mut CallRequest { call, head: Head::Motan2(head), body }).await;
    let endpoint = result.as_ref().map_or_else(|error| error.endpoint, |response| response.endpoint);
    parts.live.called(&cluster.info.service, endpoint);
    let Response { status, head, body, .. } = result.map_err(|error| failed(&error))?;
    let meta = match head {
        ResponseHead::Motan2(head) => head.meta,
        ResponseHead::None | ResponseHead::Http(_) | ResponseHead::Raw(_) => Pairs::default(),
    };
    if status != Status::Ok {
        return Err(thrown(&meta, status));
    }
    let body = match body {
        Body::Full(body) => body,
        Body::Empty | Body::Stream(_) => Bytes::new(),
    };
    let values = simple::read(body).map_err(|error| (500, format!("deserialize fail. err:{error}")))?;
    Ok((values, meta))
}

/// Code and text of an exception that came as an answer.
fn thrown(meta: &Pairs, status: Status) -> (i64, String) {
    #[derive(Deserialize)]
    struct Wire {
        errcode: i64,
        #[serde(default)]
        errmsg: String,
    }
    let json = meta.get("M_e").unwrap_or_default();
    match serde_json::from_str::<Wire>(&json) {
        Ok(wire) => (wire.errcode, wire.errmsg),
        Err(_) => (status.code().into(), "the endpoint failed".to_owned()),
    }
}
