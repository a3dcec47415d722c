//! A program cannot tell, other than by speed, how its bytes travel: every row of the programs `rows` and `rings`
//! directly and through the agent. What must differ is listed here with its reason.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use agent::sys;
use host::{
    Agent, Cgroup, Cmd, Need, agent::Settings, free_port, heavy, lacks, need, program, temp::serial, until_some,
    wait::within,
};

/// Rows at once: most of them wait most of the time.
const AT_ONCE: usize = 3;

/// What a row saw, line by line.
type Seen = Vec<(String, String)>;

/// A line that sees something else under circumstances.
struct Change {
    row: &'static str,
    /// Lines whose name ends so.
    line: &'static str,
    /// What they are then.
    seen: &'static str,
    /// Why, for whoever reads the table.
    why: &'static str,
}

const fn change(row: &'static str, line: &'static str, seen: &'static str, why: &'static str) -> Change {
    Change { row, line, seen, why }
}

const URGENT: &str = "the agent passes an urgent byte on in its place in the stream, without the urgency";
const DIALS: &str = "the agent dials the server (`client_address` gives it the caller's address)";
const ACCEPTS: &str = "the agent has accepted by the time it learns that nobody listens, and can only reset";

/// What an agent in between makes of some lines, whether it redirects or not.
const BETWEEN: &[Change] = &[
    change("urgent", "told", "none", URGENT),
    change("urgent", "beside", "not asked for", URGENT),
    change("urgent", "stream", "abc!def", URGENT),
    change("urgent_inline", "told", "none", URGENT),
    change("names", "server's peer", "another", DIALS),
    change("bind_first", "server's peer", "another", DIALS),
    change("v6only", "server's peer", "another", DIALS),
    change("mapped", "server's peer", "another", DIALS),
    change("refused", "end", "ECONNRESET", ACCEPTS),
];

/// What `redirect: on` changes besides, on this kernel: the table of `docs/kernel.md`.
const ON: &[Change] = &[
    change("waitall", "", "100, then 100", "`MSG_WAITALL` comes back with what there is"),
    change("signal_restart", "", "EAGAIN, 1000", "a signal ends a blocking `recv` with EAGAIN"),
    change("signal_plain", "", "EAGAIN, 1000", "the same without `SA_RESTART`"),
    change("rcvlowat", "10 of 100", "IN", "`SO_RCVLOWAT` is not heeded"),
    change("inq", "read", "400, not told", "`TCP_INQ` tells nothing"),
    change("zerocopy", "told", "none", "`MSG_ZEROCOPY` never completes"),
    change("zerocopy", "completion", "EAGAIN", "the same"),
    change("close_unread", "", "EOF", "closing with bytes unread looks like an orderly close"),
    change("splice", "up", "0, EAGAIN, intact", "`splice` from a socket finds nothing"),
    change("splice", "down", "0, EAGAIN, intact", "the same"),
    change("ring_nonempty", "part", "400, -", "io_uring does not tell that more is there"),
    change("ring_zerocopy", "up sent", "EOPNOTSUPP", "io_uring refuses zero-copy sends to who connected"),
    change("ring_splice", "moved", "nothing", "`splice` by io_uring finds nothing"),
    change("ring_splice", "read", "nothing", "the same"),
];

/// What `redirect: auto` changes besides: nothing can tell which programs rely on this.
const AUTO: &[Change] = &[change("close_unread", "", "EOF", "closing with bytes unread looks like an orderly close")];

