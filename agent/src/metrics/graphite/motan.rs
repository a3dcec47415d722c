//! What motan-go sends: `ROLE.APP.GROUP.byhost.IP.SERVICE.METHOD[.STAT]:VALUE|TYPE` lines in UDP packets.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, anyhow};
use tokio::{
    net::{UdpSocket, lookup_host},
    sync::{mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use super::{
    Form, Source, Status, Target,
    figures::{Bands, Level, Row},
};
use crate::call::Text;

/// motan-go's `messageMaxLen`: a packet grows to this, and beyond it only for a single group of lines.
const PACKET_BYTES: usize = 5 * 1024;
/// How often the agent tells of itself, whatever the interval.
const STATUS_EVERY: Duration = Duration::from_secs(30);
/// Time to find the target's address.
const LOOKUP: Duration = Duration::from_secs(5);

/// Percentiles as motan-go names them.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p75", 0.75), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999), ("p9999", 0.9999)];
const BANDS: [&str; 5] = ["Less50ms", "Less100ms", "Less200ms", "Less500ms", "More500ms"];

/// motan-go's packets over UDP.
struct Motan {
    application: String,
    source: Arc<Source>,
    /// Intervals on their way; one may wait while the last one goes.
    intervals: mpsc::Sender<Vec<Lines>>,
    target: Arc<Target>,
    given: u64,
    done: watch::Receiver<u64>,
    sender: AbortHandle,
    told: Instant,
    before: Status,
}

/// Lines that motan-go keeps together: the address of this host goes into `{}`.
#[derive(Clone, Debug, PartialEq)]
struct Lines {
    /// Before the address: `ROLE.APP.GROUP.byhost.`
    head: String,
    /// After it, one for each line: `.SERVICE.METHOD.STAT:VALUE|TYPE`.
    tails: Vec<String>,
}

pub(super) fn build(target: &Arc<Target>, source: &Arc<Source>) -> Box<dyn Form> {
    let (intervals, waiting) = mpsc::channel(1);
    let (end, done) = watch::channel(0);
    let sender = tokio::spawn(send(target.clone(), waiting, end)).abort_handle();
    // That this run recovers is told once, by its first status.
    let before = Status { recoveries: 0, ..(source.status)() };
    Box::new(Motan {
        application: escape(&source.application),
        source: source.clone(),
        intervals,
        target: target.clone(),
        given: 0,
        done,
        sender,
        told: Instant::now(),
        before,
    })
}

impl Form for Motan {
    fn take(&mut self, rows: &[Row], _: Duration) {
        let mut lines = calls(rows);
        lines.extend(failing(&self.application, self.source.management, &(self.source.failing)()));
        let since = self.told.elapsed();
        if since >= STATUS_EVERY {
            let now = (self.source.status)();
            lines.extend(status(&self.application, &self.before, &now, since));
            (self.before, self.told) = (now, Instant::now());
        }
        if lines.is_empty() {
            return;
        }
        let count: usize = lines.iter().map(|l| l.tails.len()).sum();
        match self.intervals.try_send(lines) {
            Ok(()) => self.given += 1,
            Err(_) => drop(self.target.dropped.fetch_add(count as u64, Relaxed)),
        }
    }

    fn settled(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let given = self.given;
        Box::pin(async move {
            // An error means that the sender is gone, and nothing more will be sent.
            let _ = self.done.wait_for(|done| *done >= given).await;
        })
    }
}

impl Drop for Motan {
    fn drop(&mut self) {
        self.sender.abort();
    }
}

/// motan-go's `Escape`.
fn escape(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// All lines of an interval; only what was touched in it. Rows whose names come out the same are added up.
fn calls(rows: &[Row]) -> Vec<Lines> {
    let mut named: BTreeMap<(String, String), Row> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.counts.total > 0) {
        let (role, suffix) = match (row.side, row.level) {
            (_, Level::Service) => continue,
            ("inbound", Level::Call) => ("motan-server-agent", ""),
            // The endpoint of a provider is the provider: its calls are told once.
            ("inbound", Level::Attempt) => continue,
            // motan-go's filter `clusterMetrics` counts calls, its filter `metrics` attempts.
            (_, Level::Call) => ("motan-client-agent", ".cluster"),
            (_, Level::Attempt) => ("motan-client-agent", ""),
        };
        let head = format!("{role}.{}.{}{suffix}.byhost.", escape(&row.application), escape(&row.group));
        let tail = format!(".{}.{}", escape(&row.service), escape(&row.method));
        match named.get_mut(&(head.clone(), tail.clone())) {
            Some(same) => same.merge(row),
            None => drop(named.insert((head, tail), row.clone())),
        }
    }
    let mut lines = Vec::new();
    for ((head, tail), row) in named {
        let mut counter = |name: &str, n: u64| {
            if n > 0 {
                lines.push(Lines { head: head.clone(), tails: vec![format!("{tail}.{name}:{n}|c")] });
            }
        };
        counter("total_count", row.counts.total);
        counter("biz_error_count", row.counts.refused);
        counter("other_error_count", row.counts.failed);
        let bands = Bands::of(&row.latency);
        for (name, n) in BANDS.iter().zip(bands.each) {
            counter(name, n);
        }
        counter("slow_count", bands.slow);
        let mut tails: Vec<_> =
            QUANTILES.iter().map(|(name, q)| format!("{tail}.{name}:{:.2}|kv", row.quantile_ms(*q))).collect();
        tails.push(format!("{tail}.avg_time:{:.2}|ms", row.mean_ms()));
        lines.push(Lines { head, tails });
    }
    lines
}

/// How the agent itself is, as gauges. What motan-go counts since its last status is counted so here.
fn status(application: &str, before: &Status, now: &Status, since: Duration) -> Vec<Lines> {
    let cpu = now.cpu.saturating_sub(before.cpu).as_secs_f64() / since.as_secs_f64().max(1e-3) * 100.0;
    let gauges = [
        ("memory", now.resident_bytes >> 20),
        ("cpu", cpu as u64),
        ("goroutine_count", now.tasks),
        ("not_found_provider_count", now.unknown_services),
        ("motan_server_connection_count", now.connections),
        ("accesslog_discard_count", now.log_lines_lost.saturating_sub(before.log_lines_lost)),
    ];
    // Told when there is something to tell, as motan-go does.
    let counters = [
        ("panic", now.panics.saturating_sub(before.panics)),
        ("abnormal_exit", now.recoveries.saturating_sub(before.recoveries)),
    ];
    let head = format!("motan-agent.{application}.motan-stat.byhost.");
    let line = |tail: String| Lines { head: head.clone(), tails: vec![tail] };
    let gauges = gauges.into_iter().map(|(name, value)| format!(".status.{name}:{value}|kv"));
    let counters = counters.into_iter().filter(|(_, n)| *n > 0);
    gauges.chain(counters.map(|(name, n)| format!(".status.{name}.total_count:{n}|c"))).map(line).collect()
}

/// motan-go's `runtime-error`: it tells of endpoints that it will not try again by itself. Those here are tried again;
/// what whoever watches this wants to know is that calls failed until an endpoint was left out.
fn failing(application: &str, management: u16, services: &[Text]) -> Vec<Lines> {
    let head = format!("motan-agent.runtime-error.circuit-breaker-{application}.byhost.");
    let line = |service: &Text| {
        let tails = vec![format!(".endpoint.{management}-{}:1|kv", escape(service))];
        Lines { head: head.clone(), tails }
    };
    services.iter().map(line).collect()
}

/// Joins lines to packets as motan-go does: what is kept together never spans two of them.
fn packets(ip: &str, lines: &[Lines]) -> Vec<(String, usize)> {
    let mut packets = vec![(String::new(), 0)];
    for Lines { head, tails } in lines {
        let mut segment = String::new();
        for tail in tails {
            // Writing to a String cannot fail.
            let _ = writeln!(segment, "{head}{ip}{tail}");
        }
        let packet = match packets.last_mut() {
            Some(packet) if packet.0.is_empty() || packet.0.len() + segment.len() <= PACKET_BYTES => packet,
            _ => packets.push_mut((String::new(), 0)),
        };
        packet.0.push_str(&segment);
        packet.1 += tails.len();
    }
    packets.retain(|(_, lines)| *lines > 0);
    packets
}

async fn send(target: Arc<Target>, mut intervals: mpsc::Receiver<Vec<Lines>>, done: watch::Sender<u64>) {
    while let Some(lines) = intervals.recv().await {
        let all: usize = lines.iter().map(|l| l.tails.len()).sum();
        match interval(&target, &lines).await {
            Ok(sent) => {
                target.sent.fetch_add(sent as u64, Relaxed);
                target.dropped.fetch_add((all - sent) as u64, Relaxed);
                if sent > 0 {
                    target.works();
                }
            }
            Err(error) => {
                target.dropped.fetch_add(all as u64, Relaxed);
                target.failed(&error);
            }
        }
        done.send_modify(|n| *n += 1);
    }
}

/// Sends an interval from a socket of its own, as motan-go does: the target's address may have changed.
/// Returns how many lines went out.
async fn interval(target: &Target, lines: &[Lines]) -> anyhow::Result<usize> {
    let address = &target.config.address;
    let found = tokio::time::timeout(LOOKUP, lookup_host(address)).await;
    let found = found.map_err(|_| anyhow!("looking up {address} took more than {LOOKUP:?}"))?;
    let addr = found.with_context(|| format!("cannot find {address}"))?.next();
    let addr = addr.with_context(|| format!("{address} has no address"))?;
    let any: IpAddr = if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.context("cannot open a UDP socket")?;
    socket.connect(addr).await.with_context(|| format!("cannot reach {addr}"))?;
    let ip = socket.local_addr()?.ip().to_string().replace(['.', ':'], "_");
    let mut sent = 0;
    for (packet, lines) in packets(&ip, lines) {
        // An earlier packet that nobody took is told by the next one; one more try sends it.
        let mut gone = socket.send(packet.as_bytes()).await;
        if gone.is_err() {
            target.failures.fetch_add(1, Relaxed);
            gone = socket.send(packet.as_bytes()).await;
        }
        if gone.is_ok() {
            sent += lines;
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Histogram, graphite::figures::Counts};

    fn row(side: &'static str, level: Level, method: &str, ms: &[u64]) -> Row {
        let histogram = Histogram::default();
        ms.iter().for_each(|ms| histogram.record(Duration::from_millis(*ms)));
        Row {
            side,
            service: Text::from_static("com.example.Echo"),
            group: Text::from_static("idc a"),
            application: Text::from_static("my.app"),
            level,
            method: method.into(),
            counts: Counts { total: ms.len() as u64, refused: 1, failed: 0 },
            latency: histogram.summary(),
        }
    }

    #[test]
    fn lines_are_motan_gos() {
        let rows = [
            row("outbound", Level::Service, "", &[1]),
            row("outbound", Level::Attempt, "get.it", &[10, 60, 300]),
            row("inbound", Level::Call, "idle", &[]),
        ];
        let text: String = packets("127_0_0_1", &calls(&rows)).into_iter().map(|p| p.0).collect();
        let name = "motan-client-agent.my_app.idc_a.byhost.127_0_0_1.com_example_Echo.get_it";
        let expected = [
            "total_count:3|c",
            "biz_error_count:1|c",
            "Less50ms:1|c",
            "Less100ms:1|c",
            "Less500ms:1|c",
            "slow_count:1|c",
            "p50:62.91|kv",
            "p75:301.99|kv",
            "p95:301.99|kv",
            "p99:301.99|kv",
            "p999:301.99|kv",
            "p9999:301.99|kv",
            "avg_time:123.33|ms",
        ];
        let expected: String = expected.iter().map(|e| format!("{name}.{e}\n")).collect();
        assert_eq!(text, expected);
        let cluster = calls(&[row("outbound", Level::Call, "m", &[1]), row("inbound", Level::Call, "m", &[1])]);
        let heads: std::collections::BTreeSet<_> = cluster.iter().map(|l| l.head.as_str()).collect();
        let expected = ["motan-client-agent.my_app.idc_a.cluster.byhost.", "motan-server-agent.my_app.idc_a.byhost."];
        assert_eq!(heads.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn packets_stay_below_their_limit_and_histograms_whole() {
        let rows: Vec<_> = (0..50).map(|i| row("outbound", Level::Attempt, &format!("method{i}"), &[1, 2])).collect();
        let lines = calls(&rows);
        let packets = packets("10_0_0_1", &lines);
        assert!(packets.len() > 5);
        for (packet, _) in &packets {
            assert!(packet.len() <= PACKET_BYTES && packet.ends_with('\n'), "{}", packet.len());
            assert_eq!(packet.matches(".p50:").count(), packet.matches(".avg_time:").count());
        }
        assert_eq!(packets.iter().map(|p| p.1).sum::<usize>(), lines.iter().map(|l| l.tails.len()).sum::<usize>());
    }

    #[test]
    fn status_lines_have_motan_gos_names() {
        let before = Status { cpu: Duration::from_secs(1), log_lines_lost: 3, ..Status::default() };
        let now = Status {
            resident_bytes: 9 << 20,
            cpu: Duration::from_secs(4),
            tasks: 12,
            unknown_services: 5,
            connections: 7,
            log_lines_lost: 5,
            panics: 0,
            recoveries: 0,
        };
        let lines = status("demo", &before, &now, Duration::from_secs(30));
        let text: String = packets("127_0_0_1", &lines).into_iter().map(|p| p.0).collect();
        let expected = [
            "memory:9",
            "cpu:10",
            "goroutine_count:12",
            "not_found_provider_count:5",
            "motan_server_connection_count:7",
            "accesslog_discard_count:2",
        ];
        let name = "motan-agent.demo.motan-stat.byhost.127_0_0_1.status";
        assert_eq!(text, expected.iter().map(|e| format!("{name}.{e}|kv\n")).collect::<String>());
        let bad = Status { panics: 2, recoveries: 1, ..now };
        let text: String = packets("127_0_0_1", &status("demo", &now, &bad, Duration::from_secs(30)))
            .into_iter()
            .map(|p| p.0)
            .collect();
        assert!(
            text.contains(&format!("{name}.panic.total_count:2|c\n{name}.abnormal_exit.total_count:1|c\n")),
            "{text}"
        );
    }

    #[test]
    fn services_with_endpoints_that_fail_are_told_as_runtime_errors() {
        let lines = failing("my_app", 8002, &[Text::from_static("com.example.Echo"), Text::from_static("b")]);
        let text: String = packets("127_0_0_1", &lines).into_iter().map(|p| p.0).collect();
        let name = "motan-agent.runtime-error.circuit-breaker-my_app.byhost.127_0_0_1.endpoint.8002";
        assert_eq!(text, format!("{name}-com_example_Echo:1|kv\n{name}-b:1|kv\n"));
        assert_eq!(failing("my_app", 8002, &[]), []);
    }

    #[tokio::test(start_paused = true)]
    async fn the_agent_tells_of_itself_each_half_minute_whatever_the_interval() {
        let (intervals, mut sent) = mpsc::channel(1);
        let status = || Status { tasks: 3, ..Status::default() };
        let source = Source {
            host: String::new(),
            application: "demo".into(),
            name: String::new(),
            subjects: Box::new(Vec::new),
            status: Box::new(status),
            management: 8002,
            failing: Box::new(Vec::new),
        };
        let mut form = Motan {
            application: "demo".to_owned(),
            source: Arc::new(source),
            intervals,
            target: Target::new(crate::config::Graphite::at("x:1", crate::config::GraphiteForm::Motan)),
            given: 0,
            done: watch::channel(0).1,
            sender: tokio::spawn(async {}).abort_handle(),
            told: Instant::now(),
            before: Status::default(),
        };
        let mut told = 0;
        for _ in 0..24 {
            tokio::time::advance(Duration::from_secs(5)).await;
            form.take(&[], Duration::from_secs(5));
            if let Ok(lines) = sent.try_recv() {
                assert_eq!(lines[2].tails, [".status.goroutine_count:3|kv"]);
                told += 1;
            }
        }
        assert_eq!(told, 4);
        // An interval that finds the one before still waiting is dropped and counted.
        form.take(&[row("inbound", Level::Call, "m", &[1])], Duration::ZERO);
        form.take(&[row("inbound", Level::Call, "m", &[1])], Duration::ZERO);
        assert_eq!((form.given, form.target.dropped.load(Relaxed)), (5, 10));
    }
}
