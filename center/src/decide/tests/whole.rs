//! All parts of a centre in virtual time: agents that report, servers with a planted limit, and what comes of it.

use std::collections::BTreeMap;

use model::{
    Instance, ServiceKey,
    center::{
        CommandScope, CommandState, Confidence, Heartbeat, PoolPolicy, Registration, Registrations, Report, Sample,
        Side,
    },
    command::Commands as Text,
};

use super::super::*;
use crate::{
    app::Center,
    config::{self, StoreChoice},
};

const SERVICE: &str = "com.shop.Cart";
/// Calls a second that each instance serves; it refuses the rest.
const LIMIT: f64 = 100.0;

struct Site {
    center: Arc<Center>,
    data: std::path::PathBuf,
    instances: BTreeMap<String, Vec<String>>,
    sequence: u64,
}

impl Site {
    async fn start(policy: PoolPolicy) -> Self {
        let name = format!("center-decide-{}-{}", std::process::id(), fastrand::u64(..));
        let data = std::env::temp_dir().join(name);
        let config = config::Config {
            data: data.clone(),
            store: StoreChoice { kind: "memory".into(), options: model::kind::Value::Null },
            pools: Config { policies: vec![policy], ..Config::default() },
            ..config::Config::default()
        };
        let center = Center::build(config).await.unwrap();
        let mut instances: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (i, group) in ["idc-a", "idc-b"].into_iter().enumerate() {
            let addresses: Vec<String> = (1..=2).map(|n| format!("10.{i}.0.{n}:8080")).collect();
            register(&center, group, &addresses).await;
            instances.insert(group.to_owned(), addresses);
        }
        Self { center, data, instances, sequence: 0 }
    }

    /// Percent of the calls of `home` by group, as its command text says.
    fn shares(&self, home: &str) -> Vec<(String, f64)> {
        let (_, text) = self.center.registry.text(&CommandScope::Group(home.to_owned()));
        let text = Text::parse(&text.unwrap_or_default()).unwrap();
        let groups = text.traffic(SERVICE).map(|command| command.groups.clone()).unwrap_or_default();
        if groups.is_empty() {
            return vec![(home.to_owned(), 100.0)];
        }
        let sum: f64 = groups.iter().map(|g| f64::from(g.weight.unwrap_or(1))).sum();
        groups.iter().map(|g| (g.group.clone(), f64::from(g.weight.unwrap_or(1)) / sum * 100.0)).collect()
    }

    /// Callers of both groups call for two seconds, obeying commands, and all agents tell what they saw.
    async fn two_seconds(&mut self, demand: [f64; 2]) {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut load: BTreeMap<String, f64> = BTreeMap::new();
        for (home, rate) in ["idc-a", "idc-b"].into_iter().zip(demand) {
            for (group, percent) in self.shares(home) {
                *load.entry(group).or_default() += rate * percent / 100.0;
            }
        }
        self.sequence += 1;
        let sample = |side, group: &str, instance: &str, rate: f64, limit: f64| {
            let (calls, served) = ((rate * 2.0).round() as u64, (rate.min(limit) * 2.0).round() as u64);
            let (group, instance) = (group.to_owned(), instance.to_owned());
            let mut sample = Sample { side, service: SERVICE.into(), group, instance, calls, ..Sample::default() };
            sample.failed = calls - served.min(calls);
            sample.times.add(20_000, served.min(calls));
            sample.times.add(1_000, sample.failed);
            sample
        };
        let mut seen = Vec::new();
        for (group, addresses) in &self.instances {
            let rate = load.get(group).copied().unwrap_or(0.0);
            let each = rate / addresses.len() as f64;
            seen.push(sample(Side::Outbound, group, "", rate, LIMIT * addresses.len() as f64));
            let own: Vec<Sample> = addresses.iter().map(|a| sample(Side::Inbound, group, a, each, LIMIT)).collect();
            self.report(&format!("{group}/agent"), own);
            let beat = Heartbeat { agent: format!("{group}/agent"), generation: 1 };
            self.center.registry.heartbeat(&Actor::anyone(String::new()), &beat).await.unwrap();
        }
        // Calls to nobody fail.
        let missing = load.iter().filter(|(group, _)| !self.instances.contains_key(*group));
        seen.extend(missing.map(|(group, rate)| sample(Side::Outbound, group, "", *rate, 0.0)));
        self.report("callers/agent", seen);
    }

