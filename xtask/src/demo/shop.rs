//! The service of the demo that has limits: servers that take so many calls at once and register themselves in the
//! centre, as new instances do that the centre starts, and callers whose rate is turned up while they run.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{process, standin};
use crate::sys;

/// Time that a call takes in its slot.
const WORK: Duration = Duration::from_millis(20);
/// Between two heartbeats, and how long a registration holds without one.
const BEAT: Duration = Duration::from_secs(2);
const TTL_MS: u64 = 6000;
/// After its registration was taken back, a server still answers callers that have not heard of it.
const LAST_CALLS: Duration = Duration::from_millis(1500);
/// A server whose centre is gone for so long belongs to a demo that is over.
const ALONE: Duration = Duration::from_secs(5);
/// Callers at once: enough for the highest rate at times of waiting, too.
const CALLERS: u64 = 48;

/// What a server says of itself.
pub struct Place<'a> {
    /// Its service.
    pub service: &'a str,
    /// Its group.
    pub group: &'a str,
    /// Where it registers.
    pub center: SocketAddr,
}

/// Serves until the process is asked to stop; then takes its registration back first.
pub fn serve(addr: SocketAddr, place: &Place<'_>, slots: usize) -> Result<()> {
    let signals = sys::Signals::catch()?;
    let free = (Mutex::new(slots), Condvar::new());
    let say = || {
        let (count, freed) = &free;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = freed.wait_while(count, |count| *count == 0).unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        drop(count);
        sys::pause(WORK);
        *free.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        freed.notify_one();
        format!("{{\"group\":\"{}\",\"instance\":\"{addr}\"}}\n", place.group)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| match standin::serve(addr, |stream| standin::answer(stream, say)) {
            Ok(()) => {}
            Err(error) => {
                println!("{error:#}");
                std::process::exit(1);
            }
        });
        let (mut known, mut heard) = (false, Instant::now());
        while !signals.wait(if known { BEAT } else { Duration::from_millis(300) }) {
            let told = if known { beat(addr, place) } else { register(addr, place, true) };
            match told {
                Ok(now) => (known, heard) = (now, Instant::now()),
                // Nobody is left to end it.
                Err(_) if heard.elapsed() > ALONE => std::process::exit(0),
                Err(error) => println!("centre {}: {error:#}", place.center),
            }
        }
        if let Err(error) = register(addr, place, false) {
            println!("centre {}: {error:#}", place.center);
        }
        sys::pause(LAST_CALLS);
        std::process::exit(0);
    })
}

fn name(addr: SocketAddr, place: &Place<'_>) -> String {
    format!("demo/{}-{}", place.service, addr.port())
}

/// Registers, or takes the registration back; true when the centre has it.
fn register(addr: SocketAddr, place: &Place<'_>, here: bool) -> Result<bool> {
    let (name, Place { service, group, .. }) = (name(addr, place), place);
    let registration = format!(
        r#"{{"key":{{"service":"{service}","group":"{group}"}},"protocol":"http","application":"{service}","instance":{{"address":"{addr}"}},"available":true}}"#
    );
    let list = if here { registration.as_str() } else { "" };
    let generation = if here { 1 } else { 2 };
    let body = format!(r#"{{"agent":"{name}","ttl_ms":{TTL_MS},"generation":{generation},"registrations":[{list}]}}"#);
    ask(place.center, "PUT", "/v1/agent/registrations", &body)?;
    Ok(here)
}

/// Says that it lives; false when the centre does not know it (any more).
fn beat(addr: SocketAddr, place: &Place<'_>) -> Result<bool> {
    let body = format!(r#"{{"agent":"{}","generation":1}}"#, name(addr, place));
    Ok(ask(place.center, "POST", "/v1/agent/heartbeat", &body)?.contains("\"known\":true"))
}

fn ask(center: SocketAddr, method: &str, path: &str, body: &str) -> Result<String> {
    let answer = process::ask(center, method, path, body)?;
    if !answer.starts_with("HTTP/1.1 200") {
        bail!("{}", answer.lines().next().unwrap_or("no answer"));
    }
    Ok(answer)
}

/// Calls at `rate` times what the file `load` says, which is looked at again and again.
pub fn call(addr: SocketAddr, counts: &Path, rate: f64, load: &Path) -> Result<()> {
    let (good, bad) = (AtomicU64::new(0), AtomicU64::new(0));
    // Nanoseconds from one call of one caller to its next.
    let pause = AtomicU64::new(u64::MAX);
    let count = |well: bool| _ = if well { &good } else { &bad }.fetch_add(1, Relaxed);
    std::thread::scope(|scope| {
        for index in 0..CALLERS {
            let (pause, count) = (&pause, &count);
            scope.spawn(move || caller(addr, index, pause, count));
        }
        loop {
            let load = fs::read_to_string(load).ok().and_then(|text| text.trim().parse::<f64>().ok()).unwrap_or(1.0);
            let each = CALLERS as f64 / (rate * load.clamp(0.01, 100.0));
            pause.store((each * 1e9) as u64, Relaxed);
            // Its folder is gone: so is the demo.
            if fs::write(counts, format!("{} {}\n", good.load(Relaxed), bad.load(Relaxed))).is_err() {
                std::process::exit(1);
            }
            sys::pause(Duration::from_millis(200));
        }
    })
}

/// One caller with its connection: a call, then what is left of the pause.
fn caller(addr: SocketAddr, index: u64, pause: &AtomicU64, count: impl Fn(bool)) {
    let mut kept: Option<BufReader<TcpStream>> = None;
    // Not all at once.
    let mut next = Instant::now() + Duration::from_millis(1000 * index / CALLERS);
    loop {
        let each = pause.load(Relaxed);
        if each == u64::MAX {
            sys::pause(Duration::from_millis(20));
            continue;
        }
        sys::pause(next.saturating_duration_since(Instant::now()));
        // What could not be called while servers were slow is made up for a second at most.
        let since = Instant::now().checked_sub(Duration::from_secs(1)).map_or(next, |since| since.max(next));
        next = since + Duration::from_nanos(each);
        let well = match kept.take().map_or_else(|| process::connect(addr).map(BufReader::new), Ok) {
            Ok(mut connection) => match one(&mut connection, addr) {
                Ok(well) => {
                    kept = Some(connection);
                    well
                }
                Err(error) => {
                    println!("{error}");
                    false
                }
            },
            Err(error) => {
                println!("{error}");
                false
            }
        };
        count(well);
    }
}

fn one(connection: &mut BufReader<TcpStream>, addr: SocketAddr) -> io::Result<bool> {
    connection.get_mut().write_all(format!("GET / HTTP/1.1\r\nHost: {addr}\r\n\r\n").as_bytes())?;
    let (mut status, mut length, mut line) = (String::new(), 0, String::new());
    loop {
        line.clear();
        if connection.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if status.is_empty() {
            status.clone_from(&line);
        } else if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        } else if line.trim_end().is_empty() {
            break;
        }
    }
    io::copy(&mut connection.take(length), &mut io::sink())?;
    Ok(status.starts_with("HTTP/1.1 200"))
}
