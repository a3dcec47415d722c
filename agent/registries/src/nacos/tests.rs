//! The HTTP API against a stand-in that speaks shapes recorded from r-nacos 0.8.8; `tests/full` has the real one,
//! for both APIs.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use model::{Instance, ServiceKey};
use tokio::sync::watch;

use super::*;
use crate::{
    Provided, Scope, Standing, Wanted,
    testing::{Answer, Asked, Certificates, StandIn, built, list, refusal},
};

fn registry(at: std::net::SocketAddr, more: &str) -> Arc<dyn Registry> {
    let yaml = format!("{{address: '{at}', api: http{more}}}");
    built(build, &yaml).unwrap()
}

fn key(service: &str, group: &str) -> ServiceKey {
    ServiceKey { service: service.into(), group: group.into(), version: String::new() }
}

fn ok(body: &str) -> Option<Answer> {
    Some((200, Vec::new(), body.to_owned()))
}

const LIST: &str = r#"{"name":"yf@@com.Echo","clusters":"","cacheMillis":10000,"hosts":[
    {"service":"yf@@com.Echo","ip":"10.0.0.1","port":8001,"clusterName":"DEFAULT","weight":3.0,"healthy":true,
     "instanceId":"10.0.0.1#8001","metadata":{"version":"1.0"},"marked":true,"enabled":true,"ephemeral":true},
    {"ip":"10.0.0.2","port":8001,"weight":1.0,"healthy":false,"metadata":{},"enabled":true}],
    "lastRefTime":1700000000000,"checksum":"","useSpecifiedUrl":false,"env":"","protectThreshold":0.0}"#;

