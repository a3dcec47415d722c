//! `local_first`: endpoints on this host as long as there is one, then the others.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use super::{LoadBalancer, PickCx, Picker, Subset};
use crate::{
    call::Request,
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
    sys,
};

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    then: Value,
}

struct LocalFirst {
    /// Picks among either.
    then: Arc<dyn LoadBalancer>,
    /// Addresses of this host.
    own: fn() -> HashSet<IpAddr>,
}

struct Near {
    here: Subset,
    elsewhere: Subset,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    let Options { then } = kind::options(options)?;
    Ok(Arc::new(LocalFirst { then: super::then(&then, cx)?, own: own_addresses }))
}

/// Asked each time the set changes, because addresses come and go.
fn own_addresses() -> HashSet<IpAddr> {
    sys::socket::own_addresses().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot ask for this host's addresses: only loopback counts as local");
        HashSet::new()
    })
}

impl LoadBalancer for LocalFirst {
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        let own = (self.own)();
        let is_here = |e: &Endpoint| {
            let ip = e.addr.ip().to_canonical();
            ip.is_loopback() || own.contains(&ip)
        };
        Box::new(Near {
            here: Subset::new(&*self.then, endpoints, is_here),
            elsewhere: Subset::new(&*self.then, endpoints, |e| !is_here(e)),
        })
    }

    fn hash(&self, req: &Request) -> Option<u64> {
        self.then.hash(req)
    }
}

impl Picker for Near {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        self.here.pick(cx).or_else(|| self.elsewhere.pick(cx))
    }

    fn passed_over(&self, _: &PickCx<'_>, index: usize) -> &'static str {
        if self.here.contains(index) { "another on this host was picked" } else { "is not on this host" }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};
    use crate::lb::EndpointSet;

    #[test]
    fn others_only_when_nobody_here_can_take_it() {
        let lb = LocalFirst { then: by_name("round_robin"), own: || ["10.0.0.2".parse().unwrap()].into() };
        let endpoints = endpoints_with(4, |i, e| e.addr = format!("10.0.0.{i}:80").parse().unwrap());
        let set = EndpointSet::new(1, lb.picker(&endpoints), endpoints);
        assert_eq!(shares(&set, 50), [0, 0, 50, 0]);
        assert_ne!(set.pick(&[2], usize::MAX, None), None);
        set.endpoints[2].hot.set_in_flight(5);
        assert_ne!(set.pick(&[], 5, None), Some(2), "at its limit");
        eject(&set.endpoints[2]);
        assert_eq!(shares(&set, 30), [10, 10, 0, 10]);
    }

    #[test]
    fn loopback_is_here_and_options_are_read() {
        let lb = build(&serde_yaml::from_str("then: weighted").unwrap(), &BuildCx::default()).unwrap();
        let endpoints = endpoints_with(2, |i, e| {
            if i == 0 {
                e.addr = "192.0.2.1:80".parse().unwrap();
            }
        });
        let set = EndpointSet::new(1, lb.picker(&endpoints), endpoints);
        assert_eq!(shares(&set, 10), [0, 10]);
        let error = build(&serde_yaml::from_str("then: best").unwrap(), &BuildCx::default()).err().unwrap();
        assert!(error.to_string().starts_with("then: unknown load balancer `best`"), "{error}");
    }
}
