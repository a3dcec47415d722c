//! [`Stream`]: a TCP connection of the agent whose reader may get its bytes past TCP.
//!
//! Where bytes are redirected from socket to socket the kernel holds no sender back. This does: after every
//! [`CHECK_BYTES`] written it asks how much the other end has not read, and waits while that is above
//! [`BOUND_BYTES`]. Where nothing can be redirected it is the plain connection.

use std::{
    cell::RefCell,
    fmt, io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ebpf_common::SocketKey;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{Instant, Sleep},
};

/// After so many bytes the reader's unread ones are asked for.
pub const CHECK_BYTES: usize = 256 * 1024;
/// A message costs the kernel about this many bytes however short it is, and counts as at least so many.
pub const MESSAGE_BYTES: usize = 1024;
/// Unread bytes in the reader above which the writer waits.
pub const BOUND_BYTES: u32 = 2 * 1024 * 1024;
/// First wait; each one after it is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(1);
/// How long a connection is good for that was dialled before the program there was known.
const UNDECIDED: Duration = Duration::from_secs(1);
/// Longest wait, and so the longest time until an error of the socket is noticed meanwhile.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// Room lent by [`with_scratch`].
pub const SCRATCH_BYTES: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// Lends this thread's buffer for what is read and used up at once: a connection that waits holds none. `use_it`
/// must not ask for it again.
pub fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| use_it(scratch))
}

/// Knows of connections whose bytes may go past TCP.
pub trait Meter: Send + Sync + 'static {
    /// The key of `io`'s own end.
    fn key(&self, io: &TcpStream) -> io::Result<SocketKey>;

    /// Bytes that the end `reader` has not read, a message counting as at least [`MESSAGE_BYTES`]; none when
    /// nothing is redirected to it.
    fn unread(&self, reader: &SocketKey) -> Option<u32>;

    /// The agent has dialled `io`. Told once for each connection, on the data path: must not wait. Says whether a
    /// connection to the same place that is dialled a while later may be redirected where this one is not, because
    /// the program there is being looked at.
    fn dialled(&self, io: &TcpStream) -> bool;
}

/// The agent's end of a connection with a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its key in the kernel half's tables.
    pub key: SocketKey,
    /// Flags of the kernel half's [`Origin`](ebpf_common::Origin).
    pub flags: u32,
}

/// What the capture of this host wants of the agent's own sockets. Cheap to clone.
#[derive(Clone, Default)]
pub struct OwnSockets {
    /// Mark by which the kernel half recognises them; `None` without the right to set one.
    pub mark: Option<u32>,
    /// To be asked about readers; `None` where nothing can be redirected.
    pub meter: Option<Arc<dyn Meter>>,
}

impl OwnSockets {
    /// Wraps a connection that was accepted.
    pub fn accepted(&self, io: TcpStream) -> Stream {
        Stream::new(io, self.meter.as_ref())
    }

    /// Wraps a connection that the agent has dialled.
    pub fn dialled(&self, io: TcpStream) -> Stream {
        let undecided = self.meter.as_ref().is_some_and(|meter| meter.dialled(&io));
        let mut stream = Stream::new(io, self.meter.as_ref());
        if let Some(gate) = stream.gate.as_mut().filter(|_| undecided) {
            gate.good_until = Some(Instant::now() + UNDECIDED);
        }
        stream
    }
}

impl fmt::Debug for OwnSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnSockets").field("mark", &self.mark).finish_non_exhaustive()
    }
}

/// A connection, see the module.
pub struct Stream {
    io: TcpStream,
    gate: Option<Box<Gate>>,
}

impl Stream {
    /// Wraps `io`; without a meter it is just that.
    pub fn new(io: TcpStream, meter: Option<&Arc<dyn Meter>>) -> Self {
        let gate = meter.map(|m| Box::new(Gate::new(m.clone())));
        Self { io, gate }
    }

    /// The socket, for its options, addresses and readiness.
    pub const fn socket(&self) -> &TcpStream {
        &self.io
    }

