//! `convert`: callers of one serialization and endpoints of another.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use serde::Deserialize;

use super::{CallCx, Filter, Shows, Trying, Verdict};
use crate::{
    call::{Body, CallError, ErrorKind, Head, Motan2Head, Request, Response, ResponseHead, Status, Text},
    kind::{self, BuildCx, Value},
    serialize::format::{Declared, FORMATS, Format, NotConverted, Part, declared},
};

/// The word for "as the endpoint is registered".
const REGISTERED: &str = "registered";
/// Metadata of an endpoint that names its serialization.
const SERIALIZATION: &str = "serialization";
/// Metadata of a call that describes its parameters.
const DESCRIPTION: &str = "M_md";
/// Motan's own limit of a body. Beyond it the other end closes the connection, which others share.
const MAX_BYTES: usize = 10 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    to: String,
    unreadable: Unreadable,
    max_bytes: usize,
    methods: BTreeMap<String, MethodOptions>,
}

impl Default for Options {
    fn default() -> Self {
        let unreadable = Unreadable::Refuse;
        Self { to: REGISTERED.to_owned(), unreadable, max_bytes: MAX_BYTES, methods: BTreeMap::new() }
    }
}

/// What becomes of a body that cannot be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Unreadable {
    /// The call fails, and says why.
    Refuse,
    /// It goes on as it came.
    Pass,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MethodOptions {
    params: Option<String>,
    returns: Option<String>,
}

/// Types of a method, as far as they are configured.
#[derive(Default)]
struct Method {
    params: Option<Declared>,
    returns: Option<Declared>,
}

struct Convert {
    /// None: what the endpoint says of itself.
    to: Option<Format>,
    unreadable: Unreadable,
    max_bytes: usize,
    methods: BTreeMap<String, Method>,
    requests: AtomicU64,
    answers: AtomicU64,
    passed: AtomicU64,
    refused: AtomicU64,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let Options { to, unreadable, max_bytes, methods } = kind::options(options)?;
    let format = Format::of_name(&to);
    anyhow::ensure!(
        format.is_some() || to == REGISTERED,
        "to: `{to}` cannot be written; known: {REGISTERED}, {}",
        FORMATS.map(Format::name).join(", ")
    );
    anyhow::ensure!(max_bytes > 0, "max_bytes: 0 would let nothing through; write at most what endpoints take");
    let methods = methods.into_iter().map(|(name, MethodOptions { params, returns })| {
        let returns = returns.map(|name| declared(&name));
        anyhow::ensure!(
            returns.as_ref().is_none_or(|types| types.len() <= 1),
            "methods.{name}.returns: a method returns one value or `void`; write one type"
        );
        Ok((name, Method { params: params.map(|names| declared(&names)), returns }))
    });
    Ok(Arc::new(Convert {
        to: format,
        unreadable,
        max_bytes,
        methods: methods.collect::<anyhow::Result<_>>()?,
        requests: AtomicU64::new(0),
        answers: AtomicU64::new(0),
        passed: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    }))
}

/// What must be known of a call when its answer comes.
#[derive(Debug)]
pub(super) struct Noted {
    /// What its caller reads.
    caller: Format,
    method: Text,
}

/// Why a body stays as it is.
enum Kept {
    /// Its serialization is not one of ours.
    Unknown(u8),
    /// Still packed: it could not be unpacked on arrival.
    Packed,
    /// A stream, which no caller of Motan sends.
    Streamed,
    NotConverted(NotConverted),
    TooLarge(usize),
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "serialization {number} cannot be read"),
            Self::Packed => f.write_str("its gzip cannot be unpacked"),
            Self::Streamed => f.write_str("it is a stream"),
            Self::NotConverted(why) => why.fmt(f),
            Self::TooLarge(bytes) => write!(f, "it would have {bytes} bytes, more than `max_bytes`"),
        }
    }
}

impl From<NotConverted> for Kept {
    fn from(why: NotConverted) -> Self {
        Self::NotConverted(why)
    }
}

