//! Random secrets, their digests, and passwords.

use std::sync::{Arc, LazyLock};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::{Output, ParamsString, PasswordHash, Salt, SaltString},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::{
    error::{Code, Error},
    hex::hex,
};

/// Shortest password, in bytes.
const PASSWORD_LEAST: usize = 10;
/// Longest password, in bytes.
const PASSWORD_MOST: usize = 256;
/// Passwords that are worked on at a time: each takes 19 MiB and a core for some ten milliseconds.
const WORKERS: usize = 2;
/// Passwords that wait for that; more are turned away at once.
const WAITING: usize = 32;

/// Random bytes from the system, written as text without padding.
pub(crate) fn random(bytes: usize) -> String {
    URL_SAFE_NO_PAD.encode(random_bytes(bytes))
}

/// Random bytes from the system, in hexadecimal digits.
pub(super) fn random_hex(bytes: usize) -> String {
    hex(random_bytes(bytes))
}

fn random_bytes(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut out).expect("getrandom(2) fills small buffers since Linux 3.17");
    out
}

/// SHA-256 in hexadecimal digits. Enough for secrets that are random; passwords are hashed slowly.
pub(super) fn digest(secret: &str) -> String {
    hex(Sha256::digest(secret.as_bytes()))
}

/// Compares secrets in a time that does not tell how much of them fits.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Memory of one hashing.
type Memory = Vec<Block>;

/// Hashes passwords and compares with hashes, a few at a time, away from the threads that serve requests.
///
/// Memory is kept from one hashing to the next: an allocator would keep as much for every thread that ever hashed.
pub(super) struct Passwords {
    workers: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    memory: Arc<Mutex<Vec<Memory>>>,
}

impl Default for Passwords {
    fn default() -> Self {
        let (workers, waiting) = (Semaphore::new(WORKERS), Semaphore::new(WAITING));
        Self { workers: Arc::new(workers), waiting: Arc::new(waiting), memory: Arc::default() }
    }
}

/// Compared with where there is no such person, so that the time does not tell.
static NOBODY: LazyLock<String> = LazyLock::new(|| hash(&random(16), &mut Memory::new()));

fn hash(password: &str, memory: &mut Memory) -> String {
    let salt = SaltString::encode_b64(&random_bytes(16)).expect("sixteen bytes are a salt");
    let output = output(password, salt.as_salt(), Params::DEFAULT, memory);
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&Params::DEFAULT).expect("the crate's own parameters can be written"),
        salt: Some(salt.as_salt()),
        hash: Some(output.expect("the parameters are the crate's own, the password's length is bounded")),
    };
    hash.to_string()
}

/// Whether the password fits a hash that [`hash`] made.
fn fits(password: &str, hash: &str, memory: &mut Memory) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    let (Some(salt), Some(wanted), Ok(params)) = (hash.salt, hash.hash, Params::try_from(&hash)) else { return false };
    // Compared in a time that does not tell how much of it fits.
    output(password, salt, params, memory).is_some_and(|output| output == wanted)
}

fn output(password: &str, salt: Salt<'_>, params: Params, memory: &mut Memory) -> Option<Output> {
    let mut bytes = [0; 64];
    let salt = salt.decode_b64(&mut bytes).ok()?;
    memory.resize(params.block_count(), Block::default());
    let length = params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    Output::init_with(length, |out| {
        Ok(argon2.hash_password_into_with_memory(password.as_bytes(), salt, out, memory.as_mut_slice())?)
    })
    .ok()
}

impl Passwords {
    /// The hash (PHC string, Argon2id) of a new password.
    ///
    /// # Errors
    /// It is too short or too long; too many are worked on.
    pub(super) async fn hash(&self, password: &str) -> Result<String, Error> {
        if !(PASSWORD_LEAST..=PASSWORD_MOST).contains(&password.len()) {
            return Err(Error::bad(
                format!("the password has {} bytes", password.len()),
                format!("choose one of {PASSWORD_LEAST} to {PASSWORD_MOST}; a few random words are a good one"),
            ));
        }
        let password = password.to_owned();
        self.work(move |memory| hash(&password, memory)).await
    }

    /// Whether the password fits the hash; `None` takes as long and never fits.
    ///
    /// # Errors
    /// Too many are worked on.
    pub(super) async fn fits(&self, password: &str, hash: Option<&str>) -> Result<bool, Error> {
        if password.len() > PASSWORD_MOST {
            return Ok(false);
        }
        let (password, hash) = (password.to_owned(), hash.map(str::to_owned));
        self.work(move |memory| {
            let known = hash.is_some();
            let hash = hash.unwrap_or_else(|| NOBODY.clone());
            fits(&password, &hash, memory) && known
        })
        .await
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce(&mut Memory) -> T + Send + 'static) -> Result<T, Error> {
        let waiting = self.waiting.clone().try_acquire_owned().map_err(|_| {
            Error::new(Code::TooMany, "too many people log in at this moment", "repeat it in a few seconds")
        })?;
        let worker = self.workers.clone().acquire_owned().await.expect("it is never closed");
        let kept = self.memory.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut memory = kept.lock().pop().unwrap_or_default();
            let done = work(&mut memory);
            kept.lock().push(memory);
            // Not before the work is done: whoever asked may have gone meanwhile.
            drop((worker, waiting));
            done
        });
        let done = done.await;
        done.map_err(|error| Error::new(Code::Internal, format!("hashing ended: {error}"), "look at the centre's log"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_hash_and_nothing_else_does() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$") && !hash.contains("horse"), "{hash}");
        assert!(passwords.fits("correct horse", Some(&hash)).await.unwrap());
        for (password, hash) in [
            ("correct horsE", Some(hash.as_str())),
            ("", Some(&hash)),
            ("correct horse", None),
            ("correct horse", Some("no hash")),
            (&"x".repeat(1 << 20), Some(&hash)),
        ] {
            assert!(!passwords.fits(password, hash).await.unwrap());
        }
        // What the library itself writes and reads.
        use argon2::password_hash::{PasswordHasher, PasswordVerifier};
        let read = PasswordHash::new(&hash).unwrap();
        assert!(Argon2::default().verify_password(b"correct horse", &read).is_ok());
        let salt = SaltString::encode_b64(&[7; 16]).unwrap();
        let theirs = Argon2::default().hash_password(b"correct horse", &salt).unwrap().to_string();
        assert!(passwords.fits("correct horse", Some(&theirs)).await.unwrap());
        assert_eq!(passwords.memory.lock().len(), 1, "kept for the next");
        for wrong in ["short", "", &"x".repeat(257)] {
            assert_eq!(passwords.hash(wrong).await.unwrap_err().code, Code::BadRequest);
        }
    }

    #[tokio::test]
    async fn more_than_a_few_at_a_time_are_turned_away() {
        let passwords = Passwords::default();
        let all = futures_util::future::join_all((0..WAITING + 8).map(|_| passwords.work(|_| ()))).await;
        let refused: Vec<_> = all.into_iter().filter_map(Result::err).collect();
        assert_eq!(refused.len(), 8);
        assert!(refused.iter().all(|error| error.code == Code::TooMany));
        passwords.work(|_| ()).await.unwrap();
    }

    #[test]
    fn secrets_differ_and_digests_are_known() {
        assert_ne!(random(32), random(32));
        assert_eq!((random(32).len(), random_hex(6).len()), (43, 12));
        assert_eq!(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(same(b"ab", b"ab") && !same(b"ab", b"abc") && !same(b"", b"a"));
    }
}
