//! Library `host`: what whole-system tests are made of.
//!
//! Everything here belongs to the test that made it and is gone when it is dropped: processes (killed by
//! the kernel, too, should the test's thread die), control groups, network namespaces, folders. Nothing
//! waits without a deadline. A helper that cannot do its work panics with the reason, because a panic has
//! a place and an `Err` has none.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this library is test code: a panic is its way to fail")]
#![allow(clippy::missing_panics_doc, reason = "every helper panics when it cannot do its work")]

pub mod agent;
pub mod backend;
pub mod browser;
pub mod caller;
pub mod carbon;
pub mod center;
pub mod certs;
pub mod cgroup;
pub mod cmd;
pub mod consul;
pub mod database;
pub mod ensemble;
pub mod etcd;
pub mod graphite_api;
pub mod http;
pub mod load;
pub mod motan;
pub mod motan_libs;
pub mod nacos;
pub mod need;
pub mod net;
pub mod otelcol;
pub mod program;
pub mod prometheus;
pub mod site;
pub mod temp;
pub mod tls;
pub mod wait;
pub mod zipkin;
pub mod zookeeper;

pub use self::{
    agent::Agent,
    backend::Backend,
    center::Center,
    cgroup::Cgroup,
    cmd::{Cmd, Proc},
    load::Load,
    need::{Need, lacks},
    net::{Net, free_port},
    temp::Temp,
    wait::{until, until_some},
};

use std::sync::{Mutex, MutexGuard};

/// Taken by tests that load the machine, so that only one of them runs at a time.
pub fn heavy() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    // A failed test must not fail those that wait for it.
    HEAVY.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The folder that cargo builds into, found from the running test.
pub fn target_dir() -> std::path::PathBuf {
    // TARGET/PROFILE/deps/system-HASH
    let exe = std::env::current_exe().expect("the kernel knows which file runs");
    exe.ancestors().nth(3).expect("cargo puts tests three folders deep").to_owned()
}

/// The folder `tests/` of the source tree.
pub fn source_dir() -> std::path::PathBuf {
    std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The top folder of the source tree.
pub fn top_dir() -> std::path::PathBuf {
    source_dir().parent().expect("`tests` lies in the top folder").to_owned()
}
