//! `mock`: answers from the configuration instead of an endpoint's.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    CallCx, Filter, Shows, Verdict, answer,
    options::{Percent, Times, from_hex},
};
use crate::{
    call::{CallError, ErrorKind, Head, Request, Response, Text, exception::Exception},
    kind::{self, BuildCx, Value},
    serialize::{self, Value as Typed},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    answer: Option<AnswerOptions>,
    methods: BTreeMap<String, AnswerOptions>,
    percent: Percent,
    switcher: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { answer: None, methods: BTreeMap::new(), percent: Percent(100.0), switcher: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AnswerOptions {
    value: Value,
    body: Option<String>,
    hex: Option<String>,
    base64: Option<String>,
    serialization: u8,
    status: u16,
    headers: BTreeMap<String, String>,
    delay: Times,
    error_percent: Percent,
    exception: ExceptionOptions,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self {
            value: Value::Null,
            body: None,
            hex: None,
            base64: None,
            serialization: serialize::simple::NUMBER,
            status: 200,
            headers: BTreeMap::new(),
            delay: Times::default(),
            error_percent: Percent(0.0),
            exception: ExceptionOptions::default(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExceptionOptions {
    code: i64,
    #[serde(rename = "type")]
    errtype: i64,
    text: String,
    status: u16,
}

impl Default for ExceptionOptions {
    fn default() -> Self {
        Self { code: 500, errtype: 1, text: "mocked".to_owned(), status: 500 }
    }
}

/// An answer, ready for each protocol.
struct Answer {
    serialization: u8,
    motan2: Bytes,
    status: StatusCode,
    headers: HeaderMap,
    http: Bytes,
    delay: Times,
    error_percent: Percent,
    exception: Exception,
    error_status: StatusCode,
}

struct Mock {
    answer: Option<Arc<Answer>>,
    methods: BTreeMap<String, Arc<Answer>>,
    percent: Percent,
    on: Option<Arc<AtomicBool>>,
    answered: AtomicU64,
    errors: Arc<AtomicU64>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let o: Options = kind::options(options)?;
    anyhow::ensure!(o.answer.is_some() || !o.methods.is_empty(), "no answer is given; write `answer` or `methods`");
    let methods = o.methods.into_iter().map(|(name, a)| {
        let answer = Answer::new(a, &format!("methods.{name}"))?;
        anyhow::Ok((name, Arc::new(answer)))
    });
    Ok(Arc::new(Mock {
        methods: methods.collect::<Result<_, _>>()?,
        answer: o.answer.map(|a| Answer::new(a, "answer").map(Arc::new)).transpose()?,
        percent: o.percent,
        on: o.switcher.map(|name| cx.switchers.register(&name, true)),
        answered: AtomicU64::new(0),
        errors: Arc::default(),
    }))
}

impl Answer {
    fn new(o: AnswerOptions, path: &str) -> anyhow::Result<Self> {
        let given = [!o.value.is_null(), o.body.is_some(), o.hex.is_some(), o.base64.is_some()];
        let several = given.iter().filter(|given| **given).count() > 1;
        anyhow::ensure!(!several, "{path}: several answers at once; write one of `value`, `body`, `hex`, `base64`");
        anyhow::ensure!(o.serialization < 32, "{path}.serialization: {} is too large; 6 is simple", o.serialization);
        let status = |code: u16, key: &str| {
            StatusCode::from_u16(code)
                .map_err(|_| anyhow::anyhow!("{path}.{key}: {code} is no status; write 200 to 599"))
        };
        let (status, error_status) = (status(o.status, "status")?, status(o.exception.status, "exception.status")?);
        let mut headers = HeaderMap::new();
        for (name, value) in &o.headers {
            let wrong = |_| anyhow::anyhow!("{path}.headers.{name}: is no header; write letters, digits and `-`");
            let value = HeaderValue::from_str(value).map_err(|_| {
                anyhow::anyhow!("{path}.headers.{name}: has a value that HTTP cannot carry; write text")
            })?;
            headers.append(HeaderName::from_bytes(name.as_bytes()).map_err(wrong)?, value);
        }
        let raw = |bytes: Option<Vec<u8>>, key: &str| {
            bytes.map(Bytes::from).ok_or_else(|| anyhow::anyhow!("{path}.{key}: is no {key}; write whole bytes"))
        };
        let (motan2, http, media) = match (&o.hex, &o.base64, &o.body) {
            (Some(hex), ..) => same(raw(from_hex(&spaceless(hex)), "hex")?, "application/octet-stream"),
            (_, Some(text), _) => same(raw(from_base64(text), "base64")?, "application/octet-stream"),
            (.., Some(text)) => {
                let value = Value::String(text.clone());
                (simple(&value, path)?, Bytes::from(text.clone()), "text/plain; charset=utf-8")
            }
            _ if o.value.is_null() => (Bytes::new(), Bytes::new(), ""),
            _ => (simple(&o.value, path)?, Bytes::from(serde_json::to_vec(&o.value)?), "application/json"),
        };
        if !headers.contains_key(CONTENT_TYPE) && !media.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
        }
        let ExceptionOptions { code, errtype, text, .. } = o.exception;
        Ok(Self {
            serialization: o.serialization,
            motan2,
            status,
            headers,
            http,
            delay: o.delay,
            error_percent: o.error_percent,
            exception: Exception { code, text: text.into(), errtype },
            error_status,
        })
    }

    fn give(&self, head: &Head, errors: &AtomicU64) -> Result<Response, CallError> {
        if self.error_percent.hits() {
            errors.fetch_add(1, Relaxed);
            return answer::exception(head, &self.exception, self.error_status);
        }
        match head {
            Head::Motan2(_) => Ok(answer::motan2(self.serialization, self.motan2.clone())),
            Head::Http(_) => Ok(answer::http(self.status, self.headers.clone(), self.http.clone())),
            Head::None => {
                Err(CallError::mesh(ErrorKind::Rejected, "mock: a connection without a protocol gets no answer"))
            }
        }
    }
}

impl Filter for Mock {
    fn on_request(&self, _: &mut CallCx, req: &mut Request) -> Verdict {
        let off = self.on.as_ref().is_some_and(|on| !on.load(Relaxed));
        let Some(answer) = self.methods.get(&*req.call.method).or(self.answer.as_ref()).filter(|_| !off) else {
            return Verdict::Continue;
        };
        if !self.percent.hits() {
            return Verdict::Continue;
        }
        self.answered.fetch_add(1, Relaxed);
        if answer.delay.is_zero() {
            return Verdict::Stop(Box::new(answer.give(&req.head, &self.errors)));
        }
        let (answer, head, errors) = (answer.clone(), req.head.clone(), self.errors.clone());
        let (at, deadline) = (Instant::now() + answer.delay.pick(), req.call.deadline);
        Verdict::Wait(Box::pin(async move {
            tokio::time::sleep_until(at.min(deadline)).await;
            if at > deadline {
                return Verdict::fail(CallError::mesh(ErrorKind::Timeout, "mock: the delay ends after the deadline"));
            }
            Verdict::Stop(Box::new(answer.give(&head, &errors)))
        }))
    }

    fn figures(&self, show: &mut Shows<'_>) {
        show.event("answered", "", self.answered.load(Relaxed));
        show.event("errors", "", self.errors.load(Relaxed));
        if let Some(on) = &self.on {
            show.state("on", "", on.load(Relaxed).into());
        }
    }
}

fn same(bytes: Bytes, media: &'static str) -> (Bytes, Bytes, &'static str) {
    (bytes.clone(), bytes, media)
}

/// A value as Motan's `simple` serialization writes it.
fn simple(value: &Value, path: &str) -> anyhow::Result<Bytes> {
    let wrong =
        |what: &str| anyhow::anyhow!("{path}.value: {what} cannot be written as `simple`; write `hex` or `base64`");
    let typed = typed(value).map_err(wrong)?;
    serialize::simple::write(&[typed]).map_err(|e| anyhow::anyhow!("{path}.value: {e}"))
}

/// The type that a value of YAML has by nature. What holds nothing but texts is a list or a map of texts.
fn typed(value: &Value) -> Result<Typed, &'static str> {
    let text = |value: &Value| value.as_str().map(Text::from);
    Ok(match value {
        Value::Null => return Err("a null inside"),
        Value::Bool(yes) => Typed::Bool(*yes),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Typed::Int64(whole),
            None => Typed::from(number.as_f64().ok_or("a number this large")?),
        },
        Value::String(text) => Typed::from(text.as_str()),
        Value::Sequence(list) => match list.iter().map(text).collect() {
            Some(texts) => Typed::Strings(texts),
            None => Typed::Array(list.iter().map(typed).collect::<Result<_, _>>()?),
        },
        Value::Mapping(map) => match map.iter().map(|(k, v)| Some((text(k)?, text(v)?))).collect() {
            Some(texts) => Typed::StringMap(texts),
            None => {
                let both = map.iter().map(|(k, v)| typed(k).and_then(|k| Ok((k, typed(v)?))));
                Typed::Map(both.collect::<Result<_, _>>()?)
            }
        },
        Value::Tagged(_) => return Err("a tagged value"),
    })
}

/// Long bodies are written on several lines.
fn spaceless(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Standard alphabet, with or without padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(spaceless(text).replace('=', "")).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        call::{Body, ResponseHead, Status},
        filter::testing::{Bench, http, motan},
    };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn encoded(yaml: &str) -> String {
        hex(&simple(&serde_yaml::from_str(yaml).unwrap(), "answer").unwrap())
    }

    #[test]
    fn values_are_those_of_a_real_motan_run() {
        assert_eq!(encoded("hello"), "010000000568656c6c6f");
        assert_eq!(encoded("true"), "0501");
        assert_eq!(encoded("-5"), "0909");
        assert_eq!(encoded("1099511627776"), "09808080808040");
        assert_eq!(encoded("0.25"), "0b3fd0000000000000");
        assert_eq!(encoded("[a, '', 中]"), "040000001000000001610000000000000003e4b8ad");
        assert_eq!(encoded("{k1: v1}"), "020000000c000000026b31000000027631");
        assert_eq!(encoded("[a, true]"), "15000000080100000001610501");
        assert_eq!(encoded("{1: true}"), "140000000409020501");
        assert!(simple(&serde_yaml::from_str("[null]").unwrap(), "answer").is_err());
    }

    #[test]
    fn raw_bodies_are_read() {
        assert_eq!(from_hex(&spaceless("01 ff\n00")), Some(vec![1, 255, 0]));
        assert_eq!((from_hex("0"), from_hex("zz")), (None, None));
        for (text, bytes) in [("aGVsbG8=", &b"hello"[..]), ("aGVsbG8", b"hello"), ("", b""), ("/+8=", b"\xff\xef")] {
            assert_eq!(from_base64(text).as_deref(), Some(bytes), "{text}");
        }
        assert_eq!((from_base64("a"), from_base64("a_=="), from_base64("ab")), (None, None, None));
    }

    fn body(response: &Response) -> &[u8] {
        match &response.body {
            Body::Full(bytes) => bytes,
            _ => b"",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_each_protocol_in_its_own_words() {
        let options = "{answer: {value: {a: 1}, status: 201, headers: {x-mock: yes}}, methods: {raw: {hex: '0501'}, \
                       text: {body: hi}, nothing: {}}}"
            .replace("yes", "'yes'");
        let b = Bench::new(build, &options);
        let call = async |req: Request| b.call(req, || panic!("nobody is asked")).await.unwrap();
        let got = call(motan("echo")).await;
        let ResponseHead::Motan2(head) = &got.head else { panic!("{got:?}") };
        assert_eq!((head.serialization, hex(body(&got))), (6, "14000000080100000001610902".to_owned()));
        let got = call(http("GET")).await;
        let ResponseHead::Http(head) = &got.head else { panic!("{got:?}") };
        assert_eq!((head.status.as_u16(), body(&got)), (201, &b"{\"a\":1}"[..]));
        assert_eq!(
            (head.headers["x-mock"].as_bytes(), head.headers["content-type"].as_bytes()),
            (&b"yes"[..], &b"application/json"[..])
        );
        assert_eq!(body(&call(motan("raw")).await), [5, 1]);
        assert_eq!(hex(body(&call(motan("text")).await)), "01000000026869");
        assert_eq!(body(&call(motan("nothing")).await), b"");
        let raw = Request { head: Head::None, ..motan("echo") };
        assert_eq!(b.call(raw, || panic!("nobody is asked")).await.unwrap_err().kind, ErrorKind::Rejected);
        assert_eq!(b.event("answered", ""), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_errors_shares_and_the_switcher() {
        let cx = BuildCx::default();
        let options = "{methods: {slow: {delay: 10ms..50ms}, never: {delay: 2s}, \
                       bad: {error_percent: 100, exception: {code: 30412, type: 2, text: mine, status: 409}}}, \
                       switcher: web.mock}";
        let b = Bench::with(build, options, &cx);
        let before = Instant::now();
        b.call(motan("slow"), || panic!("nobody is asked")).await.unwrap();
        assert!((10..=51).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());
        let before = Instant::now();
        let late = b.call(motan("never"), || panic!("nobody is asked")).await.unwrap_err();
        assert_eq!((late.kind, before.elapsed()), (ErrorKind::Timeout, Duration::from_secs(1)));
        let bad = b.call(motan("bad"), || panic!("nobody is asked")).await.unwrap();
        let ResponseHead::Motan2(head) = &bad.head else { panic!("{bad:?}") };
        assert_eq!(head.meta.get("M_e").unwrap(), r#"{"errcode":30412,"errmsg":"mine","errtype":2}"#);
        assert_eq!(bad.status, Status::Refused(30412));
        let bad = b.call(http("bad"), || panic!("nobody is asked")).await.unwrap();
        assert_eq!((bad.status, body(&bad)), (Status::Refused(409), &b"mine\n"[..]));
        let other = b.call(motan("echo"), || Ok(b.good())).await.unwrap();
        assert_eq!(body(&other), b"done", "methods that are not listed are called");
        cx.switchers.set("web.mock", false);
        assert_eq!(body(&b.call(motan("bad"), || Ok(b.good())).await.unwrap()), b"done");
        assert_eq!((b.event("answered", ""), b.event("errors", ""), b.state("on", "")), (4, 2, 0));

        let half = Bench::new(build, "{answer: {body: mock}, percent: 50}");
        let mut mocked = 0;
        for _ in 0..10_000 {
            mocked += u32::from(body(&half.call(motan("echo"), || Ok(half.good())).await.unwrap()) != b"done");
        }
        assert!((4700..5300).contains(&mocked), "{mocked}");
    }

    #[test]
    fn options_are_checked() {
        for (wrong, says) in [
            ("{}", "no answer"),
            ("{answer: {value: 1, body: x}}", "answer: several"),
            ("{answer: {hex: abc}}", "answer.hex"),
            ("{answer: {status: 99}}", "answer.status"),
            ("{methods: {m: {headers: {'a b': c}}}}", "methods.m.headers.a b"),
            ("{answer: {serialization: 32}}", "answer.serialization"),
            ("{answer: {value: [null]}}", "hex"),
            ("{percent: 200, answer: {}}", "0 to 100"),
        ] {
            let options: Value = serde_yaml::from_str(wrong).unwrap();
            let error = build(&options, &BuildCx::default()).err().unwrap().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
