//! A program cannot tell, other than by speed, how its bytes travel: every row of the program `rows` directly and
//! through the agent. What must differ is listed here with its reason.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::PathBuf,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use host::{Agent, Cgroup, Cmd, Need, free_port, heavy, lacks};

/// Rows at once: most of them wait most of the time.
const AT_ONCE: usize = 3;

/// What a row saw, line by line.
type Seen = Vec<(String, String)>;

/// What an agent in between makes of some lines, whether it redirects or not.
const BETWEEN: &[Between] = &[
    Between { row: "urgent", line: "told", seen: "none", why: URGENT },
    Between { row: "urgent", line: "beside", seen: "EINVAL", why: URGENT },
    Between { row: "urgent", line: "stream", seen: "abc!def", why: URGENT },
    Between { row: "urgent_inline", line: "told", seen: "none", why: URGENT },
    Between { row: "names", line: "server's peer", seen: "another", why: DIALS },
    Between { row: "bind_first", line: "server's peer", seen: "another", why: DIALS },
    Between { row: "v6only", line: "server's peer", seen: "another", why: DIALS },
    Between { row: "mapped", line: "server's peer", seen: "another", why: DIALS },
    Between { row: "refused", line: "connect", seen: "done", why: ACCEPTS },
    Between { row: "refused", line: "read", seen: "ECONNRESET", why: ACCEPTS },
];

const URGENT: &str = "the agent passes an urgent byte on in its place in the stream, without the urgency";
const DIALS: &str = "the agent dials the server (`client_address` gives it the caller's address)";
const ACCEPTS: &str = "the agent has accepted by the time it learns that nobody listens, and can only reset";

/// Lines that an agent in between changes.
struct Between {
    row: &'static str,
    /// Lines whose name ends so.
    line: &'static str,
    /// What they are then.
    seen: &'static str,
    /// Why it cannot be otherwise.
    #[allow(dead_code, reason = "for whoever reads the table")]
    why: &'static str,
}

/// Every row: those of `rows` and the one of `splicer`.
fn rows() -> &'static [String] {
    static ROWS: OnceLock<Vec<String>> = OnceLock::new();
    ROWS.get_or_init(|| {
        let said = Cmd::new(env!("CARGO_BIN_EXE_rows")).args(["list"]).run().ok();
        said.lines().map(str::to_owned).chain(["splice".to_owned()]).collect()
    })
}

/// The program of a row and its first arguments.
fn program(row: &str) -> (PathBuf, Vec<&str>) {
    match row {
        "splice" => (env!("CARGO_BIN_EXE_splicer").into(), vec![]),
        row => (env!("CARGO_BIN_EXE_rows").into(), vec![row]),
    }
}

/// Where a row's program listens and what it dials, over IPv4 and IPv6.
struct Road([String; 4]);

impl Road {
    fn direct() -> Self {
        let (four, six) = (format!("127.0.0.1:{}", free_port()), format!("[::1]:{}", free_port()));
        Self([four.clone(), four, six.clone(), six])
    }

    /// Through the mesh: the service of row number `index`.
    fn meshed(index: usize) -> Self {
        let [four, _, six, _] = Self::direct().0;
        Self([four, format!("240.0.7.{}:80", index + 1), six, format!("[fd00:5eed::7:{}]:80", index + 1)])
    }

    fn service(&self, row: &str) -> String {
        let [listen4, dial4, listen6, dial6] = &self.0;
        let mut yaml = String::new();
        for (family, listen, dial) in [("four", listen4, dial4), ("six", listen6, dial6)] {
            writeln!(
                yaml,
                "  - {{service: {row}-{family}, protocol: tcp, address: \"{dial}\", endpoints: [\"{listen}\"]}}"
            )
            .unwrap();
        }
        yaml
    }
}

/// Runs `row` once; what it saw.
#[track_caller]
fn perform(row: &str, road: &Road, cgroup: Option<&Cgroup>) -> Seen {
    let (program, args) = program(row);
    let mut cmd = Cmd::new(program).args(args).args(&road.0).limit(Duration::from_secs(150));
    if let Some(group) = cgroup {
        cmd = cmd.cgroup(group);
    }
    let said = cmd.run();
    assert!(said.status.success(), "{row}: {}\n{}\n{}", said.status, said.out, said.err);
    let lines = said.out.lines().map(|line| line.split_once(": ").unwrap_or((line, "")));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Every row by `perform`, several at once.
fn all(perform: impl Fn(usize, &str) -> Seen + Sync) -> BTreeMap<&'static str, Seen> {
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Relaxed);
                    let Some(row) = rows().get(index) else { break };
                    let lines = perform(index, row);
                    seen.lock().unwrap().insert(row.as_str(), lines);
                }
            });
        }
    });
    seen.into_inner().unwrap()
}

/// What every row sees without a mesh.
fn direct() -> &'static BTreeMap<&'static str, Seen> {
    static DIRECT: OnceLock<BTreeMap<&'static str, Seen>> = OnceLock::new();
    DIRECT.get_or_init(|| all(|_, row| perform(row, &Road::direct(), None)))
}

/// What a row sees with an agent in between, from what it sees without one.
fn between(row: &str, direct: &Seen) -> Seen {
    let mut seen = direct.clone();
    for change in BETWEEN.iter().filter(|change| change.row == row) {
        let mut lines = seen.iter_mut().filter(|(name, _)| name.ends_with(change.line)).peekable();
        assert!(lines.peek().is_some(), "{row} has no line {}", change.line);
        lines.for_each(|(_, value)| change.seen.clone_into(value));
    }
    seen
}

/// Lines that differ, for people.
fn differences(row: &str, expected: &Seen, seen: &Seen) -> String {
    let mut text = String::new();
    for at in 0..expected.len().max(seen.len()) {
        let (expected, seen) = (expected.get(at), seen.get(at));
        if expected != seen {
            writeln!(text, "{row}: expected {expected:?}, seen {seen:?}").unwrap();
        }
    }
    text
}

/// An agent with a service for each row.
struct World {
    roads: Vec<Road>,
    group: Cgroup,
    agent: Agent,
}

impl World {
    fn new() -> Self {
        let roads: Vec<_> = (0..rows().len()).map(Road::meshed).collect();
        let services: String = rows().iter().zip(&roads).map(|(row, road)| road.service(row)).collect();
        let group = Cgroup::new("rows");
        let agent = Agent::capturing(&[&group], &format!("referers:\n{services}"));
        Self { roads, group, agent }
    }
}

#[test]
fn semantics_of_sockets_are_kept_by_an_agent_in_between() {
    if lacks(&[Need::Kernel]) {
        return;
    }
    let _heavy = heavy();
    let world = World::new();
    let seen = all(|index, row| perform(row, &world.roads[index], Some(&world.group)));
    let differing: String = rows()
        .iter()
        .map(|row| differences(row, &between(row, &direct()[row.as_str()]), &seen[row.as_str()]))
        .collect();
    assert!(differing.is_empty(), "{differing}");
    assert!(world.agent.metric("sockmesh_connections_accepted_total", &[]) > rows().len() as f64);
}
