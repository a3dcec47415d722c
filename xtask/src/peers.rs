//! Programs that `cargo xtask test --full` runs agent and centre against and that no Debian package has: built or
//! fetched once, kept by version below `target/full/`. Those that take seconds are part of every `cargo xtask test`.
//!
//! To add one: a row in [`PEERS`] and the function that the row names, which puts what tests need into
//! [`Work::dir`]. Tests say `lacks(&[Need::Peer("name")])` and find that folder with `host::need::peer("name")`;
//! their files are `tests/full/*.rs`, or `tests/*.rs` for a [`Peer::usual`] one. A peer made of sources of this repository names their folder in
//! [`Peer::sources`], and is built again when they change. A change of the recipe alone needs a new version
//! (`1.2.3-b`). `cargo xtask peers NAME` has one peer there without running a test.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{packages, sh};

/// A program of others, in one version.
pub struct Peer {
    /// By which tests ask for it.
    pub name: &'static str,
    /// Part of the folder's name: another version is another folder.
    pub version: &'static str,
    /// Part of `cargo xtask test` without `--full`, too: there within seconds.
    pub usual: bool,
    /// A folder of this repository that it is made of; empty when there is none.
    pub sources: &'static str,
    /// Programs that are needed to make or to run it; Debian packages for them are in `packages`.
    pub programs: &'static [&'static str],
    /// Time for all of [`Peer::make`], on a machine that does nothing else.
    pub limit: Duration,
    /// Makes it. What it leaves in [`Work::dir`] is kept.
    pub make: fn(&Work) -> Result<()>,
}

/// Every peer.
pub const PEERS: &[Peer] = &[
    Peer {
        name: "consul",
        version: "1.22.7",
        usual: false,
        sources: "",
        programs: &["go"],
        // Eight minutes of two cores and 3.3 GB of memory, most of it for the compiler's work on one package.
        limit: Duration::from_secs(45 * 60),
        make: consul,
    },
    Peer {
        name: "kube-apiserver",
        version: "1.36.3",
        usual: false,
        sources: "",
        programs: &["go"],
        // Five minutes of two cores and 1.9 GB of memory.
        limit: Duration::from_secs(45 * 60),
        make: kube_apiserver,
    },
    Peer {
        name: "motan-go",
        version: "1.2.0",
        usual: false,
        sources: "tests/peers/motan-go",
        programs: &["go"],
        limit: Duration::from_secs(15 * 60),
        make: motan_go,
    },
    Peer {
        name: "motan-java",
        version: "1.2.6",
        usual: false,
        sources: "tests/peers/motan-java",
        programs: &["javac", "mvn"],
        limit: Duration::from_secs(15 * 60),
        make: motan_java,
    },
    Peer {
        name: "otelcol",
        version: "0.115.0",
        usual: false,
        sources: "tests/peers/otelcol",
        programs: &["go"],
        // A minute of two cores.
        limit: Duration::from_secs(15 * 60),
        make: otelcol,
    },
    Peer {
        name: "rnacos",
        version: "0.8.8",
        usual: false,
        sources: "",
        programs: &[],
        limit: Duration::from_secs(45 * 60),
        make: rnacos,
    },
    Peer {
        name: "graphite-api",
        version: "1.1.3",
        usual: true,
        sources: "",
        programs: &["python3", "pip3", "carbon-cache"],
        limit: Duration::from_secs(10 * 60),
        make: graphite_api,
    },
    Peer {
        name: "zipkin",
        version: "3.6.1",
        usual: false,
        sources: "",
        programs: &["javac", "mvn"],
        // A download of 135 MB.
        limit: Duration::from_secs(15 * 60),
        make: zipkin,
    },
];

/// Where a peer is being made.
pub struct Work {
    dir: PathBuf,
    log: PathBuf,
    version: &'static str,
    end: Instant,
}

