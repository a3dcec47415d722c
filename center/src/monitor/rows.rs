//! All rows of figures: of services in groups, of their instances, of those who call them.

use std::collections::{BTreeMap, HashMap};

use model::center::{Of, Report, Sample, Side};

use super::{
    ring::{Keep, Rings, Stretch},
    slot::Slot,
};

/// Services in groups.
const SERVICES: usize = 20_000;
/// Instances and callers of all services, each.
const PARTS: usize = 200_000;
/// Callers of one service; the others run together as [`OTHER`].
const CALLERS: usize = 200;
/// Who calls beyond that.
pub(super) const OTHER: &str = "other";

/// Windows that all rows may have together: some 200 MiB. And of them those that services, and their parts, may have
/// whatever the others want.
const WINDOWS: usize = 1_000_000;
const AT_LEAST: [usize; 2] = [400_000, 600_000];
/// Windows of services and of their parts while there is room: five minutes and sixteen seconds by two seconds, an
/// hour and ten minutes by ten, three hours and one by minutes, each with some windows more for what is asked of now.
const MOST: [Keep; 2] = [[160, 370, 184], [8, 66, 64]];
/// Windows of each when there is none: what `lately` and the next minute of the file need.
const FEWEST: [Keep; 2] = [[16, 12, 4], [8, 7, 3]];
/// Rows that nobody has told of for so long are forgotten.
const IDLE_MS: u64 = 3 * 3_600_000;

/// What one agent may still bring that nobody told of before, so that one alone cannot take all the room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Services in groups.
    pub services: usize,
    /// Instances and callers.
    pub parts: usize,
}

impl Room {
    /// Of an agent that has brought nothing: as many services as one may register, and more endpoints than one has.
    pub(super) const WHOLE: Self = Self { services: 2_000, parts: 20_000 };
}

/// One side of one service.
#[derive(Debug, Default)]
struct Rows {
    total: Option<Rings>,
    instances: HashMap<Box<str>, Rings>,
    callers: HashMap<Box<str>, Rings>,
    /// Applications whose agents tell of this side, and when they last did.
    applications: BTreeMap<Box<str>, u64>,
}

/// Which part of a service a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PartKind {
    Total,
    Instance,
    Caller,
}

/// A row by its names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RowKey {
    pub side: Side,
    pub service: String,
    pub group: String,
    pub kind: PartKind,
    /// The instance or the caller.
    pub part: String,
}

impl From<&RowKey> for Of {
    fn from(key: &RowKey) -> Self {
        let part = |kind| if key.kind == kind { key.part.clone() } else { String::new() };
        Self {
            side: key.side,
            service: key.service.clone(),
            group: key.group.clone(),
            instance: part(PartKind::Instance),
            caller: part(PartKind::Caller),
        }
    }
}

/// All rows.
#[derive(Debug)]
pub(super) struct Table {
    services: HashMap<Box<str>, HashMap<Box<str>, [Rows; 2]>>,
    groups: usize,
    parts: [usize; 2],
    keep: [Keep; 2],
    /// Samples that found no room.
    pub refused: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self { services: HashMap::new(), groups: 0, parts: [0; 2], keep: MOST, refused: 0 }
    }
}

const fn side_index(side: Side) -> usize {
    match side {
        Side::Outbound => 0,
        Side::Inbound => 1,
    }
}

const SIDES: [Side; 2] = [Side::Outbound, Side::Inbound];

/// How a sample is told apart, as bits.
const INSTANCE: usize = 1;
const CALLER: usize = 2;
const METHOD: usize = 4;
const CALLS: usize = CALLER | INSTANCE;
const METHODS_OF_INSTANCES: usize = METHOD | INSTANCE;
const METHODS_OF_CALLERS: usize = METHOD | CALLER;
const EVERYTHING: usize = METHOD | CALLER | INSTANCE;

fn shape(sample: &Sample) -> usize {
    let bit = |name: &str, bit| if name.is_empty() { 0 } else { bit };
    bit(&sample.instance, INSTANCE) | bit(&sample.caller, CALLER) | bit(&sample.method, METHOD)
}

