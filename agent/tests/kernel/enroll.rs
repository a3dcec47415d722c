//! Who is enrolled: patterns, units, users, network namespaces, and groups that come and go.

use std::{fs, path::Path};

use agent::{
    capture::{Capture as _, CaptureTable, enroll},
    config::{Enroll, OnAgentLoss, Who},
};

use crate::{
    bed::{Bed, direct, run_in, service},
    need,
};

/// Prints what a connect to argv[1]:argv[2] says, as the user argv[3] if there is one.
const CALL: &str = "
import os, socket, sys
if len(sys.argv) > 3:
    'x'.encode('idna')  # another user may not read the modules
    os.setresuid(int(sys.argv[3]), int(sys.argv[3]), int(sys.argv[3]))
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print(s.recv(64).decode())
";

/// A bed whose agent answers `mesh` and whose service is a real server that answers `direct`.
struct World {
    bed: Bed,
    server: std::net::SocketAddr,
}

impl World {
    async fn new() -> Self {
        let server = direct("127.0.0.1:0").await;
        let mut bed = Bed::unloaded(&[&server.to_string()], |config| config.enroll.clear()).await;
        let root = bed.enrolled.parent().unwrap().to_owned();
        bed.config.root = Some(root);
        bed.load(None);
        Self { bed, server }
    }

    fn apply(&mut self, who: &[Who]) {
        self.bed.table.enroll = who.iter().cloned().map(Enroll::of).collect();
        self.bed.apply();
    }

    /// What a program in `group` gets: `mesh` or `direct`.
    async fn call(&self, group: &Path, user: Option<u32>) -> String {
        let (ip, port) = (self.server.ip().to_string(), self.server.port().to_string());
        let user = user.map(|u| u.to_string());
        let mut command = vec!["python3", "-c", CALL, &ip, &port];
        command.extend(user.as_deref());
        let program = run_in(group, &command);
        let answer = async {
            loop {
                let (mut conn, origin) = self.bed.accept().await;
                assert_eq!(origin.unwrap().destination, self.server);
                tokio::io::AsyncWriteExt::write_all(&mut conn, b"mesh").await.unwrap();
            }
        };
        tokio::select! {
            biased;
            said = program.done() => said,
            () = answer => unreachable!("it goes on for ever"),
        }
    }

    fn top(&self) -> &Path {
        self.bed.enrolled.parent().unwrap()
    }

    fn matched(&self) -> Vec<enroll::Matched> {
        self.bed.ebpf().matched().0
    }
}

#[tokio::test]
async fn a_pattern_enrolls_groups_as_they_come_and_forgets_those_that_go() {
    need!("a_pattern_enrolls_groups_as_they_come_and_forgets_those_that_go", "python3");
    let mut world = World::new().await;
    let first = world.bed.cgroup(world.top(), "shop-a");
    let pattern = Who::Cgroup(world.top().join("shop-*"));
    world.apply(&[pattern]);
    assert_eq!(world.call(&first, None).await, "mesh");
    let later = world.bed.cgroup(world.top(), "shop-b");
    assert_eq!(world.call(&later, None).await, "direct", "not looked yet");
    world.bed.ebpf().refresh();
    assert_eq!(world.call(&later, None).await, "mesh");
    assert_eq!(world.call(&world.bed.other, None).await, "direct");
    let links = || fs::read_dir(world.bed.pins().join("links")).unwrap().count();
    let both = links();
    fs::remove_dir(&first).unwrap();
    world.bed.ebpf().refresh();
    assert_eq!(links() * 2, both, "the links of the group that is gone are gone");
    assert_eq!(world.matched()[0].found, [later.display().to_string()]);
    assert_eq!(world.bed.counter("not_enrolled"), 0, "nobody had to be asked");
}

#[tokio::test]
async fn a_pattern_never_means_a_login_session_but_a_path_may() {
    need!("a_pattern_never_means_a_login_session_but_a_path_may", "python3");
    let mut world = World::new().await;
    let slice = world.bed.cgroup(world.top(), "user.slice");
    let session = world.bed.cgroup(&slice, "session-1.scope");
    let deep = world.bed.cgroup(&world.bed.other, "session-c2.scope");
    let shop = world.bed.cgroup(world.top(), "shop");
    world.apply(&[Who::Cgroup(world.top().join("**"))]);
    assert_eq!(world.call(&shop, None).await, "mesh");
    for group in [&session, &deep, &slice, &world.bed.other] {
        assert_eq!(world.call(group, None).await, "direct", "{}", group.display());
    }
    let note = world.matched()[0].note.clone().unwrap();
    assert!(note.contains("never enrolls login sessions") && note.contains("and 3 more"), "{note}");
    world.apply(&[Who::Cgroup(session.clone())]);
    assert_eq!(world.call(&session, None).await, "mesh", "somebody meant it");
}

