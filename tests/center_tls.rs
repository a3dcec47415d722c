//! Certificates and secrets of the site's own: an agent at a centre that speaks TLS, and at an etcd that does and asks who
//! it is.

use std::{fs, net::SocketAddr};

use host::{
    Agent, Backend, Center, Cmd, Need, Temp,
    agent::{Settings, sockmesh},
    center, etcd, http, lacks, net,
    tls::Authority,
    until,
};
use serde_json::Value;

/// A centre that speaks TLS with a certificate of `ca`, and the tokens of agents and of a viewer.
fn secured(ca: &Authority) -> (Center, String, String) {
    let (cert, key) = ca.issue("centre");
    let mut center =
        Center::start(&format!("api: {{tls: {{cert: '{}', key: '{}'}}}}\n", cert.display(), key.display()));
    assert!(center.stop().success());
    let run = |args: &[&str]| {
        let (config, data) = (center.dir().join("center.yaml"), center.dir().join("data"));
        let cmd = Cmd::new(center::binary()).args(args).arg("-c").arg(config.display());
        cmd.arg("--data").arg(data.display()).run().ok().trim().to_owned()
    };
    run(&["user", "add", "ann", "--role", "admin"]);
    let agents = run(&["token", "add", "--agents", "*"]);
    let viewer = run(&["token", "add", "--role", "viewer"]);
    center.again();
    (center, agents, viewer)
}

/// A verb of `sockmesh` at this centre, by `ca`.
fn ask(center: &Center, ca: &[String], token: &str, verb: &str) -> Cmd {
    let (token, url) = (format!("SOCKMESH_TOKEN={token}"), format!("https://{}", center.addr()));
    sockmesh(verb).args(["--center", &url, "-o", "json"]).args(ca).under(&["env", &token])
}

#[test]
fn an_agent_reaches_a_centre_by_the_certificates_of_its_site() {
    let ca = Authority::new();
    let (center, token, viewer) = secured(&ca);
    let kept = Temp::new();
    let token_file = kept.write("token", format!("{token}\n"));
    let ca_file = ca.ca().display().to_string();
    let section = |ca_file: &str| {
        format!(
            "application: shop\ncenter: {{address: 'https://{}', token_file: '{}', ca_file: '{ca_file}', report: \
             500ms}}\n",
            center.addr(),
            token_file.display(),
        )
    };
    let server = Backend::named("one");
    let (export, to, local) = (net::free_addr(), net::free_addr(), server.addr());
    let services = |export: SocketAddr, to: SocketAddr| {
        format!(
            "registries: {{c: {{kind: center, ttl: 3s}}}}
services:
  - {{service: web, group: g, protocol: http, export: '{export}', local: '{local}', registry: c}}
referers:
  - {{service: web, group: g, protocol: http, listen: '{to}', registry: c}}
"
        )
    };
    let agent = Agent::with(&Settings { top: &section(&ca_file), ..Settings::default() }, &services(export, to));
    // Registered at it and found through it.
    until("calls are answered", || http::get(to, "/").is_ok_and(|answer| answer.text() == "one"));
    let by_file = ["--ca".to_owned(), ca_file.clone()];
    let json =
        |verb: &str| -> Value { serde_json::from_str(&ask(&center, &by_file, &viewer, verb).run().ok()).unwrap() };
    let page = json("service web");
    assert_eq!(page["instances"][0]["address"], export.to_string(), "{page}");
    // Its figures arrive there.
    until("the agent is seen", || json("agents")["items"][0]["agent"].to_string().contains(agent.name()));
    until("its calls are seen", || {
        http::get(to, "/").unwrap();
        json("service web")["row"]["figures"]["rate"].as_f64().is_some_and(|rate| rate > 0.0)
    });
    // The environment names the file as well; without it nobody believes the centre.
    let told = ask(&center, &[], &viewer, "services").under(&["env", &format!("SOCKMESH_CENTER_CA={ca_file}")]);
    assert!(told.run().ok().contains("\"web\""));
    let told = ask(&center, &[], &viewer, "services").run().failed();
    assert!(told.contains("invalid peer certificate"), "{told}");
    // An agent that believes another authority says so, and goes on.
    let stranger = Authority::new();
    let top = section(&stranger.ca().display().to_string());
    let services = services(net::free_addr(), net::free_addr());
    let lonely = Agent::with(&Settings { top: &top, ..Settings::default() }, &services);
    until("it says why", || lonely.cli("endpoints").ok().contains("invalid peer certificate"));
}

