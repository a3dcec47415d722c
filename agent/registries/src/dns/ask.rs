//! Questions to resolvers (RFC 1035, 2782): over UDP, and over TCP when the answer did not fit.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use hickory_proto::{
    op::{Edns, Message, MessageType, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use model::{DEFAULT_WEIGHT, Instance};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long one resolver may take; then the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often all of them are asked.
const ROUNDS: usize = 2;
/// Room for an answer in one datagram that no network takes apart.
const DATAGRAM: u16 = 1232;
/// How long an answer counts that names no time: nothing there, or nobody to ask.
const NOTHING_LIVES: Duration = Duration::from_secs(5);
/// Targets of one SRV name whose addresses are asked for.
const TARGETS: usize = 1000;
/// Largest weight in the configuration.
const MAX_WEIGHT: u32 = 10_000;

/// What a list is made of.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub name: Name,
    /// With a port the name's addresses are the instances; without, its SRV records.
    pub port: Option<u16>,
}

/// What was found, and for how long it may be kept.
#[derive(Debug)]
pub(super) struct Found {
    pub instances: Vec<Instance>,
    pub life: Duration,
}

/// Servers in the order they are asked.
pub(super) struct Resolver(pub Vec<SocketAddr>);

/// One answer: records of the type that was asked for, and addresses that came with it.
#[derive(Default)]
struct Answer {
    records: Vec<RData>,
    more: BTreeMap<Name, BTreeSet<IpAddr>>,
    life: Option<Duration>,
}

impl Question {
    /// An error when no resolver gave a usable answer.
    pub async fn ask(&self, resolver: &Resolver) -> anyhow::Result<Found> {
        match self.port {
            Some(port) => {
                let (ips, life) = addresses(resolver, &self.name).await?;
                let instances = ips.iter().map(|ip| Instance::at(SocketAddr::new(*ip, port).to_string())).collect();
                Ok(Found { instances, life: life.unwrap_or(NOTHING_LIVES) })
            }
            None => self.services(resolver).await,
        }
    }

    async fn services(&self, resolver: &Resolver) -> anyhow::Result<Found> {
        let answer = resolver.ask(&self.name, RecordType::SRV).await?;
        let mut life = answer.life;
        let all = answer.records.iter().filter_map(|data| if let RData::SRV(srv) = data { Some(srv) } else { None });
        // A lone "." says that the service is decidedly not there (RFC 2782).
        let all: Vec<_> = all.filter(|srv| !srv.target.is_root() && srv.port != 0).collect();
        // Those behind are for when none of the first is there, which is not known here: they wait for the day when
        // they are the first.
        let first = all.iter().map(|srv| srv.priority).min();
        let mut first: Vec<_> = all.into_iter().filter(|srv| Some(srv.priority) == first).collect();
        first.truncate(TARGETS);
        let weigh = weights(&first.iter().map(|srv| srv.weight).collect::<Vec<_>>());
        let mut instances = Vec::new();
        let mut unknown = None;
        for (srv, weight) in first.iter().zip(weigh) {
            let ips = match answer.more.get(&srv.target) {
                Some(ips) => ips.clone(),
                None => match addresses(resolver, &srv.target).await {
                    Ok((ips, lives)) => {
                        life = shorter(life, lives);
                        ips
                    }
                    // One target that nobody can tell must not hide the others.
                    Err(error) => {
                        unknown = Some(error);
                        continue;
                    }
                },
            };
            for ip in ips {
                let target = srv.target.to_ascii();
                instances.push(Instance {
                    weight,
                    metadata: BTreeMap::from([("target".to_owned(), target.trim_end_matches('.').to_owned())]).into(),
                    ..Instance::at(SocketAddr::new(ip, srv.port).to_string())
                });
            }
        }
        match unknown {
            Some(error) if instances.is_empty() => Err(error),
            _ => Ok(Found { instances, life: life.unwrap_or(NOTHING_LIVES) }),
        }
    }
}

/// Weights of SRV records as ours: in proportion, 0 as the smallest there is, all 0 as all alike.
fn weights(written: &[u16]) -> Vec<u32> {
    let most = written.iter().copied().max().unwrap_or(0);
    let ours = |weight: &u16| match (most, u32::from(*weight)) {
        (0, _) => DEFAULT_WEIGHT,
        (_, weight) if u32::from(most) <= MAX_WEIGHT => weight.max(1),
        (_, weight) => (weight * MAX_WEIGHT / u32::from(most)).max(1),
    };
    written.iter().map(ours).collect()
}

