//! Database servers with a fresh, empty database.

use std::{net::SocketAddr, path::Path};

use crate::{
    Cmd, Temp,
    need::which,
    net::free_port,
    program::{Place, Server},
};

/// User that database servers run as: they refuse to be root.
const NOBODY: &str = "nobody";

/// A PostgreSQL server whose superuser is `mesh`, without a password. It forks a process for each connection.
pub fn postgres(place: &Place<'_>) -> Server {
    let (dir, addr) = (Temp::new(), SocketAddr::new(place.ip(), free_port()));
    own(dir.path());
    let program = |name| Cmd::new(which(name).unwrap_or_else(|| panic!("{name} comes with postgres")));
    let data = dir.file("data");
    let init = program("initdb").args(["-N", "-A", "trust", "-U", "mesh", "-D"]).arg(data.display());
    demoted(init).run().ok();
    let cmd =
        program("postgres").arg("-D").arg(data.display()).args(["-c", "fsync=off", "-k"]).arg(dir.path().display());
    let cmd = cmd.args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string()]);
    Server::start(addr, dir, place.put(demoted(cmd)))
}

/// A MariaDB server whose user `root` has no password and a database `mesh`. It has a thread for each connection.
pub fn mariadb(place: &Place<'_>) -> Server {
    let (dir, addr) = (Temp::new(), SocketAddr::new(place.ip(), free_port()));
    let (data, socket) = (dir.file("data"), dir.file("sock"));
    let install = Cmd::new("mariadb-install-db").args(["--no-defaults", "--user=root", "--skip-test-db"]);
    install.args(["--auth-root-authentication-method=normal"]).arg(format!("--datadir={}", data.display())).run().ok();
    let cmd = Cmd::new(which("mariadbd").expect("asked for before")).args(["--no-defaults", "--user=root"]);
    let cmd = cmd.arg(format!("--datadir={}", data.display())).arg(format!("--socket={}", socket.display()));
    let cmd = cmd.arg(format!("--bind-address={}", addr.ip())).arg(format!("--port={}", addr.port()));
    // Every connection is its own: names need not be looked up, and the log may wait.
    let cmd = cmd.args(["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0"]);
    let server = Server::start(addr, dir, place.put(cmd));
    let sql = "create database mesh";
    Cmd::new("mariadb").arg(format!("--socket={}", socket.display())).args(["-u", "root", "-e", sql]).run().ok();
    server
}

fn own(dir: &Path) {
    Cmd::new("chown").arg(NOBODY).arg(dir.display()).run().ok();
}

fn demoted(cmd: Cmd) -> Cmd {
    cmd.under(&["setpriv", "--reuid", NOBODY, "--regid", "nogroup", "--clear-groups", "--pdeathsig", "KILL", "--"])
}
