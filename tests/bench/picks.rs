//! What a pick costs, by balancer and number of endpoints.

use std::{hint::black_box, sync::Arc, time::Instant};

use agent::{
    cluster::{Cluster, Parts},
    config,
    kind::BuildCx,
    lb, protocol,
    route::Direction,
};
use model::{Instance, Snapshot};

const PICKS: u64 = 2_000_000;
/// Runs of each figure: the least is shown, as what disturbs a run only adds to it.
const RUNS: usize = 5;
/// Changes of the list before the last column is measured: each replaces one endpoint in a hundred.
const CHANGES: u32 = 100;

/// Prints nanoseconds per pick, through sets that a cluster made of a registry's list. The sets are made alike, so what
/// grows with their size is only the share of what is looked at that the processor's caches hold.
pub fn print() {
    println!("ns/pick with          10       100     1,000    10,000   10,000 after {CHANGES} changes   10,000 to 10");
    for kind in lb::KINDS {
        let mut ns = [10, 100, 1_000, 10_000].map(|n| {
            let cluster = cluster(kind.name);
            cluster.apply(&list(1, 0..n));
            measure(&cluster)
        });
        let changed = cluster(kind.name);
        for i in 0..CHANGES {
            let mut list = list(u64::from(i) + 1, 100 * i..10_000 + 100 * i);
            // Registries promise no order.
            list.instances.rotate_left(i as usize * 7919 % 10_000);
            changed.apply(&list);
        }
        let after = measure(&changed);
        ns.iter_mut().for_each(|ns| *ns = (*ns * 10.0).round() / 10.0);
        let [ten, hundred, thousand, most] = ns;
        let ratio = most / ten;
        println!(
            "{:20} {ten:5.1}   {hundred:7.1}   {thousand:7.1}   {most:7.1}   {after:26.1}   {ratio:12.2}",
            kind.name
        );
    }
}

fn measure(cluster: &Cluster) -> f64 {
    let set = cluster.endpoints();
    let limit = cluster.config.max_in_flight;
    // Nobody is idle, which would be the end of a search for the freest.
    set.endpoints.iter().enumerate().for_each(|(i, endpoint)| endpoint.hot.set_in_flight(1 + i as u32 % 3));
    let run = |picks: u64| {
        let begun = Instant::now();
        for i in 0..picks {
            black_box(set.pick(&[], limit, Some(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        }
        begun.elapsed().as_nanos() as f64 / picks as f64
    };
    run(PICKS / 10);
    (0..RUNS).map(|_| run(PICKS / RUNS as u64)).fold(f64::INFINITY, f64::min)
}

fn cluster(lb: &str) -> Arc<Cluster> {
    let config = config::Cluster { lb: config::Named::plain(lb), filters: Vec::new(), ..config::Cluster::default() };
    let cx = BuildCx { zone: "here".into(), ..BuildCx::default() };
    let kind = protocol::KINDS.iter().find(|kind| kind.name == "motan2").unwrap();
    let parts = Parts {
        key: model::ServiceKey { service: "picked".into(), ..Default::default() },
        direction: Direction::Outbound,
        protocol: kind.name,
        config: &config,
        connector: (kind.build)(&config::Limits::default()).connector(&config, &cx).unwrap(),
        introduce: None,
        own: agent::stream::OwnSockets::default(),
        cx: &cx,
    };
    Arc::new(Cluster::build(parts).unwrap())
}

fn list(revision: u64, range: std::ops::Range<u32>) -> Snapshot {
    let instance = |i: u32| {
        let mut instance = Instance::at(format!("10.{}.{}.{}:80", i >> 16, i >> 8 & 255, i & 255));
        (instance.weight, instance.zone) = (10, "here".into());
        instance
    };
    Snapshot { revision, instances: range.map(instance).collect(), stale: None }
}
