//! The budget of a Motan2 call: at most four allocations, and no copy of its body.
#![allow(clippy::unwrap_used, reason = "test code")]

mod rig;

use rig::{Caller, Rig};

/// One test, because it counts what the whole process allocates.
#[test]
fn a_call_allocates_at_most_four_times_and_never_for_its_body() {
    let rig = Rig::start();
    for (depth, body) in [(1, 16), (64, 16), (64, 1024)] {
        let mut caller = Caller::new(rig.agent, depth, body);
        caller.run(20 * 1024);
        let cost = caller.run(20 * 1024);
        assert!(cost.allocations <= 4.0, "{depth} at once with {body} bytes: {cost:?}");
    }
    // Each way a body is read into one buffer and written from there. Read buffers of up to 256 KiB are used
    // again, so nothing is allocated for such a body; for larger ones it is twice their size, beside the
    // smaller buffers that a large frame outgrew. A copy anywhere would add the size of the body once more.
    for (body, calls, most) in [(64 * 1024, 512, 0.9), (1024 * 1024, 64, 2.75)] {
        let mut caller = Caller::new(rig.agent, 1, body);
        caller.run(calls / 4);
        let cost = caller.run(calls);
        assert!(cost.bytes < most * body as f64, "bodies of {body} bytes: {cost:?}");
    }

    let mut plain = Caller::new(rig.server, 8, 1024);
    plain.run(1024);
    assert_eq!(plain.run(1024).allocations, 0.0, "caller and server are not what is counted");
}
