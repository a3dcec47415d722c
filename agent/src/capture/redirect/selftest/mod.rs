//! What redirecting does to the sockets of this host's kernel, tried out on private loopback connections.
//!
//! Every check is made twice, by plain TCP and redirected; it passes when an application sees the same.
//! `redirect: auto` follows the [`Consequence`] of those that fail.

mod experiments;
mod lab;

use std::{
    fmt::{self, Write as _},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Serialize;

use self::lab::Lab;

/// How the bytes of an experiment go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tcp,
    Redirect,
}

/// Something that applications may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// FIONREAD of bytes that came by TCP, on a socket that is in a map.
    SizeTcp,
    /// FIONREAD of redirected bytes.
    SizeRedirected,
    /// Edge-triggered epoll wakes the reader for every message.
    Wakeups,
    /// A redirected message does not overtake one that came by TCP and is unread.
    OrderOvertaking,
    /// The same, when redirecting begins only after everything that came by TCP has been read.
    OrderAfterRead,
    /// A message by TCP does not overtake redirected ones that are unread.
    OrderFallback,
    /// Unread bytes are charged to the reader, so that they can be bounded.
    Charge,
    /// What was sent before the sender's end arrives, then the end.
    HalfClose,
    /// A reset arrives as one.
    Reset,
    /// A reader that closes with bytes unread resets the connection.
    CloseUnread,
    /// `MSG_WAITALL` waits for all.
    WaitAll,
    /// A signal during a blocking `recv` restarts it or gives EINTR.
    Signal,
    /// `MSG_PEEK` leaves the bytes.
    Peek,
    /// `splice` from a socket to a pipe.
    Splice,
    /// `sendfile` to a socket.
    Sendfile,
    /// `MSG_ZEROCOPY` completes.
    Zerocopy,
    /// `SO_RCVLOWAT` holds the reader back.
    LowWater,
    /// `MSG_OOB` is out of band.
    Urgent,
    /// Unread bytes survive when the reader leaves the map.
    Delete,
}

/// What follows when a check fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Consequence {
    /// A difference that is documented and left.
    Documented,
    /// The agent keeps to a rule that makes it harmless.
    Rule,
    /// Programs that ask for it by a socket option stay on TCP.
    OptionsStay,
    /// Programs known to use it stay on TCP.
    SplicersStay,
    /// Programs that use blocking sockets stay on TCP.
    BlockingStay,
    /// The agent never falls back to TCP toward a program.
    NoFallback,
    /// Nothing is redirected on this host.
    Off,
}

impl Consequence {
    /// For operators.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Documented => "documented difference",
            Self::Rule => "the agent never does that",
            Self::OptionsStay => "programs that set this option stay on TCP",
            Self::SplicersStay => "programs that splice stay on TCP",
            Self::BlockingStay => "blocking programs stay on TCP",
            Self::NoFallback => "agent never falls back toward this program",
            Self::Off => "redirect off",
        }
    }
}

impl Check {
    /// Every check, in the order in which they run and are shown.
    pub const ALL: [Self; 19] = [
        Self::SizeTcp,
        Self::SizeRedirected,
        Self::Wakeups,
        Self::OrderOvertaking,
        Self::OrderAfterRead,
        Self::OrderFallback,
        Self::Charge,
        Self::HalfClose,
        Self::Reset,
        Self::CloseUnread,
        Self::WaitAll,
        Self::Signal,
        Self::Peek,
        Self::Splice,
        Self::Sendfile,
        Self::Zerocopy,
        Self::LowWater,
        Self::Urgent,
        Self::Delete,
    ];

