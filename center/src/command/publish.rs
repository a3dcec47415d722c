//! Commands for agents that listen to a site's own registries: what this centre ordered is kept in their texts, above
//! whatever else stands there, for as long as it is in force.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use model::{
    command::{foreign, owned, put_entries},
    kind::{self, Value},
};
use parking_lot::Mutex;
use registries::{BuildCx, CommandText, Registry, Scope};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{give::same, layers::OWNER};
use crate::auth::fits;

/// How long whoever gives a command waits for registries.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a registry may take to write.
const WRITE: Duration = Duration::from_secs(5);
/// Pauses before it is tried again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// A registry that commands are written to.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteRegistry {
    /// For records; its kind when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// `zookeeper`, `etcd`, `consul` or `nacos`.
    pub kind: String,
    /// As agents write them for this kind.
    #[serde(default)]
    pub options: Value,
    /// Patterns of groups whose commands are written there; all when left out.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Publisher {
    places: Vec<Place>,
}

struct Place {
    name: String,
    registry: Arc<dyn Registry>,
    groups: Vec<String>,
    kept: Mutex<BTreeMap<String, Keeping>>,
}

/// A text of a group in a registry, kept by a task that ends when this is dropped.
struct Keeping {
    wanted: watch::Sender<Wanted>,
    told: watch::Receiver<Told>,
    seen: watch::Receiver<Arc<CommandText>>,
}

#[derive(Clone, Debug, Default)]
struct Wanted {
    number: u64,
    /// The centre's text; `None`: nothing is done, because another centre leads.
    text: Option<Arc<str>>,
}

/// What became of it.
#[derive(Clone, Debug, Default)]
struct Told {
    number: u64,
    outcome: String,
    is_good: bool,
}

impl Publisher {
    /// From the configuration.
    ///
    /// # Errors
    /// A kind is not known, holds no commands, or is badly configured; names it.
    pub(super) fn build(registries: &[SiteRegistry]) -> anyhow::Result<Self> {
        let base_dir = PathBuf::from(".");
        let cx = BuildCx { application: "sockmesh-center".into(), base_dir, ..BuildCx::default() };
        let mut places = Vec::new();
        for site in registries {
            let name = site.name.clone().unwrap_or_else(|| site.kind.clone());
            let place = || format!("commands.registries: {name}");
            let registry =
                kind::build("registry", registries::KINDS, &site.kind, &site.options, &cx).with_context(place)?;
            if ["dns", "mesh"].contains(&site.kind.as_str()) {
                anyhow::bail!("{}: the kind {} holds no commands; leave it out", place(), site.kind);
            }
            places.push(Place { name, registry, groups: site.groups.clone(), kept: Mutex::default() });
        }
        Ok(Self { places })
    }

    /// A group's text is this from now on.
    pub(super) fn set(&self, group: &str, text: Option<&str>) {
        for place in self.places.iter().filter(|place| place.takes(group)) {
            place.set(group, text.unwrap_or_default());
        }
    }

    /// Another centre leads: it writes.
    pub(super) fn pause(&self) {
        for keeping in
            self.places.iter().flat_map(|p| p.kept.lock().values().map(|k| k.wanted.clone()).collect::<Vec<_>>())
        {
            keeping.send_if_modified(|wanted| wanted.text.take().is_some());
        }
    }

    /// What others wrote for a group into the first registry that has anything.
    pub(super) fn beneath(&self, group: &str) -> Option<String> {
        self.places.iter().find_map(|place| place.kept.lock().get(group)?.seen.borrow().text.clone())
    }

    /// What became of the texts of these groups, registry by registry; waits a while for those being written.
    pub(super) async fn outcomes(&self, groups: &[String]) -> Vec<(String, String)> {
        let latest = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        for (name, mut told, number) in self.told(groups) {
            // Late is told as it stands.
            let _ = timeout_at(latest, told.wait_for(|told| told.number >= number && told.is_good)).await;
            let told = told.borrow();
            let outcome = if told.number < number { "not written yet, and tried on" } else { told.outcome.as_str() };
            all.push((name, outcome.to_owned()));
        }
        all
    }

    /// The same without waiting.
    pub(super) fn now(&self, groups: &[String]) -> Vec<(String, String)> {
        self.told(groups).into_iter().map(|(name, told, _)| (name, told.borrow().outcome.clone())).collect()
    }

