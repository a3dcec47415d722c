//! Who is enrolled, as the kernel half knows it.

/// What holds for an enrolled program: value of the tables of control groups, users and network namespaces.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Bits that say how its connections are treated; none means: as the host says.
    pub flags: u32,
}

impl Workload {
    /// Redirected where its program file has a good verdict.
    pub const REDIRECT_AUTO: u32 = 1;
    /// Redirected whatever its program file.
    pub const REDIRECT_ON: u32 = 2;
    /// Never redirected. Goes before the two above, should a program be enrolled twice.
    pub const REDIRECT_OFF: u32 = 4;
    /// Its connections to programs of this host may be joined: no agent is between them.
    pub const JOIN: u32 = 8;
}

/// Bits of the control slot [`MEMBERS`](crate::control::MEMBERS): what a hook must look at to tell who calls.
/// With none of them everybody who meets a hook is enrolled and nothing is looked up.
pub mod members {
    /// Programs that are not enrolled meet the hooks as well: they are left alone.
    pub const ASK: u64 = 1;
    /// Control groups are in the table.
    pub const GROUPS: u64 = 2;
    /// Users are in the table.
    pub const UIDS: u64 = 4;
    /// Network namespaces are in the table.
    pub const NETNS: u64 = 8;
}

/// Room in the table of control groups, and so many of them can be enrolled where the kernel must ask.
pub const MAX_WORKLOADS: usize = 4096;
/// Room in the tables of users and of network namespaces.
pub const MAX_MEMBERS: usize = 1024;
/// Room for network namespaces that the agent has not been told of yet.
pub const MAX_STRANGERS: usize = 256;
/// Levels of control groups that a hook looks at, counted from the root; the caller's own group is looked at
/// however deep it is.
pub const MAX_DEPTH: i32 = 16;

const _: () = assert!(size_of::<Workload>() == 4);

#[cfg(feature = "user")]
mod pod {
    #![allow(unsafe_code, reason = "aya wants an unsafe marker on every type that maps hold")]
    // SAFETY: `repr(C)`, one integer.
    unsafe impl aya::Pod for super::Workload {}
}
