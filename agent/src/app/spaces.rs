//! Listeners in network namespaces other than the agent's own, so that one agent serves a whole host.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::serving::{self, Served, Serving};
use crate::{
    accept::Target,
    admin,
    capture::{Capture, enroll::space::Space},
    names::{Answering, There},
    route::Routes,
};

/// The agent's presence in other namespaces.
pub(super) struct Spaces {
    capture: Arc<dyn Capture>,
    serving: Serving,
    routes: Arc<ArcSwap<Routes>>,
    /// The port that is taken in every namespace where it is free.
    port: u16,
    answering: Answering,
    open: HashMap<u64, Open>,
    /// What `/enrolled` shows.
    pub(super) view: Arc<ArcSwap<Vec<admin::view::Space>>>,
}

struct Open {
    space: Space,
    at: Vec<SocketAddr>,
    /// Why it does not listen there, or not on both addresses.
    trouble: Option<String>,
    served: Vec<Served>,
    /// Questions for names are answered there too.
    names: Option<There>,
}

impl Spaces {
    pub(super) fn new(
        capture: Arc<dyn Capture>,
        serving: Serving,
        routes: Arc<ArcSwap<Routes>>,
        port: u16,
        answering: Answering,
    ) -> Self {
        Self { capture, serving, routes, port, answering, open: HashMap::new(), view: Arc::default() }
    }

    /// Listens where enrolled programs live and no longer where none do. With `all` every program is looked
    /// at, and what failed is tried again.
    pub(super) fn update(&mut self, all: bool) {
        let wanted = self.capture.spaces(all);
        let mut changed = false;
        let gone: Vec<_> = self.open.keys().filter(|c| wanted.iter().all(|w| w.cookie != **c)).copied().collect();
        for cookie in gone {
            self.close(cookie);
            changed = true;
        }
        for space in wanted {
            match self.open.get(&space.cookie) {
                None => {}
                Some(open) if all && open.at.is_empty() => {}
                Some(_) => continue,
            }
            let before = self.open.remove(&space.cookie).and_then(|open| open.trouble);
            let cookie = space.cookie;
            let open = self.listen(space);
            if open.trouble.is_some() && open.trouble != before {
                tracing::warn!(
                    namespace = open.space.label,
                    error = open.trouble,
                    "programs in this network namespace connect directly where the agent does not listen"
                );
            }
            self.open.insert(cookie, open);
            changed = true;
        }
        if changed {
            let mut rows: Vec<_> = self.open.values().map(Open::row).collect();
            rows.sort_by_key(|row| row.cookie);
            self.view.store(Arc::new(rows));
        }
    }

    fn listen(&self, space: Space) -> Open {
        let mut open = Open { space, at: Vec::new(), trouble: None, served: Vec::new(), names: None };
        let Some(drain) = self.serving.drain() else { return open };
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let port = self.port;
            // Errors of a thread in there keep their text; that is all that is done with them.
            let bound = open.space.enter(|| {
                let bind = |port| serving::bind(SocketAddr::new(ip, port)).map_err(std::io::Error::other);
                if ip.is_ipv6() && !Path::new("/proc/thread-self/net/if_inet6").exists() {
                    return Err(std::io::Error::other("no IPv6"));
                }
                let listener = bind(port).or_else(|_| bind(0))?;
                let at = listener.local_addr()?;
                Ok((listener, at))
            });
            match bound {
                Ok((listener, at)) => {
                    open.at.push(at);
                    open.served.push(self.serving.start(listener, Target::Captured(self.routes.clone())));
                }
                Err(error) => open.trouble = Some(format!("{ip}: {error}")),
            }
        }
        if let Err(error) = self.capture.set_space(&open.space, &open.at) {
            open.trouble = Some(format!("the kernel's table of listeners: {error}"));
        }
        match self.answering.open_in(&open.space, &drain) {
            Ok(names) => open.names = names,
            Err(error) => open.trouble = Some(format!("names: {error:#}")),
        }
        tracing::info!(namespace = open.space.label, cookie = open.space.cookie, at = ?open.at, "listening there");
        open
    }

    fn close(&mut self, cookie: u64) {
        let Some(open) = self.open.remove(&cookie) else { return };
        // First no connect is sent there any more; what was sent is still accepted.
        if let Err(error) = self.capture.set_space(&open.space, &[]) {
            tracing::warn!(%error, "cannot take a listener from the kernel's table");
        }
        drop(open.names);
        open.served.into_iter().for_each(Served::stop);
        tracing::info!(namespace = open.space.label, cookie, "nobody enrolled lives there any more");
    }
}

impl Open {
    fn row(&self) -> admin::view::Space {
        admin::view::Space {
            cookie: self.space.cookie,
            found_as: self.space.label.clone(),
            listeners: self.at.clone(),
            trouble: self.trouble.clone(),
        }
    }
}
