//! Values as JSON that people read and write, without losing their types.
//!
//! What JSON has is written as it is: null, truth values, texts, whole numbers (32 bits if they fit, else 64),
//! numbers with a point (64 bits), lists and objects. A list of texts only is a list of strings, an object of
//! texts only a map of strings; both are general when empty. Every other type is an object with one key that
//! names it: `{"$int64": 5}`, `{"$byte": 255}`, `{"$bytes": "AAEC"}` (base64), `{"$map": [[key, value], ...]}`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Number, Value as Json, json};

use super::{Bits, MAX_DEPTH, Value};
use crate::call::Text;

/// Its number in a frame.
pub const NUMBER: u8 = 2;

/// Why JSON is no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoValue {
    /// Not JSON at all.
    #[error("not JSON: {0}")]
    Json(String),
    /// A `$name` that is not known, or whose content does not fit.
    #[error("`{0}` is not followed by what it names; it is written like {{\"$int64\": 5}}")]
    Tag(String),
    /// Deeper than [`MAX_DEPTH`].
    #[error("values are nested deeper than {MAX_DEPTH}")]
    Depth,
    /// A whole number of more than 64 bits.
    #[error("{0} has more than 64 bits")]
    Number(String),
}

/// The text of a value.
pub fn write(value: &Value) -> String {
    to_json(value).to_string()
}

/// The value that a text stands for.
pub fn read(text: &str) -> Result<Value, NoValue> {
    from_json(&serde_json::from_str(text).map_err(|error| NoValue::Json(error.to_string()))?)
}

/// The JSON of a value.
pub fn to_json(value: &Value) -> Json {
    let text = |text: &Text| Json::from(&**text);
    match value {
        Value::Null => Json::Null,
        Value::Bool(b) => Json::from(*b),
        Value::Byte(b) => json!({ "$byte": b }),
        Value::Int16(n) => json!({ "$int16": n }),
        Value::Int32(n) => Json::from(*n),
        Value::Int64(n) if i32::try_from(*n).is_ok() => json!({ "$int64": n }),
        Value::Int64(n) => Json::from(*n),
        Value::Float32(Bits(bits)) => match Number::from_f64(f32::from_bits(*bits).into()) {
            Some(number) => json!({ "$float32": number }),
            None => json!({ "$float32": format!("{bits:#010x}") }),
        },
        Value::Float64(Bits(bits)) => match Number::from_f64(f64::from_bits(*bits)) {
            // The library's reader is off by the last bit now and then.
            Some(number)
                if number.to_string().parse::<Number>().ok().and_then(|n| n.as_f64()).map(f64::to_bits)
                    == Some(*bits) =>
            {
                Json::Number(number)
            }
            _ => json!({ "$float64": format!("{bits:#018x}") }),
        },
        Value::String(s) => text(s),
        Value::Bytes(bytes) => json!({ "$bytes": STANDARD.encode(bytes) }),
        Value::Strings(list) if list.is_empty() => json!({ "$strings": [] }),
        Value::Strings(list) => list.iter().map(text).collect(),
        Value::Array(list) => {
            let all_texts = !list.is_empty() && list.iter().all(|v| matches!(v, Value::String(_)));
            let items: Json = list.iter().map(to_json).collect();
            if all_texts { json!({ "$array": items }) } else { items }
        }
        Value::StringMap(map) => match object(map.iter().map(|(k, v)| (Some(k), text(v)))) {
            Some(object) if !map.is_empty() => object,
            _ => json!({ "$string_map": map.iter().map(|(k, v)| json!([&**k, &**v])).collect::<Json>() }),
        },
        Value::Map(map) => {
            let all_texts = !map.is_empty() && map.iter().all(|(_, v)| matches!(v, Value::String(_)));
            let key = |key: &Value| if let Value::String(key) = key { Some(key.clone()) } else { None };
            let keys: Vec<_> = map.iter().map(|(k, _)| key(k)).collect();
            match object(keys.iter().zip(map).map(|(k, (_, v))| (k.as_ref(), to_json(v)))) {
                Some(object) if !all_texts => object,
                _ => json!({ "$map": map.iter().map(|(k, v)| json!([to_json(k), to_json(v)])).collect::<Json>() }),
            }
        }
        Value::Message(message) => {
            let (name, fields) = &**message;
            let fields: Json = fields.iter().map(|(n, v)| json!([n, to_json(v)])).collect();
            json!({ "$message": [&**name, fields] })
        }
    }
}

/// An object, if the keys can be those of one: texts, in order, each once, and not taken for one of ours.
fn object<'a>(entries: impl Iterator<Item = (Option<&'a Text>, Json)>) -> Option<Json> {
    let mut object = Map::new();
    let mut last: Option<&Text> = None;
    for (key, value) in entries {
        let key = key.filter(|key| !key.starts_with('$'))?;
        // The library keeps keys sorted, so another order would be lost.
        if last.is_some_and(|last| **last >= **key) {
            return None;
        }
        last = Some(key);
        object.insert(key.to_string(), value);
    }
    Some(Json::Object(object))
}

