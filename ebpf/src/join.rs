//! Connections of the kernel way whose two programs are on this host: both sockets enter the table of sockets, and
//! bytes go from one to the other, past TCP and past the agent.
//!
//! The end that connects enters first, when it cannot know yet whether the other one will, and alone it would gain
//! nothing and lose what a socket in the table lacks. So the first connection to a listening socket only asks,
//! the end that accepts it answers if its program is enrolled too, and connections from then on are joined.

use ebpf_common::{AcceptorKey, End, Flow, Origin, SocketKey, Way, is_local, join};

use crate::maps::MESH_JOINS;

/// Flags of the end that opened a connection of the kernel way, none if it is not to be joined.
#[inline(always)]
pub fn opened(origin: u32, own: &SocketKey) -> Option<u32> {
    if origin & (Origin::JOIN | Origin::REFUSED_PROGRAM) != Origin::JOIN || !is_local(&own.local, &own.remote) {
        return None;
    }
    let key = AcceptorKey::new(own.netns, own.remote, own.remote_port);
    // SAFETY: one word, copied at once.
    match unsafe { MESH_JOINS.get(&key) }.copied() {
        Some(join::YES) => Some(End::JOIN),
        Some(_) => None,
        None => {
            // Without room it stays as it is: by TCP.
            let _ = MESH_JOINS.insert(&key, &join::ASKED, 0);
            None
        }
    }
}

/// An enrolled program has accepted a connection whose other end is not in the table.
#[inline(always)]
pub fn accepted(own: &SocketKey) {
    answer(&AcceptorKey::new(own.netns, own.local, own.local_port), join::YES);
}

/// An end is closed. Where it found nobody, the listening program is another one by now: it is asked again.
#[inline(always)]
pub fn closed(flow: &Flow) {
    if flow.flags & End::JOIN != 0 && flow.redirected == 0 && flow.way == Way::NoPeer as u32 {
        let peer = &flow.peer;
        answer(&AcceptorKey::new(peer.netns, peer.local, peer.local_port), join::ASKED);
    }
}

#[inline(always)]
fn answer(key: &AcceptorKey, value: u32) {
    if let Some(known) = MESH_JOINS.get_ptr_mut(key) {
        // SAFETY: an aligned word; elements live as long as this program runs.
        unsafe { known.write_volatile(value) };
    }
}
