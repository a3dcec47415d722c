//! Files of motan-go against their native forms, and the table against the code.

use std::fs;

use super::{
    super::{
        Problem, load_with, parse,
        tests::{root, same_as_file},
    },
    *,
};

fn around() -> Surroundings {
    Surroundings { program: "agent".to_owned(), directory: PathBuf::from("/srv"), ..Surroundings::default() }
}

/// The native form and what was told, file names cut to their last part.
fn imported(path: &Path, around: &Surroundings) -> (String, String) {
    let (native, problems) = match load_with(path, around) {
        Ok(loaded) => {
            let native = loaded.motan.expect("motan-go's").yaml();
            let again = parse(&native, &around.directory).unwrap_or_else(|e| panic!("{e}\n{native}"));
            assert_eq!(again.config, loaded.config, "the native form loads to the same structs\n{native}");
            (native, loaded.warnings)
        }
        Err(errors) => {
            let mistake = |p: Problem| Problem { problem: format!("MISTAKE {}", p.problem), ..p };
            let mistakes = errors.mistakes.into_iter().map(mistake);
            (String::new(), mistakes.chain(errors.warnings).collect())
        }
    };
    let folder = format!("{}/", path.parent().unwrap().display());
    let lines = problems.iter().map(|p| p.line_in(Some(path)).replace(&folder, "") + "\n");
    (native, lines.collect())
}

#[test]
fn files_become_their_native_form() {
    let folder = root().join("tests/data/motan");
    let mut pool = around();
    pool.flags = Flags { pool: Some("shop-a-core".to_owned()), idc: Some("a".to_owned()), ..Flags::default() };
    let mut flags = around();
    flags.flags = Flags {
        port: Some(19981),
        eport: Some(19982),
        mport: Some(18002),
        mhost: Some([10, 0, 0, 5].into()),
        local_ip: Some([10, 0, 0, 5].into()),
        pidfile: Some("/run/agent.pid".into()),
        ..Flags::default()
    };
    let variables = [
        ("MESH_SERVICE_ADDITIONAL_GROUP", "more"),
        ("MESH_DIRECT_RPC", "com.shop.O*>direct@127.0.0.7:70,127.0.0.8:80;Stock>127.0.0.9:90"),
        ("MESH_FILTERS", "clusterAccessLog"),
        ("RPC_REG_GROUP_SUFFIX", "-blue"),
        ("MESH_MULTI_SUB_GROUP_SUFFIX", "-blue"),
        ("mport", "17002"),
    ];
    flags.environment = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    for (case, path, around) in [
        ("agent", "agent.yaml", &around()),
        ("flags", "agent.yaml", &flags),
        ("smallest", "smallest.yaml", &around()),
        ("wrong", "wrong.yaml", &around()),
        ("pool", "pool", &pool),
    ] {
        let (native, told) = imported(&folder.join(path), around);
        same_as_file(&folder.join(format!("{case}.native")), &native);
        same_as_file(&folder.join(format!("{case}.txt")), &told);
    }
}

