//! Load, crash, adopt, replace, uninstall.

use std::{fs, os::unix::fs::MetadataExt as _, process::Stdio, sync::Mutex, time::Duration};

use agent::{
    capture::{
        Capture as _,
        ebpf::Ebpf,
        enroll::PROGRAMS,
        pins::{Found, Pins},
    },
    config::Enroll,
    sys,
};
use aya::{
    maps::{MapInfo, loaded_maps},
    programs::{loaded_links, loaded_programs},
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::{
    bed::{Bed, LIMIT, direct, service},
    need,
};

/// Prints the peer of a connect to argv[1]:argv[2] and what it says.
const CALL: &str = "
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print('%s %d' % s.getpeername(), s.recv(64).decode())
";

/// Numbers of everything of ours that is in the kernel.
#[derive(Debug, Default, PartialEq)]
struct InKernel {
    maps: Vec<u32>,
    links: Vec<u32>,
    programs: Vec<u32>,
}

fn in_kernel(bed: &Bed) -> InKernel {
    let mut found = InKernel::default();
    for entry in fs::read_dir(bed.pins().join("maps")).unwrap() {
        found.maps.push(MapInfo::from_pin(entry.unwrap().path()).unwrap().id());
    }
    for entry in fs::read_dir(bed.pins().join("links")).unwrap() {
        let path = entry.unwrap().path();
        let link = aya::programs::links::PinnedLink::from_pin(&path).unwrap();
        let info = aya::programs::links::FdLink::from(link).info().unwrap();
        found.links.push(info.id());
        found.programs.push(info.program_id());
    }
    found.maps.sort_unstable();
    found.links.sort_unstable();
    found.programs.sort_unstable();
    found
}

/// Which of them are still there.
fn remaining(of: &InKernel) -> InKernel {
    let has = |all: &[u32], id: &u32| all.contains(id);
    let (mut maps, mut links, mut programs) = (Vec::new(), Vec::new(), Vec::new());
    maps.extend(loaded_maps().flatten().map(|m| m.id()).filter(|id| has(&of.maps, id)));
    links.extend(loaded_links().flatten().map(|l| l.id()).filter(|id| has(&of.links, id)));
    programs.extend(loaded_programs().flatten().map(|p| p.id()).filter(|id| has(&of.programs, id)));
    InKernel { maps, links, programs }
}

/// The kernel frees in the background and tells nobody: looks again and again.
async fn gone(of: &InKernel) {
    let wait = async {
        while remaining(of) != InKernel::default() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(LIMIT, wait).await.is_err() {
        panic!("left behind: {:?}", remaining(of));
    }
}

#[tokio::test]
async fn uninstall_leaves_nothing() {
    need!("uninstall_leaves_nothing");
    let mut bed = Bed::new(&["240.0.0.1:80"]).await;
    let device = || fs::metadata(&bed.config.bpffs).unwrap().dev();
    let parent = fs::metadata(bed.config.bpffs.parent().unwrap()).unwrap().dev();
    assert_ne!(device(), parent, "it mounted the bpffs that was not there");
    let before = in_kernel(&bed);
    assert_eq!((before.maps.len(), before.links.len()), (Pins::map_names().count(), PROGRAMS.len()));
    assert_eq!(remaining(&before), before);
    let ebpf = bed.ebpf.take().unwrap();
    ebpf.uninstall().unwrap();
    drop(ebpf);
    assert_eq!(device(), parent, "and took it away again");
    assert_eq!(fs::read_dir(&bed.config.bpffs).unwrap().count(), 0);
    gone(&before).await;
}

#[tokio::test]
async fn a_start_that_fails_half_way_leaves_nothing() {
    need!("a_start_that_fails_half_way_leaves_nothing");
    let mut bed = Bed::unloaded(&["240.0.0.1:80"], |_| {}).await;
    bed.load(None);
    let before = in_kernel(&bed);
    // Dropped before it was told what to capture: the agent found its port taken, say.
    drop(bed.ebpf.take());
    assert!(!bed.pins().exists());
    gone(&before).await;
}

#[tokio::test]
async fn a_second_agent_of_the_same_name_is_told_who_has_it() {
    need!("a_second_agent_of_the_same_name_is_told_who_has_it");
    let bed = Bed::new(&[]).await;
    let error = Ebpf::load(&bed.name, &bed.config, None).err().unwrap().to_string();
    assert!(error.contains(&bed.name) && error.contains(&std::process::id().to_string()), "{error}");
}

/// Not a test of its own: the agent that others here kill. Does nothing unless it is told to.
#[tokio::test]
async fn the_agent_to_be_killed() {
    let Ok(told) = std::env::var("KERNEL_TEST_AGENT") else { return };
    let told: Vec<&str> = told.split(' ').collect();
    let [name, bpffs, cgroup, destination, listener] = told[..] else { panic!("{told:?}") };
    let config = agent::config::Capture {
        enroll: vec![Enroll::cgroup(cgroup)],
        bpffs: bpffs.into(),
        stale_after: Duration::from_millis(300),
        max_connections: 1024,
        ..Default::default()
    };
    let ebpf = Ebpf::load(name, &config, None).unwrap();
    let table = agent::capture::CaptureTable {
        destinations: vec![(service(destination), agent::config::OnAgentLoss::Direct)],
        straight: Vec::new(),
        listeners: vec![listener.parse().unwrap()],
        inbound: Vec::new(),
        redirect: config.redirect,
        enroll: config.enroll,
        ..agent::capture::CaptureTable::default()
    };
    ebpf.apply(&table).unwrap();
    println!("ready");
    let mut beats = tokio::time::interval(Duration::from_millis(50));
    loop {
        beats.tick().await;
        ebpf.beat();
    }
}

#[tokio::test]
async fn a_killed_agent_is_bypassed_and_its_successor_adopts() {
    need!("a_killed_agent_is_bypassed_and_its_successor_adopts", "python3");
    let server = direct("127.0.0.1:0").await;
    let port = server.port().to_string();
    let mut bed = Bed::unloaded(&[&server.to_string()], |c| c.stale_after = Duration::from_millis(300)).await;
    let told = [
        bed.name.as_str(),
        bed.config.bpffs.to_str().unwrap(),
        bed.enrolled.to_str().unwrap(),
        &server.to_string(),
        &bed.listener4.local_addr().unwrap().to_string(),
    ]
    .join(" ");
    let mut first = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifecycle::the_agent_to_be_killed", "--nocapture"])
        .env("KERNEL_TEST_AGENT", told)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.ends_with("ready") {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(LIMIT, ready).await.unwrap(), "the first agent did not start");
    let program = bed.python(CALL, &["127.0.0.1", &port]);
    let (mut conn, _) = bed.listener4.accept().await.unwrap();
    conn.write_all(b"agent").await.unwrap();
    assert_eq!(program.done().await, format!("127.0.0.1 {port} agent"));

    let killed = std::time::Instant::now();
    first.kill().await.unwrap();
    let left = in_kernel(&bed);
    assert_eq!(
        (left.maps.len(), left.links.len()),
        (Pins::map_names().count(), PROGRAMS.len()),
        "a crash leaves everything"
    );
    loop {
        let program = bed.python(CALL, &["127.0.0.1", &port]);
        let done = program.done();
        tokio::pin!(done);
        let said = tokio::select! {
            said = &mut done => said,
            accepted = bed.listener4.accept() => {
                accepted.unwrap().0.write_all(b"agent").await.unwrap();
                done.await
            }
        };
        if said.ends_with("direct") {
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(5), "never bypassed");
    }

    bed.config.stale_after = Duration::from_secs(600);
    bed.load(None);
    assert_eq!(bed.ebpf().found(), Found::Adopted);
    bed.apply();
    let now = in_kernel(&bed);
    assert_eq!((&now.maps, &now.links), (&left.maps, &left.links), "maps and links are the same");
    assert!(now.programs.iter().all(|p| !left.programs.contains(p)), "the programs are new");
    let program = bed.python(CALL, &["127.0.0.1", &port]);
    let (mut conn, origin) = bed.accept().await;
    assert_eq!(origin.unwrap().pid, program.pid);
    conn.write_all(b"agent").await.unwrap();
    assert_eq!(program.done().await, format!("127.0.0.1 {port} agent"));

    let ebpf = bed.ebpf.take().unwrap();
    ebpf.uninstall().unwrap();
    drop(ebpf);
    gone(&left).await;
    gone(&now).await;
    assert_eq!(fs::read_dir(&bed.config.bpffs).unwrap().count(), 0, "the bpffs is gone, whoever mounted it");
}

#[tokio::test]
async fn what_does_not_fit_is_replaced() {
    need!("what_does_not_fit_is_replaced");
    let mut bed = Bed::new(&["240.0.0.1:80"]).await;
    let first = in_kernel(&bed);
    // Dropped without being uninstalled: what a crash leaves.
    drop(bed.ebpf.take());
    bed.config.max_connections *= 2;
    bed.load(None);
    assert_eq!(bed.ebpf().found(), Found::Replaced, "another size");
    bed.apply();
    gone(&first).await;

    let second = in_kernel(&bed);
    drop(bed.ebpf.take());
    let control = sys::obj_get(&bed.pins().join("maps/MESH_CONTROL")).unwrap();
    sys::BpfMap::<u32, u64>::new(control).unwrap().insert(&0, &u64::MAX).unwrap();
    bed.load(None);
    assert_eq!(bed.ebpf().found(), Found::Replaced, "another layout");
    bed.apply();
    gone(&second).await;

    drop(bed.ebpf.take());
    fs::remove_file(bed.pins().join("maps/MESH_TUPLES")).unwrap();
    bed.load(None);
    assert_eq!(bed.ebpf().found(), Found::Replaced, "a map is missing");
    bed.apply();

    drop(bed.ebpf.take());
    bed.load(None);
    assert_eq!(bed.ebpf().found(), Found::Adopted);
    bed.apply();
    bed.ebpf.take().unwrap().uninstall().unwrap();
    assert_eq!(fs::read_dir(&bed.config.bpffs).unwrap().count(), 0, "the bpffs is gone, whoever mounted it");
}

#[tokio::test]
async fn an_agent_in_port_mode_takes_away_what_a_killed_one_left() {
    need!("an_agent_in_port_mode_takes_away_what_a_killed_one_left");
    let mut bed = Bed::new(&["240.0.0.1:80"]).await;
    let left = in_kernel(&bed);
    let mut config = agent::config::Config { name: bed.name.clone(), ..Default::default() };
    config.capture = bed.config.clone();
    config.capture.mode = agent::config::CaptureMode::Port;
    agent::capture::choose(&config, None).unwrap();
    assert_eq!(remaining(&left), left, "not while the other runs");
    drop(bed.ebpf.take());
    agent::capture::choose(&config, None).unwrap();
    assert!(!bed.pins().exists());
    gone(&left).await;
    assert_eq!(fs::read_dir(&bed.config.bpffs).unwrap().count(), 0, "the bpffs is gone, whoever mounted it");
}

#[tokio::test]
async fn a_control_group_that_was_made_anew_is_attached_anew() {
    need!("a_control_group_that_was_made_anew_is_attached_anew", "python3");
    let mut bed = Bed::new(&["240.0.0.1:80"]).await;
    fs::remove_dir(&bed.enrolled).unwrap();
    // Services come and go: that is no reason to refuse what else is asked for.
    bed.apply();
    let note = bed.ebpf().matched().0[0].note.clone().expect("it is named when it is gone");
    assert!(note.contains(&bed.enrolled.display().to_string()), "{note}");
    fs::create_dir(&bed.enrolled).unwrap();
    bed.apply();
    assert_eq!(in_kernel(&bed).links.len(), PROGRAMS.len(), "links to the dead group are gone");
    let program = bed.python(CALL, &["240.0.0.1", "80"]);
    let (mut conn, origin) = bed.accept().await;
    origin.unwrap();
    conn.write_all(b"agent").await.unwrap();
    assert_eq!(program.done().await, "240.0.0.1 80 agent");
    bed.table.enroll.clear();
    bed.apply();
    assert_eq!(in_kernel(&bed).links.len(), 0);
}

#[tokio::test]
async fn an_exclusive_program_in_the_way_is_named() {
    need!("an_exclusive_program_in_the_way_is_named", "bpftool");
    let first = Bed::new(&[]).await;
    let mut second = Bed::unloaded(&[], |_| {}).await;
    let program = loaded_programs()
        .flatten()
        .find(|p| p.name_as_str() == Some("mesh_connect4") && in_kernel(&first).programs.contains(&p.id()))
        .unwrap()
        .id()
        .to_string();
    let group = second.enrolled.to_str().unwrap().to_owned();
    let bpftool = |verb: &str| {
        let args = ["cgroup", verb, &group, "connect4", "id", &program];
        assert!(std::process::Command::new("bpftool").args(args).status().unwrap().success());
    };
    bpftool("attach");
    let error = format!("{:#}", Ebpf::load(&second.name, &second.config, None).err().unwrap());
    bpftool("detach");
    assert!(error.contains(&format!("program {program} (mesh_connect4)")) && error.contains("exclusively"), "{error}");
    assert!(!second.pins().exists(), "nothing half-done is left");
    second.load(None);
}

static RECORDS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collect;

impl std::io::Write for Collect {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        RECORDS.lock().unwrap().push(String::from_utf8_lossy(text).into_owned());
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn programs_say_what_they_do_when_asked_to() {
    need!("programs_say_what_they_do_when_asked_to", "python3");
    tracing_subscriber::fmt().with_env_filter("off,kernel=trace").with_ansi(false).with_writer(|| Collect).init();
    let mut bed = Bed::unloaded(&["240.0.0.1:80"], |_| {}).await;
    bed.load(Some(tracing::Level::TRACE));
    bed.apply();
    let program = bed.python(CALL, &["240.0.0.1", "80"]);
    let pid = program.pid;
    let (mut conn, origin) = bed.accept().await;
    origin.unwrap();
    conn.write_all(b"agent").await.unwrap();
    program.done().await;
    // Its reader ends only when it has read all that there is.
    bed.ebpf.take().unwrap().uninstall().unwrap();
    let records = RECORDS.lock().unwrap().concat();
    assert!(records.contains(&format!("::ffff:240.0.0.1:80 pid {pid} outcome captured")), "{records}");
    assert!(records.contains("recorded ::ffff:127.0.0.1:"), "{records}");
    assert!(records.contains("getpeername answered ::ffff:240.0.0.1:80"), "{records}");
}
