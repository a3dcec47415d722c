//! Against a real Consul.

use host::{Need, consul::Consul, lacks};

#[test]
fn consul_starts_and_answers() {
    if lacks(&[Need::Peer("consul")]) {
        return;
    }
    let consul = Consul::start();
    let leader = consul.get("/v1/status/leader");
    assert!(leader.as_str().is_some_and(|at| at.starts_with("127.0.0.1:")), "{leader}");
}
