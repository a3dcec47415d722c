//! [`Pairs`]: a Motan2 metadata block, kept raw and changed by overlay.

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::Text;

/// Metadata as it came, plus the few keys this hop sets. Nothing is parsed into a map: looking a key
/// up walks the raw block, which for the usual five to ten pairs is cheaper than hashing them.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    /// `key\nvalue\nkey\nvalue`, checked for an even number of parts.
    raw: Bytes,
    /// Keys set here; they hide equal keys of `raw`. An empty value removes the key.
    set: SmallVec<[(Text, Text); 6]>,
}

/// A metadata block with an odd number of parts, or that is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata has an odd number of parts or is not UTF-8")]
pub struct OddPairs;

impl Pairs {
    /// Takes a raw block. Fails on an odd number of parts (fatal on the wire) and on bytes that are not UTF-8.
    pub fn parse(raw: Bytes) -> Result<Self, OddPairs> {
        if raw.is_empty() {
            return Ok(Self::default());
        }
        if memchr::memchr_iter(b'\n', &raw).count() % 2 == 0 || std::str::from_utf8(&raw).is_err() {
            return Err(OddPairs);
        }
        Ok(Self { raw, set: SmallVec::new() })
    }

    /// The value of `key`; `None` when absent or empty.
    pub fn get(&self, key: &str) -> Option<Text> {
        if let Some((_, value)) = self.set.iter().find(|(k, _)| k == key) {
            return (!value.is_empty()).then(|| value.clone());
        }
        // A later duplicate overwrites an earlier one, so the last match counts.
        let mut found = None;
        for (k, v) in RawIter::new(&self.raw) {
            if &self.raw[k.clone()] == key.as_bytes() {
                found = Some(v);
            }
        }
        let value = self.raw.slice(found?);
        if value.is_empty() { None } else { Text::from_utf8(value).ok() }
    }

    /// Sets `key`, hiding what came with the block. An empty value removes the key.
    pub fn set(&mut self, key: Text, value: Text) {
        match self.set.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.set.push((key, value)),
        }
    }

    /// All pairs that would be written, in wire order.
    pub fn iter(&self) -> impl Iterator<Item = (Text, Text)> + '_ {
        let raw = RawIter::new(&self.raw).filter_map(|(k, v)| {
            let key = Text::from_utf8(self.raw.slice(k)).ok()?;
            let value = Text::from_utf8(self.raw.slice(v)).ok()?;
            (!self.set.iter().any(|(s, _)| *s == key)).then_some((key, value))
        });
        raw.chain(self.set.iter().cloned()).filter(|(k, v)| writable(k) && writable(v))
    }

    /// Appends the block in wire form: no trailing newline; pairs with an empty part or a newline
    /// inside are left out (spec (a), "Writing metadata").
    pub fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.reserve(self.raw.len() + 64);
        let mut put = |key: &[u8], value: &[u8]| {
            if out.len() > start {
                out.put_u8(b'\n');
            }
            out.put_slice(key);
            out.put_u8(b'\n');
            out.put_slice(value);
        };
        for (k, v) in RawIter::new(&self.raw) {
            let (key, value) = (&self.raw[k], &self.raw[v]);
            let hidden = self.set.iter().any(|(s, _)| s.as_bytes() == key);
            if !hidden && !key.is_empty() && !value.is_empty() {
                put(key, value);
            }
        }
        for (key, value) in &self.set {
            if writable(key) && writable(value) {
                put(key.as_bytes(), value.as_bytes());
            }
        }
    }
}

fn writable(part: &str) -> bool {
    !part.is_empty() && !part.contains('\n')
}

impl<K: Into<Text>, V: Into<Text>> FromIterator<(K, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        let mut pairs = Self::default();
        for (key, value) in iter {
            pairs.set(key.into(), value.into());
        }
        pairs
    }
}

/// Walks a raw block as ranges of keys and values.
///
/// After an EMPTY key the original parser still waits for a key, so pairs shift by one part; callers
/// of the original depend on what comes out, so we shift alike.
struct RawIter<'a> {
    raw: &'a [u8],
    at: usize,
}

impl<'a> RawIter<'a> {
    const fn new(raw: &'a [u8]) -> Self {
        Self { raw, at: 0 }
    }

    fn part(&mut self) -> Option<std::ops::Range<usize>> {
        if self.at > self.raw.len() || self.raw.is_empty() {
            return None;
        }
        let rest = &self.raw[self.at..];
        let len = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let range = self.at..self.at + len;
        self.at += len + 1;
        Some(range)
    }
}

impl Iterator for RawIter<'_> {
    type Item = (std::ops::Range<usize>, std::ops::Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut key = self.part()?;
        while key.is_empty() {
            key = self.part()?;
        }
        Some((key, self.part()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(raw: &'static str) -> Pairs {
        Pairs::parse(Bytes::from_static(raw.as_bytes())).unwrap()
    }

    fn encoded(pairs: &Pairs) -> String {
        let mut out = BytesMut::new();
        pairs.encode(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn what_is_read_is_written() {
        let p = pairs("M_p\nkit.Echo\nM_m\necho");
        assert_eq!(p.get("M_p").unwrap(), "kit.Echo");
        assert_eq!(p.get("M_g"), None);
        assert_eq!(encoded(&p), "M_p\nkit.Echo\nM_m\necho");
    }

    #[test]
    fn overlay_hides_and_removes() {
        let mut p = pairs("a\n1\nb\n2");
        p.set(Text::from_static("a"), Text::from_static("9"));
        p.set(Text::from_static("b"), Text::default());
        p.set(Text::from_static("c"), Text::from_static("x\ny"));
        assert_eq!(p.get("a").unwrap(), "9");
        assert_eq!(p.get("b"), None);
        assert_eq!(encoded(&p), "a\n9");
    }

    #[test]
    fn odd_parts_are_an_error_and_duplicates_overwrite() {
        assert!(Pairs::parse(Bytes::from_static(b"a\n1\nb")).is_err());
        assert!(Pairs::parse(Bytes::from_static(b"a\n\xff")).is_err());
        assert_eq!(pairs("a\n1\na\n2").get("a").unwrap(), "2");
    }

    #[test]
    fn an_empty_key_shifts_the_pairs() {
        let p = pairs("\nv\nb\n2");
        assert_eq!(p.get("v").unwrap(), "b");
    }
}
