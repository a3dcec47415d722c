//! The whole reader: a corpus of bad files, the table of keys against the code, docs and samples.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    keys::{Absent, SECTIONS},
    *,
};

pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn told(text: &str) -> String {
    let lines = |problems: &[Problem]| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (mistakes, warnings) = match parse(text, Path::new("/etc/sockmesh")) {
        Ok(loaded) => (Vec::new(), lines(&loaded.warnings)),
        Err(errors) => (lines(&errors.mistakes), lines(&errors.warnings)),
    };
    let warnings = warnings.iter().map(|w| format!("warning: {w}"));
    mistakes.into_iter().chain(warnings).map(|l| l + "\n").collect()
}

/// Compares, or writes when `UPDATE_GOLDEN` is set.
pub(super) fn same_as_file(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, actual).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs; look at it with UPDATE_GOLDEN=1 and git diff.\n--- expected\n{expected}\n--- actual\n{actual}",
        path.display()
    );
}

fn files(folder: &str, ext: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let mut files: Vec<_> =
        entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == ext)).collect();
    files.sort();
    files
}

#[test]
fn bad_files_are_answered_as_recorded() {
    let bad = files("tests/data/config", "yaml");
    assert!(bad.len() >= 10);
    for path in bad {
        let answer = told(&fs::read_to_string(&path).unwrap());
        assert!(!answer.is_empty(), "{} has no mistake", path.display());
        same_as_file(&path.with_extension("txt"), &answer);
    }
}

#[test]
fn every_prefix_of_a_good_file_is_answered() {
    let text = fs::read_to_string(root().join("tests/data/config/good.yml")).unwrap();
    assert_eq!(told(&text), "");
    for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
        told(&text[..end]);
    }
}

#[test]
fn the_whole_schema_becomes_the_structs() {
    let text = fs::read_to_string(root().join("tests/data/config/good.yml")).unwrap();
    let config = Config::parse(&text, Path::new("/etc/sockmesh")).unwrap();
    let ms = Duration::from_millis;
    assert_eq!(
        (config.name.as_str(), &*config.application, config.threads, config.drain),
        ("edge", "demo", 2, ms(10_000))
    );
    assert_eq!(config.capture.enroll, [Enroll::cgroup("/sys/fs/cgroup/unified/demo/callers")]);
    let network = |ip: &str, prefix| Network { ip: ip.parse().unwrap(), prefix };
    let exempt = Exempt {
        ports: vec![22],
        networks: vec![network("10.0.0.0", 8), network("fd00::1", 128)],
        uids: vec![33],
        gids: vec![101],
    };
    assert_eq!((config.capture.iptables, &config.capture.exempt), (Iptables::Nft, &exempt));
    assert_eq!(config.access_log.path.as_deref(), Some(Path::new("/etc/sockmesh/access.log")));
    assert_eq!(config.limits, Limits::default());
    let motan = Graphite::at("10.0.0.9:3456", GraphiteForm::Motan);
    assert_eq!(config.graphite, [Graphite::at("carbon.example:2003", GraphiteForm::Plain), motan]);
    assert_eq!(config.series, Series::default());
    assert_eq!(config.registries["nodes"].kind, "file");
    assert_eq!(config.registries["nodes"].options["path"], Value::from("nodes.yaml"));

    let web = &config.referers[0];
    assert_eq!(web.protocol.as_deref(), Some("http"));
    assert_eq!(web.addresses.len(), 3);
    assert_eq!(web.addresses[1], VirtualAddress { ip: "fd00::1".parse().unwrap(), port: Some(80) });
    assert_eq!(web.addresses[2].port, None);
    assert_eq!((web.on_agent_loss, web.listen), (OnAgentLoss::Refuse, Some("127.0.0.1:18080".parse().unwrap())));
    assert_eq!(web.registries, ["nodes"]);
    assert_eq!((web.endpoints[1].weight, web.endpoints[1].group.as_str()), (20, "idc-b"));
    let cluster = &web.cluster;
    assert_eq!((cluster.timeout, cluster.timeout_range), (Some(ms(1000)), Some((ms(500), ms(2000)))));
    assert_eq!(cluster.filters, [Named::plain("access_log"), Named::plain("metrics")]);
    let echo = &cluster.methods["echo"];
    assert_eq!(*echo, Method { timeout: Some(ms(3000)), retries: Some(2), idempotent: Some(true) });
    // An alias is as good as the text.
    assert_eq!(config.referers[1].cluster.eject, cluster.eject);
    assert_eq!(config.referers[1].cluster.timeout, Some(ms(200)), "what is written wins over what is merged in");

    let provided = &config.services[0];
    assert_eq!((provided.key.to_string().as_str(), provided.local.port()), ("idc-a/web", 8081));
}

