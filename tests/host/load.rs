//! Callers that call all the time, and what became of their calls.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use crate::{http, wait};

/// Callers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Tally>>,
}

/// What became of the calls.
#[derive(Debug, Default)]
pub struct Tally {
    /// Good calls by what was answered.
    pub good: BTreeMap<String, usize>,
    /// What went wrong with the others.
    pub bad: Vec<String>,
}

impl Tally {
    /// Panics when a call failed or fewer than `least` were made.
    #[track_caller]
    pub fn all_good(&self, least: usize) {
        assert!(
            self.bad.is_empty(),
            "{} calls failed, such as {:?}",
            self.bad.len(),
            &self.bad[..self.bad.len().min(5)]
        );
        let made: usize = self.good.values().sum();
        assert!(made >= least, "only {made} calls were made");
    }
}

impl Load {
    /// Starts `callers` threads; each makes a caller by `make` and uses it over and over.
    pub fn start<C>(callers: usize, make: impl Fn() -> C) -> Self
    where
        C: FnMut() -> Result<String, String> + Send + 'static,
    {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let spawn = |_| {
            let (mut call, stop, done) = (make(), stop.clone(), done.clone());
            thread::spawn(move || {
                let mut tally = Tally::default();
                while !stop.load(SeqCst) {
                    match call() {
                        Ok(answer) => *tally.good.entry(answer).or_default() += 1,
                        Err(error) => tally.bad.push(error),
                    }
                    done.fetch_add(1, SeqCst);
                }
                tally
            })
        };
        let callers = (0..callers).map(spawn).collect();
        Self { stop, done, callers }
    }

    /// Callers of `path` that keep their connection and open another when told that it closes. What fails
    /// before the first answer on a new connection is a failed `connect`, all else a failed `call`.
    pub fn http(callers: usize, to: SocketAddr, path: &'static str) -> Self {
        Self::start(callers, || {
            let mut conn: Option<http::Conn> = None;
            move || {
                let (mut open, kind) = match conn.take() {
                    Some(open) => (open, "call"),
                    // The kernel says yes to a connect before anyone has accepted it.
                    None => (http::Conn::open(to).map_err(|e| format!("connect: {e}"))?, "connect"),
                };
                let answer = open.get(path).map_err(|e| format!("{kind}: {e}"))?;
                if !answer.closes() {
                    conn = Some(open);
                }
                if answer.status() == 200 { Ok(answer.text()) } else { Err(format!("{answer:?}")) }
            }
        })
    }

    /// Waits until this many more calls have ended.
    #[track_caller]
    pub fn more(&self, calls: usize) {
        let goal = self.done.load(SeqCst) + calls;
        wait::until("more calls", || self.done.load(SeqCst) >= goal);
    }

    /// Stops the callers and adds up.
    pub fn stop(self) -> Tally {
        self.stop.store(true, SeqCst);
        let mut sum = Tally::default();
        for caller in self.callers {
            let tally = caller.join().unwrap();
            for (answer, count) in tally.good {
                *sum.good.entry(answer).or_default() += count;
            }
            sum.bad.extend(tally.bad);
        }
        sum
    }
}
