use std::{collections::HashMap, net::SocketAddr, sync::atomic::AtomicUsize};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{TcpListener, UdpSocket},
};

use super::*;
use crate::metrics::Ending;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn source(stats: &Arc<ServiceStats>) -> Source {
    let subject = Subject {
        side: "outbound",
        service: "web".into(),
        group: "idc-a".into(),
        application: "demo".into(),
        stats: stats.clone(),
    };
    Source {
        host: "host.a".to_owned(),
        application: "demo".into(),
        name: "edge".to_owned(),
        subjects: Box::new(move || vec![subject.clone()]),
        status: Box::new(Status::default),
        management: 8002,
        failing: Box::new(Vec::new),
    }
}

fn call(stats: &ServiceStats, ms: u64) {
    let row = stats.methods.row("echo", 64);
    row.ended(Ending::answered(200, false));
    row.latency.record(Duration::from_millis(ms));
    stats.succeeded.fetch_add(1, Relaxed);
    stats.latency.record(Duration::from_millis(ms));
}

fn plain(addr: SocketAddr, queue: usize) -> Graphite {
    let interval = Duration::from_millis(100);
    Graphite { prefix: "p.{host}".to_owned(), interval, queue, ..Graphite::at(addr.to_string(), GraphiteForm::Plain) }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Reads lines until `enough` of what was read, summed up by name.
async fn read(listener: &TcpListener, enough: impl Fn(&HashMap<String, f64>) -> bool) -> HashMap<String, f64> {
    let (io, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut lines = BufReader::new(io).lines();
    let mut sums: HashMap<String, f64> = HashMap::new();
    while !enough(&sums) {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().expect("not ended");
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(words.len(), 3, "{line}");
        *sums.entry(words[0].to_owned()).or_default() += words[1].parse::<f64>().unwrap();
    }
    sums
}

#[tokio::test]
async fn every_call_is_in_one_interval_and_the_last_one_comes_with_the_stop() {
    let stats = Arc::new(ServiceStats::default());
    call(&stats, 5);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut exporters = Exporters::new(source(&stats));
    exporters.apply(&[plain(listener.local_addr().unwrap(), 1000)]);
    let name = "p.host_a.outbound.web.idc-a.echo.count";
    // What was counted before the start belongs to no interval: wait for one to pass.
    let target = exporters.targets().pop().unwrap();
    until("an interval passed", || target.sent.load(Relaxed) + target.waiting.load(Relaxed) > 0).await;
    for _ in 0..7 {
        call(&stats, 5);
    }
    let sums = read(&listener, |sums| sums.get(name).is_some_and(|n| *n >= 7.0)).await;
    assert_eq!(sums[name], 7.0);
    // The reader has dropped the connection; what was sent to it is sent again.
    until("the end of the connection is seen", || target.failures.load(Relaxed) > 0).await;
    for _ in 0..3 {
        call(&stats, 5);
    }
    let reading = read(&listener, |sums| sums.get(name).is_some_and(|n| *n >= 3.0));
    let (sums, ()) = tokio::join!(reading, exporters.finish());
    assert!(sums[name] >= 3.0);
    assert!(exporters.targets().is_empty());
}

#[tokio::test]
async fn a_target_that_is_away_costs_a_queue_and_counted_drops() {
    let stats = Arc::new(ServiceStats::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let mut exporters = Exporters::new(source(&stats));
    exporters.apply(&[plain(addr, 100)]);
    let target = exporters.targets().pop().unwrap();
    until("lines are dropped", || {
        call(&stats, 1);
        target.dropped.load(Relaxed) > 50
    })
    .await;
    assert!(target.waiting.load(Relaxed) <= 100);
    assert!(target.failures.load(Relaxed) > 0 && !target.connected.load(Relaxed));
    // Back again: what waits comes, then what happens now.
    let listener = TcpListener::bind(addr).await.unwrap();
    let sums = read(&listener, |sums| sums.len() > 20).await;
    assert!(sums.keys().all(|name| name.starts_with("p.host_a.outbound.web.idc-a.")), "{sums:?}");
    assert!(target.connected.load(Relaxed));
    // Another configuration ends what ran: the port is left alone.
    exporters.apply(&[]);
    until("the target is gone", || Arc::strong_count(&target) == 1).await;
}

#[tokio::test]
async fn a_frozen_target_holds_nobody_up() {
    let stats = Arc::new(ServiceStats::default());
    for i in 0..200 {
        stats.methods.row(&format!("m{i}"), 1000).ended(Ending::answered(200, false));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut exporters = Exporters::new(source(&stats));
    exporters.apply(&[plain(listener.local_addr().unwrap(), 1000)]);
    let target = exporters.targets().pop().unwrap();
    let (mut io, _) = listener.accept().await.unwrap();
    // Nobody reads: the buffers of the kernel fill, then the queue.
    let calls = AtomicUsize::new(0);
    until("lines are dropped", || {
        for i in 0..200 {
            stats.methods.row(&format!("m{i}"), 1000).ended(Ending::answered(200, false));
        }
        calls.fetch_add(1, Relaxed);
        target.dropped.load(Relaxed) > 5000
    })
    .await;
    // One interval is longer than the queue, and kept whole.
    assert!(target.waiting.load(Relaxed) < 4000, "{target:?}");
    let began = Instant::now();
    exporters.finish().await;
    assert!(began.elapsed() < PATIENCE, "a stop waits for it a second at most");
    let mut sink = Vec::new();
    let _ = io.read_to_end(&mut sink).await;
    assert!(!sink.is_empty());
}

#[tokio::test]
async fn motan_packets_come_by_udp() {
    let stats = Arc::new(ServiceStats::default());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut exporters = Exporters::new(source(&stats));
    let config = Graphite {
        interval: Duration::from_millis(100),
        ..Graphite::at(socket.local_addr().unwrap().to_string(), GraphiteForm::Motan)
    };
    exporters.apply(&[config]);
    let mut packet = [0; 8192];
    // Calls until the first packet: those before the exporter's own start are not told.
    let n = loop {
        call(&stats, 60);
        tokio::select! {
            n = socket.recv(&mut packet) => break n.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    };
    let text = std::str::from_utf8(&packet[..n]).unwrap();
    let name = "motan-client-agent.demo.idc-a.cluster.byhost.127_0_0_1.web.echo.";
    assert!(text.lines().all(|line| line.starts_with(name)), "{text}");
    assert!(text.contains("echo.p99:62.91|kv\n") && text.contains("echo.avg_time:60.00|ms\n"), "{text}");
    exporters.finish().await;
}
