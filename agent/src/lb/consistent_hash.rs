//! `consistent_hash`: calls with the same key go to the same endpoint, and few keys move when the set changes.

use std::{collections::HashMap, sync::Arc};

use anyhow::ensure;
use twox_hash::XxHash64;

use super::{LoadBalancer, PickCx, Picker};
use crate::{
    call::{Head, Request},
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
};

/// Partitions when the configuration does not say: this many and five for each endpoint.
const PARTITIONS: usize = 271;
/// Points of each endpoint on the ring while there are fewer than [`MANY`].
const REPLICAS: u32 = 20;
/// And above: more endpoints even each other out.
const REPLICAS_OF_MANY: u32 = 10;
const MANY: usize = 100;
/// Endpoints asked in a key's own order before any will do.
const FALLBACKS: usize = 16;

/// What a call's key is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    /// The metadata value or HTTP header called `key`.
    #[default]
    Key,
    /// The path of an HTTP request, the method of another call.
    Path,
    /// The caller's IP address.
    Caller,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    by: By,
    /// Name of the metadata value (Motan2) or header (HTTP).
    key: String,
    /// Most that one endpoint may own, relative to the mean.
    load: f64,
    /// 0: as many as fit the number of endpoints.
    partitions: usize,
    /// 0: as many as fit the number of endpoints.
    replicas: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { by: By::Key, key: "consistentHashKey".to_owned(), load: 1.1, partitions: 0, replicas: 0 }
    }
}

struct ConsistentHash(Options);

/// Owners of the partitions: a pick is a little arithmetic and a load.
struct Partitions {
    owners: Box<[u32]>,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    let options: Options = kind::options(options)?;
    let Options { load, partitions, replicas, .. } = options;
    ensure!((1.0..=100.0).contains(&load), "load: {load} is out of range; write 1 to 100, such as 1.1");
    ensure!(partitions <= 1 << 20, "partitions: {partitions} is too many; write at most 1048576, or 0");
    ensure!(replicas <= 1000, "replicas: {replicas} is too many; write at most 1000, or 0");
    ensure!(!options.key.is_empty(), "key: is empty; write the name of a metadata value or header");
    Ok(Arc::new(ConsistentHash(options)))
}

impl LoadBalancer for ConsistentHash {
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        Box::new(Partitions { owners: self.0.owners(endpoints) })
    }

    fn hash(&self, req: &Request) -> Option<u64> {
        match self.0.by {
            By::Key => match &req.head {
                Head::Motan2(head) => head.meta.get(&self.0.key).map(|key| hash(key.as_bytes())),
                Head::Http(head) => head.headers.get(&self.0.key).map(|key| hash(key.as_bytes())),
                Head::None => None,
            },
            By::Path if !req.call.path.is_empty() => Some(hash(req.call.path.as_bytes())),
            By::Path => Some(hash(req.call.method.as_bytes())),
            By::Caller => req.call.peer.map(|peer| match peer.ip().to_canonical() {
                std::net::IpAddr::V4(ip) => hash(&ip.octets()),
                std::net::IpAddr::V6(ip) => hash(&ip.octets()),
            }),
        }
    }
}

impl Options {
    /// Gives each partition to the endpoint whose point on the ring follows its own, or, when that has
    /// its share already, to the next one that has not (bounded load).
    fn owners(&self, endpoints: &[Arc<Endpoint>]) -> Box<[u32]> {
        let members: Vec<u32> = (0..endpoints.len() as u32).filter(|&i| endpoints[i as usize].weight > 0).collect();
        let n = members.len();
        if n == 0 {
            return Box::default();
        }
        let replicas = match self.replicas {
            0 if n < MANY => REPLICAS,
            0 => REPLICAS_OF_MANY,
            some => some,
        };
        let partitions = if self.partitions == 0 { 5 * n + PARTITIONS } else { self.partitions.max(n) };
        let mut ring = Vec::with_capacity(n * replicas as usize);
        let mut twins: HashMap<_, u32> = HashMap::new();
        for &member in &members {
            let addr = endpoints[member as usize].addr;
            // The same address in two groups is two members.
            let twin = twins.entry(addr).or_default();
            let name = if *twin == 0 { addr.to_string() } else { format!("{addr}#{twin}") };
            *twin += 1;
            ring.extend((0..replicas).map(|i| (hash(format!("{name}{i}").as_bytes()), member)));
        }
        ring.sort_unstable();
        let most = (partitions as f64 / n as f64 * self.load).ceil() as u32;
        let mut loads = vec![0u32; endpoints.len()];
        let owner = |partition: usize| {
            let point = hash(&(partition as u64).to_le_bytes());
            let mut at = ring.partition_point(|(p, _)| *p < point);
            // Ends: together they may own more than there is.
            loop {
                let owner = ring[at % ring.len()].1;
                if loads[owner as usize] < most {
                    loads[owner as usize] += 1;
                    return owner;
                }
                at += 1;
            }
        };
        (0..partitions).map(owner).collect()
    }
}

