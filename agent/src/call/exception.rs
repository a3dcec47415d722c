//! Exceptions: what a caller of Motan2 sees when a call fails (docs/wire/motan2.md, "Exceptions"). In the
//! ground, because the access log writes what the caller saw and filters throw their own.

use std::{borrow::Cow, fmt::Write};

use serde::Deserialize;

use super::{CallError, Direction, ErrorKind, Pairs, Side, Status};

/// What `M_e` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// `errcode`.
    pub code: i64,
    /// `errmsg`.
    pub text: Cow<'static, str>,
    /// `errtype`: 2 is the user's own, everything else a failure.
    pub errtype: i64,
}

/// `errtype` of what the infrastructure throws; counts as a failure.
const SERVICE: i64 = 1;
/// `errtype` of what the user's code throws; no failure.
pub const BUSINESS: i64 = 2;

/// What callers are told while a service is degraded by an operator.
pub const DEGRADED: &str = "cluster not available, maybe caused by degrade";
/// Message of a call of a service that the agent itself does not have.
pub const NO_FRAMEWORK_SERVICE: &str = "service not support";

/// What is known of the call that failed.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// The caller's own id.
    pub id: u64,
    /// The caller's metadata.
    pub meta: &'a Pairs,
}

impl Exception {
    /// One that the infrastructure throws.
    pub fn new(code: i64, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, text: text.into(), errtype: SERVICE }
    }

    /// The one place where an [`ErrorKind`] becomes a code and a text. Texts that Motan's own agent
    /// writes are kept to the letter, because clients compare them; what happened in detail is in the
    /// access log.
    pub fn of(error: &CallError, failed: Failed<'_>) -> Self {
        let outbound = failed.direction == Direction::Outbound;
        let own = || error.message.clone();
        if error.verbatim {
            return Self::new(400, own());
        }
        match error.kind {
            ErrorKind::NoCluster => Self::new(if outbound { 400 } else { 404 }, own()),
            // The service is exported, but the program behind it is not there.
            ErrorKind::NoEndpoint | ErrorKind::Connect | ErrorKind::ConnectTimeout if !outbound => {
                Self { code: 503, text: "reverse proxy call err: motanProvider is unavailable".into(), errtype: 503 }
            }
            ErrorKind::NoEndpoint => Self::new(1001, no_refers(failed)),
            ErrorKind::Connect | ErrorKind::ConnectTimeout => Self::new(1002, "can not get a channel"),
            ErrorKind::Timeout => Self::new(400, "channel call error:timeout err: receive request timeout"),
            ErrorKind::Reset => Self::new(400, "channel call error:the channel has been shutdown"),
            // To Motan's own agent an endpoint that talks rubbish is one that hung up.
            ErrorKind::Protocol | ErrorKind::TooLarge if error.side == Side::Upstream => {
                Self::new(400, "channel call error:the channel has been shutdown")
            }
            ErrorKind::Rejected if error.message == NO_FRAMEWORK_SERVICE => Self::new(501, NO_FRAMEWORK_SERVICE),
            ErrorKind::Protocol | ErrorKind::TooLarge | ErrorKind::Rejected => Self::new(400, own()),
            ErrorKind::RateLimited | ErrorKind::CircuitOpen => Self::new(400, own()),
            ErrorKind::Unauthorized => Self::new(401, own()),
            ErrorKind::Degraded => Self::new(500, DEGRADED),
            ErrorKind::Overload | ErrorKind::Draining => Self::new(503, own()),
            ErrorKind::Cancelled => Self::new(500, own()),
        }
    }

    /// For an answer that a stage made up without knowing Motan2.
    pub fn of_status(status: Status) -> Option<Self> {
        let text = "answered inside the mesh";
        match status {
            Status::Ok => None,
            Status::Refused(code) => Some(Self { code: code.into(), text: text.into(), errtype: BUSINESS }),
            Status::Failed(code) => Some(Self::new(code.into(), text)),
        }
    }

    /// `M_e`: compact, keys in this order, escaped as Go's `encoding/json` does.
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(self.text.len() + 48);
        let _ = write!(out, "{{\"errcode\":{},\"errmsg\":\"", self.code);
        escape(&self.text, &mut out);
        let _ = write!(out, "\",\"errtype\":{}}}", self.errtype);
        out
    }
}

/// How an endpoint's exception counts: only the user's own (`errtype` 2) is no failure.
pub fn status_of(meta: &Pairs) -> Status {
    #[derive(Deserialize)]
    struct Wire {
        #[serde(default)]
        errcode: i64,
        #[serde(default)]
        errtype: i64,
    }
    let text = meta.get("M_e");
    let Some(wire) = text.and_then(|text| serde_json::from_str::<Wire>(&text).ok()) else {
        return Status::Failed(500);
    };
    let code = u32::try_from(wire.errcode).unwrap_or(500);
    if wire.errtype == BUSINESS { Status::Refused(code) } else { Status::Failed(code) }
}

