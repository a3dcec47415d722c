//! What the system says of the host and of this process, under motan-go's names.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{admin::process::Process, metrics::rfc3339};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Host {
    cpu_cores: usize,
    load1: f64,
    load5: f64,
    load15: f64,
    cpu_percent: f64,
    host_name: String,
    platform: String,
    platform_version: String,
    kernel_version: String,
    /// There is no Go here; readers expect the key.
    go_version: &'static str,
    boot_time: String,
    mem_info: Memory,
    net_info: Vec<Link>,
}

#[derive(Serialize)]
struct Memory {
    #[serde(rename = "memTotal(MB)")]
    total: u64,
    #[serde(rename = "memUsed(MB)")]
    used: u64,
    #[serde(rename = "memPercent")]
    percent: f64,
    #[serde(rename = "swapTotal(MB)")]
    swap_total: u64,
    #[serde(rename = "swapUsed(MB)")]
    swap_used: u64,
    #[serde(rename = "swapPercent")]
    swap_percent: f64,
}

#[derive(Serialize)]
struct Link {
    name: String,
    #[serde(rename = "sentRate(B/s)")]
    sent: u64,
    #[serde(rename = "recvRate(B/s)")]
    received: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Own {
    num_threads: u64,
    num_fds: usize,
    cpu_percent: f64,
    memory_percent: f64,
    #[serde(rename = "usedMemory(MB)")]
    used: f64,
    open_files_count: usize,
    create_time: String,
    io: Traffic,
    connections: Counted,
}

#[derive(Serialize)]
struct Traffic {
    #[serde(rename = "readTotal(B)")]
    read: u64,
    #[serde(rename = "readRate(B/s)")]
    read_rate: u64,
    // Spelled as motan-go spells it.
    #[serde(rename = "writsTotal(B)")]
    written: u64,
    #[serde(rename = "writsRate(B/s)")]
    write_rate: u64,
}

#[derive(Default, Serialize)]
struct Counted {
    #[serde(rename = "LISTEN")]
    listen: u32,
    #[serde(rename = "ESTABLISHED")]
    established: u32,
    #[serde(rename = "TIME_WAIT")]
    time_wait: u32,
}

#[derive(Serialize)]
pub(super) struct OpenFile {
    path: String,
    fd: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Connection {
    fd: u32,
    status: &'static str,
    local_addr: String,
    remote_addr: String,
}

/// Seconds since 1970 as text.
pub(super) fn time(seconds: f64) -> String {
    let mut out = String::new();
    rfc3339(&mut out, UNIX_EPOCH + Duration::from_secs_f64(seconds.max(0.0)));
    out
}

/// A small file of the kernel's; empty when it is not there.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number after `name` in lines like `MemTotal:  123 kB`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn one_decimal(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { one_decimal(part as f64 * 100.0 / whole as f64) }
}

/// Busy and total time of all processors, in ticks.
fn processors() -> (u64, u64) {
    let text = read("/proc/stat");
    let ticks: Vec<u64> =
        text.lines().next().unwrap_or_default().split_whitespace().filter_map(|t| t.parse().ok()).collect();
    let total = ticks.iter().take(8).sum();
    // Idle, and waiting for disks.
    (total - ticks.iter().skip(3).take(2).sum::<u64>(), total)
}

/// Bytes received and sent of each link.
fn links() -> HashMap<String, (u64, u64)> {
    let text = read("/proc/self/net/dev");
    let row = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let numbers: Vec<u64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        Some((name.trim().to_owned(), (*numbers.first()?, *numbers.get(8)?)))
    };
    text.lines().filter_map(row).collect()
}

/// This host. Takes a second.
pub(super) async fn host() -> Host {
    let (links_before, cpu_before) = (links(), processors());
    super::debug::second().await;
    let mut net: Vec<_> = links()
        .into_iter()
        .map(|(name, (received, sent))| {
            let (was_received, was_sent) = links_before.get(&name).copied().unwrap_or((received, sent));
            Link { name, sent: sent.saturating_sub(was_sent), received: received.saturating_sub(was_received) }
        })
        .collect();
    net.sort_by(|a, b| a.name.cmp(&b.name));
    net.push(Link {
        name: "all".to_owned(),
        sent: net.iter().map(|l| l.sent).sum(),
        received: net.iter().map(|l| l.received).sum(),
    });
    let (busy, total) = processors();
    let memory = read("/proc/meminfo");
    let kib = |name: &str| field(&memory, name);
    let used = kib("MemTotal").saturating_sub(kib("MemAvailable"));
    let swap_used = kib("SwapTotal").saturating_sub(kib("SwapFree"));
    let load = read("/proc/loadavg");
    let mut load = load.split_whitespace().map(|n| n.parse().unwrap_or(0.0));
    let mut next = || load.next().unwrap_or(0.0);
    let [load1, load5, load15] = [next(), next(), next()];
    let release = read("/etc/os-release");
    let of = |name: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim_matches('"').to_owned()
    };
    let uname = rustix::system::uname();
    let boot = read("/proc/stat");
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0.0);
    Host {
        cpu_cores: std::thread::available_parallelism().map_or(1, usize::from),
        load1,
        load5,
        load15,
        cpu_percent: percent(busy.saturating_sub(cpu_before.0), total.saturating_sub(cpu_before.1)),
        host_name: uname.nodename().to_string_lossy().into_owned(),
        platform: of("ID"),
        platform_version: of("VERSION_ID"),
        kernel_version: uname.release().to_string_lossy().into_owned(),
        go_version: "",
        boot_time: time(boot),
        mem_info: Memory {
            total: kib("MemTotal") >> 10,
            used: used >> 10,
            percent: percent(used, kib("MemTotal")),
            swap_total: kib("SwapTotal") >> 10,
            swap_used: swap_used >> 10,
            swap_percent: percent(swap_used, kib("SwapTotal")),
        },
        net_info: net,
    }
}

