//! Signals with a handler while a thread waits inside `recv`.

use std::{io, sync::mpsc::sync_channel, thread};

use agent::sys::socket::Interrupts;
use rustix::{net::RecvFlags, thread::gettid};

use crate::{
    link::{Drive, Link, asleep, send_all, take, until},
    said::{Said, count, lost},
};

/// The handler is installed with `SA_RESTART`.
pub fn restart(link: &Link, said: &mut Said) -> io::Result<()> {
    interrupted(link, said, true)
}

/// The handler is installed without it.
pub fn plain(link: &Link, said: &mut Said) -> io::Result<()> {
    interrupted(link, said, false)
}

fn interrupted(link: &Link, said: &mut Said, restarts: bool) -> io::Result<()> {
    let pair = link.pair(Drive::Blocking)?;
    for (way, from, to) in pair.ways() {
        let interrupts = Interrupts::install(restarts)?;
        let answers = thread::scope(|scope| {
            let (tell, told) = sync_channel(1);
            let reader = scope.spawn(move || {
                let _ = tell.send(gettid().as_raw_nonzero().get());
                let mut answers = Vec::new();
                // One answer and, if it was an error, the one after it.
                while answers.len() < 2 {
                    let answer = take(to, 1000, RecvFlags::empty());
                    let failed = answer.is_err();
                    answers.push(count(answer.map(|bytes| bytes.len())));
                    if !failed {
                        break;
                    }
                }
                answers
            });
            let tid = told.recv().map_err(io::Error::other)?;
            asleep(tid)?;
            interrupts.send(tid)?;
            until("the handler to run", || Ok(interrupts.heard() == 1))?;
            asleep(tid)?;
            send_all(from, 1000, 1)?;
            reader.join().map_err(|_| lost("the reader panicked"))
        })?;
        said.line(way, answers.join(", "));
    }
    Ok(())
}
