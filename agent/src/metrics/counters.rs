//! What is counted of the agent itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One counter as exporters see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// Metric name, `_total` included.
    pub name: &'static str,
    /// The one label that tells rows of the same name apart, if there are several.
    pub label: Option<(&'static str, &'static str)>,
    /// What it counts, one sentence.
    pub help: &'static str,
    /// Count since the agent started.
    pub value: u64,
}

/// Calls of this process so far that named a service, group or version nobody configured. They have no cluster
/// whose counters they could be in.
pub static UNKNOWN_SERVICES: AtomicU64 = AtomicU64::new(0);

/// Panics of this process so far, once [`count_panics`] was called.
pub static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics from now on. What is said of them stays as it is.
pub fn count_panics() {
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Relaxed);
        said(panic);
    }));
}

macro_rules! counters {
    ($($field:ident: $name:literal $({$label:literal = $is:literal})?, $help:literal;)*) => {
        /// Counters of the agent itself. They only grow; whoever sees the event adds one.
        #[derive(Debug, Default)]
        pub struct AgentCounters {
            $(#[doc = $help] pub $field: AtomicU64,)*
        }

        impl AgentCounters {
            /// All counters; rows of one name stand together.
            pub fn rows(&self) -> Vec<CounterRow> {
                vec![$(CounterRow {
                    name: $name,
                    label: None $(.or(Some(($label, $is))))?,
                    help: $help,
                    value: self.$field.load(Relaxed),
                },)*]
            }
        }
    };
}

counters! {
    accepted: "sockmesh_connections_accepted_total", "Connections accepted on any data listener.";
    accept_paused: "sockmesh_accept_paused_total", "Times accepting paused: all connections that limits allow were held, or descriptors or memory ran out.";
    not_captured: "sockmesh_connections_not_captured_total", "Connections on a captured listener that no hook brought.";
    passed_through: "sockmesh_connections_passed_through_total", "Captured connections whose service was gone, carried straight to where they wanted to go.";
    detected_motan2: "sockmesh_detected_total" {"protocol" = "motan2"}, "Undeclared connections by what their first bytes said.";
    detected_http: "sockmesh_detected_total" {"protocol" = "http"}, "Undeclared connections by what their first bytes said.";
    detected_tcp: "sockmesh_detected_total" {"protocol" = "tcp"}, "Undeclared connections by what their first bytes said.";
    names_udp: "sockmesh_names_questions_total" {"transport" = "udp"}, "Questions for names that programs asked, by transport.";
    names_tcp: "sockmesh_names_questions_total" {"transport" = "tcp"}, "Questions for names that programs asked, by transport.";
    names_answered: "sockmesh_names_answered_total", "Of them, those under .mesh, answered by the agent.";
    names_forwarded: "sockmesh_names_forwarded_total", "Of them, those passed on to the resolver that the program asked.";
    names_failed: "sockmesh_names_failed_total", "Of those passed on, the ones that got no answer in time, or for which there was no room.";
    reloads_ok: "sockmesh_config_reloads_total" {"outcome" = "ok"}, "Reloads of the configuration by outcome.";
    reloads_failed: "sockmesh_config_reloads_total" {"outcome" = "failed"}, "Reloads of the configuration by outcome.";
}

impl AgentCounters {
    /// Counts what detection found: a name in `protocol::KINDS`.
    pub fn detected(&self, protocol: &str) {
        let counter = match protocol {
            "motan2" => &self.detected_motan2,
            "http" => &self.detected_http,
            _ => &self.detected_tcp,
        };
        counter.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_name_stand_together_with_one_help() {
        let counters = AgentCounters::default();
        counters.detected("http");
        let rows = counters.rows();
        assert_eq!(rows.iter().find(|r| r.label == Some(("protocol", "http"))).map(|r| r.value), Some(1));
        for (i, row) in rows.iter().enumerate() {
            let last = rows.iter().rposition(|r| r.name == row.name).unwrap();
            for between in &rows[i..=last] {
                assert_eq!((between.name, between.help), (row.name, row.help));
            }
            assert!(row.name.ends_with("_total"), "{}", row.name);
        }
    }
}
