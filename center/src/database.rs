//! A redb file, as the store and the figures have one: whole or not there at all.

use std::{
    fs::{self, File},
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use redb::{Builder, Database, DatabaseError, StorageError};

/// Pages kept in memory. What is asked for often stands in memory already.
const CACHE_BYTES: usize = 32 << 20;

/// Opens the database at `path`, or begins an empty one. Blocks for as long as the disk takes. Whoever calls sees to it
/// that nobody else begins the same file at this moment.
///
/// # Errors
/// Somebody has it open; it is damaged; the disk does not take it.
pub fn open(path: &Path) -> Result<Database, DatabaseError> {
    // What others than a crash did to the file may make redb panic.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        if fs::metadata(path).map_or(true, |file| file.len() == 0) {
            begin(path)?;
        }
        builder().open(path)
    }));
    opened.unwrap_or_else(|_| Err(StorageError::Corrupted("the file is not what was written".to_owned()).into()))
}

/// Makes an empty database beside `path` and puts it in place: one that a kill cut off in its first moments could never
/// be opened again.
fn begin(path: &Path) -> Result<(), DatabaseError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    drop(builder().create(&fresh)?);
    File::open(&fresh)?.sync_all()?;
    fs::rename(&fresh, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(directory)?.sync_all()?)
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kill_left_half_begun_is_begun_again() {
        let dir = tempdir("database");
        let path = dir.join("some.redb");
        fs::write(dir.join("some.redb.new"), [0; 5000]).unwrap();
        fs::write(&path, []).unwrap();
        drop(open(&path).unwrap());
        drop(open(&path).unwrap());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left beside it");
        fs::write(&path, [7; 5000]).unwrap();
        assert!(open(&path).is_err(), "what is no database is not replaced");
        assert_eq!(fs::read(&path).unwrap(), [7; 5000]);
        fs::remove_dir_all(&dir).unwrap();
    }

    fn tempdir(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("sockmesh-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }
}
