//! Against a stand-in that answers as motan-go's management port does.

use std::sync::Mutex;

use super::*;
use crate::testing::{StandIn, list};

fn registry(at: SocketAddr, more: &str) -> Arc<dyn Registry> {
    let yaml = format!("{{address: '{at}'{more}}}");
    let cx = BuildCx { application: "shop".into(), ..BuildCx::default() };
    build(&serde_yaml::from_str(&yaml).unwrap(), &cx).unwrap()
}

/// An agent with one registry, which keeps what it is told.
async fn agent() -> (StandIn, Arc<Mutex<(Vec<Node>, Vec<Node>)>>) {
    let lists = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let told = lists.clone();
    let server = StandIn::start(move |asked| {
        let ok = |body: serde_json::Value| {
            let all = serde_json::json!({"code": 200, "message": "ok", "body": body});
            Some((200, vec![("content-type", "application/json;charset=utf-8".to_owned())], all.to_string()))
        };
        let mut lists = told.lock().unwrap();
        if asked.line == "GET /registry/info" {
            return ok(serde_json::json!({"mesh_port": 9981}));
        }
        if asked.line == "GET /registry/list" {
            // Go writes null for an empty list.
            let list = |nodes: &Vec<Node>| (!nodes.is_empty()).then(|| nodes.clone());
            return ok(serde_json::json!({"register_nodes": list(&lists.0), "subscribe_nodes": list(&lists.1)}));
        }
        let node: Node = serde_json::from_str(&asked.body).unwrap();
        if node.parameters.get("proxyRegistry").map(String::as_str) != Some("zookeeper://127.0.0.1:2181") {
            return Some((400, vec![], r#"{"code":400,"message":"registry not found"}"#.into()));
        }
        match asked.line.as_str() {
            "POST /registry/subscribe" => lists.1.push(node),
            "POST /registry/register" => lists.0.push(node),
            "POST /registry/unregister" => lists.0.retain(|known| !node.is(known)),
            other => panic!("{other}"),
        }
        Some((200, vec![], r#"{"code":200,"message":"ok"}"#.into()))
    })
    .await;
    (server, lists)
}

const BEHIND: &str = ", proxy_registry: 'zookeeper://127.0.0.1:2181'";

#[tokio::test]
async fn the_other_agent_subscribes_and_is_the_instance() {
    let (server, lists) = agent().await;
    let registry = registry(server.at, BEHIND);
    let key = ServiceKey { service: "com.Echo".into(), group: "yf".into(), version: "1.0".into() };
    let mut echo = registry.watch(&key);
    list(&mut echo, "127.0.0.1:9981", false).await;
    let asked = server.asked("POST /registry/subscribe").await;
    let node: Node = serde_json::from_str(&asked.body).unwrap();
    assert_eq!((node.protocol.as_str(), node.path.as_str(), node.group.as_str()), ("motan2", "com.Echo", "yf"));
    assert_eq!((node.parameters["version"].as_str(), node.parameters["application"].as_str()), ("1.0", "shop"));
    // Started again, it has forgotten all.
    lists.lock().unwrap().1.clear();
    server.asked("POST /registry/subscribe").await;
    assert!(echo.borrow().stale.is_none());
}

#[tokio::test]
async fn what_is_provided_is_exported_by_the_other_agent_until_it_is_taken_back() {
    let (server, lists) = agent().await;
    let registry = registry(server.at, BEHIND);
    let provided = Provided {
        key: ServiceKey { service: "com.Echo".into(), group: "yf,bj".into(), version: String::new() },
        protocol: "motan2".into(),
        instance: Instance::at("127.0.0.1:8100"),
        application: "shop".into(),
        parameters: BTreeMap::new(),
    };
    let (want, wanted) = watch::channel(Wanted::Available);
    let mut standing = registry.register(&provided, wanted).unwrap();
    let node: Node = serde_json::from_str(&server.asked("POST /registry/register").await.body).unwrap();
    assert_eq!((node.host.as_str(), node.port, node.group.as_str()), ("127.0.0.1", 8100, "yf,bj"));
    standing.wait_for(|s| *s == Standing::Available).await.unwrap();
    lists.lock().unwrap().0.clear();
    server.asked("POST /registry/register").await;
    want.send_replace(Wanted::Unavailable);
    standing.wait_for(|s| *s == Standing::Unavailable).await.unwrap();
    assert!(lists.lock().unwrap().0.is_empty());
    want.send_replace(Wanted::Gone);
    standing.wait_for(|s| *s == Standing::Gone).await.unwrap();
}

#[tokio::test]
async fn the_remedy_is_told_when_the_other_agent_has_no_such_registry() {
    let (server, _) = agent().await;
    let mut echo = registry(server.at, "").watch(&ServiceKey { service: "s".into(), ..ServiceKey::default() });
    let found = list(&mut echo, "", true).await;
    assert!(found.stale.as_ref().unwrap().contains("write one of its own as `proxy_registry`"), "{found:?}");
    let server = StandIn::start(|_| Some((200, vec![], "<html>".into()))).await;
    let mut echo = registry(server.at, "").watch(&ServiceKey { service: "s".into(), ..ServiceKey::default() });
    let found = list(&mut echo, "", true).await;
    assert!(found.stale.as_ref().unwrap().contains("not that of an agent's management port"), "{found:?}");
}
