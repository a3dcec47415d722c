//! A site whose agents listen to a registry of its own, with a centre beside it that writes commands there.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::{Agent, Backend, Center, http, net::free_addr, until};

/// Commands as a registry holds them for group idc-a.
pub trait Texts {
    /// The text; none when there is none.
    fn get(&self) -> Option<String>;
    /// Writes it as the site's own people do.
    fn put(&self, text: &str);
}

/// `web` in two groups, registered in the site's own registry and known to the centre; callers of idc-a.
struct Site {
    center: Center,
    to: SocketAddr,
    agents: Vec<Agent>,
    _servers: Vec<Backend>,
}

impl Site {
    /// `options`: those of the registry `kind`, as agents and the centre write them.
    fn new(kind: &str, options: &str) -> Self {
        let servers: Vec<_> = ["a1", "b1"].into_iter().map(Backend::named).collect();
        let center = Center::start(&format!(
            "commands: {{registries: [{{kind: {kind}, options: {{{options}}}, groups: ['idc-*']}}]}}"
        ));
        let registries = format!("registries: {{r: {{kind: {kind}, {options}}}}}\n");
        let (mut agents, mut known) = (Vec::new(), Vec::new());
        for (server, group) in servers.iter().zip(["idc-a", "idc-b"]) {
            let (export, local) = (free_addr(), server.addr());
            agents.push(Agent::start(&format!(
                "{registries}services:
  - {{service: web, group: {group}, protocol: http, export: '{export}', local: '{local}', registry: r}}
"
            )));
            known.push(json!({"key": {"service": "web", "group": group}, "protocol": "http", "available": true,
                "instance": {"address": export.to_string()}}));
        }
        let wanted = json!({"agent": "host/servers", "ttl_ms": 600_000, "generation": 1, "registrations": known});
        assert_eq!(center.send("PUT", "/v1/agent/registrations", &wanted).0, 200);
        let to = free_addr();
        agents.push(Agent::start(&format!(
            "{registries}referers:
  - {{service: web, group: idc-a, protocol: http, listen: '{to}', registry: r, lb: round_robin}}
"
        )));
        until("it serves", || http::get(to, "/").is_ok_and(|answer| answer.text() == "a1"));
        Self { center, to, agents, _servers: servers }
    }

    /// How many of twenty calls go to the other group.
    fn share(&self) -> usize {
        (0..20).filter(|_| http::get(self.to, "/").is_ok_and(|answer| answer.text() == "b1")).count()
    }
}

/// A command of the centre is obeyed by agents that listen to the site's own registry, its end too, and what the site's
/// own people wrote there stands beside it all the time.
#[track_caller]
pub fn obeys(kind: &str, options: &str, texts: &dyn Texts) {
    let theirs = r#"{"clientCommandList":[{"index":5,"pattern":"other","mergeGroups":["x"]}]}"#;
    texts.put(theirs);
    let mut site = Site::new(kind, options);
    let action = json!({"kind": "move", "service": "web", "from": "idc-a", "to": "idc-b", "percent": 20});
    let given = site.center.post("/v1/commands", &json!({"action": action, "reason": "a test"}));
    until("the agent obeys", || site.share() == 4);
    let path = format!("/v1/commands/{}", given["id"]);
    let wanted = json!([[format!("{kind}, group idc-a"), "written"]]);
    until("it is told", || site.center.get(&path)["written"] == wanted);
    let text = texts.get().unwrap();
    assert!(text.contains(r#""pattern":"other""#) && text.contains("sockmesh-1"), "{text}");
    site.center.kill9();
    assert_eq!(site.share(), 4, "nobody needs the centre for that");
    let shown = site.agents.last().unwrap().cli("commands").ok();
    assert!(shown.contains("idc-a:80 idc-b:20"), "{shown}");
    site.center.again();
    site.center.post(&format!("{path}/undo"), &Value::Null);
    until("its end is obeyed", || site.share() == 0);
    until("theirs is left", || {
        texts.get().is_some_and(|left| left.contains(r#""pattern":"other""#) && !left.contains("sockmesh-1"))
    });
}
