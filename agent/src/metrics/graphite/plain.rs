//! Carbon's line protocol: `NAME VALUE SECONDS` and a newline.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::task::AbortHandle;

use super::{
    Form, Source, Target,
    carrier::carry,
    figures::{Bands, Level, Row},
    queue::{Batch, Queue},
};

/// Longest part of a name: Carbon makes a folder or a file of it.
const PART_BYTES: usize = 128;
/// Lines of a batch; what is in flight when a connection breaks is sent again.
const BATCH_LINES: usize = 500;

/// Percentiles with the last part of their names.
const QUANTILES: [(&str, f64); 5] = [("p50", 0.5), ("p75", 0.75), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999)];

/// Carbon over TCP.
struct Plain {
    target: Arc<Target>,
    prefix: String,
    queue: Arc<Queue>,
    carrier: AbortHandle,
    /// Seconds that the last interval was stamped with.
    stamped: u64,
}

pub(super) fn build(target: &Arc<Target>, source: &Arc<Source>) -> Box<dyn Form> {
    let queue = Arc::new(Queue::new(target.config.queue));
    let carrier = tokio::spawn(carry(target.clone(), queue.clone())).abort_handle();
    Box::new(Plain {
        target: target.clone(),
        prefix: prefix(&target.config.prefix, source),
        queue,
        carrier,
        stamped: 0,
    })
}

impl Form for Plain {
    fn take(&mut self, rows: &[Row], lasted: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.stamped = stamp(now, self.stamped, lasted, self.target.config.interval);
        let dropped = self.queue.push(lines(&self.prefix, rows, lasted, self.stamped));
        if dropped > 0 {
            self.target.dropped.fetch_add(dropped as u64, Relaxed);
        }
        self.target.waiting.store(self.queue.lines() as u64, Relaxed);
    }