/// The value that JSON stands for.
pub fn from_json(json: &Json) -> Result<Value, NoValue> {
    value(json, 0)
}

fn value(json: &Json, depth: usize) -> Result<Value, NoValue> {
    if depth > MAX_DEPTH {
        return Err(NoValue::Depth);
    }
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(number) => match (number.as_i64(), number.is_f64()) {
            (Some(n), _) => i32::try_from(n).map_or(Value::Int64(n), Value::Int32),
            (None, true) => Value::from(number.as_f64().unwrap_or_default()),
            (None, false) => return Err(NoValue::Number(number.to_string())),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => match texts(list) {
            Some(texts) if !texts.is_empty() => Value::Strings(texts),
            _ => Value::Array(items(list, depth)?),
        },
        Json::Object(map) => {
            let mut keys = map.iter();
            if let (Some((tag, content)), None) = (keys.next(), keys.next())
                && tag.starts_with('$')
            {
                return tagged(tag, content, depth).and_then(|v| v.ok_or_else(|| NoValue::Tag(tag.clone())));
            }
            let pairs: Option<Vec<_>> =
                map.iter().map(|(k, v)| Some((Text::from(k.as_str()), Text::from(v.as_str()?)))).collect();
            match pairs {
                Some(pairs) if !pairs.is_empty() => Value::StringMap(pairs),
                _ => {
                    let entry = |(k, v): (&String, &Json)| Ok((Value::from(k.as_str()), value(v, depth + 1)?));
                    Value::Map(map.iter().map(entry).collect::<Result<_, _>>()?)
                }
            }
        }
    })
}

fn items(list: &[Json], depth: usize) -> Result<Vec<Value>, NoValue> {
    list.iter().map(|item| value(item, depth + 1)).collect()
}

fn texts(list: &[Json]) -> Option<Vec<Text>> {
    list.iter().map(|item| Some(Text::from(item.as_str()?))).collect()
}

/// `None` when the content does not fit the tag.
fn tagged(tag: &str, content: &Json, depth: usize) -> Result<Option<Value>, NoValue> {
    let whole = content.as_i64();
    let pair = |json: &Json| json.as_array().and_then(|pair| Some((pair.first()?.clone(), pair.get(1)?.clone())));
    let pairs = || content.as_array().and_then(|list| list.iter().map(pair).collect::<Option<Vec<_>>>());
    let bits = || content.as_str().and_then(|text| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok());
    Ok(match tag {
        "$byte" => whole.and_then(|n| u8::try_from(n).ok()).map(Value::Byte),
        "$int16" => whole.and_then(|n| i16::try_from(n).ok()).map(Value::Int16),
        "$int32" => whole.and_then(|n| i32::try_from(n).ok()).map(Value::Int32),
        "$int64" => whole.map(Value::Int64),
        "$float32" => match (content.as_f64(), bits()) {
            (Some(number), _) => Some(Value::from(number as f32)),
            (None, bits) => bits.and_then(|bits| u32::try_from(bits).ok()).map(|bits| Value::Float32(Bits(bits))),
        },
        "$float64" => match (content.as_f64(), bits()) {
            (Some(number), _) => Some(Value::from(number)),
            (None, bits) => bits.map(|bits| Value::Float64(Bits(bits))),
        },
        "$bytes" => {
            content.as_str().and_then(|text| STANDARD.decode(text).ok()).map(|bytes| Value::Bytes(bytes.into()))
        }
        "$strings" => content.as_array().and_then(|list| texts(list)).map(Value::Strings),
        "$array" => content.as_array().map(|list| items(list, depth)).transpose()?.map(Value::Array),
        "$string_map" => {
            let text = |json: &Json| json.as_str().map(Text::from);
            let entry = |(k, v): (Json, Json)| Some((text(&k)?, text(&v)?));
            pairs().and_then(|pairs| pairs.into_iter().map(entry).collect::<Option<_>>()).map(Value::StringMap)
        }
        "$map" => {
            let entry = |(k, v): (Json, Json)| Ok((value(&k, depth + 1)?, value(&v, depth + 1)?));
            pairs().map(|pairs| pairs.into_iter().map(entry).collect::<Result<_, _>>()).transpose()?.map(Value::Map)
        }
        "$message" => {
            let Some((Json::String(name), Json::Array(fields))) = pair(content) else { return Ok(None) };
            let mut read = Vec::new();
            for field in &fields {
                let Some((number, content)) = pair(field) else { return Ok(None) };
                let Some(number) = number.as_u64().and_then(|n| u32::try_from(n).ok()) else { return Ok(None) };
                read.push((number, value(&content, depth + 1)?));
            }
            Some(Value::Message(Box::new((Text::from(name), read))))
        }
        _ => None,
    })
}
