//! Two ends of one connection on this host: what is known of each, and when bytes may go straight from one
//! socket to the other.
//!
//! The kernel keeps bytes that were redirected and bytes that came by TCP in two queues and gives the
//! redirected ones out first. A redirected byte that is queued while a TCP byte is unread therefore overtakes
//! it. Both ends count one stream in one sequence space: when the reader's `copied_seq` equals the sender's
//! `write_seq`, every byte that ever went by TCP was read, nothing can be overtaken, and the direction may be
//! redirected. That holds for bytes sent before both ends were known, for data in a SYN, and for bytes that
//! went by TCP because the reader was full. The other change, redirect to TCP, keeps the order at any time.

use crate::{Address, words};

/// One end of a connection as it sees itself: key of the tables of ends. Addresses in mapped form, ports in
/// network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// Network namespace.
    pub netns: u64,
    /// Its own address.
    pub local: Address,
    /// The other end's address.
    pub remote: Address,
    /// Its own port.
    pub local_port: u16,
    /// The other end's port.
    pub remote_port: u16,
    /// Always 0.
    pub reserved: u32,
}

impl SocketKey {
    /// Key of the other end. Both ends of a redirected pair are in one network namespace.
    #[inline(always)]
    pub const fn flipped(&self) -> Self {
        Self {
            netns: self.netns,
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
            reserved: 0,
        }
    }
}

/// An end that is in the table of sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The kernel's `struct sock`, only ever read by helpers that cannot fault.
    pub sk: u64,
    /// Bits below.
    pub flags: u32,
    /// A number of [`Way`]: how its last bytes went.
    pub way: u32,
    /// Bytes redirected to it since it was last seen to have read all.
    pub bytes: u64,
    /// Messages, likewise.
    pub messages: u64,
    /// All bytes ever redirected to it.
    pub received: u64,
    /// When bytes were redirected to it last, `CLOCK_MONOTONIC` in ns; 0 where that is not kept: only joined ends do.
    pub last_ns: u64,
}

impl End {
    /// It is the agent's.
    pub const AGENT: u32 = 1;
    /// Joined with another program's socket: no agent is between them.
    pub const JOIN: u32 = 2;
    /// Asked for something that redirect cannot keep: neither sends nor receives by it any more.
    pub const OFF: u32 = 4;
}

/// What an end knows as a sender; kept with its socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The other end.
    pub peer: SocketKey,
    /// This end's `struct sock`.
    pub sk: u64,
    /// Bytes redirected.
    pub redirected: u64,
    /// A number of [`Way`].
    pub way: u32,
    /// Flags of this [`End`].
    pub flags: u32,
}

/// How bytes of one direction go, and if by TCP, why.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing was sent yet.
    Idle = 0,
    /// Straight to the other socket.
    Redirect = 1,
    /// By TCP: redirect is switched off.
    Off = 2,
    /// By TCP: the other end is not in the table of sockets.
    NoPeer = 3,
    /// By TCP: bytes that went by TCP are still unread.
    Unread = 4,
    /// By TCP: the reader has not read what was redirected.
    Full = 5,
    /// By TCP: one of the two asked for something that redirect cannot keep.
    Asked = 6,
}

impl Way {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Idle, Self::Redirect, Self::Off, Self::NoPeer, Self::Unread, Self::Full, Self::Asked];

    /// Words for operators.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Idle => "nothing was sent yet",
            Self::Redirect => "on",
            Self::Off => "redirect is switched off",
            Self::NoPeer => "the other end is not redirected",
            Self::Unread => "bytes that went by TCP are unread",
            Self::Full => "the reader is behind",
            Self::Asked => "the program asked for what redirect cannot keep",
        }
    }
}

/// Values of [`control::REDIRECT`](crate::control::REDIRECT).
pub mod redirect {
    /// Nothing is redirected.
    pub const OFF: u64 = 0;
    /// As the executable's verdict says.
    pub const AUTO: u64 = 1;
    /// Every captured connection of a program.
    pub const ON: u64 = 2;
}

/// Unread bytes of a reader above which a program's bytes go by TCP, which has limits of its own.
pub const PROGRAM_BOUND: u32 = 256 * 1024;
/// The same for the agent's bytes, should it not have waited.
pub const AGENT_BOUND: u32 = 4 * 1024 * 1024;
/// Unread messages in a reader above which a program's bytes go by TCP: each costs the kernel about 1 KB
/// however short it is.
pub const MESSAGES_BOUND: u32 = 2048;
/// The same for the agent's messages.
pub const AGENT_MESSAGES_BOUND: u32 = 8192;

/// How many messages the `unread` bytes of a reader are, about, of `messages` with `bytes` that were redirected
/// to it since it was last seen empty.
#[inline(always)]
pub const fn unread_messages(unread: u32, bytes: u64, messages: u64) -> u32 {
    if bytes == 0 {
        return 0;
    }
    // Kept small enough for the product to fit.
    let messages = if messages > u32::MAX as u64 { u32::MAX as u64 } else { messages };
    let about = messages * unread as u64 / bytes;
    // More bytes than were redirected are unread when some came by TCP.
    (if about > messages { messages } else { about }) as u32
}

