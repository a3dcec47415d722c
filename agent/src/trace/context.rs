//! The context of a trace as it travels: W3C `traceparent`, and B3 in one header or in several.

use std::fmt::Write;

use crate::call::Text;

/// What was decided about recording a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing yet.
    Open,
    /// Recorded.
    Yes,
    /// Recorded, for whoever looks for a mistake (B3 debug).
    Debug,
    /// Not recorded as far as the share goes (W3C: the caller may not have recorded it).
    No,
    /// Not to be recorded by anyone (B3: denied).
    Deny,
}

impl Decision {
    /// Whether spans are kept whatever becomes of the call.
    pub const fn is_yes(self) -> bool {
        matches!(self, Self::Yes | Self::Debug)
    }
}

/// In which forms a context came, and goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    /// `traceparent`.
    pub w3c: bool,
    /// `b3`.
    pub b3: bool,
    /// `X-B3-…`.
    pub b3_multi: bool,
}

impl Forms {
    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        !self.w3c && !self.b3 && !self.b3_multi
    }
}

/// A place in a trace.
#[derive(Clone, Debug)]
pub struct Context {
    /// Trace.
    pub trace: u128,
    /// Span that calls; `None` when the trace begins here.
    pub span: Option<u64>,
    /// Whether it is recorded.
    pub decision: Decision,
    /// Forms it came in.
    pub forms: Forms,
    /// The trace id came with 64 bits, and B3 goes on with as many.
    pub short: bool,
    /// `tracestate`, carried as it came.
    pub state: Text,
}

