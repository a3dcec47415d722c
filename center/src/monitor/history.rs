//! Figures over time, from whoever has them: sources of the site first, then what agents sent, in memory and in the
//! file of the last day. What failed is told in the answer, and is not asked again for a while.

use std::{path::Path, sync::Arc, time::Duration};

use model::{
    center::{Of, Series},
    kind,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Config, Monitor,
    day::{Day, Minute, ROWS_A_MINUTE},
    other,
    ring::STEPS,
    series::{Builder, Grid},
    source::{self, Asked, Source},
};
use crate::error::{Code, Error};

/// How long figures are kept unless it is said otherwise.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// The longest that they may be kept.
const LONGEST: Duration = Duration::from_secs(90 * 24 * 3600);
/// A source that failed is not asked for so long: pages that many people look at must not wait for it again and again.
const REST: Duration = Duration::from_secs(10);
/// Minutes that are put back into memory at a start.
const RESTORED: u32 = 60;
/// Length of a minute.
const MINUTE_MS: u64 = STEPS[2];
/// A minute is kept when so much of the next one is over: by then all agents have reported.
const LATE_MS: u64 = 10_000;

/// Where figures of longer times are.
pub(super) struct History {
    sources: Vec<Watched>,
    pub day: Option<Day>,
    /// Why there is no file although there should be one.
    pub broken: Option<String>,
}

struct Watched {
    source: Arc<dyn Source>,
    failed: Mutex<Option<(Instant, String)>>,
}

impl History {
    /// Builds the sources, and opens the file in `data` if figures are to be kept.
    ///
    /// # Errors
    /// An option is wrong.
    pub(super) fn open(config: &Config, data: Option<&Path>) -> anyhow::Result<Self> {
        let cx = source::BuildCx::default();
        let build = |choice: &super::SourceChoice| {
            let source = kind::build("source of figures", source::KINDS, &choice.kind, &choice.options, &cx)?;
            Ok(Watched { source, failed: Mutex::default() })
        };
        let sources = config.sources.iter().map(build).collect::<anyhow::Result<Vec<_>>>()?;
        let keep = config.keep.unwrap_or(if sources.is_empty() { KEEP } else { Duration::ZERO });
        if keep > LONGEST {
            anyhow::bail!("monitor.keep {keep:?} is too long; write at most 90 days (2160h), or configure a source");
        }
        let minutes = u32::try_from(keep.as_secs() / 60).unwrap_or(u32::MAX);
        let (mut day, mut broken) = (None, None);
        if let Some(data) = data.filter(|_| minutes > 0) {
            match Day::open(data, minutes) {
                Ok(opened) => day = Some(opened),
                Err(error) => {
                    // No reason to be without a registry.
                    tracing::warn!(error = format!("{error:#}"), "figures are kept in memory only");
                    broken = Some(format!("{error:#}"));
                }
            }
        }
        Ok(Self { sources, day, broken })
    }

    /// Whether minutes are to be written.
    pub(super) fn keeps(&self) -> bool {
        self.day.is_some()
    }
}

/// Writes every minute when it is over.
pub(super) fn keep(monitor: &Arc<Monitor>) {
    let weak = Arc::downgrade(monitor);
    let mut next = monitor.time.now() / MINUTE_MS;
    tokio::spawn(async move {
        loop {
            let Some(monitor) = weak.upgrade() else { return };
            let now = monitor.time.now();
            let due = (next + 1) * MINUTE_MS + LATE_MS;
            if now >= due {
                monitor.keep_minute(next);
                next += 1;
                continue;
            }
            drop(monitor);
            tokio::time::sleep(Duration::from_millis(due - now)).await;
        }
    });
}

impl Monitor {
    /// Queues a minute for the disk.
    pub(super) fn keep_minute(&self, index: u64) {
        let Some(day) = self.history.get().and_then(|history| history.day.as_ref()) else { return };
        let (rows, left_out) = self.seen.lock().table.minute(index, ROWS_A_MINUTE);
        day.left_out(left_out);
        let at_ms = (index * MINUTE_MS).saturating_add_signed(self.time.offset());
        // Rounded: a clock that was set leaves windows between two minutes.
        let number = u32::try_from((at_ms + MINUTE_MS / 2) / MINUTE_MS).unwrap_or(u32::MAX);
        if !rows.is_empty() {
            day.keep(Minute { number, rows });
        }
    }

    /// Puts the last hour back into memory.
    pub(super) fn restore(&self, history: &History) {
        let Some(day) = &history.day else { return };
        let first = u32::try_from(self.time.now() / MINUTE_MS).unwrap_or(u32::MAX).saturating_sub(RESTORED);
        let mut seen = self.seen.lock();
        let read = day.since(first, |key, slot| seen.table.restore(key, &slot));
        drop(seen);
        if let Err(error) = read {
            tracing::warn!(error = format!("{error:#}"), "figures of the last hour cannot be read");
        }
    }

