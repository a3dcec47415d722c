//! `access_log`: one line per call, or per attempt.

mod arguments;
mod motan;

use std::{
    cell::RefCell,
    fmt::Write,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use self::arguments::{Mask, SHOWN_BYTES};
pub(super) use self::{arguments::Came, motan::Noted};
use super::{CallCx, ClusterInfo, Filter, Notes, Outcome, Record, Trying, Verdict, options::Level};
use crate::{
    call::{Body, Call, CallError, Direction, Request, Response, Status},
    kind::{self, BuildCx, Value},
    metrics::{AccessLogWriter, digits, rfc3339},
};

/// Longest value of a field that comes from the wire; longer ones end in `…`.
const FIELD_BYTES: usize = 256;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// `key=value` pairs.
    #[default]
    Text,
    /// One JSON object.
    Json,
    /// The fifteen fields of Motan's own agent.
    Motan,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    format: Format,
    level: Level,
    /// Shows the arguments of Motan2 calls.
    arguments: bool,
    /// Of these not: fields by name, arguments as `#1`.
    mask: Vec<String>,
}

struct AccessLog {
    format: Format,
    level: Level,
    /// What of the arguments is not shown; none: no arguments are.
    mask: Option<Mask>,
    writer: Option<Arc<AccessLogWriter>>,
}

/// What a line is about: a call, or one attempt of it.
struct Seen<'a> {
    cluster: &'a ClusterInfo,
    call: &'a Call,
    endpoint: Option<SocketAddr>,
    code: u32,
    end: Result<Status, &'a CallError>,
    /// Attempts of the call, or which of them this is.
    attempts: Result<u32, u32>,
    request_bytes: u64,
    response_bytes: u64,
    to_head: Option<Duration>,
    total: Duration,
}

impl<'a> Seen<'a> {
    fn call(record: &'a Record) -> Self {
        Self {
            cluster: &record.cluster,
            call: &record.call,
            endpoint: record.endpoint,
            code: record.code,
            end: match &record.outcome {
                Outcome::Answered(status) => Ok(*status),
                Outcome::Failed(error) => Err(error),
            },
            attempts: Ok(record.attempts),
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            to_head: record.to_head,
            total: record.total,
        }
    }

    fn attempt(cx: &'a CallCx, attempt: &Trying<'a>, end: Result<&'a Response, &'a CallError>) -> Self {
        let total = attempt.started.elapsed();
        Self {
            cluster: &cx.cluster,
            call: attempt.call,
            endpoint: Some(attempt.to.addr),
            code: end.map_or(0, super::code_of),
            end: end.map(|response| response.status),
            attempts: Err(attempt.number),
            request_bytes: attempt.call.request_bytes,
            // A streamed answer is still to come.
            response_bytes: match end.map(|response| &response.body) {
                Ok(Body::Full(bytes)) => bytes.len() as u64,
                _ => 0,
            },
            to_head: end.ok().map(|_| total),
            total,
        }
    }
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let Options { format, level, arguments, mask } = kind::options(options)?;
    anyhow::ensure!(
        !arguments || format != Format::Motan,
        "arguments: the line of Motan's own agent has no place for them; write `format: json` or `text`"
    );
    anyhow::ensure!(arguments || mask.is_empty(), "mask: arguments are not shown; write `arguments: true` as well");
    let mask = Mask::new(mask)?;
    Ok(Arc::new(AccessLog { format, level, mask: arguments.then_some(mask), writer: cx.access_log.clone() }))
}

