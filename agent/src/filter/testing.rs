//! What tests of filters are made of: calls without a cluster around them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{CallCx, Figure, Filter, Outcome, Record, Shows, Trying, Verdict, sample};
use crate::{
    call::{
        Body, Call, CallError, ErrorKind, Head, HttpHead, Motan2Head, Request, Response, ResponseHead, Retry, Status,
    },
    config,
    endpoint::{DialOptions, Endpoint},
    kind::{BuildCx, Value},
};

/// One filter and calls through it.
pub(crate) struct Bench {
    pub filter: Arc<dyn Filter>,
    cluster: Arc<super::ClusterInfo>,
}

/// A call that has not ended; dropped, its caller went away.
pub(crate) struct Begun<'a> {
    bench: &'a Bench,
    pub cx: CallCx,
    pub req: Request,
    over: bool,
}

/// A Motan2 call of this method.
pub(crate) fn motan(method: &str) -> Request {
    let mut call = Call::new("web".into(), method.into());
    call.deadline += Duration::from_secs(1);
    call.peer = Some(SocketAddr::from(([127, 0, 0, 1], 40000)));
    Request { call, head: Head::Motan2(Motan2Head::default()), body: Body::Full("hello".into()) }
}

/// An HTTP call.
pub(crate) fn http(method: &str) -> Request {
    let head = HttpHead {
        method: method.parse().unwrap(),
        uri: "/a?b=c".parse().unwrap(),
        headers: http::HeaderMap::new(),
        upgrade: None,
    };
    Request { head: Head::Http(Box::new(head)), ..motan(method) }
}

/// An error between agent and endpoint.
pub(crate) fn failed(kind: ErrorKind) -> CallError {
    CallError::upstream(kind, Retry::IfIdempotent, "scripted")
}

impl Bench {
    pub fn new(build: fn(&Value, &BuildCx) -> anyhow::Result<Arc<dyn Filter>>, options: &str) -> Self {
        Self::with(build, options, &BuildCx::default())
    }

    pub fn with(build: fn(&Value, &BuildCx) -> anyhow::Result<Arc<dyn Filter>>, options: &str, cx: &BuildCx) -> Self {
        let options = serde_yaml::from_str(options).unwrap();
        Self { filter: build(&options, cx).unwrap(), cluster: sample().cluster }
    }

    /// What an endpoint answers when all is well.
    pub fn good(&self) -> Response {
        Response {
            status: Status::Ok,
            head: ResponseHead::Motan2(Motan2Head::default()),
            body: Body::Full("done".into()),
            endpoint: Some(SocketAddr::from(([10, 0, 0, 1], 8081))),
        }
    }

    /// An endpoint that the filter knows of.
    pub fn endpoint(&self, port: u16) -> Arc<Endpoint> {
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let endpoint = Endpoint::new(at, "idc-a".into(), 10, config::Eject::default(), DialOptions::default());
        self.filter.on_endpoint(&endpoint);
        Arc::new(endpoint)
    }

    /// A call before it enters.
    pub fn enter(&self, req: Request) -> Begun<'_> {
        Begun { bench: self, cx: CallCx::new(self.cluster.clone()), req, over: false }
    }

    /// A call that entered, which the filter must let pass at once.
    pub fn begin(&self, req: Request) -> Begun<'_> {
        let mut begun = self.enter(req);
        assert!(matches!(self.filter.on_request(&mut begun.cx, &mut begun.req), Verdict::Continue));
        begun
    }

    /// A whole call; `answer` is what comes from inside.
    pub async fn call(
        &self,
        req: Request,
        answer: impl FnOnce() -> Result<Response, CallError>,
    ) -> Result<Response, CallError> {
        self.call_taking(req, Duration::ZERO, answer).await
    }

    /// A whole call whose answer takes its time.
    pub async fn call_taking(
        &self,
        req: Request,
        time: Duration,
        answer: impl FnOnce() -> Result<Response, CallError>,
    ) -> Result<Response, CallError> {
        let mut begun = self.enter(req);
        let mut verdict = self.filter.on_request(&mut begun.cx, &mut begun.req);
        while let Verdict::Wait(wait) = verdict {
            verdict = wait.await;
        }
        let end = match verdict {
            Verdict::Stop(answer) => *answer,
            _ => {
                if !time.is_zero() {
                    tokio::time::sleep(time).await;
                }
                answer()
            }
        };
        begun.end(end)
    }

    /// One attempt of a call of its own, which the filter lets pass or not.
    pub fn attempt(&self, to: &Arc<Endpoint>, end: Result<(), CallError>) -> Result<(), CallError> {
        let begun = self.begin(motan("echo"));
        begun.attempt(1, to, end)
    }

    pub fn figures(&self) -> Vec<Figure> {
        let mut all = Vec::new();
        self.filter.figures(&mut Shows::new(&mut |figure| all.push(figure)));
        all
    }

    #[track_caller]
    fn figure(&self, grows: bool, name: &str, of: &str) -> u64 {
        let all = self.figures();
        let found = all.iter().find(|f| (f.grows, f.name, &*f.of) == (grows, name, of));
        found.unwrap_or_else(|| panic!("no {name} of `{of}` in {all:?}")).value
    }

    #[track_caller]
    pub fn event(&self, name: &str, of: &str) -> u64 {
        self.figure(true, name, of)
    }

    #[track_caller]
    pub fn state(&self, name: &str, of: &str) -> u64 {
        self.figure(false, name, of)
    }
}

impl Begun<'_> {
    /// One attempt of this call.
    pub fn attempt(&self, number: u32, to: &Arc<Endpoint>, end: Result<(), CallError>) -> Result<(), CallError> {
        let mut req = self.req.replay().unwrap();
        let trying = Trying { call: &self.req.call, to, number, started: tokio::time::Instant::now() };
        let filter = &self.bench.filter;
        match filter.on_attempt(&self.cx, &trying, &mut req) {
            Verdict::Continue => {}
            Verdict::Stop(answer) => return answer.map(drop),
            Verdict::Wait(_) => panic!("waits"),
        }
        let good = self.bench.good();
        filter.on_attempt_end(&self.cx, &trying, end.as_ref().map(|()| &good));
        Ok(())
    }

    /// The answer came, whole.
    pub fn end(mut self, mut end: Result<Response, CallError>) -> Result<Response, CallError> {
        self.bench.filter.on_response(&mut self.cx, &mut end);
        self.over(match &end {
            Ok(response) => Outcome::Answered(response.status),
            Err(error) => Outcome::Failed(error.clone()),
        });
        end
    }

    fn over(&mut self, outcome: Outcome) {
        self.over = true;
        let record = Record {
            cluster: self.cx.cluster.clone(),
            call: self.req.call.clone(),
            started: self.cx.started,
            total: self.cx.started.elapsed(),
            to_head: Some(self.cx.started.elapsed()),
            code: match &outcome {
                Outcome::Answered(status) => status.code(),
                Outcome::Failed(_) => 0,
            },
            outcome,
            notes: std::mem::take(&mut self.cx.notes),
            ..sample()
        };
        self.bench.filter.on_end(&record);
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.over(Outcome::Failed(CallError::downstream(ErrorKind::Cancelled, "gone")));
        }
    }
}

/// Polls once.
pub(crate) async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
}
