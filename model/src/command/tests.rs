//! What running clients of Motan were seen to do with these texts.

use super::*;

fn commands(list: &str) -> Commands {
    let commands = Commands::parse(&format!("{{\"clientCommandList\":[{list}]}}")).unwrap();
    assert_eq!(commands.left_out, [] as [String; 0]);
    commands
}

fn groups(commands: &Commands, service: &str) -> String {
    let command = commands.traffic(service);
    let shares = command.map(|c| c.groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    shares.unwrap_or_else(|| "none".to_owned())
}

#[test]
fn the_sample_of_both_clients_is_read() {
    let text = r#"{"clientCommandList":[
        {"index":1,"version":"1.0","dc":"","commandType":0,"pattern":"bars.*",
         "mergeGroups":["bars:1","bars-b:3"],"routeRules":["* to 127.0.0.3"],"remark":"any text"}]}"#;
    let commands = Commands::parse(text).unwrap();
    let command = commands.traffic("bars.BarService").unwrap();
    assert_eq!(groups(&commands, "bars.BarService"), "bars:1 bars-b:3");
    assert_eq!((command.routes.len(), command.remark.as_str(), command.index), (1, "any text", Some(1)));
    assert!(is_weighted(&command.groups));
    assert_eq!(groups(&commands, "foo.Service"), "none");
}

#[test]
fn the_lowest_index_that_matches_wins_and_a_missing_one_is_lower() {
    let two = r#"{"index":2,"pattern":"*","mergeGroups":["two"]}"#;
    let one = r#"{"index":1,"pattern":"a.*","mergeGroups":["one"]}"#;
    let none = r#"{"pattern":"a.X","mergeGroups":["first"]}"#;
    let all = commands(&[two, one, none].join(","));
    assert_eq!((groups(&all, "a.X").as_str(), groups(&all, "a.Y").as_str()), ("first", "one"));
    assert_eq!(groups(&all, "b"), "two");
    assert_eq!(groups(&commands(&[two, one].join(",")), "a.X"), "one");
    // Numbers as text, and equals in the order of the text.
    let equal = r#"{"index":"1","pattern":"*","mergeGroups":["x"]},{"index":1,"pattern":"*","mergeGroups":["y"]}"#;
    assert_eq!(groups(&commands(equal), "s"), "x");
}

#[test]
fn weights_are_kept_within_bounds() {
    let shown = |names: &[&str]| {
        let shares = group_shares(names.iter().copied());
        (shares.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), is_weighted(&shares))
    };
    assert_eq!(shown(&["a", "b"]), ("a b".to_owned(), false));
    assert_eq!(shown(&["a:0", "b:-5", "c:1000", "d:x", "e:", "f"]), ("a:1 b:1 c:100 d:1 e:1 f".to_owned(), true));
    assert_eq!(shown(&["a:1", " a : 7 ", "", ":3"]), ("a:7".to_owned(), true));
}