    fn report(&self, agent: &str, samples: Vec<Sample>) {
        let agent = agent.to_owned();
        let sequence = self.sequence;
        self.center.monitor.report(Report { agent, window_seconds: 2.0, sequence, samples, ..Report::default() });
    }

    async fn minutes(&mut self, minutes: u32, demand: [f64; 2]) {
        for _ in 0..minutes * 30 {
            self.two_seconds(demand).await;
        }
    }

    /// As over a day: from a tenth of what `idc-a` takes to above it and back.
    async fn day(&mut self) {
        for i in 0..600 {
            let wave = (1.0 - (f64::from(i) / 600.0 * std::f64::consts::TAU).cos()) / 2.0;
            self.two_seconds([20.0 + 220.0 * wave, 30.0]).await;
        }
    }

    fn pool(&self, group: &str) -> Pool {
        self.center.decider.pool(SERVICE, group).unwrap()
    }

    fn text(&self) -> String {
        let shares = self.shares("idc-a");
        shares.iter().map(|(group, percent)| format!("{group}:{percent:.0}")).collect::<Vec<_>>().join(" ")
    }
}

/// The agent of a group says what it provides.
async fn register(center: &Center, group: &str, addresses: &[String]) {
    let registration = |address: &String| Registration {
        key: ServiceKey { service: SERVICE.into(), group: group.into(), version: String::new() },
        protocol: "motan2".into(),
        instance: Instance::at(address),
        application: "cart".into(),
        parameters: BTreeMap::new(),
        available: true,
    };
    let all = Registrations {
        agent: format!("{group}/agent"),
        ttl_ms: 30_000,
        generation: 1,
        registrations: addresses.iter().map(registration).collect(),
    };
    let answer = center.registry.register(&Actor::anyone(String::new()), all).await.unwrap();
    assert_eq!(answer.refused, []);
}

