//! Command texts as operators change them: one entry is put in or taken out, whatever else stands there stays.

use serde_json::{Map, Value, json};

use super::{Kind, Pattern, extra, traffic_index};

/// Key of an entry that belongs to whoever put it in with [`put_entries`]: others leave it alone.
pub const OWNED: &str = "id";

/// What one owner puts into a command text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Commands as they stand in the text, without index; the first goes first.
    pub commands: Vec<Value>,
    /// Canaries and drains.
    pub extra: Vec<Value>,
}

/// `text` with these entries before all others of their kind, marked as those of `owner`. What else stands there
/// stays below and holds again when they are gone.
///
/// # Errors
/// `text` is no list of commands, or another command would go first.
pub fn put_entries(text: Option<&str>, owner: &str, entries: &Entries) -> Result<String, String> {
    let mut whole = Text::read(text)?;
    if !entries.commands.is_empty() {
        let contends = |other: &&Value| {
            let same_kind = |one: &Value| Kind::of(&one["commandType"]) == Kind::of(&other["commandType"]);
            traffic_index(other).is_none() && entries.commands.iter().any(|one| same_kind(one) && overlap(one, other))
        };
        if let Some(first) = whole.list.iter().find(contends) {
            let pattern = first["pattern"].as_str().unwrap_or_default();
            return Err(format!("the command of `{pattern}` has no index, so it goes first; give it one"));
        }
        let lowest = whole.list.iter().filter_map(traffic_index).min().unwrap_or(1).min(1);
        let first = lowest.saturating_sub(entries.commands.len() as i64);
        let commands = entries.commands.iter().enumerate().map(|(i, one)| {
            let mut one = one.clone();
            one["index"] = (first + i as i64).into();
            one[OWNED] = owner.into();
            one
        });
        whole.list.splice(..0, commands);
    }
    let extra = entries.extra.iter().map(|one| {
        let mut one = one.clone();
        one[OWNED] = owner.into();
        one
    });
    whole.extra.splice(..0, extra);
    Ok(whole.written())
}

/// `text` without the entries whose owner `is_own` knows.
///
/// # Errors
/// `text` is no list of commands.
pub fn foreign(text: Option<&str>, is_own: impl Fn(&str) -> bool) -> Result<String, String> {
    let mut whole = Text::read(text)?;
    let stays = |one: &Value| !one[OWNED].as_str().is_some_and(&is_own);
    whole.list.retain(stays);
    whole.extra.retain(stays);
    Ok(whole.written())
}

/// What each owner that `is_own` knows has in `text`; the one that lies lowest comes first.
///
/// # Errors
/// `text` is no list of commands.
pub fn owned(text: Option<&str>, is_own: impl Fn(&str) -> bool) -> Result<Vec<(String, Entries)>, String> {
    let mut whole = Text::read(text)?;
    whole.list.sort_by_key(traffic_index);
    let mut all: Vec<(String, Entries)> = Vec::new();
    let mut of = |one: &Value, add: &dyn Fn(&mut Entries)| {
        let Some(owner) = one[OWNED].as_str().filter(|owner| is_own(owner)) else { return };
        match all.iter_mut().find(|(known, _)| known == owner) {
            Some((_, entries)) => add(entries),
            None => {
                let mut entries = Entries::default();
                add(&mut entries);
                all.push((owner.to_owned(), entries));
            }
        }
    };
    whole.list.iter().for_each(|one| of(one, &|entries| entries.commands.push(one.clone())));
    whole.extra.iter().for_each(|one| of(one, &|entries| entries.extra.push(one.clone())));
    all.reverse();
    Ok(all)
}

/// `above` laid over `below`, for who wants to know what holds when both are obeyed; not for writing.
///
/// # Errors
/// One of them is no list of commands, or a command of `below` would go first.
pub fn over(below: &str, above: &str) -> Result<String, String> {
    let mut whole = Text::read(Some(above))?;
    whole.list.sort_by_key(traffic_index);
    put_entries(Some(below), "above", &Entries { commands: whole.list, extra: whole.extra })
}

/// Whether both may be about one service; not knowing counts as yes.
fn overlap(one: &Value, other: &Value) -> bool {
    let (a, b) = (one["pattern"].as_str().unwrap_or_default(), other["pattern"].as_str().unwrap_or_default());
    one["exact"] != true || Pattern::parse(b).is_ok_and(|p| p.matches(a))
}

