//! Against a stand-in that speaks shapes recorded from Consul 1.22.7; `tests/full` has the real one.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use model::Instance;
use serde_json::json;

use super::*;
use crate::testing::{Answer, Asked, Certificates, StandIn, built, list, refusal};

fn registry(at: std::net::SocketAddr, more: &str) -> Arc<dyn Registry> {
    let yaml = format!("{{address: '{at}'{more}}}");
    built(build, &yaml).unwrap()
}

fn key(service: &str, group: &str) -> ServiceKey {
    ServiceKey { service: service.into(), group: group.into(), version: String::new() }
}

/// One instance as Consul lists it.
fn health(service: &str, id: &str, port: u16, tags: &[&str], status: &str) -> serde_json::Value {
    json!({
        "Node": {"ID": "1b7b", "Node": "n1", "Address": "127.0.0.1", "Datacenter": "dc1", "Meta": {"a": "b"}},
        "Service": {
            "ID": id, "Service": service, "Tags": tags, "Address": "10.0.0.9", "Port": port, "Meta": null,
            "TaggedAddresses": {}, "Weights": {"Passing": 2, "Warning": 1}, "EnableTagOverride": false,
            "Proxy": {"Mode": "", "MeshGateway": {}, "Expose": {}}, "Connect": {}, "PeerName": "",
            "CreateIndex": 14, "ModifyIndex": 14,
        },
        "Checks": [
            {"Node": "n1", "CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing", "Type": ""},
            {"Node": "n1", "CheckID": format!("service:{id}"), "Status": status, "ServiceID": id, "Type": "ttl"},
        ],
    })
}

fn indexed(index: u64, body: serde_json::Value) -> Option<Answer> {
    Some((200, vec![("x-consul-index", index.to_string())], body.to_string()))
}

const URL: &str = "URL_motan2%3A%2F%2F10.0.0.1%3A8001%2Fcom.Echo%3Fgroup%3Dyf%26nodeType%3Dservice%26version%3D1.0%26META_WEIGHT%3D30%26k%3Da%252Fb%26";

#[tokio::test]
async fn a_group_is_one_query_and_its_services_are_told_apart() {
    let server = StandIn::start(|asked| {
        assert!(asked.line.contains("/v1/health/service/motanrpc_yf"), "{}", asked.line);
        assert_eq!(asked.headers["x-consul-token"], "secret");
        assert!(asked.line.contains("dc=dc2"), "{}", asked.line);
        if asked.line.contains("index=40") {
            return None;
        }
        let all = json!([
            health("motanrpc_yf", "10.0.0.1:8001-com.Echo", 8001, &["protocol_motan2", URL], "passing"),
            // No URL: told from the id, as Motan's clients do.
            health("motanrpc_yf", "10.0.0.9:8002-com.Echo", 8002, &["protocol_motan"], "warning"),
            health("motanrpc_yf", "10.0.0.9:8003-com.Echo", 8003, &["protocol_motan"], "critical"),
            health("motanrpc_yf", "10.0.0.9:8004-com.Other", 8004, &[], "passing"),
            {"Service": "nonsense"},
        ]);
        indexed(40, all)
    })
    .await;
    let registry = registry(server.at, ", token: secret, datacenter: dc2");
    let mut echo = registry.watch(&key("com.Echo", "yf"));
    let found = list(&mut echo, "10.0.0.1:8001 10.0.0.9:8002", false).await;
    let [first, second] = &found.instances[..] else { panic!() };
    assert_eq!((first.weight, first.version.as_str(), first.metadata["k"].as_str()), (30, "1.0", "a/b"));
    assert_eq!((first.metadata["protocol"].as_str(), second.metadata["protocol"].as_str()), ("motan2", "motan"));
    assert_eq!((first.group.as_str(), second.group.as_str()), ("yf", "yf"));
    let mut other = registry.watch(&key("com.Other", "yf"));
    list(&mut other, "10.0.0.9:8004", false).await;
    let mut none = registry.watch(&key("com.None", "yf"));
    list(&mut none, "", false).await;
    server.asked("index=40").await;
}

