//! Everyone tries every call that changes anything.

use model::center::{AuditEntry, NewToken, Page, Role};
use serde_json::{Value, json};

use crate::{
    schema::{Call, Maker},
    served::Served,
};

/// Calls for whoever is logged in, about nobody but oneself.
const OWN: [&str; 4] = ["/v1/me/password", "/v1/logout", "/v1/tokens", "/v1/tokens/{id}"];
/// Calls that have a body and only read.
const READING: [&str; 2] = ["/v1/commands/preview", "/v1/capacity/what-if"];
/// Calls before logging in.
const PUBLIC: [&str; 1] = ["/v1/login"];

fn new(roles: &[(&str, Role)]) -> NewToken {
    let roles = roles.iter().map(|(group, role)| ((*group).to_owned(), *role)).collect();
    NewToken { roles, ..NewToken::default() }
}

/// A request that fits, with everything in it about this group.
fn fitting(call: &Call, api: &Value, group: &str) -> (String, Option<Value>) {
    let mut maker = Maker::new(api, 1, 0);
    let path = call.path.replace("{id}", "1").replace("{name}", "text");
    let mut body = call.body.as_ref().map(|schema| maker.value("", schema, 0));
    if let Some(body) = &mut body {
        in_group(body, group);
    }
    (path, body)
}

fn in_group(value: &mut Value, group: &str) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                if ["group", "from", "to"].contains(&key.as_str()) && value.is_string() {
                    *value = json!(group);
                }
                in_group(value, group);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|value| in_group(value, group)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_role_for_it_changes_nothing_and_is_on_record() {
    let (served, password) = Served::closed("");
    let root = served.login("root", &password).await;
    let api = served.description().await;
    let viewer = served.token(&root, &new(&[("*", Role::Viewer)])).await;
    let elsewhere = served.token(&root, &new(&[("elsewhere", Role::Operator), ("*", Role::Viewer)])).await;
    let agent = served.token(&root, &NewToken { agents: vec!["host/*".into()], ..NewToken::default() }).await;
    let admin = served.token(&root, &new(&[("*", Role::Admin)])).await;
    let mut tried = 0;
    for call in Call::all(&api).into_iter().filter(Call::changes) {
        let name = format!("{} {}", call.method, call.path);
        let listed = |list: &[&str]| list.contains(&call.path.as_str());
        let (path, body) = fitting(&call, &api, "idc-a");
        let of_agents = call.path.starts_with("/v1/agent/");
        let body_bytes = body.as_ref().map(|body| body.to_string().into_bytes());
        if !listed(&PUBLIC) {
            let answer = served.ask(&call.method, &path, &[], body_bytes.as_deref()).await;
            assert_eq!(answer.status, 401, "nobody: {name}: {answer}");
            let answer = served.by("smc_0_0", &call.method, &path, body.as_ref()).await;
            assert_eq!(answer.status, 401, "a token that is none: {name}: {answer}");
            let forged = [("Cookie", root.0.as_str())];
            let answer = served.ask(&call.method, &path, &forged, body_bytes.as_deref()).await;
            assert_eq!(answer.status, 403, "a session without its secret: {name}: {answer}");
            assert!(answer.problem().message.contains("x-sockmesh-csrf"), "{answer}");
        }
        if listed(&PUBLIC) || listed(&READING) {
            continue;
        }
        let forbidden = async |who: &str, token: &str| {
            let answer = served.by(token, &call.method, &path, body.as_ref()).await;
            assert_eq!(answer.status, 403, "{who}: {name} {body:?}: {answer}");
            assert_eq!(answer.problem().code, "forbidden");
        };
        if of_agents {
            // Not even an admin speaks for agents, and an agent speaks for itself only.
            forbidden("a viewer", &viewer).await;
            forbidden("an admin", &admin).await;
            forbidden("another's agent", &agent).await;
            continue;
        }
        if listed(&OWN) {
            continue;
        }
        tried += 1;
        forbidden("a viewer", &viewer).await;
        forbidden("an agent", &agent).await;
        // Refused for its role, or because the thing it names is not there; never done.
        let answer = served.by(&elsewhere, &call.method, &path, body.as_ref()).await;
        assert!([400, 403, 404, 409].contains(&answer.status), "an operator of elsewhere: {name} {body:?}: {answer}");
        // And for an admin it is no question of roles. (What it is then is for each part's own tests.)
        let answer = served.by(&admin, &call.method, &path, body.as_ref()).await;
        assert!(![401, 403].contains(&answer.status), "an admin: {name}: {answer}");
    }
    println!("{tried} calls that change something were refused to viewers, agents and nobody");
    assert!(tried >= 5, "{tried}");
    let entries: Page<AuditEntry> = served.by(&admin, "GET", "/v1/audit?limit=1000", None::<&Value>).await.ok();
    let refused = entries.items.iter().filter(|entry| entry.what == "refused" && entry.outcome == "forbidden");
    assert!(refused.count() >= 2 * tried, "every refusal is on record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_agents_are_told_is_not_for_people_and_the_other_way_round() {
    let (served, password) = Served::closed("");
    let root = served.login("root", &password).await;
    let api = served.description().await;
    let agent = served.token(&root, &NewToken { agents: vec!["host/*".into()], ..NewToken::default() }).await;
    let viewer = served.token(&root, &new(&[("*", Role::Viewer)])).await;
    for call in Call::all(&api).into_iter().filter(|call| !call.changes()) {
        if ["/v1/login", "/v1/oidc/start", "/v1/oidc/callback"].contains(&call.path.as_str()) {
            continue;
        }
        let path = call.path.replace("{id}", "1").replace("{name}", "x") + "?service=s&group=g";
        let answer = served.ask("GET", &path, &[], None).await;
        assert_eq!(answer.status, 401, "nobody: {path}: {answer}");
        let answer = served.by(&viewer, "GET", &path, None::<&Value>).await;
        match call.path.as_str() {
            // All that the centre keeps, digests of secrets included.
            "/v1/users" | "/v1/backup" => assert_eq!(answer.status, 403, "viewer: {path}: {answer}"),
            "/v1/audit" => {}
            _ => assert!(![401, 403, 500].contains(&answer.status), "viewer: {path}: {answer}"),
        }
        if !["/v1/me", "/v1/tokens"].contains(&call.path.as_str()) {
            let answer = served.by(&agent, "GET", &path, None::<&Value>).await;
            assert_eq!(answer.status, 403, "agent: {path}: {answer}");
        }
    }
}