/// Agents tell the same calls in several ways: all together, by instance, by caller, by method. Of the ways in `order`
/// the first that there is.
fn told<'a>(samples: &[&'a Sample], order: [usize; 4]) -> Vec<&'a Sample> {
    let has = |wanted: usize| samples.iter().copied().filter(move |s| shape(s) == wanted);
    order.into_iter().find(|wanted| has(*wanted).next().is_some()).map(|w| has(w).collect()).unwrap_or_default()
}

fn by(samples: Vec<&Sample>, name: fn(&Sample) -> &str) -> BTreeMap<&str, Vec<&Sample>> {
    let mut all: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        all.entry(name(sample)).or_default().push(sample);
    }
    all
}

impl Table {
    /// Counts a report that looked at `from_ms..to_ms`; what is new in it takes of `room`.
    pub(super) fn add(&mut self, report: &Report, from_ms: u64, to_ms: u64, room: &mut Room) {
        let mut grouped: BTreeMap<(&str, &str, Side), Vec<&Sample>> = BTreeMap::new();
        for sample in &report.samples {
            grouped.entry((&sample.service, &sample.group, sample.side)).or_default().push(sample);
        }
        for ((service, group, side), samples) in grouped {
            let before = self.groups;
            if (room.services == 0 && self.sides(service, group).is_none()) || !self.make(service, group) {
                self.refused += samples.len() as u64;
                continue;
            }
            room.services -= self.groups - before;
            let keep = self.keep;
            let (parts, refused) = (&mut self.parts, &mut self.refused);
            let rows = self.services.get_mut(service).and_then(|groups| groups.get_mut(group));
            let rows = &mut rows.expect("it was made")[side_index(side)];

            let total = match told(&samples, [0, CALLER, INSTANCE, METHOD]) {
                none if none.is_empty() => {
                    told(&samples, [CALLS, METHODS_OF_CALLERS, METHODS_OF_INSTANCES, EVERYTHING])
                }
                some => some,
            };
            rows.total.get_or_insert_with(|| Rings::new(from_ms)).add(&total, from_ms, to_ms, &keep[0]);

            let instances = by(told(&samples, [INSTANCE, CALLS, METHODS_OF_INSTANCES, EVERYTHING]), |s| &s.instance);
            for (instance, samples) in instances {
                if !rows.instances.contains_key(instance) {
                    if parts[0] >= PARTS || room.parts == 0 {
                        *refused += 1;
                        continue;
                    }
                    parts[0] += 1;
                    room.parts -= 1;
                    rows.instances.insert(instance.into(), Rings::new(from_ms));
                }
                let row = rows.instances.get_mut(instance).expect("it is there");
                row.add(&samples, from_ms, to_ms, &keep[1]);
            }

            let mut callers = by(told(&samples, [CALLER, CALLS, METHODS_OF_CALLERS, EVERYTHING]), |s| &s.caller);
            let application = report.status.application.as_str();
            if callers.is_empty() && side == Side::Outbound && !application.is_empty() {
                // Its own programs are who calls through an agent.
                callers.insert(application, total);
            }
            for (caller, samples) in callers {
                let mut name = caller;
                if !rows.callers.contains_key(name) {
                    if rows.callers.len() >= CALLERS || parts[1] >= PARTS || room.parts == 0 {
                        name = OTHER;
                    }
                    if !rows.callers.contains_key(name) {
                        parts[1] += 1;
                        room.parts = room.parts.saturating_sub(1);
                        rows.callers.insert(name.into(), Rings::new(from_ms));
                    }
                }
                let row = rows.callers.get_mut(name).expect("it is there");
                row.add(&samples, from_ms, to_ms, &keep[1]);
            }
            let fits = rows.applications.len() < CALLERS || rows.applications.contains_key(application);
            if !application.is_empty() && fits {
                rows.applications.insert(application.into(), to_ms);
            }
        }
    }

    fn make(&mut self, service: &str, group: &str) -> bool {
        if self.services.get(service).is_some_and(|groups| groups.contains_key(group)) {
            return true;
        }
        if self.groups >= SERVICES {
            return false;
        }
        self.groups += 1;
        self.services.entry(service.into()).or_default().insert(group.into(), Default::default());
        true
    }

