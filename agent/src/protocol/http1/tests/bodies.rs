//! Bodies that break off, and answers that do not wait for the request.

use super::*;

/// How an endpoint says where its answer ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Length,
    Chunked,
    Close,
}

const BODY: &str = "0123456789abcdefghijklmnopqrstuvwxyz";

fn answer(framing: Framing) -> String {
    match framing {
        Framing::Length => ok(BODY),
        Framing::Chunked => format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n{}\r\n1a\r\n{}\r\n0\r\n\r\n",
            &BODY[..10],
            &BODY[10..]
        ),
        Framing::Close => format!("HTTP/1.1 200 OK\r\n\r\n{BODY}"),
    }
}

/// An endpoint that sends the first `cut` bytes of its answer and then closes or resets.
async fn cutting(framing: Framing, cut: usize, reset: bool) -> Backend {
    Backend::start(move |_, mut peer, _| async move {
        peer.message().await;
        peer.send(&answer(framing)[..cut]).await;
        if reset {
            crate::protocol::tcp::reset_on_close(&peer.io);
        }
    })
    .await
}

#[tokio::test]
async fn a_truncated_answer_never_looks_complete() {
    for framing in [Framing::Length, Framing::Chunked, Framing::Close] {
        let whole = answer(framing).len();
        for reset in [false, true] {
            if framing == Framing::Close && !reset {
                // A clean end is the end.
                continue;
            }
            let last = if framing == Framing::Close { whole } else { whole - 1 };
            for cut in 0..=last {
                let backend = cutting(framing, cut, reset).await;
                let mesh = backend.mesh().await;
                for version in ["1.1", "1.0"] {
                    let mut caller = mesh.caller().await;
                    caller.send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n")).await;
                    let case = format!("{framing:?} cut at {cut} of {whole}, reset {reset}, HTTP/{version}");
                    if let Some(seen) = caller.message().await
                        && seen.status() == 200
                    {
                        assert!(!seen.complete, "{case}: {seen:?}");
                        assert!(BODY.as_bytes().starts_with(&seen.body), "{case}: {seen:?}");
                    }
                    // Else 502, or the connection broke: nobody takes that for the answer.
                }
                mesh.quiet().await;
                assert_eq!(mesh.ended(), (0, 2), "{framing:?} cut at {cut}");
            }
        }
    }
}

#[tokio::test]
async fn a_truncated_request_never_looks_complete() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    for request in [
        format!("{head}Content-Length: 10\r\n\r\n0123456789"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\nX: y\r\n\r\n"),
    ] {
        let start = request.find("\r\n\r\n").unwrap() + 4;
        for cut in start..request.len() {
            let backend = Backend::start(|_, mut peer, requests| async move {
                if let Some(request) = peer.message().await {
                    assert!(!request.complete, "{request:?}");
                    requests.fetch_add(1, Ordering::SeqCst);
                }
            })
            .await;
            let mesh = backend.mesh().await;
            let mut caller = mesh.caller().await;
            caller.send(&request[..cut]).await;
            caller.io.shutdown().await.unwrap();
            assert!(caller.message().await.is_none_or(|answer| answer.status() != 200));
            mesh.quiet().await;
        }
    }
}

#[tokio::test]
async fn garbage_is_not_passed_on() {
    for garbage in [
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 9 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
        "\0\0\0\0",
    ] {
        let backend = Backend::answering(|_| garbage.to_owned()).await;
        let mesh = backend.mesh().await;
        let mut caller = mesh.caller().await;
        let answer = caller.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
        assert_eq!((answer.status(), answer.header("x-sockmesh-error")), (502, Some("protocol")), "{garbage:?}");
        assert!(answer.text().contains(&backend.addr.to_string()), "{}", answer.text());
        assert_eq!(backend.requests(), 1, "sent once");
        // The caller's connection is as good as before.
        assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 502);
    }
}

#[tokio::test]
async fn a_bad_chunk_breaks_the_answer_off() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0x5\r\nhello\r\n0\r\n\r\n".to_owned()
    })
    .await;
    let mesh = backend.mesh().await;
    let answer = mesh.caller().await.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!answer.complete);
}

