//! The proof that travels with a call: who calls, when, and a signature over both and what is called.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::{
    call::{Call, Text},
    filter::options::from_hex,
};

/// Shorter secrets can be guessed.
const SHORTEST: usize = 16;

/// A shared secret, ready for signing.
#[derive(Clone)]
pub(super) struct Key(Hmac<Sha256>);

impl Key {
    pub(super) fn new(what: &str, secret: &str) -> anyhow::Result<Self> {
        let bytes = secret.len();
        anyhow::ensure!(bytes >= SHORTEST, "{what}: has {bytes} bytes; take at least {SHORTEST} random ones");
        Ok(Self(Hmac::new_from_slice(secret.as_bytes()).expect("any length will do")))
    }

    /// Over everything that the proof is about, one line each: none of them can run into the next.
    fn over(&self, application: &str, call: &Call, ms: u64) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in [application, &call.service, &call.method] {
            mac.update(part.as_bytes());
            mac.update(b"\n");
        }
        mac.update(ms.to_string().as_bytes());
        mac
    }
}

/// Why a call proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unproven {
    #[error("no proof came with the call")]
    Missing,
    #[error("the proof is malformed")]
    Malformed,
    #[error("no secret of application `{0}` is known here")]
    Unknown(String),
    #[error("the signature is wrong")]
    Wrong,
    #[error("the proof is {0:?} off the clock of this host")]
    Age(Duration),
}

/// `v1;APPLICATION;MILLISECONDS;HMAC` with the milliseconds since 1970 and the HMAC-SHA256 in hex.
pub(super) fn sign(application: &str, call: &Call, key: &Key, now: Duration) -> String {
    let ms = now.as_millis() as u64;
    let mut token = format!("v1;{application};{ms};");
    for byte in key.over(application, call, ms).finalize().into_bytes() {
        // Writing to a String cannot fail.
        let _ = write!(token, "{byte:02x}");
    }
    token
}

/// The application that signed.
pub(super) fn verify(
    token: &str,
    call: &Call,
    keys: &BTreeMap<String, Vec<Key>>,
    now: Duration,
    max_age: Duration,
) -> Result<Text, Unproven> {
    let mut parts = token.split(';');
    let (Some("v1"), Some(application), Some(ms), Some(hex), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Unproven::Malformed);
    };
    let ms: u64 = ms.parse().map_err(|_| Unproven::Malformed)?;
    let mac = from_hex(hex).ok_or(Unproven::Malformed)?;
    let keys = keys.get(application).ok_or_else(|| Unproven::Unknown(application.to_owned()))?;
    // Compared in constant time.
    if !keys.iter().any(|key| key.over(application, call, ms).verify_slice(&mac).is_ok()) {
        return Err(Unproven::Wrong);
    }
    let age = now.abs_diff(Duration::from_millis(ms));
    if age > max_age { Err(Unproven::Age(age)) } else { Ok(application.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_as_documented_and_grows_old() {
        let call = Call::new("kit.EchoService".into(), "echo".into());
        let key = Key::new("secret", "a-long-shared-secret").unwrap();
        let now = Duration::from_millis(1_795_255_955_123);
        let token = sign("shop", &call, &key, now);
        // printf 'shop\nkit.EchoService\necho\n1795255955123' | openssl dgst -sha256 -hmac a-long-shared-secret
        assert_eq!(token, EXPECTED);
        let keys = BTreeMap::from([("shop".to_owned(), vec![key])]);
        let at = |at: Duration| verify(&token, &call, &keys, at, Duration::from_secs(30));
        let second = Duration::from_secs(1);
        assert_eq!(at(now + 30 * second), Ok("shop".into()));
        assert_eq!(at(now - 30 * second), Ok("shop".into()));
        assert_eq!(at(now + 31 * second), Err(Unproven::Age(31 * second)));
        assert_eq!(at(now - 31 * second), Err(Unproven::Age(31 * second)));
    }

    const EXPECTED: &str = "v1;shop;1795255955123;99e5e3c83051d8c25bc96cd4b9ebd27b3d61c955c7c8e4a244d9739fd700b879";
}
