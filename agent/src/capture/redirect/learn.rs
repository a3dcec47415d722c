//! Which programs can be redirected without noticing: learned from how they drive their first connections.
//!
//! Redirected sockets differ where a thread waits inside the kernel for bytes or splices them
//! (`docs/kernel.md`). So an executable's connections stay on TCP until a few of them were seen with
//! `O_NONBLOCK`; one blocking socket, or a look into the file, says no for good.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ebpf_common::Asked;
use object::{
    Endianness,
    elf::{FileHeader32, FileHeader64},
    read::{
        ReadCache, ReadRef,
        elf::{FileHeader, Sym as _},
    },
};
use serde::Serialize;

use crate::sys::diag::Diag;

/// Connections of an executable that must have been non-blocking before it is redirected.
pub const SAMPLES: u32 = 3;
/// How often an executable with a verdict is looked at again.
pub const AGAIN: Duration = Duration::from_secs(1);
/// How often all descriptors of an executable with a verdict are: it may hold a great many.
const RINGS_AGAIN: Duration = Duration::from_secs(30);
/// Executables remembered; beyond that the oldest look is forgotten.
const ROOM: usize = 4096;
/// A file larger than this is not read: nobody's program, or one that is not worth the time.
const MAX_FILE: u64 = 512 << 20;

/// What descriptors of rings are called in `/proc/PID/fd`.
const RING: &str = "anon_inode:[io_uring]";

/// Programs that splice sockets with system calls of their own, which no look into the file shows.
const SPLICERS: [&str; 3] = ["haproxy", "systemd-socket-proxyd", "3proxy"];

/// Why an executable's connections stay on TCP. Numbers are kept in the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum Reason {
    /// A socket without O_NONBLOCK was seen.
    Blocking = 1,
    /// It imports `splice` or `tee`.
    Splice = 2,
    /// It is a Go program.
    Go = 3,
    /// It is on the list of programs that splice.
    Listed = 4,
    /// It asked for completions of zero-copy sends.
    Zerocopy = Asked::Zerocopy as u32,
    /// It set a low-water mark.
    LowWater = Asked::LowWater as u32,
    /// It put a protocol on top of TCP inside the kernel, such as TLS.
    Ulp = Asked::Ulp as u32,
    /// It asked for the size of what is unread with every read.
    Inquiry = Asked::Inquiry as u32,
    /// It holds an io_uring: what waits for its bytes is the kernel, which nothing here can see or tell.
    Ring = 9,
    /// Its file could not be read.
    Unreadable = 10,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Blocking,
        Self::Splice,
        Self::Go,
        Self::Listed,
        Self::Zerocopy,
        Self::LowWater,
        Self::Ulp,
        Self::Inquiry,
        Self::Ring,
        Self::Unreadable,
    ];

    /// The one with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u32 == number)
    }

    /// For operators: comes after `off: `.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Blocking => "uses blocking sockets",
            Self::Splice => "can splice sockets",
            Self::Go => "Go runtime splices",
            Self::Listed => "is known to splice sockets",
            Self::Zerocopy => "sets SO_ZEROCOPY",
            Self::LowWater => "sets SO_RCVLOWAT",
            Self::Ulp => "sets TCP_ULP",
            Self::Inquiry => "sets TCP_INQ",
            Self::Ring => "uses io_uring",
            Self::Unreadable => "its program file cannot be read",
        }
    }
}

/// What is known of an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough was seen: stays on TCP.
    Learning(u32),
    /// Redirect its connections.
    On,
    /// Leave them on TCP.
    Off(Reason),
}

impl Verdict {
    /// For operators.
    pub fn text(self) -> String {
        match self {
            Self::Learning(seen) => format!("learning ({seen} of {SAMPLES} connections seen)"),
            Self::On => "on".to_owned(),
            Self::Off(reason) => format!("off: {}", reason.text()),
        }
    }
}

/// A program file: device and inode as `stat` gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct File {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_ctime`, seconds and nanoseconds: tells a file from one before it that had the same number, and from
    /// what it was before it was written to.
    pub changed: (i64, i64),
}

impl File {
    /// The device as the kernel itself numbers it: the major number above 20 bits of minor number.
    pub fn kernel_device(&self) -> u32 {
        rustix::fs::major(self.device) << 20 | rustix::fs::minor(self.device) & 0xf_ffff
    }
}

/// The program file that process `pid` runs, and where it lies in that process's view.
pub fn executable(pid: u32) -> io::Result<(File, PathBuf)> {
    let link = format!("/proc/{pid}/exe");
    let meta = fs::metadata(&link)?;
    let path = fs::read_link(&link)?;
    let changed = (meta.ctime(), meta.ctime_nsec());
    Ok((File { device: meta.dev(), inode: meta.ino(), changed }, path))
}