fn no_refers(failed: Failed<'_>) -> String {
    let mut pairs: Vec<_> = failed.meta.iter().collect();
    pairs.sort();
    let mut out = format!("No refers for request, RequestID: {}, Request info: map[", failed.id);
    for (i, (key, value)) in pairs.iter().enumerate() {
        let _ = write!(out, "{}{key}:{value}", if i == 0 { "" } else { " " });
    }
    out.push(']');
    out
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Retry;

    fn of(kind: ErrorKind, direction: Direction) -> (i64, String, i64) {
        let error = CallError::upstream(kind, Retry::Never, "detail");
        let e = Exception::of(&error, Failed { direction, id: 7, meta: &Pairs::default() });
        (e.code, e.text.into_owned(), e.errtype)
    }

    #[test]
    fn go_escapes() {
        let e = Exception { code: 30412, text: "kit biz \"quoted\" 中文\n<&>\u{1}\u{2028}".into(), errtype: 2 };
        let json =
            r#"{"errcode":30412,"errmsg":"kit biz \"quoted\" 中文\n\u003c\u0026\u003e\u0001\u2028","errtype":2}"#;
        assert_eq!(e.to_json(), json);
        let parsed: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(parsed["errmsg"], *e.text);
    }

    #[test]
    fn every_kind_has_the_code_that_callers_know() {
        use Direction::{Inbound, Outbound};
        let code = |kind, direction| {
            let (code, _, errtype) = of(kind, direction);
            (code, errtype)
        };
        assert_eq!(code(ErrorKind::NoCluster, Outbound), (400, 1));
        assert_eq!(code(ErrorKind::NoCluster, Inbound), (404, 1));
        assert_eq!(code(ErrorKind::NoEndpoint, Outbound), (1001, 1));
        assert_eq!(code(ErrorKind::NoEndpoint, Inbound), (503, 503));
        assert_eq!(code(ErrorKind::Connect, Outbound), (1002, 1));
        assert_eq!(code(ErrorKind::ConnectTimeout, Inbound), (503, 503));
        assert_eq!(code(ErrorKind::Timeout, Inbound), (400, 1));
        assert_eq!(code(ErrorKind::Overload, Outbound), (503, 1));
        assert_eq!(code(ErrorKind::RateLimited, Outbound), (400, 1));
        assert_eq!(code(ErrorKind::CircuitOpen, Inbound), (400, 1));
        assert_eq!(code(ErrorKind::Unauthorized, Inbound), (401, 1));
        assert_eq!(code(ErrorKind::Degraded, Outbound), (500, 1));
        assert_eq!(of(ErrorKind::Degraded, Outbound).1, DEGRADED);
        assert_eq!(of(ErrorKind::Rejected, Outbound).1, "detail");
        let text = "channel call error:timeout err: receive request timeout";
        assert_eq!(of(ErrorKind::Timeout, Outbound).1, text);
    }

    #[test]
    fn texts_that_callers_compare_go_through_as_they_are() {
        let failed = Failed { direction: Direction::Outbound, id: 7, meta: &Pairs::default() };
        let e = Exception::of(&CallError::mesh(ErrorKind::Timeout, "hystrix: timeout").verbatim(), failed);
        assert_eq!((e.code, &*e.text, e.errtype), (400, "hystrix: timeout", 1));
    }

    #[test]
    fn no_refers_names_the_request() {
        let meta: Pairs = [("M_p", "s"), ("M_g", "g")].into_iter().collect();
        let text = "No refers for request, RequestID: 7, Request info: map[M_g:g M_p:s]";
        assert_eq!(no_refers(Failed { direction: Direction::Outbound, id: 7, meta: &meta }), text);
    }

    #[test]
    fn only_business_exceptions_are_no_failure() {
        let status = |json: &str| status_of(&[("M_e", json)].into_iter().collect());
        assert_eq!(status(r#"{"errcode":30001,"errtype":2,"errmsg":"x"}"#), Status::Refused(30001));
        assert_eq!(status(r#"{"errcode":400,"errmsg":"x","errtype":1}"#), Status::Failed(400));
        assert_eq!(status(r#"{"errcode":3,"errmsg":"x","errtype":3}"#), Status::Failed(3));
        assert_eq!(status("rubbish"), Status::Failed(500));
        assert_eq!(status_of(&Pairs::default()), Status::Failed(500));
    }
}