    /// Whoever keeps it for further calls should rather dial a new one from then on, which may be redirected: until
    /// the program at the other end is known, what is dialled goes by TCP for life.
    pub fn good_until(&self) -> Option<Instant> {
        self.gate.as_ref().and_then(|gate| gate.good_until)
    }

    /// Both directions, each usable by itself.
    pub fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        let (read, write) = self.io.split();
        let gate = self.gate.as_deref_mut();
        (Reader { io: read, two_queues: gate.is_some() }, Writer { io: write, gate })
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.io.fmt(f)
    }
}

impl From<TcpStream> for Stream {
    fn from(io: TcpStream) -> Self {
        Self { io, gate: None }
    }
}

/// A connection over a unix socket in the place of one over TCP. Reading, writing and ending are the same system
/// calls for both; addresses and the options of TCP fail.
///
/// # Errors
/// When the runtime cannot watch the socket.
pub fn unix(io: tokio::net::UnixStream) -> io::Result<TcpStream> {
    let fd = OwnedFd::from(io.into_std()?);
    TcpStream::from_std(std::net::TcpStream::from(fd))
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, gate } = self.get_mut();
        match gate {
            None => Pin::new(io).poll_read(cx, buf),
            Some(_) => read_to_the_end(io, cx, buf),
        }
    }
}

/// Reads; pending only after the kernel has said that there is nothing.
///
/// tokio takes a read that does not fill the buffer for the last there is, and waits for the kernel to tell of more.
/// Redirected bytes and those that came by TCP are in two queues, and one read takes from one of them only: what is
/// in the other was told of already.
fn read_to_the_end(io: &TcpStream, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    loop {
        ready!(io.poll_read_ready(cx))?;
        match io.try_read(buf.initialize_unfilled()) {
            Ok(n) => {
                buf.advance(n);
                return Poll::Ready(Ok(()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, gate } = self.get_mut();
        ready!(pass(gate.as_deref_mut(), io, cx))?;
        let n = ready!(Pin::new(io).poll_write(cx, data))?;
        Poll::Ready(Ok(wrote(gate.as_deref_mut(), n)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, gate } = self.get_mut();
        ready!(pass(gate.as_deref_mut(), io, cx))?;
        let n = ready!(Pin::new(io).poll_write_vectored(cx, data))?;
        Poll::Ready(Ok(wrote(gate.as_deref_mut(), n)))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The reading half of a [`Stream`].
pub struct Reader<'a> {
    io: ReadHalf<'a>,
    two_queues: bool,
}

impl Reader<'_> {
    /// Reads what is there. [`io::ErrorKind::WouldBlock`] when that is nothing.
    pub fn try_read_buf(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        self.io.try_read_buf(buffer)
    }

    /// Waits until the connection is reset; needs nobody to read. Cancel safe.
    pub async fn failed(&self) -> io::Error {
        match self.io.ready(Interest::ERROR).await {
            Ok(_) => self.io.as_ref().take_error().ok().flatten().unwrap_or(io::ErrorKind::ConnectionReset.into()),
            Err(error) => error,
        }
    }
}

impl AsyncRead for Reader<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, two_queues } = self.get_mut();
        if *two_queues { read_to_the_end(io.as_ref(), cx, buf) } else { Pin::new(io).poll_read(cx, buf) }
    }
}

/// The writing half of a [`Stream`].
pub struct Writer<'a> {
    io: WriteHalf<'a>,
    gate: Option<&'a mut Gate>,
}

