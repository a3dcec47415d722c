//! `file`: instances and commands in a watched YAML or JSON file, which also takes registrations.
//!
//! A file that is broken, missing or empty costs nothing but freshness: the last good list stays, and
//! [`Snapshot::stale`] says what is wrong and where.

mod content;
mod follow;
mod write;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::bail;
use futures_util::future::BoxFuture;
use model::{ServiceKey, Snapshot};
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};

use self::content::Content;
use super::{CommandText, Provided, Registry, Scope, Standing, Wanted};
use model::kind::Value;
use registries::BuildCx;

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    path: Option<PathBuf>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let options: Options = crate::kind::options(options)?;
    let Some(path) = options.path.filter(|p| !p.as_os_str().is_empty()) else {
        bail!("the option `path` is missing; add `path: nodes.yaml`");
    };
    Ok(Arc::new(File::new(cx.base_dir.join(path))))
}

/// A registry in a file.
struct File(Arc<Shared>);

/// What watchers and the task that follows the file share.
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last good content.
    content: Option<Content>,
    /// Why the file as it is now is not `content`.
    fault: Option<String>,
    watched: HashMap<ServiceKey, watch::Sender<Arc<Snapshot>>>,
    texts: HashMap<Scope, watch::Sender<Arc<CommandText>>>,
    task: Option<JoinHandle<()>>,
}

impl File {
    fn new(path: PathBuf) -> Self {
        Self(Arc::new(Shared { path, state: Mutex::default() }))
    }

    /// A channel of the state, which is followed from now on.
    fn followed<T>(&self, channel: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.state.lock();
        let running = state.task.as_ref().is_some_and(|t| !t.is_finished());
        if !running {
            state.take(content::read(&self.0.path), &self.0.path);
        }
        let receiver = channel(&mut state);
        if !running {
            state.task = Some(tokio::spawn(follow::follow(self.0.clone())));
        }
        receiver
    }
}

impl Registry for File {
    /// The first watch reads the file at once (and blocks on it), so that a start does not begin with
    /// empty lists.
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        self.followed(|state| match state.watched.get(service) {
            Some(sender) => sender.subscribe(),
            None => {
                let first = state.next(service, &Snapshot::default());
                let (sender, receiver) = watch::channel(Arc::new(first));
                state.watched.insert(service.clone(), sender);
                receiver
            }
        })
    }

    fn register(&self, provided: &Provided, wanted: watch::Receiver<Wanted>) -> Option<watch::Receiver<Standing>> {
        let (tell, standing) = watch::channel(Standing::Pending(None));
        tokio::spawn(write::keep(self.0.path.clone(), provided.clone(), wanted, tell));
        Some(standing)
    }

    fn commands(&self, scope: &Scope) -> Option<watch::Receiver<Arc<CommandText>>> {
        Some(self.followed(|state| match state.texts.get(scope) {
            Some(sender) => sender.subscribe(),
            None => {
                let first = state.next_text(scope, &CommandText::default());
                let (sender, receiver) = watch::channel(Arc::new(first));
                state.texts.insert(scope.clone(), sender);
                receiver
            }
        }))
    }

    fn write_commands<'a>(
        &'a self,
        scope: &'a Scope,
        expected: Option<&'a str>,
        text: &'a str,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        let (path, scope) = (self.0.path.clone(), scope.clone());
        let (expected, text) = (expected.map(str::to_owned), text.to_owned());
        Box::pin(async move {
            let write = move || write::command(&path, &scope, expected.as_deref(), &text);
            tokio::task::spawn_blocking(write).await?
        })
    }
}

impl State {
    /// Takes in what was read, and tells everybody whom it concerns.
    fn take(&mut self, read: Result<Content, String>, path: &Path) {
        match read {
            Ok(content) => {
                if self.fault.take().is_some() {
                    tracing::info!(file = %path.display(), "registry file is good again");
                }
                self.content = Some(content);
            }
            Err(reason) => {
                // Once per reason, not once per look.
                if self.fault.as_ref() != Some(&reason) {
                    tracing::warn!(file = %path.display(), %reason, "registry file is broken, keeping the last good lists");
                }
                self.fault = Some(reason);
            }
        }
        let watched: Vec<_> = self.watched.iter().map(|(k, s)| (k.clone(), s.clone())).collect();
        for (service, sender) in watched {
            sender.send_if_modified(|current| {
                let next = self.next(&service, current);
                let changed = next != **current;
                if changed {
                    if next.stale != current.stale
                        && self.fault.is_none()
                        && let Some(reason) = &next.stale
                    {
                        tracing::warn!(file = %path.display(), %service, %reason, "registry file is partly unusable");
                    }
                    *current = Arc::new(next);
                }
                changed
            });
        }
        let texts: Vec<_> = self.texts.iter().map(|(k, s)| (k.clone(), s.clone())).collect();
        for (scope, sender) in texts {
            sender.send_if_modified(|current| {
                let next = self.next_text(&scope, current);
                let changed = next != **current;
                if changed {
                    *current = Arc::new(next);
                }
                changed
            });
        }
    }

    /// The command text of `scope` that follows `current`; the same if nothing changed.
    fn next_text(&self, scope: &Scope, current: &CommandText) -> CommandText {
        let mut next = CommandText { stale: self.fault.clone(), ..current.clone() };
        let Some(content) = &self.content else { return next };
        next.text = content.command(scope).map(str::to_owned);
        if next != *current || current.revision == 0 {
            next.revision = current.revision + 1;
        }
        next
    }

    /// The snapshot of `service` that follows `current`; the same if nothing changed.
    fn next(&self, service: &ServiceKey, current: &Snapshot) -> Snapshot {
        let mut next = current.clone();
        next.stale.clone_from(&self.fault);
        if let Some(content) = &self.content {
            let (instances, left_out) = content.of(service);
            if next.stale.is_none() {
                next.stale = left_out;
            }
            // Nothing but bad addresses is a mistake, not the wish to have no instance.
            next.instances = instances.unwrap_or(next.instances);
        }
        if next != *current || (current.revision == 0 && self.content.is_some()) {
            // A list nobody could read yet stays at revision 0, whatever its reason.
            next.revision = if self.content.is_some() { current.revision + 1 } else { 0 };
        }
        next
    }
}
