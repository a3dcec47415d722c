//! TCP sockets of this network namespace as the kernel lists them (`NETLINK_SOCK_DIAG`), and ending one.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const TCP: u8 = 6;
const WITH_INFO: u8 = 1 << 1;
const INFO: u16 = 2;
const CGROUP: u16 = 21;
const LISTEN: u32 = 1 << 10;
/// Established, or closed by the other end only.
const CARRYING: u32 = 1 << 1 | 1 << 8;
/// Every state but listening, closed, and waiting for late segments, which has no socket of its own.
const NOT_OVER: u32 = CARRYING | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 12;

const HEADER: usize = 16;
const ID: usize = 48;
const MESSAGE: usize = 72;
/// Where a `struct inet_diag_msg` has the inode.
const INODE: usize = 68;
/// And the user.
const UID: usize = 64;

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Its cookie, the number that programs see.
    pub cookie: u64,
    /// This end.
    pub local: SocketAddr,
    /// Payload that the other end acknowledged; SYN counted as a byte.
    pub acked: u64,
    /// Payload that came.
    pub received: u64,
    /// Bytes that wait for the program to read, or for the other end to acknowledge.
    pub queued: u64,
    /// Time since the last byte left.
    pub last_sent: Duration,
    /// Time since the last byte came.
    pub last_received: Duration,
    /// `struct inet_diag_sockid` with the family before it: what names it to the kernel.
    name: (u8, [u8; ID]),
}

/// A socket that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Where, IPv4 in its plain form.
    pub local: SocketAddr,
    /// Number of the control group (v2) that it was made in; `None` before Linux 5.8.
    pub cgroup: Option<u64>,
}

/// A conversation with the kernel about sockets.
#[derive(Debug)]
pub struct Diag(OwnedFd);

impl Diag {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
        Ok(Self(socket))
    }

    /// All connections that could carry data. Blocks for as long as the kernel needs to list them, some
    /// milliseconds for ten thousand.
    pub fn connections(&self) -> io::Result<Vec<Tcp>> {
        let mut all = Vec::new();
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            let family = family.as_raw() as u8;
            self.ask(BY_FAMILY, REQUEST | DUMP, family, CARRYING, &[0; ID])?;
            self.answers(|message| all.extend(parse(message)))?;
        }
        Ok(all)
    }

    /// Cookies of all sockets that are connected, or begin or end a connection.
    pub fn cookies(&self) -> io::Result<Vec<u64>> {
        let mut all = Vec::new();
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            self.ask(BY_FAMILY, REQUEST | DUMP, family.as_raw() as u8, NOT_OVER, &[0; ID])?;
            self.answers(|message| {
                if message.len() >= MESSAGE {
                    all.push(cookie(&message[4..4 + ID]));
                }
            })?;
        }
        Ok(all)
    }

    /// Sockets that listen on `port` of any address. Blocks for as long as the kernel needs to list them.
    pub fn listeners(&self, port: u16) -> io::Result<Vec<Listening>> {
        let mut all = Vec::new();
        let mut id = [0; ID];
        id[..2].copy_from_slice(&port.to_be_bytes());
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            self.ask(BY_FAMILY, REQUEST | DUMP, family.as_raw() as u8, LISTEN, &id)?;
            self.answers(|message| all.extend(listening(message)))?;
        }
        Ok(all)
    }

    /// Number of the inode of the connected socket with these ends; none when there is no such socket, or one
    /// that no process holds. Takes microseconds however many sockets there are.
    pub fn inode(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
        let found = self.find(local, remote, INODE)?;
        Ok(found.filter(|inode| *inode != 0).map(u64::from))
    }

    /// User of the connected socket with these ends; none when there is no such socket. As fast.
    pub fn uid(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
        self.find(local, remote, UID)
    }

    /// The word at `at` of what the kernel says of the socket with these ends.
    fn find(&self, local: SocketAddr, remote: SocketAddr, at: usize) -> io::Result<Option<u32>> {
        let (local_ip, remote_ip) = (local.ip().to_canonical(), remote.ip().to_canonical());
        let mut id = [0; ID];
        id[..2].copy_from_slice(&local.port().to_be_bytes());
        id[2..4].copy_from_slice(&remote.port().to_be_bytes());
        for (ip, from) in [(local_ip, 4), (remote_ip, 20)] {
            match ip {
                IpAddr::V4(v4) => id[from..from + 4].copy_from_slice(&v4.octets()),
                IpAddr::V6(v6) => id[from..from + 16].copy_from_slice(&v6.octets()),
            }
        }
        // Whichever cookie it has.
        id[40..].fill(0xff);
        let family = if local_ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        self.ask(BY_FAMILY, REQUEST | ACK, family.as_raw() as u8, NOT_OVER, &id)?;
        let mut found = None;
        match self.answers(|message| found = Some(word(message, at))) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
            Ok(()) => Ok(found),
        }
    }

    /// Ends a connection at once: the program's next call fails with ECONNABORTED, the other end gets a
    /// reset. Not an error when it has ended meanwhile. Needs CAP_NET_ADMIN and `CONFIG_INET_DIAG_DESTROY`
    /// (EOPNOTSUPP without).
    pub fn destroy(&self, tcp: &Tcp) -> io::Result<()> {
        let (family, id) = &tcp.name;
        self.ask(DESTROY, REQUEST | ACK, *family, CARRYING, id)?;
        match self.answers(|_| {}) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn ask(&self, kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + 8 + ID);
        message.extend((HEADER as u32 + 8 + ID as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        let ext = if kind == BY_FAMILY && states == CARRYING { WITH_INFO } else { 0 };
        message.extend([family, TCP, ext, 0]);
        message.extend(states.to_ne_bytes());
        message.extend(id);
        send(&self.0, &message, SendFlags::empty())?;
        Ok(())
    }

    /// Reads until the kernel says that it is done.
    fn answers(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let (n, _) = recv(&self.0, &mut buffer, RecvFlags::empty())?;
            let mut rest = &buffer[..n];
            while rest.len() >= HEADER {
                let len = word(rest, 0) as usize;
                let Some(message) = rest.get(..len).filter(|m| m.len() >= HEADER) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                match half(message, 4) {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = message.get(HEADER..HEADER + 4).map_or(0, |_| word(message, HEADER) as i32);
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(&message[HEADER..]),
                }
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]))
}

