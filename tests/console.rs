//! The governance centre's console: what people do in it, in a real browser, against a real centre.

mod feed;

use std::{
    env,
    path::PathBuf,
    time::{Duration, Instant},
};

use host::{
    Need, Temp,
    browser::{Browser, Look},
    center::Center,
    lacks, top_dir, until, until_some,
    wait::within,
};
use serde_json::{Value, json};

use self::feed::{Mesh, address, send};

const NEEDS: [Need; 2] = [Need::Program("chromedriver"), Need::Program("chromium")];

/// Where pictures go: kept by CI; `cargo xtask screenshots` asks for them in the docs.
fn picture(name: &str) -> PathBuf {
    let dir = env::var_os("SOCKMESH_SCREENSHOTS").map_or_else(|| top_dir().join("target/screenshots"), PathBuf::from);
    dir.join(format!("{name}.png"))
}

fn url(center: &Center, page: &str) -> String {
    format!("http://{}/#/{page}", center.addr())
}

/// A centre with a mesh that is told to it, seen long enough for curves.
fn site() -> (Center, Mesh) {
    // What instances take is known, as from load tests; nothing is proposed while a test runs.
    let policy = |(service, take): (&str, u32)| {
        format!("  - {{service: {service}, capacity: {take}, hold_ms: 3600000, shrink_hold_ms: 3600000}}\n")
    };
    let takes =
        [("com.shop.Order", 420), ("com.shop.Cart", 310), ("com.shop.Payment", 150), ("com.feed.Timeline", 590)];
    let policies: String = takes.into_iter().map(policy).collect();
    site_with(&format!("pools:\n  policies:\n{policies}"), None)
}

/// The same with these lines in the centre's file, and a file that says how much the callers call.
fn site_with(config: &str, load: Option<PathBuf>) -> (Center, Mesh) {
    let center = Center::start(config);
    let mesh = Mesh::start(center.addr(), load);
    until("calls are seen", || {
        let page = center.get("/v1/service?service=com.shop.Order&group=idc-b");
        page["row"]["figures"]["rate"].as_f64().is_some_and(|rate| rate > 100.0)
    });
    (center, mesh)
}

/// Pictures for the docs are taken of curves that have begun a while ago.
fn ripen(center: &Center) {
    if env::var_os("SOCKMESH_SCREENSHOTS").is_none() {
        return;
    }
    let _ripe = within(Duration::from_secs(150), || {
        let series = center.get("/v1/series?service=com.shop.Order&group=idc-a&step_ms=2000");
        let known = series["rate"].as_array().map_or(0, |rates| rates.iter().filter(|rate| !rate.is_null()).count());
        (known > 80).then_some(())
    });
}

/// What a page may not do: complain, ask others, leave things without names or headings.
#[track_caller]
fn well(browser: &Browser, page: &str) {
    // A centre without a demo says so.
    let meant = |c: &String| c.contains("/v1/demo");
    let complaints: Vec<String> = browser.complaints().into_iter().filter(|c| !meant(c)).collect();
    assert!(complaints.is_empty(), "{page}: {complaints:#?}");
    let others = browser.js(
        "return performance.getEntriesByType('resource').map((e) => e.name).filter((n) => !n.startsWith(location.origin))",
    );
    assert_eq!(others, json!([]), "{page} asks others");
    let nameless = browser.js(
        "const named = (e) => (e.getAttribute('aria-label') ?? '') + (e.innerText ?? '') + (e.title ?? '') + [...(e.labels ?? [])].map((l) => l.innerText).join('');
         return [...document.querySelectorAll('a, button, input, select, textarea, [role=button]')]
           .filter((e) => e.offsetParent !== null || e.ownerSVGElement).filter((e) => named(e).trim() === '').map((e) => e.outerHTML.slice(0, 120))",
    );
    assert_eq!(nameless, json!([]), "{page} has things without a name");
    let headings = browser.js(
        "return [document.querySelectorAll('h1').length, document.querySelectorAll('main').length,
           [...document.querySelectorAll('img:not([alt]), table:not(:has(caption)), th:not([scope])')].map((e) => e.outerHTML.slice(0, 120))]",
    );
    assert_eq!(headings, json!([1, 1, []]), "{page}: one heading, one main part, captions and scopes");
    let untranslated = browser.js("return document.documentElement.dataset.untranslated ?? ''");
    assert_eq!(untranslated, "", "{page} has sentences in English only");
}

