//! What would be: endpoints and shares that are not in force, tried with the code that picks.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use model::{Instance, command::GroupShare};

use super::{Cluster, Steering};
use crate::{
    call::Text,
    config,
    endpoint::{DialOptions, Endpoint, Slabs, Slot},
    lb::EndpointSet,
};

/// What one endpoint would get.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its group.
    pub group: Text,
    /// Its share of all calls, 0 to 1.
    pub share: f64,
}

impl Cluster {
    /// The share of calls that each of `instances` would get if they and `groups` were in force: the balancer in
    /// use picks `picks` times among copies of the endpoints, which have the latency and the standing that this
    /// cluster knows of them, and as many calls in flight as it has now. Nothing in force is touched.
    pub fn preview(&self, instances: &[Instance], groups: &[GroupShare], picks: usize) -> Vec<Load> {
        let now = self.endpoints();
        let endpoints: Vec<_> = {
            let mut slabs = Slabs::new(self.config.max_in_flight);
            let copies = instances.iter().filter_map(|i| self.copy(i, &now, slabs.take(instances.len())));
            copies.map(Arc::new).collect()
        };
        let canary = self.steering().canary.clone();
        let picker = self.picker(&endpoints, &Steering { groups: groups.to_vec(), canary, ..Steering::default() });
        let set = EndpointSet::new(0, picker, endpoints);
        let busy = now.endpoints.iter().map(|e| e.in_flight() as usize).sum::<usize>().clamp(1, 10_000);
        let mut counts = vec![0usize; set.endpoints.len()];
        let mut flying = VecDeque::with_capacity(busy);
        for _ in 0..picks {
            let Some(index) = set.pick(&[], self.config.max_in_flight, Some(fastrand::u64(..))) else { break };
            counts[index] += 1;
            set.endpoints[index].hot.begin();
            flying.push_back(index);
            if flying.len() > busy
                && let Some(landed) = flying.pop_front()
            {
                set.endpoints[landed].hot.end();
            }
        }
        let total = counts.iter().sum::<usize>().max(1) as f64;
        let loads = set.endpoints.iter().zip(counts);
        loads.map(|(e, n)| Load { addr: e.addr, group: e.group.clone(), share: n as f64 / total }).collect()
    }

    fn copy(&self, instance: &Instance, now: &EndpointSet, slot: Arc<Slot>) -> Option<Endpoint> {
        let addr = instance.address.parse().ok()?;
        let group = if instance.group.is_empty() { &self.info.key.group } else { &instance.group };
        let eject = config::Eject { connect_failures: 1, ..self.config.eject.clone() };
        let (group, weight, dial) = (Text::from(group.as_str()), instance.weight, DialOptions::default());
        let mut copy = Endpoint::new_at(slot, addr, group.clone(), weight, eject, dial);
        copy.describe(instance);
        if let Some(known) = now.endpoints.iter().find(|e| e.addr == addr && e.group == group) {
            let expected = known.hot.ewma.expected_ns();
            if expected > 0 {
                copy.hot.ewma.observe(Duration::from_nanos(expected));
            }
            if !known.is_available() {
                copy.health.connect_failed();
            }
        }
        Some(copy)
    }
}