/// The addresses of a name, of both families. An error when one of the questions was not answered.
async fn addresses(resolver: &Resolver, name: &Name) -> anyhow::Result<(BTreeSet<IpAddr>, Option<Duration>)> {
    let (v4, v6) = tokio::join!(resolver.ask(name, RecordType::A), resolver.ask(name, RecordType::AAAA));
    let (v4, v6) = (v4?, v6?);
    let ips = v4.records.iter().chain(&v6.records).filter_map(ip).filter(|ip| !ip.is_unspecified()).collect();
    Ok((ips, shorter(v4.life, v6.life)))
}

fn ip(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(aaaa) => Some(aaaa.0.into()),
        _ => None,
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Resolver {
    /// Asks one server after the other until one knows.
    async fn ask(&self, name: &Name, kind: RecordType) -> anyhow::Result<Answer> {
        let mut error = anyhow::anyhow!("there is no resolver");
        for server in (0..ROUNDS).flat_map(|_| &self.0) {
            match exchange(*server, name, kind).await.and_then(|message| read(&message, name, kind)) {
                Ok(answer) => return Ok(answer),
                Err(why) => error = why.context(format!("{kind} {name} of {server}")),
            }
        }
        Err(error)
    }
}

/// What a server answered; that there is no such name is an answer, that it cannot tell is none.
fn read(message: &Message, name: &Name, kind: RecordType) -> anyhow::Result<Answer> {
    let mut answer = Answer::default();
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        other => bail!("answered {other}"),
    }
    // The name may be another's alias.
    let mut names = BTreeSet::from([name.to_lowercase()]);
    for _ in 0..message.answers.len() {
        let before = names.len();
        for record in &message.answers {
            if let RData::CNAME(alias) = &record.data
                && names.contains(&record.name.to_lowercase())
            {
                names.insert(alias.0.to_lowercase());
            }
        }
        if names.len() == before {
            break;
        }
    }
    for record in &message.answers {
        if !names.contains(&record.name.to_lowercase()) {
            continue;
        }
        answer.life = shorter(answer.life, Some(Duration::from_secs(record.ttl.into())));
        if record.record_type() == kind {
            answer.records.push(record.data.clone());
        }
    }
    for record in &message.additionals {
        if let Some(ip) = ip(&record.data).filter(|ip| !ip.is_unspecified()) {
            answer.more.entry(record.name.clone()).or_default().insert(ip);
            answer.life = shorter(answer.life, Some(Duration::from_secs(record.ttl.into())));
        }
    }
    Ok(answer)
}

async fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> anyhow::Result<Message> {
    let mut question = Message::query();
    question.metadata.id = fastrand::u16(..);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM);
    question.set_edns(edns);
    let answer = within(datagram(server, &question)).await?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    within(stream(server, &question)).await
}

async fn within(exchange: impl Future<Output = anyhow::Result<Message>>) -> anyhow::Result<Message> {
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| bail!("no answer within {PATIENCE:?}"))
}

/// From a port of its own, which the kernel picks at random; what does not answer this question is not looked at.
async fn datagram(server: SocketAddr, question: &Message) -> anyhow::Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&question.to_vec()?).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && answers(&answer, question)
        {
            return Ok(answer);
        }
    }
}

async fn stream(server: SocketAddr, question: &Message) -> anyhow::Result<Message> {
    let mut socket = TcpStream::connect(server).await?;
    let bytes = question.to_vec()?;
    let length = u16::try_from(bytes.len()).context("a question is short")?;
    socket.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
    let length = socket.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    socket.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).context("an answer that cannot be read")?;
    ensure!(answers(&answer, question), "an answer to another question");
    Ok(answer)
}

fn answers(answer: &Message, question: &Message) -> bool {
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == question.metadata.id
        && answer.queries == question.queries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_their_proportions() {
        assert_eq!(weights(&[0, 0]), [10, 10]);
        assert_eq!(weights(&[0, 5, 20]), [1, 5, 20]);
        assert_eq!(weights(&[60_000, 30_000, 0]), [10_000, 5000, 1]);
        assert!(weights(&[]).is_empty());
    }
}
