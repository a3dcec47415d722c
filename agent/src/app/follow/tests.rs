//! With a registry that says what the test wants.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::*;
use crate::{
    cluster::Parts,
    config,
    endpoint::{Connector, Endpoint},
    filter::Direction,
    kind::BuildCx,
    registry::{Guards, ReferFilter, ReferRule},
    switcher::Switchers,
};

/// Holds a list for each group and a text for each scope.
#[derive(Default)]
struct Says {
    lists: Mutex<HashMap<String, watch::Sender<Arc<Snapshot>>>>,
    texts: Mutex<HashMap<Scope, watch::Sender<Arc<CommandText>>>>,
}

impl Says {
    fn list(&self, group: &str) -> watch::Sender<Arc<Snapshot>> {
        self.lists.lock().entry(group.to_owned()).or_default().clone()
    }

    fn text(&self, scope: &Scope) -> watch::Sender<Arc<CommandText>> {
        self.texts.lock().entry(scope.clone()).or_default().clone()
    }

    fn endpoints(&self, group: &str, addresses: &[&str]) {
        let list = self.list(group);
        let instances = addresses.iter().copied().map(Instance::at).collect();
        let revision = list.borrow().revision + 1;
        list.send_replace(Arc::new(Snapshot { revision, instances, stale: None }));
    }

    fn command(&self, scope: &Scope, text: Option<&str>) {
        let channel = self.text(scope);
        let revision = channel.borrow().revision + 1;
        channel.send_replace(Arc::new(CommandText { revision, text: text.map(str::to_owned), stale: None }));
    }
}

impl Registry for Says {
    fn watch(&self, service: &ServiceKey) -> List {
        self.list(&service.group).subscribe()
    }

    fn commands(&self, scope: &Scope) -> Option<Text> {
        Some(self.text(scope).subscribe())
    }
}

struct Nobody;

impl Connector for Nobody {
    fn call<'a>(
        &'a self,
        _: &'a Arc<Endpoint>,
        _: &'a mut crate::call::Request,
    ) -> futures_util::future::BoxFuture<'a, Result<crate::call::Response, crate::call::CallError>> {
        unreachable!("nobody calls")
    }

    fn default_timeout(&self) -> Duration {
        Duration::from_secs(1)
    }
}

struct Bench {
    says: Arc<Says>,
    cluster: Arc<Cluster>,
    stale: Arc<StaleReasons>,
    switchers: Switchers,
    refers: ReferFilter,
    heard: watch::Receiver<bool>,
    _task: tokio::task::JoinHandle<()>,
}

const OWN: &str = "bars";

fn group(name: &str) -> Scope {
    Scope::Group(name.to_owned())
}

fn bench(says: Says, mix: &[&str]) -> Bench {
    let key = ServiceKey { service: "bars.BarService".into(), group: OWN.into(), version: String::new() };
    let config = config::Cluster { lb: config::Named::plain("round_robin"), ..config::Cluster::default() };
    let cluster = Cluster::build(Parts {
        key,
        direction: Direction::Outbound,
        protocol: "motan2",
        config: &config,
        connector: Arc::new(Nobody),
        introduce: None,
        own: crate::stream::OwnSockets::default(),
        cx: &BuildCx::default(),
    });
    let (says, cluster, switchers) = (Arc::new(says), Arc::new(cluster.unwrap()), Switchers::default());
    let registry: Arc<dyn Registry> = says.clone();
    let sources = Sources {
        registries: vec![("r".to_owned(), registry)],
        instances: Vec::new(),
        mix_groups: command::group_shares(mix.iter().copied()),
        application: "shop".to_owned(),
    };
    let shared = Shared {
        stale: Arc::default(),
        guards: Guards::default(),
        board: Board::new(switchers.clone()),
        own: Some("10.9.9.9".parse().unwrap()),
        refers: ReferFilter::default(),
    };
    let refers = shared.refers.clone();
    let (tell, heard) = watch::channel(false);
    let stale = shared.stale.clone();
    let follower = Follower::new(cluster.clone(), sources, shared, tell);
    let task = tokio::spawn(follower.keep_up());
    Bench { says, cluster, stale, switchers, refers, heard, _task: task }
}

impl Bench {
    /// Groups and last bytes of addresses in use.
    fn used(&self) -> String {
        let set = self.cluster.endpoints();
        let shown = set.endpoints.iter().map(|e| format!("{}/{}", e.group, e.addr));
        shown.collect::<Vec<_>>().join(" ")
    }