impl Work {
    /// The folder that is kept when all went well, and where commands of [`Work::run`] start.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The version of the row.
    pub fn version(&self) -> &'static str {
        self.version
    }

    /// Writes a file into the folder, with the folders it lies in.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        path.parent().map(fs::create_dir_all).transpose()?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Runs a step in the folder, its output in the peer's log, as long as the row's time lasts.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let step = self.dir.join("step.log");
        command.current_dir(&self.dir);
        let left = self.end.saturating_duration_since(Instant::now());
        let result = sh::run_logged(command, &step, left);
        let mut all = OpenOptions::new().create(true).append(true).open(&self.log)?;
        all.write_all(&fs::read(&step).unwrap_or_default())?;
        fs::remove_file(&step).ok();
        result
    }

    /// A program of the row, found where [`sh::find`] looks, with temporary files and caches of its own kind.
    pub fn program(&self, name: &str) -> Result<Command> {
        let path = sh::find(name).with_context(|| format!("{name} is not installed"))?;
        Ok(Command::new(path))
    }
}

/// The peers that tests whose names contain `filter` are about: those that it names, or all.
pub fn concerned(filter: Option<&str>) -> Vec<&'static Peer> {
    let named = |peer: &&Peer| filter.is_some_and(|f| f.contains(peer.name) || peer.name.contains(f));
    let some: Vec<_> = PEERS.iter().filter(named).collect();
    if some.is_empty() { PEERS.iter().collect() } else { some }
}

/// Those of every `cargo xtask test`.
pub fn usual() -> Vec<&'static Peer> {
    PEERS.iter().filter(|peer| peer.usual).collect()
}

/// Has the peers called `names` there, or all when none is named.
pub fn run(names: &[String]) -> Result<()> {
    let known = || PEERS.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
    if let Some(other) = names.iter().find(|name| PEERS.iter().all(|p| p.name != **name)) {
        bail!("no peer is called `{other}`; there are: {}", known());
    }
    let wanted: Vec<_> = PEERS.iter().filter(|p| names.is_empty() || names.iter().any(|n| n == p.name)).collect();
    let lacking = provide(&wanted);
    if lacking.is_empty() { Ok(()) } else { bail!("{}", lacking.join("\n")) }
}

/// Has `peers` there, one after the other. Returns one line for each that could not be had.
pub fn provide(peers: &[&Peer]) -> Vec<String> {
    let mut lacking = Vec::new();
    for peer in peers {
        if let Err(error) = one(peer) {
            lacking.push(format!("{} {}: {error:#}", peer.name, peer.version));
        }
    }
    lacking
}

fn one(peer: &Peer) -> Result<()> {
    let top = sh::target("full");
    fs::create_dir_all(&top)?;
    let mut folder = format!("{}-{}", peer.name, peer.version);
    if !peer.sources.is_empty() {
        folder += &format!("-{:016x}", fingerprint(&sh::root().join(peer.sources))?);
    }
    let lacking = packages::provide(peer.programs);
    if !lacking.is_empty() {
        bail!("{}", lacking.join("; "));
    }
    let dir = top.join(&folder);
    if !dir.is_dir() {
        make(peer, &top, &dir)?;
    }
    // Tests know a peer by its name; which version that is, is said here alone.
    let (link, fresh) = (top.join(peer.name), top.join(format!(".{}.new", peer.name)));
    fs::remove_file(&fresh).ok();
    symlink(&folder, &fresh).and_then(|()| fs::rename(&fresh, &link)).context("cannot link it")
}

fn make(peer: &Peer, top: &Path, dir: &Path) -> Result<()> {
    let (part, log) = (dir.with_extension("part"), top.join(format!("{}.log", peer.name)));
    // What a run that was stopped left there is of no known state.
    fs::remove_dir_all(&part).ok();
    fs::create_dir_all(&part)?;
    fs::remove_file(&log).ok();
    println!("making {} {} (once; at most {} min)", peer.name, peer.version, peer.limit.as_secs() / 60);
    let start = Instant::now();
    let work = Work { dir: part, log, version: peer.version, end: start + peer.limit };
    (peer.make)(&work).with_context(|| format!("cannot be made, see {}", work.log.display()))?;
    fs::rename(&work.dir, dir).with_context(|| format!("cannot name {}", dir.display()))?;
    println!("made {} {} in {} s", peer.name, peer.version, start.elapsed().as_secs());
    Ok(())
}