/// Whether a provider is registered, as an administrator sees it.
fn registered(etcd: SocketAddr, token: &str, export: SocketAddr) -> bool {
    etcd::keys_by(etcd, token, "/motan/g/web/server/").iter().any(|key| key.contains(&export.to_string()))
}

#[test]
fn an_etcd_that_asks_for_certificates_and_names_is_a_registry() {
    if lacks(&[Need::Program("etcd")]) {
        return;
    }
    let ca = Authority::new();
    let (server, tls) = etcd::secured(&ca);
    for (call, body) in [
        ("user/add", r#"{"name":"root","password":"root"}"#),
        ("user/add", r#"{"name":"mesh","password":"secret"}"#),
        ("role/add", r#"{"name":"root"}"#),
        ("role/add", r#"{"name":"mesh"}"#),
        // All keys that begin with `/motan/`.
        (
            "role/grant",
            r#"{"name":"mesh","perm":{"permType":"READWRITE","key":"L21vdGFuLw==","range_end":"L21vdGFuMA=="}}"#,
        ),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("user/grant", r#"{"user":"mesh","role":"mesh"}"#),
        ("enable", "{}"),
    ] {
        etcd::auth(server.addr(), "", call, body);
    }
    let kept = Temp::new();
    let password = kept.write("password", "secret\n");
    let (cert, key) = ca.issue("mesh");
    let registries = |password: &str| {
        format!(
            "registries: {{e: {{kind: etcd, address: '{tls}', lease: 2s, username: mesh, {password},
  tls: {{ca_file: '{}', cert_file: '{}', key_file: '{}'}}}}}}\n",
            ca.ca().display(),
            cert.display(),
            key.display()
        )
    };
    let good = registries(&format!("password_file: '{}'", password.display()));
    let one = Backend::named("one");
    let (export, to, local) = (net::free_addr(), net::free_addr(), one.addr());
    let mut provider = Agent::start(&format!(
        "{good}services:
  - {{service: web, group: g, protocol: http, export: '{export}', local: '{local}', registry: e}}
"
    ));
    let referer = |to: SocketAddr| {
        format!(
            "referers:
  - {{service: web, group: g, protocol: http, listen: '{to}', registry: e}}
"
        )
    };
    let _caller = Agent::start(&format!("{good}{}", referer(to)));
    until("calls are answered", || http::get(to, "/").is_ok_and(|answer| answer.text() == "one"));
    let root = etcd::auth(server.addr(), "", "authenticate", r#"{"name":"root","password":"root"}"#);
    let root = root["token"].as_str().unwrap().to_owned();
    assert!(registered(server.addr(), &root, export));
    // It forgets whom it knew: what changes afterwards is heard all the same.
    etcd::auth(server.addr(), &root, "user/changepw", r#"{"name":"mesh","password":"secret"}"#);
    assert!(provider.stop().success());
    until("it is taken back", || !registered(server.addr(), &root, export));
    provider.again();
    until("it is found again", || registered(server.addr(), &root, export));
    until("calls are answered again", || http::get(to, "/").is_ok_and(|answer| answer.text() == "one"));
    // Who says the wrong password is told, and nobody else sees it.
    fs::write(&password, "wrong\n").unwrap();
    let lonely = Agent::start(&format!("{good}{}", referer(net::free_addr())));
    until("it says why", || lonely.cli("endpoints").ok().contains("invalid user ID or password"));
}