#[test]
fn a_service_is_seen_moved_watched_and_moved_back() {
    if lacks(&NEEDS) {
        return;
    }
    let (center, _mesh) = site();
    ripen(&center);
    let browser = Browser::start(Look::default());
    browser.open(&url(&center, "services"));
    browser.see("tbody th a", "com.shop.Order");
    browser.see(".pulse", "Live");
    well(&browser, "services");
    // Sorted by another column, filtered, shown again.
    browser.click("thead button", "Service");
    browser.see("thead th[aria-sort=ascending]", "Service");
    browser.fill("Filter services", "order idc-a");
    browser.see("[role=status]", "1 of 8 rows");
    browser.fill("Filter services", "");
    browser.see("[role=status]", "8 rows");
    browser.click("thead button", "Calls/s");
    browser.click("tbody tr:has(td) th a", "com.shop.Order");
    browser.see("h1", "com.shop.Order");
    browser.see(".tabs a", "idc-b");
    until("curves are drawn", || {
        browser.js("return document.querySelectorAll('.plots canvas').length") == 4
            && browser.text(".plot-head .key b").is_some_and(|t| t.parse::<f64>().is_ok_and(|n| n > 100.0))
    });
    well(&browser, "service");

    // 20 % of idc-a to idc-b, in two steps; the preview comes by itself.
    // The share of idc-b, which no change of the load moves.
    let share = || {
        let rate = |group: &str| {
            let page = center.get(&format!("/v1/service?service=com.shop.Order&group={group}"));
            page["row"]["figures"]["rate"].as_f64().unwrap()
        };
        let (a, b) = (rate("idc-a"), rate("idc-b"));
        b / (a + b)
    };
    let group = browser.text(".tabs a[aria-current]").unwrap_or_default();
    if !group.contains("idc-a") {
        browser.click(".tabs a", "idc-a");
    }
    browser.click("a.button.primary", "Move traffic");
    browser.see("h1", "New command");
    browser.see(".preview", "Callers touched");
    browser.see(".preview tbody th", &address("com.shop.Order", "idc-b", 0));
    let then = browser.js("return [...document.querySelectorAll('.preview .body tbody tr')].map((r) => r.innerText)");
    assert!(then.to_string().contains("idc-a") && then.to_string().contains("idc-b"), "{then}");
    browser.fill("Percent of the whole change", "50, 100");
    browser.fill("Each step", "10 min");
    browser.fill("p99 below, ms", "500");
    browser.fill("Reason", "idc-a is to be serviced");
    browser.fill("Undone after", "2 h");
    browser.click("details summary", "Texts that agents read");
    browser.see(".diff .new-line", "mergeGroups");
    until("the preview stands still", || browser.js("return !document.querySelector('.preview.busy')") == true);
    well(&browser, "switch");
    browser.shot(&picture("switch"), false);
    browser.click("footer button.primary", "Move 20 %, first 50 % of it");
    browser.see("h1", "20 % of idc-a to idc-b");
    browser.see(".badge", "stepping");
    browser.see(".steps li[aria-current]", "50 %");
    // The next step by hand, then all of it is in force.
    browser.click(".story button", "Next step");
    browser.click("dialog footer button.primary", "Next step");
    browser.see(".story .badge", "in force");
    until("a fifth of the calls has left", || share() > 0.41);
    well(&browser, "command");
    browser.shot(&picture("command"), true);
    browser.open(&url(&center, "service?service=com.shop.Order&group=idc-a"));
    browser.see(".card", "20 % of idc-a to idc-b");
    until("the curve is there", || browser.js("return document.querySelectorAll('.plots canvas').length") == 4);
    browser.shot(&picture("service"), false);

    // History, and back again.
    browser.click("nav.rail a", "Commands");
    browser.see("tbody th a", "#");
    browser.see("tbody td", "idc-a is to be serviced");
    well(&browser, "commands");
    browser.click("tbody .deeds button", "Undo");
    browser.fill("Why", "the service is done");
    browser.shot(&picture("undo"), false);
    browser.click("dialog footer button.danger", "Undo");
    browser.see("tbody .badge", "undone");
    until("all calls are back", || share() < 0.345);
    browser.click("nav.rail a", "Services");
    browser.see("tbody th a", "com.shop.Order");
    browser.shot(&picture("services"), false);
    well(&browser, "services again");
}

