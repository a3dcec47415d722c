//! What `sockmesh explain` asks: recent calls of a service, and the recording of the next one.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Handles, stat, view};
use crate::{
    cluster::Cluster,
    metrics::{LOST, LostCall},
};

/// Names listed of services that there are.
const MAX_KNOWN: usize = 30;
/// Of those the nearest.
const MAX_NEAR: usize = 5;

/// What is asked for.
enum Wanted {
    /// A service, with group and version or without.
    Service(String),
    /// What is dialed: an address, or every port of one.
    Address(IpAddr, Option<u16>),
}

impl Wanted {
    fn of(text: String) -> Self {
        match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
            (Ok(at), _) => Self::Address(at.ip().to_canonical(), Some(at.port())),
            (_, Ok(ip)) => Self::Address(ip.to_canonical(), None),
            _ => Self::Service(text),
        }
    }

    fn is_cluster(&self, cluster: &Cluster) -> bool {
        let key = &cluster.info.key;
        matches!(self, Self::Service(name) if key.service == *name || key.to_string() == *name)
    }

    fn is_at(&self, dialed: SocketAddr) -> bool {
        let ip = dialed.ip().to_canonical();
        matches!(self, Self::Address(wanted, port) if *wanted == ip && port.is_none_or(|port| port == dialed.port()))
    }

    /// Whether it was this that the calls of a row missed.
    fn is_lost(&self, row: &LostCall) -> bool {
        let of = |group: &str| [group, "/", &row.service].concat();
        let version = |name: String| [name.as_str(), ":", &row.version].concat();
        match self {
            Self::Service(name) => {
                let named = [row.service.clone(), of(&row.group)];
                !row.service.is_empty() && (named.contains(name) || named.into_iter().any(|n| version(n) == *name))
            }
            Self::Address(..) => row.dialed.is_some_and(|dialed| self.is_at(dialed)),
        }
    }
}

/// `GET /explain?service=`.
pub(super) fn page(handles: &Handles, query: Option<&str>) -> Result<view::Explained, String> {
    let text = asked(query)?;
    let wanted = Wanted::of(text.clone());
    let all = handles.clusters.load();
    let clusters: Vec<_> = all.iter().filter(|c| wanted.is_cluster(c)).collect();
    let by_name = matches!(wanted, Wanted::Service(_));
    let told = if by_name { clusters.clone() } else { all.iter().collect() };
    let mut stories: Vec<_> = told.iter().flat_map(|c| c.info.stats.recent.stories()).collect();
    stories.retain(|story| by_name || story.dialed.is_some_and(|dialed| wanted.is_at(dialed)));
    stories.sort_by_key(|story| story.id);
    let mut connections = stat::sockets(handles).sockets;
    connections.retain(|row| match by_name {
        true => clusters.iter().any(|c| row.service == c.info.key.service),
        false => wanted.is_at(row.destination),
    });
    let troubles = clusters.iter().flat_map(|cluster| troubles(handles, cluster));
    // A service whose protocol is detected has a cluster for each.
    let mut troubles: Vec<_> = troubles.collect();
    troubles.dedup();
    let lost: Vec<_> = LOST.rows().into_iter().filter(|row| wanted.is_lost(row)).collect();
    let is_known = if by_name { !clusters.is_empty() } else { !stories.is_empty() || !connections.is_empty() };
    let unknown = (!is_known).then(|| unknown(text, &wanted, &all));
    let stories = stories.iter().map(|story| (**story).clone()).collect();
    Ok(view::Explained { stories, connections, troubles, unknown, lost })
}

/// What is wrong with the service itself.
fn troubles(handles: &Handles, cluster: &Cluster) -> Vec<String> {
    let mut troubles = Vec::new();
    let set = cluster.endpoints();
    if set.endpoints.is_empty() {
        troubles.push(format!("no endpoint of {} is known", cluster.info.key));
    } else if set.endpoints.iter().all(|e| e.weight == 0) {
        troubles.push(format!("every endpoint of {} has weight 0", cluster.info.key));
    }
    troubles.extend(handles.stale.get(&cluster.info.key).map(|why| format!("the list is old: {why}")));
    troubles.extend(cluster.steering().troubles.iter().cloned());
    troubles
}

