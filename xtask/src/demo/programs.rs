//! The programs of the demo, how they are started, and the one YAML file that makes them a mesh.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{center, process};
use crate::sh;

/// Programs that the demo would like to have.
pub const WANTED: &[&str] = &["nginx", "redis-server", "redis-cli", "wrk", "curl"];

/// Addresses of one running demo.
#[derive(Debug)]
pub struct Places {
    /// The agent's port for captured connections.
    pub outbound: u16,
    /// The agent's port for inbound captured connections.
    pub inbound: u16,
    /// The agent's admin API.
    pub admin: SocketAddr,
    /// The web server of idc-a.
    pub web_a: SocketAddr,
    /// The web server of idc-b.
    pub web_b: SocketAddr,
    /// Where callers of `web` in other groups are taken in, before the server of idc-a.
    pub export_a: SocketAddr,
    /// The same, of idc-b.
    pub export_b: SocketAddr,
    /// The redis server.
    pub redis: SocketAddr,
    /// The governance centre.
    pub center: SocketAddr,
    /// What callers dial for the service `web`.
    pub call_web: SocketAddr,
    /// What callers dial for the service `cache`.
    pub call_redis: SocketAddr,
    /// What callers dial for the service `orders`.
    pub call_orders: SocketAddr,
    /// Their control group, when the kernel brings their connections to the agent.
    pub callers: Option<PathBuf>,
}

/// Virtual addresses: of 240.0.0.0/4, which exists nowhere.
const VIRTUAL_WEB: &str = "240.0.0.1:80";
const VIRTUAL_REDIS: &str = "240.0.0.2:6379";
const VIRTUAL_ORDERS: &str = "240.0.0.3:80";

impl Places {
    /// Free ports, the usual ones if they are. `callers` is the callers' control group; `None` means port mode.
    pub fn find(callers: Option<PathBuf>) -> Result<Self> {
        let local = |port| Ok::<_, anyhow::Error>(SocketAddr::from(([127, 0, 0, 1], process::port(port)?)));
        let ([call_web, call_redis, call_orders], callers) = match callers {
            Some(dir) => ([VIRTUAL_WEB.parse()?, VIRTUAL_REDIS.parse()?, VIRTUAL_ORDERS.parse()?], Some(dir)),
            None => ([local(18080)?, local(18081)?, local(18082)?], None),
        };
        Ok(Self {
            outbound: process::port(15001)?,
            inbound: process::port(15006)?,
            admin: local(8002)?,
            web_a: local(0)?,
            web_b: local(0)?,
            export_a: local(0)?,
            export_b: local(0)?,
            redis: local(0)?,
            center: local(7480)?,
            call_web,
            call_redis,
            call_orders,
            callers,
        })
    }

    /// One line when the agent does not have its usual ports.
    pub fn unusual(&self) -> Option<String> {
        let usual = [15001, 15006, 8002, 7480];
        let ports = [self.outbound, self.inbound, self.admin.port(), self.center.port()];
        let taken: Vec<_> = usual.iter().zip(ports).filter(|(usual, port)| **usual != *port).collect();
        let list: Vec<_> = taken.iter().map(|(usual, port)| format!("{port} instead of {usual}")).collect();
        (!list.is_empty()).then(|| format!("ports in use by others, so the demo takes {}", list.join(", ")))
    }