/// A file with `line` added to one of its sections.
fn with(section: &str, line: &str) -> String {
    let mut text = String::new();
    let filters = "accessLog,clusterAccessLog,clusterMetrics,circuitBreaker,clusterCircuitBreaker,rateLimit";
    let hash = if line.contains("onsistentHashKey") { "consistentHashKey" } else { "random" };
    let ha = if line.contains("backup") { "backupRequest" } else { "failover" };
    let refer = format!("path: kit.Echo, group: g, protocol: motan2, registry: r, filter: '{filters}', rateLimit: 5");
    let service = format!(
        "path: kit.Echo, group: g, registry: z, export: 'motan2:18000', proxy: 'motan2:18001', filter: '{filters}', rateLimit: 5"
    );
    // Keys of other providers mean something there only.
    let key = line.trim_start_matches("x.").split(": ").next().unwrap();
    let service = match key {
        "URL_FORMAT" => service.replace("proxy: 'motan2:18001'", "provider: http"),
        key if table::PROVIDER.row(key).is_some() => {
            service.replace("proxy: 'motan2:18001'", "provider: http, proxyAddress: '127.0.0.1:97'")
        }
        _ => service,
    };
    let entries = [
        ("motan-agent", "defaultFilter: failfast, globalFilter: metrics, httpProxyEnable: true".to_owned()),
        ("motan-registry", "r: {protocol: direct, host: 127.0.0.1, port: 1}, other: {protocol: direct, host: 127.0.0.1, port: 2}, z: {protocol: zookeeper, host: 127.0.0.1, port: 3}".to_owned()),
        ("motan-basicRefer", "template: {mingzSize: 7}".to_owned()),
        ("motan-refer", format!("e: {{{refer}, retries: 1, loadbalance: {hash}, haStrategy: {ha}}}")),
        ("motan-basicService", "template: {mingzSize: 7}".to_owned()),
        ("motan-service", format!("s: {{{service}}}")),
    ];
    for (name, flow) in entries {
        let mut flow = flow;
        if name == section && !line.is_empty() {
            let key = line.split(": ").next().unwrap();
            let inner =
                if name == "motan-agent" { &flow[..] } else { &flow[flow.find('{').unwrap() + 1..flow.len() - 1] };
            // What is there already gives way.
            let rest: Vec<_> = split(inner).into_iter().filter(|p| p.split(": ").next() != Some(key)).collect();
            flow = match name {
                "motan-agent" => format!("{}, {line}", rest.join(", ")),
                _ => format!("{}{{{}, {line}}}", &flow[..flow.find('{').unwrap()], rest.join(", ")),
            };
        }
        text += &format!("{name}: {{{flow}}}\n");
    }
    text
}

fn split(flow: &str) -> Vec<String> {
    flow.split(", ").map(str::to_owned).collect()
}

