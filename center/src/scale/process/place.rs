//! Looks after one instance: starts it, starts it again when it ends, ends it when it is wished away.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use model::ServiceKey;
use tokio::{sync::watch, time::Instant};

use super::{
    LONGEST_PAUSE, Pool, Wish,
    program::{Identity, Program},
    template,
};
use crate::{auth::Actor, clock::now_ms};

/// Who lived this long is started again without a long pause.
const STEADY: Duration = Duration::from_secs(60);

/// One instance, as its supervisor knows it.
pub(super) struct Place {
    pub pool: Arc<Pool>,
    pub slot: u32,
    pub name: String,
    pub port: Option<u16>,
}

impl Place {
    /// Runs the instance until it is wished away.
    pub async fn run(self, mut alive: Option<Identity>, mut wish: watch::Receiver<Wish>) {
        let options = &self.pool.options;
        let mut pause = options.restart_after;
        loop {
            if *wish.borrow_and_update() != Wish::Run {
                break;
            }
            let began = Instant::now();
            let reason = match self.start(alive.take()) {
                Ok(mut program) => {
                    self.show("running", Some(program.identity()), None);
                    tokio::select! {
                        how = program.ended() => how,
                        wish = wished_away(&mut wish) => {
                            self.finish(program, wish).await;
                            break;
                        }
                    }
                }
                Err(error) => format!("{error:#}"),
            };
            if began.elapsed() >= STEADY {
                pause = options.restart_after;
            }
            tracing::warn!(instance = %self.name, %reason, ?pause, "an instance ended; it is started again");
            self.show("waiting", None, Some(reason));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = wished_away(&mut wish) => break,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.gone(*wish.borrow());
    }

    fn start(&self, alive: Option<Identity>) -> anyhow::Result<Program> {
        let pool = &self.pool;
        if let Some(program) = alive.and_then(Program::adopt) {
            return Ok(program);
        }
        let (program, arguments, environment) = pool.template.fill(&template::Values {
            port: self.port,
            name: &self.name,
            service: &pool.cx.service,
            group: &pool.cx.group,
            slot: self.slot,
        });
        std::fs::create_dir_all(&pool.dir).with_context(|| format!("cannot make {}", pool.dir.display()))?;
        let log = pool.dir.join(format!("{}.log", self.name));
        Program::start(&program, &arguments, &environment, pool.options.directory.as_deref(), &log)
    }

    async fn finish(&self, program: Program, wish: Wish) {
        let options = &self.pool.options;
        if wish == Wish::Leave {
            return;
        }
        self.show("stopping", Some(program.identity()), None);
        let told =
            if wish == Wish::Retire && !options.drain.is_zero() { self.tell_callers().await } else { Vec::new() };
        program.stop(options.stop_after).await;
        // Whoever comes later on this port is not out.
        for (registry_key, address) in told {
            if let Some(registry) = &self.pool.cx.registry
                && let Err(error) = registry.take_out(&Actor::center(), &registry_key, &address, None).await
            {
                tracing::debug!(%address, %error, "a retired instance has left the registry");
            }
        }
    }

    /// Takes what this instance registered out of the lists, and gives callers time to see that.
    async fn tell_callers(&self) -> Vec<(ServiceKey, String)> {
        let (Some(registry), cx) = (&self.pool.cx.registry, &self.pool.cx) else { return Vec::new() };
        let mut told = Vec::new();
        for key in registry.keys().into_iter().filter(|key| key.service == cx.service && key.group == cx.group) {
            for row in registry.rows(&key) {
                let port = row.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
                let mine = (port.is_some() && port == self.port)
                    || row.metadata.get("instance").is_some_and(|name| *name == self.name);
                if !mine || row.state != "available" {
                    continue;
                }
                match registry.take_out(&Actor::center(), &key, &row.address, Some("its pool shrinks")).await {
                    Ok(()) => told.push((key.clone(), row.address)),
                    Err(error) => tracing::warn!(address = %row.address, %error, "cannot take an instance out first"),
                }
            }
        }
        if !told.is_empty() {
            tokio::time::sleep(self.pool.options.drain).await;
        }
        told
    }

    fn show(&self, state: &str, identity: Option<Identity>, ended: Option<String>) {
        let mut inner = self.pool.inner.lock();
        if let Some(slot) = inner.slots.get_mut(&self.slot) {
            slot.identity = identity;
            slot.shown.pid = identity.map(|identity| identity.pid);
            slot.shown.since_ms = now_ms();
            state.clone_into(&mut slot.shown.state);
            if let Some(reason) = ended {
                slot.shown.reason = reason;
                slot.shown.restarts += 1;
            }
        }
        self.pool.keep(&inner);
    }

    fn gone(&self, wish: Wish) {
        let mut inner = self.pool.inner.lock();
        if wish != Wish::Leave {
            inner.slots.remove(&self.slot);
            self.pool.keep(&inner);
        }
        drop(inner);
        if let Some(port) = self.port {
            self.pool.cx.ports.lock().remove(&port);
        }
        self.pool.running.send_modify(|running| *running -= 1);
    }
}

/// Resolves when the instance shall no longer run. Nobody there to wish is a driver that was dropped.
async fn wished_away(wish: &mut watch::Receiver<Wish>) -> Wish {
    wish.wait_for(|wish| *wish != Wish::Run).await.map_or(Wish::Leave, |wish| *wish)
}
