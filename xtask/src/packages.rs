//! Debian packages: which one has a program, how to install it without starting a daemon, and how to
//! fetch one of another suite without installing it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{sh, sys};

/// Programs that tests and the demo use, and the Debian packages that have them, best first.
pub const PROGRAMS: &[(&str, &[&str])] = &[
    ("nginx", &["nginx-light", "nginx"]),
    ("haproxy", &["haproxy"]),
    ("redis-server", &["redis-server"]),
    ("redis-cli", &["redis-tools"]),
    ("redis-benchmark", &["redis-tools"]),
    ("wrk", &["wrk"]),
    ("curl", &["curl"]),
    ("python3", &["python3"]),
    ("pip3", &["python3-pip"]),
    ("ip", &["iproute2"]),
    ("bpftool", &["bpftool"]),
    ("iptables-restore", &["iptables"]),
    ("nft", &["nftables"]),
    ("qemu-system-x86_64", &["qemu-system-x86"]),
    ("javac", &["default-jdk-headless"]),
    ("go", &["golang-go"]),
    ("mvn", &["maven"]),
    ("musl-gcc", &["musl-tools"]),
    ("postgres", &["postgresql"]),
    ("mariadbd", &["mariadb-server-core"]),
    ("mariadb-slap", &["mariadb-client"]),
    ("zkServer.sh", &["zookeeper"]),
    ("dnsmasq", &["dnsmasq-base"]),
    ("etcd", &["etcd-server"]),
    ("faketime", &["faketime"]),
    ("carbon-cache", &["graphite-carbon"]),
    ("chromium", &["chromium"]),
    ("chromedriver", &["chromium-driver"]),
    ("fc-list", &["fontconfig"]),
    ("whisper-fetch", &["graphite-carbon", "python3-whisper"]),
    ("prometheus", &["prometheus"]),
];

/// Time for one call of apt: a slow mirror and a large package (a JDK) included.
const APT_LIMIT: Duration = Duration::from_secs(600);

/// Those of `programs` that this machine has not.
pub fn missing<'a>(programs: &[&'a str]) -> Vec<&'a str> {
    programs.iter().copied().filter(|program| sh::find(program).is_none()).collect()
}

/// Installs what is missing of `programs`, each on its own so that one bad package spoils no other.
/// Returns one line per program that could not be had, saying why and what to do.
pub fn provide(programs: &[&str]) -> Vec<String> {
    let missing = missing(programs);
    if missing.is_empty() {
        return Vec::new();
    }
    if let Err(why) = can_install() {
        return missing.iter().map(|program| format!("{program}: {why}; install {}", names(program))).collect();
    }
    // A stop signal waits until apt is done: a package half installed is worse than a late stop.
    let _signals = sys::Signals::catch();
    let _policy = match Policy::set() {
        Ok(policy) => policy,
        Err(e) => return missing.iter().map(|program| format!("{program}: {e:#}")).collect(),
    };
    let mut updated = false;
    let mut failed = Vec::new();
    for program in missing {
        if sh::find(program).is_some() {
            continue; // came with an earlier one
        }
        println!("installing {} for {program}", names(program));
        if let Err(e) = install(program, &mut updated) {
            failed.push(format!("{program}: {e:#}"));
        }
    }
    failed
}

/// Fonts with Chinese characters, best first: browsers show boxes without one.
const CHINESE: &[&str] = &["fonts-noto-cjk", "fonts-wqy-microhei"];

/// Installs a font that has Chinese characters, if there is none.
///
/// # Errors
/// It cannot be had; says what to do.
pub fn provide_chinese() -> Result<()> {
    let has = || sh::read(Command::new("fc-list").arg(":lang=zh")).is_ok_and(|fonts| !fonts.trim().is_empty());
    if has() {
        return Ok(());
    }
    let packages = CHINESE.join(" or ");
    can_install().with_context(|| format!("no font with Chinese characters; install {packages}"))?;
    let log = log("install");
    for package in CHINESE {
        println!("installing {package}");
        let installed =
            sh::run_logged(apt(&["install", "-y", "--no-install-recommends"]).arg(package), &log, APT_LIMIT);
        if installed.is_ok() && has() {
            return Ok(());
        }
    }
    bail!("no font with Chinese characters: neither {packages} could be installed, see {}", log.display())
}

fn names(program: &str) -> String {
    packages(program).join(" or ")
}

fn packages(program: &str) -> &'static [&'static str] {
    PROGRAMS.iter().find(|(name, _)| *name == program).map_or(&[], |(_, packages)| packages)
}

fn can_install() -> Result<()> {
    if sh::find("apt-get").is_none() {
        bail!("not a Debian system");
    }
    if !sys::is_root() {
        bail!("not root");
    }
    Ok(())
}

