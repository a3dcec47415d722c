//! What deciding sees of the rest of the centre, and what it does there.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use model::center::{Action, CommandRecord, NewCommand, Pool, PoolPolicy};

use crate::{
    auth::Actor,
    capacity::{Capacities, Policies},
    command::Commands,
    error::Error,
    scale::Scalers,
};

pub(super) use crate::capacity::Held;

/// Pools, commands and drivers.
pub(super) trait World: Send + Sync + 'static {
    /// Every service in every group, sorted.
    fn keys(&self) -> Vec<(String, String)>;
    /// The pool as it is now.
    fn pool(&self, policy: &PoolPolicy) -> Option<Pool>;
    /// Whether instances of the pool are not heard of.
    fn unheard(&self, policy: &PoolPolicy) -> bool;
    /// What is registered of the pool.
    fn held(&self, policy: &PoolPolicy) -> Held;
    /// Share of its callers' calls that go well lately; `None`: none are seen.
    fn answered(&self, policy: &PoolPolicy) -> Option<f64>;
    /// How long new instances of it are not warm.
    fn warm_up(&self, policy: &PoolPolicy) -> Duration;
    /// Why figures are not to be trusted.
    fn blind(&self) -> Option<String>;
    /// Estimates obey these policies from now on.
    fn govern(&self, policies: Arc<Policies>);
    /// Commands in force or proposed for a service, newest first.
    fn commands(&self, service: &str) -> Vec<CommandRecord>;
    /// Author of the centre's own commands.
    fn author(&self) -> String;
    /// Puts a command into force, or proposes it.
    fn give(&self, wanted: NewCommand, propose: bool) -> BoxFuture<'_, Result<CommandRecord, Error>>;
    /// The proposal like `action` that people turned down lately, and for how long nothing like it is proposed.
    fn declined<'a>(&'a self, action: &'a Action) -> BoxFuture<'a, Result<Option<(CommandRecord, Duration)>, Error>>;
    /// Takes a command back.
    fn undo<'a>(&'a self, id: u64, reason: &'a str) -> BoxFuture<'a, Result<(), Error>>;
    /// How many instances the pool's driver runs or was last asked for.
    fn size<'a>(&'a self, policy: &'a PoolPolicy) -> BoxFuture<'a, Result<u32, Error>>;
    /// Asks the pool's driver for so many.
    fn scale<'a>(
        &'a self,
        policy: &'a PoolPolicy,
        size: u32,
        key: &'a str,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), Error>>;
}

/// The centre's own parts.
pub(super) struct Parts {
    pub capacity: Arc<Capacities>,
    pub commands: Arc<Commands>,
    pub scalers: Arc<Scalers>,
}

impl World for Parts {
    fn keys(&self) -> Vec<(String, String)> {
        self.capacity.keys()
    }

    fn pool(&self, policy: &PoolPolicy) -> Option<Pool> {
        self.capacity.pool(policy)
    }

    fn unheard(&self, policy: &PoolPolicy) -> bool {
        self.capacity.unheard(policy)
    }

    fn held(&self, policy: &PoolPolicy) -> Held {
        self.capacity.held(policy)
    }

    fn answered(&self, policy: &PoolPolicy) -> Option<f64> {
        self.capacity.answered(policy)
    }

    fn warm_up(&self, policy: &PoolPolicy) -> Duration {
        self.scalers.warm_up(policy)
    }

    fn blind(&self) -> Option<String> {
        self.capacity.blind()
    }

    fn govern(&self, policies: Arc<Policies>) {
        self.capacity.govern(policies);
    }

    fn commands(&self, service: &str) -> Vec<CommandRecord> {
        self.commands.active(service)
    }

    fn author(&self) -> String {
        Actor::center().name
    }

    fn give(&self, wanted: NewCommand, propose: bool) -> BoxFuture<'_, Result<CommandRecord, Error>> {
        Box::pin(async move {
            let actor = Actor::center();
            if let Action::Scale { .. } = wanted.action {
                return self.commands.give(&actor, wanted, propose).await;
            }
            // The centre stacks its own switches; whatever anyone else changes from here on is a conflict.
            let seen = self.commands.preview(&actor, &wanted).await?;
            let wanted = NewCommand { expected: Some(seen.revision), ..wanted };
            self.commands.give(&actor, wanted, propose).await
        })
    }

    fn declined<'a>(&'a self, action: &'a Action) -> BoxFuture<'a, Result<Option<(CommandRecord, Duration)>, Error>> {
        Box::pin(async move { self.commands.declined(&self.author(), action).await })
    }

    fn undo<'a>(&'a self, id: u64, reason: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.commands.undo(&Actor::center(), id, reason).await.map(|_| ()) })
    }

    fn size<'a>(&'a self, policy: &'a PoolPolicy) -> BoxFuture<'a, Result<u32, Error>> {
        Box::pin(self.scalers.size(policy))
    }

    fn scale<'a>(
        &'a self,
        policy: &'a PoolPolicy,
        size: u32,
        key: &'a str,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.scalers.set_by(&Actor::center(), policy, size, key, reason).await })
    }
}