/// A small good file around `key: value` in the mapping at `path`; `None` leaves the key out.
fn around(path: &str, key: &str, value: Option<&str>) -> String {
    let line = value.map(|v| format!("{key}: {v}")).unwrap_or_default();
    // What must be there, unless it is the key in question.
    let with = |needed: &[(&str, &str)]| {
        let others = needed.iter().filter(|(k, _)| *k != key).map(|(k, v)| format!("{k}: {v}"));
        others.chain((!line.is_empty()).then(|| line.clone())).collect::<Vec<_>>().join(", ")
    };
    let referer = |more: &[(&str, &str)]| {
        let source = if key == "endpoints" { ("registry", "nodes") } else { ("endpoints", "['127.0.0.1:7']") };
        let mut needed = vec![("service", "s"), ("listen", "'127.0.0.1:9'"), source];
        needed.extend(more);
        let head =
            if path.is_empty() && key == "registries" { "" } else { "registries: {nodes: {kind: file, path: f}}\n" };
        format!("{head}referers: [{{{}}}]", with(&needed))
    };
    match path {
        "" if key == "referers" || key == "services" => format!("drain: 1s\n{line}"),
        "" => format!("services: []\n{line}\n"),
        "ports" | "capture" | "limits" | "access_log" | "series" | "hold_back" => format!("{path}: {{{line}}}"),
        "capture.exempt" => format!("capture: {{exempt: {{{line}}}}}"),
        "capture.enroll[]" => {
            let who: &[_] = if matches!(key, "redirect" | "join") { &[("uid", "7")] } else { &[] };
            format!("capture: {{enroll: [{{{}}}]}}", with(who))
        }
        "center" => format!("center: {{{}}}", with(&[("address", "c")])),
        "graphite[]" => format!("services: []\ngraphite: [{{{}}}]", with(&[("address", "'c:2003'")])),
        "registries.*" => format!("registries: {{r: {{{}}}}}", with(&[("kind", "file"), ("path", "f")])),
        "referers[]" | "cluster" => referer(&[]),
        "referers[].allow[]" => format!(
            "referers: [{{service: s, protocol: tcp, path: kernel, address: 240.0.0.1, endpoints: ['127.0.0.1:7'], allow: [{{{line}}}]}}]"
        ),
        "http_proxy" => format!("http_proxy: {{{}}}", with(&[("listen", "'127.0.0.1:9'")])),
        "http_proxy.domains[]" => {
            format!("http_proxy: {{listen: '127.0.0.1:9', domains: [{{{}}}]}}", with(&[("domain", "d")]))
        }
        "http_proxy.domains[].locations[]" => format!(
            "referers: [{{service: s, protocol: motan2, endpoints: ['127.0.0.1:7']}}]
http_proxy: {{listen: '127.0.0.1:9', domains: [{{domain: d, locations: [{{{}}}]}}]}}",
            with(&[("match", "/"), ("service", "s")])
        ),
        "services[]" => {
            let needed = [("service", "s"), ("export", "'0.0.0.0:9'"), ("local", "'127.0.0.1:7'")];
            format!("services: [{{{}}}]", with(&needed))
        }
        "cluster.methods.*" => {
            format!(
                "referers: [{{service: s, listen: '127.0.0.1:9', endpoints: ['127.0.0.1:7'], methods: {{m: {{{line}}}}}}}]"
            )
        }
        "cluster.eject" => {
            format!("referers: [{{service: s, listen: '127.0.0.1:9', endpoints: ['127.0.0.1:7'], eject: {{{line}}}}}]")
        }
        "endpoint" => {
            let endpoint = with(&[("address", "'127.0.0.1:7'")]);
            format!("referers: [{{service: s, listen: '127.0.0.1:9', endpoints: [{{{endpoint}}}]}}]")
        }
        other => panic!("write a small file for the section {other}"),
    }
}

