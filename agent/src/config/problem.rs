//! Mistakes and warnings: where, which key, which value, what was expected, what to do.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// One mistake or warning in a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, when a configuration is made of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Box<PathBuf>>,
    /// Line in the file, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// Column in that line, in characters, from 1; 0 when the whole file is meant.
    pub column: usize,
    /// Full key, e.g. `referers[1].methods.echo.timeout`; empty at the top.
    pub key: String,
    /// What stands there, shortened; `None` when nothing does.
    pub value: Option<String>,
    /// What is wrong, with the value and what was expected.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// The problem behind the name of its file, which is `file` unless it names one itself.
    pub fn line_in(&self, file: Option<&Path>) -> String {
        match self.file.as_ref().map(|path| path.as_path()).or(file) {
            Some(path) => format!("{}:{}{self}", path.display(), if self.line > 0 { "" } else { " " }),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Every mistake of a configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file, if there is one.
    pub path: Option<PathBuf>,
    /// At least one.
    pub mistakes: Vec<Problem>,
    /// What is odd besides.
    pub warnings: Vec<Problem>,
}

impl ConfigErrors {
    /// One line per mistake, each beginning with the file's name.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.mistakes.iter().map(|p| p.line_in(self.path.as_deref()))
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in self.lines().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&line)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects what is found on the way through a file.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub mistakes: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Report {
    pub fn mistake(&mut self, problem: Problem) {
        self.mistakes.push(problem);
    }

    pub fn warn(&mut self, problem: Problem) {
        self.warnings.push(problem);
    }

    /// In the order of the file, whatever the order of finding.
    pub fn sort(&mut self) {
        let position = |p: &Problem| (p.line, p.column);
        self.mistakes.sort_by_key(position);
        self.warnings.sort_by_key(position);
    }
}

/// The candidate that `word` was probably meant to be. Case and separators do not count.
pub(crate) fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.to_lowercase().replace(['-', '_', ' '], "");
    let word = plain(word);
    let near = |c: &&str| {
        let candidate = plain(c);
        let distance = strsim::damerau_levenshtein(&word, &candidate);
        // A third of the letters may be wrong, but never all of a short word; a beginning is a hint as well.
        let allowed = (word.len().max(candidate.len()) / 3).max(1);
        let begins = word.len() >= 4 && (candidate.starts_with(&word) || word.starts_with(&candidate));
        (distance <= allowed && distance < word.len().max(candidate.len())) || begins
    };
    candidates.into_iter().filter(near).min_by_key(|c| strsim::damerau_levenshtein(&word, &plain(c)))
}

/// A remedy that names a suggestion, or all there is.
pub(crate) fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    match suggest(word, candidates.iter().copied()) {
        Some(known) => format!("did you mean `{known}`?"),
        None if candidates.is_empty() => String::new(),
        None => format!("known: {}", candidates.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_is_near_and_nothing_else() {
        let known = ["round_robin", "random", "weighted", "p2c"];
        for (word, expected) in [
            ("roundrobin", Some("round_robin")),
            ("Round-Robin", Some("round_robin")),
            ("weigthed", Some("weighted")),
            ("p2", Some("p2c")),
            ("c2p", None),
            ("rand", Some("random")),
            ("leastconn", None),
        ] {
            assert_eq!(suggest(word, known), expected, "{word}");
        }
        assert_eq!(did_you_mean("x", &["failfast", "failover"]), "known: failfast, failover");
    }
}