/// Names and contents of all files in a folder.
fn fingerprint(folder: &Path) -> Result<u64> {
    let mut files = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files.insert(entry.path());
            }
        }
    }
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(folder).unwrap_or(&file).hash(&mut hasher);
        fs::read(&file)?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// A Go program that is only a dependency: `go install` refuses modules whose own go.mod replaces others.
fn go_dependency(work: &Work, requires: &[&str], package: &str, binary: &str) -> Result<()> {
    let requires: String = requires.iter().map(|r| format!("require {r}\n")).collect();
    work.write("src/go.mod", &format!("module peer\n\ngo 1.26\n\n{requires}"))?;
    work.write("src/tools.go", &format!("//go:build tools\n\npackage tools\n\nimport _ \"{package}\"\n"))?;
    let go = |args: &[&str]| -> Result<()> {
        let mut command = work.program("go")?;
        command.args(["-C", "src"]).args(args);
        work.run(command.envs([("GOFLAGS", "-mod=mod"), ("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local")]))
    };
    go(&["mod", "tidy"])?;
    go(&["build", "-trimpath", "-ldflags", "-s -w", "-o", &format!("../{binary}"), package])
}

fn consul(work: &Work) -> Result<()> {
    // The version of its own API module that 1.22.7 names does not compile with it.
    let requires =
        [&*format!("github.com/hashicorp/consul v{}", work.version()), "github.com/hashicorp/consul/api v1.34.5"];
    go_dependency(work, &requires, "github.com/hashicorp/consul", "consul")
}

/// Kubernetes' own modules are replaced by folders of its repository in its go.mod; outside of it each is the module of
/// the same version, with 0 for 1.
fn kube_apiserver(work: &Work) -> Result<()> {
    let version = work.version();
    let parts = version.strip_prefix("1.").context("a version of Kubernetes")?;
    let module = format!("k8s.io/kubernetes@v{version}");
    let go = |args: &[&str]| -> Result<Command> {
        let mut command = work.program("go")?;
        command.args(["-C", "src"]).args(args);
        command.envs([("GOFLAGS", "-mod=mod"), ("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local")]);
        Ok(command)
    };
    work.write("src/go.mod", "module peer\n\ngo 1.26.0\n")?;
    work.run(&mut go(&["mod", "download", &module])?)?;
    // Read where Go keeps it: `go mod download -json` says so.
    let said = sh::read(go(&["mod", "download", "-json", &module])?.current_dir(work.dir()))?;
    let file = said.lines().find_map(|line| line.trim().strip_prefix("\"GoMod\": \"")?.strip_suffix("\","));
    let file = file.with_context(|| format!("`go mod download -json` does not say where go.mod is: {said}"))?;
    let own = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let mut text =
        format!("module peer\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire k8s.io/kubernetes v{version}\n");
    for line in own.lines().filter(|line| line.contains("=> ./staging/")) {
        let part = line.trim().trim_start_matches("replace ").split(' ').next().unwrap_or_default();
        text += &format!("replace {part} => {part} v0.{parts}\n");
    }
    work.write("src/go.mod", &text)?;
    let package = "k8s.io/kubernetes/cmd/kube-apiserver";
    work.write("src/tools.go", &format!("//go:build tools\n\npackage tools\n\nimport _ \"{package}\"\n"))?;
    work.run(&mut go(&["mod", "tidy"])?)?;
    let minor = parts.split('.').next().unwrap_or_default();
    let flags = format!(
        "-s -w -X k8s.io/component-base/version.gitVersion=v{version} -X k8s.io/component-base/version.gitMajor=1 \
         -X k8s.io/component-base/version.gitMinor={minor}"
    );
    work.run(&mut go(&["build", "-trimpath", "-ldflags", &flags, "-o", "../kube-apiserver", package])?)
}

/// A Go program whose sources are here.
fn go_program(work: &Work, sources: &str, binary: &str) -> Result<()> {
    let mut command = work.program("go")?;
    command.arg("-C").arg(sh::root().join(sources));
    command.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o"]).arg(work.dir().join(binary));
    work.run(command.arg(".").envs([("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local")]))
}