#[tokio::test]
async fn lists_are_asked_for_with_a_token_and_the_next_server_helps() {
    let logins = Arc::new(AtomicUsize::new(0));
    let count = logins.clone();
    let broken = StandIn::start(|_| Some((503, vec![], "server is DOWN now".into()))).await;
    let server = StandIn::start(move |asked| {
        if asked.line == "POST /nacos/v1/auth/login" {
            count.fetch_add(1, SeqCst);
            assert_eq!(asked.body, "username=ops&password=p%26q");
            return ok(r#"{"accessToken":"t0","tokenTtl":18000,"globalAdmin":true,"username":"ops"}"#);
        }
        assert!(asked.line.contains("accessToken=t0"), "{}", asked.line);
        assert!(asked.line.contains("serviceName=com.Echo&groupName=yf&namespaceId=dev"), "{}", asked.line);
        ok(LIST)
    })
    .await;
    let yaml = format!(
        "{{address: ['{}', '{}'], api: http, namespace: dev, username: ops, password: 'p&q'}}",
        broken.at, server.at
    );
    let registry = built(build, &yaml).unwrap();
    let mut echo = registry.watch(&key("com.Echo", "yf"));
    let found = list(&mut echo, "10.0.0.1:8001", false).await;
    assert_eq!((found.instances[0].weight, found.instances[0].version.as_str()), (30, "1.0"));
    assert_eq!(logins.load(SeqCst), 1, "one token for many questions");
    drop(server);
    list(&mut echo, "10.0.0.1:8001", true).await;
}

#[tokio::test]
async fn answers_that_are_no_lists_change_nothing() {
    for body in ["<html>", "{}", "[]", r#"{"hosts": 7}"#, r#"{"hosts": [{"ip": "x", "port": 1}]}"#] {
        let server = StandIn::start(move |_| ok(body)).await;
        let mut echo = registry(server.at, "").watch(&key("s", ""));
        let found = list(&mut echo, "", true).await;
        assert_eq!(found.revision, 0, "{body}");
    }
}

#[tokio::test]
async fn registrations_live_by_beats() {
    let unknown = AtomicUsize::new(0);
    let server = StandIn::start(move |asked| {
        if asked.line.contains("/beat") {
            let code = if unknown.fetch_add(1, SeqCst) == 0 { 20404 } else { 10200 };
            return ok(&format!(r#"{{"code":{code},"clientBeatInterval":5000,"lightBeatEnabled":true}}"#));
        }
        ok("ok")
    })
    .await;
    let registry = registry(server.at, "");
    let provided = Provided {
        key: key("com.Echo", ""),
        protocol: "motan2".into(),
        instance: Instance { zone: "a".into(), weight: 5, ..Instance::at("10.1.2.3:8001") },
        application: "shop".into(),
        parameters: [("serialization".to_owned(), "simple".to_owned())].into(),
    };
    let (want, wanted) = watch::channel(Wanted::Available);
    let mut standing = registry.register(&provided, wanted).unwrap();
    let body = server.asked("POST /nacos/v1/ns/instance").await.body;
    let pairs: std::collections::HashMap<_, _> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let of = |name: &str| pairs[name].as_str();
    assert_eq!((of("ip"), of("port"), of("weight"), of("groupName")), ("10.1.2.3", "8001", "0.5", "DEFAULT_GROUP"));
    assert_eq!((of("namespaceId"), of("enabled"), of("ephemeral")), ("public", "true", "true"));
    let metadata: serde_json::Value = serde_json::from_str(of("metadata")).unwrap();
    let expected =
        serde_json::json!({"application": "shop", "protocol": "motan2", "serialization": "simple", "zone": "a"});
    assert_eq!(metadata, expected);
    standing.wait_for(|s| *s == Standing::Available).await.unwrap();
    // Forgotten by the server: made anew, then it lives by beats.
    server.asked("PUT /nacos/v1/ns/instance/beat").await;
    server.asked("POST /nacos/v1/ns/instance").await;
    let beat = server.asked("PUT /nacos/v1/ns/instance/beat").await;
    assert!(beat.line.contains("DEFAULT_GROUP%40%40com.Echo"), "{}", beat.line);
    want.send_replace(Wanted::Unavailable);
    assert!(server.asked("POST /nacos/v1/ns/instance").await.body.contains("enabled=false"));
    want.send_replace(Wanted::Gone);
    server.asked("DELETE /nacos/v1/ns/instance?").await;
    standing.wait_for(|s| *s == Standing::Gone).await.unwrap();
}

#[tokio::test]
async fn commands_are_configurations() {
    let text = Arc::new(Mutex::new(None::<String>));
    let held = text.clone();
    let server = StandIn::start(move |asked| {
        let mut held = held.lock().unwrap();
        if asked.line.starts_with("POST") {
            let pairs: std::collections::HashMap<_, _> =
                form_urlencoded::parse(asked.body.as_bytes()).into_owned().collect();
            assert_eq!((pairs["dataId"].as_str(), pairs["group"].as_str()), ("motan.command", "yf"));
            *held = Some(pairs["content"].clone());
            return ok("true");
        }
        match &*held {
            Some(text) => ok(text),
            None => Some((404, vec![], "config data not exist".into())),
        }
    })
    .await;
    let registry = registry(server.at, "");
    let group = Scope::Group("yf".into());
    let mut told = registry.commands(&group).unwrap();
    told.wait_for(|t| t.revision == 1 && t.text.is_none()).await.unwrap();
    registry.write_commands(&group, None, "one").await.unwrap();
    told.wait_for(|t| t.text.as_deref() == Some("one")).await.unwrap();
    let error = registry.write_commands(&group, None, "two").await.unwrap_err().to_string();
    assert!(error.contains("motan.command of group yf holds something else by now: one"), "{error}");
    *text.lock().unwrap() = None;
    told.wait_for(|t| t.text.is_none()).await.unwrap();
}

#[tokio::test]
async fn no_grpc_server_is_said_and_asked_again() {
    let server = StandIn::start(|_| ok("no")).await;
    let at = std::net::SocketAddr::new(server.at.ip(), server.at.port().wrapping_sub(1000).max(1));
    let yaml = format!("{{address: '{at}'}}");
    let registry = built(build, &yaml).unwrap();
    let mut echo = registry.watch(&key("s", ""));
    let found = list(&mut echo, "", true).await;
    assert!(found.stale.as_ref().unwrap().starts_with("nacos http://127.0.0.1:"), "{found:?}");
}

#[test]
fn says_what_is_wrong_with_its_options() {
    let told = |yaml: &str| refusal(build, yaml);
    assert!(told("{}").contains("`address` is missing"));
    assert!(told("{address: a, api: udp}").contains("unknown variant `udp`"));
    assert!(told("{address: 'a:65000'}").contains("use `api: http`"));
}

#[tokio::test]
async fn over_tls_passwords_go_only_to_who_is_believed() {
    let certificates = Certificates::new("nacos");
    let logins = Arc::new(AtomicUsize::new(0));
    let count = logins.clone();
    let rule = move |asked: &Asked| {
        if asked.line.starts_with("POST /nacos/v1/auth/login") {
            count.fetch_add(1, SeqCst);
            return ok(r#"{"accessToken":"t0","tokenTtl":18000}"#);
        }
        ok(LIST)
    };
    let server = StandIn::over(Some(certificates.server(true)), rule).await;
    let cx = BuildCx { base_dir: certificates.dir.clone(), ..BuildCx::default() };
    let made = |api: &str, tls: &str| {
        let port = server.at.port();
        let yaml = format!("{{address: 'localhost:{port}', api: {api}, username: ops, password: p, tls: {{{tls}}}}}");
        build(&serde_yaml::from_str(&yaml).unwrap(), &cx)
    };
    let own = "cert_file: own.pem, key_file: own.key";
    let stranger = made("http", &format!("ca_file: own.pem, {own}")).unwrap();
    list(&mut stranger.watch(&key("com.Echo", "yf")), "", true).await;
    assert_eq!(logins.load(SeqCst), 0, "the password was shown to nobody");
    let registry = made("http", &format!("ca_file: ca.pem, {own}")).unwrap();
    list(&mut registry.watch(&key("com.Echo", "yf")), "10.0.0.1:8001", false).await;
    assert_eq!(logins.load(SeqCst), 1);
    let told = format!("{:#}", made("grpc", "ca_file: ca.pem").err().expect("refused"));
    assert!(told.contains("`api: http` only"), "{told}");
}
