//! Filters of an entry: which there are, in which order, with which options.

use std::collections::BTreeMap;

use super::{
    super::{kinds, node::Node, problem::Report},
    Importer, table,
    tree::{Out, millis},
    url::{Url, commas},
};

/// motan-go's order: filters of the cluster stand around those of the endpoint, then by index.
const ORDER: &[(&str, bool)] = &[
    ("clusterAccessLog", true),
    ("clusterMetrics", true),
    ("clusterCircuitBreaker", true),
    ("accessLog", false),
    ("failfast", false),
    ("metrics", false),
    ("trace", false),
    ("rateLimit", false),
    ("circuitBreaker", false),
];

/// The filters of `url` in their order; `cluster` says whether it has filters of a cluster.
pub(super) fn of(importer: &Importer<'_>, url: &Url, cluster: bool, timeout: u64, report: &mut Report) -> Vec<Node> {
    let mut names = importer.agent.list("defaultFilter");
    names.retain(|n| !url.list("disableDefaultFilter").contains(n));
    let mut global = importer.agent.list("globalFilter");
    global.retain(|n| !url.list("disableGlobalFilter").contains(n));
    names.extend(global);
    names.extend(commas(importer.variable("MESH_FILTERS")));
    names.extend(url.list("filter"));
    let mut unknown = names.clone();
    unknown.retain(|n| table::FILTERS.row(n).is_none());
    unknown.dedup();
    for name in unknown {
        let place = url.place("filter");
        report.warn(place.problem(format!("`{name}` is no filter that motan-go has"), "it is left out"));
    }
    let wanted = ORDER.iter().filter(|(name, around)| names.iter().any(|n| n == name) && (cluster || !around));
    wanted.filter_map(|(name, _)| one(importer, name, url, timeout, report)).collect()
}

fn one(importer: &Importer<'_>, name: &str, url: &Url, timeout: u64, report: &mut Report) -> Option<Node> {
    let place = url.place("filter");
    let at = place.at;
    let mut options = Out::new(at);
    let native = match name {
        "accessLog" | "clusterAccessLog" => {
            options.word("format", at, if importer.structured { "json" } else { "motan" });
            options.word("level", at, if name == "accessLog" { "attempt" } else { "call" });
            "access_log"
        }
        "metrics" | "clusterMetrics" => {
            options.word("level", at, if name == "metrics" { "attempt" } else { "call" });
            "metrics"
        }
        "circuitBreaker" | "clusterCircuitBreaker" => {
            options.word("scope", at, if name == "circuitBreaker" { "endpoint" } else { "service" });
            for (key, native) in [
                ("requestThreshold", "requests"),
                ("errorPercent", "error_percent"),
                ("maxConcurrent", "max_concurrent"),
            ] {
                let key = format!("circuitBreaker.{key}");
                if let Some(n) = url.positive(&key, report) {
                    options.plain(native, url.at(&key), n);
                }
            }
            if let Some(ms) = url.positive("circuitBreaker.sleepWindow", report) {
                options.plain("sleep", url.at("circuitBreaker.sleepWindow"), millis(ms));
            }
            if let Some(counts) = url.boolean("circuitBreaker.bizException", report) {
                options.plain("business_errors", url.at("circuitBreaker.bizException"), counts);
            }
            options.plain("timeout", url.at("requestTimeout"), millis(timeout));
            // As motan-go's own: what comes out of its breaker has lost code and type.
            options.plain("replace_errors", at, true);
            "circuit_breaker"
        }
        "failfast" => "failfast",
        "trace" => "tracing",
        _ => {
            rate_limit(url, timeout, &mut options, report)?;
            "rate_limit"
        }
    };
    importer.kind(&kinds::FILTER, native, options, "", &place, report)
}

/// Tokens per second and the bucket's size, for the service and by method.
fn rate_limit(url: &Url, timeout: u64, options: &mut Out, report: &mut Report) -> Option<()> {
    let capacity = |rate: f64| ((rate * 2.0) as u64).clamp(1000, 5000);
    let at = url.at("filter");
    if let Some(rate) = url.fraction("rateLimit", report) {
        let burst = url.positive("capacity", report).unwrap_or_else(|| capacity(rate));
        options.plain("rate", url.at("rateLimit"), rate).plain("burst", url.at("capacity"), burst);
    }
    let bursts: BTreeMap<_, _> = url.of_methods("capacity", report).into_iter().map(|(m, _, n)| (m, n)).collect();
    let mut methods = Out::new(at);
    for (key, param) in url.params() {
        let Some(method) = key.strip_prefix("rateLimit.") else { continue };
        let Some(rate) = url.fraction(key, report) else { continue };
        let mut limit = Out::new(param.place.at);
        let burst = bursts.get(method).copied().unwrap_or_else(|| capacity(rate));
        limit.plain("rate", param.place.at, rate).plain("burst", param.place.at, burst);
        methods.put(method, limit.into_node());
    }
    if options.is_empty() && methods.is_empty() {
        let problem = "`rateLimit` without a limit";
        report.warn(url.place("filter").problem(problem, "it limits nothing, as in motan-go: it is left out"));
        return None;
    }
    options.plain("wait", url.at("requestTimeout"), millis(timeout));
    if !methods.is_empty() {
        options.put("methods", methods.into_node());
    }
    options.word("switcher", at, format!("{}_rateLimit", url.id));
    Some(())
}
