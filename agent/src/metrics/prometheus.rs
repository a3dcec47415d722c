//! The Prometheus text format, version 0.0.4: families with their help, samples, histograms.

use std::fmt::{Display, Write};

use super::Summary;

/// Media type of [`Page::into_text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in buckets.
    Histogram,
}

/// A page under construction.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

/// Rendered labels, to be used for many samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(String);

/// The samples of one name.
pub struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Labels {
    /// Adds a label; the value may hold anything.
    pub fn with(mut self, name: &str, value: impl Display) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        let from = self.0.len();
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{name}=\"{value}");
        let value = from + name.len() + 2;
        if self.0[value..].contains(['\\', '"', '\n']) {
            let raw = self.0.split_off(value);
            for c in raw.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
        }
        self.0.push('"');
        self
    }
}

impl Page {
    /// Begins a family. Each name once: the format wants all samples of a name together.
    pub fn family(&mut self, name: &'static str, kind: Type, help: &str) -> Family<'_> {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { page: self, name }
    }

    /// The page.
    pub fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub fn sample(&mut self, labels: &Labels, value: impl Display) {
        self.line("", labels, value);
    }

    /// Adds a histogram with a bucket at each doubling; borders in seconds.
    pub fn histogram(&mut self, labels: &Labels, summary: &Summary) {
        for (border, below) in summary.doublings() {
            let labels = labels.clone().with("le", border.as_secs_f64());
            self.line("_bucket", &labels, below);
        }
        self.line("_bucket", &labels.clone().with("le", "+Inf"), summary.count);
        self.line("_sum", labels, summary.sum_ns as f64 / 1e9);
        self.line("_count", labels, summary.count);
    }

    fn line(&mut self, suffix: &str, labels: &Labels, value: impl Display) {
        let text = &mut self.page.text;
        text.push_str(self.name);
        text.push_str(suffix);
        if !labels.0.is_empty() {
            text.push('{');
            text.push_str(&labels.0);
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

#[cfg(test)]
pub(crate) mod check;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Histogram;

    #[test]
    fn labels_are_escaped_and_histograms_add_up() {
        let mut page = Page::default();
        let odd = "a\\b\"c\nd";
        page.family("odd_total", Type::Counter, "Two\nlines \\ here.").sample(&Labels::default().with("l", odd), 3);
        let histogram = Histogram::default();
        for us in [1, 100, 20_000, 300_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        page.family("t_seconds", Type::Histogram, "Time.").histogram(&Labels::default(), &histogram.summary());
        page.family("now", Type::Gauge, "A gauge.").sample(&Labels::default(), 0.25);
        let text = page.into_text();
        let page = check::parse(&text);
        assert_eq!(page.value("odd_total", &[("l", odd)]), Some(3.0));
        assert_eq!(page.value("now", &[]), Some(0.25));
        assert_eq!(page.value("t_seconds_count", &[]), Some(4.0));
        assert_eq!(page.value("t_seconds_bucket", &[("le", "0.000008192")]), Some(1.0));
        assert_eq!(page.value("t_seconds_bucket", &[("le", "+Inf")]), Some(4.0));
        let below = |le: f64| {
            page.samples
                .iter()
                .filter(|s| s.name == "t_seconds_bucket")
                .find(|s| s.labels["le"].parse::<f64>() == Ok(le))
                .map(|s| s.value)
        };
        assert_eq!(below(0.000131072), Some(2.0));
        assert_eq!(below(68.719476736), Some(3.0), "a record beyond the last border is only in +Inf");
        assert_eq!(below(137.438953472), None);
    }
}
