//! `cargo xtask lint`: rules of this repository that no other tool knows.

mod files;
mod imports;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::sh;

/// A file of the repository.
struct Source {
    /// Relative to the root.
    path: PathBuf,
    text: String,
}

/// Runs all rules; prints each breach as `path:line: what, and what to do`.
pub fn run() -> Result<()> {
    let sources = sources()?;
    let mut breaches = imports::check(&sources);
    breaches.extend(files::check(&sources));
    for breach in &breaches {
        println!("{breach}");
    }
    if !breaches.is_empty() {
        bail!("{} breaches of the repository's rules", breaches.len());
    }
    println!("{} files keep the repository's rules", sources.len());
    Ok(())
}

/// Writes the import table into the architecture page.
pub fn write_table() -> Result<()> {
    imports::write_table(&sh::root().join(imports::PAGE))
}

/// Text files that git knows or would add.
fn sources() -> Result<Vec<Source>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(sh::root());
    let list = sh::read(&mut git).context("the rules are checked for the files that git lists")?;
    let paths = list.split('\0').filter(|path| !path.is_empty()).map(Path::new);
    // What is not UTF-8 is data (recorded frames), what is gone is being deleted.
    let read = paths.filter_map(|path| {
        let text = fs::read_to_string(sh::root().join(path)).ok()?;
        Some(Source { path: path.to_owned(), text })
    });
    Ok(read.collect())
}
