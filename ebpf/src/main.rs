//! Sockmesh, the kernel half: brings the sockets of enrolled control groups to the agent. On any target but
//! BPF this is an empty program.
//!
//! Rules of every program here: what is missing means *let it pass*; remember first, rewrite the address
//! last; the agent's own sockets are marked and skipped; every outcome is counted. What can be decided
//! without the kernel is decided in `ebpf-common`, where it is tested.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    allow(internal_features, reason = "this target's atomics in `core` do not add, though the kernel's do")
)]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        clippy::needless_borrows_for_generic_args,
        reason = "keys and values go to the maps by reference: a copy would take room on a stack of 512 bytes"
    )
)]

#[cfg(target_arch = "bpf")]
mod balance;
#[cfg(target_arch = "bpf")]
mod client;
#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod dns;
#[cfg(target_arch = "bpf")]
mod enrolled;
#[cfg(target_arch = "bpf")]
mod exe;
#[cfg(target_arch = "bpf")]
mod join;
#[cfg(target_arch = "bpf")]
mod lookup;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod msg;
#[cfg(target_arch = "bpf")]
mod pair;
#[cfg(target_arch = "bpf")]
mod peername;
#[cfg(target_arch = "bpf")]
mod selftest;
#[cfg(target_arch = "bpf")]
mod sockops;
#[cfg(target_arch = "bpf")]
mod sockopt;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier lets no program through that could come here.
    loop {}
}

/// GPL so that helpers which only such programs may call stay usable; the source is MIT as well.
#[cfg(target_arch = "bpf")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
