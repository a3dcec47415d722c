//! `graphite`: what agents send to Carbon (`graphite:` of their files), read back over `/render`; with `form: motan` what
//! motan-go's agents send.
//!
//! Hosts are added up by Graphite itself where that is right (rates, failures); means are weighed here by the calls of
//! each host. Of percentiles the highest of all hosts is taken: they cannot be added, and this one is not too low.

mod motan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, header};
use http_body_util::Full;
use model::{
    center::{Of, Series, Side},
    kind::{self, Value},
};
use serde::Deserialize;

use super::{Asked, BuildCx, Column, PATIENCE, POSITIVE, SHARE, Source, address, beginning, encoded, shares};
use crate::fetch::Fetch;

/// Longest part of a name, as agents cut it.
const PART_BYTES: usize = 128;
/// The most points that are asked for.
const POINTS: u64 = 5_000;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// URL of graphite-web or graphite-api.
    address: String,
    /// Whose names are read.
    form: Form,
    /// What names begin with; `{application}` stands for the caller that is asked for, or any.
    prefix: Option<String>,
    /// `motan`: how long each point of a counter was counted; Graphite's own steps where it is not said.
    #[serde(deserialize_with = "some_duration")]
    interval: Option<Duration>,
    /// How long it may take.
    #[serde(deserialize_with = "kind::duration")]
    timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { address: String::new(), form: Form::Plain, prefix: None, interval: None, timeout: PATIENCE }
    }
}

/// As agents call the forms of what they send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    Plain,
    Motan,
}

fn some_duration<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    kind::duration(value).map(Some)
}

struct Graphite {
    options: Options,
    fetch: Fetch,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Source>> {
    let mut options: Options = kind::options(options)?;
    options.address = address(&options.address)?;
    let usual = match options.form {
        Form::Plain => "sockmesh.*.{application}",
        // They begin with the role.
        Form::Motan => "",
    };
    let prefix = options.prefix.get_or_insert_with(|| usual.to_owned());
    let bare = prefix.replace("{application}", "*");
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '*');
    if (bare.is_empty() && options.form == Form::Plain) || !bare.chars().all(fits) {
        bail!("prefix `{prefix}` is no prefix of names; write it like sockmesh.*.{{application}}");
    }
    if options.interval.is_some_and(|interval| interval.is_zero()) {
        bail!("interval: 0 is no time; write the one that agents send in, such as 5s");
    }
    Ok(Arc::new(Graphite { options, fetch: cx.fetch.clone() }))
}

impl Source for Graphite {
    fn name(&self) -> &'static str {
        "graphite"
    }

    fn series<'a>(&'a self, asked: &'a Asked) -> BoxFuture<'a, anyhow::Result<Series>> {
        Box::pin(self.read(asked))
    }
}

/// One series of an answer.
#[derive(Debug, Deserialize)]
struct Target {
    target: String,
    /// Value and seconds.
    datapoints: Vec<(Option<f64>, f64)>,
}

impl Graphite {
    async fn read(&self, asked: &Asked) -> anyhow::Result<Series> {
        if !asked.of.instance.is_empty() {
            bail!("agents send no figures of single instances to it");
        }
        let prefix = self.options.prefix.as_deref().unwrap_or_default();
        if self.options.form == Form::Motan {
            return self.read_motan(asked, prefix).await;
        }
        let names = names(prefix, &asked.of);
        let mut form = Vec::new();
        for figure in ["rate", "failed", "slow"] {
            form.push(("target", format!("alias(sumSeries({names}.{figure}),\"{figure}\")")));
        }
        for figure in ["p50", "p99", "p999"] {
            form.push(("target", format!("alias(maxSeries({names}.{figure}),\"{figure}\")")));
        }
        // One for each host: means are weighed by counts, and both are needed of the same host.
        for figure in ["mean", "count"] {
            form.push(("target", format!("{names}.{figure}")));
        }
        let targets = self.render(asked, form).await?;
        series(asked, &targets).with_context(|| format!("{}, {names}", self.options.address))
    }

    async fn read_motan(&self, asked: &Asked, prefix: &str) -> anyhow::Result<Series> {
        if asked.of.side == Side::Inbound && !asked.of.caller.is_empty() {
            bail!("motan-go's figures of providers name no callers");
        }
        let form = |targets: Vec<String>| targets.into_iter().map(|target| ("target", target)).collect();
        let interval = self.options.interval.map(|interval| interval.as_secs_f64());
        let targets = self.render(asked, form(motan::targets(prefix, &asked.of, interval.is_some()))).await?;
        // A series for each host and method may be too much; all but the mean is known without.
        let means = match self.render(asked, form(motan::mean_targets(prefix, &asked.of))).await {
            Ok(means) => means,
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "graphite: no means");
                Vec::new()
            }
        };
        motan::series(asked, interval, &targets, &means)
            .with_context(|| format!("{}, {}", self.options.address, asked.of.service))
    }

    /// Asks for these targets over the time that is asked for.
    async fn render(&self, asked: &Asked, mut form: Vec<(&str, String)>) -> anyhow::Result<Vec<Target>> {
        let points = ((asked.to_ms - asked.from_ms) / asked.step_ms.max(1) + 2).min(POINTS);
        form.push(("format", "json".to_owned()));
        form.push(("from", (asked.from_ms / 1000).to_string()));
        form.push(("until", (asked.to_ms / 1000).to_string()));
        form.push(("maxDataPoints", points.to_string()));
        let url = format!("{}/render", self.options.address);
        let request = Request::post(&url)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(encoded(&form))))?;
        let answer = self.fetch.send(request, self.options.timeout).await?;
        let body = answer.body();
        if !answer.status().is_success() {
            bail!("{url} answered {}: {}", answer.status(), beginning(body));
        }
        serde_json::from_slice(body).with_context(|| format!("{url} answered no series: `{}`", beginning(body)))
    }
}

