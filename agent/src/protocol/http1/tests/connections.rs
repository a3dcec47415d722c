//! Which connections are used for what, and how they end.

use model::Snapshot;

use super::*;
use crate::{
    config,
    protocol::{http1::pool::Pool, testing::closed_port},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";

impl Front {
    fn pooled(&self) -> usize {
        let endpoints = self.cluster.endpoints();
        endpoints.endpoints.iter().filter_map(|e| e.existing_pool::<Arc<Pool>>()).map(|p| p.idle()).sum()
    }
}

/// Answers one request on its first connection, and closes when the second has come; answers all on others.
async fn closing_on_reuse() -> Backend {
    Backend::start(|number, mut peer, requests| async move {
        while peer.message().await.is_some() {
            if requests.fetch_add(1, Ordering::SeqCst) == 1 && number == 0 {
                return;
            }
            peer.send(ok("done")).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_race_with_a_closing_endpoint_does_nothing_twice() {
    // Asking again is harmless, so nobody notices.
    let backend = closing_on_reuse().await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    assert_eq!(caller.ask(GET).await.status(), 200);
    assert_eq!(caller.ask(GET).await.status(), 200);
    assert_eq!((backend.connections(), backend.requests()), (2, 3));
    // The endpoint may have done it, so it is not done again.
    let backend = closing_on_reuse().await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    assert_eq!(caller.ask(POST).await.status(), 200);
    let answer = caller.ask(POST).await;
    assert_eq!((answer.status(), answer.header("x-sockmesh-error")), (502, Some("reset")));
    assert_eq!((backend.connections(), backend.requests()), (1, 2));
    assert_eq!(caller.ask(POST).await.status(), 200);
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_nobody_a_request() {
    let backend = Backend::start(|_, mut peer, requests| async move {
        peer.message().await.unwrap();
        peer.send(ok("done")).await;
        requests.fetch_add(1, Ordering::SeqCst);
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for i in 1..20 {
        assert_eq!(caller.ask(POST).await.status(), 200);
        within(async {
            while backend.requests() < i {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert_eq!(mesh.ended(), (19, 0));
}

#[tokio::test]
async fn requests_that_reached_nobody_go_elsewhere() {
    let backend = Backend::mirror().await;
    let dead = closed_port().await;
    let mesh = front(NAME, &[dead, backend.addr], Settings::default()).await;
    let mut caller = mesh.caller().await;
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    for request in [GET, POST, chunked, POST, chunked, GET] {
        let answer = caller.ask(request).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.text().ends_with("\nx"), request != GET, "the body came along");
    }
    assert_eq!(mesh.ended(), (6, 0));
}

#[tokio::test]
async fn what_may_be_done_twice_is_tried_elsewhere_with_its_body() {
    let rude = Backend::start(|_, mut peer, requests| async move {
        if peer.message().await.is_some() {
            requests.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let backend = Backend::mirror().await;
    let put = |n: usize| format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {n}\r\n\r\n{}", "x".repeat(n));
    for (idempotent, request, status) in
        [(false, put(10), 200), (false, put(100_000), 502), (false, POST.to_owned(), 502), (true, POST.to_owned(), 200)]
    {
        let cluster = config::Cluster { idempotent, ..Default::default() };
        let mesh = front(NAME, &[rude.addr, backend.addr], Settings { cluster, ..Default::default() }).await;
        let mut caller = mesh.caller().await;
        let before = rude.requests();
        let answers = [caller.ask(&request).await.status(), caller.ask(&request).await.status()];
        // Whichever of the two came to the rude one first.
        assert_eq!(*answers.iter().max().unwrap(), status, "{}", &request[..40]);
        let asked = rude.requests() - before;
        assert!(asked == 1 || (asked == 2 && status == 200), "{asked} times");
    }
}

#[tokio::test]
async fn failures_have_their_status() {
    let refused = front(NAME, &[closed_port().await], Settings::default()).await;
    let answer = refused.caller().await.ask(GET).await;
    assert_eq!((answer.status(), answer.header("x-sockmesh-error")), (503, Some("connect")));
    let nobody = front(NAME, &[], Settings::default()).await;
    let answer = nobody.caller().await.ask(GET).await;
    assert_eq!((answer.status(), answer.header("x-sockmesh-error")), (503, Some("no_endpoint")));
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.text(), "sockmesh: no endpoint of web is known\n");
    let silent = Backend::start(|_, mut peer, _| async move {
        peer.message().await;
        peer.message().await;
    })
    .await;
    let cluster = config::Cluster { timeout: Some(Duration::from_millis(50)), ..Default::default() };
    let mesh = silent.mesh_with(Settings { cluster, ..Default::default() }).await;
    let mut caller = mesh.caller().await;
    for _ in 0..2 {
        let answer = caller.ask(POST).await;
        assert_eq!((answer.status(), answer.header("x-sockmesh-error")), (504, Some("timeout")));
    }
    // A connection whose answer may still come is of no use to anyone.
    assert_eq!(silent.connections(), 2);
    assert_eq!(mesh.ended(), (0, 2));
    // And the user's own failures are passed on, and count.
    let failing = Backend::answering(|_| "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_owned()).await;
    let mesh = failing.mesh().await;
    let answer = mesh.caller().await.ask(POST).await;
    assert_eq!((answer.status(), answer.header("x-sockmesh-error")), (500, None));
    assert_eq!(mesh.ended(), (0, 1));
}

#[tokio::test]
async fn a_body_that_nobody_wants_is_read_or_the_end_is_told() {
    let nobody = front(NAME, &[], Settings::default()).await;
    let mut caller = nobody.caller().await;
    for _ in 0..2 {
        caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n").await;
        // The answer is there before the body has left.
        let answer = caller.message().await.unwrap();
        assert_eq!((answer.status(), answer.header("connection")), (503, None));
        caller.send("hello").await;
    }
    assert_eq!(caller.ask(GET).await.status(), 503, "the connection goes on");
    for more in ["Content-Length: 100000", "Transfer-Encoding: chunked", "Content-Length: 5\r\nExpect: 100-continue"] {
        let mut caller = nobody.caller().await;
        caller.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{more}\r\n\r\n")).await;
        let answer = caller.message().await.unwrap();
        assert_eq!((answer.status(), answer.header("connection")), (503, Some("close")), "{more}");
    }
}

#[tokio::test]
async fn no_more_connections_are_kept_than_configured() {
    let gate = Arc::new(tokio::sync::Barrier::new(6));
    let held = gate.clone();
    let backend = Backend::start(move |_, mut peer, _| {
        let gate = held.clone();
        async move {
            while peer.message().await.is_some() {
                gate.wait().await;
                peer.send(ok("done")).await;
            }
        }
    })
    .await;
    let cluster = config::Cluster { idle_connections: 2, ..Default::default() };
    let mesh = backend.mesh_with(Settings { cluster, ..Default::default() }).await;
    let mut callers = Vec::new();
    for _ in 0..6 {
        let mut caller = mesh.caller().await;
        caller.send(GET).await;
        callers.push(caller);
    }
    for caller in &mut callers {
        assert_eq!(caller.message().await.unwrap().status(), 200);
    }
    assert_eq!(backend.connections(), 6);
    assert_eq!(mesh.pooled(), 2);
}

#[tokio::test]
async fn idle_connections_are_closed_after_their_time() {
    let backend = Backend::start(|_, mut peer, requests| async move {
        peer.message().await.unwrap();
        peer.send(ok("done")).await;
        // Not `within`: time is about to fly.
        assert_eq!(peer.io.read(&mut [0]).await.unwrap(), 0);
        requests.fetch_add(1, Ordering::SeqCst);
    })
    .await;
    let cluster = config::Cluster { idle_timeout: Duration::from_secs(60), ..Default::default() };
    let mesh = backend.mesh_with(Settings { cluster, ..Default::default() }).await;
    let mut caller = mesh.caller().await;
    caller.ask(GET).await;
    assert_eq!(mesh.pooled(), 1);
    let started = tokio::time::Instant::now();
    tokio::time::pause();
    while backend.requests() == 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(started.elapsed() < Duration::from_secs(130));
    }
    assert!(started.elapsed() > Duration::from_secs(58), "{:?}", started.elapsed());
}

#[tokio::test]
async fn callers_that_endpoints_see_share_no_connection() {
    let backend = Backend::answering(|_| ok("done")).await;
    let cluster = config::Cluster { client_address: true, ..Default::default() };
    let mesh = backend.mesh_with(Settings { cluster, ..Default::default() }).await;
    let (mut one, mut other) = (mesh.caller().await, mesh.caller().await);
    for _ in 0..3 {
        assert_eq!(one.ask(GET).await.status(), 200);
        assert_eq!(other.ask(GET).await.status(), 200);
    }
    assert_eq!((backend.connections(), mesh.pooled()), (2, 2));
    drop(one);
    within(async {
        while mesh.pooled() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(other.ask(GET).await.status(), 200);
    assert_eq!(backend.connections(), 2, "the other's connection is still there");
}

#[tokio::test]
async fn connections_that_endpoints_close_do_not_stay() {
    let backend = Backend::start(|_, mut peer, _| async move {
        peer.message().await.unwrap();
        peer.send(ok("done")).await;
        // Closed when it has been idle for a while.
        if peer.message().await.is_some() {
            peer.send(ok("done")).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    caller.ask(GET).await;
    caller.ask(GET).await;
    assert_eq!(mesh.pooled(), 1);
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    while mesh.pooled() > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(started.elapsed() < Duration::from_secs(20), "long before its own time it is gone");
    }
}

#[tokio::test]
async fn an_endpoint_that_leaves_finishes_its_answers_and_keeps_no_connection() {
    let (finish, finished) = tokio::sync::watch::channel(false);
    let backend = Backend::start(move |_, mut peer, requests| {
        let mut finished = finished.clone();
        async move {
            while let Some(request) = peer.message().await {
                if request.head.starts_with("GET /slow") {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234").await;
                    finished.wait_for(|f| *f).await.unwrap();
                    peer.send("56789").await;
                } else {
                    peer.send(ok("done")).await;
                }
            }
            requests.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let mesh = backend.mesh().await;
    let (mut slow, mut quick) = (mesh.caller().await, mesh.caller().await);
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = slow.block().await.unwrap();
    quick.ask(GET).await;
    assert_eq!(mesh.pooled(), 1);
    mesh.cluster.apply(&Snapshot { revision: 2, instances: Vec::new(), stale: None });
    assert_eq!(quick.ask(GET).await.status(), 503);
    finish.send(true).unwrap();
    assert_eq!(slow.body(head, false).await.text(), "0123456789");
    // With its last answer the endpoint is gone, and its connections with it.
    within(async {
        while backend.requests() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_stop_says_goodbye() {
    let (finish, finished) = tokio::sync::watch::channel(false);
    let backend = Backend::start(move |_, mut peer, requests| {
        let mut finished = finished.clone();
        async move {
            peer.message().await.unwrap();
            requests.fetch_add(1, Ordering::SeqCst);
            finished.wait_for(|f| *f).await.unwrap();
            peer.send(ok("done")).await;
        }
    })
    .await;
    let mut mesh = backend.mesh().await;
    let (mut idle, mut busy) = (mesh.caller().await, mesh.caller().await);
    busy.send(GET).await;
    within(async {
        while backend.requests() == 0 || mesh.live.len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let drainer = mesh.drainer.take().unwrap();
    let draining = tokio::spawn(drainer.drain(LIMIT));
    assert!(idle.is_over().await, "an idle connection ends at once");
    assert!(!draining.is_finished());
    finish.send(true).unwrap();
    let answer = busy.message().await.unwrap();
    assert_eq!((answer.text(), answer.header("connection")), ("done", Some("close")));
    assert!(busy.is_over().await);
    assert!(within(draining).await.unwrap(), "in time");
}

#[tokio::test]
async fn a_stop_fails_no_request_of_a_busy_caller() {
    let backend = Backend::mirror().await;
    let mut mesh = backend.mesh().await;
    let mut callers = Vec::new();
    for _ in 0..8 {
        let mut caller = mesh.caller().await;
        callers.push(tokio::spawn(async move {
            let mut answers = 0;
            loop {
                answers += 1;
                if caller.ask(GET).await.header("connection") == Some("close") {
                    return answers;
                }
            }
        }));
    }
    within(async {
        while backend.requests() < 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let drainer = mesh.drainer.take().unwrap();
    assert!(drainer.drain(LIMIT).await);
    for caller in callers {
        assert!(within(caller).await.unwrap() > 1);
    }
}

#[tokio::test]
async fn a_connection_sleeps_and_wakes_as_if_nothing_were() {
    let backend = Backend::mirror().await;
    let limits = config::Limits { idle_timeout: Duration::from_secs(15), ..Default::default() };
    let mut mesh = backend.mesh_with(Settings { limits, ..Default::default() }).await;
    let (mut caller, mut other) = (mesh.caller().await, mesh.caller().await);
    let sleep = async |seconds| {
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    other.ask(GET).await;
    sleep(12).await;
    for i in 0..3 {
        let answer = caller.ask(format!("GET /{i} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(answer.text().starts_with(&format!("GET /{i} ")), "{answer:?}");
        // Time of a head ends with it. In the middle of a head nothing sleeps, and refusals are counted right.
        caller.send("GET / HTTP/1.1\r\nHo").await;
        sleep(6).await;
        assert_eq!(caller.ask("st: a\r\n\r\n").await.status(), 200);
        sleep(12).await;
    }
    assert!(other.is_over().await, "it slept beyond its time");
    assert_eq!(mesh.live.len(), 1);
    let mut refused = mesh.caller().await;
    refused.ask(GET).await;
    sleep(5).await;
    assert_eq!(refused.ask("GET / HTTP/1.1\r\n\r\n").await.status(), 400);
    // A stop wakes the sleeping.
    assert!(mesh.drainer.take().unwrap().drain(LIMIT).await);
    assert!(caller.is_over().await);
}

#[tokio::test]
async fn connections_dialled_by_detection_are_used() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let io = TcpStream::connect(backend.addr).await.unwrap();
    mesh.cluster.adopt(backend.addr, io.into());
    assert_eq!(mesh.pooled(), 1);
    assert_eq!(mesh.caller().await.ask(POST).await.status(), 200);
    assert_eq!(backend.connections(), 1);
}

/// Runs a program when the machine has it.
async fn run(program: &'static str, args: &[&str]) -> Option<String> {
    let mut command = std::process::Command::new(program);
    command.args(args);
    match within(tokio::task::spawn_blocking(move || command.output())).await.unwrap() {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => {
            println!("skipped: {program}: {error}");
            None
        }
    }
}

#[tokio::test]
async fn real_programs_are_served() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let url = format!("http://{}/x", mesh.addr);
    let big = "y".repeat(5000);
    if let Some(said) = run("curl", &["-sS", "--fail", "-d", &big, "-H", "Expect: 100-continue", &url, &url]).await {
        assert_eq!(said.matches(&big).count(), 2, "{said}");
    }
    let script = format!(
        "import http.client\nc = http.client.HTTPConnection('{}')\n\
         for i in range(3):\n  c.request('PUT', '/p', body=iter([b'ab', b'cd']), encode_chunked=True, \
         headers={{'Transfer-Encoding': 'chunked'}})\n  print(c.getresponse().read().decode()[-4:])",
        mesh.addr
    );
    if let Some(said) = run("python3", &["-c", &script]).await {
        assert_eq!(said, "abcd\n".repeat(3));
    }
}
