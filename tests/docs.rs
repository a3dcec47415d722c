//! What the documentation shows is what the agent accepts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use host::{Temp, agent::sockmesh, top_dir};

fn files(dir: &Path, ends: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, ends, found);
        } else if path.extension().is_some_and(|e| ends.iter().any(|end| e == *end)) {
            found.push(path);
        }
    }
}

/// Blocks fenced as exactly `yaml`: whole configurations. A part of one is fenced as `yaml fragment`, the
/// list of a registry as `yaml nodes`.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "```yaml" {
            let block: Vec<_> = lines.by_ref().take_while(|l| l.trim() != "```").collect();
            blocks.push(block.join("\n") + "\n");
        }
    }
    blocks
}

#[test]
fn docs_show_configurations_that_are_accepted() {
    let top = top_dir();
    let mut pages = vec![top.join("README.md")];
    files(&top.join("docs"), &["md"], &mut pages);
    let dir = Temp::new();
    let mut seen = 0;
    for page in pages {
        for (i, block) in blocks(&fs::read_to_string(&page).unwrap()).iter().enumerate() {
            let file = dir.write(&format!("block{i}.yaml"), block);
            let said = sockmesh("config").arg(file.display()).run();
            assert!(said.status.success(), "{}, block {i}:\n{block}\n{}{}", page.display(), said.out, said.err);
            seen += 1;
        }
    }
    assert!(seen > 0, "no page shows a configuration");
}

#[test]
fn docs_samples_are_accepted() {
    let mut samples = Vec::new();
    files(&top_dir().join("deploy"), &["yaml", "yml"], &mut samples);
    // The centre reads its own.
    let center = top_dir().join("deploy/center");
    for sample in samples.iter().filter(|s| !s.ends_with("nodes.yaml") && !s.starts_with(&center)) {
        let said = sockmesh("config").arg(sample.display()).run();
        assert!(said.status.success(), "{}:\n{}{}", sample.display(), said.out, said.err);
    }
}
