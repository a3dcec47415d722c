//! Sockmesh, the kernel half. On any target but BPF this is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}
