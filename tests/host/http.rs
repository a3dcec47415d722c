//! HTTP/1.1 by hand: says exactly the bytes it is told and reports exactly what came back.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::wait::PATIENCE;

/// A head and a body, of a request or of an answer.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// First line, without its end.
    pub line: String,
    /// Header lines in order; names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, unchunked.
    pub body: Vec<u8>,
    /// Trailers behind a chunked body.
    pub trailers: Vec<(String, String)>,
}

impl Message {
    /// Status of an answer.
    pub fn status(&self) -> u16 {
        let code = self.line.split(' ').nth(1).and_then(|c| c.parse().ok());
        code.unwrap_or_else(|| panic!("no status line: {:?}", self.line))
    }

    /// The first header of that name (given in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the peer says that it will close.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"))
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"))
    }

    fn length(&self) -> Option<usize> {
        self.header("content-length").and_then(|v| v.parse().ok())
    }
}

/// One connection, from either side.
#[derive(Debug)]
pub struct Conn {
    io: BufReader<TcpStream>,
}

impl Conn {
    /// Connects. Reads and writes give up when the test's patience is over.
    pub fn open(to: SocketAddr) -> io::Result<Self> {
        TcpStream::connect_timeout(&to, PATIENCE).map(Self::of)
    }

    /// Speaks over `io`.
    pub fn of(io: TcpStream) -> Self {
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        io.set_write_timeout(Some(PATIENCE)).unwrap();
        io.set_nodelay(true).unwrap();
        Self { io: BufReader::new(io) }
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        self.io.get_ref()
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.get_mut().write_all(bytes.as_ref())
    }

    /// A GET on this connection.
    pub fn get(&mut self, path: &str) -> io::Result<Message> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host()?))?;
        self.answer()
    }

    /// A POST on this connection.
    pub fn post(&mut self, path: &str, body: &[u8]) -> io::Result<Message> {
        let (host, length) = (self.host()?, body.len());
        self.send(format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"))?;
        self.send(body)?;
        self.answer()
    }

    /// Reads one request; `None` when the peer closed before its first byte.
    pub fn request(&mut self) -> io::Result<Option<Message>> {
        let Some(mut message) = self.head()? else { return Ok(None) };
        if message.is_chunked() {
            self.chunks(&mut message)?;
        } else {
            self.exactly(message.length().unwrap_or(0), &mut message.body)?;
        }
        Ok(Some(message))
    }

    /// Reads the answer to anything but HEAD. A body that ends before it is complete is an
    /// `UnexpectedEof` (or the reset that cut it).
    pub fn answer(&mut self) -> io::Result<Message> {
        let mut message = self.answer_head()?;
        if message.is_chunked() {
            self.chunks(&mut message)?;
        } else if let Some(length) = message.length() {
            self.exactly(length, &mut message.body)?;
        } else if !matches!(message.status(), 100..=199 | 204 | 304) {
            self.io.read_to_end(&mut message.body)?;
        }
        Ok(message)
    }

    /// Reads only the head of an answer.
    pub fn answer_head(&mut self) -> io::Result<Message> {
        self.head()?.ok_or_else(|| cut("no answer"))
    }

    /// Reads a line, without its end.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.io.by_ref().take(64 * 1024).read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(cut("in a line"));
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Reads exactly this many bytes behind what is in `into`.
    pub fn exactly(&mut self, count: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let before = into.len();
        self.io.by_ref().take(count as u64).read_to_end(into)?;
        if into.len() - before < count { Err(cut("in a body")) } else { Ok(()) }
    }

    /// Reads until the peer closes.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.io.read_to_end(&mut rest).map(|_| rest)
    }

    /// Reads a chunked body and its trailers.
    pub fn chunks(&mut self, message: &mut Message) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| io::Error::other(format!("chunk size {line:?}")))?;
            if size == 0 {
                message.trailers = self.fields()?;
                return Ok(());
            }
            self.exactly(size, &mut message.body)?;
            if !self.line()?.is_empty() {
                return Err(io::Error::other("a chunk does not end where it says"));
            }
        }
    }

    fn host(&self) -> io::Result<SocketAddr> {
        self.socket().peer_addr()
    }

    fn head(&mut self) -> io::Result<Option<Message>> {
        if self.io.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let line = self.line()?;
        Ok(Some(Message { line, headers: self.fields()?, ..Message::default() }))
    }

    fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(format!("header {line:?}")))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}

fn cut(place: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("closed {place}"))
}

/// A GET on a connection of its own.
pub fn get(to: SocketAddr, path: &str) -> io::Result<Message> {
    Conn::open(to)?.get(path)
}

/// A POST on a connection of its own.
pub fn post(to: SocketAddr, path: &str, body: &[u8]) -> io::Result<Message> {
    Conn::open(to)?.post(path, body)
}

/// An answer with a length.
pub fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}