#[tokio::test]
async fn a_unit_is_found_by_its_name_wherever_it_is() {
    need!("a_unit_is_found_by_its_name_wherever_it_is", "python3");
    let mut world = World::new().await;
    let name = format!("{}.service", world.bed.name);
    world.apply(&[Who::Unit(name.clone())]);
    assert_eq!(world.matched()[0].note.as_deref(), Some("no control group of that name now"));
    let slice = world.bed.cgroup(world.top(), "made.slice");
    let unit = world.bed.cgroup(&slice, &name);
    world.bed.ebpf().refresh();
    assert_eq!(world.call(&unit, None).await, "mesh");
    // Stopped and started: the same name, another group.
    fs::remove_dir(&unit).unwrap();
    world.bed.ebpf().refresh();
    world.bed.cgroup(&slice, &name);
    world.bed.ebpf().refresh();
    assert_eq!(world.call(&unit, None).await, "mesh");
    assert_eq!(world.call(&slice, None).await, "direct");
}

#[tokio::test]
async fn a_user_is_enrolled_below_the_root_and_nobody_else_is() {
    need!("a_user_is_enrolled_below_the_root_and_nobody_else_is", "python3");
    const USER: u32 = 64_999;
    let mut world = World::new().await;
    let inner = world.bed.cgroup(&world.bed.other, "inner");
    world.apply(&[Who::Uid(USER), Who::Cgroup(inner.clone())]);
    assert_eq!(world.call(&world.bed.enrolled, Some(USER)).await, "mesh");
    assert_eq!(world.call(&world.bed.enrolled, None).await, "direct");
    assert_eq!(world.call(&world.bed.enrolled, Some(USER + 1)).await, "direct");
    assert_eq!(world.bed.counter("not_enrolled"), 2);
    // A group tells by itself beside it, and so does every group below it.
    let deepest = world.bed.cgroup(&world.bed.cgroup(&inner, "a"), "b");
    assert_eq!(world.call(&inner, None).await, "mesh");
    assert_eq!(world.call(&deepest, None).await, "mesh");
    assert_eq!(world.call(&world.bed.other, None).await, "direct");
    world.apply(&[]);
    assert_eq!(world.call(&world.bed.enrolled, Some(USER)).await, "direct");
    assert_eq!(fs::read_dir(world.bed.pins().join("links")).unwrap().count(), 0, "nothing is attached");
}

#[tokio::test]
async fn a_network_namespace_is_enrolled_by_its_file() {
    need!("a_network_namespace_is_enrolled_by_its_file", "python3");
    let mut world = World::new().await;
    world.apply(&[Who::Netns("/proc/self/ns/net".into())]);
    assert_eq!(world.call(&world.bed.other, None).await, "mesh");
    assert!(world.bed.ebpf().spaces(true).is_empty(), "the agent's own needs no further listener");
    world.apply(&[Who::Netns("/proc/self/ns/net".into()), Who::Uid(64_998)]);
    assert_eq!(world.call(&world.bed.other, None).await, "mesh");
    world.apply(&[Who::Uid(64_998)]);
    assert_eq!(world.call(&world.bed.other, None).await, "direct");
}

#[tokio::test]
async fn the_kernel_half_tells_where_the_agent_should_listen() {
    need!("the_kernel_half_tells_where_the_agent_should_listen", "python3", "unshare");
    let mut world = World::new().await;
    let bed = &mut world.bed;
    bed.table = CaptureTable {
        destinations: vec![(service("240.0.0.1:80"), OnAgentLoss::Direct)],
        enroll: vec![Enroll::cgroup(bed.enrolled.clone())],
        ..bed.table.clone()
    };
    bed.apply();
    // Enrolled, elsewhere, and it stays: the connect has nowhere to go.
    let script = "
import socket, sys
s = socket.socket()
s.settimeout(5)
try:
    s.connect(('240.0.0.1', 80))
except OSError:
    pass
print('tried', flush=True)
sys.stdin.readline()
";
    let mut far = run_in(&bed.enrolled, &["unshare", "-n", "python3", "-c", script]);
    assert_eq!(far.line().await, "tried");
    assert_eq!(bed.counter("no_listener"), 1);
    let told = bed.ebpf().spaces(false);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(bed.ebpf().spaces(true)[0].cookie, told[0].cookie, "found by its process as well");
    let there = told[0].enter(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    assert_eq!(there.lines().filter(|l| l.contains(':')).count(), 1, "only a loopback device: {there}");
    far.go_on().await;
    far.done().await;
}

#[tokio::test]
async fn what_does_not_exist_is_refused_when_it_is_new() {
    need!("what_does_not_exist_is_refused_when_it_is_new");
    let mut world = World::new().await;
    let group = world.bed.cgroup(world.top(), "short");
    world.apply(&[Who::Cgroup(group.clone())]);
    fs::remove_dir(&group).unwrap();
    // It was there once: the others must not suffer.
    world.apply(&[Who::Cgroup(group.clone())]);
    assert!(world.matched()[0].note.is_some());
    world.bed.table.enroll.push(Enroll::of(Who::Netns("/nowhere/at/all".into())));
    let error = format!("{:#}", world.bed.ebpf().apply(&world.bed.table).unwrap_err());
    assert!(error.contains("/nowhere/at/all"), "{error}");
}
