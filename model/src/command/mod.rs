//! Commands that operators write into a registry: what they mean, without any I/O.
//!
//! One text governs a group of services, another one an application's agents. Texts are read as Motan Java and
//! motan-go do; where the two differ, both forms are taken.

mod edit;
mod extra;
mod pattern;
mod route;

use std::fmt;

use serde_json::Value;

use self::extra::Extra;
pub use self::{
    edit::{Entries, OWNED, Order, Term, Timed, foreign, over, owned, put_entries, timed, with_order, without_order},
    extra::{Canary, Drain},
    pattern::Pattern,
    route::RouteRule,
};

/// Largest text that is read.
const MAX_BYTES: usize = 16 << 20;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Chooses groups and endpoints.
    Traffic,
    /// Answers every call at once with an error.
    Degrade,
    /// Turns switchers.
    Switch,
}

impl Kind {
    /// Its number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Traffic => 0,
            Self::Degrade => 1,
            Self::Switch => 2,
        }
    }

    fn of(value: &Value) -> Result<Self, String> {
        match integer(value) {
            Ok(None | Some(0)) => Ok(Self::Traffic),
            Ok(Some(1)) => Ok(Self::Degrade),
            Ok(Some(2)) => Ok(Self::Switch),
            _ => Err(format!("`commandType` is {value}; there are 0, 1 and 2")),
        }
    }
}

/// A group and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupShare {
    /// Name of the group.
    pub group: String,
    /// 1 to 100; `None` when it names none.
    pub weight: Option<u32>,
}

impl GroupShare {
    /// Reads `group` or `group:weight`: weights are kept within 1 to 100, and what is no number counts as 1.
    /// `None` when no group is named.
    pub fn parse(text: &str) -> Option<Self> {
        let (group, weight) = match text.split_once(':') {
            Some((group, weight)) => (group, Some(weight.trim().parse::<i64>().unwrap_or(1).clamp(1, 100) as u32)),
            None => (text, None),
        };
        let group = group.trim();
        (!group.is_empty()).then(|| Self { group: group.to_owned(), weight })
    }
}

impl fmt::Display for GroupShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.group)?;
        self.weight.map_or(Ok(()), |weight| write!(f, ":{weight}"))
    }
}

/// Groups that are named, each once; the last mention counts.
pub fn group_shares<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<GroupShare> {
    let mut shares: Vec<GroupShare> = Vec::new();
    for share in names.into_iter().filter_map(GroupShare::parse) {
        match shares.iter_mut().find(|s| s.group == share.group) {
            Some(before) => *before = share,
            None => shares.push(share),
        }
    }
    shares
}

/// Whether calls are dealt to the groups by weight, rather than to all of their endpoints alike: one weight is
/// enough, groups without count as 1 then.
pub fn is_weighted(groups: &[GroupShare]) -> bool {
    groups.iter().any(|g| g.weight.is_some())
}

/// One command.
#[derive(Clone, Debug)]
pub struct Command {
    /// Its place: the lowest that matches wins; `None` is lower than any.
    pub index: Option<i64>,
    /// What it does.
    pub kind: Kind,
    /// Which services it is about; `None` for [`Kind::Switch`].
    pub pattern: Option<Pattern>,
    /// The pattern is the name of a service and means no other. Clients of Motan do not know this, and take it for
    /// the beginning of a name, too.
    pub exact: bool,
    /// Groups to use instead of the own one; the own one when empty.
    pub groups: Vec<GroupShare>,
    /// Rules by address, in order.
    pub routes: Vec<RouteRule>,
    /// Switchers and how they shall stand.
    pub switchers: Vec<(String, bool)>,
    /// For people.
    pub remark: String,
}

impl Command {
    fn concerns(&self, service: &str) -> bool {
        self.pattern.as_ref().is_some_and(|p| if self.exact { p.text() == service } else { p.matches(service) })
    }
}

/// The commands of one text, in the order in which they are tried.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    list: Vec<Command>,
    canaries: Vec<Canary>,
    drains: Vec<Drain>,
    /// What was left out and why, for operators: commands with an ill pattern or kind, ill rules of others.
    pub left_out: Vec<String>,
}