/// Whether the socket of process `pid` that is connected from `local` to `remote` has `O_NONBLOCK`; none when
/// the process has no such socket (any more).
pub fn is_nonblocking(pid: u32, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<bool>> {
    let nonblocking = |inode| Ok(descriptor_flags(pid, inode)?.map(|flags| flags & libc::O_NONBLOCK as u32 != 0));
    if fs::read_link(format!("/proc/{pid}/ns/net"))? == fs::read_link("/proc/thread-self/ns/net")? {
        return Diag::open()?.inode(local, remote)?.map_or(Ok(None), nonblocking);
    }
    // The kernel answers for the asker's network namespace only; this file lists the sockets of the other's.
    for table in ["tcp", "tcp6"] {
        let text = match fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            Ok(text) => text,
            // A kernel without IPv6 has no tcp6.
            Err(e) if e.kind() == io::ErrorKind::NotFound && table == "tcp6" => continue,
            Err(e) => return Err(e),
        };
        if let Some(inode) = inode_of(&text, local, remote) {
            return nonblocking(inode);
        }
    }
    Ok(None)
}

/// The inode of the socket which is connected from `local` to `remote` in this process's network namespace; none
/// while it waits to be accepted.
pub fn inode(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
    Diag::open()?.inode(local, remote)
}

/// Whether process `pid` has a descriptor of the socket `inode`.
pub fn holds(pid: u32, inode: u64) -> bool {
    matches!(descriptor_flags(pid, inode), Ok(Some(_)))
}

/// A process that holds the socket `inode`: the one that listens, or one that it has handed the socket to, as
/// servers do that fork for each connection. Looks at the descriptors of every process: for rare use.
pub fn holder(inode: u64) -> io::Result<Option<u32>> {
    let mut processes = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(processes.find(|pid| holds(*pid, inode)))
}

/// The inode of the socket with these ends in the text of `/proc/PID/net/tcp` or `tcp6`.
fn inode_of(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let own = address(fields.nth(1)?)?;
        let other = address(fields.next()?)?;
        // Of the fields between: the state, and five more.
        (same(local, own) && same(remote, other)).then(|| fields.nth(6)?.parse().ok())?
    })
}

fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

/// `0100007F:1F90`: the address in words of the machine's order, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |i: usize| Some(u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Flags of the first descriptor of `pid` that is the socket `inode`.
fn descriptor_flags(pid: u32, inode: u64) -> io::Result<Option<u32>> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // Descriptors come and go meanwhile.
        let Ok(entry) = entry else { continue };
        if fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()) {
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_string_lossy()))?;
            return Ok(flags_of(&info));
        }
    }
    Ok(None)
}

/// Whether process `pid` holds an io_uring. Looks at all its descriptors: for rare use.
pub fn has_ring(pid: u32) -> io::Result<bool> {
    let is_ring = |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == RING);
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().any(is_ring))
}

/// The flags, octal, in the text of `/proc/PID/fdinfo/N`.
fn flags_of(info: &str) -> Option<u32> {
    let line = info.lines().find_map(|l| l.strip_prefix("flags:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}

/// What a look into the program file of `pid`, called `path` there, says against redirecting it.
pub fn inspect(pid: u32, path: &Path) -> Option<Reason> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The kernel adds this to the path of a file that was replaced since.
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    if SPLICERS.contains(&name) {
        return Some(Reason::Listed);
    }
    let link = format!("/proc/{pid}/exe");
    match fs::metadata(&link) {
        Ok(meta) if meta.len() <= MAX_FILE => {}
        _ => return Some(Reason::Unreadable),
    }
    // Reads what is asked for, not the whole file.
    fs::File::open(&link).map_or(Some(Reason::Unreadable), |file| inspect_elf(&ReadCache::new(file)))
}

/// What the content of a program file says against redirecting it.
pub fn inspect_elf<'a>(data: impl ReadRef<'a>) -> Option<Reason> {
    let read = match data.read_bytes_at(4, 1) {
        Ok([1]) => inspect_class::<FileHeader32<Endianness>>(data),
        Ok([2]) => inspect_class::<FileHeader64<Endianness>>(data),
        _ => return Some(Reason::Unreadable),
    };
    read.unwrap_or(Some(Reason::Unreadable))
}

fn inspect_class<'a, H: FileHeader<Endian = Endianness>>(
    data: impl ReadRef<'a>,
) -> object::read::Result<Option<Reason>> {
    let header = H::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    for section in sections.iter() {
        if matches!(sections.section_name(endian, section)?, b".gopclntab" | b".note.go.buildid" | b".go.buildinfo") {
            return Ok(Some(Reason::Go));
        }
    }
    let symbols = sections.symbols(endian, data, object::elf::SHT_DYNSYM)?;
    for symbol in symbols.iter() {
        if symbol.is_undefined(endian) && matches!(symbols.symbol_name(endian, symbol)?, b"splice" | b"tee") {
            return Ok(Some(Reason::Splice));
        }
    }
    Ok(None)
}

