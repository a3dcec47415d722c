//! Archives of files as the kernel unpacks them at its start (cpio, the `newc` form).

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// An archive being written; every entry belongs to root. Several one after the other are one archive.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    number: u32,
    known: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        Self { out, number: 0, known: BTreeSet::from([PathBuf::from("/")]) }
    }

    /// A folder, and those above it.
    pub fn folder(&mut self, path: &Path) -> Result<()> {
        if let Some(above) = path.parent()
            && !self.known.contains(above)
        {
            self.folder(above)?;
        }
        if self.known.insert(path.to_owned()) { self.entry(path, FOLDER, 0, &[]) } else { Ok(()) }
    }

    /// A file with this content. The first of a name stays.
    pub fn file(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        self.dated(path, mode, 0, content)
    }

    /// A copy of the file `from`, with its mode and time.
    pub fn copy(&mut self, path: &Path, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let meta = fs::metadata(from)?;
        // Compiled Python is used only while its source has the time that it remembers.
        let time = u32::try_from(meta.mtime()).unwrap_or(0);
        self.dated(path, meta.permissions().mode() & 0o777, time, &content)
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &Path, to: &Path) -> Result<()> {
        self.above(path)?;
        if self.known.insert(path.to_owned()) {
            self.entry(path, LINK, 0, to.as_os_str().as_bytes())?;
        }
        Ok(())
    }

    /// Everything below the folder `from` for which `keep` says so, links followed.
    pub fn tree(&mut self, path: &Path, from: &Path, keep: &dyn Fn(&Path) -> bool) -> Result<()> {
        let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let (below, from) = (path.join(entry.file_name()), entry.path());
            if !keep(&from) {
                continue;
            }
            // A link to nowhere is left out.
            let Ok(meta) = fs::metadata(&from) else { continue };
            if meta.is_dir() {
                self.tree(&below, &from, keep)?;
            } else if meta.is_file() {
                self.copy(&below, &from)?;
            }
        }
        Ok(())
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Result<W> {
        self.entry(Path::new("/TRAILER!!!"), 0, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn dated(&mut self, path: &Path, mode: u32, time: u32, content: &[u8]) -> Result<()> {
        self.above(path)?;
        if self.known.insert(path.to_owned()) {
            self.entry(path, FILE | mode, time, content)?;
        }
        Ok(())
    }

    fn above(&mut self, path: &Path) -> Result<()> {
        path.parent().map_or(Ok(()), |above| self.folder(above))
    }

    fn entry(&mut self, path: &Path, mode: u32, time: u32, content: &[u8]) -> Result<()> {
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
        self.number += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{} is too large", path.display()))?;
        let name_size = u32::try_from(name.len() + 1)?;
        // Magic, then: number, mode, user, group, links, time, size, four device numbers, name's size, sum.
        let fields = [self.number, mode, 0, 0, 1, time, size, 0, 0, 0, 0, name_size, 0];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(name)?;
        self.out.write_all(&[0])?;
        pad(&mut self.out, 110 + name.len() + 1)?;
        self.out.write_all(content)?;
        pad(&mut self.out, content.len())?;
        Ok(())
    }
}

/// Zeroes up to the next multiple of four.
fn pad(out: &mut impl Write, length: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..length.next_multiple_of(4) - length])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and content of every entry.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |i: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * i..14 + 8 * i]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap().to_owned();
            let from = (110 + name_size).next_multiple_of(4);
            let content = bytes[from..from + size].to_vec();
            bytes = &bytes[(from + size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode as u32, content));
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b/x"), 0o755, b"hello").unwrap();
        archive.file(Path::new("/a/y"), 0o644, b"").unwrap();
        archive.file(Path::new("/a/y"), 0o644, b"a second one of that name").unwrap();
        archive.link(Path::new("/bin/sh"), Path::new("busybox")).unwrap();
        let entries = read(&archive.finish().unwrap());
        let entry = |name: &str, mode: u32, content: &[u8]| (name.to_owned(), mode, content.to_vec());
        assert_eq!(
            entries,
            [
                entry("a", 0o40755, b""),
                entry("a/b", 0o40755, b""),
                entry("a/b/x", 0o100_755, b"hello"),
                entry("a/y", 0o100_644, b""),
                entry("bin", 0o40755, b""),
                entry("bin/sh", 0o120_777, b"busybox"),
            ]
        );
    }

    #[test]
    fn a_tree_is_copied_but_for_what_is_not_wanted() {
        let dir = std::env::temp_dir().join(format!("xtask-cpio-{}", std::process::id()));
        fs::create_dir_all(dir.join("one/two")).unwrap();
        fs::write(dir.join("one/two/x"), "x").unwrap();
        fs::write(dir.join("one/no"), "no").unwrap();
        std::os::unix::fs::symlink("x", dir.join("one/two/y")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.join("one/two/z")).unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.tree(Path::new("/t"), &dir, &|path| !path.ends_with("no")).unwrap();
        let names: Vec<_> = read(&archive.finish().unwrap()).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["t", "t/one", "t/one/two", "t/one/two/x", "t/one/two/y"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
