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

/// Which CPUs everything runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Cpus {
    /// One: the rate is then what the whole chain costs.
    One,
    /// All that this process may use.
    All,
}
