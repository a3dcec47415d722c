//! What is learned of programs goes to the kernel half.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
};

use ebpf_common::Executable;

use super::{
    Redirect,
    learn::{File, Reason, Verdict},
    learner::Table,
};

/// Writes verdicts into the tables of a [`Redirect`], and does nothing once that is gone.
pub struct Verdicts(Weak<Redirect>);

impl Verdicts {
    /// Writes to `redirect`.
    pub fn new(redirect: &Arc<Redirect>) -> Self {
        Self(Arc::downgrade(redirect))
    }
}

impl Table for Verdicts {
    fn set(&self, file: File, pid: u32, verdict: Verdict) {
        let Some(redirect) = self.0.upgrade() else { return };
        let told = redirect.entry(file, pid).and_then(|entry| match entry {
            Some((_, known)) if known.verdict == Executable::OFF => Ok(()),
            Some((key, known)) => {
                let (verdict, reason) = numbers(verdict);
                redirect.set_executable(&key, &Executable { verdict, reason, pid, ..known })
            }
            // It accepts connections and opens none.
            None => Ok(()),
        });
        if let Err(error) = told {
            tracing::warn!(%error, pid, "cannot tell the kernel half about a program");
        }
    }

    fn set_acceptor(&self, at: SocketAddr, verdict: Verdict) {
        let Some(redirect) = self.0.upgrade() else { return };
        if let Err(error) = redirect.set_acceptor(at, numbers(verdict).0) {
            tracing::warn!(%error, %at, "cannot tell the kernel half about a program");
        }
    }

    fn refused(&self, file: File, pid: u32) -> Option<Reason> {
        let (_, known) = self.0.upgrade()?.entry(file, pid).ok()??;
        (known.verdict == Executable::OFF).then(|| Reason::from_number(known.reason)).flatten()
    }
}

/// Verdict and reason as the kernel half keeps them; while learning, the reason is how many were seen.
fn numbers(verdict: Verdict) -> (u32, u32) {
    match verdict {
        Verdict::Learning(seen) => (Executable::UNKNOWN, seen),
        Verdict::On => (Executable::ON, 0),
        Verdict::Off(reason) => (Executable::OFF, reason as u32),
    }
}
