//! [`Pairs`]: a Motan2 metadata block, kept raw and changed by overlay.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::Text;

/// Metadata as it came, plus the few keys this hop sets. Nothing is parsed into a map: walking the raw
/// block, which for the usual five to ten pairs is cheaper than hashing them, answers every question.
///
/// Values that are not UTF-8 are carried on as they are but cannot be read as [`Text`].
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    /// `key\nvalue\nkey\nvalue`, checked to end with a value.
    raw: Bytes,
    /// Keys set here; they hide equal keys of `raw`. An empty value removes the key. Two inline: what a
    /// server half sets (`host`, `x-forwarded-for`); the rest is written by [`Pairs::encode_with`].
    set: SmallVec<[(Text, Text); 2]>,
}

/// A metadata block whose last key has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata has an odd number of parts")]
pub struct OddPairs;

/// A pair for [`Pairs::encode_with`]: written without being stored.
#[derive(Clone, Copy, Debug)]
pub struct Extra<'a> {
    /// Key.
    pub key: &'a str,
    /// Value; pairs with an empty one are not written.
    pub value: &'a str,
    /// What to do about a pair of that key that is there already.
    pub rule: Rule,
}

/// What an [`Extra`] does about a pair of its key that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The pair that is there stays.
    IfAbsent,
    /// This one takes its place.
    Replace,
}

impl Pairs {
    /// Takes a raw block. Fails when its last key has no value, which is fatal on the wire.
    pub fn parse(raw: Bytes) -> Result<Self, OddPairs> {
        let mut walk = RawIter::new(&raw);
        while walk.next().is_some() {}
        if walk.odd {
            return Err(OddPairs);
        }
        Ok(Self { raw, set: SmallVec::new() })
    }

    /// The block as it came, without what was set since.
    pub const fn as_raw(&self) -> &Bytes {
        &self.raw
    }

    /// The value of `key`; `None` when absent, empty or not UTF-8.
    pub fn get(&self, key: &str) -> Option<Text> {
        if let Some((_, value)) = self.set.iter().find(|(k, _)| k == key) {
            return (!value.is_empty()).then(|| value.clone());
        }
        // A later duplicate overwrites an earlier one, so the last match counts.
        let found = self.came().filter(|(k, _)| *k == key.as_bytes()).last()?;
        self.text(found.1)
    }

    /// Walks the pairs that came, once: key, and where the value lies for [`Pairs::text`]. For readers
    /// that want many keys. A later duplicate overwrites an earlier one.
    pub fn came(&self) -> impl Iterator<Item = (&[u8], Range<usize>)> + '_ {
        RawIter::new(&self.raw).map(|(k, v)| (&self.raw[k], v))
    }

    /// The value at `range`, shared with the block; `None` when empty or not UTF-8.
    pub fn text(&self, range: Range<usize>) -> Option<Text> {
        if range.is_empty() {
            return None;
        }
        Text::from_utf8(self.raw.slice(range)).ok()
    }

    /// Sets `key`, hiding what came with the block. An empty value removes the key.
    pub fn set(&mut self, key: Text, value: Text) {
        match self.set.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.set.push((key, value)),
        }
    }

    /// All readable pairs that would be written, in wire order.
    pub fn iter(&self) -> impl Iterator<Item = (Text, Text)> + '_ {
        let raw = RawIter::new(&self.raw).filter_map(|(k, v)| {
            let key = Text::from_utf8(self.raw.slice(k)).ok()?;
            let value = Text::from_utf8(self.raw.slice(v)).ok()?;
            (!self.set.iter().any(|(s, _)| *s == key)).then_some((key, value))
        });
        raw.chain(self.set.iter().cloned()).filter(|(k, v)| writable(k.as_bytes()) && writable(v.as_bytes()))
    }

    /// Appends the block in wire form: no trailing newline; pairs with an empty part or a newline
    /// inside are left out, because the format cannot carry them.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_with(&[], out);
    }

    /// [`Pairs::encode`] with up to 32 `extras` at its end.
    pub fn encode_with(&self, extras: &[Extra<'_>], out: &mut BytesMut) {
        debug_assert!(extras.len() <= 32, "one bit each in `there`");
        let start = out.len();
        out.reserve(self.raw.len() + 192);
        let mut there = 0u32;
        // Keys of extras are short and differ early, so comparing them all beats a map.
        let mut hidden = |key: &[u8]| match extras.iter().position(|e| e.key.as_bytes() == key) {
            Some(i) if extras[i].rule == Rule::IfAbsent => {
                there |= 1 << i;
                false
            }
            found => found.is_some(),
        };
        let mut put = |key: &[u8], value: &[u8]| {
            if out.len() > start {
                out.put_u8(b'\n');
            }
            out.put_slice(key);
            out.put_u8(b'\n');
            out.put_slice(value);
        };
        for (key, v) in self.came() {
            let value = &self.raw[v];
            let overlaid = self.set.iter().any(|(s, _)| s.as_bytes() == key);
            if !overlaid && !value.is_empty() && !hidden(key) {
                put(key, value);
            }
        }
        for (key, value) in &self.set {
            let (key, value) = (key.as_bytes(), value.as_bytes());
            if writable(key) && writable(value) && !hidden(key) {
                put(key, value);
            }
        }
        for (i, extra) in extras.iter().enumerate() {
            let (key, value) = (extra.key.as_bytes(), extra.value.as_bytes());
            if there & (1 << i) == 0 && writable(key) && writable(value) {
                put(key, value);
            }
        }
    }
}

