//! Programs nobody here wrote, and clients that are compiled once.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::{Cgroup, Cmd, Net, Proc, Temp, http, need::which, net::free_port, source_dir, target_dir, until, wait};

/// A server program, stopped on drop.
pub struct Server {
    addr: SocketAddr,
    /// Its process.
    pub proc: Proc,
    dir: Temp,
    cmd: Cmd,
}

impl Server {
    /// Starts one that listens at `addr` and lives in `dir`, and waits until it accepts.
    #[track_caller]
    pub fn start(addr: SocketAddr, dir: Temp, cmd: Cmd) -> Self {
        let proc = cmd.spawn(&dir.file("log"));
        let mut server = Self { addr, proc, dir, cmd };
        server.wait();
        server
    }

    fn wait(&mut self) {
        until(&format!("a server listens on {}", self.addr), || {
            let end = self.proc.ended();
            assert!(end.is_none(), "the server ended: {end:?}\n{}", self.proc.said());
            std::net::TcpStream::connect_timeout(&self.addr, wait::PATIENCE).is_ok()
        });
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it again at the same address after it was stopped.
    pub fn again(&mut self) {
        self.proc = self.cmd.spawn(&self.dir.file("log"));
        self.wait();
    }
}

/// Where a server stands.
#[derive(Default)]
pub struct Place<'a> {
    /// In this control group.
    pub cgroup: Option<&'a Cgroup>,
    /// In this network namespace, at its end of the link.
    pub net: Option<&'a Net>,
}

impl Place<'_> {
    pub(crate) fn ip(&self) -> IpAddr {
        self.net.map_or(IpAddr::from([127, 0, 0, 1]), Net::there)
    }

    pub(crate) fn put(&self, mut cmd: Cmd) -> Cmd {
        if let Some(group) = self.cgroup {
            cmd = cmd.cgroup(group);
        }
        match self.net {
            Some(net) => cmd.netns(net),
            None => cmd,
        }
    }
}

/// An nginx that answers `/` with `name`, gives files under `/files/`, which is `files/` in its folder, and
/// takes uploads there by PUT. Under `/sent/` it gives the same files by `sendfile`.
pub fn nginx(name: &str, place: &Place<'_>) -> Server {
    let dir = Temp::new();
    let addr = SocketAddr::new(place.ip(), free_port());
    let (path, user) = (dir.path().display(), if rustix::process::geteuid().is_root() { "user root;" } else { "" });
    for sub in ["files", "tmp"] {
        fs::create_dir(dir.file(sub)).unwrap();
    }
    let config = format!(
        "daemon off; master_process off; {user} pid {path}/pid; error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 100m; keepalive_requests 1000000;
  client_body_temp_path {path}/tmp; proxy_temp_path {path}/tmp; fastcgi_temp_path {path}/tmp;
  uwsgi_temp_path {path}/tmp; scgi_temp_path {path}/tmp;
  server {{
    listen {addr};
    location / {{ return 200 '{name}'; }}
    location /files/ {{ root {path}; dav_methods PUT; }}
    location /sent/ {{ sendfile on; alias {path}/files/; }}
  }}
}}
"
    );
    let file = dir.write("nginx.conf", config);
    let cmd = Cmd::new(which("nginx").expect("asked for before")).args(["-e", "stderr", "-p"]).arg(path).arg("-c");
    let server = Server::start(addr, dir, place.put(cmd.arg(file.display())));
    if place.net.is_none() {
        assert_eq!(http::get(addr, "/").unwrap().text(), name);
    }
    server
}