    /// See [`Monitor::series`].
    pub(super) async fn history(&self, of: &Of, from_ms: u64, to_ms: u64, step_ms: u64) -> Result<Series, Error> {
        let mut told = Vec::new();
        for watched in self.history.get().map_or(&[][..], |history| &history.sources) {
            match self.ask(watched, of, from_ms, to_ms, step_ms).await {
                Ok(mut series) => {
                    if !told.is_empty() {
                        series.source = format!("{} ({})", series.source, told.join("; "));
                    }
                    return Ok(series);
                }
                Err(why) => told.push(format!("{}: {why}", watched.source.name())),
            }
        }
        let mut series = self.of_agents(of, from_ms, to_ms, step_ms).await;
        if told.is_empty() {
            return Ok(series);
        }
        let why = told.join("; ");
        let oldest = self.time.now().saturating_add_signed(self.time.offset()).saturating_sub(2 * 3_600_000);
        if series.rate.iter().all(Option::is_none) && to_ms < oldest && !told.is_empty() {
            let remedy = "repair that source, or ask for a later time, which agents' own figures reach back to";
            return Err(Error::new(Code::Unavailable, format!("no figures: {why}"), remedy));
        }
        series.source = format!("{} ({why})", series.source);
        Ok(series)
    }

    async fn ask(&self, watched: &Watched, of: &Of, from_ms: u64, to_ms: u64, step_ms: u64) -> Result<Series, String> {
        if let Some((at, why)) = watched.failed.lock().as_ref().filter(|(at, _)| at.elapsed() < REST) {
            return Err(format!(
                "{why}; asked again in {:?}",
                Duration::from_secs((REST - at.elapsed()).as_secs() + 1)
            ));
        }
        let step_ms = step_of(from_ms, to_ms, step_ms);
        let mut why = String::new();
        for side in [of.side, other(of.side)] {
            let asked = Asked { of: Of { side, ..of.clone() }, from_ms, to_ms, step_ms };
            match watched.source.series(&asked).await {
                Ok(series) => {
                    *watched.failed.lock() = None;
                    return Ok(series);
                }
                Err(error) => why = format!("{error:#}"),
            }
            // Only one that answers is asked for the other side.
            if !why.contains("nothing of that name") {
                break;
            }
        }
        let answers = ["nothing of that name", "agents send no", "agents show it no"];
        if !answers.iter().any(|answer| why.contains(answer)) {
            *watched.failed.lock() = Some((Instant::now(), why.clone()));
            tracing::warn!(source = watched.source.name(), error = why, "figures of agents instead of a source's");
        }
        Err(why)
    }

    /// What agents sent: from memory, and minutes that are not there any more from the file.
    async fn of_agents(&self, of: &Of, from_ms: u64, to_ms: u64, step_ms: u64) -> Series {
        let (now, offset) = (self.time.now(), self.time.offset());
        let mono = |ms: u64| ms.saturating_add_signed(-offset);
        let grid = Grid::new(mono(from_ms), mono(to_ms), step_ms, now, self.seen.lock().table.keep(of));
        let day = self.history.get().and_then(|history| history.day.as_ref()).filter(|_| grid.level == 2);
        let (known, series) = self.of_side(of, grid, day, offset).await;
        if !known {
            let of = Of { side: other(of.side), ..of.clone() };
            let (known, other) = self.of_side(&of, grid, day, offset).await;
            if known {
                return other;
            }
        }
        series
    }

    /// What agents sent of exactly this side, and whether that is anything.
    async fn of_side(&self, of: &Of, grid: Grid, day: Option<&Day>, offset: i64) -> (bool, Series) {
        let mut builder = Builder::new(grid);
        let (first, end) = grid.ring();
        let (mut known, mut source) = (false, "agents".to_owned());
        // Of one minute memory knows more than the file: the file is asked for what is before memory.
        let mut oldest = end + 1;
        {
            let (now, seen) = (self.time.now(), self.seen.lock());
            for row in seen.table.rows(of) {
                let windows = row.windows(grid.level, first, end, now);
                known |= !windows.is_empty();
                oldest = windows.first().map_or(oldest, |(index, _)| oldest.min(*index));
                builder.add(windows);
            }
        }
        if let Some(day) = day.filter(|_| oldest > first) {
            // Minutes of the file are of the day; those of memory go on when a clock is set.
            let shift = offset.div_euclid(MINUTE_MS.cast_signed());
            let wall = |index: u64| u32::try_from(index.saturating_add_signed(shift)).unwrap_or(u32::MAX);
            match day.read(of.clone(), wall(first), wall(oldest).saturating_sub(1)).await {
                Ok(rows) => {
                    for mut row in rows {
                        known |= !row.is_empty();
                        row.iter_mut().for_each(|slot| slot.index = slot.index.saturating_add_signed(-shift));
                        builder.add_minutes(row);
                    }
                }
                Err(error) => source = format!("agents (their file: {error:#})"),
            }
        }
        (known, builder.build(of, &source, offset))
    }
}

/// A step of whole seconds that is not too short for the span.
fn step_of(from_ms: u64, to_ms: u64, step_ms: u64) -> u64 {
    const STEPS_SECONDS: [u64; 12] = [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
    let span = to_ms.saturating_sub(from_ms);
    let shortest = if step_ms == 0 { span.div_ceil(400) } else { step_ms.max(span.div_ceil(5_000)) };
    if step_ms >= shortest && step_ms > 0 {
        return step_ms.div_ceil(1000) * 1000;
    }
    let fits = STEPS_SECONDS.into_iter().map(|seconds| seconds * 1000).find(|step| *step >= shortest);
    fits.unwrap_or_else(|| shortest.div_ceil(3_600_000) * 3_600_000)
}
