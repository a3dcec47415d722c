//! Logging in, by HTTP and by the command line.

use model::center::{EndpointTested, LoginWays, Me, Page, Role, TokenMade, UserRow};
use serde_json::{Value, json};

use crate::served::{Served, verb};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_account_by_command_line_then_everyone_logs_in() {
    let (served, password) = Served::closed("");
    let ways: LoginWays = served.ask("GET", "/v1/login", &[], None).await.ok();
    assert_eq!(ways, LoginWays { open: false, password: true, oidc: None });
    let answer = served.ask("GET", "/v1/me", &[], None).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    let body = json!({ "name": "root", "password": password }).to_string();
    let answer = served.ask("POST", "/v1/login", &[], Some(body.as_bytes())).await;
    let cookie = answer.header("set-cookie").unwrap().to_owned();
    for part in ["sockmesh=", "HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let me: Me = answer.ok();
    assert_eq!((me.name.as_str(), me.roles, me.open), ("root", vec![("*".to_owned(), Role::Admin)], false));
    let session = (cookie.split(';').next().unwrap().to_owned(), me.csrf.unwrap());
    let with_cookie = [("Cookie", session.0.as_str())];
    assert_eq!(served.ask("GET", "/v1/me", &with_cookie, None).await.ok::<Me>().csrf.as_ref(), Some(&session.1));

    // A change needs the secret as well, and a page of another origin gets nowhere even with both.
    let new = json!({ "name": "ann", "password": "a long password", "roles": [["idc-*", "operator"]] }).to_string();
    let add = async |headers: &[(&str, &str)]| served.ask("POST", "/v1/users", headers, Some(new.as_bytes())).await;
    assert_eq!(add(&with_cookie).await.status, 403);
    let wrong = [("Cookie", session.0.as_str()), ("x-sockmesh-csrf", "wrong")];
    assert_eq!(add(&wrong).await.status, 403);
    let foreign = [("Cookie", session.0.as_str()), ("x-sockmesh-csrf", &session.1), ("Origin", "https://evil.example")];
    assert_eq!(add(&foreign).await.status, 403);
    let own = [("Cookie", session.0.as_str()), ("x-sockmesh-csrf", &session.1)];
    let user: UserRow = add(&own).await.ok();
    assert_eq!(user.roles, [("idc-*".to_owned(), Role::Operator)]);
    assert_eq!(add(&own).await.problem().code, "conflict");

    // Someone else, with a token of her own that outlives her session.
    let ann = served.login("ann", "a long password").await;
    let headers = [("Cookie", ann.0.as_str()), ("x-sockmesh-csrf", &ann.1)];
    let body = json!({ "remark": "cli", "roles": [["idc-a", "operator"]] }).to_string();
    let made: TokenMade = served.ask("POST", "/v1/tokens", &headers, Some(body.as_bytes())).await.ok();
    assert!(made.token.starts_with("smc_") && made.row.owner == "ann");
    let answer = served.ask("POST", "/v1/logout", &headers, None).await;
    assert!(answer.status == 204 && answer.header("set-cookie").unwrap().contains("Max-Age=0"), "{answer}");
    assert_eq!(served.ask("GET", "/v1/me", &headers[..1], None).await.status, 401);
    let me: Me = served.by(&made.token, "GET", "/v1/me", None::<&Value>).await.ok();
    assert!(me.name.starts_with("ann (token"), "{me:?}");
    assert_eq!(served.by(&made.token, "GET", "/v1/users", None::<&Value>).await.status, 403);
    let list: Page<UserRow> = served.ask("GET", "/v1/users?limit=1", &own, None).await.ok();
    assert_eq!((list.items[0].name.as_str(), list.next.as_deref(), list.total), ("ann", Some("ann"), Some(2)));
    assert_eq!(served.ask("DELETE", "/v1/users/ann", &own, None).await.status, 204);
    assert_eq!(served.by(&made.token, "GET", "/v1/me", None::<&Value>).await.status, 401);
    assert_eq!(served.ask("DELETE", "/v1/users/root", &own, None).await.problem().code, "conflict");
    assert_eq!(served.ask("DELETE", "/v1/users/nobody", &own, None).await.problem().code, "not_found");
    // One's own password.
    let body = json!({ "old": "wrong password", "new": "another password" }).to_string();
    assert_eq!(served.ask("POST", "/v1/me/password", &own, Some(body.as_bytes())).await.status, 403);
    let body = json!({ "old": password, "new": "another password" }).to_string();
    assert_eq!(served.ask("POST", "/v1/me/password", &own, Some(body.as_bytes())).await.status, 204);
    served.login("root", "another password").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_and_foreign_names_are_turned_away() {
    let (served, password) = Served::closed("api:\n  hosts: [center.example]\n  url: https://mesh.example\n");
    let body = json!({ "name": "root", "password": "guess guess" }).to_string();
    let mut last = 0;
    for _ in 0..20 {
        let answer = served.ask("POST", "/v1/login", &[], Some(body.as_bytes())).await;
        last = answer.status;
        answer.problem();
    }
    assert_eq!(last, 429);
    for (host, status) in
        [("evil.example", 403), ("center.example", 401), ("mesh.example", 401), ("localhost:1", 401), ("10.0.0.1", 401)]
    {
        let answer = served.ask("GET", "/v1/me", &[("Host", host)], None).await;
        assert_eq!(answer.status, status, "{host}: {answer}");
    }
    // Behind HTTPS the cookie is for HTTPS only. (The address is blocked by now; the proxy's word is not believed.)
    let body = json!({ "name": "root", "password": password }).to_string();
    let answer = served.ask("POST", "/v1/login", &[("X-Forwarded-For", "9.9.9.9")], Some(body.as_bytes())).await;
    assert_eq!(answer.problem().code, "too_many");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_trusted_tells_who_asks() {
    let (served, password) = Served::closed("api:\n  proxies: [127.0.0.1]\n  url: https://mesh.example\n");
    let guess = json!({ "name": "root", "password": "guess guess" }).to_string();
    for _ in 0..11 {
        let attacker = [("X-Forwarded-For", "9.9.9.9")];
        served.ask("POST", "/v1/login", &attacker, Some(guess.as_bytes())).await.problem();
    }
    let body = json!({ "name": "root", "password": password }).to_string();
    let other = [("X-Forwarded-For", "9.9.9.10")];
    let answer = served.ask("POST", "/v1/login", &other, Some(body.as_bytes())).await;
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.starts_with("__Host-sockmesh=") && cookie.ends_with("; Secure"), "{cookie}");
    let me = served.ask("GET", "/v1/me", &[("Cookie", cookie.split(';').next().unwrap())], None).await;
    assert_eq!(me.status, 200, "{me}");
    let plain = cookie.split(';').next().unwrap().replace("__Host-", "");
    assert_eq!(served.ask("GET", "/v1/me", &[("Cookie", &plain)], None).await.status, 401);
}

#[test]
fn accounts_by_command_line() {
    let dir = std::env::temp_dir().join(format!("sockmesh-accounts-{}", std::process::id()));
    let run = |args: &[&str]| verb(&dir, args);
    let told = run(&["user", "add", "ann"]).unwrap_err();
    assert!(told.contains("admin"), "{told}");
    let password = run(&["user", "add", "root", "--role", "admin"]).unwrap();
    assert!(password.len() >= 20);
    let file = dir.join("password");
    std::fs::write(&file, "a long password\n").unwrap();
    let file = file.to_str().unwrap();
    let told = run(&["user", "add", "ann", "--role", "operator", "--group", "idc-a", "--password-file", file]);
    assert_eq!(told.unwrap(), "", "a password that is given is not told");
    assert_eq!(run(&["user", "list"]).unwrap(), "ann\tidc-a=operator\nroot\t*=admin");
    assert!(run(&["user", "remove", "root"]).unwrap_err().contains("admin"));
    assert_ne!(run(&["user", "password", "ann"]).unwrap(), "");
    run(&["user", "remove", "ann"]).unwrap();
    let token = run(&["token", "add", "--agents", "web-*/*", "--services", "com.shop.*", "--for", "1h"]).unwrap();
    let id = token.split('_').nth(1).unwrap().to_owned();
    assert!(run(&["token", "list"]).unwrap().contains("web-*/*"));
    run(&["token", "remove", &id]).unwrap();
    assert_eq!(run(&["token", "list"]).unwrap(), "");
    assert!(run(&["token", "remove", &id]).unwrap_err().contains("no token"));
    assert!(run(&["token", "add"]).unwrap_err().contains("agents"));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_registered_instances_are_tried() {
    let served = Served::open();
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let open = served.at.to_string();
    let register = |address: &str| {
        json!({ "key": { "service": "web", "group": "g" }, "protocol": "http1", "available": true,
            "instance": { "address": address, "weight": 10 } })
    };
    let body = json!({ "agent": "host/a", "ttl_ms": 30_000, "generation": 1,
        "registrations": [register(&open), register(&closed)] });
    let answer = served.ask("PUT", "/v1/agent/registrations", &[], Some(body.to_string().as_bytes())).await;
    assert_eq!(answer.status, 200, "{answer}");
    let test = async |service: &str, group: &str, instance: &str| {
        let body = json!({ "service": service, "group": group, "instance": instance }).to_string();
        served.ask("POST", "/v1/test", &[], Some(body.as_bytes())).await
    };
    let tested: EndpointTested = test("web", "g", &open).await.ok();
    assert!(tested.reachable && tested.error.is_none(), "{tested:?}");
    let tested: EndpointTested = test("web", "g", &closed).await.ok();
    assert!(!tested.reachable && tested.error.is_some(), "{tested:?}");
    for (service, group, instance) in [
        ("web", "g", "127.0.0.1:22"),
        ("web", "h", open.as_str()),
        ("other", "g", &open),
        ("web", "g", "localhost:22"),
        ("web", "g", "http://169.254.169.254/"),
    ] {
        assert_eq!(test(service, group, instance).await.problem().code, "not_found", "{service} {group} {instance}");
    }
}
