//! Simple, serialization number 6: one byte of type, then the content. Lengths are four bytes, big-endian, and
//! count bytes, also those of lists and maps.
//!
//! A body with several arguments is their values one after the other; no arguments, and an answer without a
//! value, are an empty body. Empty lists and maps are read as such, where Motan's Go library makes null of
//! them; that library cannot write a null within a list or map, but reads it.

use bytes::Bytes;

use super::{
    Bits, MAX_DEPTH, Reader, Unreadable, Unwritable, Value, put_block, put_sized, put_zigzag32, put_zigzag64, text,
};

/// Its number in a frame.
pub const NUMBER: u8 = 6;

mod tag {
    pub(super) const NULL: u8 = 0;
    pub(super) const STRING: u8 = 1;
    pub(super) const STRING_MAP: u8 = 2;
    pub(super) const BYTES: u8 = 3;
    pub(super) const STRINGS: u8 = 4;
    pub(super) const BOOL: u8 = 5;
    pub(super) const BYTE: u8 = 6;
    pub(super) const INT16: u8 = 7;
    pub(super) const INT32: u8 = 8;
    pub(super) const INT64: u8 = 9;
    pub(super) const FLOAT32: u8 = 10;
    pub(super) const FLOAT64: u8 = 11;
    pub(super) const MAP: u8 = 20;
    pub(super) const ARRAY: u8 = 21;
}

/// The values of a body. Texts and bytes share its buffer.
pub fn read(body: Bytes) -> Result<Vec<Value>, Unreadable> {
    let mut reader = Reader::new(body);
    let mut values = Vec::new();
    while !reader.rest.is_empty() {
        values.push(value(&mut reader, 0)?);
    }
    Ok(values)
}

fn value(reader: &mut Reader, depth: usize) -> Result<Value, Unreadable> {
    reader.enter(depth)?;
    Ok(match reader.byte()? {
        tag::NULL => Value::Null,
        tag::STRING => Value::String(text(reader.block()?)?),
        tag::STRING_MAP => Value::StringMap(within(reader, |inner| {
            inner.enter(depth)?;
            Ok((text(inner.block()?)?, text(inner.block()?)?))
        })?),
        tag::BYTES => Value::Bytes(reader.block()?),
        tag::STRINGS => Value::Strings(within(reader, |inner| {
            inner.enter(depth)?;
            text(inner.block()?)
        })?),
        // Anything but 1 is false.
        tag::BOOL => Value::Bool(reader.byte()? == 1),
        tag::BYTE => Value::Byte(reader.byte()?),
        tag::INT16 => Value::Int16(i16::from_be_bytes(reader.array()?)),
        tag::INT32 => Value::Int32(reader.zigzag32()?),
        tag::INT64 => Value::Int64(reader.zigzag64()?),
        tag::FLOAT32 => Value::Float32(Bits(u32::from_be_bytes(reader.array()?))),
        tag::FLOAT64 => Value::Float64(Bits(u64::from_be_bytes(reader.array()?))),
        tag::MAP => Value::Map(within(reader, |inner| Ok((value(inner, depth + 1)?, value(inner, depth + 1)?)))?),
        tag::ARRAY => Value::Array(within(reader, |inner| value(inner, depth + 1))?),
        unknown => return Err(Unreadable::Type(unknown)),
    })
}

/// Items up to the end of a block.
fn within<T>(
    reader: &mut Reader,
    mut item: impl FnMut(&mut Reader) -> Result<T, Unreadable>,
) -> Result<Vec<T>, Unreadable> {
    let mut inner = Reader { rest: reader.block()?, left: reader.left };
    let mut items = Vec::new();
    while !inner.rest.is_empty() {
        // The block is whole, so what is cut off in it has a wrong length.
        items.push(item(&mut inner).map_err(|e| if e == Unreadable::Cut { Unreadable::Length } else { e })?);
    }
    reader.left = inner.left;
    Ok(items)
}

/// The body of one text or byte string, or of several, which are never too long: messages are limited.
pub fn write_blocks(values: &[Value]) -> Bytes {
    write(values).expect("texts and bytes of messages that are limited to far less than 4 GiB")
}

/// The body that these values make.
pub fn write(values: &[Value]) -> Result<Bytes, Unwritable> {
    let mut out = Vec::new();
    values.iter().try_for_each(|value| put(value, 0, &mut out))?;
    Ok(out.into())
}

fn put(value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    if depth > MAX_DEPTH {
        return Err(Unwritable::Depth);
    }
    let mut tagged = |tag| out.push(tag);
    match value {
        Value::Null => tagged(tag::NULL),
        Value::Bool(b) => {
            tagged(tag::BOOL);
            out.push((*b).into());
        }
        Value::Byte(b) => {
            tagged(tag::BYTE);
            out.push(*b);
        }
        Value::Int16(n) => {
            tagged(tag::INT16);
            out.extend(n.to_be_bytes());
        }
        Value::Int32(n) => {
            tagged(tag::INT32);
            put_zigzag32(*n, out);
        }
        Value::Int64(n) => {
            tagged(tag::INT64);
            put_zigzag64(*n, out);
        }
        Value::Float32(Bits(bits)) => {
            tagged(tag::FLOAT32);
            out.extend(bits.to_be_bytes());
        }
        Value::Float64(Bits(bits)) => {
            tagged(tag::FLOAT64);
            out.extend(bits.to_be_bytes());
        }
        Value::String(text) => {
            tagged(tag::STRING);
            put_block(text.as_bytes(), out)?;
        }
        Value::Bytes(bytes) => {
            tagged(tag::BYTES);
            put_block(bytes, out)?;
        }
        Value::Strings(list) => {
            tagged(tag::STRINGS);
            put_sized(out, |out| list.iter().try_for_each(|text| put_block(text.as_bytes(), out)))?;
        }
        Value::StringMap(map) => {
            tagged(tag::STRING_MAP);
            put_sized(out, |out| {
                map.iter()
                    .try_for_each(|(k, v)| put_block(k.as_bytes(), out).and_then(|()| put_block(v.as_bytes(), out)))
            })?;
        }
        Value::Array(list) => {
            tagged(tag::ARRAY);
            put_sized(out, |out| list.iter().try_for_each(|value| put(value, depth + 1, out)))?;
        }
        Value::Map(map) => {
            tagged(tag::MAP);
            put_sized(out, |out| {
                map.iter().try_for_each(|(k, v)| put(k, depth + 1, out).and_then(|()| put(v, depth + 1, out)))
            })?;
        }
        Value::Message(_) => return Err(Unwritable::Type { format: "Simple", value: value.name() }),
    }
    Ok(())
}
