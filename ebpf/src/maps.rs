//! Every map, with its key, value, size and who writes it. All are pinned by the agent.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, PerCpuArray, SkStorage, SockHash, SockMap},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
    programs::SockOpsContext,
};
use ebpf_common::{
    AcceptorKey, Address, Client, End, Executable, ExecutableKey, Flow, Listener, MAX_ACCEPTORS, MAX_EXECUTABLES,
    MAX_INBOUND, MAX_LISTENERS, MAX_MEMBERS, MAX_RULES, MAX_SERVICES, MAX_SLOTS, MAX_SOCKETS, MAX_STRANGERS,
    MAX_TUPLES, MAX_USES, MAX_WORKLOADS, Origin, Outcome, Service, ServiceKey, SocketKey, TupleKey, Workload,
    balance::{EndpointKey, EndpointState, RuleKey, Slot, SlotKey, Use, UseKey},
    control,
    dns::{DnsListener, MAX_RESOLVERS},
    inbound,
};

/// Destinations that are services. Written by the agent.
#[btf_map]
pub static MESH_SERVICES: HashMap<ServiceKey, Service, MAX_SERVICES> = HashMap::new();

/// The agent's listeners by cookie of their network namespace. Written by the agent.
#[btf_map]
pub static MESH_LISTENERS: HashMap<u64, Listener, MAX_LISTENERS> = HashMap::new();

/// Slots of `ebpf_common::control`. Written by the agent.
#[btf_map]
pub static MESH_CONTROL: Array<u64, { control::SLOTS }> = Array::new();

/// Origin of a captured socket, gone with the socket. Written by the connect hooks and sockops.
#[btf_map]
pub static MESH_ORIGINS: SkStorage<Origin> = SkStorage::new();

/// Connections on their way to the agent's accept. A place is taken by the connect hook (so that a full
/// table is noticed while the connect can still go directly), turned into source address and port by
/// sockops, taken away by the agent at accept; what is never accepted the agent removes by age.
#[btf_map]
pub static MESH_TUPLES: HashMap<TupleKey, Origin, MAX_TUPLES> = HashMap::new();

/// Enrolled control groups by number, where hooks must ask who calls. Written by the agent.
#[btf_map]
pub static MESH_WORKLOADS: HashMap<u64, Workload, MAX_WORKLOADS> = HashMap::new();

/// Enrolled users. Written by the agent.
#[btf_map]
pub static MESH_UIDS: HashMap<u32, Workload, MAX_MEMBERS> = HashMap::new();

/// Enrolled network namespaces by cookie. Written by the agent.
#[btf_map]
pub static MESH_NETNS: HashMap<u64, Workload, MAX_MEMBERS> = HashMap::new();

/// Network namespaces in which the agent does not listen, with a process there that wanted it to. Written by
/// the connect hooks, taken away by the agent.
#[btf_map]
pub static MESH_STRANGERS: HashMap<u64, u32, MAX_STRANGERS> = HashMap::new();

/// Destinations of callers from elsewhere that are brought to the agent: an address, or all zero for every
/// local one, and a port. Written by the agent; the value says nothing.
#[btf_map]
pub static MESH_INBOUND: HashMap<ServiceKey, u32, MAX_INBOUND> = HashMap::new();

/// The agent's listeners for connections from elsewhere, by family. Put in by the agent, gone with them.
#[btf_map]
pub static MESH_IN_SOCKETS: SockMap<{ inbound::LISTENERS }> = SockMap::new();

/// Callers from elsewhere, kept with the agent's socket that was opened for them and with the program's that
/// asked; gone with each. Written by the agent and the getpeername hooks.
#[btf_map]
pub static MESH_CLIENTS: SkStorage<Client> = SkStorage::new();

/// Where questions for names are answered, by cookie of the network namespace. Written by the agent.
#[btf_map]
pub static MESH_DNS: HashMap<u64, DnsListener, MAX_LISTENERS> = HashMap::new();

/// Resolvers that programs asked, by number; never removed, because a socket may stay connected to the
/// number's address for long. Written by the connect and sendmsg hooks.
#[btf_map]
pub static MESH_RESOLVERS: HashMap<u32, Address, MAX_RESOLVERS> = HashMap::new();

/// How often each outcome happened. Written by every program.
#[btf_map]
pub static MESH_COUNTERS: PerCpuArray<u64, { Outcome::COUNT }> = PerCpuArray::new();

/// Most of these tables are empty on most hosts: memory is taken with each entry.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Endpoints of services that connects are sent to straight. Written by the agent.
#[btf_map]
pub static MESH_BALANCE: HashMap<SlotKey, Slot, MAX_SLOTS, ON_DEMAND> = HashMap::new();

/// Who may connect to such a service; the value says nothing. Written by the agent.
#[btf_map]
pub static MESH_POLICY: HashMap<RuleKey, u32, MAX_RULES, ON_DEMAND> = HashMap::new();

