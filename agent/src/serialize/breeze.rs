//! Breeze, serialization number 8, as its public libraries write it: short texts and small numbers are in the
//! byte of type itself, lists and maps of one type are packed (the type once), messages name their type once and
//! refer to it afterwards. Schemas do not travel, so fields of messages have numbers, not names.

use bytes::Bytes;

use super::{
    Bits, MAX_DEPTH, Reader, Unreadable, Unwritable, Value, put_block, put_sized, put_varint, put_zigzag32,
    put_zigzag64, text,
};
use crate::call::Text;

/// Its number in a frame.
pub const NUMBER: u8 = 8;

mod tag {
    /// Up to here: a text of that many bytes.
    pub(super) const LAST_TEXT: u8 = 0x3e;
    pub(super) const STRING: u8 = 0x3f;
    /// Small numbers.
    pub(super) const FIRST_INT32: u8 = 0x40;
    pub(super) const INT32_ZERO: u8 = 0x50;
    pub(super) const LAST_INT32: u8 = 0x7e;
    pub(super) const INT32: u8 = 0x7f;
    pub(super) const FIRST_INT64: u8 = 0x80;
    pub(super) const INT64_ZERO: u8 = 0x88;
    pub(super) const LAST_INT64: u8 = 0x97;
    pub(super) const INT64: u8 = 0x98;
    pub(super) const NULL: u8 = 0x99;
    pub(super) const TRUE: u8 = 0x9a;
    pub(super) const FALSE: u8 = 0x9b;
    pub(super) const BYTE: u8 = 0x9c;
    pub(super) const BYTES: u8 = 0x9d;
    pub(super) const INT16: u8 = 0x9e;
    pub(super) const FLOAT32: u8 = 0x9f;
    pub(super) const FLOAT64: u8 = 0xa0;
    pub(super) const MAP: u8 = 0xd9;
    pub(super) const ARRAY: u8 = 0xda;
    pub(super) const PACKED_MAP: u8 = 0xdb;
    pub(super) const PACKED_ARRAY: u8 = 0xdc;
    pub(super) const MESSAGE: u8 = 0xde;
    /// From here on: a message of a name said before, by its number from 1.
    pub(super) const REFERENCE: u8 = 0xdf;
}

/// A type without its content, as packed lists and maps name it.
#[derive(Clone)]
enum Kind {
    Plain(u8),
    Message(Text),
}

/// Names of messages in the order in which they were said.
type Names = Vec<Text>;

/// The values of a body. Texts and bytes share its buffer.
pub fn read(body: Bytes) -> Result<Vec<Value>, Unreadable> {
    let mut reader = Reader::new(body);
    let (mut values, mut names) = (Vec::new(), Names::new());
    while !reader.rest.is_empty() {
        values.push(value(&mut reader, &mut names, 0)?);
    }
    Ok(values)
}

fn value(reader: &mut Reader, names: &mut Names, depth: usize) -> Result<Value, Unreadable> {
    let tag = reader.byte()?;
    Ok(match tag {
        ..=tag::LAST_TEXT => {
            reader.enter(depth)?;
            Value::String(text(reader.take(tag.into())?)?)
        }
        tag::FIRST_INT32..=tag::LAST_INT32 => {
            reader.enter(depth)?;
            Value::Int32(i32::from(tag) - i32::from(tag::INT32_ZERO))
        }
        tag::FIRST_INT64..=tag::LAST_INT64 => {
            reader.enter(depth)?;
            Value::Int64(i64::from(tag) - i64::from(tag::INT64_ZERO))
        }
        _ => {
            let kind = kind(tag, reader, names)?;
            content(&kind, reader, names, depth)?
        }
    })
}

/// The type that begins with `tag`: messages say their name, or refer to it.
fn kind(tag: u8, reader: &mut Reader, names: &mut Names) -> Result<Kind, Unreadable> {
    match tag {
        tag::MESSAGE => {
            let name = text(reader.short_block()?)?;
            names.push(name.clone());
            Ok(Kind::Message(name))
        }
        tag::REFERENCE.. => {
            let number = if tag == tag::REFERENCE { reader.varint()? } else { (tag - tag::REFERENCE).into() };
            let at = usize::try_from(number).ok().and_then(|n| n.checked_sub(1)).ok_or(Unreadable::Reference)?;
            Ok(Kind::Message(names.get(at).cloned().ok_or(Unreadable::Reference)?))
        }
        _ => Ok(Kind::Plain(tag)),
    }
}

