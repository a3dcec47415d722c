//! Which services a command is about: the patterns of Motan Java and of motan-go in one.

use regex::{Regex, RegexBuilder};

/// Longest pattern that is read.
const MAX_BYTES: usize = 4096;
/// Deepest brackets.
const MAX_DEPTH: usize = 64;
/// Compiled size of a regular expression, bytes.
const MAX_REGEX: usize = 256 * 1024;

/// A pattern of services. It matches when it does in either dialect:
///
/// - Motan Java: an exact name, `prefix*`, or an expression of them with `!`, `&`, `|` and brackets, binding in
///   that order; white space is ignored.
/// - motan-go: `*`, the beginning of a name, or a regular expression found anywhere in it.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    expression: Option<Expression>,
    regex: Option<Regex>,
}

#[derive(Clone, Debug)]
enum Expression {
    Exact(String),
    Prefix(String),
    Not(Box<Self>),
    All(Vec<Self>),
    Any(Vec<Self>),
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// It is empty, or a pattern in neither dialect; says why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("the pattern is empty; write `*` for all services".to_owned());
        }
        if text.len() > MAX_BYTES {
            return Err(format!("the pattern has {} bytes, more than {MAX_BYTES}", text.len()));
        }
        let bare: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        let expression = Reader { rest: &bare, depth: 0 }.whole();
        let regex = RegexBuilder::new(text).size_limit(MAX_REGEX).build().ok();
        if expression.is_none() && regex.is_none() {
            return Err(format!("the pattern `{text}` is neither an expression nor a regular expression"));
        }
        Ok(Self { text: text.to_owned(), expression, regex })
    }

    /// Whether it is about `service`.
    pub fn matches(&self, service: &str) -> bool {
        self.expression.as_ref().is_some_and(|e| e.matches(service))
            || service.starts_with(&self.text)
            || self.regex.as_ref().is_some_and(|r| r.is_match(service))
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Expression {
    fn matches(&self, service: &str) -> bool {
        match self {
            Self::Exact(name) => service == name,
            Self::Prefix(prefix) => service.starts_with(prefix.as_str()),
            Self::Not(inner) => !inner.matches(service),
            Self::All(parts) => parts.iter().all(|p| p.matches(service)),
            Self::Any(parts) => parts.iter().any(|p| p.matches(service)),
        }
    }
}

/// Descends: any of (`|`) all of (`&`) maybe not (`!`) a name or brackets.
struct Reader<'a> {
    rest: &'a [char],
    depth: usize,
}

impl Reader<'_> {
    fn whole(mut self) -> Option<Expression> {
        let expression = self.any()?;
        self.rest.is_empty().then_some(expression)
    }

    fn takes(&mut self, wanted: char) -> bool {
        let found = self.rest.first() == Some(&wanted);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn any(&mut self) -> Option<Expression> {
        let mut parts = vec![self.all()?];
        while self.takes('|') {
            parts.push(self.all()?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Expression::Any(parts) })
    }

    fn all(&mut self) -> Option<Expression> {
        let mut parts = vec![self.not()?];
        while self.takes('&') {
            parts.push(self.not()?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Expression::All(parts) })
    }

    fn not(&mut self) -> Option<Expression> {
        let mut negated = false;
        while self.takes('!') {
            negated = !negated;
        }
        let inner = self.name()?;
        Some(if negated { Expression::Not(Box::new(inner)) } else { inner })
    }

    fn name(&mut self) -> Option<Expression> {
        if self.takes('(') {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return None;
            }
            let inner = self.any()?;
            self.depth -= 1;
            return self.takes(')').then_some(inner);
        }
        let end = self.rest.iter().position(|c| "!&|()".contains(*c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        match name {
            [] => None,
            // No name of a service holds these: it is a regular expression, or a mistake in one.
            name if name.iter().any(|c| "[]{}\\^?+".contains(*c)) => None,
            [prefix @ .., '*'] => Some(Expression::Prefix(prefix.iter().collect())),
            name => Some(Expression::Exact(name.iter().collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let parsed = Pattern::parse(pattern).unwrap();
        assert!(yes.iter().all(|s| parsed.matches(s)), "{pattern} misses one of {yes:?}");
        assert!(!no.iter().any(|s| parsed.matches(s)), "{pattern} matches one of {no:?}");
    }

    #[test]
    fn of_java() {
        check("bars.BarService", &["bars.BarService"], &["bars.Bar", "foo.BarService"]);
        check("bars.*", &["bars.BarService", "bars."], &["foo.X"]);
        check(" bars.* & ! bars.BarService ", &["bars.Other"], &["bars.BarService", "foo.X"]);
        check("!(a.*|b.*)&!c.X", &["c.Y", "d"], &["a.X", "b.", "c.X"]);
        // `!` binds before `&`, `&` before `|`.
        check("a.X&!b.Y|c.Z*", &["a.X", "c.Z1"], &["b.Y"]);
        check("!!a.X & !a.Y", &["a.X"], &["a.Y", "b"]);
    }

    #[test]
    fn of_motan_go() {
        check("*", &["anything", ""], &[]);
        check("com.example", &["com.example.Echo", "x.com.example.y"], &["com.exampl"]);
        check("Echo$", &["com.example.Echo"], &["com.example.Echo2"]);
        check("^com\\.(a|b)\\.", &["com.a.X", "com.b.Y"], &["com.c.X", "xcom.a.X"]);
        check(".*Service", &["a.Service2"], &["a.Server"]);
    }

    #[test]
    fn ill_ones_say_why() {
        for ill in ["", "  ", "(a", "a&(b", "(((", "[z-"] {
            assert!(Pattern::parse(ill).is_err(), "{ill}");
        }
        assert!(Pattern::parse(&"(".repeat(3000)).is_err());
        assert!(Pattern::parse(&"x".repeat(5000)).unwrap_err().contains("more than 4096"));
        // Deep but closed: too deep for an expression, a regular expression all the same.
        let deep = format!("{}a{}", "(".repeat(100), ")".repeat(100));
        check(&deep, &["xa"], &["x"]);
    }
}
