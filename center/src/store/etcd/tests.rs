//! Against a real etcd, which is killed, stopped and emptied.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::task::{JoinHandle, JoinSet};

use super::*;
use crate::store::tests::{keeps_its_promises, put, texts};

/// Longest that an event may take on a crowded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A member of its own, killed with the test.
struct Member {
    child: Child,
    addr: SocketAddr,
    peer: SocketAddr,
    dir: PathBuf,
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn spawn(addr: SocketAddr, peer: SocketAddr, dir: &std::path::Path) -> Child {
    let (client, peer) = (format!("http://{addr}"), format!("http://{peer}"));
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir).args(["--unsafe-no-fsync", "--log-level", "error"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Member {
    /// Starts one; `None` where etcd is not installed.
    fn start() -> Option<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        if Command::new("etcd").arg("--version").output().is_err() {
            let line = "SKIPPED: etcd is not installed";
            assert!(std::env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{line} (REQUIRE_ALL=1)");
            println!("{line}");
            return None;
        }
        let name = format!("sockmesh-etcd-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let dir = std::env::temp_dir().join(name);
        let (addr, peer) = (free(), free());
        Some(Self { child: spawn(addr, peer, &dir), addr, peer, dir })
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn again(&mut self) {
        self.child = spawn(self.addr, self.peer, &self.dir);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn options(addr: SocketAddr) -> Written {
    Written { address: vec![addr.to_string()], lease: Duration::from_secs(2), ..Written::default() }
}

fn centre(name: &str, addr: SocketAddr) -> Arc<Etcd> {
    Arc::new(Etcd::new(options(addr), name).unwrap())
}

/// Waits until `store` leads, or until it does not.
async fn leads(store: &Etcd, leads: bool) -> Leadership {
    let mut leadership = store.leadership();
    let found = timeout(PATIENCE, leadership.wait_for(|now| now.leads == leads)).await;
    found.unwrap_or_else(|_| panic!("leads = {leads}: {:?}", store.shared.trouble.borrow())).unwrap().clone()
}

/// Waits for a change of `key`: its new value, or `None` when it went.
async fn change(changes: &mut broadcast::Receiver<Arc<Changes>>, key: &str) -> (Option<String>, Stamp) {
    let found = async {
        loop {
            let change = changes.recv().await.unwrap();
            if let Some(entry) = change.put.iter().find(|entry| entry.key == key) {
                assert!(entry.revision <= change.stamp.revision);
                return (Some(String::from_utf8(entry.value.clone()).unwrap()), change.stamp);
            }
            if change.delete.iter().any(|gone| gone == key) {
                return (None, change.stamp);
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no change of {key}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_its_promises() {
    let Some(member) = Member::start() else { return };
    let store = centre("one", member.addr);
    leads(&store, true).await;
    keeps_its_promises(store.clone()).await;
    // Nothing of it is in anybody else's way.
    let other = Etcd::new(Written { prefix: "/other".into(), ..options(member.addr) }, "other").unwrap();
    assert_eq!(texts(&other, "", None, 9).await.len(), 0);
    let large = Batch { put: vec![("large".into(), vec![b'x'; 2 << 20])], ..Batch::default() };
    let refused = store.commit(large).await.unwrap_err().to_string();
    assert!(refused.contains("larger than"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_centres_share_one_store_and_one_of_them_leads() {
    let Some(member) = Member::start() else { return };
    let one = centre("one", member.addr);
    let first = leads(&one, true).await;
    let two = centre("two", member.addr);
    let mut of_two = two.changes().unwrap();
    two.shared.ready().await.unwrap();
    let mut leadership = two.leadership();
    let seen = timeout(PATIENCE, leadership.wait_for(|now| now.leader == "one")).await.unwrap().unwrap().clone();
    assert!(!seen.leads, "{seen:?}");

    // What one writes, two hears of, and not the other way round.
    let mut of_one = one.changes().unwrap();
    let stamp = one.commit(put(&[("k", "1")])).await.unwrap();
    assert_eq!(change(&mut of_two, "k").await, (Some("1".into()), stamp));
    one.commit(Batch { delete: vec!["k".into()], ..put(&[("audit/1", "not followed")]) }).await.unwrap();
    assert_eq!(change(&mut of_two, "k").await.0, None);
    let stamp = two.commit(put(&[("from-two", "2")])).await.unwrap();
    assert_eq!(change(&mut of_one, "from-two").await, (Some("2".into()), stamp));
    assert!(of_one.try_recv().is_err() && of_two.try_recv().is_err(), "one's own changes came back");

    // Both may register; only one may give orders.
    let fenced = |epoch| Batch { fenced: Some(epoch), ..put(&[("duty", "x")]) };
    one.commit(fenced(first.epoch)).await.unwrap();
    assert_eq!(two.commit(fenced(first.epoch)).await, Err(StoreError::NotLeader));

    // A stop hands the lead over at once, in a new epoch.
    one.stop().await;
    let second = leads(&two, true).await;
    assert!(second.epoch > first.epoch, "{first:?} {second:?}");
    assert_eq!(one.commit(fenced(first.epoch)).await, Err(StoreError::NotLeader));
    assert_eq!(one.commit(fenced(second.epoch)).await, Err(StoreError::NotLeader));
    two.commit(fenced(second.epoch)).await.unwrap();
    assert!(two.stamp().epoch == second.epoch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_slept_past_its_lease_writes_nothing() {
    let Some(member) = Member::start() else { return };
    let one = centre("one", member.addr);
    let first = leads(&one, true).await;
    // As it is when a process was stopped for long and goes on in the middle of a duty: it still believes that it leads,
    // and another one does.
    let shared = one.shared.clone();
    let fence = shared.state.lock().fence;
    let two = centre("two", member.addr);
    two.shared.ready().await.unwrap();
    let key = shared.key("leader");
    shared.client.transact(Vec::new(), vec![Step::Delete { key }]).await.unwrap();
    let second = tokio::select! {
        now = leads(&two, true) => now,
        now = async {
            leads(&one, false).await;
            leads(&one, true).await
        } => now,
    };
    assert!(second.epoch > first.epoch, "{second:?}");
    {
        let mut state = shared.state.lock();
        state.fence = fence;
        state.epoch.epoch = first.epoch;
    }
    shared.leadership.send_replace(Leadership { leads: true, ..first.clone() });
    let late = Batch { fenced: Some(first.epoch), ..put(&[("duty", "late")]) };
    assert_eq!(one.commit(late).await, Err(StoreError::NotLeader));
    assert_eq!(texts(&*two, "duty", None, 9).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_may_be_killed_hang_and_come_back() {
    let Some(mut member) = Member::start() else { return };
    let store = centre("one", member.addr);
    let first = leads(&store, true).await;
    let before = store.commit(put(&[("a", "1")])).await.unwrap();

    member.kill();
    let refused = store.commit(put(&[("a", "2")])).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Failed(why) if why.contains(&member.addr.to_string())), "{refused}");
    leads(&store, false).await;
    let mut trouble = store.trouble();
    let told = timeout(PATIENCE, trouble.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(told.contains("what is known stays in force"), "{told}");
    assert!(store.stamp() >= before);

    member.again();
    timeout(PATIENCE, trouble.wait_for(Option::is_none)).await.unwrap().unwrap();
    let second = leads(&store, true).await;
    assert!(second.epoch > first.epoch, "{first:?} {second:?}");
    assert_eq!(texts(&*store, "", None, 9).await, ["a=1"]);
    let after = store.commit(put(&[("a", "3")])).await.unwrap();
    assert!(after.follows(before), "{before:?} {after:?}");

    // One that hangs is no better than one that is gone.
    member.signal(Signal::STOP);
    leads(&store, false).await;
    member.signal(Signal::CONT);
    let third = leads(&store, true).await;
    assert!(third.epoch > second.epoch, "{second:?} {third:?}");
    let put_again = async {
        while store.commit(put(&[("a", "4")])).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, put_again).await.unwrap();
    assert_eq!(texts(&*store, "", None, 9).await, ["a=4"]);
}

/// A way to the member that can be cut.
struct Way {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

async fn way(listen: SocketAddr, to: SocketAddr) -> Way {
    let listener = tokio::net::TcpListener::bind(listen).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut from, _)) = listener.accept().await {
            connections.spawn(async move {
                let Ok(mut to) = tokio::net::TcpStream::connect(to).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    Way { addr, task }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_while_a_centre_was_cut_off_is_told_when_it_is_back() {
    let Some(member) = Member::start() else { return };
    let one = centre("one", member.addr);
    leads(&one, true).await;
    one.commit(put(&[("stays", "1"), ("goes", "1"), ("changes", "1")])).await.unwrap();
    let cut = way(free(), member.addr).await;
    let two = centre("two", cut.addr);
    two.shared.ready().await.unwrap();
    let mut changes = two.changes().unwrap();

    cut.task.abort();
    let mut trouble = two.trouble();
    timeout(PATIENCE, trouble.wait_for(Option::is_some)).await.unwrap().unwrap();
    let stamp = one.commit(Batch { delete: vec!["goes".into()], ..put(&[("changes", "2")]) }).await.unwrap();
    assert!(!two.stamp().follows(stamp), "it cannot know");
    let back = way(cut.addr, member.addr).await;
    let told = timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
    let put: Vec<_> = told.put.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!((put, &told.delete[..]), (vec!["changes"], &["goes".to_owned()][..]));
    assert!(told.stamp.follows(stamp) && two.stamp().follows(stamp));
    back.task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_restored_above_everything() {
    let Some(member) = Member::start() else { return };
    let options = serde_yaml::from_str(&format!("{{address: ['{}'], lease: 2s}}", member.addr)).unwrap();
    let old = Stamp { epoch: 7, revision: 5_000_000 };
    let entries = |n: usize| {
        (0..n).map(|i| Ok(Entry { key: format!("k/{i:04}"), value: i.to_string().into_bytes(), revision: 4_000_000 }))
    };
    let restored = restore(&options, old, entries(300), false).await.unwrap();
    assert_eq!((restored.entries, restored.stamp), (300, old));
    let store = centre("one", member.addr);
    let now = leads(&store, true).await;
    assert_eq!(now.epoch, 8);
    assert_eq!(store.scan("k/", None, 1000).await.unwrap().len(), 300);
    let seen = store.commit(put(&[("later", "x")])).await.unwrap();
    assert!(seen.follows(old), "{seen:?}");
    // Revisions of entries can be expected as they were read.
    let entry = store.scan("k/0007", None, 1).await.unwrap().remove(0);
    let swap = Batch { expect: vec![(entry.key.clone(), entry.revision)], ..put(&[("k/0007", "new")]) };
    store.commit(swap.clone()).await.unwrap();
    assert_eq!(store.commit(swap).await, Err(StoreError::Conflict { key: entry.key }));

    let used = restore(&options, old, entries(2), true).await.unwrap_err().to_string();
    assert!(used.contains("`one` leads"), "{used}");
    store.stop().await;
    drop(store);
    let there = restore(&options, old, entries(2), false).await.unwrap_err().to_string();
    assert!(there.contains("--force"), "{there}");
    // One that is broken off leaves nothing that could be served, and can be repeated.
    let broken = entries(2).chain([Err(anyhow::anyhow!("line 3 is broken"))]);
    restore(&options, old, broken, true).await.unwrap_err();
    let half = centre("half", member.addr);
    let mut trouble = half.trouble();
    let told = timeout(PATIENCE, trouble.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(told.contains("broken off"), "{told}");
    assert!(!half.leadership().borrow().leads);
    drop(half);
    let restored = restore(&options, old, entries(2), true).await.unwrap();
    assert!(restored.stamp.epoch > seen.epoch + 1000 && restored.stamp.revision > seen.revision + 1000);
    let store = centre("one", member.addr);
    leads(&store, true).await;
    assert_eq!(texts(&*store, "", None, 9).await, ["k/0000=0", "k/0001=1"]);
    assert!(store.stamp().revision >= restored.stamp.revision);
}

#[test]
fn parts_are_as_large_as_etcd_takes() {
    let step = |bytes| Step::Put { key: vec![b'k'], value: vec![0; bytes], lease: 0 };
    let sizes = |steps: Vec<Step>| parts(steps.into_iter()).iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(Vec::new()), [0]);
    assert_eq!(sizes(vec![step(1); STEPS]), [STEPS]);
    assert_eq!(sizes(vec![step(1); STEPS + 1]), [STEPS, 1]);
    assert_eq!(sizes(vec![step(STEP_BYTES / 2); 3]), [1, 1, 1]);
    assert_eq!(sizes(vec![step(1), step(2 * STEP_BYTES), step(1)]), [1, 1, 1]);
}
