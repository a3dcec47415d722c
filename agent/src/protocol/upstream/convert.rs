//! What a Motan2 call becomes as an HTTP request, without I/O.

use bytes::Bytes;
use form_urlencoded::Serializer;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use super::{provider::Options, raw};
use registries::fetch::percent;

use crate::{
    call::{Call, Text},
    protocol::locations::Locations,
    serialize::{Value, simple},
};

/// Says that the message itself is inside.
pub(in crate::protocol) const PROXY: &str = "HTTP_PROXY";
const METHOD: &str = "HTTP_Method";
const QUERY: &str = "HTTP_QueryString";
/// Attachments that begin with this are headers by the rest of their name.
const PREFIX: &str = "http_";
const FORWARDED: &str = "x-forwarded-for";
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
/// Motan2's own attachments, as HTTP programs know them.
const INNER: [(&str, &str); 10] = [
    ("M_p", "motan-p"),
    ("M_m", "motan-m"),
    ("M_md", "motan-md"),
    ("M_g", "motan-g"),
    ("M_pp", "motan-pp"),
    ("M_v", "motan-v"),
    ("M_mdu", "motan-mdu"),
    ("M_s", "motan-s"),
    ("M_rid", "motan-rid"),
    ("M_tmo", "motan-tmo"),
];

/// How a call is carried, and so how its answer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The caller sent an HTTP request as it is.
    Raw,
    /// The method is the path, the argument query, form or body.
    Converted,
    /// The method stands in a URL of the configuration.
    Formatted,
}

/// An HTTP request to send.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub way: Way,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is none: code and text of the exception.
pub(super) type Refusal = (i64, String);

/// Makes the request. `pairs` are all attachments of the call.
pub(super) fn request(
    call: &Call,
    pairs: &[(Text, Text)],
    body: Bytes,
    options: &Options,
    locations: &Locations,
) -> Result<Outgoing, Refusal> {
    let bad = |what: String| (400, what);
    let arguments =
        simple::read(body).map_err(|e| bad(format!("deserialize fail. err:{e} method:{}", &*call.method)))?;
    let find = |key: &str| pairs.iter().find(|(k, _)| *k == *key).map(|(_, v)| v.as_str());
    // The words for yes of Go's strconv.ParseBool.
    let proxied = find(PROXY).is_some_and(|v| matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True"));
    let peer = find("remoteIP").or_else(|| find("host"));
    let mut outgoing = if proxied {
        as_it_is(call, pairs, arguments, options, locations)?
    } else {
        let url = options.url_of(&call.method);
        let method = find(METHOD).map(str::to_owned).unwrap_or_else(|| options.method_of(&call.method).to_owned());
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad(format!("`{method}` is no HTTP method")))?;
        match url {
            Some(url) => formatted(call, pairs, method, url, arguments)?,
            None => converted(call, pairs, method, find(QUERY), arguments, options, locations)?,
        }
    };
    let headers = &mut outgoing.headers;
    raw::strip(headers);
    if !headers.contains_key(FORWARDED)
        && let Some(peer) = peer.and_then(|peer| HeaderValue::from_str(peer).ok())
    {
        headers.insert(FORWARDED, peer);
    }
    if !headers.contains_key(header::HOST)
        && let Ok(host) = HeaderValue::from_str(&options.host)
        && !options.host.is_empty()
    {
        headers.insert(header::HOST, host);
    }
    Ok(outgoing)
}

/// The path after the locations, or that there is none for it.
fn located(path: &str, query: Option<&str>, options: &Options, locations: &Locations) -> Result<String, Refusal> {
    match locations.find(path, query) {
        Some(place) => Ok(place.path),
        None if options.require_location.unwrap_or(!locations.is_empty()) => Err((404, "service not found".to_owned())),
        None => Ok(path.to_owned()),
    }
}

fn target(path: &str, query: Option<&str>) -> Result<Uri, Refusal> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut target = format!("{slash}{}", percent(path, "!$&'()*+,;=:@/"));
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        target.push('?');
        // What came as a query is one already; only what no URI may hold is changed.
        target += &percent(query, "!$&'()*+,;=:@/?%[]|\"{}^`\\<>");
    }
    Uri::try_from(&target).map_err(|_| (400, format!("`{target}` is no path of a URL")))
}

fn as_it_is(
    call: &Call,
    pairs: &[(Text, Text)],
    arguments: Vec<Value>,
    options: &Options,
    locations: &Locations,
) -> Result<Outgoing, Refusal> {
    let bad = |what: &str| (400, format!("bad {PROXY} request: {what}"));
    let mut bytes = arguments.into_iter().map(|argument| match argument {
        Value::Bytes(bytes) => Some(bytes),
        Value::Null => Some(Bytes::new()),
        Value::String(text) => Some(text.as_bytes().clone()),
        _ => None,
    });
    let (Some(Some(head)), Some(Some(body))) =
        (bytes.next(), bytes.next().unwrap_or_else(|| Some(Bytes::new())).into())
    else {
        return Err(bad("the arguments are not the bytes of a head and a body"));
    };
    let raw::RequestHead { method, uri, mut headers } = raw::request(&head).map_err(bad)?;
    let path = located(&call.method, uri.query(), options, locations)?;
    // The absolute form overrides Host (RFC 9112 section 3.2.2).
    if let Some(host) = uri.authority().and_then(|a| HeaderValue::from_str(a.host()).ok()) {
        headers.insert(header::HOST, host);
    }
    for (key, value) in pairs {
        if let Some(name) = inner(key) {
            set(&mut headers, name, value);
        }
    }
    // Nothing of the original is lost when the path stays as it was.
    let same = super::attach::unpercent(uri.path()) == path;
    let uri = match uri.path_and_query().filter(|_| same) {
        Some(same) => Uri::from(same.clone()),
        None => target(&path, uri.query())?,
    };
    Ok(Outgoing { way: Way::Raw, method, uri, headers, body })
}

