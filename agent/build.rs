//! Embeds the kernel half that `cargo xtask build` left behind; without one the agent still builds and
//! captures with eBPF not.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ebpf_object)");
    println!("cargo::rerun-if-env-changed=SOCKMESH_EBPF_OBJECT");
    let object = match env::var_os("SOCKMESH_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => {
            let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
            let folder = PathBuf::from(manifest).join("../target/bpf");
            // Watched as a folder because cargo takes a watched file that is missing for one that changes
            // all the time.
            let _ = fs::create_dir_all(&folder);
            println!("cargo::rerun-if-changed={}", folder.display());
            folder.join("sockmesh-ebpf")
        }
    };
    if object.is_file() {
        println!("cargo::rerun-if-changed={}", object.display());
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("sockmesh-ebpf");
        if let Err(e) = fs::copy(&object, &out) {
            panic!("cannot copy {} to {}: {e}", object.display(), out.display());
        }
        println!("cargo::rustc-cfg=ebpf_object");
    }
}
