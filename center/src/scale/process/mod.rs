//! `process`: instances are programs on the centre's own host, started by a command template.
//!
//! Each instance has a slot, a name, and a port where the template asks for one, and keeps them through restarts.
//! It stands in a process group of its own, so that an interrupt at the centre's terminal is not its interrupt and
//! its children end with it; its output goes to a file. A centre that died, or was told to leave instances alone,
//! finds them again by what it keeps, and does not start them twice.

mod place;
mod program;
mod template;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::{Context, bail};
use futures_util::future::BoxFuture;
use model::{
    center::ScaleInstance,
    kind::{self, Value},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::{place::Place, program::Identity, template::Template};
use super::{BuildCx, Driver, Ending};
use crate::clock::now_ms;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Program and arguments; no shell.
    command: Vec<String>,
    /// Further environment.
    #[serde(default)]
    environment: BTreeMap<String, String>,
    /// Where it is started.
    directory: Option<PathBuf>,
    /// `20000-20099`: where `{port}` is taken from.
    ports: Option<String>,
    /// Callers are told before an instance ends; this long they have to go elsewhere.
    #[serde(default = "drain", deserialize_with = "kind::duration")]
    drain: Duration,
    /// Time to end after SIGTERM; then it is killed.
    #[serde(default = "stop_after", deserialize_with = "kind::duration")]
    stop_after: Duration,
    /// Pause before the first restart; doubled each time up to half a minute.
    #[serde(default = "restart_after", deserialize_with = "kind::duration")]
    restart_after: Duration,
    /// Instances go on when the centre ends.
    #[serde(default)]
    keep: bool,
}

const fn drain() -> Duration {
    Duration::from_secs(3)
}

const fn stop_after() -> Duration {
    Duration::from_secs(10)
}

const fn restart_after() -> Duration {
    Duration::from_secs(1)
}

/// The longest pause between restarts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Most instances of one pool on one host.
const INSTANCES: u32 = 1_000;

/// Requests whose keys are remembered.
const KEYS: usize = 64;

/// Ports that drivers of one centre have given out.
pub type Ports = Arc<Mutex<BTreeSet<u16>>>;

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Driver>> {
    let options: Options = serde_yaml::from_value(options.clone())?;
    let template = Template::new(&options.command, &options.environment)?;
    let ports = options.ports.as_deref().map(template::ports).transpose()?;
    if template.wants_port() && ports.is_none() {
        bail!(
            "`command` or `environment` says {{port}} and there are no `ports`; write for example ports: 20000-20099"
        );
    }
    if !(Duration::from_millis(10)..=LONGEST_PAUSE).contains(&options.restart_after) {
        bail!("`restart_after: {:?}` is not within 10ms to {LONGEST_PAUSE:?}", options.restart_after);
    }
    let pool = Arc::new_cyclic(|me| Pool {
        me: me.clone(),
        dir: cx.directory(),
        cx: cx.clone(),
        template,
        ports,
        options,
        inner: Mutex::default(),
        running: watch::Sender::new(0),
    });
    pool.resume()?;
    Ok(Arc::new(Process(pool)))
}

/// The driver: what is left when it is dropped ends by itself.
struct Process(Arc<Pool>);

struct Pool {
    me: Weak<Pool>,
    cx: BuildCx,
    dir: PathBuf,
    template: Template,
    ports: Option<(u16, u16)>,
    options: Options,
    inner: Mutex<Inner>,
    /// Supervisors that have not ended.
    running: watch::Sender<usize>,
}

#[derive(Default)]
struct Inner {
    wanted: u32,
    keys: VecDeque<String>,
    slots: BTreeMap<u32, Slot>,
    /// Nothing is started any more: nobody would end it.
    ended: bool,
}

struct Slot {
    name: String,
    port: Option<u16>,
    identity: Option<Identity>,
    shown: ScaleInstance,
    wish: watch::Sender<Wish>,
}

/// What a supervisor shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    /// Tell callers, then stop.
    Retire,
    /// Stop at once.
    Stop,
    /// Let go.
    Leave,
}

/// What outlives the centre.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    wanted: u32,
    keys: VecDeque<String>,
    instances: Vec<KeptInstance>,
}

#[derive(Serialize, Deserialize)]
struct KeptInstance {
    slot: u32,
    name: String,
    port: Option<u16>,
    identity: Option<Identity>,
}

