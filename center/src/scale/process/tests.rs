use std::path::Path;

use super::*;

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn dir() -> Dir {
    Dir(std::env::temp_dir().join(format!("sockmesh-process-{}-{}", std::process::id(), fastrand::u64(..))))
}

fn cx(dir: &Dir) -> BuildCx {
    BuildCx { service: "echo".to_owned(), group: "a".to_owned(), data: dir.0.clone(), ..BuildCx::default() }
}

fn driver(cx: &BuildCx, yaml: &str) -> anyhow::Result<Arc<dyn Driver>> {
    build(&serde_yaml::from_str(yaml).unwrap(), cx)
}

const SLEEPER: &str = "{command: [sh, -c, 'echo began {name}; sleep 1000 & wait'], stop_after: 5s, restart_after: 20ms";

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn running(driver: &Arc<dyn Driver>) -> Vec<u32> {
    driver.instances().iter().filter(|i| i.state == "running").filter_map(|i| i.pid).collect()
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

/// Processes of a group that have not ended.
fn group(pgid: u32) -> usize {
    let stats = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect();
        (fields[0] != "Z" && fields[2] == pgid.to_string()).then_some(())
    });
    stats.count()
}

fn log(dir: &Dir, name: &str) -> String {
    std::fs::read_to_string(dir.0.join("echo@a").join(format!("{name}.log"))).unwrap_or_default()
}

#[tokio::test]
async fn instances_are_started_restarted_and_ended_with_their_children() {
    let dir = dir();
    let driver = driver(&cx(&dir), &format!("{SLEEPER}}}")).unwrap();
    assert_eq!(driver.size().await.unwrap(), 0);
    driver.scale(2, "one").await.unwrap();
    until("two run", || running(&driver).len() == 2).await;
    let pids = running(&driver);
    until("each with its child", || pids.iter().all(|pid| group(*pid) == 2)).await;

    let pid = rustix::process::Pid::from_raw(i32::try_from(pids[0]).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("another one runs", || running(&driver).len() == 2 && !running(&driver).contains(&pids[0])).await;
    let shown = driver.instances();
    assert_eq!((shown[0].restarts, shown[1].restarts), (1, 0));
    assert!(shown[0].reason.contains("signal: 9"), "{}", shown[0].reason);
    // Killed is not gone yet.
    until("its child went with it", || group(pids[0]) == 0).await;
    until("its log has both starts", || log(&dir, "echo@a-0").matches("began echo@a-0").count() == 2).await;

    // A key that was used does nothing more, whatever it says.
    driver.scale(1, "two").await.unwrap();
    driver.scale(2, "one").await.unwrap();
    assert_eq!(driver.size().await.unwrap(), 1);
    until("one is left", || driver.instances().len() == 1).await;
    assert_eq!(driver.instances()[0].name, "echo@a-0", "the highest slot went");
    until("with its child", || group(pids[1]) == 0).await;

    let last = running(&driver)[0];
    driver.end(Ending::Center).await;
    until("nothing of it is left", || group(last) == 0).await;
    let refused = driver.scale(2, "late").await.unwrap_err().to_string();
    assert!(refused.contains("ended") && driver.instances().is_empty(), "{refused}");
}

#[tokio::test]
async fn a_new_driver_takes_over_what_runs_and_nothing_is_started_twice() {
    let dir = dir();
    let keeping = format!("{SLEEPER}, keep: true}}");
    let first = driver(&cx(&dir), &keeping).unwrap();
    first.scale(2, "one").await.unwrap();
    until("two run", || running(&first).len() == 2).await;
    let pids = running(&first);
    first.end(Ending::Center).await;
    assert!(pids.iter().all(|pid| alive(*pid)), "kept");

    let second = driver(&cx(&dir), &keeping).unwrap();
    until("the same two run", || running(&second) == pids).await;
    assert_eq!(second.size().await.unwrap(), 2);
    second.scale(1, "one").await.unwrap();
    assert_eq!(second.size().await.unwrap(), 2, "the key was used before the restart");
    second.end(Ending::Replaced).await;

    // The third one does not keep; and one instance died meanwhile, its number may be another's.
    let pid = rustix::process::Pid::from_raw(i32::try_from(pids[1]).unwrap()).unwrap();
    rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).unwrap();
    until("it died", || !alive(pids[1])).await;
    let third = driver(&cx(&dir), &format!("{SLEEPER}}}")).unwrap();
    until("two run", || running(&third).len() == 2).await;
    assert!(running(&third).contains(&pids[0]) && !running(&third).contains(&pids[1]));
    third.end(Ending::Center).await;
    assert!(!alive(pids[0]), "an adopted one ends too");
    // What was wanted holds for the next start.
    let fourth = driver(&cx(&dir), &format!("{SLEEPER}}}")).unwrap();
    until("two run", || running(&fourth).len() == 2).await;
    fourth.end(Ending::Center).await;
}

