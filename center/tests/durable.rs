//! What was acknowledged outlives the process, whatever ends it. Short here, long in `cargo xtask soak`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code: a panic is its way to fail")]

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use center::store::{Batch, Embedded, Store};
use model::center::Stamp;

/// Tells a child where to write.
const DIR: &str = "SOCKMESH_TEST_STORE";
/// Tasks that write at once.
const WRITERS: usize = 4;

/// How often something is done: `long` in `cargo xtask soak`.
fn rounds(short: usize, long: usize) -> usize {
    if env::var_os("SOCKMESH_SOAK").is_some() { long } else { short }
}

/// A directory that goes with the test.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let dir = env::temp_dir().join(format!("sockmesh-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn number(store: &dyn Store, key: &str) -> u64 {
    let found = store.scan(key, None, 1).await.unwrap();
    found.first().map_or(0, |entry| String::from_utf8_lossy(&entry.value).parse().unwrap())
}

/// No test of its own: the process that [`nothing_acknowledged_is_lost_to_sigkill`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes_until_it_is_killed() {
    let Some(dir) = env::var_os(DIR) else { return };
    let store = Arc::new(Embedded::open(Path::new(&dir), "child").unwrap());
    let say = |line: String| std::io::stdout().lock().write_all(line.as_bytes());
    say(format!("\nopen {}\n", store.stamp().epoch)).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move {
            let mut n = number(&*store, &format!("left/{writer}")).await;
            loop {
                n += 1;
                // Three keys that only make sense together, and one that goes.
                let text = n.to_string().into_bytes();
                let put = vec![
                    (format!("left/{writer}"), text.clone()),
                    (format!("log/{writer}/{n:06}"), vec![b'x'; 300]),
                    (format!("right/{writer}"), text),
                    (format!("token/{writer}/{n}"), Vec::new()),
                ];
                let delete = vec![format!("token/{writer}/{}", n - 1)];
                let stamp = store.commit(Batch { put, delete, ..Batch::default() }).await.unwrap();
                say(format!("ack {writer} {n} {}\n", stamp.revision)).unwrap();
            }
        });
    }
    tasks.join_all().await;
}

/// What a child said before it was killed.
#[derive(Clone, Debug, Default)]
struct Said {
    epoch: u64,
    acknowledged: [u64; WRITERS],
    revision: u64,
}

struct Writing {
    child: Child,
    said: Arc<Mutex<Said>>,
    reader: std::thread::JoinHandle<()>,
    opened: mpsc::Receiver<()>,
}

fn start(dir: &Path, said: &Arc<Mutex<Said>>) -> Writing {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["child_that_writes_until_it_is_killed", "--exact", "--nocapture"]).env(DIR, dir);
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (open, opened) = mpsc::sync_channel(1);
    let taken = said.clone();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let words: Vec<_> = line.split(' ').collect();
            let mut said = taken.lock().unwrap();
            match words[..] {
                ["open", epoch] => {
                    said.epoch = epoch.parse().unwrap();
                    let _ = open.try_send(());
                }
                // The last line may be cut off by the kill.
                ["ack", writer, n, revision] if !revision.is_empty() => {
                    let writer: usize = writer.parse().unwrap();
                    said.acknowledged[writer] = n.parse().unwrap();
                    said.revision = said.revision.max(revision.parse().unwrap());
                }
                _ => {}
            }
        }
    });
    Writing { child, said: said.clone(), reader, opened }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_to_sigkill() {
    let (dir, rounds) = (Temp::new("killed"), rounds(20, 200));
    let said = Arc::new(Mutex::new(Said::default()));
    let mut random = fastrand::Rng::with_seed(6);
    let (mut last, mut while_opening) = (Stamp::default(), 0);
    for round in 0..rounds {
        let mut writing = start(&dir.0, &said);
        // Most die while they write, some while they open what the one before left.
        if round % 4 > 0 {
            writing.opened.recv_timeout(Duration::from_secs(60)).expect("the child opens the store");
        } else {
            while_opening += 1;
        }
        // Not a synchronisation: the moment of the kill.
        std::thread::park_timeout(Duration::from_micros(random.u64(0..100_000)));
        writing.child.kill().unwrap();
        writing.child.wait().unwrap();
        writing.reader.join().unwrap();
        let said = writing.said.lock().unwrap().clone();

        let store = Embedded::open(&dir.0, "parent").unwrap();
        let stamp = store.stamp();
        assert!(
            stamp.epoch > last.epoch.max(said.epoch) && stamp.revision >= last.revision,
            "round {round}: {stamp:?}"
        );
        assert!(stamp.revision >= said.revision, "round {round}: revision {} was acknowledged", said.revision);
        last = stamp;
        for (writer, acknowledged) in said.acknowledged.iter().enumerate() {
            let left = number(&store, &format!("left/{writer}")).await;
            let right = number(&store, &format!("right/{writer}")).await;
            let log = store.scan(&format!("log/{writer}/"), None, usize::MAX).await.unwrap();
            let tokens = store.scan(&format!("token/{writer}/"), None, 9).await.unwrap();
            assert_eq!(left, right, "round {round}: half of a batch");
            assert_eq!(log.len() as u64, left, "round {round}: half of a batch");
            assert_eq!(tokens.len() as u64, left.min(1), "round {round}: half of a batch");
            assert!(left >= *acknowledged, "round {round}: {acknowledged} was acknowledged, {left} is there");
        }
    }
    let written: u64 = said.lock().unwrap().acknowledged.iter().sum();
    println!("killed {rounds} times ({while_opening} while opening): {written} acknowledged batches, none lost");
    assert!(written > rounds as u64);
}

