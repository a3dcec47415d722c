//! `prometheus`: what it scrapes from agents' `/metrics`, asked for by range queries.
//!
//! Rates and success are of all calls; times are there for services whose filter `metrics` is on. Slow is what took
//! more than 268 ms, the border of agents' buckets next to 200 ms.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::future::{BoxFuture, try_join_all};
use http::{Request, header};
use http_body_util::Full;
use model::{
    center::{Of, Series, Side},
    kind::{self, Value},
};
use serde::Deserialize;

use super::{Asked, BuildCx, Column, PATIENCE, POSITIVE, SHARE, Source, address, beginning, encoded, shares};
use crate::fetch::Fetch;

/// Border of the buckets next to 200 ms, as agents write it.
const SLOW_SECONDS: &str = "0.268435456";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// URL of the server.
    address: String,
    /// Further matchers of every query, such as `job="sockmesh"`.
    labels: String,
    /// Sent as a bearer's token.
    token: Option<String>,
    /// Rates are of at least this long: four scrapes or more.
    #[serde(deserialize_with = "kind::duration")]
    window: Duration,
    /// How long it may take.
    #[serde(deserialize_with = "kind::duration")]
    timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: String::new(),
            labels: String::new(),
            token: None,
            // Prometheus scrapes once a minute or oftener, as it is set up nearly everywhere four times.
            window: Duration::from_secs(60),
            timeout: PATIENCE,
        }
    }
}

struct Prometheus {
    options: Options,
    fetch: Fetch,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Source>> {
    let mut options: Options = kind::options(options)?;
    options.address = address(&options.address)?;
    if options.window < Duration::from_secs(1) {
        bail!("window {:?} is too short; write four times the scrape interval", options.window);
    }
    if options.labels.contains(['{', '}', '\n']) {
        bail!("labels `{}` are no matchers; write them like job=\"sockmesh\",env=\"prod\"", options.labels);
    }
    Ok(Arc::new(Prometheus { options, fetch: cx.fetch.clone() }))
}

impl Source for Prometheus {
    fn name(&self) -> &'static str {
        "prometheus"
    }

    fn series<'a>(&'a self, asked: &'a Asked) -> BoxFuture<'a, anyhow::Result<Series>> {
        Box::pin(self.read(asked))
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    data: Data,
}

#[derive(Debug, Default, Deserialize)]
struct Data {
    #[serde(default)]
    result: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    /// Seconds, and the value as text.
    #[serde(default)]
    values: Vec<(f64, String)>,
}

impl Prometheus {
    async fn read(&self, asked: &Asked) -> anyhow::Result<Series> {
        let window = self.options.window.as_secs().max(asked.step_ms / 1000).max(1);
        let queries = queries(&asked.of, &self.options.labels, window)?;
        // Evaluated at the ends of windows, each over what was before.
        let ends = asked.ends();
        let (Some(first), Some(last)) = (ends.first(), ends.last()) else { bail!("no window was asked for") };
        let span = (first / 1000, last / 1000, (asked.step_ms / 1000).max(1));
        let columns = try_join_all(queries.iter().map(|query| self.column(asked, query, span))).await?;
        let mut columns = columns.into_iter();
        let mut next = |possible| {
            let column = columns.next().expect("as many as queries");
            column.map_or_else(|| vec![None; ends.len()], |column| column.means(possible))
        };
        let rate = next(POSITIVE);
        if rate.iter().all(Option::is_none) {
            bail!("{}: it has nothing of that name and time", self.options.address);
        }
        Ok(Series {
            of: asked.of.clone(),
            source: "prometheus".to_owned(),
            step_ms: asked.step_ms,
            rate,
            success: shares(next(SHARE)),
            mean_ms: next(POSITIVE),
            p50_ms: next(POSITIVE),
            p99_ms: next(POSITIVE),
            p999_ms: next(POSITIVE),
            slow: shares(next(SHARE)),
            at_ms: ends,
        })
    }

