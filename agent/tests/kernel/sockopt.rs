//! Programs that ask for what only TCP keeps are recognized by the option they set, and nothing else changes.

use ebpf_common::{Asked, Executable, Way};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use agent::{
    capture::{Capture as _, redirect::key_of},
    config::Redirect,
};

use crate::{
    bed::{Bed, LIMIT},
    need,
};

/// Says a line, sets the option argv[2] of level argv[1] to argv[3], says another; reads a line after each.
const ASKS: &str = "
import socket, sys
level, option, value = sys.argv[2:5]
s = socket.create_connection((sys.argv[1], 80))
f = s.makefile('rb')
def told(line):
    s.sendall(line)
    return f.readline()
first = told(b'before\\n')
try:
    value = int(value)
except ValueError:
    value = value.encode()
try:
    s.setsockopt(int(level), int(option), value)
except OSError as e:
    assert e.strerror == 'No such file or directory', e
second = told(b'after\\n')
print(first + second == b'before\\nafter\\n')
";

/// What the kernel half made of a program that sets an option after its first bytes.
struct Outcome {
    verdict: (u32, u32),
    /// How its last bytes went, and the agent's.
    ways: (Way, Way),
}

/// The bed's one program file is known to be fit for redirect; then it runs and sets `option` to `value`.
async fn ask(mode: Redirect, level: i32, option: i32, value: &str) -> Outcome {
    ask_in(mode, None, level, option, value).await
}

/// `entry` is what the entry says that enrolls the program.
async fn ask_in(host: Redirect, entry: Option<Redirect>, level: i32, option: i32, value: &str) -> Outcome {
    let mode = entry.unwrap_or(host);
    let bed = Bed::with(&["240.0.0.1:80"], |c| {
        c.redirect = host;
        c.enroll.iter_mut().for_each(|enroll| enroll.redirect = entry);
    })
    .await;
    let redirect = bed.ebpf().redirect().unwrap();
    redirect.trust().unwrap();
    // One that does nothing, so that the program file is known.
    let knows = bed.python(ASKS, &["240.0.0.1", "1", "9", "1"]);
    serve(&bed).await;
    assert_eq!(knows.done().await, "True");
    if mode == Redirect::Auto {
        let [(key, seen)] = redirect.executables().unwrap()[..] else { panic!("one program ran") };
        assert_eq!(seen.verdict, Executable::UNKNOWN, "SO_KEEPALIVE means nothing");
        redirect.set_executable(&key, &Executable { verdict: Executable::ON, ..seen }).unwrap();
    }
    let before = bed.counter("redirected");
    let program = bed.python(ASKS, &["240.0.0.1", &level.to_string(), &option.to_string(), value]);
    let ways = serve(&bed).await;
    assert_eq!(program.done().await, "True");
    assert!(bed.counter("redirected") > before, "the first lines went past TCP");
    if mode == Redirect::Auto {
        // The agent looks at programs as well; what the program itself asked for counts more.
        let (key, seen) = redirect.executables().unwrap()[0];
        let on = Executable { verdict: Executable::ON, reason: 0, ..seen };
        redirect.set_executable(&key, &on).unwrap();
    }
    let verdict = redirect.executables().unwrap().first().map_or((0, 0), |(_, e)| (e.verdict, e.reason));
    Outcome { verdict, ways }
}

/// Gives two lines back; how the last of them went.
async fn serve(bed: &Bed) -> (Way, Way) {
    let (mut io, _) = bed.accept().await;
    let key = key_of(&io).unwrap();
    let mut ways = (Way::Idle, Way::Idle);
    for line in ["before\n", "after\n"] {
        let mut got = vec![0; line.len()];
        timeout(LIMIT, io.read_exact(&mut got)).await.expect("no line comes").unwrap();
        assert_eq!(got, line.as_bytes());
        io.write_all(&got).await.unwrap();
        if let Some(seen) = bed.ebpf().redirect().unwrap().ends(&key) {
            ways = (seen.received, seen.sent);
        }
    }
    ways
}

