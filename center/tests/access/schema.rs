//! Calls as `/openapi.json` describes them, and values for them: fitting ones, and hostile ones.

use serde_json::{Map, Value, json};

/// A call of the API.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    pub path: String,
    /// Where (`path`, `query`), name, schema.
    pub parameters: Vec<(String, String, Value)>,
    pub body: Option<Value>,
}

impl Call {
    /// All calls, in order.
    pub fn all(api: &Value) -> Vec<Self> {
        let mut calls = Vec::new();
        for (path, item) in api["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let parameters = operation["parameters"].as_array().into_iter().flatten().map(|parameter| {
                    let text = |key: &str| parameter[key].as_str().unwrap().to_owned();
                    (text("in"), text("name"), parameter["schema"].clone())
                });
                let body = &operation["requestBody"]["content"]["application/json"]["schema"];
                calls.push(Self {
                    method: method.to_uppercase(),
                    path: path.clone(),
                    parameters: parameters.collect(),
                    body: (!body.is_null()).then(|| body.clone()),
                });
            }
        }
        calls
    }

    pub fn changes(&self) -> bool {
        self.method != "GET"
    }
}

/// Makes values. Deterministic: the same seed, the same values.
pub struct Maker<'a> {
    api: &'a Value,
    random: fastrand::Rng,
    /// One value in so many is hostile; 0: none is.
    hostile: u32,
}

impl<'a> Maker<'a> {
    pub fn new(api: &'a Value, seed: u64, hostile: u32) -> Self {
        Self { api, random: fastrand::Rng::with_seed(seed), hostile }
    }