fn unknown(text: String, wanted: &Wanted, clusters: &[Arc<Cluster>]) -> view::Unknown {
    let mut known: Vec<_> = clusters.iter().map(|c| c.info.key.to_string()).collect();
    known.sort();
    known.dedup();
    let (rule, answer) = match wanted {
        Wanted::Service(name) => (
            format!("a referer (calls of local programs) or a provided service (calls from elsewhere) named `{name}`"),
            "Motan2 calls for it get exception 400 (from elsewhere 404), type 1; a connection is of the service whose \
             address it dials, whatever it asks for; a program whose connections are not captured never comes here"
                .to_owned(),
        ),
        Wanted::Address(..) => (
            format!("a service with the address {text}, called lately or now"),
            "a captured connection to an address without a service goes straight on to it".to_owned(),
        ),
    };
    let near = if let Wanted::Service(name) = wanted { near(name, &known) } else { Vec::new() };
    let more = known.len().saturating_sub(MAX_KNOWN);
    known.truncate(MAX_KNOWN);
    view::Unknown { wanted: text, rule, near, known, more, answer }
}

/// Names like `wanted`: another case, the same last part, a part of it, or a few letters that differ.
fn near(wanted: &str, known: &[String]) -> Vec<String> {
    // Group and version are not what a name is mistaken for.
    let bare = |name: &str| {
        let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
        name.split(':').next().unwrap_or(name).to_lowercase()
    };
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let wanted = bare(wanted);
    let rank = |name: &String| {
        let name = bare(name);
        // Quadratic, and what was asked for may be anything.
        let is_short = wanted.len().max(name.len()) <= 256;
        let distance = if is_short { strsim::damerau_levenshtein(&wanted, &name) } else { usize::MAX };
        let rank = if name == wanted {
            0
        } else if last(&name) == last(&wanted) {
            1
        } else if distance <= wanted.len().max(name.len()) / 3 {
            1 + distance
        } else if wanted.len() >= 3 && (name.contains(&wanted) || wanted.contains(&name)) {
            100
        } else {
            return None;
        };
        Some(rank)
    };
    let mut near: Vec<_> = known.iter().filter_map(|name| Some((rank(name)?, name.clone()))).collect();
    near.sort();
    near.into_iter().map(|(_, name)| name).take(MAX_NEAR).collect()
}

/// `POST /explain/next?service=`.
pub(super) fn ask(handles: &Handles, query: Option<&str>) -> Result<String, String> {
    let text = asked(query)?;
    let wanted = Wanted::of(text.clone());
    let clusters = handles.clusters.load();
    let mut clusters = clusters.iter().filter(|c| wanted.is_cluster(c)).peekable();
    let Some(first) = clusters.peek().map(|c| c.info.key.to_string()) else {
        // Such calls are kept in any case.
        return Ok(format!("no service `{text}` is here; the next call that asks for it will be told"));
    };
    clusters.for_each(|cluster| cluster.info.stats.recent.ask());
    Ok(format!("the next call of {first} will be recorded"))
}

/// What `?service=` says.
fn asked(query: Option<&str>) -> Result<String, String> {
    let mut wanted = None;
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*name {
            "service" => wanted = Some(value.into_owned()),
            other => return Err(format!("no parameter `{other}`; there is `service`")),
        }
    }
    wanted.filter(|name| !name.is_empty()).ok_or_else(|| "add ?service= with the name of a service".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_like_the_wanted_one() {
        let known = ["a/com.shop.Cart:1", "b/com.shop.Cart", "com.shop.Order", "web", "webshop", "zzz"];
        let known: Vec<_> = known.into_iter().map(String::from).collect();
        let near = |wanted: &str| near(wanted, &known).join(" ");
        assert_eq!(near("com.shop.cart"), "a/com.shop.Cart:1 b/com.shop.Cart");
        assert_eq!(near("com.acme.Order"), "com.shop.Order");
        assert_eq!(near("wbe"), "web");
        assert_eq!(near("web-shop"), "webshop web");
        assert_eq!(near("c/com.shop.Cart:2"), "a/com.shop.Cart:1 b/com.shop.Cart");
        assert_eq!(near("nothing.like.it"), "");
    }

    #[test]
    fn rows_are_found_by_every_way_to_write_them() {
        let row = LostCall {
            service: "s".to_owned(),
            group: "g".to_owned(),
            version: "1".to_owned(),
            dialed: "[::ffff:10.0.0.1]:80".parse().ok(),
            ..LostCall::default()
        };
        let is = |text: &str| Wanted::of(text.to_owned()).is_lost(&row);
        for text in ["s", "g/s", "g/s:1", "s:1", "10.0.0.1:80", "10.0.0.1"] {
            assert!(is(text), "{text}");
        }
        for text in ["", "t", "h/s", "s:2", "10.0.0.1:81", "10.0.0.2"] {
            assert!(!is(text), "{text}");
        }
    }
}
