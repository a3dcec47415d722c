//! The row of programs that splice: `splicer LISTEN DIAL LISTEN6 DIAL6`. A program of its own because it imports
//! `splice`, by which such programs are known.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of the command line")]

#[allow(dead_code, reason = "`rows` uses all of it")]
mod link;
#[allow(dead_code, reason = "`rows` uses all of it")]
mod said;

use std::{
    io::{self, Read as _},
    process::ExitCode,
};

use agent::sys::socket;
use rustix::event::PollFlags;

use link::{Drive, LIMIT, Link, wait};
use said::{Said, errno};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["hold", drive, ref rest @ ..] => link::hold(drive, rest),
        _ => said::perform(splice, &args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// From a socket into a pipe, as proxies move bytes.
fn splice(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        link::send_all(from, 5000, 1)?;
        let (mut reader, writer) = io::pipe()?;
        let mut moved = 0;
        let end = loop {
            if moved == 5000 {
                break "all".to_owned();
            }
            wait(to, PollFlags::IN, LIMIT)?;
            match socket::splice(to, &writer, 5000 - moved) {
                Ok(0) => break "EOF".to_owned(),
                Ok(n) => moved += n,
                // Readable, and yet nothing to be had.
                Err(e) => break errno(&e),
            }
        };
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        let intact = if bytes == link::pattern(1, 0, moved) { "intact" } else { "other bytes" };
        said.line(way, format!("{moved}, {end}, {intact}"));
        let rest = link::recv_from(to, moved as u64, 5000, 1);
        said.line(&format!("{way} in all"), rest);
    }
    Ok(())
}