    /// One of them.
    pub fn choose<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random.usize(..from.len())].clone()
    }

    fn strikes(&mut self) -> bool {
        self.hostile > 0 && self.random.u32(..self.hostile) == 0
    }

    /// A value of a schema, or a hostile one in its place.
    pub fn value(&mut self, name: &str, schema: &Value, depth: usize) -> Value {
        if self.strikes() {
            let number =
                schema["type"].to_string().contains("integer") || schema["type"].to_string().contains("number");
            return if number && self.random.u8(..3) > 0 { self.extreme() } else { self.hostile_value() };
        }
        if depth > 12 {
            return Value::Null;
        }
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap();
            let schema = &self.api["components"]["schemas"][name];
            assert!(!schema.is_null(), "{name} is described nowhere");
            return self.value(name, schema, depth + 1);
        }
        for key in ["oneOf", "anyOf"] {
            if let Some(all) = schema[key].as_array() {
                let one = self.choose(all);
                return self.value(name, &one, depth + 1);
            }
        }
        if let Some(all) = schema["allOf"].as_array() {
            let mut object = Map::new();
            for part in all {
                if let Value::Object(part) = self.value(name, part, depth + 1) {
                    object.extend(part);
                }
            }
            return Value::Object(object);
        }
        if let Some(all) = schema["enum"].as_array() {
            return self.choose(all);
        }
        if !schema["const"].is_null() {
            return schema["const"].clone();
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => self.choose(kinds),
            one => one.clone(),
        };
        match kind.as_str().unwrap_or("any") {
            "object" => self.object(schema, depth),
            "array" => self.array(name, schema, depth),
            "string" => Value::String(self.text(name)),
            "boolean" => Value::Bool(self.random.bool()),
            "integer" if name == "wait_ms" => json!(self.random.u32(..50)),
            "integer" => json!(self.random.u32(..200)),
            "number" => json!(f64::from(self.random.u32(..20_000)) / 100.0),
            "null" => Value::Null,
            _ => json!({ "any": self.random.u8(..) }),
        }
    }

    fn object(&mut self, schema: &Value, depth: usize) -> Value {
        let mut object = Map::new();
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
            let wanted = required.contains(&key.as_str()) && !self.strikes();
            if wanted || self.random.bool() {
                object.insert(key.clone(), self.value(key, schema, depth + 1));
            }
        }
        if schema["additionalProperties"].is_object() || self.strikes() {
            for _ in 0..self.random.usize(..3) {
                let key = self.text("key");
                let value = self.value("value", &schema["additionalProperties"], depth + 1);
                object.insert(key, value);
            }
        }
        Value::Object(object)
    }

    fn array(&mut self, name: &str, schema: &Value, depth: usize) -> Value {
        if let Some(parts) = schema["prefixItems"].as_array() {
            return parts.iter().map(|part| self.value(name, part, depth + 1)).collect();
        }
        let most = if self.strikes() { 300 } else { 4 };
        (0..self.random.usize(..most)).map(|_| self.value(name, &schema["items"], depth + 1)).collect()
    }

    /// Text that such a field usually has. Never an address that is not on this host.
    fn text(&mut self, name: &str) -> String {
        let fitting: &[&str] = match name {
            "address" | "instance" => &["127.0.0.1:9", "127.0.0.1:10", "10.0.0.1:80"],
            "webhooks" | "url" => &["http://127.0.0.1:9/hook"],
            "agent" => &["host-1/web", "host-2/shop"],
            "group" | "from" | "to" | "lost" => &["idc-a", "idc-b"],
            "service" => &["com.shop.Order", "com.shop.User"],
            "figure" => &["rate", "p99_ms", "success"],
            "name" | "caller" | "application" => &["ann", "web", "shop"],
            "password" | "new" | "old" => &["a long password"],
            "driver" => &["process", "webhook", ""],
            "protocol" => &["motan2", "http1"],
            "line" => &["warning", "fatal"],
            "rules" => &["10.0.* to 10.1.*"],
            _ => &["text", "1", "a=b", "idc-a"],
        };
        if self.strikes() { self.hostile_text() } else { self.choose(fitting).to_owned() }
    }

    /// Text that has broken programs.
    pub fn hostile_text(&mut self) -> String {
        match self.random.u8(..14) {
            0 => String::new(),
            1 => "x".repeat(self.random.usize(..20_000)),
            2 => "\0\u{1}\u{7f}".to_owned(),
            3 => "../../etc/passwd".to_owned(),
            4 => "a/b/c//".to_owned(),
            5 => "*".repeat(500),
            6 => "ä中\u{202e}\u{feff}😀".to_owned(),
            7 => "%00%2f%s%n".to_owned(),
            8 => "<script>alert(1)</script>".to_owned(),
            9 => "' or 1=1 --\r\nX: y".to_owned(),
            10 => "999999999999999999999999".to_owned(),
            11 => "0.0.0.0:0".to_owned(),
            12 => "[::1]:70000".to_owned(),
            _ => "a*".repeat(2000),
        }
    }

    /// Numbers at the ends of what fits, where sums and products wrap.
    fn extreme(&mut self) -> Value {
        let ends = [u64::MAX, u64::MAX - 1, 1 << 63, i64::MAX as u64, u64::from(u32::MAX), 1 << 53, 0, 1];
        match self.random.u8(..4) {
            0 => json!(self.choose(&[-1, i64::MIN, i64::from(i32::MIN)])),
            1 => json!(self.choose(&[1e308, -1e308, 5e-324, 0.1])),
            _ => json!(self.choose(&ends)),
        }
    }

    fn hostile_value(&mut self) -> Value {
        match self.random.u8(..14) {
            0 => Value::Null,
            1 => json!(u64::MAX),
            2 => json!(i64::MIN),
            3 => json!(-1),
            4 => json!(1e308),
            5 => json!(-0.5),
            6 => json!([]),
            7 => json!({}),
            8 => json!(true),
            9 => {
                let mut deep = json!(1);
                for _ in 0..100 {
                    deep = json!([deep]);
                }
                deep
            }
            10 => Value::Array(vec![json!({}); 2000]),
            _ => Value::String(self.hostile_text()),
        }
    }
}

/// `text` for a path or a query.
pub fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte.into());
        } else {
            out += &format!("%{byte:02X}");
        }
        out
    })
}