impl AsyncWrite for Writer<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, gate } = self.get_mut();
        ready!(pass(gate.as_deref_mut(), io.as_ref(), cx))?;
        let n = ready!(Pin::new(io).poll_write(cx, data))?;
        Poll::Ready(Ok(wrote(gate.as_deref_mut(), n)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

struct Gate {
    meter: Arc<dyn Meter>,
    /// The other end, once it was asked for.
    reader: Option<SocketKey>,
    /// Bytes until the next question.
    left: usize,
    wait: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    good_until: Option<Instant>,
}

impl Gate {
    const fn new(meter: Arc<dyn Meter>) -> Self {
        Self { meter, reader: None, left: CHECK_BYTES, wait: FIRST_WAIT, timer: None, good_until: None }
    }

    fn reader(&mut self, io: &TcpStream) -> io::Result<SocketKey> {
        match self.reader {
            Some(reader) => Ok(reader),
            None => Ok(*self.reader.insert(self.meter.key(io)?.flipped())),
        }
    }
}

/// Ready when the next bytes may be written, or with the error that the socket has got meanwhile.
fn pass(gate: Option<&mut Gate>, io: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let Some(gate) = gate else { return Poll::Ready(Ok(())) };
    if gate.left > 0 {
        return Poll::Ready(Ok(()));
    }
    loop {
        if let Some(timer) = &mut gate.timer {
            ready!(timer.as_mut().poll(cx));
            if let Some(error) = io.take_error()? {
                return Poll::Ready(Err(error));
            }
        }
        // A socket that is not connected any more has no other end; writing tells what happened to it.
        let unread = gate.reader(io).ok().and_then(|reader| gate.meter.unread(&reader));
        if unread.is_none_or(|unread| unread <= BOUND_BYTES) {
            gate.left = CHECK_BYTES;
            gate.wait = FIRST_WAIT;
            gate.timer = None;
            return Poll::Ready(Ok(()));
        }
        let next = Instant::now() + gate.wait;
        gate.wait = (gate.wait * 2).min(LONGEST_WAIT);
        match &mut gate.timer {
            Some(timer) => timer.as_mut().reset(next),
            none => *none = Some(Box::pin(tokio::time::sleep_until(next))),
        }
    }
}

fn wrote(gate: Option<&mut Gate>, n: usize) -> usize {
    if let Some(gate) = gate {
        gate.left = gate.left.saturating_sub(n.max(MESSAGE_BYTES));
    }
    n
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A reader that reads a mebibyte whenever it is asked for.
    struct Slow {
        unread: AtomicU32,
        asked: AtomicU32,
    }

    impl Meter for Slow {
        fn key(&self, _: &TcpStream) -> io::Result<SocketKey> {
            Ok(SocketKey { netns: 0, local: [0; 16], remote: [0; 16], local_port: 0, remote_port: 0, reserved: 0 })
        }

        fn unread(&self, _: &SocketKey) -> Option<u32> {
            self.asked.fetch_add(1, Relaxed);
            let now = self.unread.load(Relaxed);
            self.unread.store(now.saturating_sub(1 << 20), Relaxed);
            Some(now)
        }

        fn dialled(&self, _: &TcpStream) -> bool {
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_dialled_too_early_is_good_for_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let meter = Arc::new(Slow { unread: AtomicU32::new(0), asked: AtomicU32::new(0) });
        let own = OwnSockets { mark: None, meter: Some(meter) };
        let dial = async || TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert_eq!(own.dialled(dial().await).good_until(), Some(Instant::now() + UNDECIDED));
        assert_eq!(own.accepted(dial().await).good_until(), None);
        assert_eq!(OwnSockets::default().dialled(dial().await).good_until(), None);
    }

    #[tokio::test]
    async fn a_writer_waits_until_the_reader_has_caught_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let slow = Arc::new(Slow { unread: AtomicU32::new(5 << 20), asked: AtomicU32::new(0) });
        let meter: Arc<dyn Meter> = slow.clone();
        let mut near = Stream::new(io, Some(&meter));
        let data = vec![7; CHECK_BYTES];
        let read = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.map(|_| all.len())
        });
        near.write_all(&data).await.unwrap();
        assert_eq!(slow.asked.load(Relaxed), 0, "nothing is asked before the budget is spent");
        let (_, mut writer) = near.split();
        writer.write_all(&data).await.unwrap();
        assert_eq!(slow.asked.load(Relaxed), 4, "5, 4, 3 and then 2 MiB");
        drop(near);
        assert_eq!(read.await.unwrap().unwrap(), 2 * CHECK_BYTES);
    }
}