    /// Puts a minute back that was kept in a file.
    pub(super) fn restore(&mut self, key: &RowKey, minute: &Slot) {
        if !self.make(&key.service, &key.group) {
            return;
        }
        let keep = self.keep;
        let groups = self.services.get_mut(key.service.as_str());
        let rows = groups.and_then(|groups| groups.get_mut(key.group.as_str())).expect("it was made");
        let rows = &mut rows[side_index(key.side)];
        let (parts, map) = match key.kind {
            PartKind::Total => {
                let row = rows.total.get_or_insert_with(|| Rings::new(u64::MAX));
                row.restore(minute, &keep[0]);
                return;
            }
            PartKind::Instance => (&mut self.parts[0], &mut rows.instances),
            PartKind::Caller => (&mut self.parts[1], &mut rows.callers),
        };
        if !map.contains_key(key.part.as_str()) {
            if *parts >= PARTS {
                return;
            }
            *parts += 1;
            map.insert(key.part.as_str().into(), Rings::new(u64::MAX));
        }
        map.get_mut(key.part.as_str()).expect("it is there").restore(minute, &keep[1]);
    }

    /// Forgets what nobody tells of any more, and makes windows fit into memory. Called now and then.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        let old = |row: &Rings| row.last_ms + IDLE_MS < now_ms && row.len() == 0;
        let keep = self.keep;
        for groups in self.services.values_mut() {
            for sides in groups.values_mut() {
                for rows in sides {
                    if let Some(total) = &mut rows.total {
                        total.trim(now_ms, &keep[0]);
                    }
                    rows.total.take_if(|row| old(row));
                    for (map, parts) in [(&mut rows.instances, 0), (&mut rows.callers, 1)] {
                        let before = map.len();
                        map.retain(|_, row| {
                            row.trim(now_ms, &keep[1]);
                            !old(row)
                        });
                        self.parts[parts] -= before - map.len();
                    }
                    rows.applications.retain(|_, at| *at + 600_000 > now_ms);
                }
            }
            let before = groups.len();
            groups.retain(|_, sides| sides.iter().any(|r| r.total.is_some() || !r.instances.is_empty()));
            self.groups -= before - groups.len();
        }
        self.services.retain(|_, groups| !groups.is_empty());
        self.fit();
    }

    /// How many windows rows may have, by how many rows there are.
    fn fit(&mut self) {
        let rows = [2 * self.groups, self.parts[0] + self.parts[1]];
        let wanted: [usize; 2] = std::array::from_fn(|class| rows[class] * MOST[class].iter().sum::<usize>());
        for (class, keep) in self.keep.iter_mut().enumerate() {
            // Many instances leave services, which everyone looks at, their past.
            let may = WINDOWS.saturating_sub(wanted[1 - class]).max(AT_LEAST[class]);
            let fits = |most: usize| if wanted[class] <= may { most } else { most * may / wanted[class] };
            *keep = std::array::from_fn(|level| fits(MOST[class][level]).max(FEWEST[class][level]));
        }
    }

    /// How many windows a row of this kind may have.
    pub(super) fn keep(&self, of: &Of) -> &Keep {
        if of.instance.is_empty() && of.caller.is_empty() { &self.keep[0] } else { self.keep_of_parts() }
    }

    /// How many windows the row of an instance or a caller may have.
    pub(super) fn keep_of_parts(&self) -> &Keep {
        &self.keep[1]
    }

    /// Calls `f` with every row that `of` means, of its side.
    fn each<'a>(&'a self, of: &'a Of, f: &mut dyn FnMut(&'a Rings)) {
        let mut of_group = |sides: &'a [Rows; 2]| {
            let rows = &sides[side_index(of.side)];
            let row = match (of.instance.as_str(), of.caller.as_str()) {
                ("", "") => rows.total.as_ref(),
                (instance, "") => rows.instances.get(instance),
                ("", caller) => rows.callers.get(caller),
                // Calls of one caller to one instance are not kept.
                _ => None,
            };
            if let Some(row) = row {
                f(row);
            }
        };
        let mut of_service = |groups: &'a HashMap<Box<str>, [Rows; 2]>| match of.group.as_str() {
            "" => groups.values().for_each(&mut of_group),
            group => groups.get(group).into_iter().for_each(&mut of_group),
        };
        match of.service.as_str() {
            "" => self.services.values().for_each(&mut of_service),
            service => self.services.get(service).into_iter().for_each(&mut of_service),
        }
    }

    /// All rows that `of` means.
    pub(super) fn rows<'a>(&'a self, of: &'a Of) -> Vec<&'a Rings> {
        let mut all = Vec::new();
        self.each(of, &mut |row| all.push(row));
        all
    }

    /// The last ten seconds of all rows that `of` means, of exactly its side; none when nobody tells of them.
    pub(super) fn lately(&self, of: &Of, now_ms: u64) -> Option<Stretch> {
        let mut all: Option<Stretch> = None;
        self.each(of, &mut |row| {
            if let Some(stretch) = row.lately(now_ms, self.keep(of)) {
                all.get_or_insert_default().join(&stretch);
            }
        });
        all
    }

    /// Services with their groups, sorted.
    pub(super) fn services(&self) -> Vec<(&str, &str)> {
        let mut all: Vec<_> =
            self.services.iter().flat_map(|(s, groups)| groups.keys().map(move |g| (&**s, &**g))).collect();
        all.sort_unstable();
        all
    }

    fn sides(&self, service: &str, group: &str) -> Option<&[Rows; 2]> {
        self.services.get(service)?.get(group)
    }

    /// Instances of a service with the row of the side that knows best how they are: their own agent's, else their
    /// callers'.
    pub(super) fn instances(&self, service: &str, group: &str) -> BTreeMap<&str, &Rings> {
        let Some(sides) = self.sides(service, group) else { return BTreeMap::new() };
        // The later ones replace the earlier.
        let all = SIDES.iter().flat_map(|side| &sides[side_index(*side)].instances);
        all.map(|(name, row)| (&**name, row)).collect()
    }

    /// Who calls a service, on the side that knows.
    pub(super) fn callers(&self, service: &str, group: &str, side: Side) -> Vec<(&str, &Rings)> {
        let Some(sides) = self.sides(service, group) else { return Vec::new() };
        sides[side_index(side)].callers.iter().map(|(name, row)| (&**name, row)).collect()
    }

    /// Applications whose agents serve a service.
    pub(super) fn providers(&self, service: &str, group: &str) -> Vec<&str> {
        let Some(sides) = self.sides(service, group) else { return Vec::new() };
        sides[side_index(Side::Inbound)].applications.keys().map(|name| &**name).collect()
    }

    /// Rows that have this minute, at most `most`: totals before callers, callers before instances, and of each those
    /// with the most calls. And how many are left out.
    pub(super) fn minute<'a>(&'a self, index: u64, most: usize) -> (Vec<(RowKey, Slot)>, usize) {
        let mut all = Vec::new();
        for (service, groups) in &self.services {
            for (group, sides) in groups {
                for side in SIDES {
                    let rows = &sides[side_index(side)];
                    let mut put = |kind: PartKind, part: &'a str, row: &'a Rings| {
                        if let Some(slot) = row.minute(index) {
                            all.push((side, &**service, &**group, kind, part, slot));
                        }
                    };
                    rows.total.iter().for_each(|row| put(PartKind::Total, "", row));
                    rows.callers.iter().for_each(|(name, row)| put(PartKind::Caller, name, row));
                    rows.instances.iter().for_each(|(name, row)| put(PartKind::Instance, name, row));
                }
            }
        }
        let rank = |kind| match kind {
            PartKind::Total => 0,
            PartKind::Caller => 1,
            PartKind::Instance => 2,
        };
        let left_out = all.len().saturating_sub(most);
        if left_out > 0 {
            // Nobody waits while tens of thousands are sorted and cloned.
            all.select_nth_unstable_by_key(most, |(.., kind, _, slot)| (rank(*kind), std::cmp::Reverse(slot.calls)));
            all.truncate(most);
        }
        let owned = |(side, service, group, kind, part, slot): (_, &str, &str, _, &str, &Slot)| {
            let (service, group, part) = (service.to_owned(), group.to_owned(), part.to_owned());
            (RowKey { side, service, group, kind, part }, slot.clone())
        };
        (all.into_iter().map(owned).collect(), left_out)
    }

    /// Rows and windows there are.
    pub(super) fn size(&self) -> (usize, usize) {
        let mut windows = 0;
        let sides = || self.services.values().flat_map(HashMap::values).flatten();
        for rows in sides() {
            let parts = rows.instances.values().chain(rows.callers.values());
            windows += rows.total.iter().chain(parts).map(Rings::len).sum::<usize>();
        }
        let totals = sides().filter(|rows| rows.total.is_some()).count();
        (totals + self.parts[0] + self.parts[1], windows)
    }
}

