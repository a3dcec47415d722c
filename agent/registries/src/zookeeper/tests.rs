//! A connection against servers that no ZooKeeper would be.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    access::{Access, Acl, Login},
    build,
    conn::{Closed, Conn, Failure, Watcher},
    wire::{Code, Identity},
};
use crate::BuildCx;

const SILENCE: Duration = Duration::from_secs(30);

/// A server whose first connection is served by `serve` after the client's greeting was read.
async fn server<F: Future<Output = ()> + Send>(serve: impl FnOnce(TcpStream) -> F + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        let mut hello = [0; 49];
        io.read_exact(&mut hello).await.unwrap();
        serve(io).await;
    });
    at
}

/// The answer to a greeting: session 7, `silence` milliseconds.
fn welcome(silence: i32) -> Vec<u8> {
    let mut out = vec![0, 0, 0, 37, 0, 0, 0, 0];
    out.extend(silence.to_be_bytes());
    out.extend(7_i64.to_be_bytes());
    out.extend([0, 0, 0, 16]);
    out.extend([1; 16]);
    out.push(0);
    out
}

/// Number and kind of the next request that is no ping, and its body.
async fn request(io: &mut TcpStream) -> (i32, i32, Vec<u8>) {
    loop {
        let length = io.read_i32().await.unwrap();
        let (number, kind) = (io.read_i32().await.unwrap(), io.read_i32().await.unwrap());
        let mut body = vec![0; length as usize - 8];
        io.read_exact(&mut body).await.unwrap();
        if number != -2 {
            return (number, kind, body);
        }
    }
}

fn answer(number: i32, code: i32, body: &[u8]) -> Vec<u8> {
    let mut out = (body.len() as i32 + 16).to_be_bytes().to_vec();
    out.extend(number.to_be_bytes());
    out.extend(9_i64.to_be_bytes());
    out.extend(code.to_be_bytes());
    out.extend(body);
    out
}

async fn open(at: &str) -> Result<Conn, Closed> {
    Conn::open(at, &Identity::default(), SILENCE, &Access::default()).await
}

