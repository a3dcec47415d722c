//! The centre that is measured: the real program in a process of its own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http::Method;

use crate::agents::ask;

/// A running centre; killed on drop.
pub struct Center {
    addr: SocketAddr,
    dir: PathBuf,
    child: Child,
}

impl Center {
    /// Starts one with a new store below the system's folder for temporary files.
    pub fn start() -> Self {
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let dir = std::env::temp_dir().join(format!("sockmesh-load-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let child = spawn(addr, &dir);
        wait_for(addr);
        Self { addr, dir, child }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it without warning.
    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again with what it knew.
    pub fn again(&mut self) {
        self.child = spawn(self.addr, &self.dir);
    }

    /// When it answered first.
    pub async fn answers(&self, patience: Duration) -> Instant {
        let end = Instant::now() + patience;
        loop {
            if self.watchers().await.is_some() {
                return Instant::now();
            }
            assert!(Instant::now() < end, "the centre does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Long polls that wait at it.
    pub async fn watchers(&self) -> Option<usize> {
        let (status, body) = ask(self.addr, Method::GET, "/v1/registry", &()).await.ok()?;
        let page: serde_json::Value = serde_json::from_slice(&body).ok()?;
        (status == 200).then(|| page["watchers"].as_u64().unwrap_or_default() as usize)
    }

    /// A number of its `/metrics`.
    pub async fn metric(&self, name: &str) -> u64 {
        let (_, page) = ask(self.addr, Method::GET, "/metrics", &()).await.unwrap();
        let page = String::from_utf8_lossy(&page).into_owned();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_else(|| panic!("/metrics has no {name}")).parse().unwrap()
    }

    /// Length of its file of figures.
    pub fn figures(&self) -> u64 {
        fs::metadata(self.dir.join("data/figures.redb")).map_or(0, |file| file.len())
    }

    /// Seconds of CPU that it used, in all of its threads.
    pub fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().unwrap()).sum();
        // The kernel tells a hundred ticks a second to programs, on every machine.
        ticks as f64 / 100.0
    }

    /// Its resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Center {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn spawn(addr: SocketAddr, dir: &std::path::Path) -> Child {
    let program = std::env::var("SOCKMESH_CENTER_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_sockmesh-center").into());
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut command = Command::new(program);
    command.args(["--listen", &addr.to_string()]).arg("--data").arg(dir.join("data"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

fn wait_for(addr: SocketAddr) {
    let end = Instant::now() + Duration::from_secs(60);
    while std::net::TcpStream::connect(addr).is_err() {
        assert!(Instant::now() < end, "the centre does not listen");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// As many descriptors as this process may have: each agent holds one connection.
pub fn raise_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