#[cfg(test)]
mod tests {
    use model::center::AgentStatus;

    use super::*;

    #[test]
    fn applications_that_go_on_telling_stay_though_there_is_no_room_for_more() {
        let mut table = Table::default();
        let tell = |table: &mut Table, n: usize, to_ms: u64| {
            let (service, group) = ("s".to_owned(), "g".to_owned());
            let sample = Sample { side: Side::Inbound, service, group, calls: 1, ..Sample::default() };
            let status = AgentStatus { application: format!("app-{n}"), ..AgentStatus::default() };
            let report = Report { status, samples: vec![sample], ..Report::default() };
            table.add(&report, to_ms - 2000, to_ms, &mut Room { ..Room::WHOLE });
        };
        for at in [10_000, 700_000] {
            (0..=CALLERS).for_each(|n| tell(&mut table, n, at));
        }
        table.sweep(710_000);
        assert_eq!(table.providers("s", "g").len(), CALLERS);
    }

    /// A report of so many services that nobody has, each with an instance.
    fn strange(name: &str, services: usize) -> Report {
        let sample = |n: usize| Sample {
            service: format!("{name}{n}"),
            instance: format!("10.0.0.1:{n}"),
            calls: u64::MAX,
            ..Sample::default()
        };
        Report { samples: (0..services).map(sample).collect(), ..Report::default() }
    }