    /// Label in metrics and JSON.
    pub const fn name(self) -> &'static str {
        self.about().0
    }

    /// What is tried, for operators.
    pub const fn text(self) -> &'static str {
        self.about().1
    }

    /// What follows when it fails.
    pub const fn consequence(self) -> Consequence {
        self.about().2
    }

    const fn about(self) -> (&'static str, &'static str, Consequence) {
        use Consequence::{BlockingStay, Documented, NoFallback, Off, OptionsStay, Rule, SplicersStay};
        match self {
            Self::SizeTcp => ("size_tcp", "FIONREAD of 1000 bytes by TCP, socket in the map", NoFallback),
            Self::SizeRedirected => ("size_redirected", "FIONREAD of 1000 redirected bytes", Off),
            Self::Wakeups => ("wakeups", "100 edge-triggered epoll wake-ups", Off),
            Self::OrderOvertaking => ("order_overtaking", "redirect while bytes by TCP are unread", Rule),
            Self::OrderAfterRead => ("order_after_read", "redirect once all bytes by TCP are read", Off),
            Self::OrderFallback => ("order_fallback", "TCP while redirected bytes are unread", Off),
            Self::Charge => ("charge", "1 MB unread is charged to the reader", Off),
            Self::HalfClose => ("half_close", "1000 bytes, then shutdown", Off),
            Self::Reset => ("reset", "1000 bytes, then a reset", Off),
            Self::CloseUnread => ("close_unread", "reader closes with bytes unread: sender sees", Documented),
            Self::WaitAll => ("waitall", "recv(MSG_WAITALL, 200) of 100+100 bytes", BlockingStay),
            Self::Signal => ("signal", "signal in a blocking recv: SA_RESTART, without", BlockingStay),
            Self::Peek => ("peek", "MSG_PEEK, then recv of 1000 bytes", Off),
            Self::Splice => ("splice", "splice(socket -> pipe) of 1000 bytes", SplicersStay),
            Self::Sendfile => ("sendfile", "sendfile of 64 KiB", Off),
            Self::Zerocopy => ("zerocopy", "completion of MSG_ZEROCOPY", OptionsStay),
            Self::LowWater => ("rcvlowat", "SO_RCVLOWAT 100: poll after 10 bytes", OptionsStay),
            Self::Urgent => ("urgent", "MSG_OOB", Documented),
            Self::Delete => ("delete", "unread bytes when a live socket leaves the map", Rule),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a check went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What was tried.
    pub check: Check,
    /// What an application sees by plain TCP.
    pub plain: String,
    /// What it sees redirected.
    pub redirected: String,
}

impl Row {
    /// Whether an application sees the same both ways.
    pub fn passed(&self) -> bool {
        self.plain == self.redirected
    }

    /// What follows: none when it passed.
    pub fn consequence(&self) -> Option<Consequence> {
        (!self.passed()).then(|| self.check.consequence())
    }
}

/// The self-test's outcome.
#[derive(Clone, Debug)]
pub struct Report {
    /// One row a check; fewer when the test could not be finished.
    pub rows: Vec<Row>,
    /// Why the test could not be made or finished.
    pub error: Option<String>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Why nothing may be redirected on this host under `auto`; none when it may.
    pub fn refusal(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(format!("the self-test could not be made: {error}"));
        }
        let off = self.rows.iter().filter(|row| row.consequence() == Some(Consequence::Off));
        let failed: Vec<_> = off
            .map(|row| format!("{}: plain TCP gives {}, redirected {}", row.check.text(), row.plain, row.redirected))
            .collect();
        (!failed.is_empty()).then(|| format!("the self-test failed: {}", failed.join("; ")))
    }

    /// Whether something follows from the checks, as `consequence`.
    pub fn implies(&self, consequence: Consequence) -> bool {
        self.rows.iter().any(|row| row.consequence() == Some(consequence))
    }

    /// The table for operators and, below it, what `auto` makes of it.
    pub fn text(&self) -> String {
        let head = ["CHECK", "PLAIN TCP", "REDIRECTED", "CONSEQUENCE"].map(str::to_owned);
        let rows = self.rows.iter().map(|row| {
            let consequence = row.consequence().map_or("-", Consequence::text);
            [row.check.text().to_owned(), row.plain.clone(), row.redirected.clone(), consequence.to_owned()]
        });
        let rows: Vec<[String; 4]> = std::iter::once(head).chain(rows).collect();
        let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
        let (a, b, c) = (width(0), width(1), width(2));
        let mut text = String::new();
        for [check, plain, redirected, consequence] in &rows {
            let _ = writeln!(text, "{check:a$}  {plain:b$}  {redirected:c$}  {consequence}");
        }
        let _ = match self.refusal() {
            None => writeln!(text, "redirect: auto may redirect on this host ({} ms)", self.took.as_millis()),
            Some(why) => writeln!(text, "redirect: auto does not redirect on this host: {why}"),
        };
        text
    }

    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "check": row.check.name(),
                    "what": row.check.text(),
                    "plain": row.plain,
                    "redirected": row.redirected,
                    "passed": row.passed(),
                    "consequence": row.consequence().map(Consequence::text),
                })
            })
            .collect();
        let refusal = self.refusal();
        serde_json::json!({ "ok": refusal.is_none(), "refusal": refusal, "checks": rows })
    }
}