fn content(kind: &Kind, reader: &mut Reader, names: &mut Names, depth: usize) -> Result<Value, Unreadable> {
    reader.enter(depth)?;
    let tag = match kind {
        Kind::Plain(tag) => *tag,
        Kind::Message(name) => {
            let mut inner = Reader { rest: reader.block()?, left: reader.left };
            let mut fields = Vec::new();
            while !inner.rest.is_empty() {
                let field = |inner: &mut Reader, names: &mut Names| {
                    let number = u32::try_from(inner.varint()?).map_err(|_| Unreadable::Overflow)?;
                    Ok((number, value(inner, names, depth + 1)?))
                };
                let cut = |e| if e == Unreadable::Cut { Unreadable::Length } else { e };
                fields.push(field(&mut inner, names).map_err(cut)?);
            }
            reader.left = inner.left;
            return Ok(Value::Message(Box::new((name.clone(), fields))));
        }
    };
    Ok(match tag {
        tag::NULL => Value::Null,
        tag::TRUE => Value::Bool(true),
        tag::FALSE => Value::Bool(false),
        tag::STRING => Value::String(text(reader.short_block()?)?),
        tag::BYTE => Value::Byte(reader.byte()?),
        tag::BYTES => Value::Bytes(reader.block()?),
        tag::INT16 => Value::Int16(i16::from_be_bytes(reader.array()?)),
        tag::INT32 => Value::Int32(reader.zigzag32()?),
        tag::INT64 => Value::Int64(reader.zigzag64()?),
        tag::FLOAT32 => Value::Float32(Bits(u32::from_be_bytes(reader.array()?))),
        tag::FLOAT64 => Value::Float64(Bits(u64::from_be_bytes(reader.array()?))),
        tag::MAP => {
            let n = count(reader)?;
            let entry = |_| Ok((value(reader, names, depth + 1)?, value(reader, names, depth + 1)?));
            Value::Map((0..n).map(entry).collect::<Result<_, _>>()?)
        }
        tag::ARRAY => {
            let n = count(reader)?;
            Value::Array((0..n).map(|_| value(reader, names, depth + 1)).collect::<Result<_, _>>()?)
        }
        tag::PACKED_MAP => {
            let n = count(reader)?;
            if n == 0 {
                return Ok(Value::StringMap(Vec::new()));
            }
            let (key, item) = (packed_kind(reader, names)?, packed_kind(reader, names)?);
            let entry = |_| Ok((packed(&key, reader, names, depth + 1)?, packed(&item, reader, names, depth + 1)?));
            let map: Vec<_> = (0..n).map(entry).collect::<Result<_, _>>()?;
            match (&key, &item) {
                (Kind::Plain(tag::STRING), Kind::Plain(tag::STRING)) => {
                    Value::StringMap(map.into_iter().filter_map(|(k, v)| Some((string(k)?, string(v)?))).collect())
                }
                _ => Value::Map(map),
            }
        }
        tag::PACKED_ARRAY => {
            let n = count(reader)?;
            if n == 0 {
                return Ok(Value::Strings(Vec::new()));
            }
            let kind = packed_kind(reader, names)?;
            let list: Vec<_> = (0..n).map(|_| packed(&kind, reader, names, depth + 1)).collect::<Result<_, _>>()?;
            match kind {
                Kind::Plain(tag::STRING) => Value::Strings(list.into_iter().filter_map(string).collect()),
                _ => Value::Array(list),
            }
        }
        unknown => return Err(Unreadable::Type(unknown)),
    })
}

/// How many items follow. Each has a byte at least, so nobody makes room for what cannot be there.
fn count(reader: &mut Reader) -> Result<usize, Unreadable> {
    let n = usize::try_from(reader.varint()?).map_err(|_| Unreadable::Length)?;
    if n > reader.rest.len() { Err(Unreadable::Cut) } else { Ok(n) }
}

