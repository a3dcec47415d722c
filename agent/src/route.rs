//! From where a connection wanted to go, and what a request asks for, to the cluster that serves it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use arc_swap::ArcSwap;

use crate::{
    call::{
        Call, CallError, ErrorKind, Pairs, Text,
        exception::{Exception, Failed},
    },
    config::VirtualAddress,
    metrics::{LOST, UNKNOWN_SERVICES},
};
pub use crate::{cluster::Cluster, filter::Direction};

/// What stands behind an address: one route, or one for each protocol that a connection may turn out
/// to speak.
#[derive(Clone)]
pub enum Destination {
    /// The configuration says which protocol.
    Declared(Arc<Route>),
    /// The first bytes of each connection say it.
    Undeclared(Arc<[Arc<Route>]>),
}

impl Destination {
    /// The route for connections that speak `protocol`.
    pub fn speaking(&self, protocol: &str) -> Option<&Arc<Route>> {
        match self {
            Self::Declared(route) => (route.protocol == protocol).then_some(route),
            Self::Undeclared(routes) => routes.iter().find(|r| r.protocol == protocol),
        }
    }
}

/// The clusters behind one address for one protocol. A connection keeps its route for life; a reload
/// changes what is in it.
pub struct Route {
    /// Which way its calls go.
    pub direction: Direction,
    /// Name in `protocol::KINDS`.
    pub protocol: &'static str,
    clusters: ArcSwap<Vec<Arc<Cluster>>>,
}

impl Route {
    /// A route to `clusters`, which must not be empty.
    pub fn new(direction: Direction, protocol: &'static str, clusters: Vec<Arc<Cluster>>) -> Self {
        Self { direction, protocol, clusters: ArcSwap::from_pointee(clusters) }
    }

    /// Puts other clusters behind this destination. Calls in flight go on with those they have.
    pub fn replace(&self, clusters: Vec<Arc<Cluster>>) {
        self.clusters.store(Arc::new(clusters));
    }

    /// All clusters.
    pub fn clusters(&self) -> Arc<Vec<Arc<Cluster>>> {
        self.clusters.load_full()
    }

    /// The cluster of a protocol that does not name services: the first.
    pub fn only(&self) -> Option<Arc<Cluster>> {
        self.clusters.load().first().cloned()
    }

    /// The cluster for a call that names its service. With exactly one cluster of that service it is
    /// taken whatever group and version the call says; with several, group must equal and versions must
    /// not contradict (spec (c), "Choosing the cluster"). Texts are those that Motan clients know.
    pub fn select(&self, call: &Call) -> Result<Arc<Cluster>, CallError> {
        self.select_speaking(call, || None)
    }

    /// [`Route::select`] for a caller that says which protocol its service speaks (`M_pp`): of several clusters that
    /// fit, one whose endpoints speak it is taken.
    pub fn select_speaking(
        &self,
        call: &Call,
        protocol: impl FnOnce() -> Option<Text>,
    ) -> Result<Arc<Cluster>, CallError> {
        self.find(call, protocol).map_err(|missing| self.not_found(call, missing))
    }

    /// Whether a call would find its cluster. Asks without making one, which would be counted if it did not.
    pub fn serves(&self, call: &Call) -> bool {
        self.find(call, || None).is_ok()
    }

    fn find(&self, call: &Call, protocol: impl FnOnce() -> Option<Text>) -> Result<Arc<Cluster>, Missing> {
        let clusters = self.clusters.load();
        let of_service = || clusters.iter().filter(|c| c.info.key.service == *call.service);
        match of_service().count() {
            1 => return Ok(of_service().next().expect("counted").clone()),
            0 => return Err(Missing::Service),
            _ => {}
        }
        if call.group.is_empty() && self.direction == Direction::Outbound {
            return Err(Missing::Group);
        }
        let fits = |c: &&Arc<Cluster>| {
            let key = &c.info.key;
            (key.group == *call.group || call.group.is_empty())
                && (key.version.is_empty() || call.version.is_empty() || key.version == *call.version)
        };
        let protocol = protocol().unwrap_or_default();
        // A Motan2 refer takes calls of Motan1 as well.
        let speaks = |c: &&&Arc<Cluster>| {
            let spoken = c.config.upstream.as_ref().map_or(c.info.protocol, |upstream| &upstream.name);
            *spoken == *protocol || (spoken == "motan2" && *protocol == *"motan")
        };
        let chosen = of_service().filter(fits).find(|c| speaks(&c)).or_else(|| of_service().find(fits));
        chosen.cloned().ok_or(Missing::Match)
    }