#[test]
fn every_kind_of_command_is_given_and_what_is_no_command_is_told() {
    if lacks(&NEEDS) {
        return;
    }
    let (center, _mesh) = site();
    let browser = Browser::start(Look::default());
    let given = |text: &str| {
        browser.fill("Reason", "tried");
        until("there is a preview", || browser.js("return !!document.querySelector('.preview:not(.busy)')") == true);
        browser.click("footer.give button", text);
        browser.see("h1", "#");
    };
    let page = |kind: &str| format!("switch?kind={kind}&service=com.shop.Cart&from=idc-a");
    // What is none is told beside the form, and cannot be sent.
    browser.open(&url(&center, &page("move")));
    browser.see("h1", "New command");
    browser.fill("Share, %", "101");
    browser.see(".give span", "A percentage is a whole number from 1 to 100");
    assert_eq!(browser.js("return document.querySelector('.give button').disabled"), true);
    browser.fill("Share, %", "10");
    browser.fill("Percent of the whole change", "50, 20");
    browser.see(".none-here", "Steps are percentages that rise to 100");
    for (kind, verb, fill) in [
        ("switch", "Put into force", &[("Groups that take the calls", "idc-a 70\nidc-b 30")][..]),
        ("canary", "Put into force", &[("Version", "2.1.0"), ("Percent of the whole change", "100")]),
        ("route", "Put into force", &[("Rules", "10.0.* to 10.0.*")]),
        ("switchers", "Put into force", &[("Switchers", "feature.x=on")]),
        ("degrade", "Degrade", &[]),
        ("drain", "Put into force", &[]),
    ] {
        browser.open("about:blank");
        browser.open(&url(&center, &page(kind)));
        browser.see(".choice button[aria-pressed=true]", "");
        for (label, text) in fill {
            browser.fill(label, text);
        }
        if kind == "drain" {
            let one = address("com.shop.Cart", "idc-a", 0);
            browser.see("form.panel select option", &one);
            browser.fill("Instance", &one);
        }
        given(verb);
        // One command at a time for a service: undone before the next is given.
        browser.click(".story button", "Undo");
        browser.click("dialog footer button.danger", "Undo");
        browser.see(".story .badge", "undone");
    }
    let commands = center.get("/v1/commands?limit=100");
    assert_eq!(commands["items"].as_array().unwrap().len(), 6, "{commands}");
    // One in the middle of its steps, above those that are over.
    browser.open("about:blank");
    browser.open(&url(&center, &page("move")));
    given("Move 20 %");
    browser.click("nav.rail a", "Commands");
    browser.see("tbody .badge", "stepping");
    well(&browser, "commands");
    browser.shot(&picture("commands"), false);
}

#[test]
fn two_operators_do_not_overwrite_each_other() {
    if lacks(&NEEDS) {
        return;
    }
    let (center, _mesh) = site();
    let browser = Browser::start(Look::default());
    browser.open(&url(&center, "switch?kind=degrade&service=com.shop.Cart&from=idc-a"));
    browser.fill("Reason", "mine");
    until("there is a preview", || browser.js("return !!document.querySelector('.preview:not(.busy)')") == true);
    let other =
        json!({"action": {"kind": "degrade", "service": "com.shop.Cart", "group": "idc-a"}, "reason": "theirs"});
    center.post("/v1/commands", &other);
    browser.click("footer.give button", "Degrade");
    browser.see("form .problem", "");
    let told = browser.text("form .problem").unwrap();
    assert!(told.len() > 20, "{told}");
    assert_eq!(center.get("/v1/commands")["items"].as_array().unwrap().len(), 1);
}

