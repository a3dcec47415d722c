//! Real files, whole and cut.

use super::*;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sockmesh-snapshot-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn key() -> ServiceKey {
    ServiceKey { service: "bars.BarService".into(), group: "bars".into(), version: String::new() }
}

fn list(ports: &[u16]) -> Vec<Instance> {
    ports.iter().map(|p| Instance { zone: "z\"1".into(), ..Instance::at(format!("10.0.0.1:{p}")) }).collect()
}

fn says(ports: &[u16]) -> Arc<Snapshot> {
    Arc::new(listed(list(ports)))
}

fn recalled(dir: &Path) -> Option<Vec<Instance>> {
    Store::new(dir.to_owned()).recall("zk", &key()).map(|r| r.list.instances.clone())
}

#[test]
fn what_is_put_is_recalled_by_the_next_agent() {
    let folder = Folder::new("put");
    let store = Store::new(folder.0.clone());
    store.put("zk", &key(), &says(&[1, 2]));
    store.put("other", &key(), &says(&[3]));
    store.put("zk", &ServiceKey { version: "2".into(), ..key() }, &says(&[4]));
    store.flush();
    assert_eq!(store.state(), Written { written: 1, failed: 0, trouble: None });
    assert_eq!(recalled(&folder.0), Some(list(&[1, 2])));
    let next = Store::new(folder.0.clone());
    assert_eq!(next.recall("other", &key()).unwrap().list.instances, list(&[3]));
    assert_eq!(next.recall("nobody", &key()), None);
    // What one says anew leaves the words of the others.
    next.put("zk", &key(), &says(&[5]));
    next.flush();
    let third = Store::new(folder.0.clone());
    assert_eq!(third.recall("other", &key()).unwrap().list.instances, list(&[3]));
    assert_eq!(third.recall("zk", &key()).unwrap().list.instances, list(&[5]));
}

#[test]
fn clients_of_motan_read_it_and_theirs_is_read() {
    let folder = Folder::new("motan");
    let store = Store::new(folder.0.clone());
    store.put("zk", &key(), &says(&[1]));
    store.flush();
    let text = fs::read_to_string(folder.0.join("bars_bars.BarService")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((json["group"].as_str(), json["path"].as_str()), (Some("bars"), Some("bars.BarService")));
    assert_eq!(json["nodes"][0]["address"], "10.0.0.1:1");
    assert_eq!(json["nodes"][0]["extInfo"], "");
    assert_eq!(json["generation"], 1);
    let theirs = r#"{"group":"bars","path":"bars.BarService","nodes":[{"extInfo":"","address":"10.0.0.9:1"}]}"#;
    fs::write(folder.0.join("bars_bars.BarService"), theirs).unwrap();
    assert_eq!(recalled(&folder.0), Some(vec![Instance::at("10.0.0.9:1")]));
}

#[test]
fn a_file_cut_at_any_byte_costs_one_generation_at_most() {
    let folder = Folder::new("cut");
    let store = Store::new(folder.0.clone());
    for ports in [&[1][..], &[1, 2]] {
        store.put("zk", &key(), &says(ports));
        store.flush();
    }
    let path = folder.0.join("bars_bars.BarService");
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        // Only the last byte, the end of the line, is not missed.
        let expected = if cut == whole.len() - 1 { list(&[1, 2]) } else { list(&[1]) };
        assert_eq!(recalled(&folder.0), Some(expected), "cut at {cut}");
        let mut flipped = whole.clone();
        flipped[cut] ^= 1;
        fs::write(&path, &flipped).unwrap();
        let found = recalled(&folder.0);
        assert!([list(&[1]), list(&[1, 2])].contains(&found.clone().unwrap()), "flipped at {cut}: {found:?}");
    }
    // Both cut: better nothing than something wrong.
    fs::write(&path, &whole[..40]).unwrap();
    fs::write(folder.0.join("old/bars_bars.BarService"), &whole[..50]).unwrap();
    assert_eq!(recalled(&folder.0), None);
}

#[test]
fn a_folder_that_cannot_be_written_is_told_and_tried_again() {
    let folder = Folder::new("ro");
    // A file where the folder should be.
    fs::write(&folder.0, "in the way").unwrap();
    let store = Store::new(folder.0.clone());
    store.put("zk", &key(), &says(&[1]));
    store.flush();
    let state = store.state();
    assert_eq!((state.written, state.failed), (0, 1));
    assert!(state.trouble.unwrap().contains("bars_bars.BarService"));
    fs::remove_file(&folder.0).unwrap();
    store.flush();
    assert_eq!(store.state(), Written { written: 1, failed: 1, trouble: None });
    assert_eq!(recalled(&folder.0), Some(list(&[1])));
}

#[test]
fn command_texts_are_kept_beside() {
    let folder = Folder::new("commands");
    let (scope, store) = (Scope::Group("bars".into()), Store::new(folder.0.clone()));
    store.put_commands("zk", &scope, Some("{\"a\":1}"));
    store.flush();
    let recalled = || Store::new(folder.0.clone()).recall_commands("zk", &scope);
    assert_eq!(recalled().as_deref(), Some("{\"a\":1}"));
    assert_eq!(Store::new(folder.0.clone()).recall_commands("zk", &Scope::Agent("bars".into())), None);
    let path = folder.0.join("commands/zk_group_bars");
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() - 1 {
        fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(recalled(), None, "cut at {cut}");
    }
    store.put_commands("zk", &scope, None);
    store.flush();
    assert_eq!(recalled(), None, "deleted");
}

#[test]
fn names_stay_in_their_folder() {
    let name = |group: &str, service: &str| {
        name_of(&ServiceKey { service: service.into(), group: group.into(), version: String::new() })
    };
    assert_eq!(name("g", "a.B").unwrap(), "g_a.B");
    assert_eq!(name("../../etc", "passwd").unwrap(), "%2E.%2F..%2Fetc_passwd");
    assert_eq!(name("", "x".repeat(300).as_str()), None);
}
