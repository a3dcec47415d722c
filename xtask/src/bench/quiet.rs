//! Whether the machine was ours alone: figures of a machine that others use mean little.

use std::{fs, path::Path};

use super::world;
use crate::sys;

/// This share of all CPUs used by others is told.
const MOST: f64 = 0.05;

/// CPU time up to one moment, seconds.
#[derive(Clone, Copy, Debug)]
struct Moment {
    busy: f64,
    all: f64,
    own: f64,
}

/// Adds up what others used while it was measured.
#[derive(Debug)]
pub struct Watch {
    since: Option<Moment>,
    foreign: f64,
    all: f64,
}

impl Watch {
    /// Nothing was watched yet.
    pub fn new() -> Self {
        Self { since: None, foreign: 0.0, all: 0.0 }
    }

    /// A measurement begins, by programs in this control group.
    pub fn begin(&mut self, group: &Path) {
        self.since = now(group);
    }

    /// A measurement has ended.
    pub fn end(&mut self, group: &Path) {
        if let (Some(then), Some(now)) = (self.since.take(), now(group)) {
            self.foreign += (now.busy - then.busy - (now.own - then.own)).max(0.0);
            self.all += now.all - then.all;
        }
    }

    /// Share of the CPUs' time that others used, 0 to 1.
    pub fn foreign(&self) -> f64 {
        if self.all > 0.0 { self.foreign / self.all } else { 0.0 }
    }

    /// What the user has to know.
    pub fn warning(&self) -> Option<String> {
        (self.foreign() > MOST).then(|| {
            format!(
                "something else used the machine: {:.0} % of its CPU time while it was measured; the figures are \
                 not to be trusted",
                self.foreign() * 100.0
            )
        })
    }
}

fn now(group: &Path) -> Option<Moment> {
    let (busy, all) = cpus(&fs::read_to_string("/proc/stat").ok()?)?;
    let own = world::used(group)? + world::ticks_of(std::process::id()).unwrap_or(0.0);
    Some(Moment { busy: busy / sys::ticks(), all: all / sys::ticks(), own })
}

/// Ticks in which a CPU did something (or another guest of the same hardware did), and all ticks, from the
/// first line of `/proc/stat` (proc(5)).
fn cpus(stat: &str) -> Option<(f64, f64)> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    // Time of guests, which follows, is counted in the first fields already.
    let ticks: Vec<f64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
    let all: f64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_not_work() {
        let (busy, all) = cpus("cpu  10 1 20 100 5 1 2 3 50 0\ncpu0 1 2 3\n").unwrap();
        assert_eq!((busy, all), (37.0, 142.0));
        assert_eq!(cpus("cpu0 1 2"), None);
    }

    #[test]
    fn others_are_told_of() {
        let watch = |foreign| Watch { since: None, foreign, all: 10.0 };
        assert_eq!(watch(0.4).warning(), None);
        assert!(watch(2.0).warning().unwrap().contains("20 %"));
        assert_eq!(Watch::new().warning(), None);
    }
}
