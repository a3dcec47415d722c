//! `center`: the governance centre of this mesh. One long poll for everything that the agent follows, one message for
//! everything that it provides, one heartbeat for all of it. Several addresses; any one that answers is enough.

mod follow;
mod holds;
mod link;
mod stamps;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::Method;
use model::{
    ServiceKey, Snapshot,
    center::{CommandScope, NewText, PORT},
    kind::Value,
};
use tokio::sync::watch;

pub use self::stamps::seen;
use self::{follow::Follows, holds::Holds, link::Link, stamps::Stamps};
use super::{
    BuildCx, CommandText, Provided, Registry, Scope, Standing, Wanted,
    followed::Followed,
    servers::{OneOrMore, duration, servers},
};

/// As Motan's clients of other registries have it: three heartbeats, of which two may be lost.
const TTL: Duration = Duration::from_secs(30);

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    address: Option<OneOrMore>,
    token: Option<String>,
    ca_file: Option<PathBuf>,
    ttl: Option<String>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let options: Options = model::kind::options(options)?;
    let usual = cx.center.as_deref();
    let written = options.address.or_else(|| usual.map(|center| OneOrMore::More(center.addresses.clone())));
    let addresses = addresses(written)?;
    let token = options.token.or_else(|| usual.and_then(|center| center.token.clone())).filter(|t| !t.is_empty());
    let ttl = duration("ttl", options.ttl.as_deref(), TTL)?;
    if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&ttl) {
        anyhow::bail!("option `ttl`: {ttl:?} is no time that a centre takes; write 1s to 1h");
    }
    let stamps = Stamps::read(cx.state.as_deref(), &addresses);
    let agent = if cx.agent.is_empty() { cx.application.to_string() } else { cx.agent.to_string() };
    let ca = options.ca_file.map(|ca| cx.base_dir.join(ca)).or_else(|| usual.and_then(|center| center.ca.clone()));
    let link = Arc::new(Link::new(&addresses, token, ca.as_deref())?);
    let follows = Arc::new(Follows::new(agent.clone(), link.clone(), stamps));
    let holds = Arc::new(Holds::new(agent, ttl, link.clone()));
    Ok(Arc::new(Center { link, follows, holds, lists: Followed::default(), texts: Followed::default() }))
}

/// `HOST:PORT` of each centre, with `https://` before those that speak TLS.
fn addresses(written: Option<OneOrMore>) -> anyhow::Result<Vec<String>> {
    let written = match written {
        None => Vec::new(),
        Some(OneOrMore::One(one)) => vec![one],
        Some(OneOrMore::More(more)) => more,
    };
    let mut addresses = Vec::new();
    for text in written.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty()) {
        let (scheme, rest) = match text.split_once("://") {
            Some(("https", rest)) => ("https://", rest),
            Some(("http", rest)) => ("", rest),
            _ => ("", text),
        };
        let rest = rest.trim_end_matches('/').to_owned();
        addresses.extend(servers(Some(OneOrMore::One(rest)), PORT)?.into_iter().map(|at| format!("{scheme}{at}")));
    }
    if addresses.is_empty() {
        return servers(None, PORT);
    }
    Ok(addresses)
}

struct Center {
    link: Arc<Link>,
    follows: Arc<Follows>,
    holds: Arc<Holds>,
    lists: Followed<ServiceKey, Arc<Snapshot>>,
    texts: Followed<Scope, Arc<CommandText>>,
}

impl Registry for Center {
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let (follows, key) = (self.follows.clone(), service.clone());
        self.lists.join(service.clone(), Arc::default(), |to| async move {
            let _followed = follows.list(key, to);
            std::future::pending::<()>().await;
        })
    }

    fn register(&self, provided: &Provided, wanted: watch::Receiver<Wanted>) -> Option<watch::Receiver<Standing>> {
        Some(self.holds.hold(provided.clone(), wanted))
    }

    fn commands(&self, scope: &Scope) -> Option<watch::Receiver<Arc<CommandText>>> {
        let (follows, of) = (self.follows.clone(), scope_of(scope));
        Some(self.texts.join(scope.clone(), Arc::default(), |to| async move {
            let _followed = follows.text(of, to);
            std::future::pending::<()>().await;
        }))
    }

    fn write_commands<'a>(
        &'a self,
        scope: &'a Scope,
        expected: Option<&'a str>,
        text: &'a str,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let new =
                NewText { scope: scope_of(scope), expected: expected.map(str::to_owned), text: Some(text.to_owned()) };
            let answer = self.link.ask(Method::PUT, "/v1/text", &new, link::PATIENCE).await?;
            answer.success().map(drop)
        })
    }
}

fn scope_of(scope: &Scope) -> CommandScope {
    match scope {
        Scope::Group(name) => CommandScope::Group(name.clone()),
        Scope::Agent(name) => CommandScope::Agent(name.clone()),
    }
}
