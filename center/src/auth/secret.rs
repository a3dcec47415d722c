//! Random secrets, their digests, and passwords.

use std::sync::LazyLock;

use argon2::{
    Argon2,
    password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::error::{Code, Error};

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
    hex(&random_bytes(bytes))
}

fn random_bytes(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut out).expect("getrandom(2) fills small buffers since Linux 3.17");
    out
}

/// SHA-256 in hexadecimal digits. Enough for secrets that are random; passwords are hashed slowly.
pub(super) fn digest(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares secrets in a time that does not tell how much of them fits.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Hashes passwords and compares with hashes, a few at a time, away from the threads that serve requests.
pub(super) struct Passwords {
    workers: Semaphore,
    waiting: Semaphore,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { workers: Semaphore::new(WORKERS), waiting: Semaphore::new(WAITING) }
    }
}

/// Compared with where there is no such person, so that the time does not tell.
static NOBODY: LazyLock<String> = LazyLock::new(|| hash(&random(16)));

fn hash(password: &str) -> String {
    let salt = SaltString::encode_b64(&random_bytes(16)).expect("sixteen bytes are a salt");
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
    hash.expect("the parameters are the crate's own, the password's length is bounded").to_string()
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
        self.work(move || hash(&password)).await
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
        self.work(move || {
            let known = hash.is_some();
            let hash = hash.unwrap_or_else(|| NOBODY.clone());
            let fits = PasswordHash::new(&hash)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok());
            fits && known
        })
        .await
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let _waiting = self.waiting.try_acquire().map_err(|_| {
            Error::new(Code::TooMany, "too many people log in at this moment", "repeat it in a few seconds")
        })?;
        let _worker = self.workers.acquire().await.expect("it is never closed");
        let done = tokio::task::spawn_blocking(work).await;
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
        for wrong in ["short", "", &"x".repeat(257)] {
            assert_eq!(passwords.hash(wrong).await.unwrap_err().code, Code::BadRequest);
        }
    }

    #[tokio::test]
    async fn more_than_a_few_at_a_time_are_turned_away() {
        let passwords = Passwords::default();
        let all = futures_util::future::join_all((0..WAITING + 8).map(|_| passwords.work(|| ()))).await;
        let refused: Vec<_> = all.into_iter().filter_map(Result::err).collect();
        assert_eq!(refused.len(), 8);
        assert!(refused.iter().all(|error| error.code == Code::TooMany));
        passwords.work(|| ()).await.unwrap();
    }

    #[test]
    fn secrets_differ_and_digests_are_known() {
        assert_ne!(random(32), random(32));
        assert_eq!((random(32).len(), random_hex(6).len()), (43, 12));
        assert_eq!(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(same(b"ab", b"ab") && !same(b"ab", b"abc") && !same(b"", b"a"));
    }
}