#[test]
fn an_instance_is_taken_out_weighed_and_brought_back() {
    if lacks(&NEEDS) {
        return;
    }
    let (center, _mesh) = site();
    ripen(&center);
    let browser = Browser::start(Look::default());
    let one = address("com.shop.Order", "idc-a", 1);
    let state = || {
        let page = center.get("/v1/service?service=com.shop.Order&group=idc-a");
        let rows = page["instances"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["address"] == one.as_str()).unwrap()
    };
    let order = |label: &str| {
        browser.click(&format!("[aria-label='Actions for {one}']"), "");
        browser.click("[role=menuitem]", label);
    };
    browser.open(&url(&center, "service?service=com.shop.Order&group=idc-a"));
    browser.see("tbody th", &one);
    order("Take out");
    browser.fill("Reason", "memory leak, ticket 4411");
    browser.click("dialog footer button.danger", "Take out");
    browser.see("td .badge", "out");
    browser.see("td", "memory leak");
    assert_eq!(state()["state"], "out");
    browser.shot(&picture("instance-out"), false);
    order("Bring back");
    browser.click("dialog footer button.primary", "Bring back");
    until("it is back", || state()["state"] == "available");
    order("Change weight");
    browser.fill("Weight", "3");
    browser.click("dialog footer button.primary", "Change weight");
    until("it weighs 3", || state()["weight"] == 3);
    // Its own curves, below its row.
    browser.click("tbody th button", &one);
    until("its curves are there", || browser.js("return document.querySelectorAll('tr.detail canvas').length") == 3);
    order("Test whether it answers");
    browser.see(".sayings", &one);
    order("Drain");
    browser.fill("Reason", "moves to another rack");
    browser.click("dialog footer button.primary", "Drain");
    browser.see("td .badge", "draining");
    well(&browser, "instances");
    // All of it is on record.
    browser.click("nav.rail a", "Audit");
    browser.see("td", "instance.out");
    browser.shot(&picture("audit"), false);
    browser.fill("What begins with", "instance.weight");
    until("the record is searched", || {
        let rows =
            browser.js("return [...document.querySelectorAll('tbody tr td:nth-child(5)')].map((e) => e.innerText)");
        rows.as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(|row| row == "instance.weight"))
    });
    browser.click("tbody th button", "");
    browser.see("tr.detail pre", "3");
    well(&browser, "audit");
}

#[test]
fn every_page_in_both_languages_and_both_themes() {
    if lacks(&NEEDS) {
        return;
    }
    let (center, _mesh) = site();
    ripen(&center);
    until("pools are there", || !center.get("/v1/capacity")["items"].as_array().unwrap().is_empty());
    let pages = [
        ("services", "服务"),
        ("service?service=com.shop.Order&group=idc-a", "com.shop.Order"),
        ("switch?kind=move&service=com.shop.Order&from=idc-a", "新建指令"),
        ("graph", "关系图"),
        ("capacity", "容量"),
        ("commands", "指令"),
        ("agents", "代理"),
        ("registry?group=idc-a&service=com.shop.Order", "注册中心"),
        ("audit", "审计"),
        ("access", "权限"),
    ];
    for (language, dark) in [("zh-CN", true), ("en-US", false)] {
        let browser = Browser::start(Look { language, dark, ..Look::default() });
        for (page, title) in pages {
            browser.open("about:blank");
            browser.open(&url(&center, page));
            browser.see("h1", if language == "zh-CN" { title } else { "" });
            browser.see(".pulse.on", "");
            until("it is read", || browser.js("return !document.querySelector('main .loading')") == true);
            assert_eq!(
                browser.js("return document.documentElement.dataset.theme"),
                if dark { "dark" } else { "light" }
            );
            let name = page.split('?').next().unwrap();
            if page.starts_with("service?") || page.starts_with("graph") {
                until("it is drawn", || {
                    browser.js("return document.querySelectorAll('canvas, .node').length > 3") == true
                });
            }
            well(&browser, &format!("{page} in {language}"));
            browser.shot(&picture(&if dark { format!("{name}-zh-dark") } else { format!("page-{name}") }), false);
        }
        // Both are turned by hand too, and kept.
        browser.click("button.language", "");
        browser.see("nav.rail", if language == "zh-CN" { "Services" } else { "服务" });
        browser.js("document.querySelector('[title=\"Light or dark\"], [title=\"浅色或深色\"]').click()");
        assert_eq!(browser.js("return document.documentElement.dataset.theme"), if dark { "light" } else { "dark" });
        browser.open("about:blank");
        browser.open(&url(&center, "services"));
        browser.see("nav.rail", if language == "zh-CN" { "Services" } else { "服务" });
        assert_eq!(browser.js("return document.documentElement.dataset.theme"), if dark { "light" } else { "dark" });
    }
}