fn converted(
    call: &Call,
    pairs: &[(Text, Text)],
    method: Method,
    query: Option<&str>,
    mut arguments: Vec<Value>,
    options: &Options,
    locations: &Locations,
) -> Result<Outgoing, Refusal> {
    if arguments.len() > 1 {
        return Err((400, "http rpc only support one parameter".to_owned()));
    }
    let mut headers = HeaderMap::new();
    for (key, value) in pairs {
        match (inner(key), key.strip_prefix(PREFIX)) {
            (Some(name), _) => set(&mut headers, name, value),
            // What they say is in the request line, or is the mesh's own.
            _ if [PROXY, METHOD, QUERY, "host", "Host"].contains(&key.as_str()) => {}
            (_, Some("host" | "Host")) => set(&mut headers, "host", value),
            (_, Some(name)) => set(&mut headers, name, value),
            (_, None) => set(&mut headers, key, value),
        }
    }
    let mut query = query.unwrap_or_default().to_owned();
    let bodyless = matches!(method, Method::GET | Method::HEAD);
    let mut body = Bytes::new();
    match arguments.pop() {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => body = text.as_bytes().clone(),
        Some(Value::Bytes(bytes)) => body = bytes,
        Some(other) => {
            let Some(map) = texts(&other) else {
                return Err((400, format!("http rpc unsupported parameter type: {}", other.name())));
            };
            let in_query = method == Method::GET;
            let mut form = Serializer::new(if in_query { std::mem::take(&mut query) } else { String::new() });
            form.extend_pairs(map);
            if in_query {
                query = form.finish();
            } else {
                body = form.finish().into();
                headers.insert(header::CONTENT_TYPE, FORM);
            }
        }
    }
    if bodyless {
        body = Bytes::new();
    } else if !body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
        headers.insert(header::CONTENT_TYPE, FORM);
    }
    let path = located(&call.method, Some(&query), options, locations)?;
    let uri = target(&path, Some(&query))?;
    Ok(Outgoing { way: Way::Converted, method, uri, headers, body })
}

fn formatted(
    call: &Call,
    pairs: &[(Text, Text)],
    method: Method,
    url: &str,
    mut arguments: Vec<Value>,
) -> Result<Outgoing, Refusal> {
    let mut form = Serializer::new(String::new());
    form.append_pair("requestIdFromClient", &call.request_id.to_string());
    if !arguments.is_empty() {
        match arguments.swap_remove(0) {
            Value::String(text) => drop(form.append_key_only(&text)),
            other => drop(form.extend_pairs(texts(&other).unwrap_or_default())),
        }
    }
    let form = form.finish();
    let url = url.replacen("%s", &call.method, 1);
    let uri = Uri::try_from(&url).map_err(|_| (503, format!("`{url}` is no URL")))?;
    let mut headers = HeaderMap::new();
    for (key, value) in pairs.iter().filter(|(key, _)| *key != *"host") {
        set(&mut headers, &key.replace("M_", "motan-"), value);
    }
    headers.insert(header::CONTENT_TYPE, FORM);
    if let Some(host) = uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        headers.insert(header::HOST, host);
    }
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let (uri, body) = match method {
        Method::GET => (format!("{path}{}{form}", if path.contains('?') { '&' } else { '?' }), Bytes::new()),
        Method::POST => (path, form.into()),
        _ => (path, Bytes::new()),
    };
    let uri = Uri::try_from(&uri).map_err(|_| (503, format!("`{uri}` is no URL")))?;
    Ok(Outgoing { way: Way::Formatted, method, uri, headers, body })
}

/// A map of texts to texts. Motan Java writes an empty one as a map of anything.
fn texts(value: &Value) -> Option<Vec<(&str, &str)>> {
    match value {
        Value::StringMap(map) => Some(map.iter().map(|(k, v)| (&**k, &**v)).collect()),
        Value::Map(map) => map
            .iter()
            .map(|pair| match pair {
                (Value::String(k), Value::String(v)) => Some((&**k, &**v)),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

fn inner(key: &str) -> Option<&'static str> {
    INNER.iter().find(|(motan, _)| *motan == key).map(|(_, name)| *name)
}

/// Sets a header, unless its name or value cannot be one.
fn set(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}

/// The value that callers get of an answer's head and body.
pub(super) fn answer(way: Way, status: http::StatusCode, headers: &HeaderMap, body: &Bytes) -> Bytes {
    let bytes = || Value::Bytes(body.clone());
    simple::write_blocks(&[match way {
        Way::Raw => Value::Array(vec![Value::Bytes(raw::put_response(status, headers)), bytes()]),
        Way::Converted => bytes(),
        Way::Formatted => Value::from(&*String::from_utf8_lossy(body)),
    }])
}
