//! What a report must be to be counted: it comes from a program that may be wrong or bad.

use model::center::{Histogram, Report, Sample};

use crate::error::Error;

/// Samples and edges of one report, each.
const MOST: usize = 20_000;
/// Bytes of a name.
const NAME: usize = 256;
/// Bytes of a sentence in the status.
const SENTENCE: usize = 1024;
/// Longest window: an agent that was held up for longer tells the rest with the next.
const LONGEST_SECONDS: f64 = 60.0;

/// Checks all of a report.
///
/// # Errors
/// Names the first thing that is not as it must be; nothing of the report may be counted.
pub(super) fn check(report: &Report) -> Result<(), Error> {
    let remedy = "is the agent of the same version as the centre?";
    let wrong = |what: String| Err(Error::bad(what, remedy));
    if report.agent.is_empty() {
        return wrong("a report must name its agent".to_owned());
    }
    name("agent", &report.agent)?;
    // Not `>`: not a number is wrong, too.
    if !(report.window_seconds > 0.0 && report.window_seconds <= LONGEST_SECONDS) {
        return wrong(format!("window_seconds is {:e}, must be above 0 and at most 60", report.window_seconds));
    }
    for (what, n) in [("samples", report.samples.len()), ("edges", report.edges.len())] {
        if n > MOST {
            return wrong(format!("{n} {what}, at most {MOST} in one report"));
        }
    }
    let status = &report.status;
    for text in [&status.version, &status.application, &status.zone, &status.kernel, &status.capture, &status.redirect]
    {
        name("status", text)?;
    }
    let sentences = [&status.capture_reason, &status.redirect_reason].into_iter();
    for text in sentences.chain(&status.config_error).chain(&status.held) {
        if text.len() > SENTENCE {
            return wrong(format!("a text of the status has {} bytes, at most {SENTENCE}", text.len()));
        }
    }
    if status.held.len() > 1000 {
        return wrong(format!("{} lists held back, at most 1000 are told", status.held.len()));
    }
    if !status.uptime_seconds.is_finite() {
        return wrong("uptime_seconds is no number".to_owned());
    }
    report.samples.iter().try_for_each(sample)?;
    for edge in &report.edges {
        for (what, text) in [("caller", &edge.caller), ("service", &edge.service), ("group", &edge.group)] {
            name(what, text)?;
        }
        name("protocol", &edge.protocol)?;
        if !["redirect", "joined", "kernel", "tcp", ""].contains(&edge.way.as_str()) {
            return wrong(format!("way `{}` is none of redirect, joined, kernel, tcp", short(&edge.way)));
        }
    }
    Ok(())
}

fn sample(sample: &Sample) -> Result<(), Error> {
    if sample.service.is_empty() {
        return Err(Error::bad("a sample must name its service", ""));
    }
    let names = [("service", &sample.service), ("group", &sample.group), ("instance", &sample.instance)];
    for (what, text) in names.into_iter().chain([("caller", &sample.caller), ("method", &sample.method)]) {
        name(what, text)?;
    }
    let buckets = &sample.times.buckets;
    let last = Histogram::bucket(u64::MAX);
    if buckets.iter().any(|(bucket, _)| *bucket > last) || buckets.windows(2).any(|two| two[0].0 >= two[1].0) {
        let what = format!("times of `{}` are not in the order of buckets 0 to {last}", sample.service);
        return Err(Error::bad(what, "is the agent of the same version as the centre?"));
    }
    Ok(())
}

fn name(what: &str, text: &str) -> Result<(), Error> {
    if text.len() > NAME || text.chars().any(char::is_control) {
        let what = format!("{what} `{}` is too long or has control characters; at most {NAME} bytes", short(text));
        return Err(Error::bad(what, "name it otherwise"));
    }
    Ok(())
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}