impl Picker for Partitions {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        let Some(mut hash) = cx.hash else { return cx.random_eligible() };
        if self.owners.is_empty() {
            return None;
        }
        // A key whose owner cannot take it goes through the others in an order of its own, so that the
        // keys of one that is out are spread over all and come back to it.
        for _ in 0..FALLBACKS {
            let owner = self.owners[bucket(hash, self.owners.len())] as usize;
            if cx.eligible(owner) {
                return Some(owner);
            }
            hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        cx.first_eligible_from((hash % cx.endpoints.len() as u64) as usize)
    }

    fn passed_over(&self, cx: &PickCx<'_>, _: usize) -> &'static str {
        if cx.hash.is_some() { "does not own the call's key" } else { "was not drawn (the call has no key)" }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// Looks for a bucket among the newest ones before the older ones take the key: what is missed is one key in 2^8.
const LOOKS: u32 = 8;

/// Which of `n` buckets a key belongs to (BinomialHash, Coluzzi et al. 2024). With more buckets a key stays or goes to
/// a new one. A plain remainder would move nearly all, because the number of partitions follows the number of
/// endpoints; jump consistent hash takes longer the more buckets there are, this does not.
fn bucket(key: u64, n: usize) -> usize {
    let Some(outer) = n.checked_next_power_of_two().filter(|_| n > 1) else { return 0 };
    let (n, outer) = (n as u64, outer as u64);
    // The lower half is there in any case, of the upper half only a part.
    let inner = outer / 2;
    let mut hash = key;
    for _ in 0..LOOKS {
        let found = within_level(hash & (outer - 1), hash);
        if found < inner {
            break;
        }
        if found < n {
            return found as usize;
        }
        hash = mixed(hash.wrapping_add(0x9e37_79b9_7f4a_7c15));
    }
    within_level(key & (inner - 1), key) as usize
}

/// Another bucket with the same highest bit, by the other bits of the hash: those of a level that is not full yet must
/// not follow each other.
fn within_level(bucket: u64, hash: u64) -> u64 {
    if bucket < 2 {
        return bucket;
    }
    let level = 1 << bucket.ilog2();
    level | mixed(hash ^ level) & (level - 1)
}

fn mixed(mut x: u64) -> u64 {
    x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ x >> 32
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{super::testing::*, *};
    use crate::{
        call::{Body, Call, HttpHead, Motan2Head, Text},
        lb::EndpointSet,
    };

    fn lb(options: &str) -> Arc<dyn LoadBalancer> {
        build(&serde_yaml::from_str(options).unwrap(), &BuildCx::default()).unwrap()
    }

    fn of(n: usize, options: &str) -> EndpointSet {
        set(&*lb(options), &vec![10; n])
    }

    fn owner(set: &EndpointSet, key: u32) -> SocketAddr {
        let picked = set.pick(&[], usize::MAX, Some(hash(format!("user-{key}").as_bytes()))).unwrap();
        set.endpoints[picked].addr
    }

    #[test]
    fn load_is_bounded_and_a_key_stays() {
        for n in [1, 2, 10, 120] {
            let set = of(n, "{}");
            let keys = 20_000u32;
            let mut counts = HashMap::new();
            for key in 0..keys {
                assert_eq!(owner(&set, key), owner(&set, key));
                *counts.entry(owner(&set, key)).or_insert(0u32) += 1;
            }
            let mean = f64::from(keys) / n as f64;
            // The bound holds for partitions (a whole number of them each); keys scatter around it.
            let partitions = (5 * n + PARTITIONS) as f64 / n as f64;
            let most = (partitions * 1.1).ceil() / partitions * mean;
            let worst = f64::from(*counts.values().max().unwrap());
            assert!(worst <= most + 5.0 * most.sqrt() + most * 0.03, "{n} endpoints: {worst} of at most {most}");
        }
    }

    /// Share of keys whose owner differs, not counting those that had to move.
    fn moved(before: &EndpointSet, after: &EndpointSet) -> f64 {
        let keys = 10_000;
        let differs = (0..keys).filter(|&k| owner(before, k) != owner(after, k)).count();
        differs as f64 / f64::from(keys)
    }

    #[test]
    fn few_keys_move_when_the_set_changes() {
        for n in [10, 50, 200] {
            let ideal = 1.0 / n as f64;
            for options in ["{}", "partitions: 4096"] {
                let share = moved(&of(n, options), &of(n + 1, options));
                assert!(share < 3.0 * ideal + 0.03, "{n}, {options}: {share}, ideal {ideal}");
            }
        }
    }

    #[test]
    fn only_the_keys_of_one_that_is_out_move_and_spread() {
        let set = of(10, "{}");
        let before: Vec<_> = (0..5000).map(|k| owner(&set, k)).collect();
        let out = set.endpoints[3].addr;
        eject(&set.endpoints[3]);
        let mut heirs: HashMap<_, u32> = HashMap::new();
        for (key, was) in before.iter().enumerate() {
            let is = owner(&set, key as u32);
            if *was == out {
                *heirs.entry(is).or_default() += 1;
            } else {
                assert_eq!(is, *was);
            }
        }
        assert_eq!(heirs.len(), 9);
        let (least, most) = (heirs.values().min().unwrap(), heirs.values().max().unwrap());
        assert!(most < &(least * 3), "{heirs:?}");
    }

    #[test]
    fn buckets_are_of_a_size_and_a_key_stays_or_goes_to_a_new_one() {
        let keys: Vec<u64> = (0..20_000u64).map(|k| hash(&k.to_le_bytes())).collect();
        let mut before: Vec<usize> = vec![0; keys.len()];
        for n in 1..=300 {
            for (key, was) in keys.iter().zip(&mut before) {
                let is = bucket(*key, n);
                assert!(is == *was || is == n - 1, "{n} buckets: {was} to {is}");
                *was = is;
            }
        }
        for n in [2, 3, 7, 64, 65, 100, 321] {
            let mut counts = vec![0usize; n];
            (0..n as u64 * 1000).for_each(|k| counts[bucket(hash(&k.to_le_bytes()), n)] += 1);
            fits(&counts, &vec![1; n]);
        }
    }

    #[test]
    fn without_a_key_chance_decides() {
        fastrand::seed(3);
        fits(&shares(&of(5, "{}"), 10_000), &[1; 5]);
    }

    #[test]
    fn keys_are_read_where_they_are() {
        let mut call = Call::new(Text::from_static("s"), Text::from_static("m"));
        call.peer = Some("[::ffff:10.0.0.1]:99".parse().unwrap());
        let meta = [("consistentHashKey", "k")].into_iter().collect();
        let motan = Request {
            call: call.clone(),
            head: Head::Motan2(Motan2Head { meta, ..Default::default() }),
            body: Body::Empty,
        };
        let mut headers = http::HeaderMap::new();
        headers.insert("x-user", "k".parse().unwrap());
        let head = HttpHead { method: http::Method::GET, uri: "/a".parse().unwrap(), headers, upgrade: None };
        call.path = Text::from_static("/a");
        let web = Request { call, head: Head::Http(Box::new(head)), body: Body::Empty };

        let key = Some(hash(b"k"));
        assert_eq!((lb("{}").hash(&motan), lb("{}").hash(&web)), (key, None));
        assert_eq!((lb("key: x-user").hash(&motan), lb("key: X-User").hash(&web)), (None, key));
        assert_eq!((lb("by: path").hash(&motan), lb("by: path").hash(&web)), (Some(hash(b"m")), Some(hash(b"/a"))));
        assert_eq!(lb("by: caller").hash(&motan), Some(hash(&[10, 0, 0, 1])));
    }

    #[test]
    fn ten_thousand_are_placed_and_mistakes_named() {
        let set = of(10_000, "{}");
        assert!(set.pick(&[], usize::MAX, Some(7)).is_some());
        for (options, name) in [("load: 0.5", "load"), ("partitions: 9999999", "partitions"), ("key: ''", "key")] {
            let error = build(&serde_yaml::from_str(options).unwrap(), &BuildCx::default()).err().unwrap();
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
}
