//! Switchers that commands turn: set while a command wants them so, and put back when it goes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::switcher::Switchers;

/// Who wants what, and how things stood before.
#[derive(Clone, Debug, Default)]
pub(super) struct Board(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    switchers: Switchers,
    seats: u64,
    /// By seat.
    wanted: HashMap<u64, Vec<(String, bool)>>,
    /// How switchers in force stood before.
    former: BTreeMap<String, bool>,
    /// In force.
    turned: BTreeMap<String, bool>,
}

/// One who wants switchers to stand some way. Dropped, it wants nothing.
#[derive(Debug)]
pub(super) struct Seat {
    board: Board,
    number: u64,
}

impl Board {
    pub(super) fn new(switchers: Switchers) -> Self {
        Self(Arc::new(Mutex::new(State { switchers, ..State::default() })))
    }

    pub(super) fn seat(&self) -> Seat {
        let mut state = self.0.lock();
        state.seats += 1;
        Seat { board: self.clone(), number: state.seats }
    }
}

impl Seat {
    /// Wants these switchers so, and no others. Names that nobody registered are left alone, until they are and
    /// it wants them again. Two that want the same name differently: the older seat's word counts.
    pub(super) fn want(&self, wanted: Vec<(String, bool)>) {
        let mut state = self.board.0.lock();
        if wanted.is_empty() {
            state.wanted.remove(&self.number);
        } else {
            state.wanted.insert(self.number, wanted);
        }
        state.settle();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.want(Vec::new());
    }
}

impl State {
    fn settle(&mut self) {
        let mut seats: Vec<_> = self.wanted.keys().copied().collect();
        seats.sort_unstable();
        let mut wanted = BTreeMap::new();
        for (name, value) in seats.iter().flat_map(|seat| &self.wanted[seat]) {
            wanted.entry(name.clone()).or_insert(*value);
        }
        for (name, value) in &wanted {
            // Only what changes: an operator may have turned it since.
            if self.turned.get(name) == Some(value) {
                continue;
            }
            let Some(before) = self.switchers.set(name, *value) else { continue };
            self.former.entry(name.clone()).or_insert(before);
            self.turned.insert(name.clone(), *value);
            tracing::info!(switcher = name, value, "turned by a command");
        }
        let gone: Vec<_> = self.turned.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in gone {
            self.turned.remove(&name);
            if let Some(before) = self.former.remove(&name) {
                self.switchers.set(&name, before);
                tracing::info!(switcher = name, value = before, "put back: its command is gone");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switchers_are_turned_and_put_back() {
        let switchers = Switchers::default();
        switchers.register("a", false);
        switchers.register("b", true);
        let board = Board::new(switchers.clone());
        let (one, two) = (board.seat(), board.seat());
        let on = |name: &str, value| vec![(name.to_owned(), value)];
        one.want(vec![("a".to_owned(), true), ("b".to_owned(), false), ("unknown".to_owned(), true)]);
        two.want(on("a", true));
        assert_eq!(switchers.all(), [("a".to_owned(), true), ("b".to_owned(), false)]);
        // Another cluster of the same group says the same: it is put back when the last of them goes.
        one.want(Vec::new());
        assert_eq!(switchers.all(), [("a".to_owned(), true), ("b".to_owned(), true)]);
        drop(two);
        assert_eq!(switchers.get("a"), Some(false));
        // Turned around while in force: what was before both stays known.
        one.want(on("b", false));
        one.want(on("b", true));
        one.want(Vec::new());
        assert_eq!(switchers.get("b"), Some(true));
    }
}
