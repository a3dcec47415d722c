//! Command texts: followed, and replaced when they still are what the writer saw.

use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::sync::watch;

use super::{
    Zookeeper,
    conn::{Conn, Failure, Watcher},
    java,
    link::Link,
    paths, sign,
    wire::{Code, Stat},
};
use crate::{
    CommandText, Scope,
    link::{self, connected},
    pause::{Pause, after},
    publish,
};

/// What lies in a command node.
struct Found {
    /// `None`: no node, or an empty one.
    text: Option<String>,
    /// `None`: no node.
    stat: Option<Stat>,
}

async fn read(conn: &Conn, path: &str, watcher: Option<&Arc<Watcher>>) -> Result<Found, Failure> {
    loop {
        match conn.data(path, watcher).await {
            Ok((data, stat)) => {
                // What is neither form reaches the reader as it is: he reports what he cannot understand.
                let text = java::read(&data).map_or_else(|_| String::from_utf8_lossy(&data).into_owned(), |t| t.text);
                return Ok(Found { text: Some(text).filter(|text| !text.trim().is_empty()), stat: Some(stat) });
            }
            Err(Failure::Refused(Code::NO_NODE)) => {
                if conn.exists(path, watcher).await?.is_none() {
                    return Ok(Found { text: None, stat: None });
                }
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Keeps `text` current. Returns when it never can be.
pub(super) async fn follow(
    registry: Arc<Zookeeper>,
    scope: Scope,
    text: watch::Sender<Arc<CommandText>>,
    mut link: watch::Receiver<Link>,
) {
    let path = match paths::command(&registry.options.root, &scope) {
        Ok(path) => path,
        Err(why) => {
            publish::stale(&text, &why);
            return;
        }
    };
    let watcher = Arc::new(Watcher::default());
    let (mut pause, mut session) = (Pause::default(), 0);
    loop {
        let down = |why: &str| _ = publish::stale(&text, why);
        let Some(conn) = connected(&mut link, down).await else { return };
        loop {
            let wait = match read(&conn, &path, Some(&watcher)).await {
                Ok(found) => {
                    pause.reset();
                    publish::good(&text, |now| now.text = found.text);
                    None
                }
                Err(Failure::Lost) => break,
                Err(failure) => {
                    publish::stale(&text, &format!("{}: {path}: {failure}", conn.server));
                    Some(pause.next())
                }
            };
            if let Scope::Agent(application) = &scope
                && std::mem::replace(&mut session, conn.session) != conn.session
            {
                sign::agent(&registry, &conn, application).await;
            }
            tokio::select! {
                _ = watcher.fired() => {}
                () = after(wait) => {}
                _ = conn.ended() => break,
            }
        }
    }
}

/// Replaces the text of `scope` if it is `expected`.
pub(super) async fn write(
    registry: &Zookeeper,
    scope: &Scope,
    expected: Option<&str>,
    text: &str,
    link: watch::Receiver<Link>,
) -> anyhow::Result<()> {
    let path = paths::command(&registry.options.root, scope).map_err(anyhow::Error::msg)?;
    link::write(link, async |conn| {
        replace(registry, &conn, &path, expected, text).await.with_context(|| format!("{}: {path}", conn.server))
    })
    .await
}

async fn replace(
    registry: &Zookeeper,
    conn: &Conn,
    path: &str,
    expected: Option<&str>,
    text: &str,
) -> anyhow::Result<()> {
    let fault = |failure: Failure| anyhow::anyhow!("{failure}");
    let found = read(conn, path, None).await.map_err(fault)?;
    if found.text.as_deref() != expected.filter(|text| !text.trim().is_empty()) {
        bail!("changed meanwhile: {}", found.text.as_deref().unwrap_or("there is no text now"));
    }
    let data = java::write(text, registry.options.encoding);
    let written = match found.stat {
        Some(stat) => conn.set_data(path, &data, stat.version).await,
        None => conn.create(path, &data, false).await,
    };
    match written {
        Ok(()) => Ok(()),
        Err(Failure::Refused(Code::BAD_VERSION | Code::NODE_EXISTS | Code::NO_NODE)) => {
            let found = read(conn, path, None).await.map_err(fault)?;
            bail!("changed meanwhile: {}", found.text.as_deref().unwrap_or("there is no text now"))
        }
        Err(failure) => Err(fault(failure)),
    }
}
