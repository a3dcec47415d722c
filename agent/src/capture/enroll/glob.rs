//! Patterns of control groups: `*` and `?` within a name, `**` for any number of names.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

/// Whether `name` matches `pattern`, in which `*` is any text and `?` any byte.
pub(super) fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when the text behind the last `*` does not fit: the `*` takes one byte more.
    let mut again = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                again = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match &mut again {
                Some((star, taken)) => {
                    *taken += 1;
                    (p, n) = (*star + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// Folders below `top` whose path from there matches `pattern`, `top` itself never.
pub(super) fn folders(top: &Path, pattern: &Path) -> Vec<PathBuf> {
    let parts: Vec<_> = pattern.iter().collect();
    let mut found = Vec::new();
    walk(top, &parts, &mut found);
    found.retain(|path| path != top);
    found.sort();
    found.dedup();
    found
}

fn walk(at: &Path, parts: &[&OsStr], found: &mut Vec<PathBuf>) {
    let Some((part, rest)) = parts.split_first() else {
        found.push(at.to_owned());
        return;
    };
    let bytes = part.as_encoded_bytes();
    if bytes == b"**" {
        // No name at all (unless it is the last), or one more.
        if !rest.is_empty() {
            walk(at, rest, found);
        }
        for child in children(at) {
            if rest.is_empty() {
                found.push(child.clone());
            }
            walk(&child, parts, found);
        }
    } else if bytes.iter().any(|b| matches!(b, b'*' | b'?')) {
        for child in children(at) {
            let name = child.file_name().unwrap_or_default();
            if name_matches(bytes, name.as_encoded_bytes()) {
                walk(&child, rest, found);
            }
        }
    } else {
        let child = at.join(part);
        if child.is_dir() {
            walk(&child, rest, found);
        }
    }
}

/// Folders in `at`; none when it is gone.
pub(crate) fn children(at: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(at).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// Whether the control group at `path` (from the mount on) is a login session or holds nothing else.
pub(super) fn is_login(path: &Path) -> bool {
    path.iter().any(|part| {
        let name = part.as_encoded_bytes();
        name == b"user.slice" || name_matches(b"session-*.scope", name) || name_matches(b"user@*.service", name)
    })
}

/// Whether a login session is somewhere below `group`.
pub(super) fn holds_login(group: &Path) -> bool {
    children(group).iter().any(|child| is_login(Path::new(child.file_name().unwrap_or_default())) || holds_login(child))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("*", "a", true),
            ("shop-*.service", "shop-a.service", true),
            ("shop-*.service", "shop-.service", true),
            ("shop-*.service", "shop.service", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b", "xxaxxbxxb", true),
            ("*a*b", "xxaxxbxxc", false),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(name_matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
        // A pattern made to be slow.
        assert!(!name_matches("*a".repeat(40).as_bytes(), "a".repeat(39).as_bytes()));
    }

    #[test]
    fn folders_are_found_by_any_number_of_names() {
        let top = std::env::temp_dir().join(format!("sockmesh-glob-{}", std::process::id()));
        for dir in ["a/x", "a/b/x", "c/x-1"] {
            fs::create_dir_all(top.join(dir)).unwrap();
        }
        fs::write(top.join("a/file"), "").unwrap();
        let found = |pattern: &str| {
            let found = folders(&top, Path::new(pattern));
            found.iter().map(|p| p.strip_prefix(&top).unwrap().display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("**/x"), ["a/b/x", "a/x"]);
        assert_eq!(found("*/x*"), ["a/x", "c/x-1"]);
        assert_eq!(found("a/*"), ["a/b", "a/x"]);
        assert_eq!(found("**"), ["a", "a/b", "a/b/x", "a/x", "c", "c/x-1"]);
        assert_eq!(found("a/**"), ["a/b", "a/b/x", "a/x"], "not the folder itself");
        assert_eq!(found("nowhere/*"), Vec::<String>::new());
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn login_sessions() {
        assert!(is_login(Path::new("user.slice/user-0.slice/session-3.scope")));
        assert!(is_login(Path::new("x/session-c1.scope")));
        assert!(!is_login(Path::new("system.slice/session.service")));
    }
}