thread_local! {
    /// One line under construction; kept, so that a line costs no allocation.
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

impl AccessLog {
    fn write(&self, seen: &Seen<'_>, noted: Option<&Noted>, came: Option<&Came>) {
        // Without a writer nothing is served: a configuration is being checked.
        let Some(writer) = &self.writer else { return };
        let now = SystemTime::now();
        LINE.with_borrow_mut(|line| {
            line.clear();
            if self.format == Format::Motan {
                motan::write(line, seen, noted.unwrap_or(&Noted::default()), now);
            } else {
                let began = now.checked_sub(seen.total).unwrap_or(UNIX_EPOCH);
                let arguments = self.mask.as_ref().map(|mask| came.and_then(|came| mask.show(came)));
                Fields { line, format: self.format, first: true }.write(seen, began, arguments);
            }
            writer.line(line.as_bytes());
        });
    }

    /// Whether attempts are told. Towards a local program a call is its attempt: once is enough.
    fn tells_attempts(&self, direction: Direction) -> bool {
        self.level == Level::Attempt || self.level == Level::Both && direction == Direction::Outbound
    }
}

impl Filter for AccessLog {
    fn on_request(&self, cx: &mut CallCx, req: &mut Request) -> Verdict {
        if self.mask.is_some() {
            // The first filter of several has what the caller sent.
            cx.notes.arguments = cx.notes.arguments.take().or_else(|| Came::of(req).map(Box::new));
        }
        if self.format == Format::Motan {
            cx.notes.logged = Some(Box::new(Noted::request(&req.head)));
        }
        Verdict::Continue
    }

    fn on_attempt_end(&self, cx: &CallCx, attempt: &Trying<'_>, end: Result<&Response, &CallError>) {
        if !self.tells_attempts(cx.cluster.direction) {
            return;
        }
        let noted = cx.notes.logged.as_deref().map(|noted| {
            let mut noted = noted.clone();
            noted.answer(end);
            noted
        });
        self.write(&Seen::attempt(cx, attempt, end), noted.as_ref(), cx.notes.arguments.as_deref());
    }

    fn on_response(&self, cx: &mut CallCx, end: &mut Result<Response, CallError>) {
        if let Some(noted) = &mut cx.notes.logged {
            noted.answer(end.as_ref());
        }
    }

    fn on_end(&self, record: &Record) {
        if self.level != Level::Attempt {
            let Notes { logged, arguments, .. } = &record.notes;
            self.write(&Seen::call(record), logged.as_deref(), arguments.as_deref());
        }
    }
}

/// Writes one line field by field.
struct Fields<'a> {
    line: &'a mut String,
    format: Format,
    first: bool,
}

impl Fields<'_> {
    /// `arguments`: none where they are not wanted, none within where they cannot be read.
    fn write(mut self, record: &Seen<'_>, began: SystemTime, arguments: Option<Option<String>>) {
        let Seen { cluster, call, .. } = record;
        if self.format == Format::Json {
            self.line.push('{');
        }
        self.key("time");
        self.quoted(|line| rfc3339(line, began));
        self.text("direction", cluster.direction.name());
        self.text("protocol", cluster.protocol);
        self.text("service", &cluster.service);
        self.text("group", if cluster.key.group.is_empty() { &call.group } else { &cluster.key.group });
        self.text("method", &call.method);
        self.text("path", &call.path);
        self.text("application", &call.application);
        self.address("caller", call.peer);
        self.address("endpoint", record.endpoint);
        self.number("code", record.code);
        let outcome = match record.end {
            Ok(status) if status.is_failure() => "failed",
            Ok(_) => "answered",
            Err(error) => error.kind.name(),
        };
        self.text("outcome", outcome);
        match record.attempts {
            Ok(all) => self.number("attempts", all),
            Err(this) => self.number("attempt", this),
        }
        self.number("request_bytes", record.request_bytes);
        self.number("response_bytes", record.response_bytes);
        match record.to_head {
            Some(to_head) => self.milliseconds("head_ms", to_head),
            None => self.value("head_ms", None::<u64>, digits::decimal),
        }
        self.milliseconds("total_ms", record.total);
        self.value("request_id", (call.request_id != 0).then_some(call.request_id), digits::decimal);
        if let Err(error) = record.end {
            self.text("error", &error.message);
        }
        match arguments {
            None => {}
            Some(None) => self.value("arguments", None::<u64>, digits::decimal),
            Some(Some(json)) => self.json("arguments", &json),
        }
        if self.format == Format::Json {
            self.line.push('}');
        }
    }

    fn key(&mut self, key: &'static str) {
        let first = std::mem::replace(&mut self.first, false);
        let (between, quote, is) = match self.format {
            Format::Text | Format::Motan => (" ", "", "="),
            Format::Json => (",", "\"", ":"),
        };
        for part in [if first { "" } else { between }, quote, key, quote, is] {
            self.line.push_str(part);
        }
    }

    /// A value that needs no escaping.
    fn quoted(&mut self, value: impl FnOnce(&mut String)) {
        let quote = if self.format == Format::Json { "\"" } else { "" };
        self.line.push_str(quote);
        value(self.line);
        self.line.push_str(quote);
    }

    /// A value from the wire or the configuration: whatever is in it, it stays one field of one line.
    fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        let plain = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\' && b != b'=';
        match self.format {
            Format::Text if value.is_empty() => self.line.push('-'),
            Format::Text if value.len() <= FIELD_BYTES && value != "-" && value.bytes().all(plain) => {
                self.line.push_str(value);
            }
            _ => escaped(self.line, value),
        }
    }

    /// JSON as it is where the line is JSON and it is not too long, else as text.
    fn json(&mut self, key: &'static str, json: &str) {
        self.key(key);
        if self.format == Format::Json && json.len() <= SHOWN_BYTES {
            // Its strings may have what some readers take for a line end.
            json.chars().for_each(|c| if is_odd(c) { escape(self.line, c) } else { self.line.push(c) });
        } else {
            escaped_up_to(self.line, json, SHOWN_BYTES);
        }
    }

    fn address(&mut self, key: &'static str, value: Option<SocketAddr>) {
        self.value(key, value, digits::address);
    }

    /// A value that needs no escaping, or that there is none.
    fn value<T>(&mut self, key: &'static str, value: Option<T>, write: impl FnOnce(&mut String, T)) {
        self.key(key);
        match (value, self.format) {
            (Some(value), _) => self.quoted(|line| write(line, value)),
            (None, Format::Json) => self.line.push_str("null"),
            (None, _) => self.line.push('-'),
        }
    }

    fn number(&mut self, key: &'static str, value: impl Into<u64>) {
        self.key(key);
        digits::decimal(self.line, value.into());
    }

    fn milliseconds(&mut self, key: &'static str, value: Duration) {
        self.key(key);
        digits::decimal(self.line, u64::try_from(value.as_millis()).unwrap_or(u64::MAX));
        self.line.push('.');
        digits::padded(self.line, u64::from(value.subsec_micros() % 1000), 3);
    }
}

