//! What to do when an attempt fails. A strategy is a loop over [`Attempts::send`]; the mechanics are here.

mod attempt;
mod attempts;
mod backup_request;
mod broadcast;
mod budget;
mod failfast;
mod failover;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use futures_util::future::BoxFuture;

pub use self::{attempt::Attempt, attempts::Attempts};
use crate::{
    call::{CallError, Request, Response},
    kind::Kind,
};

/// HA strategies by name.
pub const KINDS: &[Kind<dyn HaStrategy>] = &[
    Kind { name: "backup_request", build: backup_request::build },
    Kind { name: "broadcast", build: broadcast::build },
    Kind { name: "failfast", build: failfast::build },
    Kind { name: "failover", build: failover::build },
];

/// Decides how often and where a call is tried.
pub trait HaStrategy: Send + Sync + 'static {
    /// Makes attempts until one is good enough or nothing is left to try. Dropping the future cancels
    /// the attempts in flight.
    fn call<'a>(&'a self, attempts: &'a Attempts<'a>, req: &'a mut Request) -> BoxFuture<'a, Result<Sent, CallError>>;
}

/// An answer with the guard that counts its endpoint as busy until the body is through.
pub struct Sent {
    /// The answer.
    pub response: Response,
    /// Ends the attempt.
    pub attempt: Attempt,
}
