//! With real files and real events; every wait is for the channel.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use super::*;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sockmesh-file-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn key(service: &str) -> ServiceKey {
    ServiceKey { service: service.into(), ..ServiceKey::default() }
}

fn list(snapshot: &Snapshot) -> String {
    snapshot.instances.iter().map(|i| i.address.as_str()).collect::<Vec<_>>().join(" ")
}

/// Waits for the list and for whether it is stale; returns the snapshot.
async fn wait(rx: &mut watch::Receiver<Arc<Snapshot>>, expected: &str, stale: Option<&str>) -> Arc<Snapshot> {
    let fits = |s: &Arc<Snapshot>| {
        list(s) == expected
            && s.stale.is_some() == stale.is_some()
            && stale.is_none_or(|t| s.stale.as_ref().unwrap().contains(t))
    };
    let found = tokio::time::timeout(Duration::from_secs(30), rx.wait_for(fits)).await.map(|r| r.unwrap().clone());
    found.unwrap_or_else(|_| panic!("waited for {expected:?} (stale {stale:?}), have {:?}", rx.borrow()))
}

const ONE: &str = "services:\n  web: [127.0.0.1:1]\n";
const TWO: &str = "services:\n  web: [127.0.0.1:1, 127.0.0.1:2]\n";

#[tokio::test]
async fn follows_a_file_through_everything_that_happens_to_files() {
    let folder = Folder::new();
    let file = File::new(folder.path("nodes.yaml"));
    let mut web = file.watch(&key("web"));
    assert_eq!((web.borrow().revision, list(&web.borrow())), (0, String::new()));
    assert!(web.borrow().stale.as_ref().unwrap().contains("cannot read"), "missing is said");

    folder.write("nodes.yaml", ONE);
    let created = wait(&mut web, "127.0.0.1:1", None).await;
    assert!(created.revision >= 1);
    // Somebody the file says nothing about gets a definite nothing.
    let other = file.watch(&key("other"));
    assert!(other.borrow().revision >= 1 && other.borrow().instances.is_empty() && other.borrow().stale.is_none());

    folder.write("new", TWO);
    fs::rename(folder.path("new"), folder.path("nodes.yaml")).unwrap();
    let replaced = wait(&mut web, "127.0.0.1:1 127.0.0.1:2", None).await;
    assert!(replaced.revision > created.revision);

    fs::File::create(folder.path("nodes.yaml")).unwrap();
    wait(&mut web, "127.0.0.1:1 127.0.0.1:2", Some("the file is empty")).await;

    folder.write("nodes.yaml", "services:\n  web: [127.0.0.1:1\n");
    wait(&mut web, "127.0.0.1:1 127.0.0.1:2", Some("not YAML")).await;

    folder.write("nodes.yaml", ONE);
    wait(&mut web, "127.0.0.1:1", None).await;

    fs::remove_file(folder.path("nodes.yaml")).unwrap();
    wait(&mut web, "127.0.0.1:1", Some("cannot read")).await;

    folder.write("nodes.yaml", TWO);
    let back = wait(&mut web, "127.0.0.1:1 127.0.0.1:2", None).await;
    assert!(back.revision > replaced.revision);

    folder.write("nodes.yaml", "services:\n  api: [127.0.0.1:9]\n");
    wait(&mut web, "", None).await;
    folder.write("nodes.yaml", "services:\n  web: [127.0.0.1:3, 127.0.0.1:0]\n");
    wait(&mut web, "127.0.0.1:3", Some("line 2: services.web[1]: `127.0.0.1:0` has port 0")).await;
    folder.write("nodes.yaml", "services:\n  web: [127.0.0.1]\n");
    wait(&mut web, "127.0.0.1:3", Some("1 left out: line 2")).await;
}

