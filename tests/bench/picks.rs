//! What a pick costs, by balancer and number of endpoints.

use std::{hint::black_box, net::SocketAddr, sync::Arc, time::Instant};

use agent::{
    config,
    endpoint::{DialOptions, Endpoint},
    kind::{self, BuildCx, Value},
    lb::{self, EndpointSet},
};

const PICKS: u64 = 2_000_000;

/// Prints nanoseconds per pick. The sets are made alike, so what grows with their size is only the share of
/// endpoints that the processor's caches hold.
pub fn print() {
    println!("ns/pick with          10       100     1,000    10,000 endpoints");
    for kind in lb::KINDS {
        let cx = BuildCx { zone: "here".into(), ..BuildCx::default() };
        let lb = kind::build("load balancer", lb::KINDS, kind.name, &Value::Null, &cx).unwrap();
        let ns = [10, 100, 1_000, 10_000].map(|n| {
            let endpoints: Vec<_> = (0..n).map(endpoint).collect();
            let set = EndpointSet { revision: 1, picker: lb.picker(&endpoints), endpoints };
            let run = |picks: u64| {
                let begun = Instant::now();
                for i in 0..picks {
                    black_box(set.pick(&[], usize::MAX, Some(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
                }
                begun.elapsed().as_nanos() as f64 / picks as f64
            };
            run(PICKS / 10);
            run(PICKS)
        });
        println!("{:20} {:7.1}   {:7.1}   {:7.1}   {:7.1}", kind.name, ns[0], ns[1], ns[2], ns[3]);
    }
}

fn endpoint(i: u32) -> Arc<Endpoint> {
    let at = SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 80));
    let mut endpoint = Endpoint::new(at, "g".into(), 10, config::Eject::default(), DialOptions::default());
    endpoint.zone = "here".into();
    Arc::new(endpoint)
}
