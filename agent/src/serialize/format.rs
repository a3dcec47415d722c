//! [`Format`]: bodies of whole calls, arguments or answer, from one serialization to values and on to another.
//!
//! What a body does not say about its types, the method's description has to: Motan's protobuf says none, JSON no more
//! than JSON has. Simple and Breeze say all, and are never measured by a description.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;

use super::{
    Bits, Unreadable, Unwritable, Value, breeze,
    json::{self, NoValue},
    protobuf::{self, Type},
    simple,
};

/// A serialization that bodies can be read from and written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Number 6.
    Simple,
    /// Number 8.
    Breeze,
    /// Number 5, of several values.
    Protobuf,
    /// Number 2: a list of the arguments, the value of an answer.
    Json,
}

/// All of them.
pub const FORMATS: [Format; 4] = [Format::Simple, Format::Breeze, Format::Protobuf, Format::Json];

/// Which part of a call a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of a request: any number of values.
    Arguments,
    /// Of an answer: one value, or none.
    Answer,
}

/// Types that a method's description names; `None` is one that is not known, such as a class.
pub type Declared = Vec<Option<Type>>;

/// Why a body cannot be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotConverted {
    /// It cannot be read.
    #[error("as {0} it cannot be read: {1}")]
    Unreadable(&'static str, Unreadable),
    /// It is no JSON of values.
    #[error("as json it cannot be read: {0}")]
    NoValue(NoValue),
    /// Arguments are a list.
    #[error("as json it cannot be read: arguments are a list such as [1, \"a\"]")]
    NoList,
    /// It does not say its types, and nobody else does.
    #[error("its types are not known: they are named neither by the call (`M_md`) nor by `methods.M`")]
    Undeclared,
    /// Not as many values as types.
    #[error("it has {values} values where the method has {types}")]
    Number {
        /// Values of the body.
        values: usize,
        /// Types of the description.
        types: usize,
    },
    /// A value that is not of the type that the method has.
    #[error("value {at} is {value} where the method has {declared}")]
    Mismatch {
        /// Which, from 1.
        at: usize,
        /// What it is.
        value: &'static str,
        /// What it has to be.
        declared: &'static str,
    },
    /// A value that the other format does not have.
    #[error("it cannot be written as {0}: {1}")]
    Unwritable(&'static str, Unwritable),
}

impl Format {
    /// The name in the configuration and in registrations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Breeze => "breeze",
            Self::Protobuf => "protobuf",
            Self::Json => "json",
        }
    }

    /// The number in a frame.
    pub const fn number(self) -> u8 {
        match self {
            Self::Simple => simple::NUMBER,
            Self::Breeze => breeze::NUMBER,
            Self::Protobuf => protobuf::NUMBER,
            Self::Json => json::NUMBER,
        }
    }

    /// The one with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        FORMATS.into_iter().find(|format| format.name() == name)
    }

    /// The one with this number.
    pub fn of_number(number: u8) -> Option<Self> {
        FORMATS.into_iter().find(|format| format.number() == number)
    }

    /// The values of a body. An empty body is no value in every format.
    pub fn read(self, body: Bytes, part: Part, declared: Option<&Declared>) -> Result<Vec<Value>, NotConverted> {
        // Of protobuf it may be a list without items.
        let is_list = |types: &Declared| self == Self::Protobuf && matches!(types[..], [Some(Type::List(_))]);
        if body.is_empty() && !declared.is_some_and(is_list) {
            return Ok(Vec::new());
        }
        let unreadable = |error| NotConverted::Unreadable(self.name(), error);
        match self {
            Self::Simple => simple::read(body).map_err(unreadable),
            Self::Breeze => breeze::read(body).map_err(unreadable),
            Self::Protobuf => {
                let declared = declared.ok_or(NotConverted::Undeclared)?;
                // A class is a message there, which nobody takes apart.
                let types: Vec<_> = declared.iter().map(|kind| kind.clone().unwrap_or(Type::Bytes)).collect();
                Ok(protobuf::read(body, &types).map_err(unreadable)?.into_iter().map(list_of_texts).collect())
            }
            Self::Json => {
                let json = serde_json::from_slice(&body)
                    .map_err(|error| NotConverted::NoValue(NoValue::Json(error.to_string())))?;
                let values = match (part, json) {
                    (Part::Answer, json) => vec![json],
                    (Part::Arguments, serde_json::Value::Array(list)) => list,
                    (Part::Arguments, _) => return Err(NotConverted::NoList),
                };
                let values = values.iter().map(json::from_json).collect::<Result<_, _>>();
                shaped(values.map_err(NotConverted::NoValue)?, declared)
            }
        }
    }

    /// The body that values make.
    pub fn write(self, values: Vec<Value>, part: Part, declared: Option<&Declared>) -> Result<Bytes, NotConverted> {
        let unwritable = |error| NotConverted::Unwritable(self.name(), error);
        match self {
            _ if values.is_empty() && part == Part::Answer => Ok(Bytes::new()),
            Self::Simple => simple::write(&values).map_err(unwritable),
            Self::Breeze => breeze::write(&values).map_err(unwritable),
            Self::Protobuf => {
                let values: Vec<_> = shaped(values, declared)?.into_iter().map(plain_list).collect();
                protobuf::write(&values).map_err(unwritable)
            }
            Self::Json => {
                let values = shaped(values, declared)?;
                let kind = |i: usize| declared.and_then(|types| types.get(i)?.as_ref());
                let mut json = values.iter().enumerate().map(|(i, value)| to_json(value, kind(i)));
                let json = match part {
                    Part::Arguments => serde_json::Value::Array(json.collect()),
                    Part::Answer => json.next().unwrap_or_default(),
                };
                Ok(json.to_string().into())
            }
        }
    }
}

