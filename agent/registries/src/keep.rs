//! One registration, kept as wanted.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{
    Standing, Wanted,
    link::{Ends, Link, connected},
    pause::Pause,
};

/// A registration as a kind of registry makes it. Each call has an end of its own (a time-out).
pub(super) trait Hold: Send + Sync + 'static {
    /// Makes it known, for callers or not. Harmless when it is known already.
    fn put(&self, available: bool) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Says that it still lives; an error when the registry does not know it any more.
    fn renew(&self, available: bool) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Takes it back. Harmless when it is not known.
    fn take(&self) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// How often [`Hold::renew`] is due.
    fn every(&self) -> Duration;
    /// Returns when it must be made known anew before that. For kinds that are told so.
    fn lost(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
    /// What it is, for the log.
    fn name(&self) -> String;
}

/// Keeps a registration as `wanted` says, until that is [`Wanted::Gone`] and done, or its sender is dropped: then
/// the registry forgets it by its own rules. Must be called within a tokio runtime.
///
/// A step that has begun comes to its end before the next: a registration that overtakes its own withdrawal
/// would stay.
pub(super) fn keep(hold: impl Hold, mut wanted: watch::Receiver<Wanted>) -> watch::Receiver<Standing> {
    let (told, standing) = watch::channel(Standing::Pending(None));
    tokio::spawn(async move {
        let mut pause = Pause::default();
        let mut failing = false;
        loop {
            let want = *wanted.borrow_and_update();
            let done = match want {
                Wanted::Available => hold.put(true).await,
                Wanted::Unavailable => hold.put(false).await,
                Wanted::Gone => hold.take().await,
            };
            match done {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!(registration = hold.name(), "the registry takes it again");
                    }
                    pause.reset();
                    told.send_replace(match want {
                        Wanted::Available => Standing::Available,
                        Wanted::Unavailable => Standing::Unavailable,
                        Wanted::Gone => Standing::Gone,
                    });
                    if want == Wanted::Gone || held(&hold, want, &mut wanted).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(registration = hold.name(), error, "the registry does not take it, trying on");
                    }
                    told.send_replace(Standing::Pending(Some(error)));
                    tokio::select! {
                        () = sleep(pause.next()) => {}
                        changed = wanted.changed() => if changed.is_err() { return },
                    }
                }
            }
        }
    });
    standing
}

/// Renews until something else is wanted or the registry has lost it; an error when nobody wants anything.
async fn held(
    hold: &impl Hold,
    want: Wanted,
    wanted: &mut watch::Receiver<Wanted>,
) -> Result<(), watch::error::RecvError> {
    loop {
        // Not all registrations of all agents at one moment.
        let next = hold.every().mul_f64(0.9 + fastrand::f64() / 10.0);
        tokio::select! {
            changed = wanted.changed() => return changed,
            () = hold.lost() => return Ok(()),
            () = sleep(next) => {
                if let Err(error) = hold.renew(want == Wanted::Available).await {
                    tracing::debug!(registration = hold.name(), error = format!("{error:#}"), "not renewed, made anew");
                    return Ok(());
                }
            }
        }
    }
}

/// What is wanted now, for kinds whose registrations end with their session: what nobody wants any more is gone.
pub(super) fn goal(wanted: &mut watch::Receiver<Wanted>) -> Wanted {
    let gone = wanted.has_changed().is_err();
    let now = *wanted.borrow_and_update();
    if gone { Wanted::Gone } else { now }
}

/// Tells why it is not held; true when that was not known.
pub(super) fn pending(standing: &watch::Sender<Standing>, why: &str) -> bool {
    standing.send_if_modified(|now| {
        let next = Standing::Pending(Some(why.to_owned()));
        let new = *now != next;
        *now = next;
        new
    })
}

/// [`pending`], which is logged when it was not known: for kinds whose tasks each keep one registration.
pub(super) fn not_held(standing: &watch::Sender<Standing>, why: &str) {
    if pending(standing, why) {
        tracing::warn!(why, "a registration is not held");
    }
}

/// The connection on which a registration is brought to where it is wanted, as soon as there is one. `None` when there
/// is nothing more to do: nobody wants what the registry was never `told`, or the registry itself is gone.
pub(super) async fn connection<C: Ends>(
    link: &mut watch::Receiver<Link<C>>,
    told: bool,
    wanted: &mut watch::Receiver<Wanted>,
    standing: &watch::Sender<Standing>,
) -> Option<Arc<C>> {
    loop {
        if !told && goal(wanted) == Wanted::Gone {
            standing.send_replace(Standing::Gone);
            return None;
        }
        tokio::select! {
            conn = connected(link, |why| not_held(standing, why)) => return conn,
            // Only what was never told needs no connection to be gone.
            _ = wanted.changed(), if !told => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use parking_lot::Mutex;

    use super::*;

    /// Takes what its script says, and writes down what it was asked.
    #[derive(Clone, Default)]
    struct Script {
        asked: Arc<Mutex<Vec<String>>>,
        refuse: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Script {
        fn step(&self, what: &str) -> anyhow::Result<()> {
            self.asked.lock().push(what.to_owned());
            let mut refuse = self.refuse.lock();
            if let Some(at) = refuse.iter().position(|r| *r == what) {
                refuse.remove(at);
                bail!("no {what}");
            }
            Ok(())
        }

        fn asked(&self) -> String {
            std::mem::take(&mut *self.asked.lock()).join(" ")
        }
    }

    impl Hold for Script {
        async fn put(&self, available: bool) -> anyhow::Result<()> {
            self.step(if available { "open" } else { "closed" })
        }

        async fn renew(&self, _: bool) -> anyhow::Result<()> {
            self.step("renew")
        }

        async fn take(&self) -> anyhow::Result<()> {
            self.step("take")
        }

        fn every(&self) -> Duration {
            Duration::from_secs(10)
        }

        fn name(&self) -> String {
            "test".into()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_made_renewed_made_again_and_taken_back() {
        let script = Script::default();
        let (want, wanted) = watch::channel(Wanted::Unavailable);
        let mut standing = keep(script.clone(), wanted);
        standing.wait_for(|s| *s == Standing::Unavailable).await.unwrap();
        script.refuse.lock().push("open");
        want.send_replace(Wanted::Available);
        standing.wait_for(|s| *s == Standing::Pending(Some("no open".into()))).await.unwrap();
        standing.wait_for(|s| *s == Standing::Available).await.unwrap();
        assert_eq!(script.asked(), "closed open open");
        script.refuse.lock().push("renew");
        sleep(Duration::from_secs(25)).await;
        assert_eq!(script.asked(), "renew open renew", "what the registry forgot is made anew at once");
        script.refuse.lock().extend(["take", "take"]);
        want.send_replace(Wanted::Gone);
        standing.wait_for(|s| *s == Standing::Gone).await.unwrap();
        assert_eq!(script.asked(), "take take take");
        assert!(standing.changed().await.is_err(), "nothing more follows");
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_its_owner() {
        let script = Script::default();
        script.refuse.lock().extend(["open"; 100]);
        let (want, wanted) = watch::channel(Wanted::Available);
        let mut standing = keep(script.clone(), wanted);
        sleep(Duration::from_secs(5)).await;
        drop(want);
        while standing.changed().await.is_ok() {}
        assert!(script.asked().starts_with("open open"));
    }
}
