//! What the agent's self-test of redirecting uses: a program that sends every byte of one socket straight to
//! another, on maps of its own that are never pinned. It meets no socket but the self-test's.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, sk_action},
    btf_maps::{Array, SockMap},
    macros::{btf_map, sk_msg},
    programs::SkMsgContext,
};

/// The reader at 0, the sender at 1. Written by the agent.
#[btf_map]
pub static SELFTEST_SOCKS: SockMap<2> = SockMap::new();

/// 1 while bytes are to be redirected. Written by the agent.
#[btf_map]
pub static SELFTEST_SWITCH: Array<u64, 1> = Array::new();

/// A send of the sender.
#[sk_msg]
pub fn selftest_msg(ctx: SkMsgContext) -> u32 {
    // SAFETY: an array's elements live as long as the map; volatile because the agent writes meanwhile.
    if SELFTEST_SWITCH.get_ptr(0).is_some_and(|on| unsafe { on.read_volatile() } == 1) {
        // What came of it does not matter: the bytes pass either way.
        let _ = SELFTEST_SOCKS.redirect_msg(&ctx, 0, u64::from(BPF_F_INGRESS));
    }
    sk_action::SK_PASS
}
