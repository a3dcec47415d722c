//! What is measured on every way.

/// A load with a number of callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its name, as `load` knows it.
    pub load: &'static str,
    /// Connections at once.
    pub callers: usize,
}

/// All of them.
pub const CELLS: &[Cell] = &[
    Cell { load: "echo", callers: 1 },
    Cell { load: "echo", callers: 16 },
    Cell { load: "echo", callers: 64 },
    Cell { load: "churn", callers: 16 },
    Cell { load: "bulk", callers: 1 },
    Cell { load: "http", callers: 16 },
    Cell { load: "motan2", callers: 16 },
];

/// Those of `bench motan`: an echo of 32 bytes by callers with connections of their own, and by callers that share
/// three, as those of a Motan client do.
pub const MOTAN_CELLS: &[Cell] = &[
    Cell { load: "motan32", callers: 1 },
    Cell { load: "motan32", callers: 64 },
    Cell { load: "motan32-shared", callers: 64 },
];

impl Cell {
    /// What the rate counts.
    pub fn unit(&self) -> &'static str {
        match self.load {
            "bulk" => "MB/s",
            "churn" => "connections/s",
            _ => "calls/s",
        }
    }
}

/// The loads that a server serves, and its port for each (the ports of package `tests`, binary `load`).
pub const PORTS: &[(&str, u16)] = &[("echo", 7001), ("churn", 7002), ("bulk", 7003), ("http", 7004), ("motan2", 7005)];

/// The same of `bench motan`.
pub const MOTAN: &[(&str, u16)] = &[("motan32", 7006)];

/// The port of the server for a load, whoever measures it.
pub fn port(load: &str) -> Option<u16> {
    let load = load.strip_suffix("-shared").unwrap_or(load);
    PORTS.iter().chain(MOTAN).find(|(name, _)| *name == load).map(|(_, port)| *port)
}

/// Which CPUs everything runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Cpus {
    /// One: the rate is then what the whole chain costs.
    One,
    /// All that this process may use.
    All,
}
