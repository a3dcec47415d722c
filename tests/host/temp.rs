//! Folders that go away with the test.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// A number that no one else in this process has.
pub fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Relaxed)
}

/// An empty folder, removed with everything in it on drop.
#[derive(Debug)]
pub struct Temp(PathBuf);

impl Temp {
    /// Makes one.
    pub fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("sockmesh-test-{}-{}", std::process::id(), serial()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it, as a whole (no reader sees half of it), and returns its path.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let (path, beside) = (self.file(name), self.file(&format!(".{name}.new")));
        fs::write(&beside, text).unwrap();
        fs::rename(beside, &path).unwrap();
        path
    }
}

impl Default for Temp {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
