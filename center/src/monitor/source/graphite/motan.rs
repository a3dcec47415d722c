//! What motan-go's agents send (and this mesh's with `form: motan`), as a site's statsd writes it into Graphite:
//! `ROLE.APP.GROUP.byhost.IP.SERVICE.METHOD.STAT`. Counters are of an interval, hosts and methods are added up by
//! Graphite itself; calls with the filter `metrics` are told by group, those with `clusterMetrics` by `GROUP.cluster`.

use std::collections::BTreeMap;

use model::center::{Of, Series, Side};

use super::{
    super::{Asked, Column, POSITIVE, SHARE, shares},
    Target, column,
};

/// Percentiles by their names there.
const QUANTILES: [&str; 3] = ["p50", "p99", "p999"];
/// Attempts, and calls of which several attempts may be one; the first that are there count.
const HEADS: [&str; 2] = ["", ".cluster"];

/// What all names of `of` begin with, up to the method; `head` is one of [`HEADS`].
fn names(prefix: &str, of: &Of, head: &str) -> String {
    let any = |text: &str| if text.is_empty() { "*".to_owned() } else { escape(text) };
    let role = match of.side {
        Side::Outbound => "{motan-client-agent,motan-client}",
        Side::Inbound => "{motan-server-agent,motan-server}",
    };
    let dot = if prefix.is_empty() { "" } else { "." };
    format!("{prefix}{dot}{role}.{}.{}{head}.byhost.*.{}.*", any(&of.caller), any(&of.group), any(&of.service))
}

/// motan-go's `Escape`.
fn escape(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// What is asked for in one question. Without an `interval` Graphite's own steps tell how long a counter was counted.
pub(super) fn targets(prefix: &str, of: &Of, has_interval: bool) -> Vec<String> {
    let mut targets = Vec::new();
    for head in HEADS {
        let names = names(prefix, of, head);
        let count = format!("sumSeries({names}.total_count)");
        let rate = if has_interval { count.clone() } else { format!("scaleToSeconds({count},1)") };
        targets.push(format!("alias({rate},\"rate{head}\")"));
        targets.push(format!("alias({count},\"count{head}\")"));
        for (alias, stat) in [("failed", "other_error_count"), ("slow", "slow_count")] {
            targets.push(format!("alias(sumSeries({names}.{stat}),\"{alias}{head}\")"));
        }
        for figure in QUANTILES {
            targets.push(format!("alias(maxSeries({names}.{figure}),\"{figure}{head}\")"));
        }
    }
    targets
}

/// What is asked for in a second one, which may be large: means are weighed by the calls of each host and method.
pub(super) fn mean_targets(prefix: &str, of: &Of) -> Vec<String> {
    let all = HEADS.iter().map(|head| names(prefix, of, head));
    all.flat_map(|names| ["avg_time", "total_count"].map(|stat| format!("{names}.{stat}"))).collect()
}

/// The answer to [`targets`] with that to [`mean_targets`], where there is one.
pub(super) fn series(
    asked: &Asked,
    interval_s: Option<f64>,
    targets: &[Target],
    means: &[Target],
) -> anyhow::Result<Series> {
    let windows = asked.ends().len();
    let values = |alias: &str| {
        let found = targets.iter().find(|target| target.target == alias);
        found.map_or_else(|| vec![None; windows], |target| column(asked, target).means(POSITIVE))
    };
    let known = |head: &&&str| values(&format!("rate{head}")).iter().any(Option::is_some);
    let Some(head) = HEADS.iter().find(known) else {
        anyhow::bail!("it has nothing of that name and time");
    };
    let of = |figure: &str| values(&format!("{figure}{head}"));
    let counts = of("count");
    // What is not written was zero.
    let share = |part: Vec<Option<f64>>, one_less: bool| {
        let share = |(part, all): (Option<f64>, &Option<f64>)| {
            let share = part.unwrap_or(0.0) / all.filter(|all| *all > 0.0)?;
            Some(if one_less { 1.0 - share } else { share }).filter(|share| SHARE.contains(share))
        };
        shares(part.into_iter().zip(&counts).map(share).collect())
    };
    let per_second = |count: Option<f64>| count.map(|count| interval_s.map_or(count, |interval| count / interval));
    Ok(Series {
        of: asked.of.clone(),
        source: "graphite".to_owned(),
        step_ms: asked.step_ms,
        at_ms: asked.ends(),
        rate: of("rate").into_iter().map(per_second).collect(),
        success: share(of("failed"), true),
        slow: share(of("slow"), false),
        mean_ms: mean(asked, head, means),
        p50_ms: of("p50"),
        p99_ms: of("p99"),
        p999_ms: of("p999"),
    })
}

/// The mean of all hosts and methods, each as often as it was called.
fn mean(asked: &Asked, head: &str, targets: &[Target]) -> Vec<Option<f64>> {
    let mut parts: BTreeMap<&str, [Option<Column>; 2]> = BTreeMap::new();
    for target in targets.iter().filter(|target| target.target.contains(".cluster.byhost.") != head.is_empty()) {
        for (nth, stat) in [".avg_time", ".total_count"].into_iter().enumerate() {
            if let Some(part) = target.target.strip_suffix(stat) {
                parts.entry(part).or_default()[nth] = Some(column(asked, target));
            }
        }
    }
    let windows = asked.ends().len();
    let (mut times, mut calls) = (vec![0.0; windows], vec![0.0; windows]);
    for [time, count] in parts.into_values() {
        let (Some(time), Some(count)) = (time, count) else { continue };
        for (window, (time, count)) in time.means(POSITIVE).into_iter().zip(count.means(POSITIVE)).enumerate() {
            if let (Some(time), Some(count)) = (time, count) {
                times[window] += time * count;
                calls[window] += count;
            }
        }
    }
    times.iter().zip(&calls).map(|(time, calls)| (*calls > 0.0).then(|| time / calls)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_motan_gos() {
        let of = Of { service: "com.shop.Order".into(), group: "idc a".into(), ..Of::default() };
        let name = "stats.{motan-client-agent,motan-client}.*.idc_a.byhost.*.com_shop_Order.*";
        assert_eq!(names("stats", &of, ""), name);
        let of = Of { side: Side::Inbound, caller: "my_shop".into(), ..of };
        let name = "{motan-server-agent,motan-server}.my_shop.idc_a.cluster.byhost.*.com_shop_Order.*";
        assert_eq!(names("", &of, ".cluster"), name);
    }
}
