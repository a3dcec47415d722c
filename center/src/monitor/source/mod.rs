//! Where figures of longer times come from, beside what agents send: servers that a site has anyway.

mod graphite;
mod prometheus;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::bail;
use futures_util::future::BoxFuture;
use model::{
    center::{Of, Series},
    kind,
};
use registries::fetch::percent;

use crate::fetch::Fetch;

/// A row of [`KINDS`].
pub type Kind = kind::Kind<dyn Source, BuildCx>;

/// Sources by name.
pub const KINDS: &[Kind] =
    &[Kind { name: "graphite", build: graphite::build }, Kind { name: "prometheus", build: prometheus::build }];

/// What a source may need while it is built.
#[derive(Clone, Debug, Default)]
pub struct BuildCx {
    /// Asks servers.
    pub fetch: Fetch,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Whose figures, of exactly this side.
    pub of: Of,
    /// Begin of the first window.
    pub from_ms: u64,
    /// End of the last window.
    pub to_ms: u64,
    /// Length of the windows, a multiple of a second.
    pub step_ms: u64,
}

impl Asked {
    /// Ends of the windows. Their number is bounded by whoever asks.
    fn ends(&self) -> Vec<u64> {
        let step = self.step_ms.max(1);
        (self.from_ms / step + 1..=self.to_ms / step).map(|n| n * step).collect()
    }
}

/// A server that keeps figures.
pub trait Source: Send + Sync + 'static {
    /// The word in [`Series::source`].
    fn name(&self) -> &'static str;

    /// Figures over time, one for each window, none where the server knows nothing. Resolves within the patience that
    /// is configured.
    ///
    /// An error says why: it does not answer, answers nonsense, has nothing of the kind.
    fn series<'a>(&'a self, asked: &'a Asked) -> BoxFuture<'a, anyhow::Result<Series>>;
}

/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The URL of a server, without a slash at its end.
fn address(text: &str) -> anyhow::Result<String> {
    let text = text.trim_end_matches('/');
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    if rest.is_none_or(str::is_empty) || text.contains(['?', '#', ' ']) || text.parse::<http::Uri>().is_err() {
        bail!("address `{text}` is no URL; write it like http://10.0.0.9:8080");
    }
    Ok(text.to_owned())
}

/// Values of one figure in windows: means of the points within each.
#[derive(Debug)]
struct Column {
    sums: Vec<(f64, u32)>,
    step_ms: u64,
    first_end_ms: u64,
}

impl Column {
    fn new(asked: &Asked) -> Self {
        let ends = asked.ends();
        Self {
            sums: vec![(0.0, 0); ends.len()],
            step_ms: asked.step_ms.max(1),
            first_end_ms: ends.first().copied().unwrap_or(0),
        }
    }

    /// Adds a point of the window that ends at `end_ms`. What is no number or of another time is left out.
    fn add(&mut self, end_ms: f64, value: f64) {
        let begin = self.first_end_ms as f64 - self.step_ms as f64;
        // A window's own end belongs to it.
        let window = ((end_ms - begin) / self.step_ms as f64).ceil() - 1.0;
        if value.is_finite() && window >= 0.0 && window < self.sums.len() as f64 {
            let (sum, n) = &mut self.sums[window as usize];
            *sum += value;
            *n += 1;
        }
    }

    /// One value for each window; those that cannot be are left out.
    fn means(&self, possible: std::ops::RangeInclusive<f64>) -> Vec<Option<f64>> {
        let mean = |(sum, n): &(f64, u32)| (*n > 0).then(|| sum / f64::from(*n)).filter(|v| possible.contains(v));
        self.sums.iter().map(mean).collect()
    }
}

/// Rates and times that can be.
const POSITIVE: std::ops::RangeInclusive<f64> = 0.0..=1e15;
/// Shares that can be, with what rounding adds.
const SHARE: std::ops::RangeInclusive<f64> = -1e-6..=1.000_001;

fn shares(values: Vec<Option<f64>>) -> Vec<Option<f64>> {
    values.into_iter().map(|value| value.map(|share| share.clamp(0.0, 1.0))).collect()
}

/// The beginning of an answer, for an error.
fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(400)]);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect();
    text.trim().to_owned()
}

/// As a form of a page.
fn encoded(form: &[(&str, String)]) -> String {
    let pairs: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", percent(value, "*"))).collect();
    pairs.join("&")
}