impl Commands {
    /// Reads a text; an empty one holds no commands.
    ///
    /// # Errors
    /// The text as a whole is not what a list of commands looks like, and nothing of it counts. Says why and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        if text.len() > MAX_BYTES {
            return Err(format!("{} bytes are too many", text.len()));
        }
        let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        let Value::Object(object) = &value else { return Err("not an object with `clientCommandList`".to_owned()) };
        let entries = match object.get("clientCommandList") {
            None | Some(Value::Null) => &[][..],
            Some(Value::Array(entries)) => entries,
            Some(_) => return Err("`clientCommandList` is no list".to_owned()),
        };
        let mut commands = Self::default();
        for (i, entry) in entries.iter().enumerate() {
            let place = format!("clientCommandList[{i}]");
            commands.take(entry, &place).map_err(|why| format!("{place}: {why}"))?;
        }
        for (i, entry) in object.get(extra::KEY).and_then(Value::as_array).into_iter().flatten().enumerate() {
            match Extra::read(entry) {
                Ok(Extra::Canary(canary)) => commands.canaries.push(canary),
                Ok(Extra::Drain(drain)) => commands.drains.push(drain),
                Err(why) => commands.left_out.push(format!("{}[{i}]: {why}", extra::KEY)),
            }
        }
        // Stable: of equals the first in the text.
        commands.list.sort_by_key(|c| c.index);
        Ok(commands)
    }

    /// Takes an entry in. An error makes the whole text ill: it is not of the form that anyone writes.
    fn take(&mut self, entry: &Value, place: &str) -> Result<(), String> {
        if !entry.is_object() {
            return Err("no object".to_owned());
        }
        let index = integer(&entry["index"]).map_err(|_| format!("`index` is {}, no number", entry["index"]))?;
        let merge = texts(&entry["mergeGroups"]).ok_or("`mergeGroups` is no list of texts")?;
        let rules = texts(&entry["routeRules"]).ok_or("`routeRules` is no list of texts")?;
        let pattern = text(&entry["pattern"]).ok_or("`pattern` is no text")?;
        let kind = match Kind::of(&entry["commandType"]) {
            Ok(kind) => kind,
            Err(why) => {
                self.left_out.push(format!("{place}: {why}"));
                return Ok(());
            }
        };
        let mut command = Command {
            index,
            kind,
            pattern: None,
            exact: entry["exact"] == true,
            groups: group_shares(merge),
            routes: Vec::new(),
            switchers: Vec::new(),
            remark: text(&entry["remark"]).unwrap_or_default().to_owned(),
        };
        let read = match kind {
            Kind::Switch => switchers(pattern).map(|list| command.switchers = list),
            _ => Pattern::parse(pattern).map(|parsed| command.pattern = Some(parsed)),
        };
        if let Err(why) = read {
            self.left_out.push(format!("{place}: {why}"));
            return Ok(());
        }
        for rule in rules {
            match RouteRule::parse(rule) {
                Ok(rule) => command.routes.push(rule),
                Err(why) => self.left_out.push(format!("{place}.routeRules: {why}")),
            }
        }
        self.list.push(command);
        Ok(())
    }

    /// All commands, in the order in which they are tried.
    pub fn all(&self) -> &[Command] {
        &self.list
    }

    /// The command that says where calls of `service` go: the first that matches.
    pub fn traffic(&self, service: &str) -> Option<&Command> {
        self.list.iter().find(|c| c.kind == Kind::Traffic && c.concerns(service))
    }

    /// A command that has calls of `service` answered at once.
    pub fn degrade(&self, service: &str) -> Option<&Command> {
        self.list.iter().find(|c| c.kind == Kind::Degrade && c.concerns(service))
    }

    /// The version that is tried of `service`: the first in the text.
    pub fn canary(&self, service: &str) -> Option<&Canary> {
        self.canaries.iter().find(|c| c.service == service)
    }

    /// Instances of `service` that get no new calls.
    pub fn drained(&self, service: &str) -> impl Iterator<Item = &str> {
        self.drains.iter().filter(move |d| d.service == service).map(|d| d.instance.as_str())
    }

    /// All versions that are tried.
    pub fn canaries(&self) -> &[Canary] {
        &self.canaries
    }

    /// All instances that get no new calls.
    pub fn drains(&self) -> &[Drain] {
        &self.drains
    }

    /// How switchers shall stand, each name once; the first in the order of the commands counts.
    pub fn switchers(&self) -> Vec<(String, bool)> {
        let mut wanted: Vec<(String, bool)> = Vec::new();
        for (name, value) in self.list.iter().flat_map(|c| &c.switchers) {
            if !wanted.iter().any(|(known, _)| known == name) {
                wanted.push((name.clone(), *value));
            }
        }
        wanted
    }
}