#[tokio::test]
async fn an_answer_does_not_wait_for_the_request() {
    let backend = Backend::start(|_, mut peer, _| async move {
        peer.block().await.unwrap();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n").await;
        // An echo while both bodies are under way.
        assert_eq!(peer.line().await.unwrap(), "5\r\n");
        assert_eq!(peer.take(7).await.unwrap(), b"hello\r\n");
        peer.send("5\r\nhello\r\n").await;
        assert_eq!(peer.take(5).await.unwrap(), b"0\r\n\r\n");
        peer.send("0\r\n\r\n").await;
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert!(caller.block().await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(caller.take(7).await.unwrap(), b"2\r\nhi\r\n");
    caller.send("5\r\nhello\r\n").await;
    assert_eq!(caller.take(10).await.unwrap(), b"5\r\nhello\r\n");
    caller.send("0\r\n\r\n").await;
    assert_eq!(caller.take(5).await.unwrap(), b"0\r\n\r\n");
}

#[tokio::test]
async fn a_request_goes_on_while_nobody_reads_its_answer() {
    // More than all buffers on the way hold.
    const BYTES: usize = 16 << 20;
    let backend = Backend::start(|_, mut peer, _| async move {
        peer.block().await.unwrap();
        let early = peer.seen.len();
        let (mut from, mut to) = peer.io.split();
        let answer = async {
            to.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").as_bytes()).await.unwrap();
            to.write_all(&vec![b'a'; BYTES]).await.unwrap();
        };
        let request = async {
            let mut left = BYTES - early;
            let mut buf = vec![0; 1 << 16];
            while left > 0 {
                left -= from.read(&mut buf).await.unwrap();
            }
        };
        tokio::join!(answer, request);
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    caller.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BYTES}\r\n\r\n")).await;
    caller.send(vec![b'q'; BYTES]).await;
    let answer = caller.message().await.unwrap();
    assert!(answer.complete);
    assert_eq!(answer.body.len(), BYTES);
}

#[tokio::test]
async fn a_refused_upload_ends_with_the_answer() {
    for resets in [false, true] {
        let backend = Backend::start(move |_, mut peer, _| async move {
            peer.block().await.unwrap();
            peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig").await;
            // With unread bytes in its socket the close is a reset; else it reads on for a while.
            while !resets && peer.fill(peer.seen.len() + 1).await {
                peer.seen.clear();
            }
        })
        .await;
        let mesh = backend.mesh().await;
        let caller = mesh.caller().await;
        let (read, mut write) = caller.io.into_split();
        let sending = async {
            write.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
            while write.write_all(&[b'x'; 16 * 1024]).await.is_ok() {}
        };
        let receiving = async {
            let mut answer = Vec::new();
            let mut read = read;
            while !answer.ends_with(b"\r\n\r\nbig") {
                assert_ne!(read.read_buf(&mut answer).await.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
            }
            assert!(answer.starts_with(b"HTTP/1.1 413"));
        };
        within(async {
            tokio::select! {
                () = sending => panic!("the answer comes before the upload ends"),
                () = receiving => {}
            }
        })
        .await;
    }
}

#[tokio::test]
async fn big_bodies_arrive_intact() {
    let backend = Backend::answering(|request| ok(request.text())).await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    let body: String = (0..300_000).map(|i| format!("{i:07}")).collect();
    let chunked: String = body
        .as_bytes()
        .chunks(70_001)
        .map(|c| format!("{:x}\r\n{}\r\n", c.len(), String::from_utf8_lossy(c)))
        .collect();
    for request in [
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}0\r\n\r\n"),
    ] {
        assert!(caller.ask(request).await.text() == body);
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn slow_readers_get_everything() {
    const BYTES: usize = 8_000_000;
    let backend = Backend::answering(|_| ok(&"x".repeat(BYTES))).await;
    for (request, stop) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
    ] {
        let mut mesh = backend.mesh().await;
        let mut caller = mesh.caller().await;
        socket2::SockRef::from(&caller.io).set_recv_buffer_size(65_536).unwrap();
        caller.send(request).await;
        caller.io.readable().await.unwrap();
        if stop {
            tokio::spawn(mesh.drainer.take().unwrap().drain(LIMIT));
        }
        // Longer than anything idle is kept.
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(5)).await;
        tokio::time::resume();
        let answer = caller.message().await.unwrap();
        assert!(answer.complete && answer.body.len() == BYTES, "{} bytes", answer.body.len());
        if stop {
            assert!(caller.is_over().await);
        }
    }
}
