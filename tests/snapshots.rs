//! Calls find endpoints whatever happens to the registry and to the disk.

use std::{fs, net::SocketAddr, path::Path};

use host::{Agent, Backend, Cmd, Need, Temp, agent::Settings, http, lacks, need, net, until};

/// Servers, a registry file and an agent that keeps snapshots.
struct World {
    agent: Agent,
    to: SocketAddr,
    dir: Temp,
    servers: Vec<Backend>,
}

impl World {
    fn new(servers: usize, top: &str) -> Self {
        let dir = Temp::new();
        let folder = dir.file("snapshots");
        Self::at(&folder, dir, servers, top)
    }

    fn at(folder: &Path, dir: Temp, servers: usize, top: &str) -> Self {
        let to = net::free_addr();
        let servers: Vec<_> = (1..=servers).map(|n| Backend::named(&format!("s{n}"))).collect();
        dir.write("nodes.yaml", list(&servers));
        let top = format!("snapshots: {}\n{top}", folder.display());
        let services = format!(
            "registries: {{nodes: {{kind: file, path: {}}}}}
referers:
  - {{service: web, group: idc-a, protocol: http, listen: {to}, registry: nodes, lb: round_robin}}
",
            dir.file("nodes.yaml").display()
        );
        let agent = Agent::with(&Settings { top: &top, ..Settings::default() }, &services);
        Self { agent, to, dir, servers }
    }

    /// How many different servers answer.
    fn answering(&self) -> usize {
        let names: std::collections::HashSet<_> =
            (0..self.servers.len() * 3).map(|_| http::get(self.to, "/").unwrap().text()).collect();
        names.len()
    }

    fn write(&self, servers: &[Backend]) {
        self.dir.write("nodes.yaml", list(servers));
    }

    fn stale(&self) -> String {
        self.agent.endpoints()[0]["stale"].as_str().unwrap_or_default().to_owned()
    }
}

fn list(servers: &[Backend]) -> String {
    let at: Vec<_> = servers.iter().map(|s| s.addr().to_string()).collect();
    format!("services: {{web: [{}]}}\n", at.join(", "))
}

