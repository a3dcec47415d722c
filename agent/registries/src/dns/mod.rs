//! `dns`: instances from SRV records, or from the addresses of a name and a port. Asked again when the records'
//! time to live is over.

mod ask;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use hickory_proto::rr::Name;
use model::{ServiceKey, Snapshot};
use tokio::sync::watch;

use self::ask::{Question, Resolver};
use super::{
    Registry,
    followed::Followed,
    pause::Pause,
    publish,
    servers::{OneOrMore, servers},
};
use model::kind::Value;

use crate::BuildCx;

/// Records are asked for again no sooner, however short they say they live: each question costs a resolver.
const SOONEST: Duration = Duration::from_secs(1);
/// And no later, however long they live: people wait for a change.
const LATEST: Duration = Duration::from_secs(60);
/// Where resolvers are written.
const RESOLV_CONF: &str = "/etc/resolv.conf";

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    name: Option<String>,
    port: Option<u16>,
    server: Option<OneOrMore>,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let options: Options = model::kind::options(options)?;
    if let Some(name) = &options.name {
        read_name(name).context("option `name`")?;
    }
    if options.port == Some(0) {
        bail!("option `port`: nobody listens on port 0; leave it out to ask for SRV records");
    }
    let given = match options.server {
        None => None,
        some => Some(resolvers(&servers(some, 53).map_err(|e| anyhow::anyhow!("option `server`: {e:#}"))?)?),
    };
    Ok(Arc::new(Dns { name: options.name, port: options.port, given, lists: Followed::default() }))
}

/// A name to ask for, complete whether it ends with a dot or not: search lists are not used.
fn read_name(text: &str) -> anyhow::Result<Name> {
    let mut name = Name::from_ascii(text).with_context(|| format!("`{text}` is no name"))?;
    name.set_fqdn(true);
    if name.is_root() {
        bail!("the empty name has no instances; write one like `_http._tcp.web.example`");
    }
    Ok(name)
}

fn resolvers(written: &[String]) -> anyhow::Result<Vec<SocketAddr>> {
    let read = |text: &String| text.parse().with_context(|| format!("option `server`: `{text}` is no IP address"));
    written.iter().map(read).collect()
}

/// The resolvers of the host.
fn of_host(path: &Path) -> anyhow::Result<Vec<SocketAddr>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    // A zone behind a link-local address is not understood, and the next resolver is asked.
    let found: Vec<_> = lines.filter_map(|rest| Some(SocketAddr::new(rest.trim().parse().ok()?, 53))).collect();
    if found.is_empty() {
        bail!("{} names no resolver; write one as option `server`", path.display());
    }
    Ok(found)
}

struct Dns {
    name: Option<String>,
    port: Option<u16>,
    given: Option<Vec<SocketAddr>>,
    lists: Followed<ServiceKey, Arc<Snapshot>>,
}

impl Registry for Dns {
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let name = self.name.clone().unwrap_or_else(|| service.service.clone());
        let (key, port, given) = (service.clone(), self.port, self.given.clone());
        self.lists.join(service.clone(), Arc::default(), |to| async move {
            match read_name(&name) {
                Ok(name) => follow(Question { name, port }, given, &key, &to).await,
                Err(error) => drop(publish::stale(&to, &format!("{error:#}"))),
            }
        })
    }
}

/// Asks for ever. An answer that there is no such name is an empty list; no answer keeps the last one.
async fn follow(
    question: Question,
    given: Option<Vec<SocketAddr>>,
    key: &ServiceKey,
    to: &watch::Sender<Arc<Snapshot>>,
) {
    let mut pause = Pause::default();
    loop {
        // The host's resolvers change when it moves to another network.
        let resolvers = given.clone().map_or_else(|| of_host(Path::new(RESOLV_CONF)), Ok);
        let found = match resolvers {
            Ok(resolvers) => question.ask(&Resolver(resolvers)).await,
            Err(error) => Err(error),
        };
        let next = match found {
            Ok(found) => {
                pause.reset();
                if publish::good(to, |list| list.instances = super::select(key, &found.instances)) {
                    tracing::info!(service = %key, name = %question.name, "the name is answered again");
                }
                let life = found.life.clamp(SOONEST, LATEST);
                life.mul_f64(0.9 + fastrand::f64() / 10.0)
            }
            Err(error) => {
                let error = format!("{error:#}");
                if publish::stale(to, &error) {
                    tracing::warn!(service = %key, name = %question.name, error, "no answer, keeping the last list");
                }
                pause.next()
            }
        };
        tokio::time::sleep(next).await;
    }
}