impl Context {
    /// Reads what came with a call. `get` finds a value by its name as written here, in any case where the
    /// protocol says so. What is malformed counts as absent; W3C goes before B3, one header before several.
    pub fn read(get: impl Fn(&'static str) -> Option<Text>) -> Self {
        let mut forms = Forms::default();
        let w3c = get("traceparent").and_then(|text| w3c(&text));
        forms.w3c = w3c.is_some();
        let single = get("b3").and_then(|text| b3(&text));
        forms.b3 = single.is_some();
        let multi = || {
            let ids = get("X-B3-TraceId").and_then(|t| trace_id(&t)).zip(get("X-B3-SpanId").and_then(|s| span_id(&s)));
            let debug = get("X-B3-Flags").is_some_and(|flags| flags == "1");
            let sampled = get("X-B3-Sampled");
            let decision = match sampled.as_deref() {
                _ if debug => Decision::Debug,
                Some("1" | "true") => Decision::Yes,
                Some("0" | "false") => Decision::Deny,
                _ => Decision::Open,
            };
            (ids.is_some() || decision != Decision::Open).then_some((ids, decision))
        };
        let multi = multi();
        forms.b3_multi = multi.is_some();
        let (ids, decision) = w3c.or(single).or(multi).unwrap_or((None, Decision::Open));
        let ((trace, short), span) = match ids {
            Some((trace, span)) => (trace, Some(span)),
            // Never 0, which means none.
            None => ((fastrand::u128(1..), false), None),
        };
        let state = if forms.w3c { get("tracestate").unwrap_or_default() } else { Text::default() };
        Self { trace, span, decision, forms, short, state }
    }

    /// Hands `put` each name and value that tells the next hop about this trace, with `span` as its parent.
    pub fn write(&self, span: u64, forms: Forms, mut put: impl FnMut(&'static str, String)) {
        let trace = self.trace;
        if forms.w3c {
            put("traceparent", format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(self.decision.is_yes())));
        }
        if !forms.b3 && !forms.b3_multi {
            return;
        }
        let trace = if self.short { format!("{trace:016x}") } else { format!("{trace:032x}") };
        let sampled = match self.decision {
            Decision::Open => None,
            Decision::Yes => Some("1"),
            Decision::Debug => Some("d"),
            Decision::No | Decision::Deny => Some("0"),
        };
        if forms.b3 {
            let mut text = format!("{trace}-{span:016x}");
            if let Some(sampled) = sampled {
                // Writing to a String cannot fail.
                let _ = write!(text, "-{sampled}");
                if let Some(parent) = self.span {
                    let _ = write!(text, "-{parent:016x}");
                }
            }
            put("b3", text);
        }
        if forms.b3_multi {
            put("X-B3-TraceId", trace);
            put("X-B3-SpanId", format!("{span:016x}"));
            if let Some(parent) = self.span {
                put("X-B3-ParentSpanId", format!("{parent:016x}"));
            }
            match sampled {
                Some("d") => put("X-B3-Flags", "1".to_owned()),
                Some(sampled) => put("X-B3-Sampled", sampled.to_owned()),
                None => {}
            }
        }
    }

    /// Decides for this share of all traces, 0 to 1, unless it is decided. By the trace's own id, so that
    /// agents with the same share decide alike.
    pub fn decide(&mut self, share: f64) {
        if self.decision == Decision::Open {
            let place = (self.trace as u64 >> 11) as f64 / (1u64 << 53) as f64;
            self.decision = if place < share { Decision::Yes } else { Decision::No };
        }
    }
}

type Ids = ((u128, bool), u64);

fn hex(text: &str) -> Option<u128> {
    // `from_str_radix` takes a sign.
    let fine = text.len() <= 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    fine.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

fn trace_id(text: &str) -> Option<(u128, bool)> {
    let known = text.len() == 16 || text.len() == 32;
    hex(text).filter(|id| known && *id != 0).map(|id| (id, text.len() == 16))
}

fn span_id(text: &str) -> Option<u64> {
    hex(text).filter(|id| text.len() == 16 && *id != 0).map(|id| id as u64)
}

/// <https://www.w3.org/TR/trace-context/>, version 00; what later ones add behind it is left alone.
fn w3c(text: &str) -> Option<(Option<Ids>, Decision)> {
    let lower = |part: &&str| !part.bytes().any(|b| b.is_ascii_uppercase());
    let mut parts = text.trim().split('-');
    let version = parts.next().filter(|v| v.len() == 2).filter(lower)?;
    let trace = parts.next().filter(|t| t.len() == 32).filter(lower).and_then(trace_id)?;
    let span = parts.next().filter(lower).and_then(span_id)?;
    let flags = parts.next().filter(|f| f.len() == 2).and_then(hex)?;
    if hex(version)? == 0xff || version == "00" && parts.next().is_some() {
        return None;
    }
    let decision = if flags & 1 == 1 { Decision::Yes } else { Decision::No };
    Some((Some((trace, span)), decision))
}

/// `TRACE-SPAN[-SAMPLED[-PARENT]]`, or the decision alone.
fn b3(text: &str) -> Option<(Option<Ids>, Decision)> {
    let decision = |text: &str| match text {
        "1" => Some(Decision::Yes),
        "d" => Some(Decision::Debug),
        "0" => Some(Decision::Deny),
        _ => None,
    };
    let text = text.trim();
    if let Some(alone) = decision(text) {
        return Some((None, alone));
    }
    let mut parts = text.split('-');
    let ids = (parts.next().and_then(trace_id)?, parts.next().and_then(span_id)?);
    let decided = match parts.next() {
        None => Decision::Open,
        Some(text) => decision(text)?,
    };
    let parent = parts.next().is_none_or(|parent| span_id(parent).is_some());
    (parent && parts.next().is_none()).then_some((Some(ids), decided))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn read(pairs: &[(&str, &str)]) -> Context {
        Context::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| Text::from(*v)))
    }

    fn written(context: &Context, forms: Forms) -> Vec<(&'static str, String)> {
        let mut all = Vec::new();
        context.write(0xabc, forms, |name, value| all.push((name, value)));
        all
    }