#[test]
fn the_graph_the_pools_and_the_agents_answer_questions() {
    if lacks(&NEEDS) {
        return;
    }
    let (center, _mesh) = site();
    let browser = Browser::start(Look::default());
    browser.open(&url(&center, "graph"));
    browser.see(".node", "com.shop.Order");
    browser.see(".node", "mobile-api");
    browser.shot(&picture("graph"), false);
    browser.js("document.querySelector('.node[aria-label^=\"Application web\"]').dispatchEvent(new MouseEvent('click', { bubbles: true }))");
    browser.see("#edges-title", "web");
    let callers = browser.js("return [...document.querySelectorAll('tbody th')].map((e) => e.innerText)");
    assert!(callers.as_array().unwrap().iter().all(|c| c == "web" || c.as_str().unwrap().contains('/')), "{callers}");
    browser.fill("Filter the graph", "payment");
    browser.gone(".node[aria-label*='Timeline']");
    well(&browser, "graph");

    browser.click("nav.rail a", "Agents");
    browser.see("td .badge", "1 remark");
    browser.click(".choice button", "With remarks");
    browser.click("tbody th button", "timeline");
    browser.see("tr.detail", "did you mean `p2c`?");
    well(&browser, "agents");
    browser.shot(&picture("agents"), false);

    browser.click("nav.rail a", "Capacity");
    browser.see("tbody th a", "com.shop.Order");
    browser.click("#main .panel .choice button", "idc-a");
    browser.see(".verdict", "");
    well(&browser, "capacity");
    browser.shot(&picture("capacity"), false);

    browser.click("nav.rail a", "Registry");
    browser.click(".pick a", "com.shop.Payment");
    browser.see("tbody th", &address("com.shop.Payment", "idc-a", 0));
    well(&browser, "registry");
    browser.shot(&picture("registry"), false);
}

#[test]
fn rules_silences_policies_sizes_and_the_demos_load_are_set() {
    if lacks(&NEEDS) {
        return;
    }
    let dir = Temp::new();
    let load = dir.write("load", "1");
    let file = load.display();
    let config = format!(
        "demo: {{load: {file}, max: 10}}\nalerts: {{every: 1s, usual: false}}\nscale:\n  drivers:\n    local: {{kind: process, \
         options: {{command: [sleep, '1000']}}}}\npools:\n  policies:\n  - {{service: com.shop.Cart, group: idc-a, driver: local, \
         min: 1, max: 4, hold_ms: 3600000}}\n",
    );
    let (center, _mesh) = site_with(&config, Some(load.clone()));
    let browser = Browser::start(Look::default());

    browser.open(&url(&center, "alerts"));
    browser.see(".empty", "Nothing fires");
    browser.click(".tabs a", "Rules");
    browser.click("button.primary", "New rule");
    browser.fill("Name", "errors");
    browser.fill("Service", "com.shop.Payment");
    browser.fill("Group", "idc-b");
    browser.fill("Figure", "success");
    browser.fill("Above", "");
    browser.fill("Below", "99.5");
    browser.fill("For", "1 s");
    browser.fill("Severity", "page");
    browser.click("dialog footer button.primary", "Save");
    browser.see("td", "Success % below 99.50 for 1 s");
    browser.click(".tabs a", "Alerts");
    browser.see("td .badge", "firing");
    browser.see("nav.rail .count", "1");
    browser.click("tbody th button", "errors");
    until("its series is drawn", || browser.js("return document.querySelectorAll('tr.detail canvas').length") == 1);
    well(&browser, "alerts");
    browser.shot(&picture("alerts"), false);
    browser.click("td .deeds button", "Silence");
    browser.fill("Reason", "is being repaired");
    browser.click("dialog footer button.primary", "Silence");
    browser.see("td .badge", "silenced");
    browser.click(".tabs a", "Silences");
    browser.see("td", "is being repaired");
    browser.click("td .deeds button", "End");
    browser.see(".empty", "Nothing is silenced");
    browser.click(".tabs a", "Rules");
    browser.click("td .deeds button", "Delete");
    browser.click("dialog footer button.danger", "Delete");
    browser.see(".empty", "No rule is written");

    let pool = |service: &str| {
        let all = center.get("/v1/capacity?limit=100")["items"].as_array().unwrap().clone();
        all.into_iter().find(|p| p["service"] == service && p["group"] == "idc-a").unwrap_or_default()
    };
    browser.click("nav.rail a", "Capacity");
    browser.click("[aria-label='Actions for idc-a/com.shop.Order']", "");
    browser.click("[role=menuitem]", "Policy");
    browser.fill("Warning line", "65");
    browser.fill("Known capacity", "400");
    browser.click("dialog footer button.primary", "Save");
    until("the policy is kept", || pool("com.shop.Order")["policy"]["warning_percent"] == 65.0);
    browser.see("td .badge", "warning");
    browser.click("[aria-label='Actions for idc-a/com.shop.Order']", "");
    browser.click("[role=menuitem]", "Scale");
    browser.see("dialog[open]", "No driver is named");
    browser.keys(&["Escape"]);
    browser.gone("dialog[open]");
    browser.click("[aria-label='Actions for idc-a/com.shop.Cart']", "");
    browser.click("[role=menuitem]", "Scale");
    browser.fill("Instances", "2");
    browser.fill("Reason", "a campaign begins");
    browser.click("dialog footer button.primary", "Scale");
    until("the driver runs two", || {
        let rows = center.get("/v1/scale");
        rows.as_array().is_some_and(|rows| rows.iter().any(|row| row["service"] == "com.shop.Cart" && row["size"] == 2))
    });
    well(&browser, "capacity");

    // Load is turned up where a demo runs, and the curve follows.
    browser.open(&url(&center, "service?service=com.shop.Order&group=idc-a"));
    browser.fill("Load of the demo", "2");
    until("the load is turned", || std::fs::read_to_string(&load).is_ok_and(|text| text.trim() == "2"));
    until("twice as much is called", || {
        let page = center.get("/v1/service?service=com.shop.Order&group=idc-a");
        page["row"]["figures"]["rate"].as_f64().is_some_and(|rate| rate > 1500.0)
    });
    browser.see(".tile", "Calls/s");
    well(&browser, "service with a demo");
}