    async fn until(&self, what: &str, fits: impl Fn(&Self) -> bool) {
        let wait = async {
            while !fits(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(found.is_ok(), "{what}: {} by {:?}", self.used(), self.cluster.steering());
    }

    /// How many of `n` picks go to each group.
    fn dealt(&self, n: usize) -> BTreeMap<String, usize> {
        let set = self.cluster.endpoints();
        let mut counts = BTreeMap::new();
        for _ in 0..n {
            let index = set.pick(&[], usize::MAX, None).unwrap();
            *counts.entry(set.endpoints[index].group.to_string()).or_default() += 1;
        }
        counts
    }
}

fn two_groups() -> Says {
    let says = Says::default();
    says.endpoints(OWN, &["127.0.0.1:1", "127.0.0.2:1"]);
    says.endpoints("bars-b", &["127.0.0.3:1"]);
    says
}

const SWITCH: &str = r#"{"clientCommandList":[{"index":1,"pattern":"bars.*","mergeGroups":["bars:1","bars-b:3"]}]}"#;

#[tokio::test(start_paused = true)]
async fn weighted_groups_are_dealt_exactly_and_deletion_is_obeyed() {
    let it = bench(two_groups(), &[]);
    assert_eq!(it.used(), "bars/127.0.0.1:1 bars/127.0.0.2:1", "known at once");
    it.says.command(&group(OWN), Some(SWITCH));
    it.until("both groups", |it| it.cluster.endpoints().endpoints.len() == 3).await;
    for _ in 0..10 {
        assert_eq!(it.dealt(40), BTreeMap::from([("bars".to_owned(), 10), ("bars-b".to_owned(), 30)]));
    }
    assert_eq!(it.cluster.steering().by.as_deref(), Some("group bars, index 1 (`bars.*`): bars:1 bars-b:3"));
    // A group that loses all its endpoints is left out; the registry's guard would hold them, were it there.
    it.says.command(&group(OWN), None);
    it.until("the own group", |it| it.used() == "bars/127.0.0.1:1 bars/127.0.0.2:1").await;
    it.says.command(&group(OWN), Some(SWITCH));
    it.until("both groups", |it| it.cluster.endpoints().endpoints.len() == 3).await;
    it.says.command(&group(OWN), Some(r#"{"clientCommandList":[]}"#));
    it.until("the own group", |it| it.used() == "bars/127.0.0.1:1 bars/127.0.0.2:1").await;
}

#[tokio::test(start_paused = true)]
async fn a_group_without_endpoints_is_left_out_and_nothing_is_never_the_answer() {
    let it = bench(two_groups(), &[]);
    let to =
        |groups: &str| format!(r#"{{"clientCommandList":[{{"index":1,"pattern":"*","mergeGroups":[{groups}]}}]}}"#);
    it.says.endpoints("empty", &[]);
    it.says.command(&group(OWN), Some(&to(r#""bars-b:1","empty:9""#)));
    it.until("the other group alone", |it| it.used() == "bars-b/127.0.0.3:1").await;
    it.says.command(&group(OWN), Some(&to(r#""empty""#)));
    it.until("the own group", |it| it.used() == "bars/127.0.0.1:1 bars/127.0.0.2:1").await;
    let stale = it.stale.get(&it.cluster.info.key).unwrap();
    assert!(stale.contains("no endpoint in empty: the own group serves"), "{stale}");
    // A group that nobody ever hears of takes its time, and meanwhile the groups of before serve.
    it.says.command(&group(OWN), Some(&to(r#""bars-b""#)));
    it.until("the other group", |it| it.used() == "bars-b/127.0.0.3:1").await;
    it.says.command(&group(OWN), Some(&to(r#""silent","bars""#)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(it.used(), "bars-b/127.0.0.3:1");
    it.until("what is known of them", |it| it.used() == "bars/127.0.0.1:1 bars/127.0.0.2:1").await;
    it.says.endpoints("silent", &["127.0.0.4:1"]);
    it.until("all of them", |it| it.used().starts_with("silent/127.0.0.4:1 ")).await;
}

#[tokio::test(start_paused = true)]
async fn mixing_rules_degrading_and_switchers() {
    let it = bench(two_groups(), &["bars", "bars-b"]);
    it.until("mixed", |it| it.cluster.endpoints().endpoints.len() == 3).await;
    assert_eq!(it.dealt(30)["bars"], 20, "one pool of three");
    it.switchers.register("feature", false);
    let text = r#"{"clientCommandList":[
        {"index":1,"pattern":"bars.BarService","routeRules":["10.9.* to !127.0.0.2","nonsense"]},
        {"index":2,"commandType":2,"pattern":"feature:true"}]}"#;
    it.says.command(&group(OWN), Some(text));
    it.until("the rule", |it| it.used() == "bars/127.0.0.1:1").await;
    assert_eq!(it.switchers.get("feature"), Some(true));
    assert!(it.stale.get(&it.cluster.info.key).unwrap().contains("`nonsense` is no rule"));
    // The application goes before the group.
    let agent = Scope::Agent("shop".to_owned());
    it.says.command(&agent, Some(r#"{"clientCommandList":[{"index":1,"pattern":"*","mergeGroups":["bars-b"]}]}"#));
    it.until("the application's", |it| it.used() == "bars-b/127.0.0.3:1").await;
    it.says.command(&agent, Some(r#"{"clientCommandList":[{"index":1,"commandType":1,"pattern":"*"}]}"#));
    it.until("degraded", |it| it.cluster.steering().degraded.is_some()).await;
    let mut call = crate::call::Request {
        call: crate::call::Call::new("bars.BarService".into(), "m".into()),
        head: crate::call::Head::None,
        body: crate::call::Body::Empty,
    };
    let error = it.cluster.call(&mut call).await.unwrap_err();
    assert_eq!(
        (error.kind, &*error.message),
        (crate::call::ErrorKind::Degraded, "cluster not available, maybe caused by degrade")
    );
    it.says.command(&agent, None);
    it.says.command(&group(OWN), Some("nonsense"));
    it.until("nothing ordered", |it| it.cluster.steering().degraded.is_none() && it.used().contains("bars-b")).await;
    assert_eq!(it.switchers.get("feature"), Some(false), "put back");
    assert!(it.stale.get(&it.cluster.info.key).unwrap().contains("commands of group bars: not JSON"));
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_lists_and_commands() {
    let says = Says::default();
    says.text(&Scope::Agent("shop".to_owned()));
    let it = bench(says, &[]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((*it.heard.borrow(), it.cluster.endpoints().revision), (false, 0));
    it.says.endpoints(OWN, &["127.0.0.1:1"]);
    it.until("served", |it| it.used() == "bars/127.0.0.1:1").await;
    assert!(!*it.heard.borrow(), "the commands are not known");
    it.says.command(&Scope::Agent("shop".to_owned()), None);
    it.says.command(&group(OWN), None);
    it.until("heard", |it| *it.heard.borrow()).await;
}

#[tokio::test(start_paused = true)]
async fn drains_and_canaries() {
    let it = bench(two_groups(), &[]);
    let extra = |extra: &str| format!(r#"{{"clientCommandList":[],"sockmesh":[{extra}]}}"#);
    let drain = |instance: &str| format!(r#"{{"kind":"drain","service":"bars.BarService","instance":"{instance}"}}"#);
    it.says.command(&group(OWN), Some(&extra(&drain("127.0.0.1:1"))));
    it.until("one is out", |it| it.used() == "bars/127.0.0.2:1").await;
    assert_eq!(it.cluster.steering().by.as_deref(), Some("drained: 127.0.0.1:1"));
    let both = format!("{},{}", drain("127.0.0.1:1"), drain("127.0.0.2:1"));
    it.says.command(&group(OWN), Some(&extra(&both)));
    it.until("not all", |it| it.used() == "bars/127.0.0.1:1 bars/127.0.0.2:1").await;
    assert!(it.stale.get(&it.cluster.info.key).unwrap().contains("none of the drains counts"));
    let canary = r#"{"kind":"canary","service":"bars.BarService","version":"9","percent":10}"#;
    it.says.command(&group(OWN), Some(&extra(canary)));
    it.until("known", |it| it.cluster.steering().canary.is_some()).await;
    assert!(it.stale.get(&it.cluster.info.key).unwrap().contains("no endpoint has version 9"));
    it.says.command(&group(OWN), None);
    it.until("nothing", |it| it.cluster.steering().by.is_none()).await;
    assert_eq!(it.stale.get(&it.cluster.info.key), None);
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_operators_leave_out_are_not_used_and_never_all_of_them() {
    let bench = bench(two_groups(), &[]);
    bench.until("both", |b| b.used() == "bars/127.0.0.1:1 bars/127.0.0.2:1").await;
    let rule = |text: &str| ReferRule { mode: "exclude".into(), rule: text.into(), ..ReferRule::default() };
    bench.refers.set(vec![rule("127.0.0.2")]).unwrap();
    bench.until("one", |b| b.used() == "bars/127.0.0.1:1").await;
    assert!(bench.cluster.steering().by.as_deref().is_some_and(|by| by.contains("left out")));
    // What registries say meanwhile goes through the same rules.
    bench.says.endpoints(OWN, &["127.0.0.1:1", "127.0.0.2:1", "127.0.0.4:1"]);
    bench.until("two", |b| b.used() == "bars/127.0.0.1:1 bars/127.0.0.4:1").await;
    bench.refers.set(vec![rule("127.0.0.0/8")]).unwrap();
    bench.until("all", |b| b.used() == "bars/127.0.0.1:1 bars/127.0.0.2:1 bars/127.0.0.4:1").await;
    bench.refers.set(vec![rule("127.0.0.4/31")]).unwrap();
    bench.until("two", |b| b.used() == "bars/127.0.0.1:1 bars/127.0.0.2:1").await;
    bench.refers.set(Vec::new()).unwrap();
    bench.until("all", |b| b.used() == "bars/127.0.0.1:1 bars/127.0.0.2:1 bars/127.0.0.4:1").await;
    assert_eq!(bench.cluster.steering().by, None);
}
