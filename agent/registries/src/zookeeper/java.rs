//! Node data: text as Java serializes a string, or as it is (`docs/wire/zookeeper.md`).

use super::Encoding;

/// Stream magic and version of Java's object serialization.
const MAGIC: [u8; 4] = [0xac, 0xed, 0, 5];
/// A string with a 2-byte length follows.
const STRING: u8 = 0x74;
/// A string with an 8-byte length follows.
const LONG_STRING: u8 = 0x7c;

/// Text found in a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    /// The text itself.
    pub text: String,
    /// It was Java-serialized.
    pub java: bool,
}

/// Reads either form. The error says what is wrong, without any of the data.
pub(super) fn read(data: &[u8]) -> Result<Text, &'static str> {
    let Some(rest) = data.strip_prefix(&MAGIC) else {
        let text = std::str::from_utf8(data).map_err(|_| "is neither text nor a Java-serialized string")?;
        return Ok(Text { text: text.to_owned(), java: false });
    };
    let cut = "is a Java-serialized string cut short";
    let (text, announced) = match rest.split_first() {
        Some((&STRING, rest)) => {
            let (length, text) = rest.split_first_chunk::<2>().ok_or(cut)?;
            (text, u64::from(u16::from_be_bytes(*length)))
        }
        Some((&LONG_STRING, rest)) => {
            let (length, text) = rest.split_first_chunk::<8>().ok_or(cut)?;
            (text, u64::from_be_bytes(*length))
        }
        Some(_) => return Err("is a serialized Java object, not a string"),
        None => return Err(cut),
    };
    let text = usize::try_from(announced).ok().and_then(|length| text.get(..length)).ok_or(cut)?;
    let text = modified_utf8(text).ok_or("is a Java-serialized string with bad characters")?;
    Ok(Text { text, java: true })
}

/// The data of a node that says `text`.
pub(super) fn write(text: &str, encoding: Encoding) -> Vec<u8> {
    if encoding == Encoding::Plain {
        return text.as_bytes().to_vec();
    }
    let bytes = to_modified_utf8(text);
    let mut data = MAGIC.to_vec();
    match u16::try_from(bytes.len()) {
        Ok(length) => {
            data.push(STRING);
            data.extend(length.to_be_bytes());
        }
        Err(_) => {
            data.push(LONG_STRING);
            data.extend((bytes.len() as u64).to_be_bytes());
        }
    }
    data.extend(bytes);
    data
}

/// Java writes characters beyond U+FFFF as two surrogates of three bytes each, and NUL as two bytes.
/// Plain UTF-8, which other writers put there, is read as well.
fn modified_utf8(bytes: &[u8]) -> Option<String> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains('\0')
    {
        return Some(text.to_owned());
    }
    let mut units = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&a, after)) = rest.split_first() {
        let next = |i: usize| after.get(i).filter(|b| *b & 0xc0 == 0x80).map(|b| u16::from(b & 0x3f));
        let (unit, taken) = match a {
            0x00..=0x7f => (u16::from(a), 0),
            0xc0..=0xdf => (u16::from(a & 0x1f) << 6 | next(0)?, 1),
            0xe0..=0xef => (u16::from(a & 0x0f) << 12 | next(0)? << 6 | next(1)?, 2),
            _ => return None,
        };
        units.push(unit);
        rest = &after[taken..];
    }
    String::from_utf16(&units).ok()
}

fn to_modified_utf8(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\0' => bytes.extend([0xc0, 0x80]),
            c if u32::from(c) < 0x1_0000 => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let [high, low] = [*unit >> 6, *unit & 0x3f];
                    bytes.extend([0xe0 | (high >> 6) as u8, 0x80 | (high & 0x3f) as u8, 0x80 | low as u8]);
                }
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lengths_and_plain_text_are_read_and_written() {
        let long = "x".repeat(70_000);
        for text in ["", "motan2://127.0.0.1:1/s?a=中&", "\u{1f600}\0", &long] {
            let java = write(text, Encoding::Java);
            assert_eq!(java[..4], MAGIC);
            assert_eq!(java[4], if text.len() > 65_535 { LONG_STRING } else { STRING });
            assert_eq!(read(&java), Ok(Text { text: text.to_owned(), java: true }));
            let plain = write(text, Encoding::Plain);
            assert_eq!(read(&plain), Ok(Text { text: text.to_owned(), java: false }));
        }
        assert_eq!(write("ab", Encoding::Java), b"\xac\xed\0\x05\x74\0\x02ab");
        // As `ObjectOutputStream.writeObject("\u{1f600}")` wrote it.
        assert_eq!(write("\u{1f600}", Encoding::Java)[7..], *b"\xed\xa0\xbd\xed\xb8\x80");
        assert_eq!(read(b"\xac\xed\0\x05\x74\0\x04\xf0\x9f\x98\x80").unwrap().text, "\u{1f600}");
    }

    #[test]
    fn garbage_is_told_and_never_panics() {
        let whole = write("motan2://127.0.0.1:1/s?\u{1f600}", Encoding::Java);
        for end in 4..whole.len() {
            assert!(read(&whole[..end]).is_err(), "cut at {end}");
        }
        assert!(read(b"\xff\xfe").is_err());
        assert!(read(b"\xac\xed\0\x05\x73\x72").unwrap_err().contains("not a string"));
        assert!(read(b"\xac\xed\0\x05\x7c\xff\xff\xff\xff\xff\xff\xff\xffab").is_err());
        assert!(read(b"\xac\xed\0\x05\x74\0\x02\xed\xa0").is_err());
    }
}