#[tokio::test]
async fn one_that_will_not_end_is_killed_and_one_that_cannot_start_says_why() {
    let dir = dir();
    let deaf = "{command: [sh, -c, 'trap \"\" TERM; echo deaf; while :; do sleep 1000; done'], stop_after: 100ms}";
    let driver_of = driver(&cx(&dir), deaf).unwrap();
    driver_of.scale(1, "one").await.unwrap();
    until("it is deaf", || log(&dir, "echo@a-0").contains("deaf")).await;
    let pid = running(&driver_of)[0];
    driver_of.end(Ending::Center).await;
    until("nothing of it is left", || group(pid) == 0).await;

    let missing = driver(&cx(&self::dir()), "{command: [/nowhere/at/all], restart_after: 10ms}").unwrap();
    missing.scale(1, "one").await.unwrap();
    until("it says why", || missing.instances()[0].reason.contains("cannot start /nowhere/at/all")).await;
    missing.end(Ending::Center).await;
}

#[tokio::test]
async fn ports_are_given_once_and_all_or_none() {
    let dir = dir();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    // Wide enough that others on this host, which get their ports near this one, leave some.
    let first = taken.local_addr().unwrap().port().min(u16::MAX - 100);
    let yaml = format!(
        "{{command: [sh, -c, 'echo port {{port}}; sleep 1000'], ports: {first}-{}, stop_after: 1s}}",
        first + 99
    );
    let cx = cx(&dir);
    let mine = driver(&cx, &yaml).unwrap();
    let too_many = mine.scale(100, "one").await.unwrap_err().to_string();
    assert!(too_many.contains("widen `ports`"), "{too_many}");
    assert!(mine.instances().is_empty() && cx.ports.lock().is_empty(), "nothing in part");
    mine.scale(2, "two").await.unwrap();
    let other = driver(&BuildCx { group: "b".to_owned(), ..cx.clone() }, &yaml).unwrap();
    other.scale(2, "one").await.unwrap();
    let ports: BTreeSet<_> = mine.instances().iter().chain(&other.instances()).filter_map(|i| i.port).collect();
    assert_eq!(ports.len(), 4);
    let port = mine.instances()[0].port.unwrap();
    until("it was told its port", || log(&dir, "echo@a-0").contains(&format!("port {port}"))).await;
    mine.end(Ending::Center).await;
    other.end(Ending::Center).await;
    assert!(cx.ports.lock().is_empty());
}

#[tokio::test]
async fn options_that_cannot_work_are_told() {
    for (yaml, part) in [
        ("{command: []}", "is empty"),
        ("{command: [a, '{port}']}", "write for example ports: 20000-20099"),
        ("{command: [a], environment: {A: '{x}'}}", "is no placeholder"),
        ("{command: [a], restart_after: 0s}", "is not within 10ms"),
        ("{command: [a], ports: all}", "is not a range"),
        ("{command: [a], colour: red}", "colour"),
        ("{ports: 1-2}", "command"),
    ] {
        let said = format!("{:#}", driver(&cx(&dir()), yaml).err().expect(yaml));
        assert!(said.contains(part), "{said}");
    }
    let broken = dir();
    std::fs::create_dir_all(broken.0.join("echo@a")).unwrap();
    std::fs::write(broken.0.join("echo@a/state.json"), b"{").unwrap();
    let said = format!("{:#}", driver(&cx(&broken), "{command: [a]}").err().unwrap());
    assert!(said.contains("state.json is broken"), "{said}");
    assert!(Path::new(&broken.0.join("echo@a/state.json")).exists());
}
