//! `nacos`: services and commands in Nacos, by the gRPC API of 2.x, where the server pushes, or the HTTP API of
//! 1.x, where lists are asked for again and again.
//!
//! `docs/wire/nacos.md` says what is read and written.

mod follow;
mod grpc;
mod http;
mod link;
mod login;
mod proto;
mod shape;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::{Context as _, bail};

use self::{http::Http, login::Login, shape::Names};
use super::{
    Registry,
    servers::{OneOrMore, servers},
};
use model::kind::Value;

use crate::{
    BuildCx,
    fetch::{Peer, tls},
};

/// Where Nacos' HTTP API listens by its own default.
const PORT: u16 = 8848;
/// From that port to the one of gRPC, by Nacos' own rule.
const GRPC_OFFSET: u16 = 1000;

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    address: Option<OneOrMore>,
    api: Option<Wire>,
    namespace: Option<String>,
    username: Option<String>,
    password: Option<String>,
    tls: Option<tls::Written>,
}

/// Which API is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wire {
    #[default]
    Grpc,
    Http,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let options: Options = model::kind::options(options)?;
    let addresses = servers(options.address, PORT)?;
    let wire = options.api.unwrap_or_default();
    let tls = match &options.tls {
        Some(_) if wire == Wire::Grpc => bail!("option `tls`: is for `api: http` only"),
        Some(tls) => Some(tls.http(&cx.base_dir).context("option `tls`")?),
        None => None,
    };
    let peer = |address: &String| match (&tls, Peer::parse(address, PORT)?) {
        (Some(tls), peer) => peer.over(tls.clone(), address),
        (None, peer) => Ok(peer),
    };
    let peers: Vec<_> = addresses.iter().map(peer).collect::<Result<_, _>>().context("address")?;
    let names = Names::new(options.namespace);
    let login = match options.username.filter(|name| !name.is_empty()) {
        Some(name) => Login::new(peers.clone(), name, options.password.unwrap_or_default()),
        None => Login::none(),
    };
    Ok(match wire {
        Wire::Grpc => grpc::registry(addresses, names, login)?,
        Wire::Http => Arc::new(Http::new(peers, names, login)),
    })
}