    fn not_found(&self, call: &Call, missing: Missing) -> CallError {
        let Call { service, group, version, .. } = call;
        let reason = match missing {
            Missing::Service if service.is_empty() => "empty service is not supported. service: ".to_owned(),
            Missing::Service => format!("cluster not found. service: {service}"),
            Missing::Group => {
                format!("multiple clusters are matched with service: {service}, but the group is empty")
            }
            Missing::Match => format!(
                "no cluster matches the request; info: {{service: {service}, group: {group}, protocol: motan2, \
                 version: {version}}}"
            ),
        };
        let message = match self.direction {
            Direction::Inbound => format!("provider not exist serviceKey={group}_{service}"),
            Direction::Outbound => format!("cluster not found. cluster: {reason}"),
        };
        UNKNOWN_SERVICES.fetch_add(1, Relaxed);
        let error = CallError::mesh(ErrorKind::NoCluster, message);
        LOST.call(call, self.direction, || {
            let failed = Failed { direction: self.direction, id: call.request_id, meta: &Pairs::default() };
            let Exception { code, errtype, text } = Exception::of(&error, failed);
            (self.rule(call, missing), format!("exception {code}, type {errtype}: {text}"))
        });
        error
    }

    /// What there would have to be for the call to find it, for operators.
    fn rule(&self, call: &Call, missing: Missing) -> String {
        let Call { service, group, version, .. } = call;
        let side = match self.direction {
            Direction::Outbound => "a referer",
            Direction::Inbound => "a provided service",
        };
        match missing {
            Missing::Service if service.is_empty() => format!("{side}; the call names none (`M_p` is missing)"),
            Missing::Service => format!("{side} with `service: {service}`, whatever its group and version"),
            Missing::Group => {
                format!("{side} with `service: {service}`: there are several, and the call names no group (`M_g`)")
            }
            Missing::Match => {
                let version =
                    if version.is_empty() { String::new() } else { format!(" and version `{version}` or none") };
                format!("{side} with `service: {service}`, group `{group}`{version}: there are several, none fits")
            }
        }
    }
}

/// Why a call finds no cluster.
#[derive(Clone, Copy)]
enum Missing {
    /// None of its service.
    Service,
    /// Several, and the call does not name its group.
    Group,
    /// Several, of which none fits.
    Match,
}

/// Destinations by address, swapped as a whole by a reload.
#[derive(Default)]
pub struct Routes {
    exact: HashMap<SocketAddr, Destination>,
    any_port: HashMap<IpAddr, Destination>,
}

impl Routes {
    /// Adds a virtual address.
    pub fn insert(&mut self, address: VirtualAddress, destination: Destination) {
        match address.port {
            Some(port) => self.exact.insert(SocketAddr::new(address.ip, port), destination),
            None => self.any_port.insert(address.ip, destination),
        };
    }

    /// Where a connection goes that wanted to go to `original`.
    pub fn find(&self, original: SocketAddr) -> Option<Destination> {
        let ip = original.ip().to_canonical();
        let exact = self.exact.get(&SocketAddr::new(ip, original.port()));
        exact.or_else(|| self.any_port.get(&ip)).cloned()
    }