/// A command text taken apart.
struct Text {
    list: Vec<Value>,
    extra: Vec<Value>,
    /// Whatever else stands there.
    rest: Map<String, Value>,
}

impl Text {
    fn read(text: Option<&str>) -> Result<Self, String> {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
            return Ok(Self { list: Vec::new(), extra: Vec::new(), rest: Map::new() });
        };
        let value: Value = serde_json::from_str(text).map_err(|e| format!("what is there is not JSON ({e})"))?;
        let no_list = || "what is there has no list `clientCommandList`".to_owned();
        let Value::Object(mut rest) = value else { return Err(no_list()) };
        let list = match rest.remove("clientCommandList") {
            Some(Value::Array(list)) => list,
            None | Some(Value::Null) => Vec::new(),
            Some(_) => return Err(no_list()),
        };
        let extra = match rest.remove(extra::KEY) {
            Some(Value::Array(extra)) => extra,
            _ => Vec::new(),
        };
        Ok(Self { list, extra, rest })
    }

    fn written(self) -> String {
        let mut whole = self.rest;
        whole.insert("clientCommandList".to_owned(), Value::Array(self.list));
        if !self.extra.is_empty() {
            whole.insert(extra::KEY.to_owned(), Value::Array(self.extra));
        }
        Value::Object(whole).to_string()
    }
}

/// What is put into a command text for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Use these groups, each as `group` or `group:weight`.
    Groups(Vec<String>),
    /// Answer every call at once with an error.
    Degrade,
}

impl Order {
    /// The kind of its command.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Groups(_) => Kind::Traffic,
            Self::Degrade => Kind::Degrade,
        }
    }
}

/// Key of an entry under which it says for how long it holds; other clients skip it.
const TERM: &str = "term";

/// For how long an order holds, and who undoes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Who gave it, and undoes it.
    pub by: String,
    /// Milliseconds since 1970 at which it is undone.
    pub until_ms: u64,
}

/// An order that holds for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// The service.
    pub service: String,
    /// What kind of order.
    pub kind: Kind,
    /// Tells it from others for the same service.
    pub remark: String,
    /// For how long.
    pub term: Term,
    /// What takes its place then.
    pub former: Vec<Value>,
}

/// Orders in `text` that hold for a time; none in a text that is ill.
pub fn timed(text: Option<&str>) -> Vec<Timed> {
    let one = |entry: &Value| {
        let (kind, term) = (Kind::of(&entry["commandType"]).ok()?, &entry[TERM]);
        let read = |value: &Value| value.as_str().map(str::to_owned);
        Some(Timed {
            service: read(&entry["pattern"])?,
            kind,
            remark: read(&entry["remark"])?,
            term: Term { by: read(&term["by"])?, until_ms: term["until"].as_u64()? },
            former: term["former"].as_array()?.clone(),
        })
    };
    Text::read(text).map(|whole| whole.list.iter().filter_map(one).collect()).unwrap_or_default()
}

/// `text` with `order` for `service` in it, so that it is the one that holds, and the commands of the same kind
/// for exactly this service that it replaces; `remark` is for people. With `term`, the order says for how long it
/// holds and what it replaced, which is what stood there before all orders for a time.
///
/// # Errors
/// `text` is no list of commands, or another command would go first.
pub fn with_order(
    text: Option<&str>,
    service: &str,
    order: &Order,
    remark: &str,
    term: Option<&Term>,
) -> Result<(String, Vec<Value>), String> {
    let kind = order.kind();
    let mut whole = Text::read(text)?;
    let (former, mut list): (Vec<_>, Vec<_>) =
        std::mem::take(&mut whole.list).into_iter().partition(|entry| is_for(entry, service, kind));
    // The lowest index wins, and one that is missing is lower than any.
    let mut index = 1;
    for entry in list.iter().filter(|entry| kind == Kind::Traffic && matches(entry, service)) {
        match traffic_index(entry) {
            Some(other) => index = index.min(other - 1),
            None => {
                let pattern = entry["pattern"].as_str().unwrap_or_default();
                return Err(format!("the command of `{pattern}` has no index, so it goes first; give it one"));
            }
        }
    }
    let groups = match order {
        Order::Groups(groups) => groups.clone(),
        Order::Degrade => Vec::new(),
    };
    let lasting = |entry: Value| match &entry[TERM]["former"] {
        Value::Array(before) => before.clone(),
        _ => vec![entry],
    };
    let former: Vec<_> = former.into_iter().flat_map(lasting).collect();
    let mut entry = json!({
        "index": index,
        "version": "1.0",
        "dc": "",
        "commandType": kind.number(),
        "pattern": service,
        "mergeGroups": groups,
        "routeRules": [],
        "remark": remark,
    });
    if let Some(Term { by, until_ms }) = term {
        entry[TERM] = json!({"by": by, "until": until_ms, "former": former});
    }
    list.push(entry);
    whole.list = list;
    Ok((whole.written(), former))
}