fn packed_kind(reader: &mut Reader, names: &mut Names) -> Result<Kind, Unreadable> {
    let tag = reader.byte()?;
    match kind(tag, reader, names)? {
        // Items of these would have no content: any number of them would fit into nothing.
        Kind::Plain(tag) if !matches!(tag, tag::STRING | tag::INT32 | tag::INT64 | tag::TRUE..=tag::FLOAT64 | tag::MAP..=tag::PACKED_ARRAY) => {
            Err(Unreadable::Type(tag))
        }
        kind => Ok(kind),
    }
}

fn packed(kind: &Kind, reader: &mut Reader, names: &mut Names, depth: usize) -> Result<Value, Unreadable> {
    match kind {
        // The type of a truth value is the value.
        Kind::Plain(tag::TRUE | tag::FALSE) => value(reader, names, depth),
        kind => content(kind, reader, names, depth),
    }
}

fn string(value: Value) -> Option<Text> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// The body that these values make. Lists and maps of texts are packed, others are not.
pub fn write(values: &[Value]) -> Result<Bytes, Unwritable> {
    let (mut out, mut names) = (Vec::new(), Names::new());
    values.iter().try_for_each(|value| put(value, 0, &mut names, &mut out))?;
    Ok(out.into())
}

fn put(value: &Value, depth: usize, names: &mut Names, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    if depth > MAX_DEPTH {
        return Err(Unwritable::Depth);
    }
    match value {
        Value::Null => out.push(tag::NULL),
        Value::Bool(b) => out.push(if *b { tag::TRUE } else { tag::FALSE }),
        Value::Byte(b) => out.extend([tag::BYTE, *b]),
        Value::Int16(n) => {
            out.push(tag::INT16);
            out.extend(n.to_be_bytes());
        }
        Value::Int32(n @ -16..=46) => out.push((*n + i32::from(tag::INT32_ZERO)) as u8),
        Value::Int32(n) => {
            out.push(tag::INT32);
            put_zigzag32(*n, out);
        }
        Value::Int64(n @ -8..=15) => out.push((*n + i64::from(tag::INT64_ZERO)) as u8),
        Value::Int64(n) => {
            out.push(tag::INT64);
            put_zigzag64(*n, out);
        }
        Value::Float32(Bits(bits)) => {
            out.push(tag::FLOAT32);
            out.extend(bits.to_be_bytes());
        }
        Value::Float64(Bits(bits)) => {
            out.push(tag::FLOAT64);
            out.extend(bits.to_be_bytes());
        }
        Value::String(text) if text.len() < usize::from(tag::STRING) => {
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
        Value::String(text) => {
            out.push(tag::STRING);
            put_text(text, out);
        }
        Value::Bytes(bytes) => {
            out.push(tag::BYTES);
            put_block(bytes, out)?;
        }
        Value::Strings(list) => {
            out.push(tag::PACKED_ARRAY);
            put_varint(list.len() as u64, out);
            out.extend((!list.is_empty()).then_some(tag::STRING));
            list.iter().for_each(|text| put_text(text, out));
        }
        Value::StringMap(map) => {
            out.push(tag::PACKED_MAP);
            put_varint(map.len() as u64, out);
            if !map.is_empty() {
                out.extend([tag::STRING; 2]);
            }
            for (key, value) in map {
                put_text(key, out);
                put_text(value, out);
            }
        }
        Value::Array(list) => {
            out.push(tag::ARRAY);
            put_varint(list.len() as u64, out);
            list.iter().try_for_each(|value| put(value, depth + 1, names, out))?;
        }
        Value::Map(map) => {
            out.push(tag::MAP);
            put_varint(map.len() as u64, out);
            for (key, value) in map {
                put(key, depth + 1, names, out)?;
                put(value, depth + 1, names, out)?;
            }
        }
        Value::Message(message) => {
            let (name, fields) = &**message;
            match names.iter().position(|known| known == name).map(|at| at + 1) {
                None => {
                    out.push(tag::MESSAGE);
                    put_text(name, out);
                    names.push(name.clone());
                }
                Some(number @ 1..=0x20) => out.push(tag::REFERENCE + number as u8),
                Some(number) => {
                    out.push(tag::REFERENCE);
                    put_varint(number as u64, out);
                }
            }
            put_sized(out, |out| {
                fields.iter().try_for_each(|(number, value)| {
                    put_varint((*number).into(), out);
                    put(value, depth + 1, names, out)
                })
            })?;
        }
    }
    Ok(())
}

fn put_text(text: &Text, out: &mut Vec<u8>) {
    put_varint(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}
