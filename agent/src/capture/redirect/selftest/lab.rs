//! Where the self-test works: pairs of loopback connections, a map and a program of its own.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use aya::{
    maps::{Array, MapData, MapError, SockMap},
    programs::SkMsg,
};
use ebpf_common::{Offsets, SELFTEST_MARK, map, program};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
};

use super::Way;
use crate::capture::ebpf;

const READER: u32 = 0;
const SENDER: u32 = 1;
/// Nothing here takes longer unless it hangs.
const LIMIT: Duration = Duration::from_millis(500);

/// Everything that the experiments need.
pub(super) struct Lab {
    sockets: SockMap<MapData>,
    switch: Array<MapData, u64>,
    listener: TcpListener,
    // Owns the program and its attachment to the map.
    _ebpf: aya::Ebpf,
}

/// A connection of which both ends are here.
pub(super) struct Pair {
    pub(super) sender: TcpStream,
    pub(super) reader: TcpStream,
}

impl Lab {
    /// Loads the program. An error names what is missing.
    pub(super) fn open() -> anyhow::Result<Self> {
        let Some(object) = ebpf::OBJECT else {
            bail!("this build has no eBPF object: run `cargo xtask build`");
        };
        if let Some(missing) = ebpf::missing_rights() {
            bail!("this process lacks {missing}: run it as root, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
        }
        let mut loaded = ebpf::probe(object, &Offsets::default())?;
        let take = |loaded: &mut aya::Ebpf, name: &str| {
            loaded.take_map(name).with_context(|| format!("the eBPF object has no map {name}"))
        };
        let sockets = SockMap::try_from(take(&mut loaded, map::SELFTEST_SOCKETS)?)?;
        let switch = Array::try_from(take(&mut loaded, map::SELFTEST_SWITCH)?)?;
        let program: &mut SkMsg = loaded
            .program_mut(program::SELFTEST)
            .with_context(|| format!("the eBPF object has no program {}", program::SELFTEST))?
            .try_into()?;
        program.load().map_err(|e| ebpf::refusal(program::SELFTEST, &e))?;
        program.attach(sockets.fd()).context("the kernel attaches no sk_msg program to a socket map")?;
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        listener.set_mark(SELFTEST_MARK)?;
        listener.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        listener.listen(8)?;
        Ok(Self { sockets, switch, listener: listener.into(), _ebpf: loaded })
    }

    /// A fresh connection; neither end is in the map.
    pub(super) fn pair(&mut self) -> anyhow::Result<Pair> {
        self.redirect(false)?;
        let to = self.listener.local_addr()?;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_mark(SELFTEST_MARK)?;
        socket.connect(&to.into()).context("cannot connect on 127.0.0.1")?;
        let sender = TcpStream::from(socket);
        let own = sender.local_addr()?;
        // Anybody may dial a port of loopback: only ours is wanted.
        let reader = loop {
            let (reader, from) = self.listener.accept()?;
            if from == own {
                break reader;
            }
        };
        for end in [&sender, &reader] {
            end.set_nodelay(true)?;
            // Whatever goes wrong, nothing here hangs.
            end.set_read_timeout(Some(LIMIT))?;
            end.set_write_timeout(Some(LIMIT))?;
        }
        Ok(Pair { sender, reader })
    }

    /// A connection over which bytes go as `way` says from the first one on.
    pub(super) fn joined(&mut self, way: Way) -> anyhow::Result<Pair> {
        let pair = self.pair()?;
        if way == Way::Redirect {
            self.insert_reader(&pair)?;
            self.insert_sender(&pair)?;
            self.redirect(true)?;
        }
        Ok(pair)
    }

    /// Puts the reading end into the map.
    pub(super) fn insert_reader(&mut self, pair: &Pair) -> anyhow::Result<()> {
        self.sockets.set(READER, &pair.reader, 0).map_err(busy)
    }

    /// Puts the sending end into the map.
    pub(super) fn insert_sender(&mut self, pair: &Pair) -> anyhow::Result<()> {
        self.sockets.set(SENDER, &pair.sender, 0).map_err(busy)
    }

    /// Takes the reading end out of the map.
    pub(super) fn remove_reader(&mut self) -> anyhow::Result<()> {
        Ok(self.sockets.clear_index(&READER)?)
    }

    /// Whether bytes of a sender in the map go straight to the reader from now on, or by TCP.
    pub(super) fn redirect(&mut self, on: bool) -> anyhow::Result<()> {
        Ok(self.switch.set(0, u64::from(on), 0)?)
    }
}

/// Names the likely reason for which a socket cannot enter the map.
fn busy(error: MapError) -> anyhow::Error {
    match &error {
        MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::EBUSY) => anyhow::anyhow!(
            "another program owns the sockets of this process (EBUSY): a socket can be in the map of one sk_msg \
             program only. See who with `bpftool prog list`"
        ),
        _ => anyhow::Error::from(error).context("the kernel takes no socket into a socket map"),
    }
}

/// Waits until `socket` shows one of `events`; whether it did within `limit`.
pub(super) fn shows(socket: &TcpStream, events: PollFlags, limit: Duration) -> io::Result<bool> {
    let time = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    let fds = &mut [PollFd::new(socket, events)];
    Ok(poll(fds, Some(&time))? > 0 && fds[0].revents().intersects(events))
}

/// Waits until there is something to read.
pub(super) fn readable(socket: &TcpStream) -> io::Result<bool> {
    shows(socket, PollFlags::IN, LIMIT)
}

/// Looks again and again until `done` or the time is over; whether it was done.
pub(super) fn spin(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if done() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// A pipe's two ends: to read, to write.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    Ok((reader.into(), writer.into()))
}

/// A socket that resets its connection when it is closed.
pub(super) fn reset_on_close(socket: &TcpStream) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(socket, Some(Duration::ZERO))?)
}
