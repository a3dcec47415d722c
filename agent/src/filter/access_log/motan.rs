//! The line of Motan's own agent: `TIME<TAB>` and fifteen fields with `|` between.

use std::{
    fmt::Write,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use super::Seen;
use crate::{
    call::{
        CallError, Direction, Head, Pairs, Response, ResponseHead, Status, Text,
        exception::{Exception, Failed},
    },
    metrics::rfc3339,
};

/// What the line needs and nobody else keeps.
#[derive(Clone, Debug, Default)]
pub(in crate::filter) struct Noted {
    /// Metadata of the request.
    request: Pairs,
    /// Metadata of the answer, if there is one.
    answer: Option<Pairs>,
}

impl Noted {
    pub(super) fn request(head: &Head) -> Self {
        let request = match head {
            Head::Motan2(head) => head.meta.clone(),
            Head::Http(_) | Head::None => Pairs::default(),
        };
        Self { request, answer: None }
    }

    pub(super) fn answer(&mut self, end: Result<&Response, &CallError>) {
        self.answer = match end.map(|response| &response.head) {
            Ok(ResponseHead::Motan2(head)) => Some(head.meta.clone()),
            _ => None,
        };
    }

    fn of_answer(&self, key: &str) -> Text {
        self.answer.as_ref().and_then(|meta| meta.get(key)).unwrap_or_default()
    }
}

pub(super) fn write(line: &mut String, seen: &Seen<'_>, noted: &Noted, now: SystemTime) {
    let Seen { cluster, call, .. } = seen;
    let outbound = cluster.direction == Direction::Outbound;
    let thrown = match seen.end {
        Ok(Status::Ok) => None,
        Ok(status) => Some((status.code().into(), noted.of_answer("M_e").to_string())),
        Err(error) => {
            let failed = Failed { direction: cluster.direction, id: call.request_id, meta: &noted.request };
            let exception = Exception::of(error, failed);
            Some((exception.code, exception.to_json()))
        }
    };
    let success = thrown.is_none();
    let (code, thrown) = thrown.unwrap_or((i64::from(seen.code), String::new()));
    let (name, role) = match (outbound, seen.attempts) {
        (true, Ok(_)) => ("clusterAccessLog", "client-agent"),
        (true, Err(_)) => ("accessLog", "client-agent"),
        (false, _) => ("accessLog", "server-agent"),
    };
    rfc3339(line, now);
    // Writing to a String cannot fail.
    let _ = write!(line, "\t{name}|{role}|{}|", call.request_id.cast_signed());
    field(line, &call.service);
    field(line, &call.method);
    field(line, &noted.request.get("M_md").unwrap_or_default());
    if let Some(remote) = remote(seen) {
        let _ = write!(line, "{remote}");
    }
    let ms = |time: Duration| time.as_millis();
    let own = noted.of_answer("M_pt").parse::<u64>().unwrap_or(0);
    let (sent, got, total) = (seen.request_bytes, seen.response_bytes, ms(seen.total));
    let _ = write!(line, "|{sent}|{got}|{own}|{total}|{success}|{code}|");
    // Bars inside are left alone: readers know it as the last but one.
    line.extend(thrown.chars().map(|c| if c.is_control() { ' ' } else { c }));
    line.push('|');
    field(line, &noted.of_answer("upstreamCode"));
    line.pop();
}

/// Whom the line is about besides this agent: the endpoint of an attempt, nobody in particular of a call, and
/// the caller of a local program, with the port at which it listens.
fn remote(seen: &Seen<'_>) -> Option<SocketAddr> {
    if seen.cluster.direction == Direction::Inbound {
        let port = seen.call.local.map_or(0, |local| local.port());
        return seen.call.peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), port));
    }
    seen.endpoint.filter(|_| seen.attempts.is_err())
}

