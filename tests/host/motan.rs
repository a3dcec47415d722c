//! Motan2 by hand, knowing nothing of the agent's own codec.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use crate::{Backend, wait::PATIENCE};

/// Bit of the message type: an answer.
pub const RESPONSE: u8 = 0x01;
/// Bit of the message type: went through a proxy.
pub const PROXY: u8 = 0x02;
/// Bit of the message type: no answer is waited for.
pub const ONE_WAY: u8 = 0x04;
/// Bit of the message type: the body is compressed.
pub const GZIP: u8 = 0x08;
/// Bit of the message type: a heartbeat.
pub const HEARTBEAT: u8 = 0x10;

/// One frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Message type bits.
    pub kind: u8,
    /// 0 normal, 1 exception.
    pub status: u8,
    /// Serialization number.
    pub serialization: u8,
    /// Request id.
    pub id: u64,
    /// Metadata.
    pub meta: BTreeMap<String, String>,
    /// Body.
    pub body: Vec<u8>,
}

impl Frame {
    /// A request of `service` and `method` with one string as its argument.
    pub fn call(service: &str, method: &str, argument: &str) -> Self {
        let mut body = vec![1];
        body.extend((argument.len() as u32).to_be_bytes());
        body.extend(argument.as_bytes());
        Self { serialization: 6, body, ..Self::default() }.with("M_p", service).with("M_m", method)
    }

    /// Adds metadata.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.meta.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A metadata value, empty when absent.
    pub fn meta(&self, key: &str) -> &str {
        self.meta.get(key).map_or("", String::as_str)
    }

    /// The answer to this request, with its body.
    pub fn answer(&self, body: &[u8]) -> Self {
        Self { kind: RESPONSE, serialization: self.serialization, id: self.id, body: body.to_vec(), ..Self::default() }
    }

    /// The answer to this request, as an exception.
    pub fn exception(&self, code: i32, kind: i32, message: &str) -> Self {
        let json = format!(r#"{{"errcode":{code},"errmsg":"{message}","errtype":{kind}}}"#);
        Self { status: 1, ..self.answer(&[]) }.with("M_e", &json)
    }

    /// The string in the body, whether of an argument or of an answer.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.body.get(5..).unwrap_or_default()).into_owned()
    }

    /// Code and type of an exception, with its text.
    pub fn thrown(&self) -> (i64, i64, String) {
        let json: serde_json::Value =
            serde_json::from_str(self.meta("M_e")).unwrap_or_else(|e| panic!("no exception in {self:?}: {e}"));
        let number = |key: &str| json[key].as_i64().unwrap();
        (number("errcode"), number("errtype"), json["errmsg"].as_str().unwrap().to_owned())
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let lines: Vec<_> = self.meta.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]).collect();
        let meta = lines.join("\n");
        let mut out = vec![0xf1, 0xf1, self.kind, 0x08 | self.status, self.serialization << 3];
        out.extend(self.id.to_be_bytes());
        out.extend((meta.len() as u32).to_be_bytes());
        out.extend(meta.as_bytes());
        out.extend((self.body.len() as u32).to_be_bytes());
        out.extend(&self.body);
        out
    }

    /// Reads one; `None` when the peer closed before its first byte.
    pub fn read(mut from: impl Read) -> io::Result<Option<Self>> {
        let mut first = [0];
        if from.read(&mut first)? == 0 {
            return Ok(None);
        }
        let mut head = [0; 16];
        from.read_exact(&mut head)?;
        if first[0] != 0xf1 || head[0] != 0xf1 || head[2] >> 3 != 1 {
            return Err(io::Error::other(format!("no Motan2 frame: {:02x} {head:02x?}", first[0])));
        }
        let meta = take(&mut from, u32::from_be_bytes(head[12..16].try_into().unwrap()))?;
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let body = take(&mut from, u32::from_be_bytes(length))?;
        let text = String::from_utf8(meta).map_err(io::Error::other)?;
        let parts: Vec<_> = if text.is_empty() { Vec::new() } else { text.split('\n').collect() };
        assert!(parts.len().is_multiple_of(2), "odd metadata: {text:?}");
        Ok(Some(Self {
            kind: head[1],
            status: head[2] & 7,
            serialization: head[3] >> 3,
            id: u64::from_be_bytes(head[4..12].try_into().unwrap()),
            meta: parts.chunks(2).map(|p| (p[0].to_owned(), p[1].to_owned())).collect(),
            body,
        }))
    }
}

fn take(from: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes)?;
    if bytes.len() < length as usize { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

/// A client of one connection.
pub struct Client {
    io: TcpStream,
    next: u64,
}

impl Client {
    /// Connects.
    pub fn open(to: SocketAddr) -> io::Result<Self> {
        let io = TcpStream::connect_timeout(&to, PATIENCE)?;
        io.set_read_timeout(Some(PATIENCE))?;
        io.set_write_timeout(Some(PATIENCE))?;
        io.set_nodelay(true)?;
        Ok(Self { io, next: 1000 })
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.io
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref())
    }

    /// Sends a frame under a new request id, which it returns.
    pub fn begin(&mut self, mut frame: Frame) -> io::Result<u64> {
        self.next += 1;
        frame.id = self.next;
        self.send(frame.bytes()).map(|()| self.next)
    }

    /// Reads the next frame, whichever it answers; `None` when the peer closed.
    pub fn receive(&mut self) -> io::Result<Option<Frame>> {
        Frame::read(&self.io)
    }

    /// Reads exactly this many bytes.
    pub fn raw(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.io.read_exact(&mut bytes).map(|()| bytes)
    }

    /// Sends a request and waits for its answer.
    pub fn call(&mut self, frame: Frame) -> io::Result<Frame> {
        let id = self.begin(frame)?;
        let answer = self.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        assert_eq!(answer.id, id, "the answer carries the request's id");
        Ok(answer)
    }
}

/// A server that answers each request by `answer`, each on a thread of its own, so that slow ones do not
/// hold up others; `None` answers nothing. Heartbeats are answered without asking.
pub fn server(answer: impl Fn(&Frame) -> Option<Frame> + Send + Sync + 'static) -> Backend {
    let answer = Arc::new(answer);
    Backend::tcp(move |io| {
        let out = Arc::new(Mutex::new(io.try_clone().unwrap()));
        while let Ok(Some(request)) = Frame::read(&io) {
            let (answer, out) = (answer.clone(), out.clone());
            thread::spawn(move || {
                let reply = if request.kind & HEARTBEAT != 0 {
                    Some(Frame { kind: RESPONSE | HEARTBEAT | PROXY, ..request.answer(&[]) })
                } else {
                    answer(&request)
                };
                if let Some(reply) = reply {
                    let _ = out.lock().unwrap().write_all(&reply.bytes());
                }
            });
        }
    })
}
