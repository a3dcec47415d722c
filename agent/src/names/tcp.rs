//! Questions over TCP: each with its length before it (RFC 7766).

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time,
};

use super::{
    LINGER, PATIENCE, Server,
    answer::{self, Transport},
    resolver,
};
use crate::{drain::Drain, sys};

/// Connections at once; further ones wait in the backlog.
const CONNECTIONS: usize = 256;
/// A connection without a byte for this long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// Room for what is read at once.
const CHUNK: usize = 4096;

/// Takes connections that the capture brings.
pub(super) async fn serve(server: Arc<Server>, listener: TcpListener, mut drain: Drain) {
    let mut forced = drain.clone();
    let mut connections = JoinSet::new();
    let ended = async {
        drain.graceful().await;
        time::sleep(LINGER).await;
    };
    tokio::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((io, peer)) => {
                    let (server, drain) = (server.clone(), forced.clone());
                    connections.spawn(async move {
                        if let Err(error) = connection(&server, io, drain).await {
                            tracing::debug!(%peer, %error, "a connection with questions ended");
                        }
                    });
                }
                Err(error) if sys::is_shortage(&error) => time::sleep(LINGER).await,
                Err(_) => {}
            },
        }
    }
    drop(listener);
    let finish = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        () = finish => {}
        () = forced.forced() => {}
    }
}

/// The connection to the program's resolver: none before the first question that is for it.
struct Upstream<'a> {
    server: &'a Server,
    io: Option<TcpStream>,
    at: SocketAddr,
}

impl Upstream<'_> {
    async fn send(&mut self, framed: &[u8]) -> io::Result<()> {
        if self.io.is_none() {
            let socket = self.server.socket(self.at, socket2::Type::STREAM).await?;
            socket.set_tcp_nodelay(true)?;
            let socket = TcpSocket::from_std_stream(socket.into());
            let connected = time::timeout(PATIENCE, socket.connect(self.at)).await;
            self.io = Some(connected.map_err(|_| io::ErrorKind::TimedOut)??);
        }
        self.io.as_mut().expect("opened just now").write_all(framed).await
    }

    /// Reads what comes; never returns while there is no connection.
    async fn read(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        match &mut self.io {
            Some(io) => io.read_buf(into).await,
            None => std::future::pending().await,
        }
    }
}

async fn connection(server: &Server, mut io: TcpStream, mut drain: Drain) -> io::Result<()> {
    io.set_nodelay(true)?;
    let origin = server.capture.origin(&io)?;
    let mut upstream = Upstream { server, io: None, at: resolver(origin.destination.ip()) };
    let (mut asked, mut answered) = (BytesMut::new(), BytesMut::new());
    // Questions passed on whose answers have not come.
    let mut waiting = 0_usize;
    let mut open = true;
    while open || waiting > 0 {
        asked.reserve(CHUNK);
        answered.reserve(CHUNK);
        tokio::select! {
            read = io.read_buf(&mut asked), if open => open = read? > 0,
            read = upstream.read(&mut answered) => {
                if read? == 0 {
                    // What it said is passed on to its last byte; then it says no more.
                    io.write_all(&answered).await?;
                    lost(server, waiting);
                    return Ok(());
                }
            }
            () = time::sleep(IDLE) => {
                lost(server, waiting);
                return Ok(());
            }
            () = drain.graceful(), if waiting == 0 => return Ok(()),
        }
        while let Some(framed) = frame(&mut asked) {
            server.counters.names_tcp.fetch_add(1, Relaxed);
            if let Some(answer) = answer::answer(&server.names.zone(), &framed[2..], Transport::Tcp) {
                server.counters.names_answered.fetch_add(1, Relaxed);
                io.write_all(&(answer.len() as u16).to_be_bytes()).await?;
                io.write_all(&answer).await?;
                continue;
            }
            server.counters.names_forwarded.fetch_add(1, Relaxed);
            waiting += 1;
            if let Err(error) = upstream.send(&framed).await {
                lost(server, waiting);
                return Err(error);
            }
        }
        while let Some(framed) = frame(&mut answered) {
            waiting = waiting.saturating_sub(1);
            io.write_all(&framed).await?;
        }
    }
    Ok(())
}

fn lost(server: &Server, questions: usize) {
    server.counters.names_failed.fetch_add(questions as u64, Relaxed);
}

/// Takes one whole message with its length out of what was read.
fn frame(read: &mut BytesMut) -> Option<BytesMut> {
    let mut length = read.get(..2)?;
    let whole = 2 + usize::from(length.get_u16());
    (read.len() >= whole).then(|| read.split_to(whole))
}