impl Drop for Site {
    fn drop(&mut self) {
        // There may be none.
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

#[tokio::test(start_paused = true)]
async fn from_figures_to_a_switch_and_back() {
    let manual = PoolPolicy { redundancy_percent: 0.0, ..PoolPolicy::default() };
    let mut site = Site::start(manual.clone()).await;
    // Nobody has seen a limit.
    site.minutes(5, [40.0, 30.0]).await;
    let quiet = site.pool("idc-a");
    assert_eq!(quiet.instances, 2);
    assert!((quiet.rate - 40.0).abs() < 1.0 && (quiet.load - 40.0).abs() < 1.0, "{quiet:?}");
    assert_eq!(quiet.capacity.unwrap().confidence, Confidence::LowerBound);
    site.day().await;
    let known = site.pool("idc-a").capacity.unwrap();
    assert_eq!(known.confidence, Confidence::High, "{known:?}");
    assert!((known.per_instance / LIMIT - 1.0).abs() < 0.1, "{known:?}");
    let sibling = site.pool("idc-b").capacity.unwrap();
    assert!(sibling.confidence == Confidence::Low && sibling.basis.starts_with("as in group idc-a"), "{sibling:?}");
    // What was proposed meanwhile was withdrawn.
    site.minutes(3, [40.0, 30.0]).await;
    assert_eq!(site.center.commands.active(SERVICE), []);
    // The standing example, first proposed.
    site.minutes(2, [0.8 * 2.0 * known.per_instance, 60.0]).await;
    let proposed = site.center.commands.active(SERVICE);
    assert_eq!((proposed.len(), proposed[0].state), (1, CommandState::Proposed));
    assert_eq!(site.text(), "idc-a:100");
    // Now it may.
    let policy = PoolPolicy { service: SERVICE.into(), switch: true, ..manual };
    site.center.decider.set_policy(&Actor::center(), policy).await.unwrap();
    site.center.commands.undo(&Actor::center(), proposed[0].id, "it may do so itself").await.unwrap();
    site.minutes(3, [0.8 * 2.0 * known.per_instance, 60.0]).await;
    assert_eq!(site.text(), "idc-a:80 idc-b:20");
    let (a, b) = (site.pool("idc-a"), site.pool("idc-b"));
    assert!((a.water_percent.unwrap() - 64.0).abs() < 2.0 && a.level == "normal", "{a:?}");
    assert!(b.water_percent.unwrap() <= 60.0, "{b:?}");
    let given = site.center.commands.active(SERVICE);
    assert_eq!((given[0].author.as_str(), given[0].state), ("centre", CommandState::Active));
    site.minutes(20, [0.8 * 2.0 * known.per_instance, 60.0]).await;
    assert_eq!(site.center.commands.active(SERVICE).len(), 1, "it stays");
    site.minutes(4, [80.0, 60.0]).await;
    assert_eq!(site.text(), "idc-a:100");
    assert_eq!(site.center.commands.active(SERVICE), []);
    let lost = site
        .center
        .capacity
        .what_if(&["idc-a", "idc-b"].map(|group| site.center.decider.policy(SERVICE, group)), &["idc-a".to_owned()]);
    assert_eq!(lost.pools.len(), 1);
    assert!((lost.pools[0].load - 140.0).abs() < 3.0, "{lost:?}");
    assert_eq!((lost.fails.len(), lost.needed.len()), (0, 1), "70 % of what it takes: {lost:?}");
}

#[tokio::test(start_paused = true)]
async fn agents_that_fall_silent_change_nothing() {
    let policy = PoolPolicy { switch: true, capacity: Some(LIMIT), ..PoolPolicy::default() };
    let mut site = Site::start(policy).await;
    site.minutes(3, [160.0, 40.0]).await;
    assert_eq!(site.text(), "idc-a:80 idc-b:20", "what a policy states counts at once");
    // No agent tells anything, and no call is seen.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        for group in ["idc-a", "idc-b"] {
            let beat = Heartbeat { agent: format!("{group}/agent"), generation: 1 };
            site.center.registry.heartbeat(&Actor::anyone(String::new()), &beat).await.unwrap();
        }
    }
    assert_eq!(site.text(), "idc-a:80 idc-b:20");
}

#[tokio::test(start_paused = true)]
async fn a_data_centre_that_dies_gives_its_calls_and_gets_them_back() {
    let policy = PoolPolicy { switch: true, capacity: Some(LIMIT), ..PoolPolicy::default() };
    let mut site = Site::start(policy).await;
    site.minutes(3, [80.0, 20.0]).await;
    assert_eq!(site.text(), "idc-a:100");
    // Its agent and its instances are silent, and callers elsewhere tell that their calls fail.
    let addresses = site.instances.remove("idc-a").unwrap();
    let mut alarmed = false;
    for _ in 0..60 {
        site.two_seconds([80.0, 20.0]).await;
        alarmed |= site.center.alerts.firing("").iter().any(|alert| alert.rule == "pool-fatal");
    }
    assert_eq!(site.text(), "idc-b:100");
    assert!(alarmed, "people are told as well");
    let given = site.center.commands.active(SERVICE);
    assert!(given[0].asked.reason.starts_with("no instance can be called in idc-a, callers want 80/s"), "{given:?}");
    let advice = site.pool("idc-a").advice.unwrap_or_default();
    assert!(advice.contains("100 % of its calls are moved away"), "{advice}");
    site.minutes(10, [80.0, 20.0]).await;
    assert_eq!(site.text(), "idc-b:100");
    // They are back, and say so.
    register(&site.center, "idc-a", &addresses).await;
    site.instances.insert("idc-a".to_owned(), addresses);
    site.minutes(5, [80.0, 20.0]).await;
    assert_eq!(site.text(), "idc-a:100", "{:?}", site.pool("idc-a"));
    assert_eq!(site.center.commands.active(SERVICE), []);
}