/// What the sender sees before each message.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Value of the control slot.
    pub switch: u64,
    /// Flags of the sender's end.
    pub own: u32,
    /// Flags of the reader's end.
    pub other: u32,
    /// How the last message went.
    pub before: u32,
    /// The reader has read every byte that went by TCP. Asked only where the last message went by TCP.
    pub caught_up: bool,
    /// Unread bytes in the reader.
    pub fill: u32,
    /// Unread messages in the reader, about.
    pub messages: u32,
}

impl Look {
    /// How this message goes.
    #[inline(always)]
    pub const fn decide(&self) -> Way {
        if self.switch == redirect::OFF {
            return Way::Off;
        }
        if (self.own | self.other) & End::OFF != 0 {
            return Way::Asked;
        }
        // The agent waits for its readers itself, long before its bound, so that a program sees no change.
        let (bytes, messages) = match self.own & End::AGENT {
            0 => (PROGRAM_BOUND, MESSAGES_BOUND),
            _ => (AGENT_BOUND, AGENT_MESSAGES_BOUND),
        };
        if self.fill > bytes || self.messages > messages {
            return Way::Full;
        }
        if self.before != Way::Redirect as u32 && !self.caught_up {
            return Way::Unread;
        }
        Way::Redirect
    }
}

/// Whether TCP takes bytes from a socket in this state: established, or ended by the other side only.
#[inline(always)]
pub const fn may_send(state: u32) -> bool {
    const ESTABLISHED: u32 = 1;
    const CLOSE_WAIT: u32 = 8;
    state == ESTABLISHED || state == CLOSE_WAIT
}

/// Whether a connection between these addresses stays on this host: loopback, or an address of its own,
/// which the kernel then takes for both ends.
#[inline(always)]
pub fn is_local(local: &Address, remote: &Address) -> bool {
    let (l, r) = (words(local), words(remote));
    let same = l[0] == r[0] && l[1] == r[1] && l[2] == r[2] && l[3] == r[3];
    let is_v4 = r[0] == 0 && r[1] == 0 && r[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    same || (is_v4 && r[3].to_ne_bytes()[0] == 127)
}

/// Whether connections to a listening socket are joined: values of its table, whose keys are [`AcceptorKey`]s.
pub mod join {
    /// A program that may be joined has connected; whether the listening one is enrolled nobody knows yet.
    pub const ASKED: u32 = 0;
    /// It is.
    pub const YES: u32 = 1;
}

/// A listening socket of a program that the agent dials. The value in the table is a verdict of [`Executable`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcceptorKey {
    /// Network namespace.
    pub netns: u64,
    /// The address that is dialled.
    pub addr: Address,
    /// Its port, network byte order.
    pub port: u16,
    /// Always 0.
    pub reserved: [u16; 3],
}

impl AcceptorKey {
    /// The socket that listens on `addr` and `port`, network byte order, in the network namespace `netns`.
    #[inline(always)]
    pub const fn new(netns: u64, addr: Address, port: u16) -> Self {
        Self { netns, addr, port, reserved: [0; 3] }
    }
}

/// Which program file: survives a move of the file, not its replacement.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExecutableKey {
    /// Number of the inode.
    pub inode: u64,
    /// Device as the kernel writes it: major number above 20 bits of minor number.
    pub device: u32,
    /// Tells an inode from one before it that had the same number, where the file system does.
    pub generation: u32,
}

/// What is known about a program file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executable {
    /// One of the constants below.
    pub verdict: u32,
    /// Why, a number that the agent gives and reads.
    pub reason: u32,
    /// A process that ran it when it connected last, in the initial PID namespace.
    pub pid: u32,
    /// Captured connects so far.
    pub connects: u32,
}

impl Executable {
    /// Nobody has looked yet: its connections stay on TCP.
    pub const UNKNOWN: u32 = 0;
    /// Redirect its connections.
    pub const ON: u32 = 1;
    /// Leave its connections on TCP.
    pub const OFF: u32 = 2;
}

/// Where fields lie in the running kernel's structures, in bytes. Read from its BTF by the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// 1 when the fields of sockets are known, else nothing is redirected.
    pub sockets: u32,
    /// `sock.sk_backlog.rmem_alloc`.
    pub rmem_alloc: u32,
    /// `tcp_sock.copied_seq`.
    pub copied_seq: u32,
    /// `tcp_sock.write_seq`.
    pub write_seq: u32,
    /// 1 when the fields below are known, else no executable is recognised.
    pub executables: u32,
    /// `task_struct.mm`.
    pub mm: u32,
    /// `mm_struct.exe_file`.
    pub exe_file: u32,
    /// `file.f_inode`.
    pub f_inode: u32,
    /// `inode.i_ino`.
    pub i_ino: u32,
    /// `inode.i_generation`.
    pub i_generation: u32,
    /// `inode.i_sb`.
    pub i_sb: u32,
    /// `super_block.s_dev`.
    pub s_dev: u32,
}