/// The self-test.
#[derive(Clone, Copy, Debug, Default)]
pub struct SelfTest {
    /// A check whose redirected half is made to go wrong, to see what follows.
    pub sabotage: Option<Check>,
}

impl SelfTest {
    /// Makes every check. Blocks for some 100 ms, and no longer than a few seconds on a kernel where
    /// everything hangs. Never an error: what keeps it from its work is in the report.
    pub fn run(self) -> Report {
        let start = Instant::now();
        let mut rows = Vec::with_capacity(Check::ALL.len());
        let error = self.fill(&mut rows).err().map(|e| format!("{e:#}"));
        Report { rows, error, took: start.elapsed() }
    }

    fn fill(self, rows: &mut Vec<Row>) -> anyhow::Result<()> {
        let mut lab = Lab::open()?;
        for check in Check::ALL {
            let mut see = |way: Way| {
                let spoil = way == Way::Redirect && self.sabotage == Some(check);
                experiments::observe(check, &mut lab, way, spoil).with_context(|| check.text())
            };
            rows.push(Row { check, plain: see(Way::Tcp)?, redirected: see(Way::Redirect)? });
        }
        Ok(())
    }
}

static AT_START: OnceLock<Report> = OnceLock::new();

/// The report of this process, made by the first who asks for it.
pub fn of_this_host() -> &'static Report {
    AT_START.get_or_init(|| SelfTest::default().run())
}

/// The report of this process if somebody has asked for it.
pub fn made() -> Option<&'static Report> {
    AT_START.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(check: Check, redirected: &str) -> Row {
        Row { check, plain: "1000".to_owned(), redirected: redirected.to_owned() }
    }

    #[test]
    fn only_what_turns_it_off_is_a_refusal() {
        let report = |rows| Report { rows, error: None, took: Duration::ZERO };
        let fine = report(vec![row(Check::SizeTcp, "0"), row(Check::SizeRedirected, "1000")]);
        assert_eq!(fine.refusal(), None);
        assert!(fine.implies(Consequence::NoFallback) && !fine.implies(Consequence::Off));
        assert!(fine.text().contains("agent never falls back toward this program\n"), "{}", fine.text());
        assert_eq!(fine.json()["ok"], true);
        let bad = report(vec![row(Check::SizeRedirected, "0")]);
        let why = bad.refusal().unwrap();
        assert_eq!(why, "the self-test failed: FIONREAD of 1000 redirected bytes: plain TCP gives 1000, redirected 0");
        assert!(bad.text().ends_with(&format!("redirect: auto does not redirect on this host: {why}\n")));
        let unmade = Report { rows: Vec::new(), error: Some("no rights".to_owned()), took: Duration::ZERO };
        assert_eq!(unmade.refusal().unwrap(), "the self-test could not be made: no rights");
    }

    #[test]
    fn names_are_unique_and_all_is_in_the_kernel_page() {
        let page = include_str!("../../../../../docs/kernel.md");
        for check in Check::ALL {
            assert_eq!(Check::ALL.iter().filter(|c| c.name() == check.name()).count(), 1);
            let (start, end) =
                (format!("| `{check}` | {} | ", check.text()), format!("| {} |", check.consequence().text()));
            let found = page.lines().any(|line| line.starts_with(&start) && line.ends_with(&end));
            assert!(found, "docs/kernel.md has no row {start} ... {end}");
        }
    }
}