fn install(program: &str, updated: &mut bool) -> Result<()> {
    let log = log("install");
    let mut error = None;
    for round in 0..2 {
        if round == 1 {
            // Most often the lists are missing (a base image) or old: once is enough for all programs.
            if std::mem::replace(updated, true) {
                break;
            }
            sh::run_logged(apt(&[]).arg("update"), &log, APT_LIMIT)?;
        }
        for package in packages(program) {
            let mut command = apt(&["install", "-y", "--no-install-recommends"]);
            match sh::run_logged(command.arg(package), &log, APT_LIMIT) {
                Ok(()) if sh::find(program).is_some() => return Ok(()),
                Ok(()) => error = Some(anyhow::anyhow!("package {package} came without it")),
                Err(_) => {
                    let said = sh::tail_of(&log, 1);
                    error = Some(anyhow::anyhow!("apt-get install {package} failed ({})", said.trim()));
                }
            }
        }
    }
    Err(error.unwrap_or_else(|| anyhow::anyhow!("no package is known for it")))
}

fn apt(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=120", "-q"]).args(args);
    command
}

fn log(name: &str) -> PathBuf {
    let dir = sh::target("tools");
    fs::create_dir_all(&dir).ok();
    dir.join(format!("apt-{name}.log"))
}

/// While it lives, packages do not start the daemons they install.
struct Policy {
    file: PathBuf,
    saved: PathBuf,
}

/// In a policy file of ours, so that one left by a killed xtask is known and taken away.
const MARK: &str = "# written by cargo xtask";

impl Policy {
    fn set() -> Result<Self> {
        Self::set_at(Path::new("/usr/sbin/policy-rc.d"))
    }

    fn set_at(file: &Path) -> Result<Self> {
        let policy = Self { file: file.to_owned(), saved: file.with_extension("d.before-xtask") };
        let foreign = fs::read_to_string(file).is_ok_and(|text| !text.contains(MARK));
        if foreign {
            fs::rename(file, &policy.saved).with_context(|| format!("cannot set {} aside", file.display()))?;
        }
        // 101: "action forbidden", the answer that invoke-rc.d takes for "do not start it".
        fs::write(file, format!("#!/bin/sh\n{MARK}\nexit 101\n"))
            .and_then(|()| fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        fs::remove_file(&self.file).ok();
        if self.saved.exists() {
            fs::rename(&self.saved, &self.file).ok();
        }
    }
}

/// Fetches `package` in the version that starts with `version` from `suite` of the machine's own mirror
/// and unpacks it below `into`. Installs nothing, and leaves the machine's apt lists as they are.
pub fn unpack(package: &str, version: &str, suite: &str, into: &Path) -> Result<()> {
    let archive = Archive::open(&[suite])?;
    let known = archive.ask(&["madison", package])?;
    let full = matching_version(&known, version)
        .with_context(|| format!("suite {suite} has no {package} {version} (it has: {})", one_line(&known)))?;
    archive.unpack(&format!("{package}={full}"), into)
}

/// Some suites of Debian as the machine's own mirrors have them, with lists and cache of their own: the
/// machine's stay as they are. Its files go with it.
#[derive(Debug)]
pub struct Archive {
    work: PathBuf,
    options: Vec<String>,
}

impl Archive {
    /// Fetches the lists of `suites`. One that the mirror no longer has is said and left out.
    pub fn open(suites: &[&str]) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg"] {
            if sh::find(program).is_none() {
                bail!("not a Debian system ({program} is missing)");
            }
        }
        let work = sh::target("tools/apt");
        fs::remove_dir_all(&work).ok();
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(work.join(dir))?;
        }
        let list = work.join("sources.list");
        fs::write(&list, sources(suites, &mirrors())?)?;
        let options = vec![
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", work.join("lists").display()),
            format!("Dir::Cache={}", work.join("cache").display()),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The sandbox user of apt may not write below our folders; signatures are checked all the same.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let archive = Self { work, options };
        if let Err(e) = sh::run_logged(archive.command("apt-get").args(["-q", "update"]), &log("update"), APT_LIMIT) {
            let lists = fs::read_dir(archive.work.join("lists")).into_iter().flatten().flatten();
            if !lists.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with("_Packages")) {
                return Err(e);
            }
            println!("some of the suites {} cannot be had: {e:#}", suites.join(", "));
        }
        Ok(archive)
    }

    /// Names of packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(self.ask(&["pkgnames", prefix])?.lines().map(str::to_owned).collect())
    }

    /// Fetches `which` (a package's name, or `name=version`) and unpacks it below `into`. Installs nothing.
    pub fn unpack(&self, which: &str, into: &Path) -> Result<()> {
        let dir = self.work.join("deb");
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir)?;
        let mut command = self.command("apt-get");
        sh::run_logged(command.args(["-q", "download", which]).current_dir(&dir), &log("download"), APT_LIMIT)?;
        let deb = fs::read_dir(&dir)?.flatten().map(|entry| entry.path()).next();
        let deb = deb.with_context(|| format!("apt-get download left no file for {which}"))?;
        fs::create_dir_all(into)?;
        sh::run(Command::new("dpkg").arg("-x").arg(deb).arg(into))
    }

    fn ask(&self, args: &[&str]) -> Result<String> {
        sh::read(self.command("apt-cache").args(args))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.work).ok();
    }
}

