//! Whole hops over loopback sockets: a caller, the server half, a cluster, the client half, a server.

use bytes::Bytes;

use super::{
    codec::{Decoded, Frame, Head, kind},
    gzip,
    testing::*,
};
use crate::{config, route::Direction};

#[tokio::test]
async fn v1_goes_there_and_back() {
    let backend = Backend::new().await;
    let addr = backend.addr;
    backend.serve(echo);
    let agent = Agent::outbound(&[addr]).await;
    let mut caller = agent.connect().await;
    caller.send(&golden("v1-string.request")).await;
    let answer = caller.frame().await;
    let recorded = frame_of(&golden("v1-string.answer"));
    assert_eq!((answer.head, &answer.body), (recorded.head, &recorded.body));
    let mut expected = meta_of(&recorded);
    expected.insert("x-forwarded-for".into(), addr.to_string());
    assert_eq!(meta_of(&answer), expected);
}

#[tokio::test]
async fn v2_business_exceptions_pass_with_their_serialization_number() {
    let backend = Backend::new().await;
    let addr = backend.addr;
    backend.serve(|request| {
        let recorded = frame_of(&golden("v2-business-exception.answer"));
        let mut meta = recorded.meta.clone();
        meta.set("x-forwarded-for".into(), "".into());
        meta.set("M_pt".into(), "".into());
        Frame { head: Head { kind: kind::RESPONSE, id: request.head.id, ..recorded.head }, meta, body: Bytes::new() }
    });
    let agent = Agent::outbound(&[addr]).await;
    let mut caller = agent.connect().await;
    let recorded = frame_of(&golden("v2-business-exception.answer"));
    let ask = Frame {
        head: Head { id: recorded.head.id, ..frame_of(&golden("v1-string.request")).head },
        ..frame_of(&golden("v1-string.request"))
    };
    caller.send(&bytes_of(&ask)).await;
    let answer = caller.frame().await;
    assert_eq!(answer.head, recorded.head);
    let mut expected = meta_of(&recorded);
    expected.insert("x-forwarded-for".into(), addr.to_string());
    assert_eq!(meta_of(&answer), expected, "M_pt is added when the server gave none");
}

#[tokio::test]
async fn v3_unknown_service_byte_for_byte() {
    let agent = Agent::outbound(&[]).await;
    let mut caller = agent.connect().await;
    let ask = request(0x18ea_007a_8830_0032, &[("M_p", "kit.NoSuchService"), ("M_m", "x")], b"");
    caller.send(&bytes_of(&ask)).await;
    assert_eq!(bytes_of(&caller.frame().await), golden("v3-agent-exception.answer"));
}

