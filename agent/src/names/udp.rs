//! Questions in datagrams.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use ebpf_common::dns::{number_of, number6};
use tokio::{io::Interest, net::UdpSocket, task::JoinSet, time};

use super::{
    LINGER, PATIENCE, Server,
    answer::{self, Transport},
    resolver,
};
use crate::{drain::Drain, sys};

/// Questions that wait for their resolvers at once, per socket; further ones are dropped and counted, and
/// their programs ask again.
const PENDING: usize = 1024;
/// Longest datagram.
const DATAGRAM: usize = 65_535;

/// Whom to answer, and as whom.
#[derive(Clone, Copy)]
enum Back {
    /// The program, and the address that stands for its resolver.
    V4(SocketAddrV4, Ipv4Addr),
    /// The program; the socket itself stands for the resolver.
    Socket(SocketAddr),
}

/// Takes questions of IPv4 resolvers: the address a question was sent to tells which one.
pub(super) async fn serve4(server: Arc<Server>, socket: UdpSocket, drain: Drain) {
    let receive = |socket: &UdpSocket, buffer: &mut [u8]| {
        let (n, from, to) = sys::udp::receive(socket, buffer)?;
        Ok((n, number_of(to.octets()), Back::V4(from, to)))
    };
    serve(server, socket, drain, receive).await;
}

/// Takes questions of the IPv6 resolver at `place` of the table of ports.
pub(super) async fn serve6(server: Arc<Server>, socket: UdpSocket, place: usize, drain: Drain) {
    let receive = move |socket: &UdpSocket, buffer: &mut [u8]| {
        let (n, _, from) = rustix::net::recvfrom(socket, &mut *buffer, rustix::net::RecvFlags::empty())?;
        let from = from.and_then(|from| SocketAddr::try_from(from).ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok((n, Some(number6(place)), Back::Socket(from)))
    };
    serve(server, socket, drain, receive).await;
}

async fn serve(
    server: Arc<Server>,
    socket: UdpSocket,
    mut drain: Drain,
    receive: impl Fn(&UdpSocket, &mut [u8]) -> io::Result<(usize, Option<u32>, Back)>,
) {
    let socket = Arc::new(socket);
    let mut forced = drain.clone();
    let mut pending = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    let ended = async {
        drain.graceful().await;
        time::sleep(LINGER).await;
    };
    tokio::pin!(ended);
    loop {
        let received = tokio::select! {
            () = &mut ended => break,
            received = socket.async_io(Interest::READABLE, || receive(&socket, &mut buffer)) => received,
            Some(_) = pending.join_next() => continue,
        };
        match received {
            Ok((n, number, back)) => question(&server, &socket, &buffer[..n], number, back, &mut pending),
            // What a datagram sent before came back with, or one that is too long: no reason to stop.
            Err(error) => {
                tracing::debug!(%error, "a question could not be read");
                if sys::is_shortage(&error) {
                    time::sleep(LINGER).await;
                }
            }
        }
    }
    let finish = async { while pending.join_next().await.is_some() {} };
    tokio::select! {
        () = finish => {}
        () = forced.forced() => {}
    }
}

fn question(
    server: &Arc<Server>,
    socket: &Arc<UdpSocket>,
    question: &[u8],
    number: Option<u32>,
    back: Back,
    pending: &mut JoinSet<()>,
) {
    // Someone who talks to the socket without having been brought here.
    let Some(ip) = number.and_then(|number| server.capture.resolver(number)) else { return };
    server.counters.names_udp.fetch_add(1, Relaxed);
    if let Some(answer) = answer::answer(&server.names.zone(), question, Transport::Udp) {
        server.counters.names_answered.fetch_add(1, Relaxed);
        send(socket, &answer, back);
    } else if pending.len() < PENDING {
        server.counters.names_forwarded.fetch_add(1, Relaxed);
        pending.spawn(pass_on(server.clone(), socket.clone(), question.to_vec(), ip, back));
    } else {
        server.counters.names_failed.fetch_add(1, Relaxed);
    }
}

async fn pass_on(server: Arc<Server>, socket: Arc<UdpSocket>, question: Vec<u8>, ip: IpAddr, back: Back) {
    match time::timeout(PATIENCE, ask(&server, resolver(ip), &question)).await {
        Ok(Ok(answer)) => return send(&socket, &answer, back),
        Ok(Err(error)) => {
            // Asked directly, the program would see at once that nobody is there.
            if let Some(failure) = answer::failure(&question) {
                send(&socket, &failure, back);
            }
            tracing::debug!(resolver = %ip, %error, "a question could not be passed on");
        }
        Err(_) => tracing::debug!(resolver = %ip, "no answer in time"),
    }
    server.counters.names_failed.fetch_add(1, Relaxed);
}

/// Asks a resolver from a port of its own, which the kernel picks at random, and takes its answer as it is.
async fn ask(server: &Server, to: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let socket = server.socket(to, socket2::Type::DGRAM).await?;
    socket.connect(&to.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.send(question).await?;
    loop {
        // A resolver that is not there is told as an error, and as that alone: nothing to read.
        let answer = socket.async_io(Interest::READABLE | Interest::ERROR, || take(&socket)).await?;
        // Only an answer to this very question is passed on.
        if answer.get(..2) == question.get(..2) {
            return Ok(answer);
        }
    }
}

/// Reads a datagram of any size. The buffer is on the stack of a moment, so that waiting costs none.
fn take(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = [0; DATAGRAM];
    let (n, _) = rustix::net::recv(socket, &mut buffer, rustix::net::RecvFlags::empty())?;
    Ok(buffer[..n].to_vec())
}

/// Sends an answer; a full buffer loses it, as a network may.
fn send(socket: &UdpSocket, answer: &[u8], back: Back) {
    let sent = match back {
        Back::V4(to, from) => sys::udp::send(socket, answer, to, from),
        Back::Socket(to) => socket2::SockRef::from(socket).send_to(answer, &to.into()).map(drop),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "an answer could not be sent");
    }
}