    /// The agent's configuration.
    pub fn yaml(&self, name: &str) -> String {
        let capture = match &self.callers {
            Some(dir) => format!("capture:\n  mode: ebpf\n  enroll: [{{cgroup: \"{}\"}}]\n", dir.display()),
            None => "capture: port\n".to_owned(),
        };
        let reach = |virtual_address: &str, dialled: SocketAddr| match self.callers {
            Some(_) => format!("address: {virtual_address}"),
            None => format!("address: {virtual_address}\n    listen: {dialled}"),
        };
        let Self { outbound, inbound, admin, center, web_a, web_b, export_a, export_b, redis, .. } = self;
        let web = reach(VIRTUAL_WEB, self.call_web);
        let cache = reach(VIRTUAL_REDIS, self.call_redis);
        let orders = reach(VIRTUAL_ORDERS, self.call_orders);
        format!(
            "\
name: {name}
application: shop
threads: 2
drain: 2s
ports: {{outbound: {outbound}, inbound: {inbound}, admin: \"{admin}\"}}
{capture}access_log: {{path: access.log}}
center: {{address: [\"{center}\"]}}
registries:
  center: {{kind: center}}
services:                        # what this host provides
  - {{service: web, group: idc-a, protocol: http, export: \"{export_a}\", local: \"{web_a}\", registry: center}}
  - {{service: web, group: idc-b, protocol: http, export: \"{export_b}\", local: \"{web_b}\", registry: center}}
referers:                        # what programs of this host call
  - service: web
    group: idc-a
    protocol: http
    {web}
    registry: center
    lb: round_robin
    ha: failover
    retries: 1
    idempotent: true   # the demo's callers only read
    eject: {{max_pause: 2s}}   # a server that is back is soon seen to be
    filters: [access_log, metrics]
  - service: orders
    group: idc-a
    protocol: http
    {orders}
    registry: center
    lb: p2c
    ha: failover
    retries: 1
    idempotent: true
    timeout: 2s
    filters: [metrics]
  - service: cache
    protocol: tcp
    {cache}
    endpoints: [\"{redis}\"]
    filters: [metrics]
"
        )
    }
}

/// A program of the demo, ready to be started.
#[derive(Debug)]
pub struct Program {
    /// What it is: `nginx`, or `nginx (stand-in)`.
    pub name: String,
    /// Its part in the demo: where it stands, or whom it calls.
    pub part: String,
    /// Its control group below the demo's.
    pub group: &'static str,
    /// Where it listens; `None` for callers.
    pub listens: Option<SocketAddr>,
    /// Where a caller writes how many calls went well and how many failed.
    pub counts: Option<PathBuf>,
    program: PathBuf,
    args: Vec<String>,
}

impl Program {
    /// The command that starts it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        command
    }

    fn stand_in(name: &str, part: String, group: &'static str, args: &[String]) -> Self {
        let args = std::iter::once("stand-in".to_owned()).chain(args.iter().cloned()).collect();
        let program = process::own("").get_program().into();
        Self { name: format!("{name} (stand-in)"), part, group, listens: None, counts: None, program, args }
    }

    fn real(name: &str, part: String, group: &'static str, program: PathBuf, args: &[String]) -> Self {
        Self { name: name.to_owned(), part, group, listens: None, counts: None, program, args: args.to_vec() }
    }
}

/// Finds a program; the stand-ins are used for those that it does not find.
pub type Find = fn(&str) -> Option<PathBuf>;

/// Two web servers in two groups and a redis server; their files lie in `dir`.
pub fn servers(dir: &Path, places: &Places, find: Find) -> Result<Vec<Program>> {
    let mut all = Vec::new();
    for (group, addr) in [("idc-a", places.web_a), ("idc-b", places.web_b)] {
        let part = format!("web, {group}, {addr}");
        let program = match find("nginx") {
            Some(nginx) => {
                let home = dir.join(group);
                fs::create_dir_all(home.join("www"))?;
                fs::write(home.join("www/idc.json"), format!("{{\"idc\":\"{group}\"}}\n"))?;
                fs::write(home.join("www/index.html"), format!("<h1>{group}</h1>\n"))?;
                fs::write(home.join("nginx.conf"), nginx_conf(addr)).context("cannot write nginx.conf")?;
                let home = home.display();
                let args = ["-p", &home.to_string(), "-c", "nginx.conf", "-e", "stderr"].map(str::to_owned);
                Program::real("nginx", part, group, nginx, &args)
            }
            None => Program::stand_in("nginx", part, group, &["web".to_owned(), addr.to_string(), group.to_owned()]),
        };
        all.push(Program { listens: Some(addr), ..program });
    }
    let part = format!("cache, {}", places.redis);
    let program = match find("redis-server") {
        Some(redis) => {
            let args = format!(
                "--bind {} --port {} --daemonize no --appendonly no --dir {}",
                places.redis.ip(),
                places.redis.port(),
                dir.display()
            );
            let mut args: Vec<_> = args.split(' ').map(str::to_owned).collect();
            args.extend(["--save".to_owned(), String::new()]);
            Program::real("redis-server", part, "redis", redis, &args)
        }
        None => Program::stand_in("redis-server", part, "redis", &["redis".to_owned(), places.redis.to_string()]),
    };
    all.push(Program { listens: Some(places.redis), ..program });
    Ok(all)
}

/// One process that can be stopped by its id, and all paths below the prefix it is given.
fn nginx_conf(addr: SocketAddr) -> String {
    let mut text = "daemon off;\nmaster_process off;\npid nginx.pid;\nevents { worker_connections 1024; }\nhttp {\n\
                    \x20 access_log off;\n"
        .to_owned();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        _ = writeln!(text, "  {kind}_temp_path tmp_{kind};");
    }
    text + "  types { text/html html; application/json json; }\n"
        + &format!("  server {{ listen {addr}; root www; index index.html; }}\n}}\n")
}

/// Callers that know nothing of the mesh: they dial what the configuration declares.
///
/// Each is a loop in sh around a program of Debian, which writes the numbers of good and failed calls.
pub fn callers(dir: &Path, places: &Places, find: Find) -> Result<Vec<Program>> {
    let sh = sh::find("sh").context("no sh on the PATH")?;
    let mut all = Vec::new();
    let mut add = |name: &str, whom: SocketAddr, script: String, stand_in: [&str; 2]| {
        let counts = dir.join(format!("{name}.counts"));
        let file = counts.display();
        let program = if let Some(program) = find(name) {
            let script = format!(
                "p='{}'; ok=0; bad=0; while :; do\n{script}\necho \"$ok $bad\" >'{file}'\ndone",
                program.display()
            );
            Program::real(name, format!("calls {whom}"), "callers", sh.clone(), &["-c".to_owned(), script])
        } else {
            let args = [stand_in[0], &whom.to_string(), &file.to_string(), stand_in[1]].map(str::to_owned);
            Program::stand_in(name, format!("calls {whom}"), "callers", &args)
        };
        all.push(Program { counts: Some(counts), ..program });
    };

    let (web, redis) = (places.call_web, places.call_redis);
    let curl = format!(
        "if \"$p\" -fsS --max-time 2 -o /dev/null http://{web}/idc.json; then ok=$((ok+1)); else bad=$((bad+1)); fi\n\
         sleep 0.2"
    );
    add("curl", web, curl, ["call-web", "200"]);

    // wrk knows no rate, but a pause before each request: 4 connections with 10 ms make some 350 a second,
    // which leaves a small machine to its user.
    let lua = dir.join("gentle.lua");
    fs::write(&lua, "function delay() return 10 end\n")?;
    let wrk = format!(
        "out=$(\"$p\" -t1 -c4 -d5s --timeout 2s -s '{}' http://{web}/ 2>&1)\n\
         n=$(echo \"$out\" | sed -n 's/^ *\\([0-9]*\\) requests in.*/\\1/p')\n\
         f=$(echo \"$out\" | sed -n 's/.*Non-2xx or 3xx responses: //p; s/.*Socket errors: //p' | tr -c '0-9\\n' ' ' \
         | tr ' ' '\\n' | awk '{{ s += $1 }} END {{ print s + 0 }}')\n\
         if [ -z \"$n\" ]; then echo \"$out\"; n=0; f=1; sleep 1; fi\n\
         ok=$((ok+n)); bad=$((bad+f)); if [ \"$f\" != 0 ]; then echo \"$out\"; fi",
        lua.display()
    );
    add("wrk", web, wrk, ["call-web", "10"]);

    let redis_cli = format!(
        "n=$(\"$p\" -h {} -p {} -r 20 -i 0.05 INCR calls | grep -c '^[0-9]'); ok=$((ok+n)); bad=$((bad+20-n))\n\
         if [ \"$n\" = 0 ]; then sleep 1; fi",
        redis.ip(),
        redis.port()
    );
    add("redis-cli", redis, redis_cli, ["call-redis", "50"]);

    // Callers whose rate is turned up: no program of Debian changes it while it runs.
    let (counts, whom) = (dir.join("orders.counts"), places.call_orders);
    let (file, load) = (counts.display().to_string(), dir.join(center::LOAD).display().to_string());
    let args = ["call-shop", &whom.to_string(), &file, &center::RATE.to_string(), &load].map(str::to_owned);
    let program = Program::stand_in("shop", format!("calls {whom}"), "callers", &args);
    all.push(Program { name: "shop".to_owned(), counts: Some(counts), ..program });
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(callers: Option<PathBuf>) -> Places {
        Places::find(callers).unwrap()
    }

    #[test]
    fn the_configuration_follows_the_way_of_capture() {
        let ebpf = places(Some("/sys/fs/cgroup/x/callers".into())).yaml("demo");
        assert!(ebpf.contains("  enroll: [{cgroup: \"/sys/fs/cgroup/x/callers\"}]\n"), "{ebpf}");
        assert!(ebpf.contains("    address: 240.0.0.1:80\n    registry: center\n"), "{ebpf}");
        let port = places(None);
        let yaml = port.yaml("demo");
        assert!(yaml.contains("capture: port\n"), "{yaml}");
        assert!(yaml.contains(&format!("    address: 240.0.0.2:6379\n    listen: {}\n", port.call_redis)), "{yaml}");
        assert!(port.call_web.ip().is_loopback());
    }

    #[test]
    fn ports_of_others_are_left_to_them() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_ne!(process::port(port).unwrap(), port);
    }
}