    fn told(&self, groups: &[String]) -> Vec<(String, watch::Receiver<Told>, u64)> {
        let mut all = Vec::new();
        for place in &self.places {
            let kept = place.kept.lock();
            for group in groups {
                if let Some(keeping) = kept.get(group) {
                    let number = keeping.wanted.borrow().number;
                    all.push((format!("{}, group {group}", place.name), keeping.told.clone(), number));
                }
            }
        }
        all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl Place {
    fn takes(&self, group: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|pattern| fits(pattern, group))
    }

    fn set(&self, group: &str, text: &str) {
        let mut kept = self.kept.lock();
        if let Some(keeping) = kept.get(group) {
            keeping.wanted.send_if_modified(|wanted| {
                let differs = wanted.text.as_deref() != Some(text);
                if differs {
                    *wanted = Wanted { number: wanted.number + 1, text: Some(text.into()) };
                }
                differs
            });
            return;
        }
        let scope = Scope::Group(group.to_owned());
        let Some(seen) = self.registry.commands(&scope) else { return };
        let (wanted, wanting) = watch::channel(Wanted { number: 1, text: Some(text.into()) });
        let (telling, told) = watch::channel(Told::default());
        tokio::spawn(keep(self.name.clone(), self.registry.clone(), scope, seen.clone(), wanting, telling));
        kept.insert(group.to_owned(), Keeping { wanted, told, seen });
    }
}

/// Keeps a text as it is wanted, whatever becomes of the registry and whoever else writes there.
async fn keep(
    name: String,
    registry: Arc<dyn Registry>,
    scope: Scope,
    mut seen: watch::Receiver<Arc<CommandText>>,
    mut wanted: watch::Receiver<Wanted>,
    told: watch::Sender<Told>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let Wanted { number, text } = wanted.borrow_and_update().clone();
        let current = seen.borrow_and_update().clone();
        let outcome = match &text {
            None => Ok("left to the centre that leads".to_owned()),
            Some(text) => bring(&*registry, &scope, &current, text).await,
        };
        let is_good = outcome.is_ok();
        if let Err(why) = &outcome
            && told.borrow().outcome != *why
        {
            tracing::warn!(registry = name, ?scope, why, "commands are not written there yet");
        }
        told.send_replace(Told { number, outcome: outcome.unwrap_or_else(|why| why), is_good });
        if is_good {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = seen.changed() => if changed.is_err() { sleep(pause).await },
            () = sleep(pause), if !is_good => pause = (pause * 2).min(LAST_PAUSE),
        }
    }
}

/// One try; says what became of it.
async fn bring(registry: &dyn Registry, scope: &Scope, current: &CommandText, text: &str) -> Result<String, String> {
    if let Some(why) = &current.stale {
        return Err(format!("not written yet: the registry is not at hand ({why})"));
    }
    if current.revision == 0 {
        return Err("not written yet: the registry does not say what commands there are".to_owned());
    }
    let after = joined(current.text.as_deref(), text).map_err(|why| format!("not written: {why}"))?;
    if same(current.text.as_deref(), &after) {
        return Ok("written".to_owned());
    }
    let writing = registry.write_commands(scope, current.text.as_deref(), &after);
    match timeout(WRITE, writing).await {
        Ok(Ok(())) => Ok("written".to_owned()),
        Ok(Err(error)) => Err(format!("not written: {error:#}; tried again")),
        Err(_) => Err(format!("not written: no answer within {WRITE:?}; tried again")),
    }
}