impl Pool {
    /// Goes on with what an earlier centre, or an earlier driver, ran.
    fn resume(&self) -> anyhow::Result<()> {
        let file = self.dir.join("state.json");
        let kept = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} is broken", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let kept: Kept = kept;
        {
            let mut inner = self.inner.lock();
            inner.wanted = kept.wanted.min(INSTANCES);
            inner.keys = kept.keys;
            for instance in kept.instances {
                let alive = instance.identity.filter(|identity| identity.alive());
                // The port of one that is gone may be somebody else's by now.
                if alive.is_none() && instance.port.is_some() {
                    continue;
                }
                if let Some(port) = instance.port {
                    self.cx.ports.lock().insert(port);
                }
                self.supervise(&mut inner, instance.slot, instance.name, instance.port, alive);
            }
        }
        let wanted = self.inner.lock().wanted;
        self.resize(wanted, None)
    }

    /// Starts and retires until there are as many as wanted; nothing changes when that cannot be.
    fn resize(&self, size: u32, key: Option<&str>) -> anyhow::Result<()> {
        if size > INSTANCES {
            bail!("{size} instances on one host; at most {INSTANCES}");
        }
        let mut inner = self.inner.lock();
        if inner.ended {
            bail!("it was ended");
        }
        if key.is_some_and(|key| inner.keys.iter().any(|known| known == key)) {
            return Ok(());
        }
        let stays = |slot: &Slot| *slot.wish.borrow() == Wish::Run;
        let present = inner.slots.values().filter(|slot| stays(slot)).count();
        let missing = (size as usize).saturating_sub(present);
        let ports = self.take_ports(missing)?;
        // The highest slots go first: the lowest are the ones that people know.
        let leaving: Vec<u32> =
            inner.slots.iter().rev().filter(|(_, slot)| stays(slot)).map(|(number, _)| *number).collect();
        for number in leaving.into_iter().take(present.saturating_sub(size as usize)) {
            if let Some(slot) = inner.slots.get_mut(&number) {
                slot.wish.send_replace(Wish::Retire);
                slot.shown.state = "stopping".to_owned();
                slot.shown.since_ms = now_ms();
            }
        }
        for port in ports {
            let number = (0..).find(|number| !inner.slots.contains_key(number)).unwrap_or_default();
            let name = format!("{}-{number}", self.dir.file_name().unwrap_or_default().to_string_lossy());
            self.supervise(&mut inner, number, name, port, None);
        }
        inner.wanted = size;
        if let Some(key) = key {
            inner.keys.push_back(key.to_owned());
            if inner.keys.len() > KEYS {
                inner.keys.pop_front();
            }
        }
        self.keep(&inner);
        Ok(())
    }

    /// One port each, or nothing each when the template wants none.
    fn take_ports(&self, count: usize) -> anyhow::Result<Vec<Option<u16>>> {
        if !self.template.wants_port() {
            return Ok(vec![None; count]);
        }
        let (first, last) = self.ports.unwrap_or_default();
        let mut given = self.cx.ports.lock();
        let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
        let found: Vec<u16> = (first..=last).filter(|port| !given.contains(port)).filter(free).take(count).collect();
        if found.len() < count {
            bail!("{count} more instances, and only {} ports of {first}-{last} are free; widen `ports`", found.len());
        }
        given.extend(&found);
        Ok(found.into_iter().map(Some).collect())
    }

    fn supervise(&self, inner: &mut Inner, slot: u32, name: String, port: Option<u16>, alive: Option<Identity>) {
        let Some(pool) = self.me.upgrade() else { return };
        let (wish, wishes) = watch::channel(Wish::Run);
        let shown = ScaleInstance {
            name: name.clone(),
            port,
            state: "waiting".to_owned(),
            since_ms: now_ms(),
            ..ScaleInstance::default()
        };
        let place = Place { pool, slot, name: name.clone(), port };
        inner.slots.insert(slot, Slot { name, port, identity: alive, shown, wish });
        self.running.send_modify(|running| *running += 1);
        tokio::spawn(place.run(alive, wishes));
    }

    /// Keeps what is needed to go on after a restart. Not being able to costs that, and nothing now.
    fn keep(&self, inner: &Inner) {
        let instance = |(number, slot): (&u32, &Slot)| KeptInstance {
            slot: *number,
            name: slot.name.clone(),
            port: slot.port,
            identity: slot.identity,
        };
        let instances = inner.slots.iter().map(instance).collect();
        let kept = Kept { wanted: inner.wanted, keys: inner.keys.clone(), instances };
        let (file, new) = (self.dir.join("state.json"), self.dir.join("state.json.new"));
        let written = std::fs::create_dir_all(&self.dir)
            .and_then(|()| std::fs::write(&new, serde_json::to_vec(&kept).unwrap_or_default()))
            .and_then(|()| std::fs::rename(&new, &file));
        if let Err(error) = written {
            tracing::warn!(file = %file.display(), %error, "cannot keep which instances run; a restart starts others");
        }
    }
}

impl Process {
    async fn all(&self, wish: Wish) {
        {
            let mut inner = self.0.inner.lock();
            inner.ended = true;
            for slot in inner.slots.values() {
                slot.wish.send_if_modified(|now| {
                    let changed = *now != wish;
                    *now = wish;
                    changed
                });
            }
        }
        let mut running = self.0.running.subscribe();
        // The pool holds the sender.
        let _ = running.wait_for(|running| *running == 0).await;
    }
}

impl Driver for Process {
    fn size(&self) -> BoxFuture<'_, anyhow::Result<u32>> {
        let wanted = self.0.inner.lock().wanted;
        Box::pin(async move { Ok(wanted) })
    }

    fn scale<'a>(&'a self, size: u32, key: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move { self.0.resize(size, Some(key)) })
    }

    fn instances(&self) -> Vec<ScaleInstance> {
        self.0.inner.lock().slots.values().map(|slot| slot.shown.clone()).collect()
    }

    fn end(&self, why: Ending) -> BoxFuture<'_, ()> {
        let leave = why == Ending::Replaced || self.0.options.keep;
        Box::pin(self.all(if leave { Wish::Leave } else { Wish::Stop }))
    }
}

#[cfg(test)]
mod tests;