/// Types named by a method's description, as [`protobuf::types`], but for those that are not known.
pub fn declared(description: &str) -> Declared {
    match description.trim() {
        "" | "void" => Vec::new(),
        names => names.split(',').map(|name| protobuf::type_named(name.trim())).collect(),
    }
}

/// Protobuf's lists of texts are what other formats have a type of their own for.
fn list_of_texts(value: Value) -> Value {
    let Value::Array(list) = value else { return value };
    let texts = list.iter().map(|item| if let Value::String(text) = item { Some(text.clone()) } else { None });
    match texts.collect::<Option<Vec<_>>>() {
        Some(texts) if !texts.is_empty() => Value::Strings(texts),
        _ => Value::Array(list),
    }
}

fn plain_list(value: Value) -> Value {
    match value {
        Value::Strings(texts) => Value::Array(texts.into_iter().map(Value::String).collect()),
        value => value,
    }
}

/// The values with the types that the method has, where it says them.
fn shaped(values: Vec<Value>, declared: Option<&Declared>) -> Result<Vec<Value>, NotConverted> {
    let Some(types) = declared else { return Ok(values) };
    if values.len() != types.len() {
        return Err(NotConverted::Number { values: values.len(), types: types.len() });
    }
    let shape = |(i, (value, kind)): (usize, (Value, &Option<Type>))| {
        let Some(kind) = kind else { return Ok(value) };
        let name = value.name();
        fit(value, kind).ok_or(NotConverted::Mismatch { at: i + 1, value: name, declared: name_of(kind) })
    };
    values.into_iter().zip(types).enumerate().map(shape).collect()
}

/// The same value as a `kind`, if it is one without loss.
fn fit(value: Value, kind: &Type) -> Option<Value> {
    let whole = match &value {
        Value::Byte(n) => Some(i64::from(*n)),
        Value::Int16(n) => Some(i64::from(*n)),
        Value::Int32(n) => Some(i64::from(*n)),
        Value::Int64(n) => Some(*n),
        _ => None,
    };
    // Every whole number up to here is exact.
    let exact = |n: i64, bits: u32| n.unsigned_abs() <= 1 << bits;
    Some(match (kind, value) {
        (_, Value::Null) => Value::Null,
        (Type::Byte, _) => Value::Byte(whole?.try_into().ok()?),
        (Type::Int16, _) => Value::Int16(whole?.try_into().ok()?),
        (Type::Int32, _) => Value::Int32(whole?.try_into().ok()?),
        (Type::Int64, _) => Value::Int64(whole?),
        (Type::Float64, value @ Value::Float64(_)) | (Type::Float32, value @ Value::Float32(_)) => value,
        (Type::Float64, Value::Float32(Bits(bits))) => Value::from(f64::from(f32::from_bits(bits))),
        (Type::Float64, _) => Value::from(whole.filter(|n| exact(*n, 53))? as f64),
        // Text of such a number has fewer digits than a 64-bit one has: the nearest is the one that was meant.
        (Type::Float32, Value::Float64(Bits(bits))) => {
            let wide = f64::from_bits(bits);
            Value::from(Some(wide as f32).filter(|narrow| narrow.is_finite() == wide.is_finite())?)
        }
        (Type::Float32, _) => Value::from(whole.filter(|n| exact(*n, 24))? as f32),
        (Type::Bool, value @ Value::Bool(_))
        | (Type::String, value @ Value::String(_))
        | (Type::Bytes, value @ Value::Bytes(_)) => value,
        (Type::Bytes, Value::String(text)) => Value::Bytes(STANDARD.decode(text.as_bytes()).ok()?.into()),
        (Type::List(item), Value::Strings(texts)) if **item == Type::String => Value::Strings(texts),
        (Type::List(item), Value::Array(list)) => {
            list_of_texts(Value::Array(list.into_iter().map(|value| fit(value, item)).collect::<Option<_>>()?))
        }
        _ => return None,
    })
}