/// An nginx that answers everything with `name` on each of `listen`, written as in its configuration, and writes a
/// line for each request to `access.log` in its folder: address and port of the peer that it sees, number of the
/// connection, path. It is ready when it accepts at `wait_at`.
pub fn nginx_seeing(name: &str, listen: &[&str], wait_at: SocketAddr, place: &Place<'_>) -> Server {
    let dir = Temp::new();
    let (path, user) = (dir.path().display(), if rustix::process::geteuid().is_root() { "user root;" } else { "" });
    fs::create_dir(dir.file("tmp")).unwrap();
    let listen: String = listen.iter().map(|at| format!("listen {at}; ")).collect();
    let config = format!(
        "daemon off; master_process off; {user} pid {path}/pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  log_format peer '$remote_addr $remote_port $connection $request_uri';
  access_log {path}/access.log peer;
  client_body_temp_path {path}/tmp; proxy_temp_path {path}/tmp; fastcgi_temp_path {path}/tmp;
  uwsgi_temp_path {path}/tmp; scgi_temp_path {path}/tmp;
  server {{ {listen} location / {{ return 200 '{name}'; }} }}
}}
"
    );
    let file = dir.write("nginx.conf", config);
    let cmd = Cmd::new(which("nginx").expect("asked for before")).args(["-e", "stderr", "-p"]).arg(path).arg("-c");
    Server::start(wait_at, dir, place.put(cmd.arg(file.display())))
}

/// A redis server without persistence.
pub fn redis(place: &Place<'_>) -> Server {
    let (dir, addr) = (Temp::new(), SocketAddr::new(place.ip(), free_port()));
    let cmd = Cmd::new("redis-server").args(["--bind", &addr.ip().to_string(), "--port", &addr.port().to_string()]);
    let cmd = cmd.arg("--dir").arg(dir.path().display()).args(["--save", "", "--daemonize", "no"]);
    Server::start(addr, dir, place.put(cmd.args(["--protected-mode", "no"])))
}

/// The source of a client program under `tests/data/clients`.
pub fn client(name: &str) -> PathBuf {
    source_dir().join("data/clients").join(name)
}

/// A python client with its arguments.
pub fn python(name: &str) -> Cmd {
    // The system's own where there is one: start-up scripts of version managers take long.
    let system = Path::new("/usr/bin/python3");
    Cmd::new(if system.exists() { system } else { Path::new("python3") }).arg(client(name).display())
}

/// A Java client, run from its source.
pub fn java(name: &str) -> Cmd {
    Cmd::new("java").args(["-XX:TieredStopAtLevel=1", "-Xmx64m"]).arg(client(name).display())
}

/// A Go client, built once for each version of its source.
pub fn go(name: &str) -> Cmd {
    Cmd::new(built(name, |source, exe| {
        Cmd::new(which("go").expect("asked for before")).args(["build", "-o"]).args([exe, source].map(Path::display))
    }))
}

/// A C client, built once for each version of its source.
pub fn c(name: &str) -> Cmd {
    Cmd::new(built(name, |source, exe| Cmd::new("cc").args(["-O1", "-o"]).args([exe, source].map(Path::display))))
}

/// A C client, built with the C library musl, which asks for names in its own way.
pub fn musl(name: &str) -> Cmd {
    Cmd::new(built_as(name, "musl", |source, exe| {
        Cmd::new("musl-gcc").args(["-O1", "-static", "-o"]).args([exe, source].map(Path::display))
    }))
}

fn built(name: &str, compile: impl Fn(&Path, &Path) -> Cmd) -> PathBuf {
    built_as(name, "", compile)
}

/// What `suffix` tells programs of one source apart by.
fn built_as(name: &str, suffix: &str, compile: impl Fn(&Path, &Path) -> Cmd) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let source = client(name);
    let dir = target_dir().join("clients");
    fs::create_dir_all(&dir).unwrap();
    let [stem, extension] = [source.file_stem(), source.extension()].map(|s| s.unwrap().to_str().unwrap());
    let exe = dir.join(format!("{stem}-{extension}{suffix}"));
    let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    if changed(&exe) < changed(&source) {
        let fresh = exe.with_extension("new");
        compile(&source, &fresh).limit(std::time::Duration::from_secs(300)).run().ok();
        fs::rename(fresh, &exe).unwrap();
    }
    exe
}
