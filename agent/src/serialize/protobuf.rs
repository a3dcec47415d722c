//! Motan's protobuf of several values, serialization number 5: before each value a varint, 0 for a value and 1
//! for null. The body does not say the types; a call's description of its method (`M_md`) does.

use bytes::Bytes;

use super::{Bits, Reader, Unreadable, Unwritable, Value, put_varint, put_zigzag32, put_zigzag64, text};

/// Its number in a frame.
pub const NUMBER: u8 = 5;

/// The type of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// A truth value.
    Bool,
    /// One byte.
    Byte,
    /// 16 bits.
    Int16,
    /// 32 bits.
    Int32,
    /// 64 bits.
    Int64,
    /// 32 bits.
    Float32,
    /// 64 bits.
    Float64,
    /// Text.
    String,
    /// Bytes, or a message that nobody here takes apart.
    Bytes,
    /// All values up to the end of the body.
    List(Box<Type>),
}

/// Types named by a method's description: `java.lang.String,long,byte[]`. Names that are not known are of
/// messages, which are read as bytes. `void` and the empty text are no parameters.
pub fn types(description: &str) -> Vec<Type> {
    if matches!(description, "" | "void") {
        return Vec::new();
    }
    description.split(',').map(|name| of_name(name.trim())).collect()
}

fn of_name(name: &str) -> Type {
    type_named(name).unwrap_or(Type::Bytes)
}

/// The type that a description calls so; `None` when it is not known, such as a class.
pub fn type_named(name: &str) -> Option<Type> {
    Some(match name {
        "boolean" | "bool" | "java.lang.Boolean" => Type::Bool,
        "byte" | "uint8" | "java.lang.Byte" => Type::Byte,
        "short" | "int16" | "uint16" | "java.lang.Short" => Type::Int16,
        "int" | "int32" | "uint32" | "java.lang.Integer" => Type::Int32,
        "long" | "int64" | "uint64" | "java.lang.Long" => Type::Int64,
        "float" | "float32" | "java.lang.Float" => Type::Float32,
        "double" | "float64" | "java.lang.Double" => Type::Float64,
        "string" | "java.lang.String" => Type::String,
        "byte[]" => Type::Bytes,
        _ => Type::List(Box::new(of_name(name.strip_suffix("[]")?))),
    })
}

/// The values of a body whose types are known. What is left after the last type is an error.
pub fn read(body: Bytes, types: &[Type]) -> Result<Vec<Value>, Unreadable> {
    let mut reader = Reader::new(body);
    let values = types.iter().map(|kind| value(&mut reader, kind)).collect::<Result<_, _>>()?;
    if reader.rest.is_empty() { Ok(values) } else { Err(Unreadable::Length) }
}

fn value(reader: &mut Reader, kind: &Type) -> Result<Value, Unreadable> {
    reader.enter(0)?;
    if let Type::List(item) = kind {
        let mut list = Vec::new();
        while !reader.rest.is_empty() {
            if matches!(**item, Type::List(_)) {
                return Err(Unreadable::Depth);
            }
            list.push(value(reader, item)?);
        }
        return Ok(Value::Array(list));
    }
    match reader.varint()? {
        0 => {}
        1 => return Ok(Value::Null),
        _ => return Err(Unreadable::Type(2)),
    }
    Ok(match kind {
        Type::Bool => Value::Bool(reader.varint()? == 1),
        Type::Byte => Value::Byte(u8::try_from(reader.varint()?).map_err(|_| Unreadable::Overflow)?),
        Type::Int16 => Value::Int16(i16::try_from(reader.zigzag32()?).map_err(|_| Unreadable::Overflow)?),
        Type::Int32 => Value::Int32(reader.zigzag32()?),
        Type::Int64 => Value::Int64(reader.zigzag64()?),
        Type::Float32 => Value::Float32(Bits(u32::from_le_bytes(reader.array()?))),
        Type::Float64 => Value::Float64(Bits(u64::from_le_bytes(reader.array()?))),
        Type::String => Value::String(text(reader.short_block()?)?),
        Type::Bytes => Value::Bytes(reader.short_block()?),
        Type::List(_) => return Err(Unreadable::Depth),
    })
}

/// The body that these values make. An array is a list, which must be the last value.
pub fn write(values: &[Value]) -> Result<Bytes, Unwritable> {
    let mut out = Vec::new();
    for (i, value) in values.iter().enumerate() {
        match value {
            Value::Array(list) if i + 1 == values.len() => list.iter().try_for_each(|item| put(item, &mut out))?,
            value => put(value, &mut out)?,
        }
    }
    Ok(out.into())
}

fn put(value: &Value, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    put_varint((*value == Value::Null).into(), out);
    match value {
        Value::Null => {}
        Value::Bool(b) => put_varint((*b).into(), out),
        Value::Byte(b) => put_varint((*b).into(), out),
        Value::Int16(n) => put_zigzag32((*n).into(), out),
        Value::Int32(n) => put_zigzag32(*n, out),
        Value::Int64(n) => put_zigzag64(*n, out),
        Value::Float32(Bits(bits)) => out.extend(bits.to_le_bytes()),
        Value::Float64(Bits(bits)) => out.extend(bits.to_le_bytes()),
        Value::String(text) => {
            put_varint(text.len() as u64, out);
            out.extend_from_slice(text.as_bytes());
        }
        Value::Bytes(bytes) => {
            put_varint(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
        _ => return Err(Unwritable::Type { format: "Motan's protobuf", value: value.name() }),
    }
    Ok(())
}