/// `theirs` with the entries that this centre has in `ours`, and no others of its own.
fn joined(theirs: Option<&str>, ours: &str) -> Result<String, String> {
    let is_own = |owner: &str| owner.starts_with(OWNER);
    let mut text = foreign(theirs, is_own)?;
    for (owner, entries) in owned(Some(ours), is_own)? {
        text = put_entries(Some(&text), &owner, &entries)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use model::{ServiceKey, Snapshot, command::Commands};

    use super::*;

    const THEIRS: &str = r#"{"clientCommandList":[{"index":1,"pattern":"*","mergeGroups":["x"]}]}"#;

    fn ours(groups: &[(&str, &str)]) -> String {
        let mut text = None;
        for (id, group) in groups {
            let one = serde_json::json!({"commandType": 0, "pattern": "s", "mergeGroups": [group]});
            let extra = serde_json::json!({"kind": "drain", "service": "s", "instance": "10.0.0.1:1"});
            let entries = model::command::Entries { commands: vec![one], extra: vec![extra] };
            text = Some(put_entries(text.as_deref(), &format!("{OWNER}{id}"), &entries).unwrap());
        }
        text.unwrap_or_default()
    }

    fn group(text: &str, service: &str) -> String {
        let commands = Commands::parse(text).unwrap();
        commands.traffic(service).map_or(String::new(), |c| c.groups[0].group.clone())
    }

    #[test]
    fn the_centres_entries_lie_above_and_are_the_only_ones_that_change() {
        let both = ours(&[("1", "a"), ("2", "b")]);
        let text = joined(Some(THEIRS), &both).unwrap();
        assert_eq!((group(&text, "s").as_str(), group(&text, "t").as_str()), ("b", "x"));
        assert_eq!(Commands::parse(&text).unwrap().drains().len(), 2);
        let one = joined(Some(&text), &ours(&[("1", "a")])).unwrap();
        assert_eq!(group(&one, "s"), "a");
        assert!(same(Some(THEIRS), &joined(Some(&one), "").unwrap()));
        assert!(joined(Some("nonsense"), &both).is_err());
    }

    /// A registry in memory that may be away.
    struct Fake {
        text: watch::Sender<Arc<CommandText>>,
        away: Mutex<bool>,
    }

    impl Registry for Fake {
        fn watch(&self, _: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
            watch::channel(Arc::default()).1
        }

        fn commands(&self, _: &Scope) -> Option<watch::Receiver<Arc<CommandText>>> {
            Some(self.text.subscribe())
        }

        fn write_commands<'a>(
            &'a self,
            _: &'a Scope,
            expected: Option<&'a str>,
            text: &'a str,
        ) -> BoxFuture<'a, anyhow::Result<()>> {
            Box::pin(async move {
                anyhow::ensure!(!*self.away.lock(), "away");
                anyhow::ensure!(self.text.borrow().text.as_deref() == expected, "changed");
                self.put(text);
                Ok(())
            })
        }
    }

    impl Fake {
        fn put(&self, text: &str) {
            let revision = self.text.borrow().revision + 1;
            self.text.send_replace(Arc::new(CommandText { revision, text: Some(text.to_owned()), stale: None }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_is_kept_through_failures_and_other_writers() {
        let first = CommandText { revision: 1, text: Some(THEIRS.to_owned()), stale: None };
        let fake = Arc::new(Fake { text: watch::Sender::new(Arc::new(first)), away: Mutex::new(true) });
        let place =
            Place { name: "zk".into(), registry: fake.clone(), groups: vec!["idc-*".into()], kept: Mutex::default() };
        let publisher = Publisher { places: vec![place] };
        let groups = ["idc-a".to_owned()];
        publisher.set("elsewhere", Some(&ours(&[("1", "a")])));
        assert!(publisher.now(&["elsewhere".to_owned()]).is_empty());
        publisher.set("idc-a", Some(&ours(&[("1", "a")])));
        let said = publisher.outcomes(&groups).await;
        assert_eq!(said.len(), 1);
        assert!(said[0].0 == "zk, group idc-a" && said[0].1.contains("not written: away"), "{said:?}");
        *fake.away.lock() = false;
        let mut text = fake.text.subscribe();
        let reaches =
            |wanted: &'static str| move |t: &Arc<CommandText>| group(t.text.as_deref().unwrap(), "s") == wanted;
        text.wait_for(reaches("a")).await.unwrap();
        assert_eq!(publisher.outcomes(&groups).await[0].1, "written");
        assert_eq!(publisher.beneath("idc-a").map(|text| group(&text, "t")), Some("x".to_owned()));
        // Somebody throws it away.
        fake.put(THEIRS);
        text.wait_for(reaches("a")).await.unwrap();
        // Another centre leads, then this one again, with nothing in force.
        publisher.pause();
        sleep(Duration::from_secs(1)).await;
        fake.put(THEIRS);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(group(fake.text.borrow().text.as_deref().unwrap(), "s"), "x");
        fake.put(&ours(&[("7", "old")]));
        publisher.set("idc-a", None);
        text.wait_for(|t| t.text.as_deref() == Some(r#"{"clientCommandList":[]}"#)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_registry_is_told() {
        let site = |kind: &str, options: &str| SiteRegistry {
            name: None,
            kind: kind.into(),
            options: serde_yaml::from_str(options).unwrap(),
            groups: Vec::new(),
        };
        let wrong = |kind: &str, options: &str| {
            format!("{:#}", Publisher::build(&[site(kind, options)]).err().expect("it is wrong"))
        };
        assert!(wrong("nothing", "").contains("commands.registries: nothing: unknown registry `nothing`; known: "));
        assert!(wrong("zookeeper", "{x: 1}").contains("commands.registries: zookeeper"));
        assert!(Publisher::build(&[site("zookeeper", "{address: 127.0.0.1:2181}")]).is_ok());
    }
}