/// What is known of every executable seen so far. The caller looks at sockets and files and acts on verdicts.
#[derive(Debug, Default)]
pub struct Memory {
    known: HashMap<File, Known>,
}

#[derive(Debug)]
struct Known {
    verdict: Verdict,
    looked: Option<Instant>,
    /// When its descriptors were looked through for rings.
    searched: Option<Instant>,
}

impl Memory {
    /// Whether a connection of `file` is worth a look `now`: while it is learned always, afterwards rarely, and
    /// never once the answer is no.
    pub fn wants(&self, file: File, now: Instant) -> bool {
        self.known.get(&file).is_none_or(|known| match known.verdict {
            Verdict::Learning(_) => true,
            Verdict::On => known.looked.is_none_or(|at| now.duration_since(at) >= AGAIN),
            Verdict::Off(_) => false,
        })
    }

    /// What is known of `file`.
    pub fn verdict(&self, file: File) -> Option<Verdict> {
        self.known.get(&file).map(|known| known.verdict)
    }

    /// Whether it is time to look through the descriptors of a process that runs `file`, and notes that it is done:
    /// with every connection while it is learned, afterwards now and then.
    pub fn searches(&mut self, file: File, now: Instant) -> bool {
        let known = self.entry(file, now);
        let due = match known.verdict {
            Verdict::Learning(_) => true,
            Verdict::On => known.searched.is_none_or(|at| now.duration_since(at) >= RINGS_AGAIN),
            Verdict::Off(_) => false,
        };
        if due {
            known.searched = Some(now);
        }
        due
    }

    /// A socket of `file` was seen; returns what is known now.
    pub fn saw(&mut self, file: File, nonblocking: bool, now: Instant) -> Verdict {
        let known = self.entry(file, now);
        known.looked = Some(now);
        known.verdict = match (known.verdict, nonblocking) {
            (Verdict::Off(reason), _) => Verdict::Off(reason),
            (_, false) => Verdict::Off(Reason::Blocking),
            (Verdict::On, true) => Verdict::On,
            (Verdict::Learning(seen), true) if seen + 1 >= SAMPLES => Verdict::On,
            (Verdict::Learning(seen), true) => Verdict::Learning(seen + 1),
        };
        known.verdict
    }

    /// Something else speaks against redirecting `file`.
    pub fn refuse(&mut self, file: File, reason: Reason, now: Instant) -> Verdict {
        let known = self.entry(file, now);
        if !matches!(known.verdict, Verdict::Off(_)) {
            known.verdict = Verdict::Off(reason);
        }
        known.verdict
    }