#[tokio::test]
async fn follows_links_as_kubernetes_swaps_them() {
    let folder = Folder::new();
    let version = |name: &str, text: &str| {
        fs::create_dir(folder.path(name)).unwrap();
        folder.write(&format!("{name}/nodes.yaml"), text);
    };
    version("..1", ONE);
    version("..2", TWO);
    symlink("..1", folder.path("..data")).unwrap();
    symlink("..data/nodes.yaml", folder.path("nodes.yaml")).unwrap();
    let mut web = File::new(folder.path("nodes.yaml")).watch(&key("web"));
    wait(&mut web, "127.0.0.1:1", None).await;

    symlink("..2", folder.path("..data_tmp")).unwrap();
    fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
    wait(&mut web, "127.0.0.1:1 127.0.0.1:2", None).await;
    // Now the real file lies elsewhere, and is written in place.
    folder.write("..2/nodes.yaml", ONE);
    wait(&mut web, "127.0.0.1:1", None).await;
}

#[tokio::test]
async fn finds_a_file_in_a_folder_that_comes_later() {
    let folder = Folder::new();
    let mut web = File::new(folder.path("later/nodes.yaml")).watch(&key("web"));
    fs::create_dir(folder.path("later")).unwrap();
    folder.write("later/nodes.yaml", ONE);
    wait(&mut web, "127.0.0.1:1", None).await;
}

#[tokio::test]
async fn one_task_serves_everybody_and_ends_with_the_last() {
    let folder = Folder::new();
    folder.write("nodes.yaml", TWO);
    let file = File::new(folder.path("nodes.yaml"));
    let web = file.watch(&key("web"));
    let again = file.watch(&key("web"));
    let other = file.watch(&ServiceKey { group: "g".into(), ..key("web") });
    assert_eq!(list(&other.borrow()), "127.0.0.1:1 127.0.0.1:2", "instances without a group are of every group");

    let task = file.0.state.lock().task.take().unwrap();
    // In its place, so that nothing else starts one.
    file.0.state.lock().task = Some(tokio::spawn(std::future::pending()));
    drop(web);
    drop(other);
    assert!(!task.is_finished());
    drop(again);
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
    assert!(file.0.state.lock().task.is_none(), "ended, and says so");

    folder.write("nodes.yaml", ONE);
    let web = file.watch(&key("web"));
    assert_eq!(list(&web.borrow()), "127.0.0.1:1", "read anew, not remembered");
}

#[test]
fn survives_the_runtime_it_ran_on() {
    let folder = Folder::new();
    folder.write("nodes.yaml", ONE);
    let file = File::new(folder.path("nodes.yaml"));
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = run();
    let mut web = first.block_on(async { file.watch(&key("web")) });
    drop(first);
    run().block_on(async {
        let _again = file.watch(&key("web"));
        folder.write("nodes.yaml", TWO);
        wait(&mut web, "127.0.0.1:1 127.0.0.1:2", None).await;
    });
}

#[test]
fn says_what_is_wrong_with_its_options() {
    let told = |yaml: &str| {
        let value = serde_yaml::from_str(yaml).unwrap();
        build(&value, &BuildCx::default()).err().unwrap().to_string()
    };
    assert!(told("{}").contains("`path` is missing"));
    assert!(told("{file: x}").contains("unknown field `file`"));
}

fn provided(address: &str, weight: u32) -> Provided {
    Provided {
        key: key("web"),
        protocol: "http".into(),
        instance: model::Instance { weight, ..model::Instance::at(address) },
        application: "shop".into(),
        parameters: Default::default(),
    }
}