#[tokio::test]
async fn an_index_that_goes_back_and_answers_that_are_none_lose_nothing() {
    let step = AtomicUsize::new(0);
    let server = StandIn::start(move |asked| {
        let one = json!([health("web", "w1", 1, &[], "passing")]);
        let two = json!([health("web", "w1", 1, &[], "passing"), health("web", "w2", 2, &[], "passing")]);
        match step.fetch_add(1, SeqCst) {
            0 => indexed(900, one),
            1 if asked.line.contains("index=900") => Some((200, vec![], "<html>wrong door</html>".into())),
            // After an error everything is asked for anew.
            2 if !asked.line.contains("index=") => indexed(901, one),
            3 if asked.line.contains("index=901") => Some((500, vec![], "No cluster leader".into())),
            4 => indexed(902, one),
            // Begun anew: its numbers are small again.
            5 if asked.line.contains("index=902") => indexed(3, two),
            6 if !asked.line.contains("index=") => indexed(3, two),
            7 if asked.line.contains("index=3") => None,
            n => panic!("{n}: {}", asked.line),
        }
    })
    .await;
    let registry = registry(server.at, ", layout: plain");
    let mut web = registry.watch(&key("web", ""));
    let found = list(&mut web, "10.0.0.9:1 10.0.0.9:2", false).await;
    assert_eq!(found.revision, 2, "only what changed counts");
    assert_eq!(found.instances[0], Instance { weight: 20, ..Instance::at("10.0.0.9:1") });
    server.asked("index=3&").await;
}

#[tokio::test]
async fn the_last_list_stays_when_consul_is_gone() {
    let server = StandIn::start(|asked| match asked.line.contains("index=") {
        true => None,
        false => indexed(5, json!([health("web", "w1", 1, &["v2", "g"], "passing")])),
    })
    .await;
    let registry = registry(server.at, ", layout: plain, tag: v2");
    let mut web = registry.watch(&key("web", "g"));
    let found = list(&mut web, "10.0.0.9:1", false).await;
    assert_eq!((found.instances[0].group.as_str(), found.instances[0].metadata["tags"].as_str()), ("g", "v2,g"));
    let mut other = registry.watch(&key("web", "h"));
    list(&mut other, "", false).await;
    drop(other);
    server.asked("index=5").await;
    drop(server);
    let found = list(&mut web, "10.0.0.9:1", true).await;
    let mut late = registry.watch(&key("web", "g"));
    list(&mut late, "10.0.0.9:1", true).await;
    assert!(found.stale.as_ref().unwrap().contains("/v1/health/service/web"), "{:?}", found.stale);
}

#[tokio::test]
async fn a_registration_says_what_motans_clients_read() {
    let forgotten = AtomicUsize::new(0);
    let server = StandIn::start(move |asked| {
        if asked.line.contains("/check/pass/") && forgotten.fetch_add(1, SeqCst) == 0 {
            return Some((404, vec![], "Unknown check ID \"service:x\"".into()));
        }
        Some((200, vec![], String::new()))
    })
    .await;
    let registry = registry(server.at, ", ttl: 1s");
    let provided = Provided {
        key: key("com.Echo", "yf"),
        protocol: "motan2".into(),
        instance: Instance::at("10.1.2.3:8001"),
        application: "shop".into(),
        parameters: [("serialization".to_owned(), "simple".to_owned())].into(),
    };
    let (want, wanted) = watch::channel(Wanted::Available);
    let mut standing = registry.register(&provided, wanted).unwrap();
    let asked = server.asked("PUT /v1/agent/service/register").await;
    let body: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(body["Name"], "motanrpc_yf");
    assert_eq!(body["ID"], "10.1.2.3:8001-com.Echo");
    assert_eq!((&body["Address"], &body["Port"]), (&json!("10.1.2.3"), &json!(8001)));
    assert_eq!(body["Check"]["TTL"], "1000ms");
    assert_eq!(body["Check"]["Status"], "passing");
    assert_eq!(body["Tags"][0], "protocol_motan2");
    let url = "URL_motan2%3A%2F%2F10.1.2.3%3A8001%2Fcom.Echo%3Fapplication%3Dshop%26group%3Dyf%26nodeType%3Dservice%26serialization%3Dsimple%26version%3D1.0%26";
    assert_eq!(body["Tags"][1], url);
    standing.wait_for(|s| *s == Standing::Available).await.unwrap();
    // Consul does not know it any more: it is told anew.
    server.asked("PUT /v1/agent/check/pass/service:10.1.2.3%3A8001-com.Echo").await;
    server.asked("PUT /v1/agent/service/register").await;
    server.asked("check/pass").await;
    want.send_replace(Wanted::Unavailable);
    let asked = server.asked("PUT /v1/agent/service/register").await;
    assert!(asked.body.contains("critical"), "{}", asked.body);
    want.send_replace(Wanted::Gone);
    server.asked("PUT /v1/agent/service/deregister/10.1.2.3%3A8001-com.Echo").await;
    standing.wait_for(|s| *s == Standing::Gone).await.unwrap();
}

