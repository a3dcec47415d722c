//! A program that calls without a pause while things happen.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use crate::{http, until};

/// What answers a GET: the name that a [`crate::Backend::named`] says, or what went wrong.
pub fn call(to: SocketAddr) -> String {
    match http::get(to, "/") {
        Ok(answer) if answer.status() == 200 => answer.text(),
        Ok(answer) => answer.status().to_string(),
        Err(e) => e.to_string(),
    }
}

/// The names of those that answer a dozen calls, in order.
pub fn answering(to: SocketAddr) -> Vec<String> {
    let mut names: Vec<_> = (0..12).map(|_| call(to)).collect();
    names.sort();
    names.dedup();
    names
}

/// Calls one after the other for as long as it lives. Names of a single letter are good answers.
pub struct Caller {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Caller {
    /// Starts to call.
    pub fn start(to: SocketAddr) -> Self {
        let (stop, good) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (over, count) = (stop.clone(), good.clone());
        let thread = thread::spawn(move || {
            let mut bad = Vec::new();
            while !over.load(SeqCst) {
                match call(to) {
                    name if name.len() == 1 => drop(count.fetch_add(1, SeqCst)),
                    wrong => bad.push(wrong),
                }
            }
            bad
        });
        Self { stop, good, thread: Some(thread) }
    }

    /// Waits for some more good calls.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.good.load(SeqCst);
        until("calls go on", || self.good.load(SeqCst) > before + 20);
    }

    /// Ends it; none of its calls may have failed.
    #[track_caller]
    pub fn all_good(mut self) {
        self.stop.store(true, SeqCst);
        let bad = self.thread.take().expect("ended once").join().unwrap();
        assert!(bad.is_empty(), "{} calls failed: {:?}", bad.len(), &bad[..bad.len().min(3)]);
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}