#[tokio::test]
async fn who_is_no_zookeeper_is_told_from_one_that_is_not_ready() {
    let http = server(async |mut io| drop(io.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await)).await;
    assert!(matches!(open(&http).await, Err(Closed::Other(why)) if why.contains("no ZooKeeper server")));
    let hangs_up = server(async |io| drop(io)).await;
    assert!(matches!(open(&hangs_up).await, Err(Closed::Unanswered)));
    let over = server(async |mut io| drop(io.write_all(&welcome(0)).await)).await;
    assert!(matches!(open(&over).await, Err(Closed::Expired)));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    assert!(matches!(open(&nobody).await, Err(Closed::Other(why)) if why.contains("cannot connect")));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection_and_what_waits_on_it() {
    let mute = server(async |_io| std::future::pending().await).await;
    assert!(matches!(open(&mute).await, Err(Closed::Other(why)) if why.contains("no answer within")));
    let freezes = server(async |mut io| {
        io.write_all(&welcome(3000)).await.unwrap();
        std::future::pending().await
    })
    .await;
    let conn = open(&freezes).await.unwrap();
    assert_eq!(conn.data("/a", None).await, Err(Failure::Lost));
    assert!(conn.ended().await.contains("silent for 2s"));
}

#[tokio::test]
async fn what_makes_no_sense_ends_a_connection() {
    let huge = i32::MAX.to_be_bytes().repeat(8);
    let other = answer(77, 0, &[]);
    let short = answer(1, 0, &[])[..].to_vec();
    for (what, said, is) in [("huge", huge, true), ("another's answer", other, true), ("cut", short, false)] {
        let at = server(async move |mut io| {
            io.write_all(&welcome(30_000)).await.unwrap();
            request(&mut io).await;
            io.write_all(&said).await.unwrap();
            std::future::pending().await
        })
        .await;
        let conn = open(&at).await.unwrap();
        let result = conn.data("/a", None).await;
        assert_eq!(result, Err(if is { Failure::Lost } else { Failure::Malformed }), "{what}");
        if is {
            assert!(conn.ended().await.contains("makes no sense"), "{what}");
        }
    }
}

#[tokio::test]
async fn large_data_is_passed_over_and_watches_fire_once() {
    let at = server(async |mut io| {
        io.write_all(&welcome(30_000)).await.unwrap();
        let (number, _, _) = request(&mut io).await;
        io.write_all(&answer(number, 0, &vec![0; 3 << 20])).await.unwrap();
        let (number, kind, body) = request(&mut io).await;
        assert_eq!((kind, &body[..]), (3, &b"\0\0\0\x02/a\x01"[..]));
        // The event overtakes what the client does with the answer.
        let mut both = answer(number, -101, &[]);
        both.extend(answer(-1, 0, b"\0\0\0\x01\0\0\0\x03\0\0\0\x02/a"));
        io.write_all(&both).await.unwrap();
        let (_, kind, _) = request(&mut io).await;
        assert_eq!(kind, -11, "a farewell");
    })
    .await;
    let conn = open(&at).await.unwrap();
    assert!(matches!(conn.data("/large", None).await, Err(Failure::TooLarge(_))));
    let watcher = Arc::new(Watcher::default());
    assert_eq!(conn.exists("/a", Some(&watcher)).await, Ok(None));
    assert_eq!(watcher.fired().await, ["/a".to_owned()].into());
    assert_eq!((conn.session, conn.identity().seen), (7, 9));
    assert_eq!(Failure::Refused(Code::NO_NODE).to_string(), "no such node");
}

#[tokio::test]
async fn an_account_is_shown_before_anything_else_and_owns_what_is_made() {
    let at = server(async |mut io| {
        io.write_all(&welcome(30_000)).await.unwrap();
        let (number, kind, body) = request(&mut io).await;
        assert_eq!((number, kind), (-4, 100));
        assert_eq!(&body[..], b"\0\0\0\0\0\0\0\x06digest\0\0\0\x06me:pwd");
        io.write_all(&answer(-4, 0, &[])).await.unwrap();
        let (number, kind, body) = request(&mut io).await;
        assert_eq!(kind, 1);
        let acl = b"\0\0\0\x02\0\0\0\x1f\0\0\0\x04auth\0\0\0\0\0\0\0\x01\0\0\0\x05world\0\0\0\x06anyone";
        assert!(body.windows(acl.len()).any(|w| w == acl), "{body:?}");
        io.write_all(&answer(number, 0, &[])).await.unwrap();
        let _ = request(&mut io).await;
    })
    .await;
    let login = Some(Login::new("me", "pwd"));
    assert_eq!(format!("{login:?}"), "Some(Login(...))");
    let access = Access { login, acl: Acl::OwnerWrites, ..Access::default() };
    let conn = Conn::open(&at, &Identity::default(), SILENCE, &access).await.unwrap();
    conn.create("/a", b"x", true).await.unwrap();
    drop(conn);

    let refuses = server(async |mut io| {
        io.write_all(&welcome(30_000)).await.unwrap();
        request(&mut io).await;
        io.write_all(&answer(-4, -115, &[])).await.unwrap();
        std::future::pending().await
    })
    .await;
    let conn = Conn::open(&refuses, &Identity::default(), SILENCE, &access).await.unwrap();
    assert_eq!(conn.ended().await, "login: the account is refused");
}

#[tokio::test]
async fn a_server_without_quorum_is_told_from_one_that_knows_less() {
    for (said, waits) in
        [("This ZooKeeper instance is not currently serving requests\n", true), ("Mode: standalone\n", false)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut hello = [0; 49];
            io.read_exact(&mut hello).await.unwrap();
            drop(io);
            let (mut io, _) = listener.accept().await.unwrap();
            let mut word = [0; 4];
            io.read_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"srvr");
            io.write_all(said.as_bytes()).await.unwrap();
        });
        let seen = Identity { seen: 7, ..Identity::default() };
        let closed = Conn::open(&at, &seen, SILENCE, &Access::default()).await.err().unwrap();
        assert_eq!(matches!(closed, Closed::Waiting), waits, "{closed:?}");
        assert_eq!(matches!(closed, Closed::Unanswered), !waits, "{closed:?}");
    }
}

#[test]
fn options_that_let_nobody_in_are_refused() {
    let built = |more: &str| {
        let yaml = format!("{{address: '127.0.0.1:1'{more}}}");
        build(&serde_yaml::from_str(&yaml).unwrap(), &BuildCx::default()).map(drop).map_err(|e| format!("{e:#}"))
    };
    for more in ["", ", username: a, password: b", ", username: a, password: b, acl: owner_writes", ", acl: open"] {
        assert_eq!(built(more), Ok(()), "{more}");
    }
    for (more, why) in [
        (", acl: owner_only", "write `username`"),
        (", password: b", "without an account"),
        (", username: 'a:b'", "has a colon"),
        (", tls: {ca_file: /nowhere}", "/nowhere"),
        (", acl: mine", "mine"),
    ] {
        let told = built(more).unwrap_err();
        assert!(told.contains(why), "{more}: {told}");
    }
}
