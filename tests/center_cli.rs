//! `sockmesh` asks a real centre, and gives orders through it.

use host::{Agent, Backend, Center, Cmd, agent::sockmesh, center, net};
use serde_json::{Value, json};

/// An agent that provides `web` of group `g`.
fn provider(center: &Center, server: &Backend, token: &str) -> Agent {
    let services = format!(
        "center: {{address: '{}', report: 0s{token}}}
registries: {{c: {{kind: center, ttl: 3s}}}}
services:
  - {{service: web, group: g, protocol: http, export: {}, local: {}, registry: c}}
",
        center.addr(),
        net::free_addr(),
        server.addr()
    );
    Agent::start(&services)
}

/// A verb at this centre, perhaps with a token.
fn ask(center: &Center, token: &str, verb: &str) -> Cmd {
    let token = format!("SOCKMESH_TOKEN={token}");
    sockmesh(verb).args(["--center".to_owned(), format!("http://{}", center.addr())]).under(&["env", &token])
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn center_verbs_show_what_the_centre_knows_and_order_through_it() {
    let center = Center::start("");
    let server = Backend::named("one");
    let _agent = provider(&center, &server, "");
    host::until("the service is registered", || ask(&center, "", "services -o json").run().ok().contains("\"web\""));
    let shown = ask(&center, "", "services web").run().ok();
    assert!(shown.contains("web") && shown.contains("1/1"), "{shown}");
    let page = json(&ask(&center, "", "service web -o json").run().ok());
    assert_eq!(page["instances"][0]["state"], "available", "{page}");
    for verb in ["capacity", "alerts", "agents", "history", "audit"] {
        ask(&center, "", verb).run().ok();
        assert!(json(&ask(&center, "", &format!("{verb} -o json")).run().ok())["items"].is_array(), "{verb}");
    }
    // An order, its preview, its place in the history, and its end.
    let told = ask(&center, "", "degrade web").run().failed();
    assert!(told.contains("--reason"), "{told}");
    let order = ["--reason", "it is broken"];
    let told = ask(&center, "", "degrade web").args(order).run().ok();
    assert!(told.contains("degrade web of g") && told.contains("in force"), "{told}");
    let told = ask(&center, "", "commands").run().ok();
    assert!(told.contains("it is broken"), "{told}");
    let told = ask(&center, "", "degrade web --end").run().ok();
    assert!(told.contains("undone"), "{told}");
    let told = ask(&center, "", "degrade web --end").run().failed();
    assert!(told.contains("no command for `web` is in force"), "{told}");
    let dry = ask(&center, "", "switch web g=80 h=20 --dry-run").run();
    // Nobody provides it in that group: told, not done.
    assert!(format!("{}{}", dry.out, dry.err).contains('h'), "{}{}", dry.out, dry.err);
    let history = json(&ask(&center, "", "history -o json").run().ok());
    let record = &history["items"][0];
    assert_eq!((&record["state"], &record["asked"]["reason"]), (&json!("undone"), &json!("it is broken")), "{record}");
    let told = ask(&center, "", &format!("undo {}", record["id"])).run().failed();
    assert!(!told.is_empty());
    let audit = ask(&center, "", "audit").run().ok();
    assert!(audit.contains("command."), "{audit}");
}

#[test]
fn center_verbs_accept_and_turn_down_what_the_centre_proposes() {
    let pools = |service: &str| format!("  - {{service: {service}, group: g, driver: local, min: 1, hold_ms: 100}}\n");
    let config = format!(
        "scale: {{drivers: {{local: {{kind: process, options: {{command: [sleep, '1000']}}}}}}}}\n\
         pools:\n  policies:\n{}{}",
        pools("web"),
        pools("shop")
    );
    let center = Center::start(&config);
    let proposed = |service: &str| {
        let page = json(&ask(&center, "", "commands -o json").run().ok());
        let items = page["items"].as_array().unwrap();
        let one = items.iter().find(|one| one["asked"]["action"]["service"] == service)?;
        assert_eq!(one["state"], "proposed", "{one}");
        one["id"].as_u64()
    };
    let web = host::until_some("a size of web is proposed", || proposed("web"));
    let shop = host::until_some("a size of shop is proposed", || proposed("shop"));
    let told = ask(&center, "", "commands").run().ok();
    assert!(told.contains("scale g/web from 0 to 1 instances") && told.contains("proposed"), "{told}");
    let told = ask(&center, "", &format!("accept {web}")).run().ok();
    assert!(told.contains("is carried out"), "{told}");
    let told = ask(&center, "", &format!("undo {shop} --reason later")).run().ok();
    assert!(told.contains("is undone"), "{told}");
    let again = ask(&center, "", &format!("accept {shop}")).run().failed();
    assert!(again.contains("is no proposal"), "{again}");
    let rows = center.get("/v1/scale").to_string();
    assert!(rows.contains("\"size\":1") && rows.contains("\"size\":0"), "{rows}");
    let history = ask(&center, "", "history").run().ok();
    assert!(history.contains("done") && history.contains("later"), "{history}");
}

#[test]
fn center_verbs_and_agents_say_who_they_are_by_a_token() {
    let mut center = Center::start("");
    center.stop();
    let data = center.dir().join("data");
    let make = |line: &str| {
        let cmd = Cmd::new(center::binary()).args(line.split_whitespace()).arg("--data").arg(data.display());
        cmd.run().ok().trim().to_owned()
    };
    make("user add root --role admin");
    let viewer = make("token add --role viewer");
    let operator = make("token add --role operator --group g");
    let agent = make("token add --agents * --services web");
    center.again();
    let server = Backend::named("one");
    let _agent = provider(&center, &server, &format!(", token: {agent}"));
    host::until("the service is registered", || {
        ask(&center, &viewer, "services -o json").run().ok().contains("\"web\"")
    });
    let told = ask(&center, "", "services").run().failed();
    assert!(told.contains("SOCKMESH_TOKEN"), "{told}");
    let told = ask(&center, "smc_0_0", "services").run().failed();
    assert!(told.contains("not known here"), "{told}");
    let order = ["--reason", "test", "--group", "g"];
    let told = ask(&center, &viewer, "degrade web").args(order).run().failed();
    assert!(told.contains("is no operator"), "{told}");
    let told = ask(&center, &operator, "degrade web").args(order).run().ok();
    assert!(told.contains("in force"), "{told}");
    let told = ask(&center, &agent, "services").run().failed();
    assert!(told.contains("viewer"), "{told}");
}
