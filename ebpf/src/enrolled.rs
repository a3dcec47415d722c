//! Who calls: whether the running program is enrolled, and how it is to be treated.
//!
//! A control group tells by itself: its programs meet the hooks and nobody else does. Users and network
//! namespaces do not, so for them the hooks are attached further up and ask here.

use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_uid_gid,
};
use ebpf_common::{MAX_DEPTH, Outcome, Workload, control, members};

use crate::maps::{MESH_NETNS, MESH_STRANGERS, MESH_UIDS, MESH_WORKLOADS, control_slot};

/// The workload that the running program belongs to, by the innermost enrolled control group, else its user,
/// else the network namespace with the cookie `netns`; [`Outcome::NotEnrolled`] when it belongs to none. For
/// hooks that run in the context of the calling program.
#[inline(always)]
pub fn workload(netns: u64) -> Result<Workload, Outcome> {
    let look = control_slot(control::MEMBERS).unwrap_or(0);
    if look == 0 {
        return Ok(Workload { flags: 0 });
    }
    if look & members::GROUPS != 0
        && let Some(found) = by_group()
    {
        return Ok(found);
    }
    if look & members::UIDS != 0 {
        // SAFETY: helper without side effects; the user is the lower half.
        let uid = unsafe { bpf_get_current_uid_gid() } as u32;
        // SAFETY: copied at once; a concurrent replacement is one aligned word.
        if let Some(found) = unsafe { MESH_UIDS.get(uid) } {
            return Ok(*found);
        }
    }
    if look & members::NETNS != 0 {
        // SAFETY: as above.
        if let Some(found) = unsafe { MESH_NETNS.get(netns) } {
            return Ok(*found);
        }
    }
    if look & members::ASK == 0 { Ok(Workload { flags: 0 }) } else { Err(Outcome::NotEnrolled) }
}

#[inline(always)]
fn by_group() -> Option<Workload> {
    let found = innermost();
    (found != NOBODY).then_some(Workload { flags: found as u32 })
}

/// No flags have the upper half set.
const NOBODY: u64 = u64::MAX;

/// Flags of the innermost enrolled control group around the running program. A program of its own, so that its
/// many steps are checked once and its stack is not its callers'.
#[inline(never)]
fn innermost() -> u64 {
    // SAFETY: helper without side effects.
    let own = unsafe { bpf_get_current_cgroup_id() };
    let mut found = flags_of(own);
    if found != NOBODY {
        return found;
    }
    for level in 0..MAX_DEPTH {
        // SAFETY: helper without side effects; 0 below the program's own level.
        let group = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if group == 0 || group == own {
            break;
        }
        let inner = flags_of(group);
        if inner != NOBODY {
            found = inner;
        }
    }
    found
}

#[inline(always)]
fn flags_of(group: u64) -> u64 {
    match MESH_WORKLOADS.get_ptr(group) {
        // SAFETY: an element that the verifier has seen not to be null; volatile because the compiler would
        // join the pointers of several look-ups, which the verifier forbids.
        Some(workload) => u64::from(unsafe { (&raw const (*workload).flags).read_volatile() }),
        None => NOBODY,
    }
}

/// Tells the agent of a network namespace in which it does not listen, with a process that lives there.
#[inline(always)]
pub fn unserved(outcome: Outcome, netns: u64, pid: u32) {
    if outcome as u32 == Outcome::NoListener as u32 {
        // With no room the agent is told by another connect, or finds out by itself.
        let _ = MESH_STRANGERS.insert(netns, pid, 0);
    }
}