const fn name_of(kind: &Type) -> &'static str {
    match kind {
        Type::Bool => "bool",
        Type::Byte => "byte",
        Type::Int16 => "int16",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Float32 => "float32",
        Type::Float64 => "float64",
        Type::String => "string",
        Type::Bytes => "bytes",
        Type::List(_) => "a list",
    }
}

/// As others write it where the reader knows the type, else with the type that JSON has not.
fn to_json(value: &Value, kind: Option<&Type>) -> serde_json::Value {
    match (value, kind) {
        (Value::Byte(n), Some(_)) => (*n).into(),
        (Value::Int16(n), Some(_)) => (*n).into(),
        (Value::Int64(n), Some(_)) => (*n).into(),
        // By its own digits: those of the 64-bit number would be others.
        (Value::Float32(Bits(bits)), Some(_)) => {
            let plain = f32::from_bits(*bits).to_string().parse::<f64>().ok().and_then(serde_json::Number::from_f64);
            plain.map_or_else(|| json::to_json(value), serde_json::Value::Number)
        }
        (Value::Bytes(bytes), Some(_)) => STANDARD.encode(bytes).into(),
        (Value::Array(list), Some(Type::List(item))) => list.iter().map(|value| to_json(value, Some(item))).collect(),
        _ => json::to_json(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Text;

    fn args(from: Format, to: Format, values: &[Value], types: Option<&str>) -> Result<Vec<Value>, NotConverted> {
        let declared = types.map(declared);
        let body = from.write(values.to_vec(), Part::Arguments, declared.as_ref())?;
        let read = from.read(body, Part::Arguments, declared.as_ref())?;
        let there = to.write(read, Part::Arguments, declared.as_ref())?;
        to.read(there, Part::Arguments, declared.as_ref())
    }

    fn all() -> Vec<Value> {
        vec![
            Value::Null,
            Value::Bool(true),
            Value::Byte(255),
            Value::Int16(-2),
            Value::Int32(5),
            Value::Int64(5),
            Value::Int64(i64::MIN),
            Value::from(0.1f32),
            Value::Float32(Bits(0x7fc0_1234)),
            Value::from(0.1f64),
            Value::from("中文"),
            Value::Bytes(Bytes::from_static(&[0, 255])),
            Value::Strings(vec![Text::from_static("a")]),
            Value::StringMap(vec![(Text::from_static("k"), Text::from_static("v"))]),
            Value::Map(vec![(Value::Int64(1), Value::Null), (Value::from("f"), Value::from(1.5f32))]),
            Value::Array(vec![Value::Int32(1), Value::Int64(1), Value::Null]),
        ]
    }

    #[test]
    fn formats_that_say_their_types_give_each_other_all_of_them() {
        for from in [Format::Simple, Format::Breeze, Format::Json] {
            for to in [Format::Simple, Format::Breeze, Format::Json] {
                assert_eq!(args(from, to, &all(), None).unwrap(), all(), "{from:?} to {to:?}");
                for one in all() {
                    let body = from.write(vec![one.clone()], Part::Answer, None).unwrap();
                    let read = from.read(body, Part::Answer, None).unwrap();
                    let there = to.write(read, Part::Answer, None).unwrap();
                    assert_eq!(to.read(there, Part::Answer, None).unwrap(), [one], "{from:?} to {to:?}");
                }
            }
        }
    }

    #[test]
    fn where_the_method_says_them_the_types_are_the_same_from_anywhere() {
        let types = "boolean,byte,short,int,long,float,double,java.lang.String,byte[],java.lang.String[]";
        let values = vec![
            Value::Bool(false),
            Value::Byte(7),
            Value::Int16(-2),
            Value::Int32(5),
            Value::Int64(5),
            Value::from(0.1f32),
            Value::from(0.1f64),
            Value::from("x"),
            Value::Bytes(Bytes::from_static(b"\0\xff")),
            Value::Strings(vec![Text::from_static("a"), Text::from_static("b")]),
        ];
        for from in FORMATS {
            for to in FORMATS {
                assert_eq!(args(from, to, &values, Some(types)).unwrap(), values, "{from:?} to {to:?}");
            }
        }
        let declared = declared(types);
        let plain = Format::Json.write(values.clone(), Part::Arguments, Some(&declared)).unwrap();
        assert_eq!(plain, r#"[false,7,-2,5,5,0.1,0.1,"x","AP8=",["a","b"]]"#, "as others write it");
        assert_eq!(Format::Json.read(plain, Part::Arguments, Some(&declared)).unwrap(), values);
        let nulls = vec![Value::Null; 3];
        assert_eq!(args(Format::Simple, Format::Protobuf, &nulls, Some("int,string,Foo")).unwrap(), nulls);
    }

    #[test]
    fn a_number_is_what_the_method_takes_or_nothing_is_converted() {
        let fits = |value: Value, kind: &str| shaped(vec![value], Some(&declared(kind))).map(|mut v| v.remove(0));
        assert_eq!(fits(Value::Int64(7), "int"), Ok(Value::Int32(7)));
        assert_eq!(fits(Value::Int32(1 << 24), "float"), Ok(Value::from(16_777_216f32)));
        assert_eq!(fits(Value::from(1.5f32), "double"), Ok(Value::from(1.5f64)));
        assert_eq!(fits(Value::from("any"), "com.acme.Order"), Ok(Value::from("any")), "a class may be anything");
        for (value, kind) in [
            (Value::Int64(1 << 40), "int"),
            (Value::Int32(-1), "byte"),
            (Value::Int64((1 << 53) + 1), "double"),
            (Value::Int32((1 << 24) + 1), "float"),
            (Value::from(1e300), "float"),
            (Value::from(1.5), "long"),
            (Value::from("7"), "int"),
            (Value::from("not base64!"), "byte[]"),
            (Value::Bool(true), "int"),
            (Value::Array(vec![Value::from("x")]), "int[]"),
        ] {
            let error = fits(value.clone(), kind).unwrap_err();
            assert!(matches!(error, NotConverted::Mismatch { at: 1, .. }), "{value:?} as {kind}: {error}");
        }
        let error = shaped(vec![Value::Null], Some(&declared("int,int"))).unwrap_err();
        assert_eq!(error.to_string(), "it has 1 values where the method has 2");
    }

    #[test]
    fn what_cannot_be_converted_says_why() {
        let read = |format: Format, body: &'static [u8], part| {
            format.read(Bytes::from_static(body), part, None).unwrap_err().to_string()
        };
        assert!(read(Format::Simple, b"\x63", Part::Answer).contains("type 99 is unknown"));
        assert!(read(Format::Breeze, b"\x9f", Part::Answer).contains("ends within a value"));
        assert!(read(Format::Json, b"{", Part::Answer).contains("not JSON"));
        assert!(read(Format::Json, b"{}", Part::Arguments).contains("arguments are a list"));
        assert!(read(Format::Protobuf, b"\0", Part::Arguments).contains("neither by the call"));
        let message = Value::Message(Box::new((Text::from_static("m"), vec![])));
        let error = Format::Simple.write(vec![message], Part::Answer, None).unwrap_err();
        assert_eq!(error.to_string(), "it cannot be written as simple: Simple has no message");
        let map = Value::StringMap(vec![]);
        let error = Format::Protobuf.write(vec![map], Part::Answer, None).unwrap_err();
        assert!(error.to_string().contains("Motan's protobuf has no map of strings"), "{error}");
    }

    #[test]
    fn nothing_is_nothing_everywhere() {
        for from in FORMATS {
            assert_eq!(from.read(Bytes::new(), Part::Arguments, None), Ok(vec![]));
            assert_eq!(from.write(vec![], Part::Answer, None), Ok(Bytes::new()));
            assert_eq!(Format::of_name(from.name()), Format::of_number(from.number()));
        }
        assert_eq!(Format::Json.write(vec![], Part::Arguments, None).unwrap(), "[]");
        assert_eq!((declared("void"), Format::of_name("hessian2"), Format::of_number(0)), (vec![], None, None));
    }

    #[test]
    fn random_bodies_never_panic() {
        fastrand::seed(3);
        for _ in 0..20_000 {
            let body: Bytes = (0..fastrand::usize(..40)).map(|_| fastrand::u8(..)).collect();
            for format in FORMATS {
                for part in [Part::Arguments, Part::Answer] {
                    let types = fastrand::bool().then(|| declared("int,string[]"));
                    if let Ok(values) = format.read(body.clone(), part, types.as_ref()) {
                        let _ = Format::Json.write(values, part, types.as_ref());
                    }
                }
            }
        }
    }
}