/// What `redirect: auto` makes of the program of a row; all others are redirected.
const LEFT_ALONE: &[(&str, &str)] = &[
    ("blocking", BLOCKING),
    ("waitall", BLOCKING),
    ("rcvtimeo", BLOCKING),
    ("sndtimeo", BLOCKING),
    ("signal_restart", BLOCKING),
    ("signal_plain", BLOCKING),
    ("rcvlowat", "off: sets SO_RCVLOWAT"),
    ("inq", "off: sets TCP_INQ"),
    ("zerocopy", "off: sets SO_ZEROCOPY"),
    ("ulp", "off: sets TCP_ULP"),
    ("splice", "off: can splice sockets"),
];
/// What it makes of every row of `rings`.
const RINGS: &str = "off: uses io_uring";
/// The kernel half's number for a program that may be redirected.
const ON_VERDICT: u32 = 1;
const BLOCKING: &str = "off: uses blocking sockets";

/// Every row: those of `rows`, the one of `splicer`, and those of `rings` where this kernel has them.
fn rows() -> &'static [String] {
    static ROWS: OnceLock<Vec<String>> = OnceLock::new();
    ROWS.get_or_init(|| {
        let said = Cmd::new(env!("CARGO_BIN_EXE_rows")).args(["list"]).run().ok();
        let rings = rings().map(|file| Cmd::new(file).args(["list"]).run().ok()).unwrap_or_default();
        said.lines().chain(["splice"]).chain(rings.lines()).map(str::to_owned).collect()
    })
}

/// The program whose rows use io_uring; none, having said so, where there is no compiler for it or the kernel does not
/// let us.
fn rings() -> Option<&'static Path> {
    static RINGS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = RINGS.get_or_init(|| {
        if lacks(&[Need::Program("cc")]) {
            return None;
        }
        let file = PathBuf::from(program::c("rings.c").program());
        if Cmd::new(&file).args(["list"]).run().status.code() == Some(77) {
            need::skip("rows of io_uring: this kernel does not let us use it");
            return None;
        }
        Some(file)
    });
    built.as_deref()
}

/// Whether a row belongs to `rings`.
fn is_ring(row: &str) -> bool {
    row.starts_with("ring_")
}

/// The program of a row.
fn program_of(row: &str) -> PathBuf {
    match row {
        "splice" => env!("CARGO_BIN_EXE_splicer").into(),
        row if is_ring(row) => rings().expect("it has named the row").to_owned(),
        _ => env!("CARGO_BIN_EXE_rows").into(),
    }
}

/// Why the program of a row is left on TCP by `redirect: auto`; none where it is redirected.
fn left_alone(row: &str) -> Option<&'static str> {
    let listed = LEFT_ALONE.iter().find(|(name, _)| *name == row).map(|(_, why)| *why);
    listed.or_else(|| is_ring(row).then_some(RINGS))
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

/// Runs `row` once as `program`; what it saw.
#[track_caller]
fn perform(program: &Path, row: &str, road: &Road, cgroup: Option<&Cgroup>) -> Seen {
    let args: &[&str] = if row == "splice" { &[] } else { &[row] };
    let mut cmd = Cmd::new(program).args(args).args(&road.0).limit(Duration::from_secs(150));
    if let Some(group) = cgroup {
        cmd = cmd.cgroup(group);
    }
    let said = cmd.run();
    assert!(said.status.success(), "{row}: {}\n{}\n{}", said.status, said.out, said.err);
    let lines = said.out.lines().map(|line| line.split_once(": ").unwrap_or((line, "")));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// These rows by `perform`, several at once.
fn each<'a>(rows: &[&'a str], perform: impl Fn(&str) -> Seen + Sync) -> BTreeMap<&'a str, Seen> {
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Relaxed)) {
                    let lines = perform(row);
                    seen.lock().unwrap().insert(*row, lines);
                }
            });
        }
    });
    seen.into_inner().unwrap()
}

/// Every row by `perform`, several at once.
fn all(perform: impl Fn(&str) -> Seen + Sync) -> BTreeMap<&'static str, Seen> {
    let rows: Vec<&'static str> = rows().iter().map(String::as_str).collect();
    each(&rows, perform)
}