#[tokio::test]
async fn who_asks_for_what_only_tcp_keeps_stays_on_tcp() {
    need!("who_asks_for_what_only_tcp_keeps_stays_on_tcp", "python3");
    for (level, option, value, asked) in [
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY, "1", Asked::Zerocopy),
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT, "2", Asked::LowWater),
        (libc::IPPROTO_TCP, libc::TCP_INQ, "1", Asked::Inquiry),
        // There need not be one of this name.
        (libc::IPPROTO_TCP, libc::TCP_ULP, "nonesuch", Asked::Ulp),
    ] {
        let seen = ask(Redirect::Auto, level, option, value).await;
        assert_eq!(seen.verdict, (Executable::OFF, asked as u32), "{asked:?}");
        assert_eq!(seen.ways, (Way::Asked, Way::Asked), "{asked:?}: this socket at once, both ways");
    }
}

#[tokio::test]
async fn who_asks_for_nothing_special_is_redirected_on() {
    need!("who_asks_for_nothing_special_is_redirected_on", "python3");
    for (option, value) in [(libc::SO_ZEROCOPY, "0"), (libc::SO_RCVLOWAT, "1"), (libc::SO_KEEPALIVE, "1")] {
        let seen = ask(Redirect::Auto, libc::SOL_SOCKET, option, value).await;
        assert_eq!(seen.verdict.0, Executable::ON);
        assert_eq!(seen.ways, (Way::Redirect, Way::Redirect));
    }
}

#[tokio::test]
async fn on_means_on() {
    need!("on_means_on", "python3");
    let seen = ask(Redirect::On, libc::SOL_SOCKET, libc::SO_RCVLOWAT, "2").await;
    assert_eq!(seen.ways, (Way::Redirect, Way::Redirect));
}

#[tokio::test]
async fn an_entry_goes_before_the_host() {
    need!("an_entry_goes_before_the_host", "python3");
    let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    let seen = ask_in(Redirect::Auto, Some(Redirect::On), level, option, "2").await;
    assert_eq!(seen.ways, (Way::Redirect, Way::Redirect));
    let seen = ask_in(Redirect::On, Some(Redirect::Auto), level, option, "2").await;
    assert_eq!(seen.verdict, (Executable::OFF, Asked::LowWater as u32));
    assert_eq!(seen.ways, (Way::Asked, Way::Asked));
}

/// Sets options with values of all lengths, before connecting, connected, and of another kind of socket.
const LENGTHS: &str = "
import socket, struct
def check(s):
    for length in (4, 5, 32, 33, 4095, 4096, 4097, 8192, 65536):
        for value in (0, 1):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, struct.pack('i', value) + bytes(length - 4))
            assert s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == value, (length, value)
    for short in (b'', b'1', b'123'):
        try:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, short)
            assert False, short
        except OSError as e:
            assert e.errno == 22, e
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        check(socket.socket(family, kind))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
s = socket.create_connection(('240.0.0.1', 80))
check(s)
s.sendall(b'x')
print('done')
";

#[tokio::test]
async fn options_of_all_lengths_are_set_as_without_a_hook() {
    need!("options_of_all_lengths_are_set_as_without_a_hook", "python3");
    let bed = Bed::with(&["240.0.0.1:80"], |c| c.redirect = Redirect::Auto).await;
    bed.ebpf().redirect().unwrap().trust().unwrap();
    let program = bed.python(LENGTHS, &[]);
    let (mut io, _) = bed.accept().await;
    io.read_exact(&mut [0]).await.unwrap();
    assert_eq!(program.done().await, "done");
    let [(_, seen)] = bed.ebpf().redirect().unwrap().executables().unwrap()[..] else { panic!("one program ran") };
    assert_eq!((seen.verdict, bed.counter("option_asked")), (Executable::UNKNOWN, 0), "nothing of it means anything");
}
