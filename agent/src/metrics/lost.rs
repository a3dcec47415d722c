//! [`LostCalls`]: calls and connections that reached no service, kept so that they can be explained.

use std::{
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::call::{Call, Direction};

/// Rows kept; of more, those that were seen last.
const KEPT: usize = 64;
/// Longest text that is kept of what comes from the wire.
const TEXT_BYTES: usize = 256;

/// Calls of this process that named a service, group or version nobody configured, and captured connections to
/// addresses without a service. They have no cluster whose stories they could be in.
pub static LOST: LostCalls = LostCalls(Mutex::new(Vec::new()));

/// Calls that asked for the same and got the same answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LostCall {
    /// How many.
    pub count: u64,
    /// When the last one came, in seconds since 1970.
    pub at: f64,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// Service asked for; empty where only an address was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Group asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Version asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Method of the last one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Application of the last one's caller.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub application: String,
    /// Id of the last one; 0 where the protocol has none.
    pub request_id: u64,
    /// Caller of the last one.
    pub peer: Option<SocketAddr>,
    /// The address that it dialed.
    pub dialed: Option<SocketAddr>,
    /// The rule that was looked for.
    pub rule: String,
    /// What the caller was answered, or what became of the connection.
    pub answered: String,
}

/// A bounded table of them.
#[derive(Debug)]
pub struct LostCalls(Mutex<Vec<LostCall>>);

impl LostCalls {
    /// Counts a call. `told` gives rule and answer, and is asked when it is the first of its kind.
    pub fn call(&self, call: &Call, direction: Direction, told: impl FnOnce() -> (String, String)) {
        self.add(
            |row| {
                row.direction == direction.name()
                    && is_text(&row.service, &call.service)
                    && is_text(&row.group, &call.group)
                    && is_text(&row.version, &call.version)
            },
            |row| {
                (row.peer, row.dialed, row.request_id) = (call.peer, call.local, call.request_id);
                for (text, is) in [(&mut row.method, &call.method), (&mut row.application, &call.application)] {
                    if !is_text(text, is) {
                        *text = cut(is);
                    }
                }
            },
            || {
                let (rule, answered) = told();
                LostCall {
                    direction: direction.name().to_owned(),
                    service: cut(&call.service),
                    group: cut(&call.group),
                    version: cut(&call.version),
                    rule: cut(&rule),
                    answered: cut(&answered),
                    ..LostCall::default()
                }
            },
        );
    }

    /// Counts a connection that was brought here for `dialed`, where no service is.
    pub fn connection(&self, peer: SocketAddr, dialed: SocketAddr, direction: Direction) {
        self.add(
            |row| row.service.is_empty() && row.dialed == Some(dialed) && row.direction == direction.name(),
            |row| row.peer = Some(peer),
            || LostCall {
                direction: direction.name().to_owned(),
                dialed: Some(dialed),
                rule: format!("an {} rule for the address {dialed}", direction.name()),
                answered: format!("nothing: the connection went straight on to {dialed}"),
                ..LostCall::default()
            },
        );
    }

    /// The rows, the one seen last at the end.
    pub fn rows(&self) -> Vec<LostCall> {
        self.0.lock().clone()
    }

    fn add(
        &self,
        is_same: impl Fn(&LostCall) -> bool,
        update: impl FnOnce(&mut LostCall),
        new: impl FnOnce() -> LostCall,
    ) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut rows = self.0.lock();
        // From the end: the same call comes again soon.
        let known = rows.iter().rposition(is_same);
        let mut row = known.map_or_else(new, |i| rows.remove(i));
        (row.count, row.at) = (row.count + 1, at);
        update(&mut row);
        if rows.len() >= KEPT {
            rows.remove(0);
        }
        rows.push(row);
    }
}

/// Whether `kept` is what is kept of `text`.
fn is_text(kept: &str, text: &str) -> bool {
    kept == text || text.len() > TEXT_BYTES && kept == cut(text)
}

fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_BYTES);
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Text;

    fn call(service: &str, method: &str) -> Call {
        let mut call = Call::new(Text::from(service), Text::from(method));
        call.request_id = 7;
        call
    }

    #[test]
    fn the_same_question_is_one_row_and_the_table_is_bounded() {
        let lost = LostCalls(Mutex::default());
        let told = || ("rule".to_owned(), "answer".to_owned());
        lost.call(&call("a", "x"), Direction::Outbound, told);
        lost.call(&call("b", "x"), Direction::Outbound, told);
        lost.call(&call("a", "y"), Direction::Outbound, || unreachable!("known"));
        lost.call(&call("a", "y"), Direction::Inbound, told);
        let rows = lost.rows();
        let seen: Vec<_> = rows.iter().map(|r| (&*r.service, &*r.direction, r.count, &*r.method)).collect();
        assert_eq!(seen, [("b", "outbound", 1, "x"), ("a", "outbound", 2, "y"), ("a", "inbound", 1, "y")]);
        assert_eq!((&*rows[0].rule, &*rows[0].answered, rows[0].request_id), ("rule", "answer", 7));

        let to = "10.0.0.1:80".parse().unwrap();
        for port in 1..=3 {
            lost.connection(SocketAddr::from(([10, 0, 0, 9], port)), to, Direction::Outbound);
        }
        let last = lost.rows().pop().unwrap();
        assert_eq!((last.count, last.peer, last.dialed), (3, "10.0.0.9:3".parse().ok(), Some(to)));

        let long = "s".repeat(10 << 20);
        lost.call(&call(&long, &long), Direction::Outbound, told);
        lost.call(&call(&long, &long), Direction::Outbound, || unreachable!("known"));
        let last = lost.rows().pop().unwrap();
        assert_eq!((last.count, last.service.len(), last.method.len()), (2, 259, 259));
        for i in 0..1000 {
            lost.call(&call(&i.to_string(), ""), Direction::Outbound, told);
        }
        assert_eq!((lost.rows().len(), &*lost.rows()[KEPT - 1].service), (KEPT, "999"));
    }
}
