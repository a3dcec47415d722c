//! Who should be enrolled: by the configuration, by an operator's command, for good or on trial.

use std::time::{Duration, Instant, SystemTime};

use crate::config::{Enroll, Who};

/// Where an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `capture.enroll`.
    Config,
    /// `sockmesh enroll`.
    Command,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub enroll: Enroll,
    /// Where from.
    pub source: Source,
    /// Since when.
    pub since: SystemTime,
    /// When it undoes itself unless it is confirmed.
    pub until: Option<Instant>,
    /// An entry of the configuration that was taken back by command: not in force.
    pub released: bool,
}

/// All entries. A value: changed on the side, put in force as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    entries: Vec<Entry>,
}

impl Entry {
    fn is_overdue(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

impl Roster {
    /// The entries of a configuration.
    pub fn of(config: &[Enroll]) -> Self {
        let mut roster = Self::default();
        roster.reload(config);
        roster
    }

    /// All entries: those of the configuration, then those of commands.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Who is to be captured.
    pub fn wanted(&self) -> Vec<Enroll> {
        self.entries.iter().filter(|e| !e.released).map(|e| e.enroll.clone()).collect()
    }

    /// Takes over the entries of a changed configuration; those of commands stay, and what was released stays so.
    pub fn reload(&mut self, config: &[Enroll]) {
        let old = std::mem::take(&mut self.entries);
        let before = |enroll: &Enroll| old.iter().find(|e| e.enroll.who == enroll.who && e.source == Source::Config);
        self.entries.extend(config.iter().map(|enroll| Entry {
            enroll: enroll.clone(),
            source: Source::Config,
            since: before(enroll).map_or_else(SystemTime::now, |e| e.since),
            until: None,
            released: before(enroll).is_some_and(|e| e.released),
        }));
        let more = old.iter().filter(|e| e.source == Source::Command);
        let more: Vec<_> = more.filter(|e| self.find(&e.enroll.who).is_none()).cloned().collect();
        self.entries.extend(more);
    }

    fn find(&mut self, who: &Who) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|e| e.enroll.who == *who)
    }

    /// Enrolls `who`, until it is confirmed if `trial` is given. An error when it is enrolled already.
    pub fn enroll(&mut self, who: &Who, trial: Option<Duration>) -> Result<String, String> {
        let until = trial.map(|time| Instant::now() + time);
        match self.find(who) {
            Some(entry) if entry.released => {
                if trial.is_some() {
                    return Err(format!("`{who}` is enrolled by the configuration: leave out the time to confirm"));
                }
                entry.released = false;
                entry.since = SystemTime::now();
            }
            Some(entry) if entry.until.is_some() && trial.is_none() => entry.until = None,
            Some(entry) if entry.until.is_some() => entry.until = until,
            Some(_) => return Err(format!("`{who}` is enrolled already")),
            None => self.entries.push(Entry {
                enroll: Enroll::of(who.clone()),
                source: Source::Command,
                since: SystemTime::now(),
                until,
                released: false,
            }),
        }
        Ok(match trial {
            Some(time) => format!("enrolled {who}; undone in {time:?} unless `sockmesh enroll --confirm`"),
            None => format!("enrolled {who} until the agent stops"),
        })
    }

    /// Confirms `who`, or all that wait for it.
    pub fn confirm(&mut self, who: Option<&Who>) -> Result<String, String> {
        let waiting = self.entries.iter_mut().filter(|e| e.until.is_some() && who.is_none_or(|w| e.enroll.who == *w));
        let confirmed: Vec<_> = waiting
            .map(|entry| {
                entry.until = None;
                entry.enroll.who.to_string()
            })
            .collect();
        match (confirmed.is_empty(), who) {
            (false, _) => Ok(format!("confirmed {}", confirmed.join(", "))),
            (true, Some(who)) => Err(format!("`{who}` does not wait to be confirmed")),
            (true, None) => Err("nothing waits to be confirmed".to_owned()),
        }
    }

    /// Takes `who` back. An entry of the configuration comes back with the agent's next start.
    pub fn release(&mut self, who: &Who) -> Result<String, String> {
        match self.find(who) {
            Some(entry) if entry.released => Err(format!("`{who}` is released already")),
            Some(entry) if entry.source == Source::Config => {
                entry.released = true;
                Ok(format!("released {who} until the agent starts again (it is in the configuration)"))
            }
            Some(_) => {
                self.entries.retain(|e| e.enroll.who != *who);
                Ok(format!("released {who}"))
            }
            None => {
                let all: Vec<_> = self.entries.iter().map(|e| e.enroll.who.to_string()).collect();
                let all = if all.is_empty() { "nobody".to_owned() } else { all.join(", ") };
                Err(format!("`{who}` is not enrolled; enrolled: {all}"))
            }
        }
    }

    /// Whether [`expire`](Self::expire) would take something back.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.entries.iter().any(|e| e.is_overdue(now))
    }

    /// Takes back what was not confirmed in time, and says who.
    pub fn expire(&mut self, now: Instant) -> Vec<Who> {
        self.entries.extract_if(.., |e| e.is_overdue(now)).map(|e| e.enroll.who).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(text: &str) -> Who {
        Who::parse(text).unwrap()
    }

    fn shown(roster: &Roster) -> Vec<String> {
        roster.wanted().iter().map(|e| e.who.to_string()).collect()
    }

    #[test]
    fn what_is_not_confirmed_in_time_undoes_itself() {
        let mut roster = Roster::of(&[Enroll::cgroup("/a")]);
        roster.enroll(&who("uid:7"), Some(Duration::from_secs(60))).unwrap();
        roster.enroll(&who("uid:8"), Some(Duration::from_secs(60))).unwrap();
        assert_eq!(roster.expire(Instant::now()), []);
        assert_eq!(roster.confirm(Some(&who("uid:8"))).unwrap(), "confirmed uid:8");
        assert_eq!(roster.expire(Instant::now() + Duration::from_secs(61)), [who("uid:7")]);
        assert_eq!(shown(&roster), ["/a", "uid:8"]);
        assert!(roster.confirm(None).is_err());
    }

    #[test]
    fn commands_survive_a_reload_and_the_file_wins_where_both_say_the_same() {
        let mut roster = Roster::of(&[Enroll::cgroup("/a"), Enroll::cgroup("/b")]);
        roster.enroll(&who("/c"), None).unwrap();
        roster.enroll(&who("uid:1"), None).unwrap();
        roster.release(&who("/a")).unwrap();
        assert!(roster.enroll(&who("/b"), None).is_err());
        roster.reload(&[Enroll::cgroup("/a"), Enroll::cgroup("/c")]);
        assert_eq!(shown(&roster), ["/c", "uid:1"]);
        assert_eq!(roster.entries()[1].source, Source::Config);
        roster.enroll(&who("/a"), None).unwrap();
        assert_eq!(shown(&roster), ["/a", "/c", "uid:1"]);
        roster.release(&who("uid:1")).unwrap();
        assert!(roster.release(&who("uid:1")).unwrap_err().contains("/a, /c"));
    }
}