    fn entry(&mut self, file: File, now: Instant) -> &mut Known {
        if self.known.len() >= ROOM && !self.known.contains_key(&file) {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.looked.map_or(now, |at| at)).map(|(f, _)| *f);
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
            }
        }
        self.known.entry(file).or_insert(Known { verdict: Verdict::Learning(0), looked: None, searched: None })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use ebpf_common::Asked;

    use super::*;

    const FILE: File = file(2);

    const fn file(inode: u64) -> File {
        File { device: 1, inode, changed: (0, 0) }
    }

    #[test]
    fn three_non_blocking_sockets_are_a_yes_and_one_blocking_a_no_for_good() {
        let now = Instant::now();
        let mut memory = Memory::default();
        assert!(memory.wants(FILE, now));
        assert_eq!(memory.saw(FILE, true, now), Verdict::Learning(1));
        assert_eq!(memory.saw(FILE, true, now), Verdict::Learning(2));
        assert_eq!(memory.saw(FILE, true, now), Verdict::On);
        assert!(!memory.wants(FILE, now), "looked at just now");
        assert!(memory.wants(FILE, now + AGAIN));
        assert_eq!(memory.saw(FILE, false, now + AGAIN), Verdict::Off(Reason::Blocking));
        assert!(!memory.wants(FILE, now + 10 * AGAIN));
        assert_eq!(memory.saw(FILE, true, now), Verdict::Off(Reason::Blocking));
        assert_eq!(memory.refuse(FILE, Reason::Go, now), Verdict::Off(Reason::Blocking), "the first reason stays");
        assert_eq!(memory.verdict(FILE).unwrap().text(), "off: uses blocking sockets");
        assert_eq!(Verdict::Learning(2).text(), "learning (2 of 3 connections seen)");
    }

    #[test]
    fn descriptors_are_looked_through_while_a_program_is_learned_and_now_and_then() {
        let now = Instant::now();
        let mut memory = Memory::default();
        for _ in 0..SAMPLES {
            assert!(memory.searches(FILE, now));
            memory.saw(FILE, true, now);
        }
        assert_eq!(memory.verdict(FILE), Some(Verdict::On));
        assert!(!memory.searches(FILE, now + AGAIN));
        assert!(memory.searches(FILE, now + RINGS_AGAIN));
        assert!(!memory.searches(FILE, now + RINGS_AGAIN + AGAIN));
        assert_eq!(memory.refuse(FILE, Reason::Ring, now), Verdict::Off(Reason::Ring));
        assert!(!memory.searches(FILE, now + 10 * RINGS_AGAIN));
    }

    #[test]
    fn a_new_file_with_an_old_number_is_learned_anew() {
        let now = Instant::now();
        let mut memory = Memory::default();
        memory.saw(FILE, false, now);
        let new = File { changed: (0, 1), ..FILE };
        assert_eq!(memory.verdict(new), None);
        assert_eq!(memory.saw(new, true, now), Verdict::Learning(1));
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut memory = Memory::default();
        for i in 0..ROOM as u64 + 10 {
            memory.saw(file(i), true, now + Duration::from_nanos(i));
        }
        assert_eq!(memory.known.len(), ROOM);
        assert_eq!(memory.verdict(file(0)), None, "the oldest went");
    }

    #[test]
    fn reasons_have_numbers_and_words() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_number(reason as u32), Some(reason));
            assert_eq!(Reason::ALL.iter().filter(|r| r.text() == reason.text()).count(), 1);
        }
        assert_eq!(Reason::from_number(0), None);
        for (asked, reason) in [
            (Asked::Zerocopy, Reason::Zerocopy),
            (Asked::LowWater, Reason::LowWater),
            (Asked::Ulp, Reason::Ulp),
            (Asked::Inquiry, Reason::Inquiry),
        ] {
            assert_eq!(asked as u32, reason as u32, "the kernel half gives the agent's numbers");
        }
    }

    #[test]
    fn the_flags_of_a_live_socket_are_found() {
        let held = |a, b| inode(a, b).unwrap().and_then(|inode| holder(inode).unwrap());
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let look = || is_nonblocking(std::process::id(), local, remote).unwrap();
            assert_eq!(look(), Some(false));
            stream.set_nonblocking(true).unwrap();
            assert_eq!(look(), Some(true));
            assert_eq!(held(local, remote), Some(std::process::id()));
            assert_eq!(held(remote, local), None, "not accepted yet");
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(held(remote, local), Some(std::process::id()));
            drop((stream, accepted));
            assert_eq!(look(), None);
            assert_eq!(held(local, remote), None);
        }
    }

    #[test]
    fn addresses_of_the_kernel_tables() {
        if cfg!(target_endian = "little") {
            assert_eq!(address("0100007F:1F90"), Some("127.0.0.1:8080".parse().unwrap()));
            assert_eq!(
                address("0000000000000000FFFF00000100007F:0050").map(|a| a.ip().to_canonical()),
                Some("127.0.0.1".parse().unwrap())
            );
        }
        for bad in ["", ":", "0100007F", "01:1", "zz00007F:1", "0100007F:zz"] {
            assert_eq!(address(bad), None, "{bad}");
        }
        assert_eq!(flags_of("pos:\t0\nflags:\t02004002\nmnt_id:\t9\n"), Some(0o2004002));
        assert_eq!(flags_of("garbage"), None);
        let any = "0.0.0.0:0".parse().unwrap();
        assert_eq!(inode_of("head\n garbage\n\n", any, any), None);
    }

    #[test]
    fn a_file_is_looked_into() {
        assert_eq!(inspect_elf(&b"#!/bin/sh\n"[..]), Some(Reason::Unreadable));
        assert_eq!(inspect_elf(&b""[..]), Some(Reason::Unreadable));
        assert_eq!(inspect_elf(&b"\x7fELF\x02\x01\x01 cut off"[..]), Some(Reason::Unreadable));
        let (file, path) = executable(std::process::id()).unwrap();
        assert_eq!(file.inode, fs::metadata(&path).unwrap().ino());
        // So that this very program imports it.
        let null = fs::File::open("/dev/null").unwrap();
        crate::sys::socket::splice(&null, &null, 1).unwrap_err();
        assert_eq!(inspect(std::process::id(), &path), Some(Reason::Splice));
        assert_eq!(inspect(std::process::id(), Path::new("/usr/sbin/haproxy")), Some(Reason::Listed));
        assert_eq!(inspect(std::process::id(), Path::new("/usr/sbin/haproxy (deleted)")), Some(Reason::Listed));
        assert_eq!(File { device: rustix::fs::makedev(259, 3), ..FILE }.kernel_device(), 259 << 20 | 3);
    }
}
