//! Endpoints from a real DNS server: found, changed, and kept while it is killed or hangs.

use std::net::{SocketAddr, TcpStream};

use host::{Agent, Backend, Cmd, Need, Proc, Temp, free_port, http, lacks, until, wait::within};
use rustix::process::Signal;

const NEEDS: &[Need] = &[Need::Program("dnsmasq")];

/// A dnsmasq that knows only what it is told.
struct Dns {
    dir: Temp,
    port: u16,
    proc: Option<Proc>,
}

impl Dns {
    fn start(records: &str) -> Self {
        let mut dns = Self { dir: Temp::new(), port: free_port(), proc: None };
        dns.change(records);
        dns
    }

    /// Stops it on the spot and starts it at the same port with other records.
    #[track_caller]
    fn change(&mut self, records: &str) {
        self.kill();
        let config = format!(
            "no-resolv\nno-hosts\nno-daemon\nbind-interfaces\nlisten-address=127.0.0.1\nport={}\nlocal-ttl=1\n\
             local=/test/\nuser=root\n{records}",
            self.port
        );
        let file = self.dir.write("dnsmasq.conf", config);
        let cmd = Cmd::new(host::need::which("dnsmasq").expect("asked for before"));
        self.proc = Some(cmd.arg(format!("--conf-file={}", file.display())).spawn(&self.dir.file("log")));
        until("dnsmasq listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn kill(&mut self) {
        if let Some(mut proc) = self.proc.take() {
            proc.signal(Signal::KILL);
            proc.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        self.proc.as_ref().expect("it runs").signal(signal);
    }
}

fn mesh(options: &str) -> (Agent, SocketAddr) {
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let agent = Agent::start(&format!(
        "registries: {{names: {{kind: dns, {options}}}}}
referers:
  - {{service: web, protocol: http, listen: '{listen}', registry: names, lb: round_robin}}
"
    ));
    (agent, listen)
}

fn said(to: SocketAddr) -> Option<String> {
    http::get(to, "/").ok().filter(|answer| answer.status() == 200).map(|answer| answer.text())
}

#[test]
fn dns_srv_records_are_followed_and_kept_while_nobody_answers() {
    if lacks(NEEDS) {
        return;
    }
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let srv = |target: &str, at: SocketAddr, priority: u16| {
        format!(
            "host-record={target}.test,127.0.0.1\nsrv-host=_http._tcp.web.test,{target}.test,{},{priority},5\n",
            at.port()
        )
    };
    // One behind it is not called while there is one before.
    let mut dns = Dns::start(&format!("{}{}", srv("a", a.addr(), 1), srv("b", b.addr(), 2)));
    let (agent, to) = mesh(&format!("name: _http._tcp.web.test, server: '127.0.0.1:{}'", dns.port));
    until("the name is found", || said(to).as_deref() == Some("a"));
    assert!((0..10).all(|_| said(to).as_deref() == Some("a")));
    let stale = || agent.metric("sockmesh_service_stale", &["service=\"web\""]) > 0.0;

    dns.kill();
    until("it is shown that nobody answers", stale);
    assert!((0..10).all(|_| said(to).as_deref() == Some("a")), "the last list serves");
    dns.change(&format!("{}{}", srv("a", a.addr(), 1), srv("b", b.addr(), 1)));
    until("both are called", || said(to).as_deref() == Some("b"));
    until("nothing is old any more", || !stale());

    dns.signal(Signal::STOP);
    let noticed = within(std::time::Duration::from_secs(60), || stale().then_some(()));
    assert!(noticed.is_some(), "a server that hangs is noticed");
    assert!((0..10).all(|_| said(to).is_some()), "the last list serves");
    dns.signal(Signal::CONT);
    until("it is asked again", || !stale());
    // The name is gone: an empty list is not believed at once.
    dns.change("");
    until("it is held", stale);
    assert!((0..10).all(|_| said(to).is_some()), "nothing is lost");
}

#[test]
fn dns_addresses_with_a_port_are_endpoints() {
    if lacks(NEEDS) {
        return;
    }
    let a = Backend::named("a");
    let mut dns = Dns::start("host-record=web.test,127.0.0.1\ncname=alias.test,web.test\n");
    let nobody = free_port();
    let options = format!(
        "name: alias.test, port: {}, server: ['127.0.0.1:{nobody}', '127.0.0.1:{}']",
        a.addr().port(),
        dns.port
    );
    let (agent, to) = mesh(&options);
    until("the alias is found behind a resolver that is not there", || said(to).as_deref() == Some("a"));
    assert_eq!(agent.endpoints().len(), 1);
    dns.kill();
}
