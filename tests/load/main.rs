//! The load of `cargo xtask bench`: small servers and callers, each one thread around epoll that never blocks,
//! so that they cost little beside what is measured and redirect may carry their bytes.
//!
//! `load serve IP` serves all loads on the ports of [`Load`] until it is killed.
//! `load call LOAD ADDRESS CALLERS WARM_MS MEASURED_MS` calls and prints one line of figures; `motan32-shared` has
//! the callers share three connections, as those of a Motan client do.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of the command line")]

mod call;
mod histogram;
mod serve;
mod shared;
mod wire;

use std::{error::Error, process::ExitCode, time::Duration};

use wire::Load;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", ip] => Ok(serve::run(ip.parse()?)?),
        ["call", load, to, callers, warm, measured] => {
            let (name, shared) = load.strip_suffix("-shared").map_or((load, false), |name| (name, true));
            let load = Load::named(name).ok_or("unknown load: expected echo, churn, bulk, http, motan2 or motan32")?;
            if shared && !load.is_shared() {
                return Err("a connection of this load carries one question at a time".into());
            }
            let order = call::Order {
                load,
                to: to.parse()?,
                callers: callers.parse()?,
                warm: Duration::from_millis(warm.parse()?),
                measured: Duration::from_millis(measured.parse()?),
            };
            println!("{}", if shared { shared::run(&order)? } else { call::run(&order)? });
            Ok(())
        }
        _ => Err("expected: serve IP, or call LOAD ADDRESS CALLERS WARM_MS MEASURED_MS".into()),
    }
}
