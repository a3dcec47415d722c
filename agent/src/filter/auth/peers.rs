//! Callers known by where they call from: an address, or the user of a program on this host.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Deserialize;

use crate::{
    call::{Call, Text},
    config::{self, Network},
    sys,
};

/// How long what was found out about a connection is believed. A connection keeps its user for life; only
/// its address can come again with another one.
const KNOWN: Duration = Duration::from_secs(1);
/// Connections remembered at most.
const MOST: usize = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    application: String,
    address: Option<String>,
    uid: Option<u32>,
}

enum Who {
    From(Network),
    User(u32),
}

pub(super) struct Peers {
    list: Vec<(Who, Text)>,
    /// Users of connections.
    users: Mutex<HashMap<SocketAddr, (Instant, Option<u32>)>>,
}

impl Peers {
    pub(super) fn new(peers: Vec<Peer>) -> anyhow::Result<Self> {
        let one = |(i, peer): (usize, Peer)| {
            let who = match (peer.address, peer.uid) {
                (Some(address), None) => Who::From(config::network(&address).map_err(|wrong| {
                    anyhow::anyhow!("peers[{i}].address: `{address}` {}; {}", wrong.problem, wrong.remedy)
                })?),
                (None, Some(uid)) => Who::User(uid),
                _ => anyhow::bail!("peers[{i}]: says not who; write `address` or `uid`, one of them"),
            };
            Ok((who, Text::from(peer.application)))
        };
        let list: anyhow::Result<_> = peers.into_iter().enumerate().map(one).collect();
        Ok(Self { list: list?, users: Mutex::default() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The application of the first entry that fits.
    pub(super) fn application(&self, call: &Call) -> Option<Text> {
        let peer = call.peer?;
        let mut user = None;
        let fits = |who: &Who| match who {
            Who::From(network) => network.contains(peer.ip()),
            Who::User(uid) => *user.get_or_insert_with(|| self.user(peer, call)) == Some(*uid),
        };
        let mut fits = fits;
        self.list.iter().find(|(who, _)| fits(who)).map(|(_, application)| application.clone())
    }

    /// The user whose program holds the other end of the connection, if it is on this host.
    fn user(&self, peer: SocketAddr, call: &Call) -> Option<u32> {
        let mut users = self.users.lock();
        if let Some((at, user)) = users.get(&peer)
            && at.elapsed() < KNOWN
        {
            return *user;
        }
        let user = if call.pid != 0 {
            std::fs::metadata(format!("/proc/{}", call.pid)).ok().map(|process| process.uid())
        } else {
            let diag = sys::diag::Diag::open().ok();
            diag.zip(call.local).and_then(|(diag, local)| diag.uid(peer, local).ok().flatten())
        };
        if users.len() >= MOST {
            users.clear();
        }
        users.insert(peer, (Instant::now(), user));
        user
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_a_local_connection_is_found_by_its_socket_or_its_process() {
        let uid = rustix::process::getuid().as_raw();
        let list = || vec![Peer { application: "shop".to_owned(), address: None, uid: Some(uid) }];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(at).unwrap();
        let mut call = Call::new("web".into(), "echo".into());
        (call.peer, call.local) = (Some(client.local_addr().unwrap()), Some(at));
        let peers = Peers::new(list()).unwrap();
        assert_eq!(peers.application(&call), Some("shop".into()));
        assert_eq!(peers.application(&call), Some("shop".into()), "remembered");
        let stranger = Peers::new(vec![Peer { uid: Some(uid + 1), ..list().remove(0) }]).unwrap();
        assert_eq!(stranger.application(&call), None);
        // From elsewhere: no socket of this host has such an end.
        call.peer = Some("192.0.2.1:4000".parse().unwrap());
        assert_eq!(peers.application(&call), None);
        call.pid = std::process::id();
        call.peer = Some("192.0.2.1:4001".parse().unwrap());
        assert_eq!(peers.application(&call), Some("shop".into()));
    }
}