#[tokio::test]
async fn commands_follow_their_key_and_are_written_if_nobody_else_did() {
    let step = AtomicUsize::new(0);
    let server = StandIn::start(move |asked| {
        let pair = |value: &str| json!([{"LockIndex": 0, "Key": "k", "Flags": 0, "Value": value, "CreateIndex": 3, "ModifyIndex": 33}]);
        let missing = Some((404, vec![("x-consul-index", "2".to_owned())], String::new()));
        if asked.line.starts_with("PUT") {
            assert_eq!(asked.body, "new");
            return Some((200, vec![], if asked.line.contains("cas=33") { "true" } else { "false" }.into()));
        }
        if asked.line.contains("motan/agent/shop/command") {
            return missing;
        }
        assert!(asked.line.contains("/v1/kv/motan/command/yf"), "{}", asked.line);
        match step.fetch_add(1, SeqCst) {
            0 => missing,
            1 => indexed(33, pair("aGVsbG8=")),
            _ if asked.line.contains("index=") => None,
            _ => indexed(33, pair("aGVsbG8=")),
        }
    })
    .await;
    let registry = registry(server.at, "");
    let group = Scope::Group("yf".into());
    let mut text = registry.commands(&group).unwrap();
    text.wait_for(|t| t.revision == 1 && t.text.is_none()).await.unwrap();
    text.wait_for(|t| t.text.as_deref() == Some("hello")).await.unwrap();
    registry.write_commands(&group, Some("hello"), "new").await.unwrap();
    let error = registry.write_commands(&group, Some("old"), "new").await.unwrap_err().to_string();
    assert!(error.contains("holds something else by now: hello"), "{error}");
    let error = registry.write_commands(&Scope::Agent("shop".into()), None, "new").await.unwrap_err().to_string();
    assert!(error.contains("changed by someone else"), "{error}");
}

#[test]
fn says_what_is_wrong_with_its_options() {
    let told = |yaml: &str| refusal(build, yaml);
    assert!(told("{adress: x}").contains("unknown field `adress`"));
    assert!(told("{address: 'ftp://x'}").contains("option `address`: `ftp://x`"));
    assert!(told("{ttl: '10'}").contains("ttl: `10` has no unit"));
    assert!(told("{ttl: 10ms}").contains("too short"));
    assert!(told("{layout: java}").contains("unknown variant `java`"));
    assert!(told("{tag: v1}").contains("`layout: plain`"));
}

#[tokio::test]
async fn over_tls_who_is_not_believed_is_not_asked_and_who_shows_nothing_is_not_answered() {
    let certificates = Certificates::new("consul");
    let rule = |asked: &Asked| {
        assert_eq!(asked.headers["x-consul-token"], "secret");
        match asked.line.contains("index=") {
            true => None,
            false => indexed(5, json!([health("web", "w1", 1, &[], "passing")])),
        }
    };
    let server = StandIn::over(Some(certificates.server(true)), rule).await;
    let cx = BuildCx { base_dir: certificates.dir.clone(), ..BuildCx::default() };
    let made = |address: &str, tls: &str| {
        let port = server.at.port();
        let yaml = format!("{{address: '{address}:{port}', layout: plain, token: secret, tls: {{{tls}}}}}");
        build(&serde_yaml::from_str(&yaml).unwrap(), &cx)
    };
    let all = "ca_file: ca.pem, cert_file: own.pem, key_file: own.key";
    for address in ["localhost", "https://localhost"] {
        let registry = made(address, all).unwrap();
        list(&mut registry.watch(&key("web", "")), "10.0.0.9:1", false).await;
    }
    for (address, tls) in [
        ("127.0.0.1", all),
        ("localhost", "ca_file: own.pem, cert_file: own.pem, key_file: own.key"),
        ("localhost", "ca_file: ca.pem, cert_file: other.pem, key_file: other.key"),
        ("localhost", "ca_file: ca.pem"),
    ] {
        list(&mut made(address, tls).unwrap().watch(&key("web", "")), "", true).await;
    }
    for (address, tls, why) in [
        ("http://localhost", all, "write `https://`"),
        ("localhost", "ca_file: gone.pem", "gone.pem"),
        ("localhost", "ca_file: own.key", "no certificate in it"),
        ("localhost", "ca_file: ca.pem, cert_file: own.pem", "write `key_file` as well"),
        ("localhost", "ca_file: ca.pem, cert_file: own.pem, key_file: other.key", "do not fit"),
        ("localhost", "ca_file: ca.pem, cert_file: own.pem, key_file: own.pem", "key_file"),
    ] {
        let told = format!("{:#}", made(address, tls).err().expect("refused"));
        assert!(told.contains(why), "{tls}: {told}");
    }
}