/// Room in the tables of sockets and of ends, unless the configuration says otherwise.
pub const MAX_SOCKETS: usize = 131_072;
/// Room in the table of executables.
pub const MAX_EXECUTABLES: usize = 4096;
/// Room in the table of listening sockets.
pub const MAX_ACCEPTORS: usize = 4096;

// No hidden padding: the fields' sizes add up to the type's.
const _: () = {
    assert!(size_of::<SocketKey>() == 8 + 16 * 2 + 2 * 2 + 4);
    assert!(size_of::<End>() == 8 + 4 * 2 + 8 * 4);
    assert!(size_of::<Flow>() == 48 + 8 * 2 + 4 * 2);
    assert!(size_of::<AcceptorKey>() == 8 + 16 + 2 + 6);
    assert!(size_of::<ExecutableKey>() == 8 + 4 * 2);
    assert!(size_of::<Executable>() == 4 * 4);
    assert!(size_of::<Offsets>() == 4 * 12);
};

#[cfg(feature = "user")]
mod pod {
    #![allow(unsafe_code, reason = "aya wants an unsafe marker on every type that maps hold")]
    // SAFETY: `repr(C)`, integers only, no padding (asserted above).
    unsafe impl aya::Pod for super::SocketKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::End {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::AcceptorKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ExecutableKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Executable {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Offsets {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapped;

    #[test]
    fn the_other_end_of_the_other_end_is_this_one() {
        let key = SocketKey {
            netns: 1,
            local: mapped([127, 0, 0, 1]),
            remote: mapped([127, 0, 0, 2]),
            local_port: 3,
            remote_port: 4,
            reserved: 0,
        };
        assert_ne!(key.flipped(), key);
        assert_eq!(key.flipped().flipped(), key);
    }

    #[test]
    fn local_is_loopback_or_the_same_address() {
        let v6 = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        assert!(is_local(&mapped([10, 0, 0, 1]), &mapped([10, 0, 0, 1])));
        assert!(is_local(&mapped([127, 0, 0, 1]), &mapped([127, 0, 0, 9])));
        assert!(!is_local(&mapped([10, 0, 0, 1]), &mapped([10, 0, 0, 2])));
        assert!(is_local(&v6(1), &v6(1)) && !is_local(&v6(1), &v6(2)));
    }

    #[test]
    fn only_open_halves_send() {
        let states: Vec<u32> = (0..14).filter(|state| may_send(*state)).collect();
        assert_eq!(states, [1, 8]);
    }

    #[test]
    fn messages_are_estimated_by_their_mean_size() {
        assert_eq!(unread_messages(0, 0, 0), 0);
        assert_eq!(unread_messages(500, 1000, 10), 5);
        assert_eq!(unread_messages(1, u64::MAX, u64::MAX), 0);
        assert_eq!(unread_messages(5000, 1000, 10), 10, "the rest came by TCP");
    }

    #[test]
    fn every_way() {
        let ok = Look { switch: redirect::ON, own: 0, other: 0, before: 0, caught_up: true, fill: 0, messages: 0 };
        assert_eq!(ok.decide(), Way::Redirect);
        assert_eq!(Look { switch: redirect::OFF, ..ok }.decide(), Way::Off);
        assert_eq!(Look { other: End::OFF, ..ok }.decide(), Way::Asked);
        assert_eq!(Look { own: End::OFF, ..ok }.decide(), Way::Asked);
        assert_eq!(Look { caught_up: false, ..ok }.decide(), Way::Unread);
        let going = Look { before: Way::Redirect as u32, caught_up: false, ..ok };
        assert_eq!(going.decide(), Way::Redirect, "nothing has gone by TCP since");
        let full = Look { fill: PROGRAM_BOUND + 1, ..going };
        assert_eq!(full.decide(), Way::Full);
        assert_eq!(Look { own: End::AGENT, ..full }.decide(), Way::Redirect);
        assert_eq!(Look { own: End::AGENT, fill: AGENT_BOUND + 1, ..full }.decide(), Way::Full);
        assert_eq!(Look { messages: MESSAGES_BOUND + 1, ..going }.decide(), Way::Full);
        assert_eq!(Look { own: End::AGENT, messages: MESSAGES_BOUND + 1, ..full }.decide(), Way::Redirect);
        assert_eq!(Look { own: End::AGENT, messages: AGENT_MESSAGES_BOUND + 1, ..full }.decide(), Way::Full);
        for (i, way) in Way::ALL.iter().enumerate() {
            assert_eq!(*way as usize, i);
        }
    }
}
