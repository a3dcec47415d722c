//! `sockmesh endpoints`, `sockmesh sockets` and `sockmesh names`.

use std::{collections::HashMap, hash::Hash, net::SocketAddr, process::ExitCode};

use super::{
    Output, Target, block_on, print, screen,
    table::{Align, Cell, Style, Table},
    units,
};
use crate::admin::view;

/// Arguments of `endpoints`, `sockets` and `names`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Only of services whose name contains this
    pub service: Option<String>,
    /// How to print them
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

impl Args {
    fn wants(&self, service: &str) -> bool {
        self.service.as_ref().is_none_or(|wanted| service.contains(wanted.as_str()))
    }
}

/// Runs `sockmesh endpoints`.
pub fn endpoints(args: &Args) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        let (_, mut page) = client.get::<view::Endpoints>("/endpoints").await?;
        page.endpoints.retain(|row| args.wants(&row.service));
        page.troubles.retain(|trouble| args.wants(&trouble.service));
        show(args.output, &page, endpoint_table)
    })
}

/// Runs `sockmesh sockets`.
pub fn sockets(args: &Args) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        let (_, mut page) = client.get::<view::Sockets>("/sockets").await?;
        page.sockets.retain(|row| args.wants(&row.service));
        show(args.output, &page, socket_table)
    })
}

/// Runs `sockmesh names`.
pub fn names(args: &Args) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        let (_, mut page) = client.get::<view::Names>("/names").await?;
        page.names.retain(|row| args.wants(&row.service));
        show(args.output, &page, name_table)
    })
}

fn show<T: serde::Serialize>(output: Output, page: &T, table: fn(&T) -> Table) -> anyhow::Result<ExitCode> {
    match output {
        Output::Json => print(&(serde_json::to_string_pretty(page)? + "\n"))?,
        Output::Table => {
            // Not cut: these lists are read once, and piped.
            let mut text = table(page).lines(screen::color(), None).join("\n");
            text.push('\n');
            print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `up`, or `out 12s`.
pub(super) fn state(endpoint: &view::Endpoint) -> Cell {
    match (endpoint.state.as_str(), endpoint.since_seconds) {
        ("out", Some(since)) => Cell::styled(format!("out {}", units::age(since)), Style::Bad),
        ("up", _) => Cell::styled("up", Style::Good),
        ("passed over", _) => Cell::styled("passed over", Style::Bad),
        (other, _) => Cell::styled(other, Style::Faint),
    }
}

fn endpoint_table(page: &view::Endpoints) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("PROTOCOL", Align::Left),
        ("GROUP", Align::Left),
        ("ADDRESS", Align::Left),
        ("WEIGHT", Align::Right),
        ("STATE", Align::Left),
        ("SINCE", Align::Right),
        ("INFLIGHT", Align::Right),
        ("ATTEMPTS", Align::Right),
        ("FAILED", Align::Right),
        ("WHY", Align::Left),
    ]);
    let rows = spoken(&page.endpoints, |row| {
        let e = &row.endpoint;
        ((&row.service, &row.direction, e.address, &e.group), e.figures.started)
    });
    for (row, known) in rows {
        let e = &row.endpoint;
        let style = match e.state.as_str() {
            "up" => Style::Good,
            "out" | "passed over" => Style::Bad,
            _ => Style::Faint,
        };
        table.row(vec![
            Cell::styled(&row.service, Style::Bold),
            protocol(if known { &row.protocol } else { units::NONE }, &row.direction).into(),
            or_none(&e.group).into(),
            e.address.to_string().into(),
            e.weight.to_string().into(),
            Cell::styled(&e.state, style),
            e.since_seconds.map_or(units::NONE.to_owned(), units::age).into(),
            e.figures.in_flight.to_string().into(),
            e.figures.started.to_string().into(),
            e.figures.failed.to_string().into(),
            e.reason.clone().unwrap_or_default().into(),
        ]);
    }
    for trouble in &page.troubles {
        table.note(format!("! {}: {}", trouble.service, trouble.message), Style::Bad);
    }
    table
}

fn name_table(page: &view::Names) -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("IPV4", Align::Left),
        ("IPV6", Align::Left),
        ("PORT", Align::Right),
        ("SERVICE", Align::Left),
    ]);
    for row in &page.names {
        table.row(vec![
            Cell::styled(&row.name, Style::Bold),
            row.ipv4.map_or(units::NONE.to_owned(), |ip| ip.to_string()).into(),
            row.ipv6.map_or(units::NONE.to_owned(), |ip| ip.to_string()).into(),
            row.port.to_string().into(),
            row.service.as_str().into(),
        ]);
    }
    if page.names.is_empty() {
        table.note("no names: they need `capture: ebpf`, `capture.dns` and a service", Style::Faint);
    }
    table
}