#[test]
fn every_default_of_the_table_is_that_of_the_code() {
    let mut compared = 0;
    for section in SECTIONS {
        for key in section.keys {
            let Absent::Yaml(yaml) = key.default else { continue };
            if section.path.starts_with("file") {
                continue;
            }
            let read = |value| Config::parse(&around(section.path, key.name, value), Path::new("/x"));
            let (with, without) = (read(Some(yaml)), read(None));
            assert!(with.is_ok(), "{}.{}: {}", section.path, key.name, with.unwrap_err());
            assert_eq!(with, without, "{}.{}: the default is not {yaml}", section.path, key.name);
            compared += 1;
        }
    }
    assert!(compared > 40, "{compared}");
}

#[test]
fn every_key_of_the_table_is_read() {
    // A value that is wrong for any key: if nobody complains, nobody reads it.
    for section in SECTIONS.iter().filter(|s| !s.path.starts_with("file")) {
        for key in section.keys {
            let complaints: Vec<_> = ["[[[]]]", "\"\\n\"", "{a: [], b: []}"]
                .into_iter()
                .filter_map(|wrong| Config::parse(&around(section.path, key.name, Some(wrong)), Path::new("/x")).err())
                .flat_map(|errors| errors.mistakes)
                .filter(|m| m.key.contains(key.name))
                .collect();
            assert!(!complaints.is_empty(), "{}.{} is never read", section.path, key.name);
            assert!(complaints.iter().all(|m| m.line > 0), "{complaints:?}");
            let unknown = complaints.iter().find(|m| m.problem == "unknown key" && m.key.ends_with(key.name));
            assert_eq!(unknown, None);
        }
    }
}

#[test]
fn the_page_has_every_table_and_its_examples_are_good() {
    let path = root().join("docs/config.md");
    let page = fs::read_to_string(&path).unwrap();
    let mut fresh = page.clone();
    for (section, table) in tables() {
        let name = if section.is_empty() { "top" } else { section };
        let (begin, end) = (format!("<!-- keys: {name} -->\n"), "<!-- end -->");
        let start = page.find(&begin).unwrap_or_else(|| panic!("docs/config.md has no {begin}")) + begin.len();
        let old = &page[start..start + page[start..].find(end).expect("an end mark")];
        fresh = fresh.replace(&format!("{begin}{old}"), &format!("{begin}{table}"));
    }
    same_as_file(&path, &fresh);

    let kinds =
        [kinds::FILTER.names(), kinds::HA.names(), kinds::LB.names(), kinds::REGISTRY.names(), kinds::UPSTREAM.names()]
            .concat();
    let rows: Vec<_> = fresh.lines().skip_while(|l| !l.starts_with("Options of kinds")).collect();
    for kind in kinds {
        assert!(rows.iter().any(|r| r.contains(&format!("`{kind}`"))), "{kind} is not among the options of kinds");
    }

    let mut examples = 0;
    for block in fresh.split("```yaml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        assert_eq!(told(text), "", "{text}");
        examples += 1;
    }
    assert!(examples > 2);
}

#[test]
fn samples_are_good() {
    let samples = files("deploy/samples", "yaml");
    assert!(samples.len() > 3);
    for path in samples {
        if path.file_name().is_some_and(|n| n == "nodes.yaml") {
            continue;
        }
        let loaded = load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(loaded.warnings, [], "{}", path.display());
        for registry in loaded.config.registries.values().filter(|r| r.kind == "file") {
            let nodes = loaded.config.base_dir.join(registry.options["path"].as_str().unwrap());
            let mut report = Report::default();
            let node = Node::parse(&fs::read_to_string(nodes).unwrap(), &mut report).unwrap().unwrap();
            let services = registry_file(&node, &mut report).services;
            assert!(!services.is_empty());
            for entry in services {
                assert!(instances(&entry.value, &entry.key, &mut report).left_out.is_empty());
            }
            assert!(report.mistakes.is_empty(), "{:?}", report.mistakes);
        }
    }
}

#[test]
fn files_that_cannot_be_read_are_told_with_their_name() {
    let errors = Config::load(Path::new("/nowhere/mesh.yaml")).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "/nowhere/mesh.yaml: cannot read the file: No such file or directory (os error 2); check the path and its permissions"
    );
    let binary = std::env::temp_dir().join(format!("sockmesh-config-{}.yaml", std::process::id()));
    fs::write(&binary, b"name: a\nx: \xff\n").unwrap();
    let told = load(&binary).unwrap_err().to_string();
    fs::remove_file(&binary).unwrap();
    assert!(told.contains("line 2 is not UTF-8"), "{told}");
}
