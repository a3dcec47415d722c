//! Bodies of Motan calls as values: read and written for conversion, masking and mock answers. Calls that are
//! only carried keep their bodies untouched.

pub mod breeze;
pub mod format;
pub mod json;
pub mod protobuf;
pub mod simple;
#[cfg(test)]
mod tests;

use bytes::{Buf, Bytes};

use crate::call::Text;

/// Deepest nesting that is read or written. Deeper is an attack, or a circle.
pub const MAX_DEPTH: usize = 64;
/// Most values in one body, nested ones counted. A value takes up to 40 bytes however few it had in the body.
pub const MAX_VALUES: usize = 1 << 20;

/// One value, with the type that it has on the wire: what is read and written again is the same.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// One byte, without sign.
    Byte(u8),
    /// 16 bits.
    Int16(i16),
    /// 32 bits.
    Int32(i32),
    /// 64 bits.
    Int64(i64),
    /// 32 bits. Equal when the bits are, `NaN` included, which is why it is not an `f32`.
    Float32(Bits<u32>),
    /// 64 bits.
    Float64(Bits<u64>),
    /// Text.
    String(Text),
    /// Bytes.
    Bytes(Bytes),
    /// A list of texts.
    Strings(Vec<Text>),
    /// A list of anything.
    Array(Vec<Value>),
    /// Text to text, in the order of the wire.
    StringMap(Vec<(Text, Text)>),
    /// Anything to anything, in the order of the wire.
    Map(Vec<(Value, Value)>),
    /// A Breeze message: its name, and its fields by number.
    Message(Box<(Text, Vec<(u32, Value)>)>),
}

/// The bits of a floating point number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits<T>(pub T);

impl From<f32> for Value {
    fn from(number: f32) -> Self {
        Self::Float32(Bits(number.to_bits()))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Float64(Bits(number.to_bits()))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(Text::from(text))
    }
}

impl Value {
    /// The bytes of a text or of bytes: receivers that ask for bytes take either.
    pub const fn as_bytes(&self) -> Option<&Bytes> {
        match self {
            Self::String(text) => Some(text.as_bytes()),
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// What it is, in words.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Byte(_) => "byte",
            Self::Int16(_) => "int16",
            Self::Int32(_) => "int32",
            Self::Int64(_) => "int64",
            Self::Float32(_) => "float32",
            Self::Float64(_) => "float64",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Strings(_) => "list of strings",
            Self::Array(_) => "array",
            Self::StringMap(_) => "map of strings",
            Self::Map(_) => "map",
            Self::Message(_) => "message",
        }
    }
}

/// Why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It ends within a value.
    #[error("the body ends within a value")]
    Cut,
    /// A length says otherwise than the content.
    #[error("a length does not fit its content")]
    Length,
    /// A type that the format does not have.
    #[error("type {0} is unknown")]
    Type(u8),
    /// A text that is none.
    #[error("a text is not UTF-8")]
    Text,
    /// A number too large for its type.
    #[error("a number is too large for its type")]
    Overflow,
    /// Deeper than [`MAX_DEPTH`].
    #[error("values are nested deeper than {MAX_DEPTH}")]
    Depth,
    /// More than [`MAX_VALUES`].
    #[error("there are more than {MAX_VALUES} values")]
    Many,
    /// A message that refers to a name not said before.
    #[error("a message refers to a name that was not said")]
    Reference,
}

/// Why a value cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    /// The format has no such type.
    #[error("{format} has no {value}")]
    Type {
        /// The format.
        format: &'static str,
        /// What it has not.
        value: &'static str,
    },
    /// Deeper than [`MAX_DEPTH`].
    #[error("values are nested deeper than {MAX_DEPTH}")]
    Depth,
    /// More than 4 GiB.
    #[error("a value is longer than 4 GiB")]
    Length,
}

/// Takes a body apart; every read fails rather than going past its end.
struct Reader {
    rest: Bytes,
    /// Values that may still come.
    left: usize,
}

impl Reader {
    const fn new(body: Bytes) -> Self {
        Self { rest: body, left: MAX_VALUES }
    }

    /// Counts one value at `depth`.
    fn enter(&mut self, depth: usize) -> Result<(), Unreadable> {
        if depth > MAX_DEPTH {
            return Err(Unreadable::Depth);
        }
        self.left = self.left.checked_sub(1).ok_or(Unreadable::Many)?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let mut bytes = [0; N];
        if self.rest.len() < N {
            return Err(Unreadable::Cut);
        }
        self.rest.copy_to_slice(&mut bytes);
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        Ok(self.array::<1>()?[0])
    }

    fn take(&mut self, len: usize) -> Result<Bytes, Unreadable> {
        if self.rest.len() < len {
            return Err(Unreadable::Cut);
        }
        Ok(self.rest.split_to(len))
    }

    /// Bytes after their length in four bytes.
    fn block(&mut self) -> Result<Bytes, Unreadable> {
        let len = u32::from_be_bytes(self.array()?);
        self.take(len as usize)
    }

    /// Bytes after their length in a varint.
    fn short_block(&mut self) -> Result<Bytes, Unreadable> {
        let len = usize::try_from(self.varint()?).map_err(|_| Unreadable::Cut)?;
        self.take(len)
    }

    /// Base 128, low group first. Groups beyond 64 bits are an error.
    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            let group = u64::from(byte & 0x7f);
            if shift == 63 && group > 1 {
                return Err(Unreadable::Overflow);
            }
            value |= group << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Unreadable::Overflow)
    }

    fn zigzag32(&mut self) -> Result<i32, Unreadable> {
        let n = u32::try_from(self.varint()?).map_err(|_| Unreadable::Overflow)?;
        Ok((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
    }

    fn zigzag64(&mut self) -> Result<i64, Unreadable> {
        let n = self.varint()?;
        Ok((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
    }
}

fn text(bytes: Bytes) -> Result<Text, Unreadable> {
    Text::from_utf8(bytes).map_err(|_| Unreadable::Text)
}

fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_zigzag32(n: i32, out: &mut Vec<u8>) {
    put_varint(u64::from((n << 1 ^ n >> 31).cast_unsigned()), out);
}

fn put_zigzag64(n: i64, out: &mut Vec<u8>) {
    put_varint((n << 1 ^ n >> 63).cast_unsigned(), out);
}

fn put_block(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Unwritable> {
    let len = u32::try_from(bytes.len()).map_err(|_| Unwritable::Length)?;
    out.extend(len.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// Writes what `content` writes, after its length in four bytes.
fn put_sized(
    out: &mut Vec<u8>,
    content: impl FnOnce(&mut Vec<u8>) -> Result<(), Unwritable>,
) -> Result<(), Unwritable> {
    let at = out.len();
    out.extend([0; 4]);
    content(out)?;
    let len = u32::try_from(out.len() - at - 4).map_err(|_| Unwritable::Length)?;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
    Ok(())
}
