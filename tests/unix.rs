//! Unix sockets in the place of addresses: callers' side, program's side, after a kill.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use host::{Agent, Backend, Cmd, Need, Temp, free_port, lacks, motan::Frame, wait::PATIENCE};

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// A Motan2 program at a unix socket that answers what it is sent; ends with this.
struct Program {
    path: std::path::PathBuf,
    over: Arc<AtomicBool>,
}

impl Program {
    fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let program = Self { path: path.to_owned(), over: over.clone() };
        thread::spawn(move || {
            while let Ok((io, _)) = listener.accept() {
                if over.load(Relaxed) {
                    return;
                }
                thread::spawn(move || {
                    while let Ok(Some(request)) = Frame::read(&io) {
                        let mut answer = request.answer(&request.body);
                        answer.meta.insert("seen-host".into(), request.meta("host").to_owned());
                        (&io).write_all(&answer.bytes()).unwrap();
                    }
                });
            }
        });
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        let _ = UnixStream::connect(&self.path);
    }
}

fn call(path: &Path, frame: &Frame) -> Frame {
    let mut io = UnixStream::connect(path).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    io.write_all(&frame.bytes()).unwrap();
    Frame::read(&io).unwrap().expect("an answer")
}

#[test]
fn unix_sockets_on_both_sides_of_two_agents() {
    let dir = Temp::new();
    let (to, local, export) = (dir.file("to.sock"), dir.file("local.sock"), addr());
    let _program = Program::start(&local);
    let _far = Agent::start(&format!(
        "services:\n  - {{service: s, protocol: motan2, export: {export}, local: 'unix:{}'}}",
        local.display()
    ));
    let config = format!(
        "referers:\n  - {{service: s, protocol: motan2, listen: 'unix:{}', endpoints: ['{export}']}}",
        to.display()
    );
    let mut near = Agent::start(&config);
    let answer = call(&to, &Frame::call("s", "m", "over sockets"));
    assert_eq!((answer.text().as_str(), answer.meta("seen-host")), ("over sockets", "127.0.0.1"));
    assert_eq!(answer.meta("x-forwarded-for"), export.to_string());

    // A killed agent leaves the file; the next one takes its place.
    near.kill9();
    assert!(to.exists());
    near.again();
    assert_eq!(call(&to, &Frame::call("s", "m", "again")).text(), "again");
    // A reload that does not touch it keeps it.
    near.rewrite(&format!(
        "{config}\n  - {{service: other, protocol: motan2, listen: {}, endpoints: ['127.0.0.1:9']}}",
        addr()
    ));
    near.cli("reload").ok();
    assert_eq!(call(&to, &Frame::call("s", "m", "and on")).text(), "and on");
}

#[test]
fn unix_socket_whose_program_is_gone_is_an_exception() {
    let dir = Temp::new();
    let (local, export) = (dir.file("nobody.sock"), addr());
    let _far = Agent::start(&format!(
        "services:\n  - {{service: s, protocol: motan2, export: {export}, local: 'unix:{}'}}",
        local.display()
    ));
    let answer = host::motan::Client::open(export).unwrap().call(Frame::call("s", "m", "x")).unwrap();
    assert_eq!(answer.thrown().0, 503);
}

#[test]
fn unix_sockets_carry_http_and_the_proxy() {
    if lacks(&[Need::Program("curl")]) {
        return;
    }
    let dir = Temp::new();
    let program = Backend::named("the program");
    let (http, proxy) = (dir.file("http.sock"), dir.file("proxy.sock"));
    let _agent = Agent::start(&format!(
        "referers:
  - {{service: web, protocol: http, listen: 'unix:{}', endpoints: ['{}']}}
http_proxy: {{listen: 'unix:{}'}}",
        http.display(),
        program.addr(),
        proxy.display()
    ));
    let curl = |socket: &Path, url: &str| {
        Cmd::new("curl").args(["-sS", "--max-time", "20", "--unix-socket"]).arg(socket.display()).arg(url).run().ok()
    };
    assert_eq!(curl(&http, "http://web/"), "the program");
    assert_eq!(curl(&proxy, &format!("http://{}/", program.addr())), "the program");
}

#[test]
fn unix_socket_is_not_put_over_a_file() {
    let dir = Temp::new();
    let file = dir.write("precious", "data");
    let config = dir.write(
        "mesh.yaml",
        format!(
            "name: unix-{}
ports: {{outbound: 0, inbound: 0, dns: 0, admin: '127.0.0.1:0'}}
capture: port
referers:
  - {{service: s, protocol: motan2, listen: 'unix:{}', endpoints: ['127.0.0.1:9']}}",
            std::process::id(),
            file.display()
        ),
    );
    let refused = host::agent::sockmesh("run -c").arg(config.display()).run().failed();
    assert!(refused.contains("a file that is no socket is there"), "{refused}");
    assert_eq!(fs::read_to_string(file).unwrap(), "data");
}