/// One program, `peer`, of which subcommands are server, client, agent and load.
fn motan_go(work: &Work) -> Result<()> {
    go_program(work, "tests/peers/motan-go", "peer")
}

/// OpenTelemetry's collector with the parts that tests need.
fn otelcol(work: &Work) -> Result<()> {
    go_program(work, "tests/peers/otelcol", "otelcol")
}

/// Classes in `classes` and what they need in `libs`; the main class is `kit.Main`.
fn motan_java(work: &Work) -> Result<()> {
    let sources = sh::root().join("tests/peers/motan-java");
    // Maven writes beside its sources.
    work.run(Command::new("cp").arg("-r").arg(sources).arg("src"))?;
    let mut command = work.program("mvn")?;
    command.args(["-q", "-B", "-f", "src/pom.xml", "compile", "dependency:copy-dependencies"]);
    work.run(command.arg(format!("-DoutputDirectory={}", work.dir().join("libs").display())))?;
    fs::rename(work.dir().join("src/target/classes"), work.dir().join("classes")).context("cannot keep the classes")?;
    fs::remove_dir_all(work.dir().join("src")).context("cannot remove what the build left")
}

fn rnacos(work: &Work) -> Result<()> {
    let mut command = sh::cargo(["install", "rnacos", "--locked", "--root", ".", "--version", work.version()]);
    // Beside it: a build that took too long goes on where it was.
    let build = work.dir().with_file_name("rnacos-build");
    work.run(command.env("CARGO_TARGET_DIR", &build))?;
    fs::remove_dir_all(build).context("cannot remove what the build left")
}

/// Its own requirements are open at the top, and what came since does not work with it.
fn graphite_api(work: &Work) -> Result<()> {
    let own = format!("graphite-api=={}", work.version());
    let pins = ["flask<2.1", "werkzeug<2.1", "tzlocal<3", "pyparsing<3", "setuptools<81"];
    // The system's own Python, which has Debian's libraries.
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "pip", "install", "--quiet", "--target", "site", &own]).args(pins);
    work.run(&mut command)
}

fn zipkin(work: &Work) -> Result<()> {
    let artifact = format!("io.zipkin:zipkin-server:{}:jar:exec", work.version());
    let mut command = work.program("mvn")?;
    command.args(["-q", "-B", "dependency:copy", "-Dmdep.useBaseVersion=true", "-DoutputDirectory=."]);
    work.run(command.arg(format!("-Dartifact={artifact}")))?;
    let jar = format!("zipkin-server-{}-exec.jar", work.version());
    fs::rename(work.dir().join(jar), work.dir().join("zipkin.jar")).context("cannot keep the jar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_names_peers_wants_no_others() {
        let of = |filter| concerned(filter).iter().map(|p| p.name).collect::<Vec<_>>();
        assert_eq!(of(Some("consul_registers")), ["consul"]);
        assert_eq!(of(Some("nacos")), ["rnacos"]);
        assert_eq!(of(Some("unheard_of")).len(), PEERS.len());
        assert_eq!(of(None).len(), PEERS.len());
    }

    #[test]
    fn names_are_told_apart_and_programs_have_packages() {
        let names: BTreeSet<_> = PEERS.iter().map(|p| p.name).collect();
        assert_eq!(names.len(), PEERS.len());
        for program in PEERS.iter().flat_map(|p| p.programs) {
            assert!(packages::PROGRAMS.iter().any(|(name, _)| name == program), "no package is known for {program}");
        }
    }

    #[test]
    fn sources_are_known_by_names_and_contents() {
        let dir = std::env::temp_dir().join(format!("xtask-peers-{}", std::process::id()));
        fs::create_dir_all(dir.join("a")).unwrap();
        fs::write(dir.join("a/x"), "1").unwrap();
        let first = fingerprint(&dir).unwrap();
        assert_eq!(fingerprint(&dir).unwrap(), first);
        fs::write(dir.join("a/x"), "2").unwrap();
        let second = fingerprint(&dir).unwrap();
        fs::rename(dir.join("a/x"), dir.join("a/y")).unwrap();
        let third = fingerprint(&dir).unwrap();
        assert!(first != second && second != third && first != third);
        fs::remove_dir_all(dir).unwrap();
    }
}