#[test]
fn an_agent_that_starts_without_its_registry_serves_from_the_snapshot() {
    let mut it = World::new(3, "");
    assert_eq!(it.answering(), 3);
    let file = it.dir.file("snapshots/idc-a_web");
    until("a file", || file.exists());
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!((json["group"].as_str(), json["path"].as_str()), (Some("idc-a"), Some("web")));
    assert_eq!(json["nodes"].as_array().unwrap().len(), 3);
    it.agent.stop();
    fs::remove_file(it.dir.file("nodes.yaml")).unwrap();
    it.agent.again();
    assert_eq!(it.answering(), 3);
    let stale = it.stale();
    assert!(stale.contains("cannot read") && stale.contains("endpoints of a snapshot file"), "{stale}");
    assert_eq!(it.agent.metric("sockmesh_service_stale", &[r#"service="web""#]), 1.0);
    // The registry is back, without its data: still nothing is lost.
    it.dir.write("nodes.yaml", "services: {}\n");
    until("it is held back", || it.stale().contains("held back: the registry lists 0 of 3 endpoints"));
    assert_eq!(it.answering(), 3);
    it.write(&it.servers[1..]);
    until("it is believed again", || it.stale().is_empty());
    assert_eq!(it.answering(), 2);

    // Killed at once after a change, and with the newest file cut: the one before serves.
    until("two generations", || it.dir.file("snapshots/old/idc-a_web").exists());
    it.agent.kill9();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    fs::remove_file(it.dir.file("nodes.yaml")).unwrap();
    it.agent.again();
    assert!(it.answering() >= 2);
    assert!(it.agent.log().contains("its checksum is wrong") || it.agent.log().contains("it cannot be read"));
}

#[test]
fn a_command_outlasts_a_restart_without_the_registry() {
    let mut it = World::new(2, "");
    let two = format!(
        "services: {{web: [{{address: {}, group: idc-a}}, {{address: {}, group: idc-b}}]}}\n",
        it.servers[0].addr(),
        it.servers[1].addr()
    );
    let command =
        "commands: {groups: {idc-a: {clientCommandList: [{index: 1, pattern: web, mergeGroups: [idc-b]}]}}}\n";
    it.dir.write("nodes.yaml", format!("{two}{command}"));
    let to = it.to;
    let who = move || http::get(to, "/").unwrap().text();
    until("the other group serves", || (0..4).all(|_| who() == "s2"));
    until("all is written", || {
        ["idc-a_web", "idc-b_web", "commands/nodes_group_idc-a"]
            .iter()
            .all(|name| it.dir.file("snapshots").join(name).exists())
    });
    it.agent.kill9();
    fs::remove_file(it.dir.file("nodes.yaml")).unwrap();
    it.agent.again();
    assert!((0..20).all(|_| who() == "s2"), "as before");
    assert!(it.agent.cli("commands").ok().contains("goes by group idc-a"));
    // The registry is back and knows of no command.
    it.dir.write("nodes.yaml", two);
    until("the own group serves", || (0..4).all(|_| who() == "s1"));
}

#[test]
fn an_empty_list_is_held_until_the_operator_confirms_it() {
    let it = World::new(4, "");
    assert_eq!(it.answering(), 4);
    it.dir.write("nodes.yaml", "services: {web: []}\n");
    until("it is held back", || it.stale().contains("lists 0 of 4 endpoints, 4 are kept"));
    assert_eq!(it.answering(), 4);
    assert_eq!(it.agent.metric("sockmesh_endpoints_held", &[r#"registry="nodes""#, r#"group="idc-a""#]), 4.0);
    assert!(it.agent.cli("stat --once").ok().contains("held back"));
    let said = it.agent.cli("confirm nobody").ok();
    assert!(said.contains("nothing of nobody is held back"), "{said}");
    it.agent.cli("confirm web").ok();
    until("it is believed", || it.agent.endpoints().is_empty());
    assert_eq!(http::get(it.to, "/").unwrap().status(), 503);
    it.write(&it.servers);
    until("they are back", || http::get(it.to, "/").is_ok_and(|a| a.status() == 200));
}

#[test]
fn a_shrunken_list_is_believed_at_a_second_look_and_new_endpoints_serve_at_once() {
    let it = World::new(5, "hold_back: {shrunk_after: 2s}\n");
    assert_eq!(it.answering(), 5);
    let new = Backend::named("new");
    it.dir.write("nodes.yaml", list(std::slice::from_ref(&new)));
    until("it is held back", || it.stale().contains("lists 1 of 5 endpoints, 5 are kept; believed in"));
    assert_eq!(it.answering(), 6, "the new one beside those that are kept");
    until("it is believed", || it.stale().is_empty());
    assert_eq!(it.answering(), 1);
}

#[test]
fn a_full_disk_costs_nothing_but_the_files() {
    if lacks(&[Need::Root, Need::Program("mount")]) {
        return;
    }
    let dir = Temp::new();
    let small = dir.file("small");
    fs::create_dir(&small).unwrap();
    let Some(_disk) = SmallDisk::mount(&small) else {
        need::skip("a small disk cannot be mounted here");
        return;
    };
    // Hardly room for anything.
    let mut room = 128 * 1024;
    while room > 0 {
        match fs::write(small.join("filler"), vec![0; room]) {
            Ok(()) => break,
            Err(_) => room -= 4096,
        }
    }
    let it = World::at(&small.join("snapshots"), dir, 3, "");
    assert_eq!(it.answering(), 3);
    until("a write fails", || it.agent.metric("sockmesh_snapshot_files_total", &[r#"outcome="failed""#]) > 0.0);
    assert!(it.agent.log().contains("a snapshot file cannot be written"));
    it.write(&it.servers[..2]);
    until("lists go on changing", || it.answering() == 2);
    fs::remove_file(small.join("filler")).unwrap();
    it.write(&it.servers);
    until("it is written", || it.agent.metric("sockmesh_snapshot_files_total", &[r#"outcome="written""#]) > 0.0);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(small.join("snapshots/idc-a_web")).unwrap()).unwrap();
    assert_eq!(json["nodes"].as_array().unwrap().len(), 3);
}

/// A file system of 64 KiB, gone on drop.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        let mount = Cmd::line("mount -t tmpfs -o size=64k,nr_inodes=64 sockmesh-test").arg(at.display()).run();
        mount.status.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Cmd::line("umount -l").arg(self.0.display()).run();
    }
}
