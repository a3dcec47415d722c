//! What the centre keeps, killed over and over.

use std::time::Duration;

use host::{Cmd, Temp, center, free_port, http, until};
use rustix::process::Signal;

/// Starts a real centre on one directory and kills it at any moment, two hundred times: every start serves, and each is
/// a new epoch.
#[test]
fn a_centre_killed_200_times_starts_every_time() {
    let (dir, addr) = (Temp::new(), ([127, 0, 0, 1], free_port()).into());
    let mut epoch = 0;
    let mut random = 88_172_645_463_325_252_u64;
    for round in 0..200 {
        let cmd = Cmd::new(center::binary()).args(["--listen", &format!("{addr}")]);
        let mut proc = cmd.arg("--data").arg(dir.file("data").display()).spawn(&dir.file("log"));
        // Every fourth may come up; the others are killed within their first sixty milliseconds.
        if round % 4 == 0 {
            until("the centre serves", || {
                let end = proc.ended();
                assert!(end.is_none(), "round {round}: the centre ended: {end:?}\n{}", proc.said());
                http::get(addr, "/v1/store").is_ok_and(|answer| answer.status() == 200)
            });
            let said: serde_json::Value = serde_json::from_str(&http::get(addr, "/v1/store").unwrap().text()).unwrap();
            let now = said["epoch"].as_u64().unwrap();
            assert!(now > epoch, "round {round}: epoch {now} after {epoch}");
            epoch = now;
        } else {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Not a synchronisation: the moment of the kill.
            std::thread::park_timeout(Duration::from_micros(random % 60_000));
        }
        proc.signal(Signal::KILL);
        proc.wait();
    }
    println!("killed 200 times, at epoch {epoch}");
}
