//! What a test needs of the host, and what is said when that is missing.

use std::{env, fs, io::Write, path::PathBuf, sync::OnceLock};

use crate::{Agent, cgroup, top_dir};

/// Something a test cannot run without.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// The rights of root.
    Root,
    /// Root, a cgroup v2 mount, and an agent built with its kernel half.
    Kernel,
    /// A program in PATH.
    Program(&'static str),
    /// A program of others that `cargo xtask peers` makes; see [`peer`].
    Peer(&'static str),
}

/// Whether something is missing, having said so: a line `SKIPPED: test: reason` on standard output and in
/// the file named by `SOCKMESH_SKIP_FILE`. Panics instead when `REQUIRE_ALL=1`, so that no test passes by
/// not running where it must run.
#[track_caller]
pub fn lacks(needs: &[Need]) -> bool {
    needs.iter().find_map(missing).is_some_and(|reason| {
        skip(&reason);
        true
    })
}

/// Says that the running test is skipped and why; see [`lacks`].
#[track_caller]
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED: {}: {reason}", thread.name().unwrap_or("test"));
    assert!(env::var_os("REQUIRE_ALL").is_none_or(|v| v != "1"), "{line} (REQUIRE_ALL=1)");
    println!("{line}");
    if let Some(path) = env::var_os("SOCKMESH_SKIP_FILE") {
        let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

fn missing(need: &Need) -> Option<String> {
    match need {
        Need::Root => (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned()),
        Need::Kernel => missing(&Need::Root).or_else(|| {
            static ONCE: OnceLock<Option<String>> = OnceLock::new();
            ONCE.get_or_init(|| {
                if cgroup::mount().is_none() {
                    return Some("no cgroup v2 mount".to_owned());
                }
                Agent::lacks_kernel_half().then(|| "the agent was built without its kernel half".to_owned())
            })
            .clone()
        }),
        Need::Peer(name) => {
            (!peer(name).is_dir()).then(|| format!("{name} is not built (`cargo xtask peers {name}` does it)"))
        }
        Need::Program(name) => which(name).is_none().then(|| format!("{name} is not installed")),
    }
}

/// The folder of a peer that `cargo xtask peers` has made: below `target/full`, or where `SOCKMESH_PEERS` says.
pub fn peer(name: &str) -> PathBuf {
    env::var_os("SOCKMESH_PEERS").map_or_else(|| top_dir().join("target/full"), PathBuf::from).join(name)
}

/// Where a program is, searched in PATH and where Debian puts servers.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/go/bin", "/usr/share/zookeeper/bin"].map(PathBuf::from));
    // Debian keeps every version of PostgreSQL's programs in a folder of its own.
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let places = places.chain(versions.map(|version| version.path().join("bin")));
    places.map(|dir| dir.join(name)).find(|file| file.is_file())
}
