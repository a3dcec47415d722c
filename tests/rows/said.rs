//! What a row saw, in words that two runs share.

use std::{fmt::Display, io};

use rustix::event::PollFlags;

use crate::link::Link;

/// Lines of a row: a name and what was seen.
#[derive(Default)]
pub struct Said(Vec<(String, String)>);

impl Said {
    /// Adds a line.
    pub fn line(&mut self, name: &str, value: impl Display) {
        self.0.push((name.to_owned(), value.to_string()));
    }
}

/// Performs `row` with the addresses of the command line and prints what it saw, also when it broke off.
pub fn perform(row: fn(&Link, &mut Said) -> io::Result<()>, args: &[&str]) -> io::Result<()> {
    let mut said = Said::default();
    let done = row(&Link::parse(args)?, &mut said);
    for (name, value) in &said.0 {
        println!("{name}: {value}");
    }
    done
}

/// Something that no row may meet.
pub fn lost(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

/// The error's name as manuals have it.
pub fn errno(error: &io::Error) -> String {
    let names = [
        (libc::EAGAIN, "EAGAIN"),
        (libc::EINTR, "EINTR"),
        (libc::EPIPE, "EPIPE"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ECONNABORTED, "ECONNABORTED"),
        (libc::ENOTCONN, "ENOTCONN"),
        (libc::EACCES, "EACCES"),
        (libc::EPERM, "EPERM"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOENT, "ENOENT"),
        (libc::EEXIST, "EEXIST"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::ENOPROTOOPT, "ENOPROTOOPT"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
    ];
    let known = names.iter().find(|(number, _)| error.raw_os_error() == Some(*number));
    known.map_or_else(|| error.to_string(), |(_, name)| (*name).to_owned())
}

/// What a call that moves bytes answered.
pub fn count(answer: Result<usize, impl Into<io::Error>>) -> String {
    match answer {
        Ok(0) => "EOF".to_owned(),
        Ok(n) => n.to_string(),
        Err(e) => errno(&e.into()),
    }
}

/// What a call without a result answered.
pub fn done(answer: Result<(), impl Into<io::Error>>) -> String {
    answer.map_or_else(|e| errno(&e.into()), |()| "done".to_owned())
}

/// Events by their names.
pub fn events(flags: PollFlags) -> String {
    let names = [
        (PollFlags::IN, "IN"),
        (PollFlags::PRI, "PRI"),
        (PollFlags::OUT, "OUT"),
        (PollFlags::ERR, "ERR"),
        (PollFlags::HUP, "HUP"),
        (PollFlags::RDHUP, "RDHUP"),
    ];
    let shown: Vec<_> = names.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| *name).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(" ") }
}
