//! Against a small resolver in the test; `tests/dns.rs` has a real one.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, SRV},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};

use super::*;
use crate::testing::{built, list, refusal};

/// What is answered: a code, records, addresses beside them, whether it fits a datagram.
#[derive(Clone, Default)]
struct Zone {
    code: Option<ResponseCode>,
    answers: Vec<Record>,
    additionals: Vec<Record>,
    too_long: bool,
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Record {
    Record::from_rdata(name("_http._tcp.web.test."), 1, RData::SRV(SRV::new(priority, weight, port, name(target))))
}

fn a(owner: &str, last: u8) -> Record {
    Record::from_rdata(name(owner), 1, RData::A(A(Ipv4Addr::new(10, 0, 0, last))))
}

fn reply(zone: &Zone, question: &[u8], long: bool) -> Vec<u8> {
    let question = Message::from_vec(question).unwrap();
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.add_queries(question.queries.clone());
    reply.metadata.response_code = zone.code.unwrap_or(ResponseCode::NoError);
    if zone.too_long && !long {
        reply.metadata.truncation = true;
        return reply.to_vec().unwrap();
    }
    let query = &question.queries[0];
    let about = |r: &&Record| {
        r.name == query.name && (r.record_type() == query.query_type() || r.record_type() == RecordType::CNAME)
    };
    reply.add_answers(zone.answers.iter().filter(about).cloned());
    if query.query_type() == RecordType::SRV {
        reply.add_additionals(zone.additionals.iter().cloned());
    }
    reply.to_vec().unwrap()
}

/// Answers on UDP and TCP of one port as the zone is at that moment.
async fn resolver() -> (SocketAddr, Arc<Mutex<Zone>>) {
    let zone = Arc::new(Mutex::new(Zone::default()));
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let at = udp.local_addr().unwrap();
    let (one, two) = (zone.clone(), zone.clone());
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = udp.recv_from(&mut buffer).await {
            // What nobody asked for must not be taken.
            udp.send_to(b"garbage", from).await.unwrap();
            let reply = reply(&one.lock().unwrap().clone(), &buffer[..n], false);
            udp.send_to(&reply, from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut io, _)) = tcp.accept().await {
            let mut question = vec![0; io.read_u16().await.unwrap().into()];
            io.read_exact(&mut question).await.unwrap();
            let reply = reply(&two.lock().unwrap().clone(), &question, true);
            io.write_all(&[&u16::try_from(reply.len()).unwrap().to_be_bytes()[..], &reply].concat()).await.unwrap();
        }
    });
    (at, zone)
}

fn registry(yaml: &str) -> Arc<dyn Registry> {
    built(build, yaml).unwrap()
}

fn key(service: &str) -> ServiceKey {
    ServiceKey { service: service.into(), ..ServiceKey::default() }
}

#[tokio::test]
async fn records_are_followed_by_their_time_to_live() {
    let (at, zone) = resolver().await;
    zone.lock().unwrap().answers = vec![
        srv(10, 0, 80, "a.test."),
        srv(10, 5, 81, "b.test."),
        srv(20, 5, 82, "c.test."),
        a("b.test.", 2),
        a("c.test.", 3),
    ];
    zone.lock().unwrap().additionals = vec![a("a.test.", 1), a("A.test.", 9)];
    let registry = registry(&format!("{{name: _http._tcp.web.test, server: '{at}'}}"));
    let mut web = registry.watch(&key("web"));
    let found = list(&mut web, "10.0.0.1:80 10.0.0.9:80 10.0.0.2:81", false).await;
    assert_eq!(found.instances.iter().map(|i| i.weight).collect::<Vec<_>>(), [1, 1, 5]);
    assert_eq!(found.instances[2].metadata["target"], "b.test");
    // The first are taken out: those behind have their day.
    *zone.lock().unwrap() = Zone { answers: vec![srv(20, 5, 82, "c.test."), a("c.test.", 3)], ..Zone::default() };
    list(&mut web, "10.0.0.3:82", false).await;
    // No answer is not an empty one.
    zone.lock().unwrap().code = Some(ResponseCode::ServFail);
    let kept = list(&mut web, "10.0.0.3:82", true).await;
    assert!(kept.stale.as_ref().unwrap().contains("SRV _http._tcp.web.test. of 127.0.0.1"), "{:?}", kept.stale);
    *zone.lock().unwrap() = Zone { code: Some(ResponseCode::NXDomain), ..Zone::default() };
    list(&mut web, "", false).await;
    let answers = vec![srv(1, 1, 80, "a.test."), a("a.test.", 1)];
    *zone.lock().unwrap() = Zone { answers, too_long: true, ..Zone::default() };
    list(&mut web, "10.0.0.1:80", false).await;
    *zone.lock().unwrap() = Zone { answers: vec![srv(0, 0, 0, ".")], ..Zone::default() };
    list(&mut web, "", false).await;
}

#[tokio::test]
async fn addresses_with_a_port_need_no_srv_and_aliases_are_followed() {
    let (at, zone) = resolver().await;
    let alias =
        Record::from_rdata(name("web.test."), 9, RData::CNAME(hickory_proto::rr::rdata::CNAME(name("b.test."))));
    zone.lock().unwrap().answers = vec![a("web.test.", 7), alias.clone()];
    // A resolver that is not there is passed over.
    let registry = registry(&format!("{{port: 80, server: ['127.0.0.1:9', '{at}']}}"));
    let mut web = registry.watch(&key("web.test"));
    list(&mut web, "10.0.0.7:80", false).await;
    let mut odd = registry.watch(&key("two words..x"));
    assert!(list(&mut odd, "", true).await.stale.as_ref().unwrap().contains("is no name"));
}

#[test]
fn options_and_resolvers_are_read() {
    let told = |yaml: &str| refusal(build, yaml);
    assert!(told("{names: x}").contains("unknown field"));
    assert!(told("{port: 0}").contains("port 0"));
    assert!(told("{name: 'a..b'}").contains("is no name"));
    assert!(told("{server: dns.example}").contains("is no IP address"));
    assert!(told("{name: '.'}").contains("empty name"));
    let file = std::env::temp_dir().join(format!("sockmesh-resolv-{}", std::process::id()));
    std::fs::write(&file, "# c\nsearch x\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\n nameserver ::1\n").unwrap();
    let all: Vec<IpAddr> = of_host(&file).unwrap().iter().map(SocketAddr::ip).collect();
    assert_eq!(all, ["10.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    std::fs::write(&file, "search x\n").unwrap();
    assert!(of_host(&file).unwrap_err().to_string().contains("names no resolver"));
    std::fs::remove_file(&file).unwrap();
}