#[test]
fn what_the_centre_proposes_is_put_into_force_or_discarded() {
    if lacks(&NEEDS) {
        return;
    }
    let config = "pools:
  policies:
  - {service: com.shop.Payment, group: idc-a, capacity: 70, driver: local, max: 8, hold_ms: 1000}
  - {service: com.shop.Cart, group: idc-a, capacity: 100, driver: local, max: 8, hold_ms: 1000}
scale: {drivers: {local: {kind: process, options: {command: [sleep, '1000']}}}}
";
    let (center, _mesh) = site_with(config, None);
    let proposals = || {
        let page = center.get("/v1/commands?state=proposed&limit=100");
        let all = page["items"].as_array().unwrap().clone();
        all.into_iter().filter(|one| one["asked"]["action"]["kind"] == "scale").collect::<Vec<Value>>()
    };
    until("two sizes are proposed", || proposals().len() == 2);
    let browser = Browser::start(Look::default());
    browser.open(&url(&center, "capacity"));
    browser.see("#proposals-title", "Proposals");
    browser.see(".card.proposed", "com.shop.Payment");
    browser.see(".card.proposed", "com.shop.Cart");
    browser.see(".card.proposed strong", "Scale idc-a from 0 to");
    well(&browser, "capacity with proposals");
    browser.shot(&picture("proposals"), false);

    // One on the page of its service, to the driver and into the history.
    browser.open(&url(&center, "service?service=com.shop.Payment&group=idc-a"));
    browser.click(".card.proposed button.primary", "Put into force");
    browser.see("dialog[open]", "The driver of the pool starts or stops instances at once");
    browser.click("dialog footer button.primary", "Put into force");
    until("the driver runs them", || {
        let rows = center.get("/v1/scale");
        let payment = |row: &Value| row["service"] == "com.shop.Payment" && row["size"].as_u64() > Some(0);
        rows.as_array().is_some_and(|rows| rows.iter().any(payment))
    });
    browser.gone(".card.proposed");
    browser.click("nav.rail a", "Commands");
    browser.see("tbody .badge", "done");
    // The other one is turned down.
    browser.click("nav.rail a", "Capacity");
    browser.see(".card.proposed", "com.shop.Cart");
    browser.click(".card.proposed .deeds button", "Discard");
    browser.see("dialog[open]", "Nothing like it is proposed again within the hour");
    browser.fill("Why", "the campaign ends today");
    browser.click("dialog footer button.danger", "Discard");
    browser.gone(".card.proposed");
    assert_eq!(proposals(), Vec::<Value>::new());
    well(&browser, "capacity without proposals");
    let all = center.get("/v1/commands?limit=100");
    let states: Vec<&Value> = all["items"].as_array().unwrap().iter().map(|one| &one["state"]).collect();
    assert!(states.iter().any(|s| **s == "done") && states.iter().any(|s| **s == "undone"), "{all}");
}