/// Endpoints that failed lately. Written by sockops.
#[btf_map]
pub static MESH_ENDPOINTS: HashMap<EndpointKey, EndpointState, MAX_SERVICES, ON_DEMAND> = HashMap::new();

/// Counters of connects that were sent straight to an endpoint. Written by the connect hooks and sockops.
#[btf_map]
pub static MESH_USE: HashMap<UseKey, Use, MAX_USES, ON_DEMAND> = HashMap::new();

/// Such connections that exist now, by socket cookie. Written by sockops. Memory is taken at once: entries come and
/// go with every connection, and to find memory for one costs as much as all the rest of a connect.
#[btf_map]
pub static MESH_CONNECTION: HashMap<u64, Origin, MAX_TUPLES> = HashMap::new();
/// Sockets that bytes can be redirected to. Written by sockops; the kernel takes a socket out when it is
/// closed. Nobody else may: what a reader has not read is lost with its entry.
#[btf_map]
pub static MESH_SOCKETS: SockHash<SocketKey, MAX_SOCKETS> = SockHash::new();

/// What is known of each of these sockets. Written by sockops and the message program.
#[btf_map]
pub static MESH_ENDS: HashMap<SocketKey, End, MAX_SOCKETS, ON_DEMAND> = HashMap::new();

/// What each of these sockets knows as a sender, gone with the socket. Written by sockops and the message program.
#[btf_map]
pub static MESH_FLOWS: SkStorage<Flow> = SkStorage::new();

/// Verdicts about program files. Unknown ones are entered by the connect hooks, verdicts by the agent.
#[btf_map]
pub static MESH_EXECUTABLE: HashMap<ExecutableKey, Executable, MAX_EXECUTABLES, ON_DEMAND> = HashMap::new();

/// Listening sockets of programs whose connections from the agent may be redirected; the value is 1. Written by
/// the agent.
#[btf_map]
pub static MESH_ACCEPTORS: HashMap<AcceptorKey, u32, MAX_ACCEPTORS, ON_DEMAND> = HashMap::new();

/// Listening sockets of this host that joined connections go to. Written by sockops, taken away by the agent.
#[btf_map]
pub static MESH_JOINS: HashMap<AcceptorKey, u32, MAX_ACCEPTORS, ON_DEMAND> = HashMap::new();

/// Counts one `outcome`.
#[inline(always)]
pub fn count(outcome: Outcome) {
    if let Some(slot) = MESH_COUNTERS.get_ptr_mut(outcome as u32) {
        // SAFETY: the slot belongs to this CPU, and programs of this kind are not interrupted by their like.
        unsafe { *slot += 1 };
    }
}

/// One slot of the control table.
#[inline(always)]
pub fn control_slot(slot: u32) -> Option<u64> {
    // SAFETY: an array's elements live as long as the map; volatile because the agent writes meanwhile.
    MESH_CONTROL.get_ptr(slot).map(|p| unsafe { ptr::read_volatile(p) })
}

/// A service by destination: its own port, else every port.
#[inline(always)]
pub fn service(addr: [u8; 16], port: u16) -> Option<Service> {
    let mut key = ServiceKey::new(addr, port);
    // SAFETY: copied at once; a concurrent replacement is one aligned word.
    if let Some(found) = unsafe { MESH_SERVICES.get(key) } {
        return Some(*found);
    }
    key.port = 0;
    // SAFETY: as above.
    unsafe { MESH_SERVICES.get(key) }.copied()
}

#[inline(always)]
fn origins() -> *mut c_void {
    ptr::from_ref(&MESH_ORIGINS).cast_mut().cast()
}

/// The origin kept with `sk`, null when there is none. `sk` must come from a program's context and not be null.
#[inline(always)]
pub fn origin_of(sk: *mut bpf_sock) -> *mut Origin {
    // SAFETY: the verifier checks that `sk` is a socket.
    unsafe { bpf_sk_storage_get(origins(), sk.cast(), ptr::null_mut(), 0) }.cast()
}

/// The origin kept with the socket that changes its state, which is locked while this program runs: nobody else
/// has it then. Null when there is none.
#[inline(always)]
pub fn origin_of_ops(ctx: &SockOpsContext) -> *mut Origin {
    // SAFETY: the verifier checks each read of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { ptr::null_mut() } else { origin_of(sk) }
}

/// Makes room for an origin with `sk`, all zero; null when the kernel has no memory for it. What `sk` had
/// stays: forget it first.
#[inline(always)]
pub fn create_origin(sk: *mut bpf_sock) -> *mut Origin {
    let flags = BPF_SK_STORAGE_GET_F_CREATE.into();
    // SAFETY: the verifier checks that `sk` is a socket; without a value the kernel begins with zeros.
    unsafe { bpf_sk_storage_get(origins(), sk.cast(), ptr::null_mut(), flags) }.cast()
}

/// Forgets the origin kept with `sk`.
#[inline(always)]
pub fn forget_origin(sk: *mut bpf_sock) {
    // SAFETY: the verifier checks that `sk` is a socket.
    unsafe { bpf_sk_storage_delete(origins(), sk.cast()) };
}