/// This process. Takes a second.
pub(super) async fn process(of: &Process, started: Instant) -> Own {
    let traffic = || {
        let text = read("/proc/self/io");
        (field(&text, "read_bytes"), field(&text, "write_bytes"))
    };
    let before = traffic();
    super::debug::second().await;
    let now = traffic();
    let status = read("/proc/self/status");
    let mut counted = Counted::default();
    for connection in connections() {
        match connection.status {
            "LISTEN" => counted.listen += 1,
            "ESTABLISHED" => counted.established += 1,
            "TIME_WAIT" => counted.time_wait += 1,
            _ => {}
        }
    }
    let age = started.elapsed();
    let resident = of.resident_bytes().unwrap_or(0);
    let born = SystemTime::now().checked_sub(age).and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Own {
        num_threads: field(&status, "Threads"),
        num_fds: of.open_descriptors().unwrap_or(0),
        cpu_percent: one_decimal(of.cpu().as_secs_f64() * 100.0 / age.as_secs_f64().max(1.0)),
        memory_percent: percent(resident >> 10, field(&read("/proc/meminfo"), "MemTotal")),
        used: one_decimal(resident as f64 / 1e6),
        open_files_count: open_files().len(),
        create_time: time(born.as_secs_f64()),
        io: Traffic {
            read: now.0,
            read_rate: now.0.saturating_sub(before.0),
            written: now.1,
            write_rate: now.1.saturating_sub(before.1),
        },
        connections: counted,
    }
}

/// What each descriptor of this process is.
fn descriptors() -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let one = |entry: fs::DirEntry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        Some((fd, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
    };
    entries.flatten().filter_map(one).collect()
}

/// Files that are open, with a path.
pub(super) fn open_files() -> Vec<OpenFile> {
    let mut files: Vec<_> = descriptors()
        .into_iter()
        .filter(|(_, path)| path.starts_with('/'))
        .map(|(fd, path)| OpenFile { path, fd })
        .collect();
    files.sort_by_key(|file| file.fd);
    files
}

/// TCP connections of this process in its own network namespace.
pub(super) fn connections() -> Vec<Connection> {
    let inode = |(fd, what): (u32, String)| {
        let inode: u64 = what.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        Some((inode, fd))
    };
    let own: HashMap<u64, u32> = descriptors().into_iter().filter_map(inode).collect();
    let mut all = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let text = read(table);
        all.extend(text.lines().skip(1).filter_map(|line| row(line, &own)));
    }
    all.sort_by_key(|connection| connection.fd);
    all
}

fn row(line: &str, own: &HashMap<u64, u32>) -> Option<Connection> {
    let mut words = line.split_whitespace().skip(1);
    let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
    let fd = *own.get(&words.nth(5)?.parse().ok()?)?;
    let status = match state {
        "01" => "ESTABLISHED",
        "02" => "SYN_SENT",
        "03" => "SYN_RECV",
        "04" => "FIN_WAIT1",
        "05" => "FIN_WAIT2",
        "06" => "TIME_WAIT",
        "07" => "CLOSE",
        "08" => "CLOSE_WAIT",
        "09" => "LAST_ACK",
        "0A" => "LISTEN",
        "0B" => "CLOSING",
        _ => "NONE",
    };
    Some(Connection { fd, status, local_addr: address(local)?.to_string(), remote_addr: address(remote)?.to_string() })
}

/// An address as the kernel's tables have it: words of 32 bits in the host's order, in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_kernels_tables() {
        let shown = |text: &str| address(text).map(|a| a.to_string());
        if cfg!(target_endian = "little") {
            assert_eq!(shown("0100007F:1F90").as_deref(), Some("127.0.0.1:8080"));
            assert_eq!(shown("00000000000000000000000001000000:0016").as_deref(), Some("[::1]:22"));
        }
        for odd in ["", "0100007F", "0100007:1F90", "x:1", "01000:1"] {
            assert_eq!(shown(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_open_is_shown() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let found = connections();
        assert!(found.iter().any(|c| c.status == "LISTEN" && c.local_addr == at), "{}", found.len());
        let file = fs::File::open("/etc/hostname").or_else(|_| fs::File::open("/etc/passwd")).unwrap();
        assert!(open_files().iter().any(|f| f.path.starts_with("/etc/")));
        drop(file);
    }
}