fn writable(part: &[u8]) -> bool {
    !part.is_empty() && memchr::memchr(b'\n', part).is_none()
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
    /// The block ended after a key.
    odd: bool,
}

impl<'a> RawIter<'a> {
    const fn new(raw: &'a [u8]) -> Self {
        Self { raw, at: 0, odd: false }
    }

    fn part(&mut self) -> Option<Range<usize>> {
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
    type Item = (Range<usize>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut key = self.part()?;
        while key.is_empty() {
            key = self.part()?;
        }
        let value = self.part();
        self.odd = value.is_none();
        Some((key, value?))
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
        assert!(Pairs::parse(Bytes::from_static(b"a")).is_err());
        assert!(Pairs::parse(Bytes::new()).is_ok());
        assert_eq!(pairs("a\n1\na\n2").get("a").unwrap(), "2");
    }

    #[test]
    fn what_is_not_utf8_is_carried_but_not_read() {
        let p = Pairs::parse(Bytes::from_static(b"a\n\xff\nb\n2")).unwrap();
        assert_eq!(p.get("a"), None);
        assert_eq!(p.get("b").unwrap(), "2");
        let mut out = BytesMut::new();
        p.encode(&mut out);
        assert_eq!(&out[..], b"a\n\xff\nb\n2");
    }

    #[test]
    fn extras_replace_or_give_way() {
        let mut p = pairs("a\n1\nb\n2\nd\n\ne\n5");
        p.set(Text::from_static("f"), Text::from_static("6"));
        let extra = |key, value, rule| Extra { key, value, rule };
        let mut out = BytesMut::new();
        let extras = [
            extra("a", "x", Rule::Replace),
            extra("b", "x", Rule::IfAbsent),
            extra("c", "x", Rule::IfAbsent),
            extra("d", "x", Rule::IfAbsent),
            extra("e", "", Rule::Replace),
            extra("f", "x", Rule::IfAbsent),
        ];
        p.encode_with(&extras, &mut out);
        assert_eq!(std::str::from_utf8(&out).unwrap(), "b\n2\nf\n6\na\nx\nc\nx\nd\nx");
    }

    #[test]
    fn an_empty_key_shifts_the_pairs() {
        let p = pairs("\nv\nb");
        assert_eq!(p.get("v").unwrap(), "b");
        assert!(Pairs::parse(Bytes::from_static(b"\nv\nb\n2")).is_err(), "the shift leaves a key without a value");
        assert!(Pairs::parse(Bytes::from_static(b"\n\n")).is_ok(), "keys that are all empty make no pair");
    }
}
