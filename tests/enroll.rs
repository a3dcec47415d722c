//! Enrolment by command and in other network namespaces, with the agent as operators run it.

use host::{Agent, Backend, Cgroup, Cmd, Need, Net, Proc, agent::Settings, lacks, program, until};

const WEB: &str = "240.0.0.1:80";

fn curl(group: &Cgroup) -> Cmd {
    Cmd::new("curl").args(["-sS", "--noproxy", "*", "--max-time", "5", "http://240.0.0.1/"]).cgroup(group)
}

/// Whether a call from `group` arrives; directly the address leads nowhere.
fn arrives(group: &Cgroup) -> bool {
    let said = curl(group).run();
    said.status.success() && said.out.contains("mesh")
}

struct World {
    callers: Cgroup,
    agent: Agent,
    _web: Backend,
}

impl World {
    fn new() -> Option<Self> {
        if lacks(&[Need::Kernel, Need::Program("curl"), Need::Program("ip")]) {
            return None;
        }
        let callers = Cgroup::new("callers");
        let web = Backend::http(|_| host::http::ok("mesh"));
        let other = Cgroup::new("enrolled-by-the-file");
        let settings = Settings { enroll: &[&other], ..Settings::default() };
        let services =
            format!("referers: [{{service: web, protocol: http, address: \"{WEB}\", endpoints: [{}]}}]\n", web.addr());
        Some(Self { agent: Agent::with(&settings, &services), callers, _web: web })
    }

    fn enroll(&self, more: &str) -> String {
        self.agent.cli(&format!("enroll {} {more}", self.callers.path().display())).ok()
    }
}

#[test]
fn enroll_without_confirmation_undoes_itself() {
    let Some(world) = World::new() else { return };
    assert!(!arrives(&world.callers));
    let said = world.enroll("--confirm-within 1s");
    assert!(said.contains("undone in 1s"), "{said}");
    let page = world.agent.json("/enrolled");
    assert_eq!(page["enrolled"][1]["source"], "command");
    until("it is undone", || world.agent.log().contains("not confirmed in time"));
    assert!(!arrives(&world.callers), "directly again");
    world.enroll("--confirm-within 60s");
    assert!(arrives(&world.callers));
    assert!(world.agent.cli("enroll --confirm").ok().starts_with("confirmed /"));
    let list = world.agent.cli("enroll").ok();
    assert!(list.contains("config") && list.contains("command") && !list.contains("confirm within"), "{list}");
    world.agent.cli("reload").ok();
    assert!(arrives(&world.callers), "a reload keeps it");
    let path = world.callers.path().display().to_string();
    world.agent.cli(&format!("release {path}")).ok();
    assert!(!arrives(&world.callers));
    assert!(world.agent.cli(&format!("release {path}")).failed().contains("is not enrolled"));
}

/// A shell that cuts itself off: what it can reach directly has no endpoint in the mesh.
const CUT_OFF: &str = r#"
own=$1; admin=$2; url=$3; mesh=$4
call() { curl -sS --noproxy '*' --max-time 5 "$url" 2>/dev/null || true; }
echo "before: $(call)"
"$mesh" enroll "$own" --confirm-within 2s --admin "$admin" > /dev/null || exit 1
echo "enrolled: $(call)"
until [ "$(call)" = direct ]; do :; done
echo "after: $(call)"
"#;

#[test]
fn enroll_gives_a_shell_that_cut_itself_off_its_way_back() {
    if lacks(&[Need::Kernel, Need::Program("curl")]) {
        return;
    }
    let (shell, other, server) = (Cgroup::new("shell"), Cgroup::new("enrolled-by-the-file"), Backend::named("direct"));
    let at = server.addr();
    let nobody = host::backend::Refusing::new();
    let services = format!(
        "referers: [{{service: web, protocol: http, address: \"{at}\", timeout: 1s, endpoints: [{}]}}]\n",
        nobody.addr()
    );
    let agent = Agent::with(&Settings { enroll: &[&other], ..Settings::default() }, &services);
    let (own, admin) = (shell.path().display().to_string(), agent.admin().to_string());
    let url = format!("http://{at}/");
    let mesh = host::agent::binary().display().to_string();
    let args = ["-c", CUT_OFF, "sh", &own, &admin, &url, &mesh];
    let said = Cmd::new("sh").args(args).cgroup(&shell).run().ok();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!((lines[0], lines[2]), ("before: direct", "after: direct"), "{said}");
    assert_ne!(lines[1], "enrolled: direct", "{said}");
    assert!(agent.log().contains("not confirmed in time"), "the log says why");
}