impl Convert {
    /// Puts `body` into `to`, and says so in `head`. Nothing is touched when that is not possible.
    fn convert(
        &self,
        head: &mut Motan2Head,
        body: &mut Body,
        to: Format,
        (part, declared): (Part, Option<&Declared>),
    ) -> Result<(), Kept> {
        let from = Format::of_number(head.serialization).ok_or(Kept::Unknown(head.serialization))?;
        let bytes = match body {
            _ if head.gzip => return Err(Kept::Packed),
            Body::Empty => Bytes::new(),
            Body::Full(bytes) => bytes.clone(),
            Body::Stream(_) => return Err(Kept::Streamed),
        };
        let bytes = to.write(from.read(bytes, part, declared)?, part, declared)?;
        if bytes.len() > self.max_bytes {
            return Err(Kept::TooLarge(bytes.len()));
        }
        *body = if bytes.is_empty() { Body::Empty } else { Body::Full(bytes) };
        head.serialization = to.number();
        Ok(())
    }

    /// The arguments of `req` into `to`; an error is what the caller is told.
    fn request(&self, cx: &CallCx, req: &mut Request, to: Format) -> Result<(), CallError> {
        let Request { call, head: Head::Motan2(head), body } = req else { return Ok(()) };
        let from = head.serialization;
        if from == to.number() {
            return Ok(());
        }
        let configured = self.methods.get(&*call.method).and_then(|method| method.params.as_ref());
        let described =
            if configured.is_none() { head.meta.get(DESCRIPTION).map(|names| declared(&names)) } else { None };
        match self.convert(head, body, to, (Part::Arguments, configured.or(described.as_ref()))) {
            Ok(()) => {
                self.requests.fetch_add(1, Relaxed);
                if cx.trail.is_full() {
                    cx.trail.note(format!("arguments converted from {} to {}", name_of(from), to.name()));
                }
                Ok(())
            }
            Err(why) => self.kept(cx, "arguments", &why, to),
        }
    }

    /// Counts a body that stays as it is, and says whether the call goes on with it.
    fn kept(&self, cx: &CallCx, what: &str, why: &Kept, to: Format) -> Result<(), CallError> {
        let text = format!("convert: the {what} cannot be converted to {}: {why}", to.name());
        if self.unreadable == Unreadable::Pass {
            self.passed.fetch_add(1, Relaxed);
            cx.trail.note(text);
            return Ok(());
        }
        self.refused.fetch_add(1, Relaxed);
        Err(CallError::mesh(ErrorKind::Rejected, text))
    }
}

fn name_of(number: u8) -> String {
    Format::of_number(number).map_or_else(|| format!("serialization {number}"), |format| format.name().to_owned())
}

impl Filter for Convert {
    fn on_request(&self, cx: &mut CallCx, req: &mut Request) -> Verdict {
        let Head::Motan2(head) = &req.head else { return Verdict::Continue };
        // Answers to a caller whose serialization nobody here can write stay as they are.
        let caller = Format::of_number(head.serialization);
        cx.notes.converted = caller.map(|caller| Box::new(Noted { caller, method: req.call.method.clone() }));
        match self.to.map(|to| self.request(cx, req, to)) {
            Some(Err(error)) => Verdict::fail(error),
            Some(Ok(())) | None => Verdict::Continue,
        }
    }

    fn on_attempt(&self, cx: &CallCx, attempt: &Trying<'_>, req: &mut Request) -> Verdict {
        if self.to.is_some() {
            return Verdict::Continue;
        }
        // An endpoint that does not say, or names what nobody here can write, gets what the caller sent.
        let name = attempt.to.metadata.get(SERIALIZATION);
        let Some(to) = name.and_then(|name| Format::of_name(name)) else { return Verdict::Continue };
        match self.request(cx, req, to) {
            Ok(()) => Verdict::Continue,
            Err(error) => Verdict::fail(error),
        }
    }

    fn on_response(&self, cx: &mut CallCx, end: &mut Result<Response, CallError>) {
        let Some(noted) = cx.notes.converted.take() else { return };
        let Noted { caller: to, method } = *noted;
        // Exceptions are metadata, whatever number they come with.
        let Ok(Response { status: Status::Ok, head: ResponseHead::Motan2(head), body, .. }) = end else { return };
        let from = head.serialization;
        if from == to.number() {
            return;
        }
        if matches!(body, Body::Empty) {
            // No value is the same in all of them, also in those that nobody here can read.
            head.serialization = to.number();
            return;
        }
        let returns = self.methods.get(&*method).and_then(|method| method.returns.as_ref());
        match self.convert(head, body, to, (Part::Answer, returns)) {
            Ok(()) => {
                self.answers.fetch_add(1, Relaxed);
                if cx.trail.is_full() {
                    cx.trail.note(format!("answer converted from {} to {}", name_of(from), to.name()));
                }
            }
            Err(why) => {
                if let Err(error) = self.kept(cx, "answer", &why, to) {
                    *end = Err(error);
                }
            }
        }
    }