#[test]
fn keys_alone_do() {
    if lacks(&NEEDS) {
        return;
    }
    let (center, _mesh) = site();
    let browser = Browser::start(Look::default());
    browser.open(&url(&center, "services"));
    browser.see("tbody th a", "com.shop.Order");
    browser.keys(&["?"]);
    browser.see("dialog[open] dt", "j");
    browser.keys(&["Escape"]);
    browser.gone("dialog[open]");
    browser.keys(&["/", "P", "a", "y", "Escape"]);
    browser.see("[role=status]", "2 of 8 rows");
    browser.keys(&["j", "j", "Enter"]);
    browser.see("h1", "com.shop.Payment");
    browser.keys(&["m"]);
    browser.see("h1", "New command");
    browser.keys(&["g", "a"]);
    browser.see("nav.rail a[aria-current=page]", "Alerts");
    browser.keys(&["t"]);
    assert_eq!(browser.js("return document.documentElement.dataset.theme"), "dark");
    browser.keys(&["g", "g"]);
    browser.see("h1", "Graph");
    // A menu by keys: it takes the focus, and gives it back.
    browser.open(&url(&center, "service?service=com.shop.Order&group=idc-a"));
    browser.see(".head .menu button", "More");
    browser.js("document.querySelector('.head .menu button').focus()");
    browser.keys(&["Enter"]);
    browser.see("[role=menuitem]", "Degrade");
    browser.keys(&["Down", "Down", "Escape"]);
    browser.gone("[role=menu]");
    assert_eq!(browser.js("return document.activeElement.innerText.trim()"), "More");
}

#[test]
fn a_centre_that_goes_is_told_and_comes_back() {
    if lacks(&NEEDS) {
        return;
    }
    let (mut center, _mesh) = site();
    let browser = Browser::start(Look::default());
    browser.open(&url(&center, "service?service=com.shop.Order&group=idc-a"));
    browser.see("tbody th", &address("com.shop.Order", "idc-a", 0));
    browser.see(".pulse", "Live");
    center.kill9();
    browser.see(".gone", "The centre has not answered since");
    browser.see(".gone", "Calls do not pass through it and go on");
    // What was seen stays to be read.
    browser.see("tbody th", &address("com.shop.Order", "idc-a", 0));
    browser.shot(&picture("centre-gone"), false);
    center.again();
    browser.gone(".gone");
    browser.see(".pulse", "Live");
    browser.see("tbody th", &address("com.shop.Order", "idc-a", 0));
}

#[test]
fn people_get_accounts_log_in_and_see_what_is_theirs() {
    if lacks(&NEEDS) {
        return;
    }
    let (center, _mesh) = site();
    let browser = Browser::start(Look::default());
    browser.open(&url(&center, "access"));
    browser.see(".open", "no accounts");
    let add = |name: &str, roles: &str| {
        browser.click("#main .panel button", "Add");
        browser.fill("Name", name);
        browser.fill("Password", "a long enough secret");
        browser.fill("Roles", roles);
        browser.click("dialog footer button.primary", "Add");
    };
    let log_in = |name: &str, password: &str| {
        browser.see("h1", "Log in");
        browser.fill("Name", name);
        browser.fill("Password", password);
        browser.click("button.primary", "Log in");
    };
    add("alice", "* admin");
    log_in("alice", "wrong");
    browser.see(".problem", "");
    browser.shot(&picture("login"), false);
    log_in("alice", "a long enough secret");
    browser.see(".top .menu", "alice");
    browser.see("tbody th", "alice");
    add("victor", "idc-* viewer");
    browser.see("tbody th", "victor");
    browser.click("#main .panel button", "Make");
    browser.fill("For what", "agents of idc-a");
    browser.fill("Agents that it speaks for", "idc-a-*/*");
    browser.click("dialog footer button.primary", "Make");
    browser.see(".secret", "");
    let secret = browser.text(".secret").unwrap();
    assert!(secret.len() > 20, "{secret}");
    browser.keys(&["Escape"]);
    browser.see("td", "agents of idc-a");
    well_but_refusals(&browser);
    browser.shot(&picture("access"), false);
    browser.click(".top .menu button", "alice");
    browser.click("[role=menuitem]", "Log out");
    log_in("victor", "a long enough secret");
    browser.see(".top .menu", "victor");
    browser.click("nav.rail a", "Services");
    browser.click("tbody th a", "com.shop.Order");
    browser.see("h1", "com.shop.Order");
    browser.see("tbody th", "10.");
    // Whoever only looks is offered nothing else.
    assert_eq!(browser.js("return document.querySelectorAll('[data-move], [aria-label^=\"Actions for\"]').length"), 0);
    well_but_refusals(&browser);
}