fn socket_table(page: &view::Sockets) -> Table {
    let mut table = Table::new(&[
        ("PID", Align::Right),
        ("PROCESS", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("VIA", Align::Left),
        ("PROTOCOL", Align::Left),
        ("SERVICE", Align::Left),
        ("ENDPOINT", Align::Left),
        ("CALLS", Align::Right),
        ("SENT", Align::Right),
        ("RECEIVED", Align::Right),
        ("AGE", Align::Right),
        ("REDIRECT", Align::Left),
    ]);
    for row in &page.sockets {
        let known = |known: bool, text: String| if known { text } else { units::NONE.to_owned() };
        table.row(vec![
            known(row.pid != 0, row.pid.to_string()).into(),
            Cell::styled(or_none(&row.process), Style::Bold),
            row.peer.to_string().into(),
            row.destination.to_string().into(),
            if row.captured { "captured" } else { "port" }.into(),
            or_none(&row.protocol).into(),
            or_none(&row.service).into(),
            row.endpoint.map_or(units::NONE.to_owned(), |e: SocketAddr| e.to_string()).into(),
            row.calls.to_string().into(),
            // As the program sees it: what it sent, the agent received.
            units::bytes(row.received_bytes).into(),
            units::bytes(row.sent_bytes).into(),
            units::age(row.age_seconds).into(),
            row.redirect.as_deref().unwrap_or(units::NONE).into(),
        ]);
    }
    if page.sockets.is_empty() {
        table.note("no connection now", Style::Faint);
    }
    table
}

/// A service whose protocol is detected comes once for each protocol: those that were spoken are shown,
/// or the first, without a protocol, while none was. `of` gives what is the same for all of them, and calls
/// begun. With each row comes whether its protocol is known.
pub(super) fn spoken<'a, T, K: Eq + Hash>(rows: &'a [T], of: impl Fn(&'a T) -> (K, u64)) -> Vec<(&'a T, bool)> {
    // How many there are of each, and whether all are silent.
    let mut twins: HashMap<K, (u32, bool)> = HashMap::new();
    for row in rows {
        let (key, started) = of(row);
        let (count, silent) = twins.entry(key).or_insert((0, true));
        *count += 1;
        *silent &= started == 0;
    }
    let shown = rows.iter().filter_map(|row| {
        let (key, started) = of(row);
        let (count, silent) = twins.get_mut(&key)?;
        let known = started > 0 || *count == 1;
        // Of several that are silent the first takes the place of all.
        (started > 0 || std::mem::take(silent)).then_some((row, known))
    });
    shown.collect()
}

/// `http`, or `http in` for a service that is provided here.
pub(super) fn protocol(protocol: &str, direction: &str) -> String {
    if direction == "inbound" { format!("{protocol} in") } else { protocol.to_owned() }
}

pub(super) fn or_none(text: &str) -> &str {
    if text.is_empty() { units::NONE } else { text }
}

#[cfg(test)]
mod tests {
    use super::{super::table::Color, *};

    #[test]
    fn endpoints_say_why_they_are_out() {
        let page: view::Endpoints = serde_json::from_value(serde_json::json!({
            "endpoints": [{
                "service": "web", "direction": "inbound", "protocol": "http", "stale": null,
                "address": "10.0.0.1:80", "group": "", "weight": 10, "available": false, "state": "out",
                "reason": "connections failed", "since_seconds": 75.2,
                "rate": 0.0, "success": null, "p50_seconds": null, "p99_seconds": null, "p999_seconds": null,
                "in_flight": 1, "started": 20, "failed": 3,
            }],
            "troubles": [{"service": "web", "message": "the list is old: x"}],
        }))
        .unwrap();
        assert_eq!(
            endpoint_table(&page).lines(Color::Never, None)[1..],
            [
                "web      http in   -      10.0.0.1:80      10  out    1m15s         1        20       3  connections failed",
                "! web: the list is old: x",
            ]
        );
    }

    #[test]
    fn sockets_are_shown_as_the_program_sees_them() {
        let page: view::Sockets = serde_json::from_value(serde_json::json!({ "sockets": [{
            "pid": 7, "process": "curl", "peer": "127.0.0.1:4000", "destination": "240.0.0.1:80", "captured": true,
            "protocol": "", "service": "", "endpoint": null, "calls": 0,
            "received_bytes": 10, "sent_bytes": 2048, "age_seconds": 3.0, "redirect": "on",
        }]}))
        .unwrap();
        assert_eq!(
            socket_table(&page).lines(Color::Never, None)[1],
            "  7  curl     127.0.0.1:4000  240.0.0.1:80  captured  -         -        -             0   10B   2.00KiB   3s  on"
        );
    }
}
