//! Stand-ins for the demo's programs where Debian's cannot be had: std only, just enough to be called.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Subcommand;

use super::{process, shop};
use crate::sys;

/// Programs that can be stood in for.
#[derive(Subcommand)]
pub enum StandIn {
    /// A web server that says its name
    Web {
        /// Where to listen
        addr: SocketAddr,
        /// What to say
        name: String,
    },
    /// A server of PING, SET, GET and INCR
    Redis {
        /// Where to listen
        addr: SocketAddr,
    },
    /// A caller of a web server
    CallWeb {
        /// Whom to call
        addr: SocketAddr,
        /// Where to write how many calls went well and how many failed
        counts: PathBuf,
        /// Pause between calls, milliseconds
        pause: u64,
    },
    /// A web server of limited capacity that registers itself in the centre
    Shop {
        /// Where to listen
        addr: SocketAddr,
        /// Its service
        #[arg(long)]
        service: String,
        /// Its group
        #[arg(long)]
        group: String,
        /// The centre
        #[arg(long)]
        center: SocketAddr,
        /// Calls served at once, each taking 20 ms
        #[arg(long, default_value_t = 4)]
        slots: usize,
    },
    /// Callers of a web server, at a rate that is written in a file
    CallShop {
        /// Whom to call
        addr: SocketAddr,
        /// Where to write how many calls went well and how many failed
        counts: PathBuf,
        /// Calls a second at load 1
        rate: f64,
        /// The file with the load
        load: PathBuf,
    },
    /// A caller of a server that speaks as redis does
    CallRedis {
        /// Whom to call
        addr: SocketAddr,
        /// Where to write how many calls went well and how many failed
        counts: PathBuf,
        /// Pause between calls, milliseconds
        pause: u64,
    },
}

/// Runs it until the process is stopped.
pub fn run(which: &StandIn) -> Result<()> {
    match which {
        StandIn::Web { addr, name } => serve(*addr, |stream| web(stream, name)),
        StandIn::Redis { addr } => {
            let calls = AtomicU64::new(0);
            serve(*addr, |stream| redis(stream, &calls))
        }
        StandIn::Shop { addr, service, group, center, slots } => {
            shop::serve(*addr, &shop::Place { service, group, center: *center }, *slots)
        }
        StandIn::CallShop { addr, counts, rate, load } => shop::call(*addr, counts, *rate, load),
        StandIn::CallWeb { addr, counts, pause } => {
            call(counts, *pause, || Ok(process::get(*addr, "/idc.json")?.starts_with("HTTP/1.1 200")))
        }
        StandIn::CallRedis { addr, counts, pause } => call(counts, *pause, || {
            let mut stream = process::connect(*addr)?;
            stream.write_all(b"*2\r\n$4\r\nINCR\r\n$5\r\ncalls\r\n")?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer)?;
            Ok(answer.starts_with(':'))
        }),
    }
}

/// A thread per connection: the demo's callers hold a handful.
pub(super) fn serve(addr: SocketAddr, talk: impl Fn(TcpStream) -> io::Result<()> + Sync) -> Result<()> {
    let listener = TcpListener::bind(addr).with_context(|| format!("cannot listen on {addr}"))?;
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let talk = &talk;
            match stream {
                Ok(stream) => _ = scope.spawn(move || talk(stream)),
                // Most likely out of descriptors: without a pause this would be a busy loop.
                Err(_) => sys::pause(Duration::from_millis(100)),
            }
        }
    });
    Ok(())
}

fn web(stream: TcpStream, name: &str) -> io::Result<()> {
    answer(stream, || format!("{{\"idc\":\"{name}\"}}\n"))
}

/// Answers each request of a connection with what `say` returns, which may take its time.
pub(super) fn answer(stream: TcpStream, say: impl Fn() -> String) -> io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    loop {
        let mut close = false;
        let mut lines = 0;
        loop {
            let mut line = String::new();
            if input.read_line(&mut line)? == 0 {
                return Ok(());
            }
            close |= line.trim_end().eq_ignore_ascii_case("connection: close");
            lines += 1;
            if line.trim_end().is_empty() {
                break;
            }
            if lines > 100 {
                return Ok(());
            }
        }
        let body = say();
        let connection = if close { "Connection: close\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{connection}Content-Length: {}\r\n\r\n",
            body.len()
        );
        output.write_all((head + &body).as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

/// Speaks just enough RESP for INCR and PING: arrays of bulk strings in, one line out.
fn redis(stream: TcpStream, calls: &AtomicU64) -> io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?).lines();
    let mut output = stream;
    while let Some(line) = input.next() {
        let line = line?;
        let words = match line.strip_prefix('*').map(str::parse::<usize>) {
            Some(Ok(count)) if count <= 16 => {
                // Each word is a length line and a text line; the demo's words hold no line ends.
                let lines = (0..count * 2).map_while(|_| input.next()).collect::<io::Result<Vec<_>>>()?;
                lines.into_iter().skip(1).step_by(2).collect::<Vec<_>>()
            }
            _ => line.split_whitespace().map(str::to_owned).collect(),
        };
        let answer = match words.first().map(|word| word.to_ascii_uppercase()).as_deref() {
            Some("PING") => "+PONG\r\n".to_owned(),
            Some("SET") => "+OK\r\n".to_owned(),
            Some("INCR") => format!(":{}\r\n", calls.fetch_add(1, Ordering::Relaxed) + 1),
            Some("GET") => {
                let value = calls.load(Ordering::Relaxed).to_string();
                format!("${}\r\n{value}\r\n", value.len())
            }
            _ => "-ERR the stand-in knows PING, SET, GET and INCR\r\n".to_owned(),
        };
        output.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn call(counts: &PathBuf, pause: u64, once: impl Fn() -> io::Result<bool>) -> Result<()> {
    let (mut good, mut bad) = (0u64, 0u64);
    loop {
        match once() {
            Ok(true) => good += 1,
            Ok(false) => {
                println!("an answer that is none");
                bad += 1;
            }
            Err(e) => {
                println!("{e}");
                bad += 1;
            }
        }
        fs::write(counts, format!("{good} {bad}\n"))?;
        sys::pause(Duration::from_millis(pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a talk on a connection and returns its other end.
    fn talk(with: impl FnOnce(TcpStream) -> io::Result<()> + Send + 'static) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = process::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        std::thread::spawn(move || with(server));
        client
    }

    #[test]
    fn the_web_server_keeps_connections_and_closes_when_asked() {
        let mut client = talk(|stream| web(stream, "idc-x"));
        client.write_all(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let answer = io::read_to_string(client).unwrap();
        assert_eq!(answer.matches("{\"idc\":\"idc-x\"}\n").count(), 2);
    }

    #[test]
    fn the_redis_server_takes_both_forms_of_commands() {
        let mut client = talk(|stream| redis(stream, &AtomicU64::new(0)));
        client.write_all(b"*2\r\n$4\r\nINCR\r\n$1\r\nx\r\n*1\r\n$4\r\nPING\r\nget x\r\nFLY\r\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = io::read_to_string(client).unwrap();
        assert!(answer.starts_with(":1\r\n+PONG\r\n$1\r\n1\r\n-ERR"), "{answer}");
    }
}