#[test]
fn without_groups_the_own_one_stays_and_rules_apply() {
    let all = commands(r#"{"index":1,"pattern":"s","routeRules":["10.* to !10.0.0.1"]}"#);
    let command = all.traffic("s").unwrap();
    assert!(command.groups.is_empty());
    let hosts = vec!["10.0.0.1", "10.0.0.2"];
    assert_eq!(route(&command.routes, "10.9.9.9", hosts.clone(), |h| h).0, ["10.0.0.2"]);
    assert_eq!(route(&command.routes, "11.9.9.9", hosts.clone(), |h| h).0, hosts);
}

#[test]
fn rules_apply_in_order_and_never_leave_nothing() {
    let rules: Vec<_> =
        ["10.* to 10.1.*", "* to !10.1.0.1"].into_iter().map(|r| RouteRule::parse(r).unwrap()).collect();
    let left = |own: &str, hosts: &[&'static str]| {
        let (left, emptied) = route(&rules, own, hosts.to_vec(), |h| *h);
        (left, emptied.map(ToString::to_string))
    };
    assert_eq!(left("10.0.0.1", &["10.1.0.1", "10.1.0.2", "10.2.0.1"]), (vec!["10.1.0.2"], None));
    assert_eq!(left("11.0.0.1", &["10.1.0.1", "10.2.0.1"]), (vec!["10.2.0.1"], None));
    let (all, emptied) = left("10.0.0.1", &["10.2.0.1"]);
    assert_eq!((all, emptied.as_deref()), (vec!["10.2.0.1"], Some("10.* to 10.1.*")));
    let (all, emptied) = left("10.0.0.1", &["10.1.0.1"]);
    assert_eq!((all, emptied.as_deref()), (vec!["10.1.0.1"], Some("* to !10.1.0.1")));
    assert_eq!(left("10.0.0.1", &[]), (vec![], None));
}

#[test]
fn the_application_goes_before_the_group_kind_by_kind() {
    let traffic = |group: &str| format!(r#"{{"index":1,"pattern":"*","mergeGroups":["{group}"]}}"#);
    let degrade = r#"{"index":1,"commandType":1,"pattern":"s"}"#;
    let switch = |value: bool| format!(r#"{{"index":1,"commandType":2,"pattern":"a:{value}, b:false"}}"#);
    let agent = commands(&[traffic("x"), switch(true)].join(","));
    let group = commands(&[traffic("y"), switch(false), degrade.to_owned()].join(","));
    let decision = decide(&agent, &group, "s");
    let (source, command) = decision.traffic.unwrap();
    assert_eq!((source, command.groups[0].group.as_str()), (Source::Agent, "x"));
    assert_eq!(decision.degrade.unwrap().0, Source::Group);
    assert_eq!(decision.switchers, [("a".to_owned(), true), ("b".to_owned(), false)]);
    let nothing = Commands::default();
    let decision = decide(&nothing, &group, "s");
    assert_eq!((decision.traffic.unwrap().0, decision.switchers[0].1), (Source::Group, false));
    let decision = decide(&nothing, &nothing, "s");
    assert!(decision.traffic.is_none() && decision.degrade.is_none() && decision.switchers.is_empty());
}

#[test]
fn an_ill_text_counts_for_nothing_and_says_where() {
    for (text, expected) in [
        ("nonsense", "not JSON"),
        ("{\"clientCommandList\":[", "not JSON"),
        ("[]", "not an object"),
        ("7", "not an object"),
        (r#"{"clientCommandList":{}}"#, "no list"),
        (r#"{"clientCommandList":[7]}"#, "clientCommandList[0]: no object"),
        (r#"{"clientCommandList":[{"pattern":"*"},{"pattern":7}]}"#, "clientCommandList[1]: `pattern` is no text"),
        (r#"{"clientCommandList":[{"pattern":"*","mergeGroups":"a"}]}"#, "`mergeGroups` is no list"),
        (r#"{"clientCommandList":[{"pattern":"*","routeRules":[7]}]}"#, "`routeRules` is no list"),
        (r#"{"clientCommandList":[{"pattern":"*","index":"x"}]}"#, "`index` is \"x\""),
    ] {
        let why = Commands::parse(text).unwrap_err();
        assert!(why.contains(expected), "{text}: {why}");
    }
    for empty in ["", "  \n", "{}", r#"{"clientCommandList":null}"#, r#"{"clientCommandList":[]}"#] {
        assert!(Commands::parse(empty).unwrap().all().is_empty(), "{empty}");
    }
}

#[test]
fn an_ill_command_costs_itself_and_an_ill_rule_itself() {
    let text = r#"{"clientCommandList":[
        {"index":1,"pattern":"","mergeGroups":["a"]},
        {"index":1,"pattern":"(","mergeGroups":["a"]},
        {"index":1,"pattern":"*","commandType":9},
        {"index":1,"pattern":"a","commandType":2},
        {"index":2,"pattern":"*","mergeGroups":["b"],"routeRules":["nonsense","* to 1.1.1.1"]}]}"#;
    let commands = Commands::parse(text).unwrap();
    assert_eq!(groups(&commands, "s"), "b");
    assert_eq!(commands.traffic("s").unwrap().routes.len(), 1);
    assert_eq!(commands.left_out.len(), 5, "{:?}", commands.left_out);
    for (told, expected) in commands.left_out.iter().zip([
        "clientCommandList[0]: the pattern is empty",
        "clientCommandList[1]: the pattern `(`",
        "clientCommandList[2]: `commandType` is 9",
        "clientCommandList[3]: `a` is no switcher",
        "clientCommandList[4].routeRules: `nonsense` is no rule",
    ]) {
        assert!(told.starts_with(expected), "{told}");
    }
}

#[test]
fn version_and_place_are_ignored_and_unknown_fields_too() {
    let odd = commands(r#"{"index":1,"version":"9.9","dc":"elsewhere","pattern":"s","mergeGroups":["g"],"x":{}}"#);
    assert_eq!(groups(&odd, "s"), "g");
}

#[test]
fn canaries_and_drains_stand_beside_the_list() {
    let text = r#"{"clientCommandList":[{"index":1,"pattern":"s","exact":true,"mergeGroups":["g"]}],"sockmesh":[
        {"kind":"canary","service":"s","version":"2","percent":10,"header":"x-canary=yes"},
        {"kind":"canary","service":"s","version":"3","percent":101},
        {"kind":"drain","service":"s","instance":"10.0.0.1:80"},
        {"kind":"drain","service":""}, {"kind":"else"}, 7]}"#;
    let all = Commands::parse(text).unwrap();
    let nothing = Commands::default();
    let decision = decide(&nothing, &all, "s");
    let (source, canary) = decision.canary.unwrap();
    assert_eq!((source, canary.percent, canary.version.as_str()), (Source::Group, 10, "2"));
    assert_eq!(canary.header, Some(("x-canary".to_owned(), "yes".to_owned())));
    assert_eq!(canary.told(), "10 % to version 2, all with x-canary=yes");
    assert_eq!(decision.drained, ["10.0.0.1:80"]);
    assert_eq!(all.left_out.len(), 4, "{:?}", all.left_out);
    // Exact: no beginning of other names.
    let decision = decide(&all, &nothing, "s2");
    assert!(decision.traffic.is_none() && decision.canary.is_none() && decision.drained.is_empty());
}