fn read(text: &str, around: &Surroundings) -> (String, Vec<String>) {
    let file = std::env::temp_dir().join(format!(
        "sockmesh-motan-{}-{:?}.yaml",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::write(&file, text).unwrap();
    let loaded = load_with(&file, around);
    fs::remove_file(&file).unwrap();
    let loaded = loaded.unwrap_or_else(|e| panic!("{e}\n{text}"));
    let imported = loaded.motan.unwrap();
    let level = imported.log_level.clone().unwrap_or_default();
    (imported.yaml() + &level, loaded.warnings.iter().map(ToString::to_string).collect())
}

#[test]
fn every_key_of_the_table_does_what_its_row_says() {
    let mut seen = 0;
    for (part, section) in [
        (&table::AGENT, "motan-agent"),
        (&table::REFER, "motan-refer"),
        (&table::SERVICE, "motan-service"),
        (&table::PROVIDER, "motan-service"),
    ] {
        for row in part.rows {
            let value = match row.name {
                "proxyAddress" | "proxy.host" | "version" | "export" | "proxy" | "group" | "path" | "application"
                | "module" => {
                    format!("'{}'", row.example)
                }
                _ if row.example.contains(',') => format!("'{}'", row.example),
                _ => row.example.to_owned(),
            };
            let value = if row.name == "port" && row.fate != Fate::Refused { row.example.to_owned() } else { value };
            let line = format!("{}: {value}", row.name);
            let chooses = ["haStrategy", "loadbalance"].contains(&row.name);
            let other = if chooses {
                ""
            } else if line.contains("onsistentHashKey") {
                "x.onsistentHashKey: 1"
            } else if line.contains("backup") {
                "x.backup: 1"
            } else {
                ""
            };
            let provider = format!("x.{}: 1", row.name);
            let other = if part.title == table::PROVIDER.title { &provider } else { other };
            let before = read(&with(section, other), &around());
            let after = read(&with(section, &line), &around());
            // What others of this version lack is no matter of the row.
            let lacks = |w: &str| w.contains("cannot be had") || w.contains("no such setting");
            let new: Vec<_> = after.1.iter().filter(|w| !before.1.contains(w) && !lacks(w)).collect();
            match row.fate {
                Fate::Refused => {
                    assert!(new.iter().any(|w| w.contains(row.says)), "{line} is refused in silence: {new:?}")
                }
                Fate::Mended => assert!(new.is_empty(), "{line}: {new:?}"),
                Fate::Supported => {
                    let lacking = after.1.iter().any(|w| lacks(w));
                    assert!(row.name == "protocol" || new.is_empty(), "{line}: {new:?}");
                    let silent = matches!(row.name, "serialization" | "provider")
                        || (section == "motan-service" && row.name == "protocol")
                        || (section == "motan-refer" && row.name == "protocol");
                    assert!(silent || lacking || before.0 != after.0, "{line} changes nothing\n{}", after.0);
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn providers_are_taken_or_told_what_to_write_instead() {
    let with_provider = |provider: &str| {
        let text = with("motan-service", "").replace("proxy: 'motan2:18001'", provider);
        read(&text, &around())
    };
    let (native, told) = with_provider("provider: httpx, URL_FORMAT: 'http://127.0.0.1:98/api/%s'");
    assert!(native.contains("http://127.0.0.1:98/api/%s") && told.is_empty(), "{told:?}\n{native}");
    let cgi = "provider: cgi, CGI_HOST: 127.0.0.1, CGI_PORT: 9000, CGI_SCRIPT_FILENAME: /srv/x.php";
    let (native, told) = with_provider(cgi);
    assert!(!native.contains("\nservices:") && told.len() == 4, "{told:?}\n{native}");
    let of = |key: &str| told.iter().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key}: {told:?}"));
    assert!(of("provider `cgi` is not supported").contains("fastcgi_pass"), "{told:?}");
    assert!(of(".CGI_SCRIPT_FILENAME").contains("FastCGI programs are not called"), "{told:?}");
    let (_, told) = with_provider("provider: mockProvider, proxy: 'motan2:18001'");
    assert!(told.iter().any(|line| line.contains("add the filter `mock`")), "{told:?}");
}

#[test]
fn every_variable_of_the_table_is_read() {
    let before = read(&with("", ""), &around()).0;
    for row in table::VARIABLES.rows.iter().filter(|r| r.fate == Fate::Supported && !r.example.is_empty()) {
        let mut around = around();
        around.environment.insert(row.name.to_owned(), row.example.to_owned());
        let (after, told) = read(&with("", ""), &around);
        let lacking = told.iter().any(|w| w.contains("cannot be had"));
        assert!(lacking || after != before, "{} changes nothing", row.name);
    }
}

#[test]
fn values_are_what_gos_yaml_makes_of_them() {
    let mut report = Report::default();
    let node = Node::parse("[1.0, '1.0', 007, yes, on, true, 1e3, x, 0x10, 5]", &mut report).unwrap().unwrap();
    let Data::List(list) = node.data else { panic!() };
    let texts: Vec<_> = list.iter().map(|n| go_value(n).1).collect();
    assert_eq!(texts, ["1", "1.0", "7", "true", "true", "true", "1000", "x", "16", "5"]);
}

#[test]
fn the_page_has_every_table() {
    let path = root().join("docs/motan.md");
    let page = fs::read_to_string(&path).unwrap();
    let mut fresh = page.clone();
    for part in PARTS {
        let (begin, end) = (format!("<!-- motan-go: {} -->\n", part.title), "<!-- end -->");
        let start = page.find(&begin).unwrap_or_else(|| panic!("docs/motan.md has no {begin}")) + begin.len();
        let old = &page[start..start + page[start..].find(end).expect("an end mark")];
        fresh = fresh.replace(&format!("{begin}{old}"), &format!("{begin}{}", part.render()));
    }
    same_as_file(&path, &fresh);
}

#[test]
fn a_domain_of_the_proxy_is_a_service_at_the_forward_port_unless_a_refer_has_its_name() {
    let listening = |path: &str| {
        let text = format!(
            "motan-agent: {{port: 9981, httpProxyEnable: true}}
motan-registry: {{r: {{protocol: direct, host: 127.0.0.1, port: 1}}}}
motan-refer: {{a: {{path: {path}, group: h, registry: r, protocol: motan2}}}}
http-client: {{web: {{domain: web.test, group: g, registry: r, preload: pre, protocol: motan2}}}}
"
        );
        let (native, _) = read(&text, &around());
        let config = crate::config::Config::parse(&native, Path::new("/")).unwrap();
        let all = config.referers.iter().map(|r| (r.key.to_string(), r.listen.is_some()));
        all.collect::<BTreeMap<_, _>>()
    };
    let both = listening("kit.A");
    assert_eq!((both["h/kit.A"], both["g/web.test"], both["g/pre"]), (true, true, false), "{both:?}");
    let one = listening("web.test");
    assert!(one["h/web.test"] && !one.contains_key("g/web.test"), "{one:?}");
}
