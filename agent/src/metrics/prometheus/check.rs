//! A strict reader of the text format, for tests: whatever a scraper would refuse, this panics on.

use std::collections::{BTreeMap, HashMap, HashSet};

/// One line.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// A page that obeys the format.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) types: HashMap<String, String>,
    pub(crate) samples: Vec<Sample>,
}

impl Parsed {
    /// The sample with exactly these labels.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.samples.iter().find(|s| s.name == name && s.labels == labels).map(|s| s.value)
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Reads a page. Panics on: a name that is none, a sample before its type or away from its family, help
/// or type given twice, two samples of the same labels, a counter not ending in `_total`, a histogram
/// that falls, lacks `+Inf` or whose count differs.
pub(crate) fn parse(text: &str) -> Parsed {
    assert!(text.ends_with('\n'), "the last line has no end");
    let mut types: HashMap<String, String> = HashMap::new();
    let mut helps = HashSet::new();
    let mut samples: Vec<Sample> = Vec::new();
    let mut seen = HashSet::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("help has a text");
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(helps.insert(name.to_owned()), "help of {name} given twice");
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(helps.contains(name), "no help before the type of {name}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "type of {name} given twice");
            family = name.to_owned();
            continue;
        }
        let sample = sample(line);
        let base = match types.get(&family).map(String::as_str) {
            Some("histogram") => ["_bucket", "_sum", "_count"].iter().find_map(|s| sample.name.strip_suffix(s)),
            _ => Some(sample.name.as_str()),
        };
        assert_eq!(base, Some(family.as_str()), "away from its family: {line}");
        assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "given twice: {line}");
        samples.push(sample);
    }
    let parsed = Parsed { types, samples };
    histograms(&parsed);
    parsed
}

/// Name and labels without the border.
type Series = (String, BTreeMap<String, String>);

fn histograms(page: &Parsed) {
    let mut rows: HashMap<Series, Vec<(f64, f64)>> = HashMap::new();
    for s in &page.samples {
        if let Some(base) = s.name.strip_suffix("_bucket") {
            let mut labels = s.labels.clone();
            let le = labels.remove("le").expect("a bucket has a border").parse().expect("a number");
            rows.entry((base.to_owned(), labels)).or_default().push((le, s.value));
        }
    }
    for ((base, labels), buckets) in rows {
        assert!(buckets.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1), "{base} {labels:?}: {buckets:?}");
        let last = buckets.last().expect("at least one");
        assert_eq!(last.0, f64::INFINITY, "{base} {labels:?}");
        let count = page.samples.iter().find(|s| s.name == format!("{base}_count") && s.labels == labels);
        assert_eq!(count.map(|c| c.value), Some(last.1), "{base} {labels:?}");
    }
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect("a name ends");
    let name = line[..end].to_owned();
    assert!(is_name(&name), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = &line[end..];
    if let Some(mut inner) = rest.strip_prefix('{') {
        while !inner.starts_with('}') {
            let (label, after) = inner.split_once("=\"").expect("a label has a value");
            assert!(is_name(label), "{line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().expect("a value ends").1 {
                    '"' => break chars.offset(),
                    '\\' => value.push(match chars.next().expect("an escape goes on").1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("no such escape: {c} in {line}"),
                    }),
                    c => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "label given twice: {line}");
            inner = after[end..].strip_prefix(',').unwrap_or(&after[end..]);
        }
        rest = &inner[1..];
    }
    let value = rest.strip_prefix(' ').expect("a blank before the value");
    let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    Sample { name, labels, value }
}
