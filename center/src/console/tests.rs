//! The console's files: all there, nothing from elsewhere, every sentence in both languages.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("console")
}

fn names(dir: &Path, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names(&path, into);
        } else {
            into.insert(path.strip_prefix(folder()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

fn texts() -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = FILES.iter().filter(|(name, _)| !name.starts_with("vendor/"));
    own.map(|(name, bytes)| (*name, std::str::from_utf8(bytes).unwrap()))
}

#[test]
fn every_file_of_the_folder_is_served() {
    let mut there = BTreeSet::new();
    names(&folder(), &mut there);
    let listed: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    assert!(listed.is_sorted(), "files.rs is searched by halves: keep it sorted");
    assert_eq!(listed.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), there, "files.rs and the folder differ");
}

#[test]
fn libraries_are_as_they_were_published() {
    let sums = include_str!("../../console/vendor/SHA256SUMS");
    let sums: BTreeMap<&str, &str> =
        sums.lines().filter_map(|line| line.split_once("  ")).map(|(sum, name)| (name, sum)).collect();
    for (name, bytes) in FILES {
        let Some(name) = name.strip_prefix("vendor/") else { continue };
        if name.ends_with("SHA256SUMS") || name.ends_with(".md") {
            continue;
        }
        let sum = hex(Sha256::digest(bytes));
        assert_eq!(sums.get(name), Some(&sum.as_str()), "{name} is not as it was published");
    }
}

#[test]
fn nothing_comes_from_elsewhere_and_nothing_stands_in_the_page() {
    for (name, text) in texts() {
        for address in text.match_indices("://").map(|(at, _)| &text[at.saturating_sub(5)..text.len().min(at + 22)]) {
            assert!(address.contains("://www.w3.org/"), "{name} names another host: {address}");
        }
        for word in ["eval(", "innerHTML", "document.write", "dangerouslySet"] {
            assert!(!text.contains(word), "{name} uses {word}");
        }
    }
    let page = include_str!("../../console/index.html");
    for script in page.match_indices("<script").map(|(at, _)| &page[at..]) {
        assert!(script.contains("></script>") && script.starts_with("<script ") && script[..40].contains("src="));
    }
    assert!(
        !page.contains("<style") && !page.contains(" style=") && !page.contains(" on"),
        "no script or style inline"
    );
}

/// The sentences in calls of `t('…')` and `tn(n, '…', '…')`, and those in tables of words that `t` is given.
fn sentences(text: &str, into: &mut BTreeSet<String>) {
    for (at, _) in text.match_indices("t('") {
        let before = text[..at].chars().next_back().unwrap_or(' ');
        if before.is_alphanumeric() || before == '_' || before == '.' {
            continue;
        }
        let rest = &text[at + 3..];
        into.insert(rest[..rest.find('\'').unwrap()].to_owned());
    }
}

#[test]
fn every_sentence_is_there_in_chinese() {
    let zh = include_str!("../../console/js/zh.js");
    let has =
        |sentence: &str| zh.contains(&format!("  '{sentence}': '")) || zh.contains(&format!("  \"{sentence}\": '"));
    let mut wanted = BTreeSet::new();
    for (name, text) in texts().filter(|(name, _)| name.ends_with(".js") && *name != "js/zh.js") {
        let before = wanted.len();
        sentences(text, &mut wanted);
        assert!(wanted.len() >= before, "{name}");
    }
    let missing: Vec<&String> = wanted.iter().filter(|sentence| !has(sentence)).collect();
    assert!(missing.is_empty(), "js/zh.js lacks {missing:#?}");
    assert!(wanted.len() > 100, "the scan found only {}", wanted.len());
}

#[test]
fn a_file_is_told_unchanged_to_who_has_it() {
    let first = file("index.html", &HeaderMap::new());
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(first.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert!(!first.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("unsafe"));
    let mut asked = HeaderMap::new();
    asked.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
    assert_eq!(file("index.html", &asked).status(), StatusCode::NOT_MODIFIED);
    assert_eq!(file("js/main.js", &asked).status(), StatusCode::OK);
    for path in ["", "../Cargo.toml", "js", "js/", "nothing.js", "js/../index.html"] {
        assert_eq!(file(path, &HeaderMap::new()).status(), StatusCode::NOT_FOUND, "{path}");
    }
}