/// `PREFIX.SIDE.SERVICE.GROUP._all`, as agents name it; what is not said is any.
fn names(prefix: &str, of: &Of) -> String {
    let any = |text: &str| if text.is_empty() { "*".to_owned() } else { part(text) };
    let side = match of.side {
        Side::Outbound => "outbound",
        Side::Inbound => "inbound",
    };
    let prefix = prefix.replace("{application}", &any(&of.caller));
    format!("{prefix}.{side}.{}.{}._all", any(&of.service), any(&of.group))
}

fn part(text: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
    let mut part: String = text.chars().map(fits).collect();
    part.truncate(PART_BYTES);
    part
}

/// Time between the points of a series, in milliseconds: they stand at the begin of their windows.
fn interval_ms(points: &[(Option<f64>, f64)]) -> f64 {
    let steps = points.windows(2).map(|two| (two[1].1 - two[0].1) * 1000.0).filter(|step| *step >= 1000.0);
    steps.fold(f64::INFINITY, f64::min)
}

fn column(asked: &Asked, target: &Target) -> Column {
    let mut column = Column::new(asked);
    let interval = interval_ms(&target.datapoints);
    let interval = if interval.is_finite() { interval } else { asked.step_ms as f64 };
    for (value, seconds) in &target.datapoints {
        if let Some(value) = value {
            column.add(seconds * 1000.0 + interval, *value);
        }
    }
    column
}

fn series(asked: &Asked, targets: &[Target]) -> anyhow::Result<Series> {
    let named = |figure: &str| targets.iter().find(|t| t.target == figure).map(|t| column(asked, t));
    let values = |figure: &str| {
        let means = named(figure).map(|column| column.means(POSITIVE));
        means.unwrap_or_else(|| vec![None; asked.ends().len()])
    };
    let rate = values("rate");
    if rate.iter().all(Option::is_none) {
        bail!("it has nothing of that name and time");
    }
    let (mean_ms, counts) = means(asked, targets);
    // Counts are of an interval of the agents, whatever that is; as shares of each other they need no unit.
    let share = |part: Vec<Option<f64>>, one_less: bool| {
        let share = |(part, all): (Option<f64>, &Option<f64>)| {
            let all = all.filter(|all| *all > 0.0)?;
            // What is not written was zero.
            let share = part.unwrap_or(0.0) / all;
            Some(if one_less { 1.0 - share } else { share }).filter(|share| SHARE.contains(share))
        };
        shares(part.into_iter().zip(&counts).map(share).collect())
    };
    Ok(Series {
        of: asked.of.clone(),
        source: "graphite".to_owned(),
        step_ms: asked.step_ms,
        at_ms: asked.ends(),
        success: share(values("failed"), true),
        slow: share(values("slow"), false),
        mean_ms,
        p50_ms: values("p50"),
        p99_ms: values("p99"),
        p999_ms: values("p999"),
        rate,
    })
}

/// The mean of all hosts, and the calls of all in an interval of one.
fn means(asked: &Asked, targets: &[Target]) -> (Vec<Option<f64>>, Vec<Option<f64>>) {
    let mut hosts: BTreeMap<&str, [Option<Column>; 2]> = BTreeMap::new();
    for target in targets {
        for (nth, figure) in [".mean", ".count"].into_iter().enumerate() {
            if let Some(host) = target.target.strip_suffix(figure) {
                hosts.entry(host).or_default()[nth] = Some(column(asked, target));
            }
        }
    }
    let windows = asked.ends().len();
    let (mut times, mut counts) = (vec![0.0; windows], vec![None; windows]);
    for [mean, count] in hosts.into_values() {
        let Some(count) = count.map(|column| column.means(POSITIVE)) else { continue };
        let mean = mean.map(|column| column.means(POSITIVE)).unwrap_or_else(|| vec![None; windows]);
        for window in 0..windows {
            let Some(calls) = count[window] else { continue };
            *counts[window].get_or_insert(0.0) += calls;
            times[window] += mean[window].unwrap_or(0.0) * calls;
        }
    }
    let mean = |(time, count): (&f64, &Option<f64>)| count.filter(|n| *n > 0.0).map(|n| time / n);
    (times.iter().zip(&counts).map(mean).collect(), counts)
}
