//! What simulated agents report, as often as real ones do, on a connection that each keeps; and what no agent would.

use model::center::{AgentStatus, Edge, Histogram, Report, Sample, Side};

use super::*;

/// Time between two reports of an agent, as agents have it unless told otherwise.
pub const EVERY: Duration = Duration::from_secs(2);
/// Endpoints of a service that an agent calls within that time.
const CALLED: usize = 8;
/// Applications that call a service, and those of them that call one instance within that time.
const CALLING: usize = 10;
const CALLERS: usize = 3;

/// How reports were answered.
#[derive(Default)]
pub struct Answers {
    /// From the first byte sent to the answer read.
    pub times: Vec<Duration>,
    /// Those that were no success.
    pub refused: usize,
}

impl Fleet {
    /// Instances of a service: who has them, and where.
    fn endpoints(&self, number: usize) -> impl Iterator<Item = String> {
        let each = self.shape.instances / self.shape.agents;
        let all = (number % self.shape.services..self.shape.instances).step_by(self.shape.services);
        all.map(move |index| address(index / each, index % each))
    }

    /// What an agent saw within two seconds: the services that it calls, with some of their endpoints, and those that
    /// it provides, with who called them.
    fn seen(&self, agent: usize) -> Report {
        let sample = |side, service: &str, calls: u64, buckets: u64| {
            let mut times = Histogram::default();
            (0..buckets).for_each(|n| times.add(300 << (n % 10), 1 + calls * (10 - n % 10) / 40));
            let (service, group) = (service.to_owned(), GROUP.to_owned());
            Sample { side, service, group, calls, failed: calls / 100, slow: calls / 50, times, ..Sample::default() }
        };
        let application = format!("app{}", agent % 100);
        let (mut samples, mut edges) = (Vec::new(), Vec::new());
        for (nth, service) in self.followed(agent).into_iter().enumerate() {
            samples.push(sample(Side::Outbound, &service, 400, 10));
            let number = agent * 7 + nth.saturating_sub(1) * 131 + 1;
            let called = self.endpoints(number).skip(agent % 7).take(CALLED);
            samples.extend(called.map(|instance| Sample { instance, ..sample(Side::Outbound, &service, 50, 6) }));
            let (caller, group) = (application.clone(), GROUP.to_owned());
            edges.push(Edge {
                caller,
                service,
                group,
                protocol: "motan2".into(),
                calls: 400,
                failed: 4,
                way: "redirect".into(),
            });
        }
        for (nth, registration) in self.registrations_of(agent, 10).into_iter().enumerate() {
            let number = (agent * (self.shape.instances / self.shape.agents) + nth) % self.shape.services;
            let (service, instance) = (registration.key.service, registration.instance.address);
            let all = sample(Side::Inbound, &service, 240, 10);
            let of = |n: usize| Sample {
                caller: format!("app{}", (number + (agent + n) % CALLING * 7) % 100),
                ..sample(Side::Inbound, &service, 80, 6)
            };
            samples.extend((0..CALLERS).map(of));
            samples.push(Sample { instance, ..all.clone() });
            samples.push(all);
        }
        let status = AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            application,
            zone: format!("zone{}", agent % 3),
            kernel: "6.12.0".to_owned(),
            capture: "ebpf".to_owned(),
            redirect: "auto".to_owned(),
            uptime_seconds: 1.0,
            ..AgentStatus::default()
        };
        let window_seconds = EVERY.as_secs_f64();
        // Numbered 0, it counts each time; all else is what agents send.
        Report { agent: name(agent), window_seconds, sequence: 0, status, samples, edges }
    }

    /// Samples in a report, and its bytes.
    pub fn report_size(&self) -> (usize, usize) {
        let report = self.seen(self.shape.agents / 2);
        (report.samples.len(), serde_json::to_vec(&report).unwrap().len())
    }

    /// Every agent reports each two seconds from now on.
    pub fn report(self: &Arc<Self>) -> JoinHandle<()> {
        let fleet = self.clone();
        tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            for agent in 0..fleet.shape.agents {
                let fleet = fleet.clone();
                tasks.spawn(async move {
                    sleep(EVERY.mul_f64(agent as f64 / fleet.shape.agents as f64)).await;
                    // Written once: what is measured is the centre.
                    let body = Bytes::from(serde_json::to_vec(&fleet.seen(agent)).unwrap());
                    let mut connection = None;
                    loop {
                        let next = tokio::time::Instant::now() + EVERY;
                        if let Err(error) = fleet.tell(&mut connection, &body).await {
                            connection = None;
                            fleet.note(format!("report: {error:#}"));
                            fleet.answers.lock().refused += 1;
                        }
                        tokio::time::sleep_until(next).await;
                    }
                });
            }
            while tasks.join_next().await.is_some() {}
        })
    }

    async fn tell(&self, connection: &mut Option<SendRequest<Full<Bytes>>>, body: &Bytes) -> anyhow::Result<()> {
        let began = Instant::now();
        let sender = match connection {
            Some(sender) => sender,
            None => connection.insert(connect(self.center).await?),
        };
        let (status, answer) = send(sender, self.center, Method::POST, "/v1/agent/report", body.clone()).await?;
        let took = began.elapsed();
        anyhow::ensure!(status == 204, "{status} {}", beginning(&answer));
        self.answers.lock().times.push(took);
        Ok(())
    }

    /// How reports were answered since the last call.
    pub fn answers(&self) -> Answers {
        std::mem::take(&mut self.answers.lock())
    }

    /// What no agent of ours would send, and how each was answered.
    pub async fn hostile(&self) -> Vec<(&'static str, String)> {
        let evil = |n: usize, samples: Vec<Sample>| Report {
            agent: format!("evil{n}/app"),
            window_seconds: 2.0,
            samples,
            ..Report::default()
        };
        let named = |service: String| Sample { service, calls: u64::MAX, failed: u64::MAX, ..Sample::default() };
        let many = |count: usize, what: &str| (0..count).map(|n| named(format!("{what}{n}"))).collect::<Vec<_>>();
        let mut told = Vec::new();
        let said = async |report: &Report| match ask(self.center, Method::POST, "/v1/agent/report", report).await {
            Ok((status, body)) => format!("{status} {}", beginning(&body)).trim().to_owned(),
            Err(error) => format!("{error:#}"),
        };
        told.push(("a report of 20,001 samples", said(&evil(0, many(20_001, "s"))).await));
        let long = named("x".repeat(17 << 20));
        told.push(("a report of 17 MiB", said(&evil(1, vec![long])).await));
        let mut last = String::new();
        for _ in 0..40 {
            last = said(&evil(2, Vec::new())).await;
        }
        told.push(("the fortieth report of one agent within a moment", last));
        for (n, what) in ["two times 20,000 services that nobody has: the first", "the second"].into_iter().enumerate()
        {
            told.push((what, said(&evil(3 + n, many(20_000, &format!("evil{n}-")))).await));
        }
        told
    }
}

fn beginning(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(120).collect()
}
