//! Datagrams with the address they were sent to, which plain reads do not tell.

use std::{
    io,
    mem::{MaybeUninit, size_of},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd as _},
};

/// Room for one `in_pktinfo` with its header, aligned as headers must be.
type Control = [u64; 8];

/// Has the kernel tell with each datagram the address it was sent to. IPv4.
pub fn tell_destination(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` lives until after the call and has the size that is told.
    let r = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn message(name: &mut libc::sockaddr_in, io: &mut libc::iovec, control: &mut Control, room: usize) -> libc::msghdr {
    // SAFETY: all zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = std::ptr::from_mut(name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    message.msg_iov = io;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = room;
    message
}

fn any() -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    }
}

/// Reads one datagram into `into`: its length, who sent it, and to which address. The socket must be IPv4
/// and have been given to [`tell_destination`]. A datagram longer than `into` is an error.
pub fn receive(socket: impl AsFd, into: &mut [u8]) -> io::Result<(usize, SocketAddrV4, Ipv4Addr)> {
    let mut name = any();
    let mut io = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut control: Control = [0; 8];
    let mut message = message(&mut name, &mut io, &mut control, size_of::<Control>());
    // SAFETY: all that `message` points to lives until the end of this function and has the sizes told.
    let n = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(bad("the datagram is too long"));
    }
    // SAFETY: the kernel filled `message` just now; its first header, if any, lies in `control`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Err(bad("the kernel did not tell the destination"));
    }
    // SAFETY: not null, aligned, inside `control`.
    let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
    if (level, kind) != (libc::IPPROTO_IP, libc::IP_PKTINFO) {
        return Err(bad("the kernel told something else than the destination"));
    }
    // SAFETY: an IP_PKTINFO message carries an `in_pktinfo`, and it was not cut (asked above).
    let info = unsafe { libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().read_unaligned() };
    let from = SocketAddrV4::new(Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)), u16::from_be(name.sin_port));
    Ok((n as usize, from, Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
}

/// Sends one datagram to `to` from the local address `from`, whatever the socket is bound to. IPv4.
pub fn send(socket: impl AsFd, datagram: &[u8], to: SocketAddrV4, from: Ipv4Addr) -> io::Result<()> {
    let mut name = any();
    name.sin_port = to.port().to_be();
    name.sin_addr.s_addr = u32::from(*to.ip()).to_be();
    let mut io = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
    let mut control: Control = [0; 8];
    let size = size_of::<libc::in_pktinfo>() as u32;
    // SAFETY: pure arithmetic.
    let room = unsafe { libc::CMSG_SPACE(size) } as usize;
    let message = message(&mut name, &mut io, &mut control, room);
    let source = libc::in_addr { s_addr: u32::from(from).to_be() };
    let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: libc::in_addr { s_addr: 0 } };
    // SAFETY: `control` is aligned and has `room` for one header and an `in_pktinfo`.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::IPPROTO_IP;
        (*header).cmsg_type = libc::IP_PKTINFO;
        (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
        libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().write_unaligned(info);
    }
    // SAFETY: all that `message` points to lives until the end of this function and has the sizes told; the
    // datagram is only read.
    let n = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_datagram_is_answered_from_where_it_was_sent_to() {
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        tell_destination(&server).unwrap();
        let port = server.local_addr().unwrap().port();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"question", ("127.83.1.2", port)).unwrap();
        let mut buffer = [0; 16];
        let (n, from, to) = receive(&server, &mut buffer).unwrap();
        assert_eq!((&buffer[..n], to), (&b"question"[..], Ipv4Addr::new(127, 83, 1, 2)));
        assert_eq!(std::net::SocketAddr::V4(from), client.local_addr().unwrap());
        send(&server, b"answer", from, to).unwrap();
        let (n, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..n], from), (&b"answer"[..], format!("127.83.1.2:{port}").parse().unwrap()));
        client.send_to(&[0; 17], ("127.0.0.1", port)).unwrap();
        assert!(receive(&server, &mut buffer).is_err(), "longer than the buffer");
    }
}
