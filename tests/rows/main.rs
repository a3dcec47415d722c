//! What programs may do with their sockets, one row at a time, and what they see when they do it.
//!
//! `rows list` names the rows. `rows ROW LISTEN DIAL LISTEN6 DIAL6` performs one: it listens on one address and
//! dials another, which is the same one or leads there through the mesh, so that both ends are here and nothing
//! has to be guessed about the other. It prints a line for each thing that it saw. No line tells a time or
//! depends on one, so two runs can be compared.
//!
//! `rows hold blocking|polling ...` uses a connection for both directions and keeps it open until it is killed, so
//! that others can look at it.
//!
//! This program does not import `splice`: that row is the program `splicer`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of the command line")]

mod end;
mod link;
mod meet;
mod read;
mod said;
mod share;
mod signal;
mod write;

use std::{io, process::ExitCode};

use link::Link;
use said::Said;

/// Performs a row.
type Row = fn(&Link, &mut Said) -> io::Result<()>;

/// Every row, by what it is about.
const ROWS: &[(&str, Row)] = &[
    ("blocking", read::blocking),
    ("nonblocking", read::nonblocking),
    ("both_at_once", read::both_at_once),
    ("epoll_level", read::epoll_level),
    ("epoll_edge", read::epoll_edge),
    ("peek", read::peek),
    ("trunc", read::trunc),
    ("fionread", read::fionread),
    ("waitall", read::waitall),
    ("rcvtimeo", read::rcvtimeo),
    ("rcvlowat", read::rcvlowat),
    ("inq", read::inq),
    ("signal_restart", signal::restart),
    ("signal_plain", signal::plain),
    ("iovecs", write::iovecs),
    ("sendfile", write::sendfile),
    ("zerocopy", write::zerocopy),
    ("urgent", write::urgent),
    ("urgent_inline", write::urgent_inline),
    ("nodelay_cork", write::nodelay_cork),
    ("ulp", write::ulp),
    ("resume", write::resume),
    ("full", write::full),
    ("sndtimeo", write::sndtimeo),
    ("half_close", end::half_close),
    ("shut_read", end::shut_read),
    ("close_unread", end::close_unread),
    ("reset", end::reset),
    ("close_then_read", end::close_then_read),
    ("events", end::life),
    ("so_error", end::so_error),
    ("passed", share::passed),
    ("forked", share::forked),
    ("duped", share::duped),
    ("names", meet::names),
    ("bind_first", meet::bind_first),
    ("v6only", meet::v6only),
    ("mapped", meet::mapped),
    ("refused", meet::refused),
    ("backlog", meet::backlog),
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> io::Result<()> {
    match *args {
        ["list"] => {
            ROWS.iter().for_each(|(name, _)| println!("{name}"));
            Ok(())
        }
        ["hold", drive, ref rest @ ..] => link::hold(drive, rest),
        [share::TAKER] => share::taker(),
        [share::SHARER] => share::sharer(),
        [name, ref rest @ ..] if rest.len() == 4 => {
            let row = ROWS.iter().find(|(known, _)| *known == name);
            let (_, row) = row.ok_or_else(|| said::lost("unknown row: see `rows list`"))?;
            said::perform(*row, rest)
        }
        _ => Err(said::lost("expected: list, or ROW LISTEN DIAL LISTEN6 DIAL6")),
    }
}