/// `text` without the commands of this kind that name exactly `service`; `None` when there were none. With
/// `remark`, only those that carry it. `instead` takes their place.
///
/// # Errors
/// `text` is no list of commands.
pub fn without_order(
    text: Option<&str>,
    service: &str,
    kind: Kind,
    remark: Option<&str>,
    instead: &[Value],
) -> Result<Option<String>, String> {
    let mut whole = Text::read(text)?;
    let before = whole.list.len();
    whole.list.retain(|entry| !is_for(entry, service, kind) || remark.is_some_and(|r| entry["remark"] != r));
    if whole.list.len() == before {
        return Ok(None);
    }
    whole.list.extend_from_slice(instead);
    Ok(Some(whole.written()))
}

fn is_for(entry: &Value, service: &str, kind: Kind) -> bool {
    entry[OWNED].is_null() && entry["pattern"] == service && Kind::of(&entry["commandType"]) == Ok(kind)
}

fn matches(entry: &Value, service: &str) -> bool {
    let pattern = entry["pattern"].as_str().unwrap_or_default();
    Kind::of(&entry["commandType"]) == Ok(Kind::Traffic) && Pattern::parse(pattern).is_ok_and(|p| p.matches(service))
}

#[cfg(test)]
mod tests {
    use super::{super::Commands, *};

    fn groups(text: &str) -> String {
        let commands = Commands::parse(text).unwrap();
        let found = commands.traffic("s.Echo").map(|c| c.groups.iter().map(ToString::to_string).collect::<Vec<_>>());
        found.unwrap_or_default().join(" ")
    }