#[tokio::test]
async fn takes_registrations_and_takes_them_back() {
    let folder = Folder::new();
    folder.write("nodes.yaml", ONE);
    let file = File::new(folder.path("nodes.yaml"));
    let mut web = file.watch(&key("web"));
    let (tell, wanted) = watch::channel(Wanted::Unavailable);
    let mut standing = file.register(&provided("127.0.0.1:7", 20), wanted).unwrap();
    let reached = async |standing: &mut watch::Receiver<Standing>, expected: Standing| {
        let found = tokio::time::timeout(Duration::from_secs(30), standing.wait_for(|s| *s == expected)).await;
        found.unwrap_or_else(|_| panic!("never {expected:?}")).unwrap();
    };
    reached(&mut standing, Standing::Unavailable).await;
    assert_eq!(list(&web.borrow()), "127.0.0.1:1");
    tell.send_replace(Wanted::Available);
    reached(&mut standing, Standing::Available).await;
    let seen = wait(&mut web, "127.0.0.1:1 127.0.0.1:7", None).await;
    assert_eq!(seen.instances[1].weight, 20);
    // Somebody writes the file anew: it comes back by itself.
    folder.write("nodes.yaml", ONE);
    wait(&mut web, "127.0.0.1:1", None).await;
    wait(&mut web, "127.0.0.1:1 127.0.0.1:7", None).await;
    tell.send_replace(Wanted::Gone);
    reached(&mut standing, Standing::Gone).await;
    wait(&mut web, "127.0.0.1:1", None).await;

    // A broken file is nobody's to write: pending, with the reason, until it is good again.
    folder.write("nodes.yaml", "services: [");
    let (_tell, wanted) = watch::channel(Wanted::Available);
    let mut standing = file.register(&provided("127.0.0.1:8", 10), wanted).unwrap();
    let pending = |s: &Standing| matches!(s, Standing::Pending(Some(why)) if why.contains("nodes.yaml"));
    tokio::time::timeout(Duration::from_secs(30), standing.wait_for(pending)).await.unwrap().unwrap();
    fs::remove_file(folder.path("nodes.yaml")).unwrap();
    reached(&mut standing, Standing::Available).await;
    wait(&mut web, "127.0.0.1:8", None).await;
}

#[tokio::test]
async fn holds_commands_and_writes_them_if_they_are_what_one_thinks() {
    let folder = Folder::new();
    let text = "services: {}\ncommands:\n  groups: {a: {clientCommandList: []}, b: nonsense}\n  agents: {shop: '{}'}\n";
    folder.write("nodes.yaml", text);
    let file = File::new(folder.path("nodes.yaml"));
    let group = |name: &str| Scope::Group(name.to_owned());
    let told = |scope: &Scope| file.commands(scope).unwrap().borrow().text.clone();
    assert_eq!(told(&group("a")).as_deref(), Some(r#"{"clientCommandList":[]}"#));
    assert_eq!(told(&group("b")).as_deref(), Some("nonsense"));
    assert_eq!(told(&Scope::Agent("shop".into())).as_deref(), Some("{}"));
    let mut c = file.commands(&group("c")).unwrap();
    assert_eq!((c.borrow().revision, c.borrow().text.clone()), (1, None));

    file.write_commands(&group("c"), None, "first").await.unwrap();
    let wait = async |c: &mut watch::Receiver<Arc<CommandText>>, expected: Option<&str>| {
        let fits = |t: &Arc<CommandText>| t.text.as_deref() == expected;
        let found = tokio::time::timeout(Duration::from_secs(30), c.wait_for(fits)).await.map(drop);
        assert!(found.is_ok(), "never {expected:?}: {:?}", c.borrow());
    };
    wait(&mut c, Some("first")).await;
    let error = file.write_commands(&group("c"), None, "second").await.unwrap_err().to_string();
    assert!(error.contains("changed meanwhile; they are first"), "{error}");
    file.write_commands(&group("c"), Some("first"), "second").await.unwrap();
    wait(&mut c, Some("second")).await;
    assert_eq!(told(&group("b")).as_deref(), Some("nonsense"), "the others stay");
    // A file that is broken keeps the commands of before, and says so.
    folder.write("nodes.yaml", "services: [");
    let stale = |t: &Arc<CommandText>| t.stale.is_some() && t.text.as_deref() == Some("second");
    tokio::time::timeout(Duration::from_secs(30), c.wait_for(stale)).await.unwrap().unwrap();
    folder.write("nodes.yaml", "services: {}\n");
    wait(&mut c, None).await;
}
