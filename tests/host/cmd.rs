//! Programs: started in a control group or a namespace, with a deadline, never outliving the test.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Cgroup, Net, wait};

/// A program to start.
#[derive(Clone, Debug)]
pub struct Cmd {
    argv: Vec<String>,
    cgroup: Option<PathBuf>,
    netns: Option<String>,
    descriptors: Option<u32>,
    /// What `setpriv --bounding-set` is told; empty for everything.
    powers: String,
    limit: Duration,
}

/// Enters the control group, lowers limits, asks the kernel to kill the program when the test's thread
/// dies, and becomes the program: all of it between fork and exec, without code of ours in between.
const WRAP: &str = r#"
if [ -n "$1" ]; then echo $$ > "$1/cgroup.procs" || exit 96; fi
if [ -n "$2" ]; then ulimit -n "$2" || exit 97; fi
netns=$3 powers=$4; shift 4
if [ -n "$powers" ]; then set -- setpriv --bounding-set="$powers" --inh-caps=-all -- "$@"; fi
if [ -n "$netns" ]; then set -- nsenter --net="/run/netns/$netns" -- "$@"; fi
exec setpriv --pdeathsig KILL -- "$@"
"#;

impl Cmd {
    /// `program`, searched in PATH.
    pub fn new(program: impl AsRef<Path>) -> Self {
        let program = program.as_ref().to_str().expect("paths here are UTF-8").to_owned();
        Self {
            argv: vec![program],
            cgroup: None,
            netns: None,
            descriptors: None,
            powers: String::new(),
            limit: Duration::from_secs(60),
        }
    }

    /// Splits `line` at blanks: for command lines without quotes.
    pub fn line(line: &str) -> Self {
        let mut words = line.split_whitespace();
        Self::new(words.next().expect("a command line has a program")).args(words)
    }

    /// The program it runs.
    pub fn program(&self) -> &str {
        &self.argv[0]
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl ToString) -> Self {
        self.argv.push(arg.to_string());
        self
    }

    /// Adds arguments.
    pub fn args<S: ToString>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(|a| a.to_string()));
        self
    }

    /// Runs it by another program, which takes it as its last arguments.
    pub fn under(mut self, runner: &[&str]) -> Self {
        self.argv.splice(0..0, runner.iter().map(|&a| a.to_owned()));
        self
    }

    /// Runs in this control group.
    pub fn cgroup(mut self, group: &Cgroup) -> Self {
        self.cgroup = Some(group.path().to_owned());
        self
    }

    /// Runs in this network namespace.
    pub fn netns(mut self, net: &Net) -> Self {
        self.netns = Some(net.name().to_owned());
        self
    }

    /// Lowers the number of descriptors the program may hold.
    pub fn descriptors(mut self, most: u32) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// Runs as root with these of root's powers only, as `setpriv` names them, such as `net_admin`.
    pub fn powers(mut self, powers: &[&str]) -> Self {
        self.powers = powers.iter().fold("-all".to_owned(), |all, power| all + ",+" + power);
        self
    }

    /// How long [`Cmd::run`] waits, 60 s by default.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", WRAP, "sh"]).arg(self.cgroup.as_deref().unwrap_or(Path::new("")));
        command.arg(self.descriptors.map_or_else(String::new, |n| n.to_string()));
        command.arg(self.netns.as_deref().unwrap_or("")).arg(&self.powers);
        command.args(&self.argv).stdin(Stdio::null());
        command
    }

    /// Runs to the end. Panics when the limit is over or the program cannot be started.
    #[track_caller]
    pub fn run(&self) -> Output {
        let mut child = self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (out, err) = (drink(out), drink(err));
        let status = wait::within(self.limit, || child.try_wait().unwrap());
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (out, err) = (out.join().unwrap(), err.join().unwrap());
        let Some(status) = status else {
            panic!("{:?} did not end within {:?}\n{out}\n{err}", self.argv, self.limit);
        };
        Output { argv: self.argv.clone(), status, out, err }
    }

    /// Starts it with its output in the file `log`.
    #[track_caller]
    pub fn spawn(&self, log: &Path) -> Proc {
        let file = fs::File::options().create(true).append(true).open(log).unwrap();
        let child = self.command().stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Proc { child, name: self.argv[0].clone(), log: log.to_owned() }
    }
}

fn drink(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What a program said.
#[derive(Debug)]
pub struct Output {
    argv: Vec<String>,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Output {
    /// Its output if it ended well; panics with everything it said if not.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{:?}: {}\n{}\n{}", self.argv, self.status, self.out, self.err);
        self.out
    }

    /// Everything it said if it failed with an exit code; panics if it ended well or was killed.
    #[track_caller]
    pub fn failed(self) -> String {
        let code = self.status.code();
        assert!(code.is_some_and(|c| c != 0), "{:?} should have failed: {}\n{}", self.argv, self.status, self.out);
        format!("{}{}", self.out, self.err)
    }
}

/// A running program, killed on drop; its output is shown when the test fails.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Proc {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it has ended; panics when that takes too long.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let end = wait::within(wait::PATIENCE, || self.child.try_wait().unwrap());
        end.unwrap_or_else(|| panic!("{} did not end\n{}", self.name, self.said()))
    }

    /// SIGTERM, then waits for the end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Everything it wrote.
    pub fn said(&self) -> String {
        fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// The lines that it has said to their ends so far.
    pub fn lines(&self) -> Vec<String> {
        let said = self.said();
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        whole.lines().map(str::to_owned).collect()
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let end = self.child.wait();
        let said = if thread::panicking() { self.said() } else { String::new() };
        if !said.is_empty() {
            let from = said.len().saturating_sub(8000);
            let from = (from..said.len()).find(|i| said.is_char_boundary(*i)).unwrap_or(0);
            println!("--- {} ({end:?}) said:\n{}", self.name, &said[from..]);
        }
    }
}