/// The lines of a sources list for `suites`; those of security fixes come from a mirror of their own, and
/// are left out where the machine has none.
fn sources(suites: &[&str], (main, security): &(Option<String>, Option<String>)) -> Result<String> {
    let main = main.as_deref().context("no Debian mirror among the machine's apt sources")?;
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let mut text = String::new();
    for suite in suites {
        let uri = if suite.ends_with("-security") { security.as_deref() } else { Some(main) };
        if let Some(uri) = uri {
            text.push_str(&format!("deb [signed-by={key}] {uri} {suite} main\n"));
        }
    }
    Ok(text)
}

fn one_line(text: &str) -> String {
    if text.is_empty() { "nothing".to_owned() } else { text.replace('\n', "; ") }
}

/// The version in the output of `apt-cache madison` that is `version` in some Debian packaging of it.
fn matching_version(madison: &str, version: &str) -> Option<String> {
    madison.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim).find_map(|full| {
        let rest = full.strip_prefix(version)?;
        rest.starts_with(['+', '-', '~']).then(|| full.to_owned())
    })
}

/// The URIs from which this machine takes Debian's main archive, and its security fixes.
fn mirrors() -> (Option<String>, Option<String>) {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()));
    files.sort();
    let texts: Vec<_> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let first = |name| texts.iter().find_map(|text| debian_uri(text, name));
    (first("debian"), first("debian-security"))
}

/// The first URI of Debian's archive `name` in an apt source file of either form.
fn debian_uri(text: &str, name: &str) -> Option<String> {
    text.lines().map(str::trim).find_map(|line| {
        let words = if let Some(uris) = line.strip_prefix("URIs:") {
            uris
        } else if line.starts_with("deb ") {
            line
        } else {
            return None;
        };
        words.split_whitespace().find(|word| is_archive(word, name)).map(str::to_owned)
    })
}

/// By its last path component; a mirror list (`mirror+file:…/debian.list`) is an URI like another.
fn is_archive(uri: &str, name: &str) -> bool {
    let last = uri.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    uri.contains(":/") && last.trim_end_matches(".list") == name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_read_from_both_forms_of_sources() {
        let deb822 = "Types: deb\nURIs: http://a.test/debian-security\nSuites: x-security\n\n\
                      Types: deb\n# http://b.test/debian\nURIs: http://c.test/debian/\nSuites: bookworm\n";
        assert_eq!(debian_uri(deb822, "debian").as_deref(), Some("http://c.test/debian/"));
        let security = debian_uri(deb822, "debian-security");
        assert_eq!(security.as_deref(), Some("http://a.test/debian-security"));
        let both = (debian_uri(deb822, "debian"), security);
        let list = sources(&["y", "y-security"], &both).unwrap();
        assert!(list.contains(" http://c.test/debian/ y main\n"), "{list}");
        assert!(list.contains(" http://a.test/debian-security y-security main\n"), "{list}");
        assert_eq!(sources(&["y", "y-security"], &(both.0, None)).unwrap().lines().count(), 1);
        assert!(sources(&["y"], &(None, None)).is_err());
        let line =
            "# deb http://a.test/debian x main\ndeb [arch=amd64 signed-by=/k.gpg] https://b.test/debian x main\n";
        assert_eq!(debian_uri(line, "debian").as_deref(), Some("https://b.test/debian"));
        let cloud = "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\n";
        assert_eq!(debian_uri(cloud, "debian").as_deref(), Some("mirror+file:///etc/apt/mirrors/debian.list"));
        assert_eq!(debian_uri("deb https://d.test/apt sdk main\n", "debian"), None);
    }

    #[test]
    fn only_the_very_version_of_the_compiler_will_do() {
        let madison = " rust-src | 1.95.1+dfsg1-1 | m trixie\n rust-src | 1.95.0+dfsg1-2~bpo13+1 | m main\n";
        assert_eq!(matching_version(madison, "1.95.0").as_deref(), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(matching_version(madison, "1.95"), None);
        assert_eq!(matching_version("", "1.95.0"), None);
    }

    #[test]
    fn a_policy_of_the_machine_is_put_back() {
        let dir = std::env::temp_dir().join(format!("xtask-policy-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("policy-rc.d");
        fs::write(&file, "theirs").unwrap();
        let policy = Policy::set_at(&file).unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains("exit 101"));
        drop(policy);
        assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
        // One that a killed xtask left behind is taken for what it is.
        fs::write(&file, format!("{MARK}\n")).unwrap();
        drop(Policy::set_at(&file).unwrap());
        assert!(!file.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