/// A JSON string of at most [`FIELD_BYTES`] bytes of `value`.
fn escaped(line: &mut String, value: &str) {
    escaped_up_to(line, value, FIELD_BYTES);
}

/// Beside the C0 and C1 controls the two separators that some readers take for a line end.
fn is_odd(c: char) -> bool {
    c.is_control() || c == '\u{2028}' || c == '\u{2029}'
}

fn escape(line: &mut String, c: char) {
    let _ = write!(line, "\\u{:04x}", c as u32);
}

fn escaped_up_to(line: &mut String, value: &str, bytes: usize) {
    let end = value.floor_char_boundary(bytes);
    line.push('"');
    for c in value[..end].chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            c if is_odd(c) => escape(line, c),
            c => line.push(c),
        }
    }
    if end < value.len() {
        line.push('…');
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{CallError, ErrorKind},
        filter::sample,
    };

    fn line(record: &Record, format: Format) -> String {
        let mut line = String::new();
        let began = UNIX_EPOCH + Duration::from_millis(1_795_255_955_123);
        Fields { line: &mut line, format, first: true }.write(&Seen::call(record), began, None);
        line
    }

    #[test]
    fn text_is_key_value_pairs_in_the_order_of_the_manual() {
        let expected = "time=2026-11-21T10:12:35.123Z direction=outbound protocol=motan2 service=web group=idc-a \
             method=echo path=- application=- caller=127.0.0.1:40000 endpoint=10.0.0.1:8081 code=200 outcome=answered \
             attempts=1 request_bytes=10 response_bytes=2000 head_ms=0.900 total_ms=1.500 request_id=2748";
        assert_eq!(line(&sample(), Format::Text), expected);
    }

    #[test]
    fn json_has_the_same_fields() {
        let mut record = sample();
        record.endpoint = None;
        record.to_head = None;
        record.code = 0;
        record.outcome = Outcome::Failed(CallError::mesh(ErrorKind::NoEndpoint, "no \"endpoint\"\n"));
        let value: serde_json::Value = serde_json::from_str(&line(&record, Format::Json)).unwrap();
        assert_eq!(value["time"], "2026-11-21T10:12:35.123Z");
        assert_eq!((&value["service"], &value["endpoint"]), (&"web".into(), &serde_json::Value::Null));
        assert_eq!((&value["code"], &value["outcome"]), (&0.into(), &"no_endpoint".into()));
        assert_eq!(value["error"], "no \"endpoint\"\n");
        let text = line(&record, Format::Text);
        let keys: Vec<_> = text.split(' ').filter_map(|f| Some(f.split_once('=')?.0)).collect();
        assert_eq!(keys.len(), value.as_object().unwrap().len());
        assert!(keys.iter().all(|k| value.get(k).is_some()), "{text}");
    }

    #[test]
    fn nothing_from_the_wire_can_forge_a_line_or_a_field() {
        let mut record = sample();
        record.call.method = "a\r\nb code=200\u{1b}[31m\u{85}\u{2028}".into();
        record.call.application = "x".repeat(100_000).into();
        let text = line(&record, Format::Text);
        assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
        assert!(text.contains(r#"method="a\u000d\u000ab code=200\u001b[31m\u0085\u2028""#), "{text}");
        assert!(text.len() < 800);
        let value: serde_json::Value = serde_json::from_str(&line(&record, Format::Json)).unwrap();
        assert_eq!(value["method"].as_str(), Some(record.call.method.as_str()));
    }

    #[test]
    fn lines_go_to_the_writer_and_options_are_checked() {
        let path = std::env::temp_dir().join(format!("sockmesh-access-{}", std::process::id()));
        let writer = Arc::new(AccessLogWriter::start(Some(path.clone()), 10, crate::config::Rotate::Never).unwrap());
        let cx = BuildCx { access_log: Some(writer.clone()), ..BuildCx::default() };
        let json: Value = serde_yaml::from_str("{format: json}").unwrap();
        build(&json, &cx).unwrap().on_end(&sample());
        build(&Value::Null, &cx).unwrap().on_end(&sample());
        assert!(writer.flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("{\"time\":") && lines[1].starts_with("time="), "{text}");
        let wrong: Value = serde_yaml::from_str("{format: xml}").unwrap();
        let error = build(&wrong, &cx).err().unwrap().to_string();
        assert!(error.contains("xml") && error.contains("json"), "{error}");
        build(&Value::Null, &BuildCx::default()).unwrap().on_end(&sample());
    }

    #[test]
    fn arguments_are_shown_where_they_are_wanted_without_what_is_masked() {
        use crate::{
            filter::testing::{Bench, motan},
            serialize::{Value as Typed, simple},
        };
        let path = std::env::temp_dir().join(format!("sockmesh-arguments-{}", std::process::id()));
        let writer = Arc::new(AccessLogWriter::start(Some(path.clone()), 10, crate::config::Rotate::Never).unwrap());
        let cx = BuildCx { access_log: Some(writer.clone()), ..BuildCx::default() };
        let lines = |options: &str, long: usize| {
            let b = Bench::with(build, options, &cx);
            let secret = Typed::StringMap(vec![("pin".into(), "1234".into()), ("to".into(), "a\u{2028}b".into())]);
            let body = simple::write(&[Typed::Int64(5), secret, Typed::from(&*"x".repeat(long))]).unwrap();
            let mut req = motan("pay");
            req.body = Body::Full(body);
            let crate::call::Head::Motan2(head) = &mut req.head else { unreachable!() };
            head.serialization = simple::NUMBER;
            b.begin(req).end(Ok(b.good())).unwrap();
            assert!(writer.flush(Duration::from_secs(10)));
            std::fs::read_to_string(&path).unwrap().lines().last().unwrap().to_owned()
        };
        let json = lines("{format: json, arguments: true, mask: [PIN]}", 1);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let expected = serde_json::json!([{"$int64": 5}, {"pin": "***", "to": "a\u{2028}b"}, "x"]);
        assert_eq!(value["arguments"], expected, "{json}");
        let text = lines("{arguments: true, mask: ['#2']}", 5000);
        assert!(text.contains(r#"arguments="[{\"$int64\":5},\"***\",\"xxx"#) && text.ends_with("x…\""), "{text}");
        let long: serde_json::Value = serde_json::from_str(&lines("{format: json, arguments: true}", 5000)).unwrap();
        assert!(long["arguments"].as_str().unwrap().starts_with("[{\"$int64\":5}"));
        assert!(lines("{arguments: true}", 100_000).ends_with(" arguments=-"), "too long to be read");
        assert!(!lines("{}", 1).contains("arguments"));
        let _ = std::fs::remove_file(&path);

        let wrong = |yaml| build(&serde_yaml::from_str(yaml).unwrap(), &cx).err().unwrap().to_string();
        assert!(wrong("{format: motan, arguments: true}").starts_with("arguments: the line of Motan's own agent"));
        assert!(wrong("{mask: [pin]}").contains("write `arguments: true`"));
    }
}