    fn figures(&self, show: &mut Shows<'_>) {
        show.event("arguments_converted", "", self.requests.load(Relaxed));
        show.event("answers_converted", "", self.answers.load(Relaxed));
        show.event("passed_as_they_came", "", self.passed.load(Relaxed));
        show.event("refused", "", self.refused.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Bench, http, motan},
        *,
    };
    use crate::{
        call::{Pairs, exception::BUSINESS},
        serialize::{Value as Typed, breeze, json, protobuf, simple},
    };

    /// A call of `get` with these arguments, written by a caller of `number`.
    fn call(number: u8, body: impl Into<Bytes>) -> Request {
        let body: Bytes = body.into();
        let mut req = motan("get");
        let meta = [("M_md", "int,long")].into_iter().collect();
        req.head = Head::Motan2(Motan2Head { serialization: number, meta, ..Motan2Head::default() });
        req.body = if body.is_empty() { Body::Empty } else { Body::Full(body) };
        req
    }

    fn answer(number: u8, body: impl Into<Bytes>) -> Response {
        let body: Bytes = body.into();
        let head = Motan2Head { serialization: number, ..Motan2Head::default() };
        let body = if body.is_empty() { Body::Empty } else { Body::Full(body) };
        Response { status: Status::Ok, head: ResponseHead::Motan2(head), body, endpoint: None }
    }

    fn bytes(body: &Body) -> Bytes {
        match body {
            Body::Full(bytes) => bytes.clone(),
            _ => Bytes::new(),
        }
    }

    fn sent(req: &Request) -> (u8, Bytes) {
        let Head::Motan2(head) = &req.head else { panic!("{req:?}") };
        (head.serialization, bytes(&req.body))
    }

    fn got(end: &Result<Response, CallError>) -> (u8, Bytes) {
        let ResponseHead::Motan2(head) = &end.as_ref().unwrap().head else { panic!("{end:?}") };
        (head.serialization, bytes(&end.as_ref().unwrap().body))
    }

    fn values() -> Vec<Typed> {
        vec![Typed::Int32(5), Typed::Int64(5)]
    }