/// What every row sees without a mesh.
fn direct() -> &'static BTreeMap<&'static str, Seen> {
    static DIRECT: OnceLock<BTreeMap<&'static str, Seen>> = OnceLock::new();
    DIRECT.get_or_init(|| all(|row| perform(&program_of(row), row, &Road::direct(), None)))
}

/// What a row sees where `changes` hold, from what it sees directly.
fn changed(row: &str, changes: &[&[Change]]) -> Seen {
    let mut seen = direct()[row].clone();
    for change in changes.iter().copied().flatten().filter(|change| change.row == row) {
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
    /// How often something happened at a hook.
    fn outcome(&self, name: &str) -> f64 {
        self.agent.metric("sockmesh_capture_total", &[&format!("outcome=\"{name}\"")])
    }

    /// The way to the service of `row`.
    fn road(&self, row: &str) -> &Road {
        &self.roads[rows().iter().position(|known| known == row).expect("every row has one")]
    }

    /// A copy of the program of `row`, which nobody knows.
    fn copy(&self, row: &str) -> PathBuf {
        let file = self.agent.dir().file(&format!("program-{row}"));
        fs::copy(program_of(row), &file).unwrap();
        file
    }

    /// Opens connections of `file`, one after the other, until the agent says `verdict` of one.
    #[track_caller]
    fn learn(&self, file: &Path, road: &Road, drive: &str, verdict: &str) {
        let mut last = String::new();
        let says = |peer: &str| {
            let found = self.agent.sockets().into_iter().find(|row| row["peer"] == *peer);
            found.map_or("not listed".to_owned(), |row| row["redirect"].as_str().unwrap_or("-").to_owned())
        };
        let known = within(Duration::from_secs(60), || {
            self.hold(file, road, drive, |peer| {
                // A program that is gone teaches nothing: this one stays until something was learned.
                let first = says(peer);
                let then = match first == verdict {
                    true => None,
                    false => within(Duration::from_secs(5), || Some(says(peer)).filter(|now| *now != first)),
                };
                last = then.unwrap_or(first);
            });
            (last == verdict).then_some(())
        });
        assert!(known.is_some(), "{}: expected {verdict}, seen {last}", file.display());
    }

    /// Opens connections to `file`, one after the other, until the agent knows it as a server, too. One may not do:
    /// the agent leaves out a look when it has searched all processes a moment ago.
    #[track_caller]
    fn serve(&self, file: &Path, road: &Road) {
        let known = || self.acceptors().contains(&ON_VERDICT).then_some(());
        let found = within(Duration::from_secs(60), || {
            self.hold(file, road, "polling", |_| _ = within(Duration::from_secs(2), known));
            known()
        });
        assert!(found.is_some(), "{}: {:?}", file.display(), self.acceptors());
    }

    /// Does something while `file` holds a connection; told its end.
    #[track_caller]
    fn hold(&self, file: &Path, road: &Road, drive: &str, mut meanwhile: impl FnMut(&str)) {
        let log = self.agent.dir().file(&format!("held-{}.log", serial()));
        let held = Cmd::new(file).args(["hold", drive]).args(&road.0).cgroup(&self.group).spawn(&log);
        let peer = until_some("a connection is held", || {
            held.said().lines().find_map(|line| line.strip_prefix("held: ").map(str::to_owned))
        });
        meanwhile(&peer);
    }

    /// What the kernel half is told of listening programs.
    fn acceptors(&self) -> Vec<u32> {
        let map = sys::obj_get(&self.agent.pins().join("maps/MESH_ACCEPTORS")).unwrap();
        let map = sys::BpfMap::<[u8; 32], u32>::new(map).unwrap();
        map.keys(4096).unwrap().iter().filter_map(|key| map.get(key).unwrap()).collect()
    }

    /// With `capture.redirect` as given.
    fn new(redirect: &str) -> Self {
        let roads: Vec<_> = (0..rows().len()).map(Road::meshed).collect();
        let services: String = rows().iter().zip(&roads).map(|(row, road)| road.service(row)).collect();
        let group = Cgroup::new("rows");
        let settings = Settings { enroll: &[&group], capture: &format!("redirect: {redirect}"), ..Settings::default() };
        let agent = Agent::with(&settings, &format!("referers:\n{services}"));
        Self { roads, group, agent }
    }
}

/// Asserts that every row saw what `changes` make of it.
#[track_caller]
fn assert_seen(changes: &[&[Change]], seen: &BTreeMap<&str, Seen>) {
    let differing: String =
        rows().iter().map(|row| differences(row, &changed(row, changes), &seen[row.as_str()])).collect();
    assert!(differing.is_empty(), "{differing}");
}

#[test]
fn semantics_of_sockets_are_kept_by_an_agent_in_between() {
    if lacks(&[Need::Kernel]) {
        return;
    }
    let _heavy = heavy();
    let world = World::new("off");
    let seen = all(|row| perform(&program_of(row), row, world.road(row), Some(&world.group)));
    assert_seen(&[BETWEEN], &seen);
    assert!(world.agent.metric("sockmesh_connections_accepted_total", &[]) > rows().len() as f64);
    assert_eq!(world.outcome("redirected"), 0.0);
}

#[test]
fn semantics_of_redirected_sockets_differ_only_as_documented() {
    if lacks(&[Need::Kernel]) {
        return;
    }
    let _heavy = heavy();
    let world = World::new("on");
    let seen = all(|row| perform(&program_of(row), row, world.road(row), Some(&world.group)));
    assert_seen(&[BETWEEN, ON], &seen);
    assert!(world.outcome("redirected") > 1000.0);
}

#[test]
fn semantics_are_kept_by_leaving_programs_alone_that_would_notice() {
    if lacks(&[Need::Kernel]) {
        return;
    }
    let world = World::new("auto");
    let alone: Vec<_> = rows().iter().map(String::as_str).filter(|row| left_alone(row).is_some()).collect();
    let mut seen = each(&alone, |row| {
        let verdict = left_alone(row).expect("it is one of them");
        // A program is known by its file, and each of these does one thing only.
        let file = world.copy(row);
        let road = world.road(row);
        let unknown = perform(&file, row, road, Some(&world.group));
        world.learn(&file, road, if verdict == BLOCKING { "blocking" } else { "polling" }, verdict);
        let known = perform(&file, row, road, Some(&world.group));
        fs::remove_file(&file).unwrap();
        assert_eq!(differences(row, &unknown, &known), "", "known and unknown");
        known
    });

    // All others are one program at one address, known at both of its ends.
    let (file, road) = (world.copy("rows"), &world.roads[0]);
    world.learn(&file, road, "polling", "on");
    world.serve(&file, road);
    for row in rows().iter().filter(|row| !alone.contains(&row.as_str())) {
        seen.insert(row, perform(&file, row, road, Some(&world.group)));
    }
    world.learn(&file, road, "polling", "on");
    assert_seen(&[BETWEEN, AUTO], &seen);
    assert!(world.outcome("redirected") > 1000.0);
}

#[test]
fn semantics_that_redirect_changes_are_in_the_kernel_page() {
    let page = include_str!("../docs/kernel.md");
    let (_, table) = page.split_once("<!-- rows -->\n").expect("docs/kernel.md has the place");
    let (table, _) = table.split_once("<!-- end of rows -->").expect("docs/kernel.md has the place's end");
    let mut wanted = "| row | what differs | line | redirected |\n| --- | --- | --- | --- |\n".to_owned();
    for Change { row, line, seen, why } in ON {
        let line = if line.is_empty() { "–".to_owned() } else { format!("`{line}`") };
        writeln!(wanted, "| `{row}` | {why} | {line} | `{seen}` |").unwrap();
    }
    assert_eq!(table, wanted, "docs/kernel.md says otherwise than this test");
}
