//! The little of the serialization `simple` that conversions need.

use bytes::{BufMut, Bytes, BytesMut};

/// Its number in a frame.
pub(in crate::protocol) const NUMBER: u8 = 6;

const NULL: u8 = 0;
const STRING: u8 = 1;
const STRING_MAP: u8 = 2;
const BYTES: u8 = 3;
const ARRAY: u8 = 21;

/// A value that an HTTP request or answer can be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::protocol) enum Value {
    Null,
    String(String),
    Map(Vec<(String, String)>),
    Bytes(Bytes),
    Array(Vec<Value>),
    /// Of a type that no HTTP message is made of; its tag.
    Other(u8),
}

/// Why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::protocol) enum Unreadable {
    #[error("a value is cut off")]
    Cut,
    #[error("a text is not UTF-8")]
    Text,
}

/// The values of a body, one after the other. Reading ends with the first [`Value::Other`], whose length is
/// not known here.
pub(in crate::protocol) fn values(mut body: Bytes) -> Result<Vec<Value>, Unreadable> {
    let mut values = Vec::new();
    while !body.is_empty() {
        let value = value(&mut body)?;
        let other = matches!(value, Value::Other(_));
        values.push(value);
        if other {
            break;
        }
    }
    Ok(values)
}

fn value(body: &mut Bytes) -> Result<Value, Unreadable> {
    match body.split_to(1)[0] {
        NULL => Ok(Value::Null),
        STRING => Ok(Value::String(text(block(body)?)?)),
        BYTES => Ok(Value::Bytes(block(body)?)),
        STRING_MAP => {
            let mut content = block(body)?;
            let mut map = Vec::new();
            while !content.is_empty() {
                map.push((text(block(&mut content)?)?, text(block(&mut content)?)?));
            }
            Ok(Value::Map(map))
        }
        // One level is all that is asked for; deeper ones would be `Other` to every reader here.
        ARRAY => {
            let mut content = block(body)?;
            let mut items = Vec::new();
            while !content.is_empty() {
                match content[0] {
                    NULL | STRING | BYTES | STRING_MAP => items.push(value(&mut content)?),
                    tag => {
                        items.push(Value::Other(tag));
                        break;
                    }
                }
            }
            Ok(Value::Array(items))
        }
        tag => Ok(Value::Other(tag)),
    }
}

fn block(body: &mut Bytes) -> Result<Bytes, Unreadable> {
    let len = body.get(..4).ok_or(Unreadable::Cut)?;
    let len = u32::from_be_bytes(len.try_into().expect("four bytes")) as usize;
    if body.len() - 4 < len {
        return Err(Unreadable::Cut);
    }
    let _ = body.split_to(4);
    Ok(body.split_to(len))
}

fn text(bytes: Bytes) -> Result<String, Unreadable> {
    String::from_utf8(bytes.into()).map_err(|_| Unreadable::Text)
}

/// Appends a text.
pub(in crate::protocol) fn put_string(text: &str, out: &mut BytesMut) {
    put(STRING, text.as_bytes(), out);
}

/// Appends bytes.
pub(in crate::protocol) fn put_bytes(bytes: &[u8], out: &mut BytesMut) {
    put(BYTES, bytes, out);
}

/// Appends a list of two byte strings.
pub(in crate::protocol) fn put_pair(first: &[u8], second: &[u8], out: &mut BytesMut) {
    out.put_u8(ARRAY);
    out.put_u32((first.len() + second.len() + 10) as u32);
    put_bytes(first, out);
    put_bytes(second, out);
}

fn put(tag: u8, bytes: &[u8], out: &mut BytesMut) {
    out.reserve(bytes.len() + 5);
    out.put_u8(tag);
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_cuts_are_noticed() {
        let mut out = BytesMut::new();
        put_string("a中", &mut out);
        put_bytes(b"\xff", &mut out);
        put_pair(b"1", b"", &mut out);
        out.put_slice(b"\x02\0\0\0\x0a\0\0\0\x01k\0\0\0\x01v\0\x0f");
        let body = out.freeze();
        let expected = vec![
            Value::String("a中".into()),
            Value::Bytes(Bytes::from_static(b"\xff")),
            Value::Array(vec![Value::Bytes(Bytes::from_static(b"1")), Value::Bytes(Bytes::new())]),
            Value::Map(vec![("k".into(), "v".into())]),
            Value::Null,
            Value::Other(15),
        ];
        assert_eq!(values(body.clone()).unwrap(), expected);
        for cut in 0..body.len() {
            let _ = values(body.slice(..cut));
        }
        assert_eq!(values(Bytes::from_static(b"\x01\0\0\0\x02a")), Err(Unreadable::Cut));
        assert_eq!(values(Bytes::from_static(b"\x01\xff\xff\xff\xffa")), Err(Unreadable::Cut));
        assert_eq!(values(Bytes::from_static(b"\x01\0\0\0\x01\xff")), Err(Unreadable::Text));
        assert_eq!(values(Bytes::new()).unwrap(), []);
    }
}