#[test]
fn enroll_reaches_other_network_namespaces_through_one_agent() {
    let Some(world) = World::new() else { return };
    world.enroll("");
    let nets = [Net::new(), Net::new()];
    let dir = host::Temp::new();
    let sleep = |net: &Net| Cmd::line("sleep 300").cgroup(&world.callers).netns(net);
    let mut living: Vec<_> = nets.iter().map(|net| sleep(net).spawn(&dir.file("sleep.log"))).collect();
    for net in &nets {
        until("the agent listens there", || curl(&world.callers).netns(net).run().out.contains("mesh"));
    }
    assert!(arrives(&world.callers), "and at home");
    let spaces = || world.agent.json("/enrolled")["namespaces"].as_array().unwrap().len();
    assert_eq!(spaces(), 2);
    for sleep in &mut living {
        sleep.stop();
    }
    until("it listens there no more", || spaces() == 0);
}

/// Answers of `name`, as `stream.py asks` said them from line `from` on.
fn answers(proc: &Proc, from: usize) -> usize {
    proc.lines().iter().skip(from).filter(|line| line.contains(r#""what": "a""#)).count()
}

/// What listens in `net`, one line each.
fn listeners(net: &Net) -> String {
    Cmd::line("ss -H -l -t -u -n").netns(net).run().ok()
}

#[test]
fn enroll_reaches_other_network_namespaces_again_after_the_agents_death() {
    let needs =
        [Need::Kernel, Need::Program("curl"), Need::Program("ip"), Need::Program("ss"), Need::Program("python3")];
    if lacks(&needs) {
        return;
    }
    let (callers, dir) = (Cgroup::new("callers"), host::Temp::new());
    let web = Backend::http(|_| host::http::ok("mesh"));
    let serve = program::python("stream.py").args(["serve", "a"]).spawn(&dir.file("serve"));
    let said = |log: &Proc, key: &str| {
        serde_json::from_str::<serde_json::Value>(log.lines().first()?).ok()?[key].as_str().map(str::to_owned)
    };
    let at = host::until_some("the server listens", || said(&serve, "at"));
    let services = format!(
        "referers:\n  - {{service: web, protocol: http, address: \"{WEB}\", endpoints: [{}]}}\n\
         \x20 - {{service: name, protocol: tcp, address: \"240.0.0.2:80\", endpoints: [\"{at}\"]}}\n",
        web.addr()
    );
    let nets = [Net::new(), Net::new()];
    let mut agent = Agent::with(&Settings { enroll: &[&callers], ..Settings::default() }, &services);
    // They live on through everything that follows, and connect all the time.
    let asks = nets.each_ref().map(|net| {
        let asks = program::python("stream.py").args(["asks", "240.0.0.2", "80"]).cgroup(&callers).netns(net);
        asks.spawn(&dir.file(net.name()))
    });
    let resolves = |net: &Net| {
        let ask = program::python("names.py").args(["ask", "sendto", "192.0.2.53", "web.mesh"]);
        ask.cgroup(&callers).netns(net).run().out.trim().to_owned()
    };
    for (net, asks) in nets.iter().zip(&asks) {
        until("the agent listens there", || answers(asks, 0) > 0);
        until("and answers questions for names", || resolves(net) == "0 240.0.0.1");
    }
    let spaces = |agent: &Agent| agent.json("/enrolled")["namespaces"].as_array().unwrap().len();
    for _ in 0..5 {
        agent.kill9();
        agent.again();
        // Who is ready is in every namespace where programs lived on.
        assert_eq!(spaces(&agent), 2, "{}", agent.json("/enrolled"));
        for (net, asks) in nets.iter().zip(&asks) {
            assert_eq!(curl(&callers).netns(net).run().ok(), "mesh");
            assert_eq!(resolves(net), "0 240.0.0.1");
            let now = asks.lines().len();
            until("the program that lived on is served", || answers(asks, now) > 2);
        }
    }
    // An orderly end takes everything along, though the programs live on.
    assert!(nets.iter().all(|net| listeners(net).lines().count() >= 4), "{}", listeners(&nets[0]));
    let pins = agent.pins();
    assert!(agent.stop().success());
    assert!(!pins.exists());
    for (net, asks) in nets.iter().zip(&asks) {
        assert_eq!(listeners(net), "", "nothing listens in the namespace");
        let now = asks.lines().len();
        until("programs there connect on their own again", || asks.lines().len() > now + 1);
        assert_eq!(answers(asks, now), 0);
    }
}