#[test]
fn a_store_killed_in_its_first_moments_can_be_opened() {
    let rounds = rounds(20, 200);
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..rounds {
        let (dir, said) = (Temp::new("first"), Arc::default());
        let mut writing = start(&dir.0, &said);
        // Not a synchronisation: the moment of the kill.
        std::thread::park_timeout(Duration::from_micros(random.u64(0..40_000)));
        writing.child.kill().unwrap();
        writing.child.wait().unwrap();
        writing.reader.join().unwrap();
        Embedded::open(&dir.0, "parent").unwrap_or_else(|error| panic!("round {round}: {error:#}"));
    }
}

#[tokio::test]
async fn a_second_process_is_refused_by_name() {
    let (dir, said) = (Temp::new("second"), Arc::default());
    let mut writing = start(&dir.0, &said);
    writing.opened.recv_timeout(Duration::from_secs(60)).expect("the child opens the store");
    let Err(refused) = Embedded::open(&dir.0, "second") else { panic!("both write") };
    assert!(format!("{refused:#}").contains(&format!("in use by process {}", writing.child.id())), "{refused:#}");
    writing.child.kill().unwrap();
    writing.child.wait().unwrap();
    writing.reader.join().unwrap();
    // The file that names it is still there; the lock is not.
    Embedded::open(&dir.0, "second").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_of_a_million_is_read_by_pages() {
    use center::{
        audit::{Audit, Wanted},
        auth::Actor,
    };
    let (dir, all) = (Temp::new("audit"), rounds(5_000, 1_000_000));
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.0, "me").unwrap());
    let audit = Audit::new(store.clone());
    let began = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..500 {
        let audit = audit.clone();
        tasks.spawn(async move {
            let actor = Actor { name: format!("operator-{task}"), from: "10.0.0.1:1".to_owned(), ..Actor::default() };
            let detail = serde_json::json!({ "weight": 50, "reason": "slower than the others of its zone" });
            for i in 0..all / 500 {
                let target = format!("idc-a/com.example.Service{task}/10.0.{task}.{i}:8002");
                audit.record(&actor, "instance.weight", &target, "ok", detail.clone()).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let written = began.elapsed();

    drop((audit, store));
    let began = std::time::Instant::now();
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.0, "me").unwrap());
    let opened = began.elapsed();
    let audit = Audit::new(store);
    let (mut before, mut seen, mut slowest) = (None, 0, Duration::ZERO);
    let began = std::time::Instant::now();
    loop {
        let asked = std::time::Instant::now();
        let page = audit.find(&Wanted::default(), before, 1000).await.unwrap();
        slowest = slowest.max(asked.elapsed());
        for entry in &page.items {
            assert!(before.is_none_or(|before| entry.id < before), "{} after {before:?}", entry.id);
            before = Some(entry.id);
        }
        seen += page.items.len();
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!((seen, before), (all, Some(1)));
    let (read, size) = (began.elapsed(), std::fs::metadata(dir.0.join("center.redb")).unwrap().len() >> 20);
    println!(
        "audit of {all}: written in {written:.1?}, {size} MB, opened in {opened:.1?}, read in {read:.1?}, slowest page {slowest:.1?}"
    );
}