/// A value from the wire stays one field of one line.
fn field(line: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '|' => line.push_str("%7C"),
            c if c.is_control() => line.push(' '),
            c => line.push(c),
        }
    }
    line.push('|');
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{
        call::{ErrorKind, Motan2Head},
        filter::{Outcome, Record, sample},
    };

    fn record() -> Record {
        let mut record = sample();
        record.call.service = "kit.EchoService".into();
        record.call.method = "echoString".into();
        record.call.request_id = 1_795_247_826_436_882_433;
        record.call.local = Some(SocketAddr::from(([10, 0, 0, 9], 9982)));
        (record.request_bytes, record.response_bytes) = (16, 16);
        record.total = Duration::from_micros(1900);
        record
    }

    fn noted(request: &[(&str, &str)], answer: &[(&str, &str)]) -> Noted {
        let pairs = |of: &[(&str, &str)]| of.iter().copied().collect::<Pairs>();
        let head = Motan2Head { meta: pairs(request), ..Motan2Head::default() };
        Noted { answer: Some(pairs(answer)), ..Noted::request(&Head::Motan2(head)) }
    }

    fn line(seen: &Seen<'_>, noted: &Noted) -> String {
        let mut line = String::new();
        write(&mut line, seen, noted, UNIX_EPOCH + Duration::from_millis(1_795_247_826_445));
        let (time, rest) = line.split_once('\t').unwrap();
        assert_eq!(time, "2026-11-21T07:57:06.445Z");
        assert_eq!(rest.matches('|').count(), 14, "{rest}");
        rest.to_owned()
    }

    #[test]
    fn lines_are_those_of_a_real_run() {
        let record = record();
        let at = Some(SocketAddr::from(([127, 0, 0, 1], 18982)));
        let attempt = Seen { attempts: Err(1), endpoint: at, ..Seen::call(&record) };
        assert_eq!(
            line(&attempt, &noted(&[], &[("M_pt", "0")])),
            "accessLog|client-agent|1795247826436882433|kit.EchoService|echoString||127.0.0.1:18982|16|16|0|1|true|200||"
        );
        let thrown = r#"{"errcode":30412,"errmsg":"kit biz \"quoted\" 中文","errtype":2}"#;
        let biz = Seen {
            end: Ok(Status::Refused(30412)),
            request_bytes: 0,
            response_bytes: 0,
            total: Duration::ZERO,
            ..attempt
        };
        let expected = format!(
            "accessLog|client-agent|1795247826436882433|kit.EchoService|echoString||127.0.0.1:18982|0|0|0|0|false|30412|{thrown}|"
        );
        assert_eq!(line(&biz, &noted(&[], &[("M_e", thrown)])), expected);
    }

    #[test]
    fn a_call_names_no_endpoint_and_a_provider_its_caller() {
        let mut record = record();
        let noted = noted(&[("M_md", "java.lang.String")], &[("M_pt", "7"), ("upstreamCode", "201")]);
        let rest = "|1795247826436882433|kit.EchoService|echoString|java.lang.String|";
        let call = line(&Seen::call(&record), &noted);
        assert_eq!(call, format!("clusterAccessLog|client-agent{rest}|16|16|7|1|true|200||201"));
        let info = ClusterInfoOf::inbound(&record);
        record.cluster = info;
        for attempts in [Ok(1), Err(1)] {
            let seen = Seen { attempts, ..Seen::call(&record) };
            let expected = format!("accessLog|server-agent{rest}127.0.0.1:9982|16|16|7|1|true|200||201");
            assert_eq!(line(&seen, &noted), expected);
        }
    }

    struct ClusterInfoOf;

    impl ClusterInfoOf {
        fn inbound(record: &Record) -> std::sync::Arc<crate::filter::ClusterInfo> {
            let info = crate::filter::ClusterInfo::clone(&record.cluster);
            std::sync::Arc::new(crate::filter::ClusterInfo { direction: Direction::Inbound, ..info })
        }
    }

    #[test]
    fn what_the_agent_throws_itself_is_what_the_caller_sees_and_nothing_forges_a_field() {
        let mut record = record();
        record.outcome = Outcome::Failed(CallError::mesh(ErrorKind::NoEndpoint, ""));
        record.call.method = "a|b\nc".into();
        let text = "No refers for request, RequestID: 1795247826436882433, Request info: map[M_p:kit]";
        let expected = format!(
            "clusterAccessLog|client-agent|1795247826436882433|kit.EchoService|a%7Cb c|||16|16|0|1|false|1001|\
             {{\"errcode\":1001,\"errmsg\":\"{text}\",\"errtype\":1}}|"
        );
        let noted = Noted { answer: None, ..noted(&[("M_p", "kit")], &[]) };
        assert_eq!(line(&Seen::call(&record), &noted), expected);
        let web = Noted::request(&Head::None);
        assert!(line(&Seen::call(&record), &web).contains("|1001|"));
    }
}
