//! From a question under `.mesh` to its answer (RFC 1035, 2782, 6891, 8482, 9460).

use hickory_proto::{
    op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, SOA, SRV},
    },
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use super::zone::{DOMAIN, Entry, Found, Zone};

/// How long an answer may be kept, seconds. Addresses are stable, but a reload may bring or take a name.
const TTL: u32 = 5;
/// Longest datagram for those who do not say that they take longer ones (RFC 1035, section 4.2.1).
const PLAIN_BYTES: u16 = 512;
/// What the agent itself takes, told in answers to those who ask with EDNS.
const OWN_BYTES: u16 = 1232;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// Answers have a longest size.
    Udp,
    /// They have not.
    Tcp,
}

/// The answer to `question`, or `None` when it is not for the agent: not a question for one name under
/// [`DOMAIN`], or nothing that could be read.
pub(super) fn answer(zone: &Zone, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let (metadata, query) = ask(question)?;
    let name = query.name().to_ascii().to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    if name != DOMAIN && !name.strip_suffix(DOMAIN).is_some_and(|before| before.ends_with('.')) {
        return None;
    }
    let mut reply = reply(&metadata, &query);
    let Ok(whole) = Message::from_vec(question) else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return reply.to_vec().ok();
    };
    let mut room = u16::MAX;
    if let Some(edns) = &whole.edns {
        room = edns.max_payload().max(PLAIN_BYTES);
        let mut own = Edns::new();
        own.set_max_payload(OWN_BYTES);
        reply.set_edns(own);
    } else if transport == Transport::Udp {
        room = PLAIN_BYTES;
    }
    if query.query_class() == DNSClass::IN || query.query_class() == DNSClass::ANY {
        fill(&mut reply, zone, name, &query);
    } else {
        reply.metadata.response_code = ResponseCode::Refused;
    }
    let bytes = reply.to_vec().ok()?;
    if transport == Transport::Udp && bytes.len() > usize::from(room) {
        return reply.truncate().to_vec().ok();
    }
    Some(bytes)
}

/// The error with which a program turns to its next resolver at once, for a question that could not be
/// passed on; `None` when it cannot be read.
pub(super) fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let (metadata, query) = ask(question)?;
    let mut reply = reply(&metadata, &query);
    reply.metadata.authoritative = false;
    reply.metadata.response_code = ResponseCode::ServFail;
    reply.to_vec().ok()
}

/// Reads as much of a message as tells what it asks.
fn ask(question: &[u8]) -> Option<(Metadata, Query)> {
    let mut decoder = BinDecoder::new(question);
    let header = Header::read(&mut decoder).ok()?;
    let plain = header.metadata.message_type == MessageType::Query
        && header.metadata.op_code == OpCode::Query
        && header.counts.queries == 1;
    let query = plain.then(|| Query::read(&mut decoder).ok())??;
    Some((header.metadata, query))
}

fn reply(metadata: &Metadata, query: &Query) -> Message {
    let mut reply = Message::response(metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.add_query(query.clone());
    reply
}

fn fill(reply: &mut Message, zone: &Zone, name: &str, query: &Query) {
    // `_http._tcp.web.mesh` asks for the port of `web.mesh`.
    let mut host = name;
    while host.starts_with('_')
        && let Some((_, rest)) = host.split_once('.')
    {
        host = rest;
    }
    match zone.find(host) {
        Found::Service(entry) if host == name => records(reply, entry, query.name(), query.query_type()),
        Found::Service(entry) if query.query_type() == RecordType::SRV => {
            if let Ok(target) = Name::from_ascii(format!("{host}.")) {
                service(reply, entry, query.name(), target);
            }
        }
        Found::Service(_) | Found::Empty => {}
        Found::Nothing => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    if name == DOMAIN && query.query_type() == RecordType::SOA {
        reply.add_answer(start_of_authority());
    } else if reply.answers.is_empty() {
        // Tells for how long the answer "nothing" may be kept (RFC 2308).
        reply.add_authority(start_of_authority());
    }
}

fn records(reply: &mut Message, entry: &Entry, owner: &Name, kind: RecordType) {
    match kind {
        RecordType::A | RecordType::AAAA | RecordType::ANY => {
            for record in addresses(entry, owner) {
                if kind == RecordType::ANY || record.record_type() == kind {
                    reply.add_answer(record);
                }
            }
        }
        RecordType::SRV => service(reply, entry, owner, owner.clone()),
        // HTTPS and SVCB among them: there is nothing to say beyond the address.
        _ => {}
    }
}

fn service(reply: &mut Message, entry: &Entry, owner: &Name, target: Name) {
    reply.add_additionals(addresses(entry, &target));
    let srv = SRV::new(0, 0, entry.port, target);
    reply.add_answer(Record::from_rdata(owner.clone(), TTL, RData::SRV(srv)));
}

fn addresses(entry: &Entry, owner: &Name) -> Vec<Record> {
    let v4 = entry.v4.map(|ip| RData::A(A(ip)));
    let v6 = entry.v6.map(|ip| RData::AAAA(AAAA(ip)));
    [v4, v6].into_iter().flatten().map(|data| Record::from_rdata(owner.clone(), TTL, data)).collect()
}

fn start_of_authority() -> Record {
    let name = |text: &str| Name::from_ascii(text).expect("a constant that is a name");
    let zone = name("mesh.");
    let soa = SOA::new(name("ns.mesh."), name("hostmaster.mesh."), 1, 60, 60, 60, TTL);
    Record::from_rdata(zone, TTL, RData::SOA(soa))
}