/// As [`well`], where calls were refused on purpose.
#[track_caller]
fn well_but_refusals(browser: &Browser) {
    let complaints = browser.complaints();
    let meant = |c: &String| ["401", "403", "/v1/demo"].iter().any(|word| c.contains(word));
    assert!(complaints.iter().all(meant), "{complaints:#?}");
    well(browser, "access");
}

#[test]
fn a_thousand_services_are_there_at_once_and_changes_too() {
    if lacks(&NEEDS) {
        return;
    }
    let center = Center::start("");
    for agent in 0..10 {
        let registration = |n: usize| {
            let address = format!("10.2.{agent}.{}:8002", n % 250 + 1);
            json!({
                "key": {"service": format!("com.area{}.Service{agent:02}{n:03}", n % 37), "group": "idc-a"},
                "protocol": "motan2", "instance": {"address": address, "weight": 10, "zone": "idc-a", "version": "1.0"},
                "application": "many", "parameters": {}, "available": true,
            })
        };
        let all: Vec<Value> = (0..100).map(registration).collect();
        let body =
            json!({"agent": format!("many-{agent}/agent"), "ttl_ms": 600_000, "generation": 1, "registrations": all});
        let (status, text) = send(center.addr(), "PUT", "/v1/agent/registrations", &body).unwrap();
        assert_eq!(status, 200, "{text}");
    }
    let browser = Browser::start(Look::default());
    // When the first rows are painted, by the page's own clock, which starts with the navigation.
    let watch = "addEventListener('DOMContentLoaded', () => { const watch = new MutationObserver(() => {
        if (!document.querySelector('tbody tr')) return; watch.disconnect();
        requestAnimationFrame(() => requestAnimationFrame(() => { window.painted = performance.now(); })); });
        watch.observe(document.body, { childList: true, subtree: true }); });";
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": watch }));
    let mut painted = Vec::new();
    for _ in 0..5 {
        browser.open("about:blank");
        browser.open(&url(&center, "services"));
        browser.see("[role=status]", "1,000 rows");
        painted.push(until_some("the rows are painted", || browser.js("return window.painted ?? null").as_f64()));
    }
    painted.sort_by(f64::total_cmp);
    // Further rows come as the page is scrolled, all of them.
    let scroll = "scrollTo(0, document.body.scrollHeight); return document.querySelectorAll('tbody tr').length";
    until("all rows can be reached", || browser.js(scroll) == 1000);
    browser.js("scrollTo(0, 0)");

    // From what an agent tells to what a person reads.
    browser.fill("Filter services", "Service00042");
    browser.see("[role=status]", "1 of 1,000 rows");
    browser.see(".pulse", "Live");
    let service = "com.area5.Service00042";
    let mut seen = Vec::new();
    let mut shown = browser.text("tbody td:nth-child(6)").unwrap();
    for round in 1..=5 {
        let sample = json!({"side": "outbound", "service": service, "group": "idc-a", "instance": "10.2.0.43:8002",
            "caller": "web", "calls": 50 * round * round, "times": {"buckets": [[100, 50 * round * round]], "sum_us": 1000}});
        let body = json!({"agent": "web/agent", "window_seconds": 1.0, "sequence": round, "samples": [sample]});
        let at = Instant::now();
        let (status, text) = send(center.addr(), "POST", "/v1/agent/report", &body).unwrap();
        assert!((200..300).contains(&status), "{text}");
        let next =
            until_some("the page shows it", || browser.text("tbody td:nth-child(6)").filter(|now| *now != shown));
        seen.push(at.elapsed().as_secs_f64() * 1000.0);
        shown = next;
    }
    seen.sort_by(f64::total_cmp);
    println!("first paint with 1,000 services: {:.0} ms (of 5, {:.0} to {:.0})", painted[2], painted[0], painted[4]);
    println!("from a report to the page: {:.0} ms (of 5, {:.0} to {:.0})", seen[2], seen[0], seen[4]);
    well(&browser, "a thousand services");
}
