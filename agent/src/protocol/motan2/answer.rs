//! From the end of a call to the frame that its caller sees.

use std::net::SocketAddr;

use bytes::Bytes;

use super::{
    Decimal,
    codec::{Head, kind},
    key,
    outbox::Outbox,
    request::Ticket,
};
use crate::{
    call::{
        Body, CallError, Extra, Motan2Head, Pairs, Response, ResponseHead, Rule, Status,
        exception::{Exception, Failed},
    },
    route::Direction,
};

/// A call that is over.
pub(super) struct Done {
    pub ticket: Ticket,
    pub result: Result<Response, CallError>,
}

impl Done {
    /// Endpoint that answered, or failed to.
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        match &self.result {
            Ok(response) => response.endpoint,
            Err(error) => error.endpoint,
        }
    }
}

/// Writes the answers of one connection.
pub(super) struct Answerer {
    direction: Direction,
    /// Endpoint of the last answer as text: mostly the next answer's too.
    endpoint: Option<(SocketAddr, String)>,
}

impl Answerer {
    pub(super) const fn new(direction: Direction) -> Self {
        Self { direction, endpoint: None }
    }

    /// Appends the answer to a call.
    pub(super) fn write(&mut self, done: Done, out: &mut Outbox) {
        let endpoint = done.endpoint();
        let direction = self.direction;
        let Done { ticket, result } = done;
        let ms = Decimal::of(i64::try_from(ticket.started.elapsed().as_millis()).unwrap_or(i64::MAX));
        let time = Extra { key: key::PROCESS_TIME, value: ms.as_str(), rule: Rule::IfAbsent };
        let forwarded = Extra { key: key::FORWARDED, value: self.text_of(endpoint), rule: Rule::Replace };
        let (status, head, body) = match answer(result) {
            Ok(answer) => answer,
            Err(problem) => {
                let failed = Failed { direction, id: ticket.id, meta: &ticket.meta };
                let json = problem.exception(failed).to_json();
                let thrown = Extra { key: key::EXCEPTION, value: &json, rule: Rule::Replace };
                let head = Head { kind: kind::RESPONSE | kind::PROXY, status: 1, serialization: 0, id: ticket.id };
                out.push(head, &Pairs::default(), &[time, thrown, forwarded], Bytes::new());
                return;
            }
        };
        let mut kind = kind::RESPONSE | kind::PROXY;
        if head.gzip {
            kind |= kind::GZIP;
        }
        let wire = Head { kind, status, serialization: head.serialization, id: ticket.id };
        out.push(wire, &head.meta, &[forwarded, time], body);
    }

    fn text_of(&mut self, endpoint: Option<SocketAddr>) -> &str {
        let Some(endpoint) = endpoint else { return "" };
        if self.endpoint.as_ref().is_none_or(|(last, _)| *last != endpoint) {
            self.endpoint = Some((endpoint, endpoint.to_string()));
        }
        self.endpoint.as_ref().map_or("", |(_, text)| text)
    }
}

/// Why there is nothing to pass on.
enum Problem {
    Error(CallError),
    Exception(Exception),
}

impl Problem {
    fn exception(self, failed: Failed<'_>) -> Exception {
        match self {
            Self::Error(error) => Exception::of(&error, failed),
            Self::Exception(exception) => exception,
        }
    }
}

fn answer(result: Result<Response, CallError>) -> Result<(u8, Motan2Head, Bytes), Problem> {
    let Response { status, head, body, .. } = result.map_err(Problem::Error)?;
    let cannot = |what: &'static str| Problem::Exception(Exception::new(500, what));
    let body = match body {
        Body::Empty => Bytes::new(),
        Body::Full(body) => body,
        Body::Stream(_) => return Err(cannot("convert to response fail. err:a streamed body")),
    };
    match head {
        ResponseHead::Motan2(head) => Ok((u8::from(status != Status::Ok), head, body)),
        // A filter's answer, made up without knowing the protocol.
        ResponseHead::None => match Exception::of_status(status) {
            Some(exception) => Err(Problem::Exception(exception)),
            None => Ok((0, Motan2Head::default(), body)),
        },
        ResponseHead::Http(_) | ResponseHead::Raw(_) => {
            Err(cannot("convert to response fail. err:the endpoint's protocol is not motan2"))
        }
    }
}
