//! Who called whom within the last minute.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use model::center::{Edge, Figures, Graph, GraphEdge, GraphNode};

/// Edges that may be known.
const EDGES: usize = 100_000;
/// Length of a window.
const STEP_MS: u64 = 10_000;
/// Windows that make a minute, and the one that is not over.
const WINDOWS: u64 = 7;

/// What an edge is told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ends {
    pub service: Box<str>,
    pub group: Box<str>,
    pub caller: Box<str>,
    pub protocol: Box<str>,
}

#[derive(Clone, Debug, Default)]
struct Window {
    index: u64,
    calls: u64,
    failed: u64,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    windows: VecDeque<Window>,
    born_ms: u64,
    /// Calls by way, of the windows that are kept: the later ones weigh more.
    ways: BTreeMap<Box<str>, f64>,
}

/// All edges.
#[derive(Debug, Default)]
pub(super) struct Edges {
    all: HashMap<Ends, Seen>,
    /// Edges that found no room.
    pub refused: u64,
}

/// One of them as it is now.
#[derive(Clone, Debug)]
pub(super) struct Now {
    pub ends: Ends,
    pub rate: f64,
    pub success: Option<f64>,
    pub way: String,
}

impl Edges {
    /// Counts what one agent saw from `from_ms` to `to_ms`.
    pub(super) fn add(&mut self, edges: &[Edge], from_ms: u64, to_ms: u64) {
        let index = to_ms / STEP_MS;
        for edge in edges {
            let ends = Ends {
                service: edge.service.as_str().into(),
                group: edge.group.as_str().into(),
                caller: edge.caller.as_str().into(),
                protocol: edge.protocol.as_str().into(),
            };
            if self.all.len() >= EDGES && !self.all.contains_key(&ends) {
                self.refused += 1;
                continue;
            }
            let seen = self.all.entry(ends).or_insert_with(|| Seen { born_ms: from_ms, ..Seen::default() });
            if seen.windows.back().is_none_or(|last| last.index < index) {
                seen.windows.push_back(Window { index, ..Window::default() });
                seen.windows.retain(|window| window.index + WINDOWS > index);
                seen.ways.values_mut().for_each(|calls| *calls /= 2.0);
                seen.ways.retain(|_, calls| *calls > 0.1);
            }
            let window = seen.windows.back_mut().expect("one was put there");
            window.calls = window.calls.saturating_add(edge.calls);
            window.failed = window.failed.saturating_add(edge.failed.min(edge.calls));
            if edge.calls > 0 {
                *seen.ways.entry(edge.way.as_str().into()).or_default() += edge.calls as f64;
            }
        }
    }

    /// Forgets edges of which nothing was told for a minute.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        let oldest = (now_ms / STEP_MS).saturating_sub(WINDOWS);
        self.all.retain(|_, seen| seen.windows.back().is_some_and(|window| window.index > oldest));
    }

    /// Those with calls within the last minute, in the order of their names.
    pub(super) fn now(&self, now_ms: u64, fits: impl Fn(&Ends) -> bool) -> Vec<Now> {
        let oldest = (now_ms / STEP_MS).saturating_sub(WINDOWS - 1);
        let mut all: Vec<Now> = self
            .all
            .iter()
            .filter(|(ends, _)| fits(ends))
            .filter_map(|(ends, seen)| {
                let windows = seen.windows.iter().filter(|window| window.index >= oldest);
                let (calls, failed) = windows.fold((0u64, 0u64), |(calls, failed), window| {
                    (calls.saturating_add(window.calls), failed.saturating_add(window.failed))
                });
                if calls == 0 {
                    return None;
                }
                let since = (oldest * STEP_MS).max(seen.born_ms);
                let seconds = now_ms.saturating_sub(since).max(1000) as f64 / 1000.0;
                let way = seen.ways.iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or("", |(way, _)| way);
                Some(Now {
                    ends: ends.clone(),
                    rate: calls as f64 / seconds,
                    success: Some((calls - failed.min(calls)) as f64 / calls as f64),
                    way: way.to_owned(),
                })
            })
            .collect();
        all.sort_by(|a, b| a.ends.cmp(&b.ends));
        all
    }
}

/// Puts a graph together.
#[derive(Debug, Default)]
pub(super) struct Builder {
    graph: Graph,
    known: HashSet<String>,
    pairs: HashSet<(String, String)>,
}

impl Builder {
    /// The node of an application; answers its id.
    pub(super) fn application(&mut self, name: &str) -> String {
        self.node(format!("application:{name}"), "application", name, "", Figures::default)
    }

    /// The node of a service; answers its id.
    pub(super) fn service(&mut self, name: &str, group: &str, figures: impl FnOnce() -> Figures) -> String {
        self.node(format!("service:{group}/{name}"), "service", name, group, figures)
    }

    fn node(&mut self, id: String, kind: &str, name: &str, group: &str, figures: impl FnOnce() -> Figures) -> String {
        if self.known.insert(id.clone()) {
            let (kind, name, group) = (kind.to_owned(), name.to_owned(), group.to_owned());
            self.graph.nodes.push(GraphNode { id: id.clone(), kind, name, group, figures: figures() });
        }
        id
    }

    /// Whether there is an edge from this node to the service.
    pub(super) fn calls(&self, from: &str, service: &str, group: &str) -> bool {
        let to = format!("service:{group}/{service}");
        self.pairs.contains(&(from.to_owned(), to))
    }

    /// An edge.
    pub(super) fn edge(&mut self, edge: GraphEdge) {
        self.pairs.insert((edge.from.clone(), edge.to.clone()));
        self.graph.edges.push(edge);
    }

    pub(super) fn build(self) -> Graph {
        self.graph
    }
}