    #[test]
    fn an_order_goes_first_and_leaves_the_others_alone() {
        let order = Order::Groups(vec!["a:80".into(), "b:20".into()]);
        let (text, former) = with_order(None, "s.Echo", &order, "me", None).unwrap();
        assert_eq!((groups(&text).as_str(), former.len()), ("a:80 b:20", 0));
        let other = r#"{"clientCommandList":[{"index":1,"pattern":"s.*","mergeGroups":["c"],"more":7}]}"#;
        let (text, _) = with_order(Some(other), "s.Echo", &order, "me", None).unwrap();
        assert_eq!(groups(&text), "a:80 b:20");
        assert!(text.contains(r#""more":7"#), "{text}");
        // Again: replaced, not added.
        let (again, former) = with_order(Some(&text), "s.Echo", &Order::Groups(vec!["d".into()]), "me2", None).unwrap();
        assert_eq!((groups(&again).as_str(), again.matches("s.Echo").count(), former.len()), ("d", 1, 1));
        let without = |text: &str, kind, remark, instead: &[Value]| {
            without_order(Some(text), "s.Echo", kind, remark, instead).unwrap()
        };
        let gone = without(&again, Kind::Traffic, None, &[]).unwrap();
        assert_eq!(groups(&gone), "c");
        assert_eq!(without(&gone, Kind::Traffic, None, &former), None);
        assert_eq!(without(&again, Kind::Traffic, Some("you"), &former), None);
        assert_eq!(groups(&without(&again, Kind::Traffic, Some("me2"), &former).unwrap()), "a:80 b:20");
        let (only, _) = with_order(None, "s.Echo", &Order::Degrade, "me", None).unwrap();
        assert!(Commands::parse(&only).unwrap().degrade("s.Echo").is_some());
        let none = without(&only, Kind::Degrade, Some("me"), &[]).unwrap();
        assert_eq!(none, r#"{"clientCommandList":[]}"#, "the form that every client reads as none");
    }

    #[test]
    fn entries_of_an_owner_stand_above_the_others_and_go_alone() {
        let theirs = r#"{"clientCommandList":[{"index":1,"pattern":"s.*","mergeGroups":["c"]}],"more":7}"#;
        let to = |group: &str| Entries {
            commands: vec![json!({"commandType": 0, "pattern": "s.Echo", "exact": true, "mergeGroups": [group]})],
            extra: vec![json!({"kind": "drain", "service": "s.Echo", "instance": "1.1.1.1:1"})],
        };
        let one = put_entries(Some(theirs), "x-1", &to("a")).unwrap();
        let two = put_entries(Some(&one), "x-2", &to("b")).unwrap();
        assert_eq!(groups(&two), "b");
        let commands = Commands::parse(&two).unwrap();
        assert!(commands.left_out.is_empty() && commands.traffic("s.Echo2").unwrap().groups[0].group == "c");
        assert_eq!(commands.drained("s.Echo").count(), 2);
        let without = |owner: &'static str| foreign(Some(&two), move |o| o == owner).unwrap();
        assert_eq!((groups(&without("x-1")).as_str(), groups(&without("x-2")).as_str()), ("b", "a"));
        let none = foreign(Some(&two), |o| o.starts_with("x-")).unwrap();
        let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(parsed(&none), parsed(theirs));
        // Orders by name leave them alone and go first while they stand.
        let (order, former) = with_order(Some(&two), "s.Echo", &Order::Groups(vec!["d".into()]), "me", None).unwrap();
        assert_eq!((groups(&order).as_str(), former.len()), ("d", 0));
        assert_eq!(groups(&without_order(Some(&order), "s.Echo", Kind::Traffic, None, &[]).unwrap().unwrap()), "b");
        let first = r#"{"clientCommandList":[{"pattern":"s.*","mergeGroups":["c"]}]}"#;
        assert!(put_entries(Some(first), "x-1", &to("a")).unwrap_err().contains("has no index"));
        let other = r#"{"clientCommandList":[{"pattern":"t.*","mergeGroups":["c"]}]}"#;
        assert!(put_entries(Some(other), "x-1", &to("a")).is_ok());
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        let order = Order::Groups(vec!["a".into()]);
        let told = |text: &str| with_order(Some(text), "s.Echo", &order, "", None).unwrap_err();
        assert!(told("nonsense").contains("not JSON"));
        assert!(told("[]").contains("no list"));
        assert!(told(r#"{"clientCommandList":[{"pattern":"*"}]}"#).contains("has no index"));
        assert_eq!(groups(&with_order(Some("{}"), "s.Echo", &order, "", None).unwrap().0), "a");
        assert_eq!(groups(&with_order(Some(" "), "s.Echo", &order, "", None).unwrap().0), "a");
    }

    #[test]
    fn an_order_for_a_time_says_until_when_and_what_comes_back() {
        let lasting = Order::Groups(vec!["a".into()]);
        let (first, _) = with_order(None, "s.Echo", &lasting, "lasting", None).unwrap();
        let term = |until_ms| Term { by: "host/mesh".into(), until_ms };
        let next = |text: &str, group: &str, until| {
            let order = Order::Groups(vec![group.to_owned()]);
            with_order(Some(text), "s.Echo", &order, group, Some(&term(until))).unwrap()
        };
        let (second, _) = next(&first, "b", 10);
        // One after the other: what comes back is what stood there before both.
        let (third, former) = next(&second, "c", 20);
        let all = timed(Some(&third));
        assert_eq!(all.len(), 1);
        let one = &all[0];
        assert_eq!((one.service.as_str(), one.kind, one.remark.as_str()), ("s.Echo", Kind::Traffic, "c"));
        assert_eq!((&one.term, &one.former), (&term(20), &former));
        assert_eq!(former.len(), 1);
        let back = without_order(Some(&third), "s.Echo", Kind::Traffic, Some("c"), &one.former).unwrap().unwrap();
        assert_eq!(back, first);
        // It is a command as any other for who reads commands.
        assert_eq!(Commands::parse(&third).unwrap().all().len(), 1);
        assert!(Commands::parse(&third).unwrap().left_out.is_empty());
        for none in [None, Some("nonsense"), Some(first.as_str()), Some("")] {
            assert_eq!(timed(none), [], "{none:?}");
        }
    }
}