    #[test]
    fn one_agent_takes_its_part_of_the_room_and_what_is_there_is_told_of_on() {
        let (mut table, mut room) = (Table::default(), Room::WHOLE);
        table.add(&strange("a", 20_000), 0, 2000, &mut room);
        assert_eq!((table.services().len(), table.refused, room.services), (2_000, 18_000, 0));
        table.add(&strange("b", 1), 0, 2000, &mut room);
        table.add(&strange("a", 1), 2000, 4000, &mut room);
        assert_eq!((table.services().len(), table.refused), (2_000, 18_001), "what is known counts on");
        table.add(&strange("b", 1), 2000, 4000, &mut Room { ..Room::WHOLE });
        assert_eq!(table.services().len(), 2_001, "another agent has its own");
        let mut none = Room { parts: 0, ..Room::WHOLE };
        table.add(&strange("c", 1), 2000, 4000, &mut none);
        assert_eq!((table.refused, table.parts[0]), (18_002, 2_001), "a service without its instance");
        // However many agents: never more than there is room for.
        for n in 0..20 {
            table.add(&strange(&format!("z{n}-"), 2_000), 0, 2000, &mut Room { ..Room::WHOLE });
        }
        assert_eq!(table.services().len(), SERVICES);
    }

    #[test]
    fn a_minute_of_too_many_rows_keeps_services_and_the_busiest() {
        let mut table = Table::default();
        let mut report = strange("a", 10);
        for (n, sample) in report.samples.iter_mut().enumerate() {
            sample.calls = n as u64 * 10;
        }
        table.add(&report, 0, 2000, &mut Room { ..Room::WHOLE });
        let (all, left_out) = table.minute(0, 100);
        assert_eq!((all.len(), left_out), (20, 0));
        let (some, left_out) = table.minute(0, 12);
        assert_eq!((some.len(), left_out), (12, 8));
        let kept =
            |kind| some.iter().filter(|(key, _)| key.kind == kind).map(|(_, slot)| slot.calls).collect::<Vec<_>>();
        let mut instances = kept(PartKind::Instance);
        instances.sort_unstable();
        assert_eq!((kept(PartKind::Total).len(), instances), (10, vec![80, 90]));
        assert_eq!(table.minute(0, 0).1, 20);
        assert_eq!(table.minute(7, 5).0, []);
    }

    #[test]
    fn many_instances_leave_services_their_past() {
        let mut table = Table { groups: 2_000, parts: [100_000, 45_000], ..Table::default() };
        table.fit();
        let span = |keep: &Keep, level: usize| Rings::reach(level, keep) / 1000;
        assert!(span(&table.keep[0], 1) >= 300, "five minutes by ten seconds: {:?}", table.keep);
        assert_eq!(table.keep[1], FEWEST[1]);
        (table.groups, table.parts) = (100, [1_000, 100]);
        table.fit();
        assert_eq!(table.keep, MOST);
    }
}
