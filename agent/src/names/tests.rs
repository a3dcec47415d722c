//! Questions and answers as bytes.

use std::path::Path;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};

use super::{
    answer::{Transport, answer, failure},
    zone::{Zone, assign},
};
use crate::config::Config;

fn zone() -> Zone {
    let text = "capture: {mode: ebpf, enroll: [{cgroup: /sys/fs/cgroup/x}]}
referers:
  - {service: web, group: idc-a, address: \"240.0.0.1:8080\", endpoints: [\"127.0.0.1:1\"]}
  - {service: com.weibo.Both, endpoints: [\"127.0.0.1:1\"]}
";
    let mut config = Config::parse(text, Path::new("/")).unwrap();
    assign(&mut config);
    Zone::of(&config, true).0
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0xbeef, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn asked(message: &Message) -> Option<Message> {
    let bytes = answer(&zone(), &message.to_vec().unwrap(), Transport::Udp)?;
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.message_type), (0xbeef, MessageType::Response));
    assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
    assert_eq!(answer.queries, message.queries);
    Some(answer)
}

#[track_caller]
fn check(name: &str, kind: RecordType, code: ResponseCode, answers: &[&str]) {
    let answer = asked(&question(name, kind)).expect("answered");
    let shown: Vec<_> = answer.answers.iter().map(|r| format!("{} {}", r.name, r.data)).collect();
    assert_eq!(answer.metadata.response_code, code);
    assert_eq!(shown, answers);
    let has_soa = answer.authorities.iter().any(|r| matches!(r.data, RData::SOA(_)));
    assert_eq!(has_soa, answers.is_empty(), "nothing can be kept for a while");
}

#[test]
fn names_of_services_are_answered() {
    let ok = ResponseCode::NoError;
    check("web.mesh.", RecordType::A, ok, &["web.mesh. 240.0.0.1"]);
    check("WeB.MesH.", RecordType::A, ok, &["WeB.MesH. 240.0.0.1"]);
    check("web.idc-a.mesh.", RecordType::A, ok, &["web.idc-a.mesh. 240.0.0.1"]);
    check("web.mesh.", RecordType::AAAA, ok, &[]);
    check("web.mesh.", RecordType::HTTPS, ok, &[]);
    check("web.mesh.", RecordType::TXT, ok, &[]);
    check("web.mesh.", RecordType::SRV, ok, &["web.mesh. 0 0 8080 web.mesh."]);
    check("_http._tcp.web.mesh.", RecordType::SRV, ok, &["_http._tcp.web.mesh. 0 0 8080 web.mesh."]);
    check("_http._tcp.web.mesh.", RecordType::A, ok, &[]);
    check("none.mesh.", RecordType::A, ResponseCode::NXDomain, &[]);
    check("both.mesh.", RecordType::A, ok, &[]);
    check("mesh.", RecordType::A, ok, &[]);
    let both = asked(&question("com.weibo.both.mesh.", RecordType::ANY)).unwrap();
    assert_eq!(both.answers.len(), 2);
}

#[test]
fn all_else_is_left_to_others() {
    for name in ["example.com.", "mesh.example.com.", "notmesh.", "web.mesh.local.", "."] {
        assert!(asked(&question(name, RecordType::A)).is_none(), "{name}");
    }
    let mut update = question("web.mesh.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert!(asked(&update).is_none());
    let mut response = question("web.mesh.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert!(asked(&response).is_none());
}

#[test]
fn edns_is_answered_with_edns() {
    assert!(asked(&question("web.mesh.", RecordType::A)).unwrap().edns.is_none());
    let mut with = question("web.mesh.", RecordType::A);
    with.set_edns(Edns::new());
    assert!(asked(&with).unwrap().edns.is_some());
}

#[test]
fn broken_questions_harm_nobody() {
    let whole = question("web.mesh.", RecordType::A).to_vec().unwrap();
    for cut in 0..whole.len() {
        let _ = answer(&zone(), &whole[..cut], Transport::Udp);
        let _ = failure(&whole[..cut]);
    }
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..10_000 {
        let mut bytes = whole.clone();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        let _ = answer(&zone(), &bytes, Transport::Tcp);
    }
    let failed = Message::from_vec(&failure(&question("a.b.", RecordType::A).to_vec().unwrap()).unwrap()).unwrap();
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
}