    async fn column(
        &self,
        asked: &Asked,
        query: &Option<String>,
        (start, end, step): (u64, u64, u64),
    ) -> anyhow::Result<Option<Column>> {
        let Some(query) = query else { return Ok(None) };
        let url = format!("{}/api/v1/query_range", self.options.address);
        let form = encoded(&[
            ("query", query.clone()),
            ("start", start.to_string()),
            ("end", end.to_string()),
            ("step", step.to_string()),
        ]);
        let mut request = Request::post(&url).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(token) = &self.options.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(form)))?;
        let answer = self.fetch.send(request, self.options.timeout).await?;
        let (status, body) = (answer.status(), answer.body());
        // Errors of queries come with a status of their own and a body that says why.
        let read: Result<Answer, _> = serde_json::from_slice(body);
        let said = match read {
            Ok(said) if said.status == "success" && status.is_success() => said,
            Ok(said) if !said.error.is_empty() => bail!("{url} answered {status}: {}", said.error),
            Err(error) if status.is_success() => {
                return Err(error).with_context(|| format!("{url} answered no series: `{}`", beginning(body)));
            }
            _ => bail!("{url} answered {status}: {}", beginning(body)),
        };
        let mut column = Column::new(asked);
        for row in said.data.result {
            for (seconds, value) in row.values {
                column.add(seconds * 1000.0, value.parse().unwrap_or(f64::NAN));
            }
        }
        Ok(Some(column))
    }
}

/// Rate, success, mean, three percentiles, slow; none for what it does not know.
fn queries(of: &Of, labels: &str, window: u64) -> anyhow::Result<[Option<String>; 7]> {
    if !of.caller.is_empty() {
        bail!("agents show it no figures of single callers");
    }
    let side = match of.side {
        Side::Outbound => "outbound",
        Side::Inbound => "inbound",
    };
    let mut matchers = vec![format!("direction=\"{side}\"")];
    for (label, value) in [("service", &of.service), ("group", &of.group), ("endpoint", &of.instance)] {
        if !value.is_empty() {
            matchers.push(format!("{label}=\"{}\"", escaped(value)));
        }
    }
    if !labels.is_empty() {
        matchers.push(labels.to_owned());
    }
    let matchers = matchers.join(",");
    let sum = |name: &str, more: &str| format!("sum(rate({name}{{{matchers}{more}}}[{window}s]))");
    if !of.instance.is_empty() {
        let all = sum("sockmesh_endpoint_attempts_total", "");
        let success = format!("1 - {} / {all}", sum("sockmesh_endpoint_failures_total", ""));
        return Ok([Some(all), Some(success), None, None, None, None, None]);
    }
    let calls = "sockmesh_service_calls_total";
    let times = "sockmesh_request_duration_seconds";
    let all = sum(calls, "");
    let timed = sum(&format!("{times}_count"), "");
    let buckets = format!("sum by (le) (rate({times}_bucket{{{matchers}}}[{window}s]))");
    let quantile = |share: f64| Some(format!("1000 * histogram_quantile({share}, {buckets})"));
    let below = sum(&format!("{times}_bucket"), &format!(",le=\"{SLOW_SECONDS}\""));
    Ok([
        Some(all.clone()),
        // Where nothing ever went well there is no such series.
        Some(format!("({} or vector(0)) / {all}", sum(calls, ",outcome=\"success\""))),
        Some(format!("1000 * {} / {timed}", sum(&format!("{times}_sum"), ""))),
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        Some(format!("1 - {below} / {timed}")),
    ])
}

/// Inside quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_out_of_a_matcher() {
        let of = Of { service: "a\"} or vector(1) #".to_owned(), group: "\\".to_owned(), ..Of::default() };
        let queries = queries(&of, "job=\"x\"", 60).unwrap();
        let wanted = r#"sum(rate(sockmesh_service_calls_total{direction="outbound",service="a\"} or vector(1) #",group="\\",job="x"}[60s]))"#;
        assert_eq!(queries[0].as_deref(), Some(wanted));
    }
}