/// Whom a command came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The text of the application's agents.
    Agent,
    /// The text of the service's group.
    Group,
}

/// What holds for one service.
#[derive(Clone, Debug, Default)]
pub struct Decision<'a> {
    /// Where its calls go; by itself when `None`.
    pub traffic: Option<(Source, &'a Command)>,
    /// Why its calls are answered at once.
    pub degrade: Option<(Source, &'a Command)>,
    /// How switchers shall stand.
    pub switchers: Vec<(String, bool)>,
    /// The version that is tried.
    pub canary: Option<(Source, &'a Canary)>,
    /// Instances that get no new calls, of both texts.
    pub drained: Vec<String>,
}

/// Decides for `service`: the application's text goes before the group's, kind by kind.
pub fn decide<'a>(agent: &'a Commands, group: &'a Commands, service: &str) -> Decision<'a> {
    let both = [(Source::Agent, agent), (Source::Group, group)];
    let first = |find: &dyn Fn(&'a Commands) -> Option<&'a Command>| {
        both.iter().find_map(|(source, commands)| Some((*source, find(commands)?)))
    };
    let mut drained: Vec<_> = both.iter().flat_map(|(_, c)| c.drained(service)).map(str::to_owned).collect();
    drained.sort_unstable();
    drained.dedup();
    Decision {
        drained,
        canary: both.iter().find_map(|(source, commands)| Some((*source, commands.canary(service)?))),
        traffic: first(&|commands| commands.traffic(service)),
        degrade: first(&|commands| commands.degrade(service)),
        switchers: both.iter().map(|(_, commands)| commands.switchers()).find(|s| !s.is_empty()).unwrap_or_default(),
    }
}

/// The endpoints that `rules` leave to a caller at `own`, by their hosts; each rule is applied to what the one
/// before left. The rule that would leave nothing is told, and then none of them counts.
pub fn route<'a, 'h, T>(
    rules: &'a [RouteRule],
    own: &str,
    endpoints: Vec<T>,
    host: impl Fn(&T) -> &'h str,
) -> (Vec<T>, Option<&'a RouteRule>) {
    let concerned: Vec<_> = rules.iter().filter(|rule| rule.concerns(own)).collect();
    let stays = |endpoint: &T, rules: &[&RouteRule]| rules.iter().all(|rule| rule.keeps(host(endpoint)));
    for n in 1..=concerned.len() {
        if !endpoints.is_empty() && !endpoints.iter().any(|e| stays(e, &concerned[..n])) {
            return (endpoints, Some(concerned[n - 1]));
        }
    }
    (endpoints.into_iter().filter(|e| stays(e, &concerned)).collect(), None)
}

fn traffic_index(entry: &Value) -> Option<i64> {
    integer(&entry["index"]).ok().flatten()
}

/// A number, also one that is written as a text; `None` when there is none.
fn integer(value: &Value) -> Result<Option<i64>, ()> {
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => number.as_i64().map(Some).ok_or(()),
        Value::String(text) => text.trim().parse().map(Some).map_err(drop),
        _ => Err(()),
    }
}

/// A text, empty when there is none.
fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Null => Some(""),
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(text).collect(),
        _ => None,
    }
}

/// `name:true,other:false`.
fn switchers(pattern: &str) -> Result<Vec<(String, bool)>, String> {
    let parts = pattern.split(',').map(str::trim).filter(|part| !part.is_empty());
    let parts = parts.map(|part| {
        let (name, value) = part.rsplit_once(':').unwrap_or((part, ""));
        let value = match value.trim() {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => true,
            "false" | "0" | "f" | "F" | "FALSE" | "False" => false,
            _ => return Err(format!("`{part}` is no switcher; write `name:true`")),
        };
        Ok((name.trim().to_owned(), value))
    });
    parts.collect()
}

#[cfg(test)]
mod tests;