    /// Where a connection from elsewhere goes that dialed `local`; `0.0.0.0` in the table stands for every
    /// address.
    pub fn find_local(&self, local: SocketAddr) -> Option<Destination> {
        self.find(local).or_else(|| self.find(SocketAddr::from((Ipv4Addr::UNSPECIFIED, local.port()))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::{
        call::{Request, Response, Text},
        cluster::Parts,
        config,
        endpoint::{Connector, Endpoint},
        kind::BuildCx,
    };

    struct Nobody;

    impl Connector for Nobody {
        fn call<'a>(&'a self, _: &'a Arc<Endpoint>, _: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
            Box::pin(std::future::pending())
        }
        fn default_timeout(&self) -> Duration {
            Duration::from_secs(1)
        }
    }

    fn cluster(service: &str, group: &str, version: &str) -> Arc<Cluster> {
        cluster_speaking(service, group, version, None)
    }

    fn cluster_speaking(service: &str, group: &str, version: &str, upstream: Option<&str>) -> Arc<Cluster> {
        let upstream = upstream.map(config::Named::plain);
        let config = config::Cluster { filters: Vec::new(), upstream, ..Default::default() };
        let key = model::ServiceKey { service: service.into(), group: group.into(), version: version.into() };
        let parts = Parts {
            key,
            direction: Direction::Outbound,
            protocol: "motan2",
            config: &config,
            connector: Arc::new(Nobody),
            introduce: None,
            own: crate::stream::OwnSockets::default(),
            cx: &BuildCx::default(),
        };
        Arc::new(Cluster::build(parts).unwrap())
    }

    fn call(service: &str, group: &str, version: &str) -> Call {
        let mut call = Call::new(Text::from(service), Text::from_static("m"));
        call.group = Text::from(group);
        call.version = Text::from(version);
        call
    }

    fn selected(route: &Route, call: &Call) -> String {
        match route.select(call) {
            Ok(cluster) => cluster.info.key.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn of_several_that_fit_one_that_speaks_the_callers_protocol_is_taken() {
        let clusters = vec![cluster("s", "g", "1"), cluster_speaking("s", "g", "2", Some("grpc"))];
        let route = Route::new(Direction::Outbound, "motan2", clusters);
        let chosen = |group: &str, version: &str, protocol: Option<&'static str>| {
            let found = route.select_speaking(&call("s", group, version), || protocol.map(Text::from_static));
            found.map_or_else(|error| error.to_string(), |cluster| cluster.info.key.version.clone())
        };
        for protocol in [None, Some("motan2"), Some("motan"), Some("unheard")] {
            assert_eq!(chosen("g", "", protocol), "1", "{protocol:?}");
        }
        assert_eq!(chosen("g", "", Some("grpc")), "2");
        assert_eq!(chosen("g", "2", Some("motan2")), "2", "the version says which");
        assert!(chosen("", "", Some("grpc")).contains("the group is empty"));
    }

    #[test]
    fn one_cluster_is_taken_whatever_the_group_several_must_fit() {
        let clusters = vec![cluster("one", "g", "1"), cluster("two", "a", "1"), cluster("two", "b", "")];
        let route = Route::new(Direction::Outbound, "motan2", clusters);
        let cases = [
            (("one", "other", "9"), "g/one:1"),
            (("two", "a", "1"), "a/two:1"),
            (("two", "b", "7"), "b/two"),
            (
                ("two", "", ""),
                "cluster not found. cluster: multiple clusters are matched with service: two, but the group is empty",
            ),
            (
                ("two", "a", "2"),
                "cluster not found. cluster: no cluster matches the request; info: \
                 {service: two, group: a, protocol: motan2, version: 2}",
            ),
            (("none", "", ""), "cluster not found. cluster: cluster not found. service: none"),
            (("", "", ""), "cluster not found. cluster: empty service is not supported. service: "),
        ];
        for ((service, group, version), expected) in cases {
            assert_eq!(selected(&route, &call(service, group, version)), expected);
        }
        let inbound = Route::new(Direction::Inbound, "motan2", vec![cluster("one", "g", "")]);
        assert_eq!(selected(&inbound, &call("none", "g", "")), "provider not exist serviceKey=g_none");
    }

    #[test]
    fn destinations_by_address_and_port_then_by_address() {
        let to =
            |name| Destination::Declared(Arc::new(Route::new(Direction::Outbound, "tcp", vec![cluster(name, "", "")])));
        let mut routes = Routes::default();
        let ip: IpAddr = "240.0.0.1".parse().unwrap();
        routes.insert(VirtualAddress { ip, port: Some(80) }, to("web"));
        routes.insert(VirtualAddress { ip, port: None }, to("rest"));
        let name = |at: &str| {
            let found = routes.find(at.parse().unwrap())?.speaking("tcp")?.only()?;
            Some(found.info.key.service.clone())
        };
        assert_eq!(name("240.0.0.1:80").as_deref(), Some("web"));
        assert_eq!(name("[::ffff:240.0.0.1]:80").as_deref(), Some("web"));
        assert_eq!(name("240.0.0.1:81").as_deref(), Some("rest"));
        assert_eq!(name("240.0.0.2:80"), None);
    }
}