    #[tokio::test(start_paused = true)]
    async fn arguments_go_there_and_answers_come_back() {
        let b = Bench::new(build, "{to: simple}");
        let begun = b.begin(call(breeze::NUMBER, breeze::write(&values()).unwrap()));
        assert_eq!(sent(&begun.req), (simple::NUMBER, simple::write(&values()).unwrap()));
        let end = begun.end(Ok(answer(simple::NUMBER, simple::write(&[Typed::from(1.5f32)]).unwrap())));
        assert_eq!(got(&end), (breeze::NUMBER, breeze::write(&[Typed::from(1.5f32)]).unwrap()));
        assert_eq!((b.event("arguments_converted", ""), b.event("answers_converted", "")), (1, 1));

        let begun = b.begin(call(breeze::NUMBER, ""));
        assert_eq!(sent(&begun.req), (simple::NUMBER, Bytes::new()));
        assert_eq!(got(&begun.end(Ok(answer(simple::NUMBER, "")))), (breeze::NUMBER, Bytes::new()), "no value");

        let begun = b.begin(call(json::NUMBER, r#"[5, 5]"#));
        assert_eq!(sent(&begun.req), (simple::NUMBER, simple::write(&values()).unwrap()), "as M_md says");
        let end = begun.end(Ok(answer(simple::NUMBER, simple::write(&[Typed::Int64(5)]).unwrap())));
        assert_eq!(got(&end), (json::NUMBER, Bytes::from(r#"{"$int64":5}"#)), "the type is not known: it is said");
    }

    #[tokio::test(start_paused = true)]
    async fn what_bodies_do_not_say_the_configuration_does() {
        let b = Bench::new(build, "{to: protobuf, methods: {get: {params: 'long,int', returns: 'float'}}}");
        let begun = b.begin(call(simple::NUMBER, simple::write(&values()).unwrap()));
        let swapped = [Typed::Int64(5), Typed::Int32(5)];
        assert_eq!(sent(&begun.req), (protobuf::NUMBER, protobuf::write(&swapped).unwrap()), "before M_md");
        let end = begun.end(Ok(answer(protobuf::NUMBER, protobuf::write(&[Typed::from(1.5f32)]).unwrap())));
        assert_eq!(got(&end), (simple::NUMBER, simple::write(&[Typed::from(1.5f32)]).unwrap()));
        let begun = b.begin(call(json::NUMBER, "[5,5]"));
        let end = begun.end(Ok(answer(protobuf::NUMBER, protobuf::write(&[Typed::from(1.5f32)]).unwrap())));
        assert_eq!(got(&end), (json::NUMBER, Bytes::from("1.5")), "plain, where the reader knows the type");

        let mut other = call(simple::NUMBER, simple::write(&values()).unwrap());
        other.call.method = "put".into();
        let begun = b.begin(other);
        let error = begun.end(Ok(answer(protobuf::NUMBER, "\0\x01"))).unwrap_err();
        assert!(error.message.contains("its types are not known") && error.message.contains("methods.M"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_converted_is_refused_or_passed_on() {
        let message = Typed::Message(Box::new(("m".into(), vec![])));
        let mut packed = call(breeze::NUMBER, "x");
        let Head::Motan2(head) = &mut packed.head else { unreachable!() };
        head.gzip = true;
        let cases = [
            (call(0, "Hxyz"), "serialization 0 cannot be read"),
            (call(0, ""), "serialization 0 cannot be read"),
            (call(breeze::NUMBER, "\x3f"), "ends within a value"),
            (call(breeze::NUMBER, breeze::write(&[message]).unwrap()), "Simple has no message"),
            (packed, "gzip cannot be unpacked"),
            (call(breeze::NUMBER, breeze::write(&[Typed::from(&*"x".repeat(200))]).unwrap()), "205 bytes"),
        ];
        let refuses = Bench::new(build, "{to: simple, max_bytes: 100}");
        let passes = Bench::new(build, "{to: simple, max_bytes: 100, unreadable: pass}");
        for (req, why) in cases {
            let before = sent(&req);
            let begun = passes.begin(req.replay().unwrap());
            assert_eq!(sent(&begun.req), before, "{why}: untouched");
            assert!(begun.cx.trail.take().len() == 1);
            let end = refuses.call(req, || panic!("{why}: sent")).await.unwrap_err();
            let text = "convert: the arguments cannot be converted to simple: ";
            assert!(end.message.starts_with(text) && end.message.contains(why), "{end}");
            assert_eq!((end.kind, end.retry), (ErrorKind::Rejected, crate::call::Retry::Never));
        }
        assert_eq!((refuses.event("refused", ""), passes.event("passed_as_they_came", "")), (6, 6));

        let mut streamed = call(breeze::NUMBER, "");
        streamed.body = Body::Stream(Default::default());
        assert!(refuses.call(streamed, || panic!("sent")).await.unwrap_err().message.contains("stream"));

        // Answers.
        let ask = || call(breeze::NUMBER, breeze::write(&values()).unwrap());
        let cut = || Ok(answer(simple::NUMBER, "\x09"));
        let error = refuses.begin(ask()).end(cut()).unwrap_err();
        assert!(error.message.starts_with("convert: the answer cannot be converted to breeze: as simple"), "{error}");
        assert_eq!(got(&passes.begin(ask()).end(cut())), (simple::NUMBER, Bytes::from("\x09")));
        let odd = || Ok(answer(0, "Hxyz"));
        assert!(refuses.begin(ask()).end(odd()).is_err());
        assert_eq!(got(&passes.begin(ask()).end(odd())), (0, Bytes::from("Hxyz")));
        // Whose arguments were passed on gets the answer as it is.
        let begun = passes.begin(call(0, "Hxyz"));
        assert_eq!(got(&begun.end(Ok(answer(simple::NUMBER, "\0")))), (simple::NUMBER, Bytes::from("\0")));
    }

    #[tokio::test(start_paused = true)]
    async fn exceptions_errors_and_other_protocols_are_left_alone() {
        let b = Bench::new(build, "{to: simple}");
        let ask = || b.begin(call(breeze::NUMBER, breeze::write(&values()).unwrap()));
        let json = format!(r#"{{"errcode":7,"errmsg":"x","errtype":{BUSINESS}}}"#);
        let meta: Pairs = [("M_e", &*json)].into_iter().collect();
        let thrown = |body: Body| Response {
            status: Status::Refused(7),
            head: ResponseHead::Motan2(Motan2Head { serialization: 6, meta: meta.clone(), ..Motan2Head::default() }),
            body,
            endpoint: None,
        };
        for body in ["", "\x63 is no value"] {
            let end = ask().end(Ok(thrown(Body::Full(body.into()))));
            assert_eq!(got(&end), (simple::NUMBER, Bytes::from(body)));
            let Ok(Response { head: ResponseHead::Motan2(head), .. }) = end else { unreachable!() };
            assert_eq!(head.meta.get("M_e").unwrap(), *json);
        }
        assert!(ask().end(Err(CallError::mesh(ErrorKind::Timeout, "late"))).is_err());
        let none = Response { head: ResponseHead::None, ..answer(0, "as it is") };
        assert!(matches!(ask().end(Ok(none)).unwrap().head, ResponseHead::None));

        let same = b.begin(call(simple::NUMBER, "\x63 is not looked at"));
        assert_eq!(sent(&same.req).1, "\x63 is not looked at");
        assert_eq!(got(&same.end(Ok(answer(simple::NUMBER, "\x63")))), (simple::NUMBER, Bytes::from("\x63")));
        assert_eq!(bytes(&b.begin(http("GET")).req.body), "hello");
        assert_eq!(b.event("answers_converted", ""), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn each_endpoint_gets_what_it_is_registered_with() {
        let b = Bench::new(build, "{}");
        let endpoint = |serialization: &str| {
            let mut endpoint = Arc::into_inner(b.endpoint(1)).unwrap();
            endpoint.metadata.insert(SERIALIZATION.to_owned(), serialization.to_owned());
            Arc::new(endpoint)
        };
        let mut begun = b.begin(call(simple::NUMBER, simple::write(&values()).unwrap()));
        let Request { call: of_call, .. } = begun.req.replay().unwrap();
        let mut number = 0;
        let mut attempt = |to: &Arc<crate::endpoint::Endpoint>, begun: &mut super::super::testing::Begun<'_>| {
            number += 1;
            let trying = Trying { call: &of_call, to, number, started: tokio::time::Instant::now() };
            matches!(b.filter.on_attempt(&begun.cx, &trying, &mut begun.req), Verdict::Continue)
        };
        for (name, is) in [
            ("breeze", breeze::write(&values()).unwrap()),
            ("protobuf", protobuf::write(&values()).unwrap()),
            ("hessian2", protobuf::write(&values()).unwrap()),
            ("simple", simple::write(&values()).unwrap()),
            ("json", Bytes::from("[5,5]")),
        ] {
            assert!(attempt(&endpoint(name), &mut begun), "{name}");
            assert_eq!(sent(&begun.req).1, is, "{name}");
        }
        assert!(attempt(&b.endpoint(2), &mut begun), "it does not say");
        assert_eq!(sent(&begun.req).0, json::NUMBER);
        begun.req.body = Body::Full("[".into());
        assert!(!attempt(&endpoint("simple"), &mut begun));
        let end = begun.end(Ok(answer(breeze::NUMBER, breeze::write(&[Typed::Null]).unwrap())));
        assert_eq!(got(&end), (simple::NUMBER, Bytes::from("\0")), "whatever the endpoint: as the caller sent");
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |yaml| build(&serde_yaml::from_str(yaml).unwrap(), &BuildCx::default()).err().unwrap().to_string();
        assert!(wrong("to: hessian2").starts_with("to: `hessian2` cannot be written; known: registered, simple"));
        assert!(wrong("max_bytes: 0").starts_with("max_bytes: 0"));
        assert!(wrong("methods: {m: {returns: 'int,int'}}").starts_with("methods.m.returns: a method returns one"));
        assert!(wrong("unreadable: drop").contains("refuse"));
    }
}
