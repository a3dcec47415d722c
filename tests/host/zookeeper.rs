//! A real ZooKeeper, and a client of our own that knows nothing of the agent's.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use crate::{
    Cmd, Temp,
    need::which,
    net::free_port,
    program::{Place, Server},
    until,
    wait::PATIENCE,
};

/// Milliseconds of its tick: a session lasts at least 2 and at most 20 of them.
pub(crate) const TICK: u32 = 500;

/// A server with an empty tree that takes nodes of up to 20 MB and answers every four-letter word.
pub fn zookeeper(place: &Place<'_>) -> Server {
    configured(place, &[], "")
}

/// The same with further properties of Java and further lines of its configuration.
pub fn configured(place: &Place<'_>, properties: &[&str], more: &str) -> Server {
    let (dir, addr) = (Temp::new(), SocketAddr::new(place.ip(), free_port()));
    let data = dir.file("data");
    let config = format!(
        "tickTime={TICK}\ndataDir={}\nclientPort={}\nclientPortAddress={}\nadmin.enableServer=false\n\
         4lw.commands.whitelist=*\nmaxClientCnxns=0\nsnapshot.trust.empty=true\n{more}",
        data.display(),
        addr.port(),
        addr.ip()
    );
    let file = dir.write("zoo.cfg", config);
    let cmd = java().args(["-Xmx384m", "-XX:TieredStopAtLevel=1", "-Djute.maxbuffer=20000000"]).args(properties);
    let cmd = cmd.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(file.display());
    let server = Server::start(addr, dir, place.put(cmd));
    serves(&server);
    server
}

/// Waits until it does more than listen.
pub fn serves(server: &Server) {
    if server.addr().ip().is_loopback() {
        until("zookeeper serves", || word(server.addr(), "srvr").is_ok_and(|said| said.contains("Mode:")));
    }
}

/// Starts it again after it was stopped, with nothing of what it knew.
pub fn again_empty(server: &mut Server) {
    fs::remove_dir_all(server.dir().join("data")).unwrap();
    server.again();
    serves(server);
}

pub(crate) fn java() -> Cmd {
    let java = which("java").expect("comes with the compiler");
    let jars = "/usr/share/java/zookeeper.jar:/usr/share/java/*";
    assert!(Path::new("/usr/share/java/zookeeper.jar").exists(), "it comes with zkServer.sh");
    Cmd::new(java).args(["-cp", jars])
}

/// What ZooKeeper's own command line says to `command`, such as `get /motan`.
pub fn cli(server: SocketAddr, command: &[&str]) -> String {
    let cmd = java().args(["-XX:TieredStopAtLevel=1", "-Xmx96m", "org.apache.zookeeper.ZooKeeperMain", "-server"]);
    cmd.arg(server).args(command.iter().copied()).run().ok()
}

/// The answer to a four-letter word.
pub fn word(server: SocketAddr, word: &str) -> io::Result<String> {
    let mut io = TcpStream::connect(server)?;
    // One that is not ready yet takes the word and says nothing, ever.
    io.set_read_timeout(Some(Duration::from_secs(2)))?;
    io.write_all(word.as_bytes())?;
    let mut said = String::new();
    io.read_to_string(&mut said)?;
    Ok(said)
}

/// Text as Java serializes a string.
pub fn java_string(text: &str) -> Vec<u8> {
    let mut data = b"\xac\xed\0\x05".to_vec();
    match u16::try_from(text.len()) {
        Ok(length) => {
            data.push(0x74);
            data.extend(length.to_be_bytes());
        }
        Err(_) => {
            data.push(0x7c);
            data.extend((text.len() as u64).to_be_bytes());
        }
    }
    data.extend(text.as_bytes());
    data
}

/// A client with a session, which ends when it is dropped.
pub struct Client {
    io: TcpStream,
    number: i32,
    /// The session's number.
    pub session: i64,
}

/// A node's data, its version, and the session that owns it (0 for none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Data.
    pub data: Vec<u8>,
    /// Version of the data.
    pub version: i32,
    /// Owner.
    pub owner: i64,
}

impl Client {
    /// Opens one whose session survives ten seconds of silence.
    pub fn open(server: SocketAddr) -> Self {
        let mut io = TcpStream::connect(server).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        io.set_nodelay(true).unwrap();
        let mut hello = vec![0, 0, 0, 45];
        hello.extend([0; 12]);
        hello.extend(10_000_i32.to_be_bytes());
        hello.extend([0; 8]);
        hello.extend(16_i32.to_be_bytes());
        hello.extend([0; 17]);
        io.write_all(&hello).unwrap();
        let mut client = Self { io, number: 0, session: 0 };
        let welcome = client.frame();
        client.session = i64::from_be_bytes(welcome[8..16].try_into().unwrap());
        client
    }

    /// Says who it is: `NAME:PASSWORD`.
    pub fn login(&mut self, account: &str) {
        let mut body = vec![0; 4];
        body.extend(with_length(b"digest"));
        body.extend(with_length(account.as_bytes()));
        let out = request(-4, 100, &body);
        self.io.write_all(&out).unwrap();
        assert_eq!(self.frame()[12..16], [0; 4], "cannot log in");
    }

    /// The error that reading a node gives; 0 for none.
    pub fn reading(&mut self, path: &str) -> i32 {
        let mut body = with_length(path.as_bytes());
        body.push(0);
        self.ask(4, &body).0
    }

