//! The one connection of a registry: kept by a task of its own, used by everything that follows, registers or writes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{sync::watch, time::timeout};

/// How long a writer of commands waits, for a connection and its answer together.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection, which ends some day.
pub(super) trait Ends {
    /// Whether it has ended.
    fn is_over(&self) -> bool;
}

/// Whether the registry can be asked.
pub(super) struct Link<C> {
    /// The connection; `None` while there is none.
    conn: Option<Arc<C>>,
    /// Why there is none; empty when nobody knows yet.
    why: String,
}

impl<C> Default for Link<C> {
    fn default() -> Self {
        Self { conn: None, why: String::new() }
    }
}

impl<C> Link<C> {
    /// There is a connection.
    pub fn up(conn: Arc<C>) -> Self {
        Self { conn: Some(conn), why: String::new() }
    }

    /// There is none any more.
    pub fn down(why: String) -> Self {
        Self { conn: None, why }
    }
}

/// None of the servers took a connection: tells why not, and logs it when that is new. Nothing without reasons.
pub(super) fn unreachable<C>(link: &watch::Sender<Link<C>>, kind: &'static str, reasons: &[String]) {
    if reasons.is_empty() {
        return;
    }
    let why = reasons.join("; ");
    link.send_if_modified(|link| {
        let new = link.why != why;
        if new {
            tracing::warn!(%why, "{kind}: no server can be reached");
            link.why = why;
        }
        new
    });
}

/// The connection, as soon as there is one; `down` is told why there is none. `None`: nobody keeps it any more, the
/// registry itself is gone.
pub(super) async fn connected<C: Ends>(
    link: &mut watch::Receiver<Link<C>>,
    mut down: impl FnMut(&str),
) -> Option<Arc<C>> {
    loop {
        {
            let now = link.borrow_and_update();
            // One that just ended is still here until its keeper has noticed.
            if let Some(conn) = now.conn.as_ref().filter(|conn| !conn.is_over()) {
                return Some(conn.clone());
            }
            if !now.why.is_empty() {
                down(&now.why);
            }
        }
        link.changed().await.ok()?;
    }
}

/// Does `work` on the connection as soon as there is one. Gives up after five seconds: what had begun may be done then.
pub(super) async fn write<C: Ends, F: Future<Output = anyhow::Result<()>>>(
    mut link: watch::Receiver<Link<C>>,
    work: impl FnOnce(Arc<C>) -> F,
) -> anyhow::Result<()> {
    let mut why = String::new();
    let writing = async {
        let conn = connected(&mut link, |reason| reason.clone_into(&mut why)).await;
        work(conn.context("the registry was taken away")?).await
    };
    match timeout(PATIENCE, writing).await {
        Ok(result) => result,
        Err(_) if why.is_empty() => bail!("no answer within {PATIENCE:?}; look whether the text was written"),
        Err(_) => bail!("no server can be reached: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Test(bool);

    impl Ends for Test {
        fn is_over(&self) -> bool {
            self.0
        }
    }

    #[tokio::test]
    async fn only_a_connection_that_has_not_ended_is_one() {
        let (keeper, mut link) = watch::channel(Link::<Test>::default());
        let mut told = Vec::new();
        let finding = connected(&mut link, |why| told.push(why.to_owned()));
        let keeping = async {
            keeper.send_replace(Link::up(Arc::new(Test(true))));
            tokio::task::yield_now().await;
            for _ in 0..2 {
                unreachable(&keeper, "test", &["a: refused".to_owned(), "b: silent".to_owned()]);
                unreachable(&keeper, "test", &[]);
                tokio::task::yield_now().await;
            }
            keeper.send_replace(Link::up(Arc::new(Test(false))));
        };
        let (found, ()) = tokio::join!(finding, keeping);
        assert!(found.is_some());
        assert_eq!(told, ["a: refused; b: silent"]);
        keeper.send_replace(Link::down("gone".to_owned()));
        drop(keeper);
        assert!(connected(&mut link, |_| {}).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_waits_so_long_and_says_why_it_was_in_vain() {
        let (keeper, link) = watch::channel(Link::<Test>::default());
        let write = async |link: &watch::Receiver<Link<Test>>| {
            write(link.clone(), async |conn| if conn.0 { Ok(()) } else { std::future::pending().await }).await
        };
        assert!(write(&link).await.unwrap_err().to_string().contains("no answer within 5s"));
        keeper.send_replace(Link::down("a: refused".to_owned()));
        assert_eq!(write(&link).await.unwrap_err().to_string(), "no server can be reached: a: refused");
        keeper.send_replace(Link::up(Arc::new(Test(false))));
        assert!(write(&link).await.unwrap_err().to_string().contains("look whether"));
        drop(keeper);
        let (_, link) = watch::channel(Link::<Test>::default());
        assert_eq!(write(&link).await.unwrap_err().to_string(), "the registry was taken away");
    }
}