#[tokio::test]
async fn v4_v5_heartbeats_are_answered_by_the_agent_itself() {
    let agent = Agent::outbound(&[]).await;
    let mut caller = agent.connect().await;
    caller.send(&golden("v4-heartbeat.request")).await;
    assert_eq!(bytes_of(&caller.frame().await), golden("v4-heartbeat.answer"));
    caller.send(&golden("v5-motan1-heartbeat.request")).await;
    match caller.next().await {
        // The answer has the answer's bit where Motan2 has its version's low bits: read as Motan1 too.
        Some(Decoded::Motan1(bytes)) => assert_eq!(bytes, golden("v5-motan1-heartbeat.answer")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn v6_gzip_is_undone_both_ways() {
    let backend = Backend::new().await;
    let agent = Agent::outbound(&[backend.addr]).await;
    let mut caller = agent.connect().await;
    caller.send(&golden("v6-gzip.request")).await;
    let mut server = backend.accept().await;
    let seen = server.frame().await;
    assert_eq!(seen.head.kind, kind::PROXY);
    assert_eq!(&seen.body[..], b"\x01\0\0\0\x01z");
    let mut answer = echo(&seen);
    answer.head.kind |= kind::GZIP;
    answer.body = gzip::pack(answer.body).await;
    server.send(&bytes_of(&answer)).await;
    let got = caller.frame().await;
    let recorded = frame_of(&golden("v6-gzip.answer"));
    assert_eq!((got.head, got.body), (recorded.head, recorded.body));
}

#[tokio::test]
async fn v8_one_way_is_passed_on_and_answered_all_the_same() {
    let backend = Backend::new().await;
    let cluster = cluster(Direction::Outbound, ("kit.SpecialService", "kit-group"), &[backend.addr], |_| {});
    let agent = Agent::new(vec![cluster], config::Limits::default()).await;
    let mut caller = agent.connect().await;
    caller.send(&golden("v8-one-way.request")).await;
    let mut server = backend.accept().await;
    let (seen, recorded) = (server.frame().await, frame_of(&golden("v8-one-way.forwarded")));
    assert_eq!(seen.head, Head { id: seen.head.id, ..recorded.head });
    assert_ne!(seen.head.id, 0x18ea_00e5_e2c0_0005, "an id of the agent's own");
    assert_eq!((meta_of(&seen), &seen.body), (meta_of(&recorded), &recorded.body));

    let recorded = frame_of(&golden("v8-one-way.forwarded-answer"));
    let answer = Frame { head: Head { id: seen.head.id, ..recorded.head }, ..recorded.clone() };
    server.send(&bytes_of(&answer)).await;
    let got = caller.frame().await;
    assert_eq!(got.head, Head { kind: 3, id: 0x18ea_00e5_e2c0_0005, ..recorded.head });
    assert_eq!(got.body, recorded.body);
    assert_eq!(meta_of(&got)["x-forwarded-for"], backend.addr.to_string());
}

#[tokio::test]
async fn v11_a_timeout_is_the_exception_that_callers_know() {
    let backend = Backend::new().await;
    let agent = Agent::outbound(&[backend.addr]).await;
    let mut caller = agent.connect().await;
    let meta = [("M_p", "kit.EchoService"), ("M_m", "sleep"), ("M_tmo", "600")];
    caller.send(&bytes_of(&request(0x18ea_007a_8830_003d, &meta, b""))).await;
    let mut server = backend.accept().await;
    let seen = server.frame().await;
    let (got, recorded) = (caller.frame().await, frame_of(&golden("v11-timeout.answer")));
    assert_eq!(got.head, recorded.head);
    let (mut got, mut expected) = (meta_of(&got), meta_of(&recorded));
    let took: u64 = got.remove("M_pt").unwrap().parse().unwrap();
    assert!((600..1000).contains(&took), "{took} ms, not the second that is the default");
    expected.remove("M_pt");
    expected.insert("x-forwarded-for".into(), backend.addr.to_string());
    assert_eq!(got, expected);

    // The late answer hurts nobody: the connection goes on.
    server.send(&bytes_of(&echo(&seen))).await;
    caller.send(&golden("v1-string.request")).await;
    let seen = server.frame().await;
    server.send(&bytes_of(&echo(&seen))).await;
    assert_eq!(caller.frame().await.head.id, 0x18ea_007a_8830_0001);
}

#[tokio::test]
async fn bodies_over_the_threshold_are_packed_towards_the_endpoint() {
    let backend = Backend::new().await;
    let packing = cluster(Direction::Outbound, ("kit.EchoService", "kit-group"), &[backend.addr], |config| {
        config.gzip_over = 16;
    });
    let agent = Agent::new(vec![packing], config::Limits::default()).await;
    let mut caller = agent.connect().await;
    let meta = [("M_p", "kit.EchoService"), ("M_m", "echo")];
    caller.send(&bytes_of(&request(1, &meta, b"0123456789abcdef"))).await;
    let mut server = backend.accept().await;
    let seen = server.frame().await;
    assert_eq!((seen.head.kind, seen.body.len()), (kind::PROXY, 16), "as long as the threshold is not over it");
    caller.send(&bytes_of(&request(2, &meta, b"0123456789abcdef-"))).await;
    let seen = server.frame().await;
    assert_eq!(seen.head.kind, kind::PROXY | kind::GZIP);
    assert_eq!(&gzip::unpack(seen.body, 100).await.unwrap()[..], b"0123456789abcdef-");
}

#[tokio::test]
async fn callers_that_come_together_share_one_dial() {
    let backend = Backend::new().await;
    let agent = Agent::outbound(&[backend.addr]).await;
    let mut callers = Vec::new();
    for id in 0..20 {
        let mut caller = agent.connect().await;
        let meta = [("M_p", "kit.EchoService"), ("M_m", "echo")];
        caller.send(&bytes_of(&request(id, &meta, b""))).await;
        callers.push(caller);
    }
    let mut server = backend.accept().await;
    for _ in 0..20 {
        let asked = server.frame().await;
        server.send(&bytes_of(&echo(&asked))).await;
    }
    for (id, mut caller) in callers.into_iter().enumerate() {
        assert_eq!(caller.frame().await.head.id, id as u64);
    }
}

#[tokio::test]
async fn callers_and_a_server_of_other_serializations_understand_each_other() {
    use crate::serialize::{Value, breeze, json, protobuf, simple};

    // Speaks Simple and nothing else: what is thrown, nothing, or the arguments back as one list.
    fn answers(request: &Frame) -> Frame {
        let mut answer = Frame { body: Bytes::new(), ..echo(request) };
        match &*request.meta.get("M_m").unwrap() {
            "throw" => {
                answer.head.status = 1;
                answer.meta.set("M_e".into(), r#"{"errcode":7,"errmsg":"\u003c","errtype":2}"#.into());
            }
            "nothing" => {}
            _ => {
                assert_eq!(request.head.serialization, simple::NUMBER);
                let arguments = simple::read(request.body.clone()).unwrap();
                answer.body = simple::write(&[Value::Array(arguments)]).unwrap();
            }
        }
        answer
    }
    let backend = Backend::new().await;
    let addr = backend.addr;
    backend.serve(answers);
    let options = serde_yaml::from_str("{to: simple, methods: {sum: {params: 'int,long,float'}}}").unwrap();
    let cluster = cluster(Direction::Outbound, ("kit.EchoService", "kit-group"), &[addr], |config| {
        config.filters = vec![config::Named { name: "convert".to_owned(), options }];
    });
    let agent = Agent::new(vec![cluster], config::Limits::default()).await;
    let mut caller = agent.connect().await;
    let mut id = 0;
    let mut ask = async |method: &'static str, serialization: u8, body: Bytes| {
        id += 1;
        let mut frame = request(id, &[("M_p", "kit.EchoService"), ("M_m", method)], b"");
        (frame.head.serialization, frame.body) = (serialization, body);
        caller.send(&bytes_of(&frame)).await;
        let answer = caller.frame().await;
        assert_eq!(answer.head.id, id);
        answer
    };

    let arguments = vec![
        Value::Int32(5),
        Value::Int64(5),
        Value::Int64(i64::MAX),
        Value::from(0.1f32),
        Value::from(0.1f64),
        Value::Bytes(Bytes::from_static(&[0, 0xff])),
        Value::Null,
        Value::Byte(200),
        Value::Map(vec![(Value::from("k"), Value::Array(vec![Value::Int16(-1), Value::Null]))]),
        Value::StringMap(vec![("a".into(), "b".into())]),
    ];
    let echoed = [Value::Array(arguments.clone())];
    let answer = ask("any", breeze::NUMBER, breeze::write(&arguments).unwrap()).await;
    assert_eq!((answer.head.serialization, breeze::read(answer.body).unwrap()), (breeze::NUMBER, echoed.to_vec()));
    let list = arguments.iter().map(json::to_json).collect::<serde_json::Value>();
    let answer = ask("any", json::NUMBER, list.to_string().into()).await;
    assert_eq!(answer.head.serialization, json::NUMBER);
    assert_eq!(json::read(std::str::from_utf8(&answer.body).unwrap()).unwrap(), echoed[0]);
    let answer = ask("any", simple::NUMBER, simple::write(&arguments).unwrap()).await;
    assert_eq!((answer.head.serialization, simple::read(answer.body).unwrap()), (simple::NUMBER, echoed.to_vec()));

    // Bodies that do not say their types, which the configuration does.
    let typed = [Value::Int32(5), Value::Int64(5), Value::from(0.5f32)];
    let answer = ask("sum", json::NUMBER, Bytes::from("[5,5,0.5]")).await;
    assert_eq!(json::read(std::str::from_utf8(&answer.body).unwrap()).unwrap(), Value::Array(typed.to_vec()));
    let answer = ask("sum", protobuf::NUMBER, protobuf::write(&typed).unwrap()).await;
    assert_eq!((answer.head.serialization, answer.body), (protobuf::NUMBER, protobuf::write(&typed).unwrap()));

    let answer = ask("nothing", breeze::NUMBER, Bytes::new()).await;
    assert_eq!((answer.head.status, answer.head.serialization, answer.body.len()), (0, breeze::NUMBER, 0));
    let answer = ask("throw", breeze::NUMBER, breeze::write(&arguments).unwrap()).await;
    assert_eq!((answer.head.status, &*meta_of(&answer)["M_e"]), (1, r#"{"errcode":7,"errmsg":"\u003c","errtype":2}"#));
    let answer = ask("any", 0, Bytes::from_static(b"Hxyz")).await;
    let thrown = &meta_of(&answer)["M_e"];
    assert!(thrown.contains("convert: the arguments cannot be converted to simple: serialization 0"), "{thrown}");
}
