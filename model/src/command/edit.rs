//! Command texts as operators change them: one entry is put in or taken out, whatever else stands there stays.

use serde_json::{Map, Value, json};

use super::{Kind, Pattern, traffic_index};

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

/// `text` with `order` for `service` in it, so that it is the one that holds, and the commands of the same kind
/// for exactly this service that it replaces; `remark` is for people.
///
/// # Errors
/// `text` is no list of commands, or another command would go first.
pub fn with_order(
    text: Option<&str>,
    service: &str,
    order: &Order,
    remark: &str,
) -> Result<(String, Vec<Value>), String> {
    let kind = order.kind();
    let (former, mut list): (Vec<_>, Vec<_>) =
        entries(text)?.into_iter().partition(|entry| is_for(entry, service, kind));
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
    list.push(json!({
        "index": index,
        "version": "1.0",
        "dc": "",
        "commandType": kind.number(),
        "pattern": service,
        "mergeGroups": groups,
        "routeRules": [],
        "remark": remark,
    }));
    Ok((written(list), former))
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
    let mut list = entries(text)?;
    let before = list.len();
    list.retain(|entry| !is_for(entry, service, kind) || remark.is_some_and(|r| entry["remark"] != r));
    if list.len() == before {
        return Ok(None);
    }
    list.extend_from_slice(instead);
    Ok(Some(written(list)))
}

fn entries(text: Option<&str>) -> Result<Vec<Value>, String> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(Vec::new()) };
    let mut value: Value = serde_json::from_str(text).map_err(|e| format!("what is there is not JSON ({e})"))?;
    match value.get_mut("clientCommandList").map(Value::take) {
        Some(Value::Array(list)) => Ok(list),
        None | Some(Value::Null) if value.is_object() => Ok(Vec::new()),
        _ => Err("what is there has no list `clientCommandList`".to_owned()),
    }
}

fn written(list: Vec<Value>) -> String {
    let mut whole = Map::new();
    whole.insert("clientCommandList".to_owned(), Value::Array(list));
    Value::Object(whole).to_string()
}

fn is_for(entry: &Value, service: &str, kind: Kind) -> bool {
    entry["pattern"] == service && Kind::of(&entry["commandType"]) == Ok(kind)
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
        let (text, former) = with_order(None, "s.Echo", &order, "me").unwrap();
        assert_eq!((groups(&text).as_str(), former.len()), ("a:80 b:20", 0));
        let other = r#"{"clientCommandList":[{"index":1,"pattern":"s.*","mergeGroups":["c"],"more":7}]}"#;
        let (text, _) = with_order(Some(other), "s.Echo", &order, "me").unwrap();
        assert_eq!(groups(&text), "a:80 b:20");
        assert!(text.contains(r#""more":7"#), "{text}");
        // Again: replaced, not added.
        let (again, former) = with_order(Some(&text), "s.Echo", &Order::Groups(vec!["d".into()]), "me2").unwrap();
        assert_eq!((groups(&again).as_str(), again.matches("s.Echo").count(), former.len()), ("d", 1, 1));
        let without = |text: &str, kind, remark, instead: &[Value]| {
            without_order(Some(text), "s.Echo", kind, remark, instead).unwrap()
        };
        let gone = without(&again, Kind::Traffic, None, &[]).unwrap();
        assert_eq!(groups(&gone), "c");
        assert_eq!(without(&gone, Kind::Traffic, None, &former), None);
        assert_eq!(without(&again, Kind::Traffic, Some("you"), &former), None);
        assert_eq!(groups(&without(&again, Kind::Traffic, Some("me2"), &former).unwrap()), "a:80 b:20");
        let (only, _) = with_order(None, "s.Echo", &Order::Degrade, "me").unwrap();
        assert!(Commands::parse(&only).unwrap().degrade("s.Echo").is_some());
        let none = without(&only, Kind::Degrade, Some("me"), &[]).unwrap();
        assert_eq!(none, r#"{"clientCommandList":[]}"#, "the form that every client reads as none");
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        let order = Order::Groups(vec!["a".into()]);
        let told = |text: &str| with_order(Some(text), "s.Echo", &order, "").unwrap_err();
        assert!(told("nonsense").contains("not JSON"));
        assert!(told("[]").contains("no list"));
        assert!(told(r#"{"clientCommandList":[{"pattern":"*"}]}"#).contains("has no index"));
        assert_eq!(groups(&with_order(Some("{}"), "s.Echo", &order, "").unwrap().0), "a");
        assert_eq!(groups(&with_order(Some(" "), "s.Echo", &order, "").unwrap().0), "a");
    }
}