    fn settled(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.queue.empty())
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

/// `prefix` with this agent's names in it.
fn prefix(prefix: &str, source: &Source) -> String {
    prefix
        .replace("{host}", &part(&source.host))
        .replace("{application}", &part(&source.application))
        .replace("{name}", &part(&source.name))
}

/// A part of a name: everything but letters, digits, `-` and `_` becomes `_`.
fn part(text: &str) -> String {
    if text.is_empty() {
        return "none".to_owned();
    }
    let mut part: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' }).collect();
    part.truncate(PART_BYTES);
    part
}

/// The second that an interval of length `lasted` is told under. Carbon keeps one value for each interval: one that was
/// cut short by the agent's end is told under the second at which it would have been over, lest it replace the whole
/// one before it.
fn stamp(now: u64, before: u64, lasted: Duration, interval: Duration) -> u64 {
    // A clock that was set back is followed.
    if lasted < interval && now >= before { now.max(before + interval.as_secs()) } else { now }
}

/// All lines of an interval. Rows whose names come out the same are added up.
fn lines(prefix: &str, rows: &[Row], lasted: Duration, now: u64) -> Vec<Batch> {
    let mut named: BTreeMap<String, Row> = BTreeMap::new();
    for row in rows {
        let (side, method) = match row.level {
            Level::Service => (row.side.to_owned(), "_all".to_owned()),
            Level::Call => (row.side.to_owned(), part(&row.method)),
            Level::Attempt => (format!("{}-attempts", row.side), part(&row.method)),
        };
        let name = format!("{prefix}.{side}.{}.{}.{method}", part(&row.service), part(&row.group));
        match named.get_mut(&name) {
            Some(same) => same.merge(row),
            None => drop(named.insert(name, row.clone())),
        }
    }
    let mut batches = vec![Batch::default()];
    for (name, row) in named {
        let batch = match batches.last_mut() {
            Some(batch) if batch.lines < BATCH_LINES => batch,
            _ => batches.push_mut(Batch::default()),
        };
        write(batch, &name, &row, lasted, now);
    }
    batches
}

fn write(batch: &mut Batch, name: &str, row: &Row, lasted: Duration, now: u64) {
    let mut line = |figure: &str, value: f64| {
        // Three places: microseconds of a time in milliseconds. Writing to a String cannot fail.
        let _ = writeln!(batch.text, "{name}.{figure} {} {now}", (value * 1e3).round() / 1e3);
        batch.lines += 1;
    };
    let counts = row.counts;
    line("count", counts.total as f64);
    line("rate", counts.total as f64 / lasted.as_secs_f64().max(1e-3));
    if counts.total == 0 {
        return;
    }
    line("success", (counts.total - counts.failed.min(counts.total)) as f64 / counts.total as f64);
    line("failed", counts.failed as f64);
    if row.level != Level::Service {
        line("refused", counts.refused as f64);
    }
    line("mean", row.mean_ms());
    for (figure, q) in QUANTILES {
        line(figure, row.quantile_ms(q));
    }
    let bands = Bands::of(&row.latency);
    for (figure, n) in Bands::NAMES.iter().zip(bands.each) {
        line(figure, n as f64);
    }
    line("slow", bands.slow as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::Text,
        metrics::{Histogram, graphite::figures::Counts},
    };

    fn row(method: &str, ms: &[u64]) -> Row {
        let histogram = Histogram::default();
        ms.iter().for_each(|ms| histogram.record(Duration::from_millis(*ms)));
        Row {
            side: "outbound",
            service: Text::from_static("com.example.Echo"),
            group: Text::from_static(""),
            application: Text::from_static("demo"),
            level: Level::Call,
            method: method.into(),
            counts: Counts { total: ms.len() as u64, refused: 0, failed: 1 },
            latency: histogram.summary(),
        }
    }

    #[test]
    fn lines_are_what_carbon_reads_and_names_that_meet_are_added() {
        let rows = [row("a/b", &[10, 20, 300, 600]), row("a b", &[10]), row("idle", &[])];
        let batches = lines("p", &rows, Duration::from_secs(2), 1234);
        assert_eq!(batches.len(), 1);
        let text = &batches[0].text;
        assert_eq!(text.matches('\n').count(), batches[0].lines);
        let name = "p.outbound.com_example_Echo.none.a_b";
        for (figure, value) in [
            ("count", "5"),
            ("rate", "2.5"),
            ("success", "0.6"),
            ("failed", "2"),
            ("refused", "0"),
            ("mean", "188"),
            ("less_50ms", "3"),
            ("less_500ms", "1"),
            ("more_500ms", "1"),
            ("slow", "2"),
        ] {
            let line = format!("{name}.{figure} {value} 1234\n");
            assert!(text.contains(&line), "no {line:?} in\n{text}");
        }
        assert!(text.contains(&format!("{name}.p999 603.98 1234\n")), "{text}");
        let idle: Vec<_> = text.lines().filter(|l| l.contains(".idle.")).collect();
        assert_eq!(idle.len(), 2, "{idle:?}");
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(words.len(), 3, "{line}");
            assert!(words[1].parse::<f64>().is_ok() && words[2] == "1234", "{line}");
        }
    }

    #[test]
    fn an_interval_cut_short_never_replaces_the_one_before() {
        let (whole, cut) = (Duration::from_secs(10), Duration::from_secs(3));
        assert_eq!(stamp(1010, 1000, whole, whole), 1010, "each whole one has the time at which it ended");
        assert_eq!(stamp(1003, 1000, cut, whole), 1010);
        assert_eq!(stamp(1003, 0, cut, whole), 1003, "there was none before");
        assert_eq!(stamp(500, 1000, cut, whole), 500, "a clock that was set back");
        let short = Duration::from_millis(100);
        assert_eq!(stamp(1000, 1000, short / 2, short), 1000);
    }

    #[test]
    fn many_lines_are_many_batches_of_whole_lines() {
        let rows: Vec<_> = (0..400).map(|i| row(&format!("m{i}"), &[1])).collect();
        let batches = lines("p", &rows, Duration::from_secs(1), 1);
        assert!(batches.len() > 10);
        assert!(batches.iter().all(|b| b.text.ends_with('\n') && b.lines < BATCH_LINES + 40));
        assert_eq!(batches.iter().map(|b| b.lines).sum::<usize>(), 400 * 17);
    }
}