    #[test]
    fn w3c_comes_and_goes() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let context = read(&[("traceparent", &parent), ("tracestate", "a=1,b=2")]);
        assert_eq!((context.decision, context.span), (Decision::Yes, Some(0xb7ad_6b71_6920_3331)));
        assert_eq!(context.state, "a=1,b=2");
        let expected = vec![("traceparent", format!("00-{TRACE}-0000000000000abc-01"))];
        assert_eq!(written(&context, context.forms), expected);
        assert_eq!(read(&[("traceparent", &parent.replace("-01", "-00"))]).decision, Decision::No);
        let later = format!("cc-{TRACE}-{SPAN}-01-what-comes");
        assert_eq!(read(&[("traceparent", &later)]).decision, Decision::Yes);
    }

    #[test]
    fn what_is_malformed_begins_a_new_trace() {
        for bad in [
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            "中".repeat(20),
        ] {
            let context = read(&[("traceparent", &bad), ("tracestate", "a=1")]);
            assert!(context.forms.is_empty() && context.span.is_none() && context.trace != 0, "{bad}");
            assert_eq!((context.decision, &*context.state), (Decision::Open, ""), "{bad}");
        }
        for bad in [TRACE.to_owned(), format!("{TRACE}-{SPAN}-x"), format!("{TRACE}-{SPAN}-1-y"), "2".to_owned()] {
            assert!(read(&[("b3", &bad)]).forms.is_empty(), "{bad}");
        }
    }

    #[test]
    fn b3_in_one_header_and_in_several() {
        let short = "8448eb211c80319c";
        let context = read(&[("b3", &format!("{short}-{SPAN}-1-{SPAN}"))]);
        assert!(context.short && context.decision == Decision::Yes);
        let expected = vec![("b3", format!("{short}-0000000000000abc-1-{SPAN}"))];
        assert_eq!(written(&context, context.forms), expected);
        let alone = read(&[("b3", "0")]);
        assert_eq!((alone.decision, alone.span, alone.forms.b3), (Decision::Deny, None, true));
        assert!(written(&alone, alone.forms)[0].1.ends_with("-0000000000000abc-0"));
        let open = read(&[("b3", &format!("{TRACE}-{SPAN}"))]);
        assert_eq!(written(&open, open.forms), vec![("b3", format!("{TRACE}-0000000000000abc"))]);

        let ids = [("X-B3-TraceId", TRACE), ("X-B3-SpanId", SPAN)];
        let sampled = |name, value| read(&[ids[0], ids[1], (name, value)]);
        for (name, value, decision) in [
            ("X-B3-Sampled", "1", Decision::Yes),
            ("X-B3-Sampled", "true", Decision::Yes),
            ("X-B3-Sampled", "0", Decision::Deny),
            ("X-B3-Flags", "1", Decision::Debug),
            ("X-B3-Flags", "0", Decision::Open),
        ] {
            let context = sampled(name, value);
            assert_eq!((context.decision, context.forms.b3_multi), (decision, true), "{name}: {value}");
        }
        let all = written(&sampled("X-B3-Flags", "1"), Forms { b3_multi: true, ..Forms::default() });
        let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["X-B3-TraceId", "X-B3-SpanId", "X-B3-ParentSpanId", "X-B3-Flags"]);
    }

    #[test]
    fn a_share_is_decided_by_the_trace_alone() {
        let mut yes = 0;
        for _ in 0..10_000 {
            let mut one = read(&[]);
            let mut same = one.clone();
            one.decide(0.25);
            same.decide(0.25);
            assert_eq!(one.decision, same.decision);
            yes += u32::from(one.decision.is_yes());
        }
        assert!((2300..2700).contains(&yes), "{yes}");
        let (mut all, mut none) = (read(&[]), read(&[]));
        all.decide(1.0);
        none.decide(0.0);
        assert!(all.decision.is_yes() && !none.decision.is_yes());
    }
}