    /// The error that deleting a node gives; 0 for none.
    pub fn deleting(&mut self, path: &str) -> i32 {
        let mut body = with_length(path.as_bytes());
        body.extend((-1_i32).to_be_bytes());
        self.ask(2, &body).0
    }

    /// Makes a node that stays, with the folders above it.
    pub fn create(&mut self, path: &str, data: &[u8]) {
        self.make(path, data, 0);
    }

    /// Makes a node that goes with the session, with the folders above it.
    pub fn create_ephemeral(&mut self, path: &str, data: &[u8]) {
        self.make(path, data, 1);
    }

    fn make(&mut self, path: &str, data: &[u8], flags: i32) {
        for (end, _) in path.match_indices('/').skip(1) {
            let code = self.ask(1, &creation(&path[..end], &[], 0)).0;
            assert!(matches!(code, 0 | -110), "{path}: error {code}");
        }
        let code = self.ask(1, &creation(path, data, flags)).0;
        assert_eq!(code, 0, "cannot create {path}");
    }

    /// Puts a node that goes with the session where another one may be.
    pub fn steal(&mut self, path: &str, data: &[u8]) {
        let mut deletion = with_length(path.as_bytes());
        deletion.extend((-1_i32).to_be_bytes());
        let mut out = request(self.number + 1, 2, &deletion);
        out.extend(request(self.number + 2, 1, &creation(path, data, 1)));
        self.number += 2;
        self.io.write_all(&out).unwrap();
        // Either may fail: whoever else is at it was faster.
        self.frame();
        self.frame();
    }

    /// Makes all of these below a folder that is there, many at a time.
    pub fn create_all(&mut self, nodes: impl Iterator<Item = (String, Vec<u8>)>) {
        let nodes: Vec<_> = nodes.collect();
        for some in nodes.chunks(500) {
            let mut out = Vec::new();
            for (path, data) in some {
                self.number += 1;
                out.extend(request(self.number, 1, &creation(path, data, 0)));
            }
            self.io.write_all(&out).unwrap();
            for _ in some {
                let answer = self.frame();
                assert_eq!(&answer[12..16], [0; 4], "cannot create");
            }
        }
    }

    /// Writes data, whatever the version.
    pub fn set(&mut self, path: &str, data: &[u8]) {
        let mut body = with_length(path.as_bytes());
        body.extend(with_length(data));
        body.extend((-1_i32).to_be_bytes());
        let code = self.ask(5, &body).0;
        assert_eq!(code, 0, "cannot write {path}");
    }

    /// Deletes a node.
    pub fn delete(&mut self, path: &str) {
        assert_eq!(self.deleting(path), 0, "cannot delete {path}");
    }

    /// A node, if it is there.
    pub fn get(&mut self, path: &str) -> Option<Found> {
        let mut body = with_length(path.as_bytes());
        body.push(0);
        let (code, answer) = self.ask(4, &body);
        if code == -101 {
            return None;
        }
        assert_eq!(code, 0, "cannot read {path}");
        let length = i32::from_be_bytes(answer[..4].try_into().unwrap()).max(0) as usize;
        let (data, stat) = answer[4..].split_at(length);
        let version = i32::from_be_bytes(stat[32..36].try_into().unwrap());
        let owner = i64::from_be_bytes(stat[44..52].try_into().unwrap());
        Some(Found { data: data.to_vec(), version, owner })
    }

    /// Names below a folder; none when it is not there.
    pub fn children(&mut self, path: &str) -> Vec<String> {
        let mut body = with_length(path.as_bytes());
        body.push(0);
        let (code, answer) = self.ask(8, &body);
        if code == -101 {
            return Vec::new();
        }
        assert_eq!(code, 0, "cannot list {path}");
        let mut rest = &answer[4..];
        let mut names = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (name, after) = after.split_at(i32::from_be_bytes(*length) as usize);
            names.push(String::from_utf8(name.to_vec()).unwrap());
            rest = after;
        }
        names.sort();
        names
    }

    fn ask(&mut self, kind: i32, body: &[u8]) -> (i32, Vec<u8>) {
        self.number += 1;
        self.io.write_all(&request(self.number, kind, body)).unwrap();
        let answer = self.frame();
        let int = |at: usize| i32::from_be_bytes(answer[at..at + 4].try_into().unwrap());
        assert_eq!(int(0), self.number, "answers come in order");
        (int(12), answer[16..].to_vec())
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.io.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.io.read_exact(&mut frame).unwrap();
        frame
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.io.write_all(&request(0, -11, &[])).is_ok() {
            // Its nodes are gone when the server says so.
            let _ = self.io.read(&mut [0; 64]);
        }
    }
}

fn request(number: i32, kind: i32, body: &[u8]) -> Vec<u8> {
    let mut out = (body.len() as u32 + 8).to_be_bytes().to_vec();
    out.extend(number.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(body);
    out
}

fn creation(path: &str, data: &[u8], flags: i32) -> Vec<u8> {
    let mut body = with_length(path.as_bytes());
    body.extend(with_length(data));
    body.extend([0, 0, 0, 1, 0, 0, 0, 31]);
    body.extend(with_length(b"world"));
    body.extend(with_length(b"anyone"));
    body.extend(flags.to_be_bytes());
    body
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u32).to_be_bytes().to_vec();
    out.extend(bytes);
    out
}
