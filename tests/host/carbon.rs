//! A Carbon that keeps a point for each second of the last hour.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use crate::{Cmd, Temp, free_port, need::which, program::Server};

/// A running carbon-cache, stopped on drop. What it has written outlasts its death.
pub struct Carbon(pub Server);

impl Carbon {
    /// Starts one. Needs the program `carbon-cache`.
    #[track_caller]
    pub fn start() -> Self {
        Self::keeping("1s:1h")
    }

    /// Starts one that keeps points as `retentions` says, such as `60s:1d`.
    #[track_caller]
    pub fn keeping(retentions: &str) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = Temp::new();
        let path = dir.path().display();
        for folder in ["whisper", "logs", "run", "rules"] {
            fs::create_dir(dir.file(folder)).unwrap();
        }
        dir.write("storage-schemas.conf", format!("[all]\npattern = .*\nretentions = {retentions}\n"));
        let port = |name: &str| format!("{name}_INTERFACE = 127.0.0.1\n{name}_PORT = {}\n", free_port());
        dir.write(
            "carbon.conf",
            format!(
                "[cache]\nUSER =\nSTORAGE_DIR = {path}\nLOCAL_DATA_DIR = {path}/whisper\nWHITELISTS_DIR = {path}/rules\n\
                 LOG_DIR = {path}/logs\nPID_DIR = {path}/run\nCONF_DIR = {path}\nENABLE_TAGS = False\n\
                 MAX_CREATES_PER_MINUTE = inf\nMAX_UPDATES_PER_SECOND = inf\nLINE_RECEIVER_INTERFACE = 127.0.0.1\n\
                 LINE_RECEIVER_PORT = {}\nPICKLE_RECEIVER_PORT = 0\n{}",
                addr.port(),
                port("CACHE_QUERY"),
            ),
        );
        let config = format!("--config={path}/carbon.conf");
        let pid = format!("--pidfile={path}/run/carbon.pid");
        let cmd = Cmd::new(which("carbon-cache").expect("asked for before"));
        let cmd = cmd.args([config, "--nodaemon".to_owned(), pid, "start".to_owned()]);
        Self(Server::start(addr, dir, cmd))
    }

    /// Sends points: name, value and seconds.
    #[track_caller]
    pub fn send(&self, points: impl IntoIterator<Item = (String, f64, u64)>) {
        let lines: String = points.into_iter().map(|(name, value, at)| format!("{name} {value} {at}\n")).collect();
        TcpStream::connect(self.addr()).unwrap().write_all(lines.as_bytes()).unwrap();
    }

    /// Where it takes lines.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// The folder of its files, one for each series.
    pub fn whisper(&self) -> PathBuf {
        self.0.dir().join("whisper")
    }

    /// Where it answers what it has not written yet.
    pub fn query_port(&self) -> u16 {
        let config = fs::read_to_string(self.0.dir().join("carbon.conf")).unwrap();
        let line = config.lines().find_map(|l| l.strip_prefix("CACHE_QUERY_PORT = ")).unwrap();
        line.parse().unwrap()
    }

    /// The points of a series of the last hour; empty while there is none.
    #[track_caller]
    pub fn points(&self, name: &str) -> Vec<f64> {
        let file = self.whisper().join(name.replace('.', "/")).with_extension("wsp");
        if !file.exists() {
            return Vec::new();
        }
        points(&file)
    }

    /// Names of all series.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        walk(&self.whisper(), &mut |file| {
            let name = file.strip_prefix(self.whisper()).unwrap().with_extension("");
            names.push(name.display().to_string().replace('/', "."));
        });
        names.sort();
        names
    }
}

fn points(file: &Path) -> Vec<f64> {
    let said = Cmd::new("whisper-fetch").arg("--drop=nulls").arg(file.display()).run().ok();
    said.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect()
}

fn walk(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, each);
        } else if path.extension().is_some_and(|e| e == "wsp") {
            each(&path);
        }
    }
}