/// The cookie in a `struct inet_diag_sockid`.
fn cookie(id: &[u8]) -> u64 {
    u64::from(word(id, 44)) << 32 | u64::from(word(id, 40))
}

/// Reads `struct inet_diag_msg` and the attributes behind it.
fn parse(message: &[u8]) -> Option<Tcp> {
    let id: [u8; ID] = message.get(4..4 + ID)?.try_into().ok()?;
    // `struct tcp_info`, which only ever grows at its end.
    let info = attribute(message, INFO)?;
    let ago = |at| Duration::from_millis(word(info, at).into());
    let long = |at| info.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    Some(Tcp {
        local: source(message[0], &id)?,
        acked: long(120),
        received: long(128),
        cookie: cookie(&id),
        queued: u64::from(word(message, 56)) + u64::from(word(message, 60)),
        last_sent: ago(44),
        last_received: ago(52),
        name: (message[0], id),
    })
}

fn listening(message: &[u8]) -> Option<Listening> {
    let id: [u8; ID] = message.get(4..4 + ID)?.try_into().ok()?;
    let cgroup =
        attribute(message, CGROUP).and_then(|value| Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?)));
    Some(Listening { local: source(message[0], &id)?, cgroup })
}

/// The attribute with this number behind a `struct inet_diag_msg`.
fn attribute(message: &[u8], number: u16) -> Option<&[u8]> {
    let mut attributes = message.get(MESSAGE..)?;
    while attributes.len() >= 4 {
        let len = usize::from(half(attributes, 0));
        if half(attributes, 2) == number {
            return attributes.get(4..len);
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// This end's address and port in a `struct inet_diag_sockid`.
fn source(family: u8, id: &[u8; ID]) -> Option<SocketAddr> {
    let source: [u8; 16] = id[4..20].try_into().ok()?;
    let ip = if family == AddressFamily::INET.as_raw() as u8 {
        IpAddr::V4(Ipv4Addr::new(source[0], source[1], source[2], source[3]))
    } else {
        Ipv6Addr::from(source).to_canonical()
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([id[0], id[1]])))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn lists_connections_and_what_waits_in_them() {
        let diag = Diag::open().unwrap();
        let before: Vec<u64> = diag.connections().unwrap().into_iter().map(|c| c.cookie).collect();
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(at) else { continue };
            let mut a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut b, _) = listener.accept().unwrap();
            a.write_all(&[0; 777]).unwrap();
            b.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            b.peek(&mut [0]).unwrap();
            let now = diag.connections().unwrap();
            let new: Vec<_> = now.iter().filter(|c| !before.contains(&c.cookie)).collect();
            assert!(new.iter().any(|c| c.queued == 777 && c.received == 777), "{new:?}");
            let cookies = diag.cookies().unwrap();
            assert!(new.iter().all(|c| cookies.contains(&c.cookie)));
            assert!(new.iter().any(|c| c.local == a.local_addr().unwrap()), "{new:?}");
            b.read_exact(&mut [0; 777]).unwrap();
        }
    }

    #[test]
    fn lists_who_listens_on_a_port() {
        let diag = Diag::open().unwrap();
        for at in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(at) else { continue };
            let at = listener.local_addr().unwrap();
            let found = diag.listeners(at.port()).unwrap();
            let this = found.iter().find(|l| l.local.ip() == at.ip().to_canonical()).unwrap();
            assert!(this.cgroup.is_some() && this.local.port() == at.port(), "{found:?}");
        }
    }

    #[test]
    fn a_connection_is_found_by_its_ends() {
        let diag = Diag::open().unwrap();
        for at in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let Ok(listener) = TcpListener::bind(at) else { continue };
            let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (local, remote) = (a.local_addr().unwrap(), a.peer_addr().unwrap());
            let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&a))).unwrap();
            let found = diag.inode(local, remote).unwrap().unwrap();
            assert_eq!(link.to_string_lossy(), format!("socket:[{found}]"));
            // Not accepted yet: nobody's.
            assert_eq!(diag.inode(remote, local).unwrap(), None);
            drop(a);
        }
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(diag.inode(nowhere, nowhere).unwrap(), None);
    }

    #[test]
    fn noise_is_no_connection() {
        assert_eq!((listening(&[0; 40]), listening(&[0xff; 100]).and_then(|l| l.cgroup)), (None, None));
        assert_eq!(parse(&[0; 40]), None);
        assert_eq!(parse(&[0; 100]), None);
        assert_eq!(parse(&[0xff; 100]), None);
    }
}
