//! Ports and network namespaces.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    ops::Range,
    os::fd::AsFd as _,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{Cmd, temp::serial};

/// A TCP port that nobody uses and the kernel will not give to outgoing connections.
///
/// For programs that must be told their port; listeners of our own ask for port 0. All tests of the host draw from one
/// sequence, so that a port is not given again before thousands of others were: agents dial endpoints that have gone
/// for as long as they live, and would call at whoever listens there next.
pub fn free_port() -> u16 {
    // Below the usual ephemeral range, which begins at 32768.
    const RANGE: Range<u16> = 16_000..32_000;
    let path = std::env::temp_dir().join(format!("sockmesh-test-port-{}", rustix::process::getuid().as_raw()));
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    file.lock().unwrap();
    let mut last = String::new();
    file.read_to_string(&mut last).unwrap();
    // A first file, or one that was cut off, begins anew.
    let mut port = last.trim().parse().unwrap_or(RANGE.end);
    let mut ports = RANGE.map(|_| {
        port = if RANGE.contains(&(port + 1)) { port + 1 } else { RANGE.start };
        port
    });
    let free = ports.find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok());
    let free = free.unwrap_or_else(|| panic!("no free port in {RANGE:?}"));
    file.rewind().unwrap();
    write!(file, "{free:5}").unwrap();
    free
}

/// `127.0.0.1` with a [`free_port`].
pub fn free_addr() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// A network namespace with one link to ours; removed on drop.
#[derive(Debug)]
pub struct Net {
    name: String,
    here: Ipv4Addr,
    there: Ipv4Addr,
}

impl Net {
    /// Makes one with loopback and the link up. Needs root.
    pub fn new() -> Self {
        let (pid, n) = (std::process::id(), serial());
        let name = format!("sm{}n{n}", pid % 100_000);
        // 198.18.0.0/15 is set aside for tests of network equipment (RFC 2544).
        let ip = |last| Ipv4Addr::new(198, 18, (pid % 251) as u8, (n % 63 * 4) as u8 + last);
        let net = Self { name, here: ip(1), there: ip(2) };
        let (ns, inner, outer) = (&net.name, format!("i{}", net.name), format!("o{}", net.name));
        let (here, there) = (net.here, net.there);
        ip_do(&format!("netns add {ns}"));
        ip_do(&format!("link add {outer} type veth peer name {inner} netns {ns}"));
        ip_do(&format!("addr add {here}/30 dev {outer}"));
        ip_do(&format!("link set {outer} up"));
        ip_do(&format!("-n {ns} addr add {there}/30 dev {inner}"));
        ip_do(&format!("-n {ns} link set {inner} up"));
        ip_do(&format!("-n {ns} link set lo up"));
        net
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves this thread there, with every program and thread it starts from now on, until the guard is dropped.
    pub fn enter(&self) -> Inside {
        let back = File::open("/proc/thread-self/ns/net").unwrap();
        join(&File::open(format!("/run/netns/{}", self.name)).unwrap());
        Inside { back, only_here: PhantomData }
    }

    /// The address at our end of the link.
    pub fn here(&self) -> IpAddr {
        self.here.into()
    }

    /// The address at the far end.
    pub fn there(&self) -> IpAddr {
        self.there.into()
    }

    /// Gives the link IPv6 addresses too; returns the one at the far end.
    pub fn add_ipv6(&self) -> IpAddr {
        let (ns, here, there) = (&self.name, self.ip6(1), self.ip6(2));
        // At once, without asking the link whether somebody has them.
        ip_do(&format!("addr add {here}/64 dev o{ns} nodad"));
        ip_do(&format!("-n {ns} addr add {there}/64 dev i{ns} nodad"));
        there.into()
    }

    /// Our end's address after [`Net::add_ipv6`].
    pub fn here6(&self) -> IpAddr {
        self.ip6(1).into()
    }

    /// Unique local addresses (RFC 4193), one network for each link.
    fn ip6(&self, last: u16) -> Ipv6Addr {
        let [.., c, d] = self.here.octets();
        Ipv6Addr::new(0xfd00, 0x5eed, std::process::id() as u16, u16::from_be_bytes([c, d]), 0, 0, 0, last)
    }

    /// From now on nothing comes back from there: no answer, no refusal.
    pub fn black_hole(&self) {
        ip_do(&format!("-n {} route add blackhole {}/32", self.name, self.here));
    }

    /// Undoes [`Net::black_hole`].
    pub fn heal(&self) {
        ip_do(&format!("-n {} route del blackhole {}/32", self.name, self.here));
    }
}

/// The thread is in another network namespace; see [`Net::enter`].
#[derive(Debug)]
pub struct Inside {
    back: File,
    /// Another thread would be sent there by the drop.
    only_here: PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        join(&self.back);
    }
}

fn join(namespace: &File) {
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind).expect("root may enter namespaces");
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

fn ip_do(what: &str) {
    Cmd::line(&format!("ip {what}")).run().ok();
}

impl Drop for Net {
    fn drop(&mut self) {
        let pids = Cmd::line(&format!("ip netns pids {}", self.name)).run().out;
        for pid in pids.lines().filter_map(|l| Pid::from_raw(l.trim().parse().ok()?)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        // Takes the link with it.
        let _ = Cmd::line(&format!("ip netns del {}", self.name)).run();
    }
}
