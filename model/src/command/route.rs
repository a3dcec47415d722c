//! Rules by address: `FROM to TO`.

use std::fmt;

/// When FROM matches the caller's own address, only endpoints whose host matches TO stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    from: Hosts,
    to: Hosts,
}

/// An address, `prefix*` or `*`; `!` in front turns it around.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hosts {
    negated: bool,
    text: String,
    is_prefix: bool,
}

impl RouteRule {
    /// Reads `FROM to TO`.
    ///
    /// # Errors
    /// It is none; says why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let wrong = || format!("`{text}` is no rule; write it like `10.0.* to !10.1.2.3`");
        // No address holds these letters.
        let parts: Vec<_> = bare.split("to").collect();
        let [from, to] = parts[..] else { return Err(wrong()) };
        Ok(Self { from: Hosts::parse(from).ok_or_else(wrong)?, to: Hosts::parse(to).ok_or_else(wrong)? })
    }

    /// Whether it is about callers at `own`.
    pub fn concerns(&self, own: &str) -> bool {
        self.from.matches(own)
    }

    /// Whether an endpoint at `host` stays.
    pub fn keeps(&self, host: &str) -> bool {
        self.to.matches(host)
    }
}

impl fmt::Display for RouteRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.from, self.to)
    }
}

impl Hosts {
    fn parse(text: &str) -> Option<Self> {
        let (negated, text) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
        let (is_prefix, text) = text.strip_suffix('*').map_or((false, text), |rest| (true, rest));
        let fits = text.chars().all(|c| c.is_ascii_hexdigit() || c == '.' || c == ':');
        (fits && (is_prefix || !text.is_empty())).then(|| Self { negated, text: text.to_owned(), is_prefix })
    }

    fn matches(&self, host: &str) -> bool {
        let matches = if self.is_prefix { host.starts_with(&self.text) } else { host == self.text };
        matches != self.negated
    }
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (not, any) = (if self.negated { "!" } else { "" }, if self.is_prefix { "*" } else { "" });
        write!(f, "{not}{}{any}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_choose_by_address() {
        let rule = RouteRule::parse(" 10.0.*  to !10.1.2.3 ").unwrap();
        assert!(rule.concerns("10.0.7.7") && !rule.concerns("10.1.7.7"));
        assert!(rule.keeps("10.1.2.4") && !rule.keeps("10.1.2.3"));
        assert_eq!(rule.to_string(), "10.0.* to !10.1.2.3");
        let any = RouteRule::parse("* to 127.0.0.3").unwrap();
        assert!(any.concerns("fd00::1") && any.keeps("127.0.0.3") && !any.keeps("127.0.0.31"));
        assert!(!RouteRule::parse("!* to *").unwrap().concerns("10.0.0.1"));
        assert!(RouteRule::parse("!10.0.0.1to*").unwrap().concerns("10.0.0.2"));
        assert!(RouteRule::parse("fd00:* to fd00::1").unwrap().concerns("fd00::9"));
    }

    #[test]
    fn ill_ones_say_so() {
        for ill in ["", "to", "10.0.0.1", "* to", "to *", "! to *", "a to b to c", "host to 1.1.1.1", "*.1 to *"] {
            assert!(RouteRule::parse(ill).is_err(), "{ill}");
        }
    }
}
