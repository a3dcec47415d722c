//! `sockmesh stat`: how services and their endpoints do, refreshed in place.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Output, Target, block_on,
    client::Client,
    lists::{or_none, protocol, spoken, state},
    print,
    screen::{self, Screen},
    table::{Align, Cell, Style, Table},
    units,
};
use crate::{admin::view, config};

/// Arguments of `stat`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Only services whose name contains this
    pub service: Option<String>,
    /// Print one table and end, as when the output is no terminal
    #[arg(long)]
    pub once: bool,
    /// Time between refreshes
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// How to print it; json is printed once
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// Shortest time between refreshes: humans see no more, and each costs the agent a look at everything.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

fn interval(text: &str) -> Result<Duration, String> {
    let interval = config::duration(text).map_err(|wrong| format!("{}; {}", wrong.problem, wrong.remedy))?;
    if interval < MIN_INTERVAL {
        return Err(format!("at least {MIN_INTERVAL:?}"));
    }
    Ok(interval)
}

/// Runs `sockmesh stat`. In place it goes on until interrupted, also while the agent is away.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        match Screen::open() {
            Some(screen) if !args.once && args.output == Output::Table => refresh(args, client, screen).await,
            _ => once(args, client).await,
        }
    })
}

async fn once(args: &Args, client: Client) -> anyhow::Result<ExitCode> {
    let mut page = fetch(args, client).await?;
    if let Some(wanted) = &args.service
        && page.services.is_empty()
    {
        page = client.get::<view::Stat>("/stat").await?.1;
        let known: Vec<_> = page.services.iter().map(|s| s.service.as_str()).collect();
        bail!("no service contains `{wanted}`; there are {}", known.join(", "));
    }
    match args.output {
        Output::Json => print(&(serde_json::to_string_pretty(&page)? + "\n"))?,
        Output::Table => print(&(picture(&page, screen::color(), None).join("\n") + "\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn refresh(args: &Args, client: Client, mut screen: Screen) -> anyhow::Result<ExitCode> {
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hup = signal(SignalKind::hangup())?;
    // An agent that was never there is a wrong address; one that went away comes back.
    let mut page = fetch(args, client).await?;
    let mut away = false;
    loop {
        let width = screen::size().map(|(columns, _)| columns);
        let mut lines = picture(&page, screen.color(), width);
        if away {
            let mut note = Table::new(&[]);
            note.note(format!("waiting for the agent at {}, the figures are old", client.at), Style::Bad);
            lines.extend(note.lines(screen.color(), width).pop());
        }
        screen.draw(&lines)?;
        tokio::select! {
            () = tokio::time::sleep(args.interval) => {}
            _ = int.recv() => return Ok(ExitCode::SUCCESS),
            _ = term.recv() => return Ok(ExitCode::SUCCESS),
            _ = hup.recv() => return Ok(ExitCode::SUCCESS),
        }
        tokio::select! {
            fetched = fetch(args, client) => match fetched {
                Ok(new) => (page, away) = (new, false),
                Err(_) => away = true,
            },
            _ = int.recv() => return Ok(ExitCode::SUCCESS),
            _ = term.recv() => return Ok(ExitCode::SUCCESS),
        }
    }
}

async fn fetch(args: &Args, client: Client) -> anyhow::Result<view::Stat> {
    let (_, mut page) = client.get::<view::Stat>("/stat").await?;
    if let Some(wanted) = &args.service {
        page.services.retain(|s| s.service.contains(wanted.as_str()));
        page.callers.retain(|c| c.service.contains(wanted.as_str()));
    }
    Ok(page)
}

fn picture(page: &view::Stat, color: super::table::Color, width: Option<usize>) -> Vec<String> {
    let agent = &page.agent;
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("PROTOCOL", Align::Left),
        ("GROUP/ENDPOINT", Align::Left),
        // Room for what these columns usually hold, so that they stand still from picture to picture.
        ("STATE   ", Align::Left),
        ("   RATE", Align::Right),
        ("SUCCESS", Align::Right),
        ("   P50", Align::Right),
        ("   P99", Align::Right),
        ("  P999", Align::Right),
        ("INFLIGHT", Align::Right),
    ]);
    for (service, known) in shown(&page.services) {
        add(&mut table, service, if known { &service.protocol } else { units::NONE });
    }
    if page.services.is_empty() {
        table.note("no service", Style::Faint);
    }
    let mut head = Table::new(&[]);
    head.note(
        format!(
            "{} {}, up {}, capture {}, configuration {}, {} connections, last {:.0} s{}",
            agent.name,
            agent.version,
            units::age(agent.uptime_seconds),
            agent.capture,
            agent.generation,
            agent.connections,
            page.window_seconds,
            if agent.ready { "" } else { ", NOT READY" },
        ),
        if agent.ready { Style::Faint } else { Style::Bad },
    );
    // What is neither the best nor what was asked for needs an explanation.
    if agent.capture != "ebpf" && !agent.capture_reason.starts_with("asked for") {
        head.note(format!("capture {}: {}", agent.capture, agent.capture_reason), Style::Faint);
    }
    // A table of no columns has an empty head.
    let mut lines = head.lines(color, width).split_off(1);
    lines.extend(table.lines(color, width));
    if !page.callers.is_empty() {
        lines.push(String::new());
        lines.extend(callers(&page.callers).lines(color, width));
    }
    lines
}

/// Who used services whose connects go straight to an endpoint, since the counters began.
fn callers(rows: &[view::Caller]) -> Table {
    let mut table = Table::new(&[
        ("CALLER", Align::Left),
        ("SERVICE", Align::Left),
        ("ENDPOINT", Align::Left),
        ("CONNECTS", Align::Right),
        ("REFUSED", Align::Right),
        ("FAILED", Align::Right),
        ("ACTIVE", Align::Right),
        ("SENT", Align::Right),
        ("RECEIVED", Align::Right),
    ]);
    for row in rows {
        let endpoint = row.endpoint.map_or_else(|| units::NONE.to_owned(), |e| e.to_string());
        table.row(vec![
            Cell::new(&row.caller),
            Cell::new(&row.service),
            Cell::new(&endpoint),
            Cell::new(row.connects.to_string()),
            Cell::new(row.refused.to_string()),
            Cell::new(row.failed.to_string()),
            Cell::new(row.active.to_string()),
            Cell::new(units::bytes(row.sent_bytes)),
            Cell::new(units::bytes(row.received_bytes)),
        ]);
    }
    table
}

fn shown(services: &[view::Service]) -> Vec<(&view::Service, bool)> {
    spoken(services, |s| ((&s.service, &s.group, &s.version, &s.direction), s.figures.started))
}

fn add(table: &mut Table, service: &view::Service, spoken: &str) {
    let up = service.endpoints.iter().filter(|e| e.available).count();
    let all = service.endpoints.len();
    let style = if up == 0 {
        Style::Bad
    } else if up == all {
        Style::Good
    } else {
        Style::Plain
    };
    let name = match service.version.as_str() {
        "" => service.service.clone(),
        version => format!("{}:{version}", service.service),
    };
    let mut cells = vec![
        Cell::styled(name, Style::Bold),
        protocol(spoken, &service.direction).into(),
        or_none(&service.group).into(),
        Cell::styled(format!("{up}/{all} up"), style),
    ];
    cells.extend(figures(&service.figures));
    table.row(cells);
    if let Some(reason) = &service.stale {
        table.note(format!("  ! the list of endpoints is old: {reason}"), Style::Bad);
    }
    for endpoint in &service.endpoints {
        let place = match endpoint.group.as_str() {
            "" => format!("  {}", endpoint.address),
            group => format!("  {group}/{}", endpoint.address),
        };
        let mut cells = vec!["".into(), "".into(), place.into(), state(endpoint)];
        cells.extend(figures(&endpoint.figures));
        table.row(cells);
    }
}

fn figures(figures: &view::Figures) -> [Cell; 6] {
    let failing = figures.success.is_some_and(|share| share < 1.0);
    [
        units::rate(figures.rate).into(),
        Cell::styled(units::share(figures.success), if failing { Style::Bad } else { Style::Plain }),
        units::latency(figures.p50_seconds).into(),
        units::latency(figures.p99_seconds).into(),
        units::latency(figures.p999_seconds).into(),
        figures.in_flight.to_string().into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::{super::table::Color, *};

    fn service(protocol: &str, started: u64) -> view::Service {
        let figures = view::Figures {
            rate: 1234.5,
            success: Some(0.99995),
            p50_seconds: Some(0.0012),
            p99_seconds: Some(0.0123),
            p999_seconds: None,
            in_flight: 3,
            started,
            failed: 1,
        };
        let endpoint = |port, state: &str, since| view::Endpoint {
            address: ([10, 0, 0, 1], port).into(),
            group: "idc-a".to_owned(),
            weight: 10,
            available: state == "up",
            state: state.to_owned(),
            reason: None,
            since_seconds: since,
            figures: view::Figures::default(),
        };
        view::Service {
            service: "web".to_owned(),
            group: String::new(),
            version: String::new(),
            direction: "outbound".to_owned(),
            protocol: protocol.to_owned(),
            stale: Some("nodes.yaml:3: broken".to_owned()),
            figures,
            request_bytes: 0,
            response_bytes: 0,
            endpoints: vec![endpoint(81, "up", None), endpoint(82, "out", Some(3.4))],
            filters: Vec::new(),
        }
    }

    fn page(services: Vec<view::Service>) -> view::Stat {
        let agent = view::Agent {
            name: "sockmesh".to_owned(),
            application: "demo".to_owned(),
            version: "0.1.0".to_owned(),
            ready: true,
            uptime_seconds: 61.0,
            capture: "iptables".to_owned(),
            capture_reason: "no eBPF here".to_owned(),
            generation: 1,
            connections: 7,
        };
        view::Stat { agent, window_seconds: 10.0, services, callers: Vec::new() }
    }

    #[test]
    fn endpoints_stand_below_their_service() {
        let lines = picture(&page(vec![service("http", 5)]), Color::Never, None);
        let expected = [
            "sockmesh 0.1.0, up 1m01s, capture iptables, configuration 1, 7 connections, last 10 s",
            "capture iptables: no eBPF here",
            "SERVICE  PROTOCOL  GROUP/ENDPOINT       STATE        RATE  SUCCESS     P50     P99    P999  INFLIGHT",
            "web      http      -                    1/2 up    1.23k/s   99.99%  1.20ms  12.3ms       -         3",
            "  ! the list of endpoints is old: nodes.yaml:3: broken",
            "                     idc-a/10.0.0.1:81  up            0/s        -       -       -       -         0",
            "                     idc-a/10.0.0.1:82  out 3s        0/s        -       -       -       -         0",
        ];
        assert_eq!(lines, expected);
        assert!(picture(&page(Vec::new()), Color::Never, Some(20)).iter().all(|l| l.chars().count() <= 20));
    }

    #[test]
    fn of_a_detected_service_only_what_was_spoken_is_shown() {
        let names = |services: &[view::Service]| -> Vec<String> {
            shown(services).iter().map(|(s, known)| if *known { s.protocol.clone() } else { "-".to_owned() }).collect()
        };
        assert_eq!(names(&[service("motan2", 0), service("http", 5), service("tcp", 0)]), ["http"]);
        assert_eq!(names(&[service("motan2", 0), service("http", 0)]), ["-"]);
        assert_eq!(names(&[service("http", 0)]), ["http"]);
        assert_eq!(names(&[service("motan2", 1), service("tcp", 1)]), ["motan2", "tcp"]);
    }

    #[test]
    fn intervals_are_checked() {
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        assert!(interval("0s").is_err() && interval("soon").is_err());
    }
}
