//! The programs that write rules: `nft`, or `iptables-restore` with `ip6tables-restore`.

use std::{
    fmt,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use super::rules::{self, Family, PROBE, Rules};
use crate::config;

/// A way to write rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `nft -f`, in a table of our own.
    Nft,
    /// `iptables-restore --noflush`, in the table `nat`; whichever variant the host has (legacy or nf_tables).
    Iptables,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        })
    }
}

impl Backend {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Iptables];

    /// Those that `wanted` allows, best first.
    pub fn wanted(wanted: config::Iptables) -> &'static [Self] {
        match wanted {
            config::Iptables::Auto => &Self::ALL,
            config::Iptables::Nft => &[Self::Nft],
            config::Iptables::Iptables => &[Self::Iptables],
        }
    }

    /// Its version, in its own words. An error names the program that is missing and its package.
    pub fn version(self) -> anyhow::Result<String> {
        let program = match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables-restore",
        };
        Ok(run(program, &["--version"], "")?.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Whether the kernel takes what `rules` are made of, found out by trying; leaves nothing behind.
    /// `nft` checks without installing; `iptables` cannot, so a chain that nothing leads to is made and removed.
    pub fn probe(self, rules: &Rules) -> anyhow::Result<()> {
        match self {
            Self::Nft => run("nft", &["-c", "-f", "-"], &rules.nft()).map(drop),
            Self::Iptables => {
                let families = [Family::V4, Family::V6];
                families.into_iter().filter(|f| rules.has(*f)).try_for_each(|family| probe_restore(family, rules))
            }
        }
    }

    /// Makes the kernel's rules of ours what `rules` say, as a whole.
    pub fn install(self, rules: &Rules) -> anyhow::Result<()> {
        match self {
            Self::Nft => run("nft", &["-f", "-"], &rules.nft()).map(drop).context("nft refuses the rules"),
            Self::Iptables => {
                for family in [Family::V4, Family::V6] {
                    if rules.has(family) {
                        let saved = save(family)?;
                        restore(family, &rules.restore(family, &saved))?;
                    } else {
                        remove_restored(family)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Takes all of ours away; says whether there was anything. Not an error where the program is missing:
    /// then nothing of it can be there.
    pub fn remove(self) -> anyhow::Result<bool> {
        match self {
            Self::Nft if find("nft").is_none() => Ok(false),
            Self::Nft => {
                let there = self.present()?;
                if there {
                    run("nft", &["-f", "-"], &rules::nft_removal())?;
                }
                Ok(there)
            }
            Self::Iptables => Ok(remove_restored(Family::V4)? | remove_restored(Family::V6)?),
        }
    }

    /// Whether rules of ours are in the kernel.
    pub fn present(self) -> anyhow::Result<bool> {
        match self {
            Self::Nft if find("nft").is_none() => Ok(false),
            Self::Nft => {
                let tables = run("nft", &["list", "tables", "inet"], "")?;
                Ok(tables.lines().any(|l| l.trim() == format!("table inet {}", rules::TABLE)))
            }
            Self::Iptables => {
                let families = [Family::V4, Family::V6].into_iter().filter(|f| find(program(*f, "save")).is_some());
                let mut present = false;
                for family in families {
                    present |= rules::restore_removal(&save(family)?).is_some();
                }
                Ok(present)
            }
        }
    }
}

const fn program(family: Family, verb: &str) -> &'static str {
    match (family, verb.as_bytes()) {
        (Family::V4, b"save") => "iptables-save",
        (Family::V6, b"save") => "ip6tables-save",
        (Family::V4, _) => "iptables-restore",
        (Family::V6, _) => "ip6tables-restore",
    }
}

fn save(family: Family) -> anyhow::Result<String> {
    run(program(family, "save"), &["-t", "nat"], "")
}

fn restore(family: Family, text: &str) -> anyhow::Result<()> {
    // Others may hold the lock of the legacy variant for a moment.
    run(program(family, "restore"), &["--noflush", "-w", "5"], text).map(drop)
}

fn remove_restored(family: Family) -> anyhow::Result<bool> {
    if find(program(family, "save")).is_none() || find(program(family, "restore")).is_none() {
        return Ok(false);
    }
    match rules::restore_removal(&save(family)?) {
        Some(text) => restore(family, &text).map(|()| true),
        None => Ok(false),
    }
}

fn probe_restore(family: Family, rules: &Rules) -> anyhow::Result<()> {
    let mut text = format!("*nat\n:{PROBE} - [0:0]\n-A {PROBE} -m mark --mark {:#x} -j RETURN\n", rules.mark);
    if rules.asks_owner() {
        text.push_str(&format!("-A {PROBE} -m owner --uid-owner 1 -j RETURN\n"));
    }
    for caller in rules.callers.iter().flatten() {
        text.push_str(&format!("-A {PROBE} {} -p tcp -j RETURN\n", caller.iptables()));
    }
    text.push_str(&format!("-A {PROBE} -p tcp -j REDIRECT --to-ports 1\nCOMMIT\n"));
    // Applying reads what is there before it changes anything.
    save(family)?;
    restore(family, &text)?;
    restore(family, &format!("*nat\n:{PROBE} - [0:0]\n-X {PROBE}\nCOMMIT\n"))
}

/// Where a program is: in PATH, or where the tools of root are when PATH has none of it.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs `program` with `input`; what it printed. Blocks until it is done, which takes milliseconds, or up to
/// five seconds for the lock of `iptables`. An error has its last words, or names the package to install.
pub fn run(program: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
    let Some(path) = find(program) else {
        let package = match program {
            "nft" => "nftables",
            "ip" => "iproute2",
            _ => "iptables",
        };
        bail!("no `{program}` here: install the package {package}");
    };
    let mut child = Command::new(path)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    // One that does not read to its end says why not; nothing here prints more than a pipe holds before it has read.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let mut lines = said.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("Try `"));
        let said =
            lines.next().map(|first| lines.next().map_or(first.to_owned(), |second| format!("{first} {second}")));
        bail!("{program} {}: {}", args.join(" "), said.unwrap_or_else(|| output.status.to_string()));
    }
    written.with_context(|| format!("{program} did not read its rules"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        let error = run("ip6tables-nowhere", &[], "").unwrap_err().to_string();
        assert_eq!(error, "no `ip6tables-nowhere` here: install the package iptables");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let error = run("ls", &["/nowhere/at/all"], "").unwrap_err().to_string();
        assert!(error.starts_with("ls /nowhere/at/all: ") && error.contains("No such file"), "{error}");
    }
}
