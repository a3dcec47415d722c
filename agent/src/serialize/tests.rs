use super::{
    protobuf::{Type, types},
    *,
};

fn hex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn strings(list: &[&str]) -> Vec<Text> {
    list.iter().map(|s| Text::from(*s)).collect()
}

fn bytes(list: &[u8]) -> Value {
    Value::Bytes(Bytes::copy_from_slice(list))
}

fn pair(key: &str, value: Value) -> (Value, Value) {
    (key.into(), value)
}

/// Bodies as Motan's Go and Java programs send them, and what they mean.
fn recorded() -> Vec<(&'static str, Vec<Value>)> {
    let text_map =
        |list: &[(&str, &str)]| Value::StringMap(list.iter().map(|(k, v)| (Text::from(*k), Text::from(*v))).collect());
    vec![
        ("00", vec![Value::Null]),
        ("010000000b68656c6c6f206d6f74616e", vec!["hello motan".into()]),
        ("0501", vec![Value::Bool(true)]),
        ("06ff", vec![Value::Byte(255)]),
        ("078000", vec![Value::Int16(-32768)]),
        ("0801", vec![Value::Int32(-1)]),
        ("09808001", vec![Value::Int64(8192)]),
        ("0abfc00000", vec![Value::from(-1.5f32)]),
        ("0b400921fb54442d18", vec![Value::from(std::f64::consts::PI)]),
        ("0300000006000102f1f1ff", vec![bytes(&[0, 1, 2, 0xf1, 0xf1, 0xff])]),
        ("040000001000000001610000000000000003e4b8ad", vec![Value::Strings(strings(&["a", "", "中"]))]),
        (
            "0200000027000000026b310000000276310000000000000009656d7074792d6b6579000000026b3300000000",
            vec![text_map(&[("k1", "v1"), ("", "empty-key"), ("k3", "")])],
        ),
        ("0200000000", vec![text_map(&[])]),
        (
            "150000001b0100000001610802090405010b4004000000000000030000000103",
            vec![Value::Array(vec![
                "a".into(),
                Value::Int32(1),
                Value::Int64(2),
                Value::Bool(true),
                Value::from(2.5),
                bytes(&[3]),
            ])],
        ),
        (
            concat!(
                "14000000670100000003693332080e010000000369363409110100000001660b3ff80000000000000100000002627903",
                "00000002010201000000027538060901000000017301000000017601000000016205010100000003693136070003090a",
                "0100000007696e74206b6579"
            ),
            vec![Value::Map(vec![
                pair("i32", Value::Int32(7)),
                pair("i64", Value::Int64(-9)),
                pair("f", Value::from(1.5)),
                pair("by", bytes(&[1, 2])),
                pair("u8", Value::Byte(9)),
                pair("s", "v".into()),
                pair("b", Value::Bool(true)),
                pair("i16", Value::Int16(3)),
                (Value::Int64(5), "int key".into()),
            ])],
        ),
        (
            "01000000016108090501098080808080400b3fd00000000000000300000002abcd",
            vec![
                "a".into(),
                Value::Int32(-5),
                Value::Bool(true),
                Value::Int64(1_099_511_627_776),
                Value::from(0.25),
                bytes(&[0xab, 0xcd]),
            ],
        ),
        // Java: join("a", -5L, true, bytes 01 02 03, 2.5).
        (
            "0100000001610909050103000000030102030b4004000000000000",
            vec!["a".into(), Value::Int64(-5), Value::Bool(true), bytes(&[1, 2, 3]), Value::from(2.5)],
        ),
        // Java: null, byte -2, short -2, int -2, int 150, long 1<<40, float 1.5, a list, a map, a mixed list.
        (
            concat!(
                "0006fe07fffe080308ac020980808080",
                "80400a3fc00000040000000a00000001610000000162020000000a000000016b0000000176",
                "150000000b0802010000000374776f00"
            ),
            vec![
                Value::Null,
                Value::Byte(254),
                Value::Int16(-2),
                Value::Int32(-2),
                Value::Int32(150),
                Value::Int64(1 << 40),
                Value::from(1.5f32),
                Value::Strings(strings(&["a", "b"])),
                text_map(&[("k", "v")]),
                Value::Array(vec![Value::Int32(1), "two".into(), Value::Null]),
            ],
        ),
        // Java: {"k": 1L, "l": ["a", "b"], "e": []}.
        (
            "140000002801000000016b090201000000016c040000000a000000016100000001620100000001651500000000",
            vec![Value::Map(vec![
                pair("k", Value::Int64(1)),
                pair("l", Value::Strings(strings(&["a", "b"]))),
                pair("e", Value::Array(vec![])),
            ])],
        ),
        ("", vec![]),
    ]
}

#[test]
fn simple_is_read_and_written_as_motan_programs_do() {
    for (body, values) in recorded() {
        assert_eq!(simple::read(hex(body)), Ok(values.clone()), "{body}");
        assert_eq!(simple::write(&values).unwrap(), hex(body), "{values:?}");
    }
}

#[test]
fn a_cut_body_is_an_error_unless_it_is_cut_between_values() {
    for (body, values) in recorded() {
        let body = hex(body);
        for cut in 0..body.len() {
            match simple::read(body.slice(..cut)) {
                Ok(read) => assert!(read.len() < values.len() && read[..] == values[..read.len()]),
                Err(error) => assert!(matches!(error, Unreadable::Cut | Unreadable::Length), "{error}"),
            }
        }
    }
}

#[test]
fn simple_errors() {
    for (body, error) in [
        ("0c", Unreadable::Type(12)),
        ("13", Unreadable::Type(19)),
        ("16", Unreadable::Type(22)),
        ("01ffffffff61", Unreadable::Cut),
        ("0100000001ff", Unreadable::Text),
        ("09ffffffffffffffffff02", Unreadable::Overflow),
        ("08ffffffffffff01", Unreadable::Overflow),
        ("150000000201", Unreadable::Cut),
        ("15000000020100", Unreadable::Length),
        ("0200000005000000016b", Unreadable::Length),
    ] {
        assert_eq!(simple::read(hex(body)), Err(error), "{body}");
    }
    assert_eq!(simple::read(hex("0502")), Ok(vec![Value::Bool(false)]), "all but 1 is false");
    let message = Value::Message(Box::new((Text::from("m"), vec![])));
    assert_eq!(simple::write(&[message]).unwrap_err().to_string(), "Simple has no message");
    assert_eq!(Value::from("ab").as_bytes().unwrap(), "ab", "a text can be taken for bytes");
}

#[test]
fn depth_and_number_of_values_are_bounded() {
    let mut nested = Value::Null;
    for _ in 0..MAX_DEPTH {
        nested = Value::Array(vec![nested]);
    }
    let body = simple::write(std::slice::from_ref(&nested)).unwrap();
    assert_eq!(simple::read(body), Ok(vec![nested.clone()]));
    let deeper = [Value::Array(vec![nested.clone()])];
    assert_eq!(simple::write(&deeper), Err(Unwritable::Depth));
    assert_eq!(breeze::write(&deeper), Err(Unwritable::Depth));
    assert_eq!(json::from_json(&json::to_json(&deeper[0])), Err(json::NoValue::Depth));

    // 100,000 levels, each of five bytes.
    let mut deep = Vec::new();
    for level in (0..100_000u32).rev() {
        deep.push(21);
        deep.extend((level * 5).to_be_bytes());
    }
    assert_eq!(simple::read(deep.into()), Err(Unreadable::Depth));
    assert_eq!(breeze::read(Bytes::from([0xda, 1].repeat(100_000))), Err(Unreadable::Depth));
    assert_eq!(simple::read(vec![0; MAX_VALUES + 1].into()), Err(Unreadable::Many));
    assert_eq!(breeze::read(vec![0x99; MAX_VALUES + 1].into()), Err(Unreadable::Many));
    // Four billion items in six bytes.
    assert_eq!(breeze::read(hex("dcffffffff0f3f")), Err(Unreadable::Cut));
    assert_eq!(breeze::read(hex("dc0199")), Err(Unreadable::Type(0x99)), "items without content");
}

fn any_text() -> Text {
    let letters = ["", "a", "ключ", "中文", "\u{1f680}", "\"\\\n\0", "$int64", "longer than sixty-two bytes "];
    Text::from(letters[fastrand::usize(..letters.len())].repeat(fastrand::usize(..4)))
}

fn any(depth: usize) -> Value {
    let list = |depth: usize| (0..fastrand::usize(..4)).map(|_| any(depth)).collect();
    let small = || fastrand::i64(..) >> fastrand::u32(..64);
    match fastrand::u32(..if depth == 0 { 12 } else { 14 }) {
        0 => Value::Null,
        1 => Value::Bool(fastrand::bool()),
        2 => Value::Byte(fastrand::u8(..)),
        3 => Value::Int16(small() as i16),
        4 => Value::Int32(small() as i32),
        5 => Value::Int64(small()),
        6 => Value::Float32(Bits(fastrand::u32(..))),
        7 => Value::Float64(Bits(fastrand::u64(..))),
        8 => Value::String(any_text()),
        9 => Value::Bytes((0..fastrand::usize(..9)).map(|_| fastrand::u8(..)).collect()),
        10 => Value::Strings((0..fastrand::usize(..4)).map(|_| any_text()).collect()),
        11 => Value::StringMap((0..fastrand::usize(..4)).map(|_| (any_text(), any_text())).collect()),
        12 => Value::Array(list(depth - 1)),
        _ => Value::Map((0..fastrand::usize(..4)).map(|_| (any(depth - 1), any(depth - 1))).collect()),
    }
}

#[test]
fn every_value_survives_every_format() {
    fastrand::seed(1);
    for _ in 0..5_000 {
        let values: Vec<Value> = (0..fastrand::usize(..4)).map(|_| any(3)).collect();
        assert_eq!(simple::read(simple::write(&values).unwrap()), Ok(values.clone()));
        assert_eq!(breeze::read(breeze::write(&values).unwrap()), Ok(values.clone()));
        for value in &values {
            let text = json::write(value);
            assert_eq!(json::read(&text).as_ref(), Ok(value), "{text}");
        }
    }
}

#[test]
fn garbage_is_answered_with_an_error_or_values() {
    fastrand::seed(2);
    let kinds = types("boolean,byte,short,int,long,float,double,string,byte[],Unknown,long[]");
    for round in 0..40_000 {
        let mut body: Vec<u8> = (0..fastrand::usize(..40)).map(|_| fastrand::u8(..)).collect();
        if round % 2 == 0 {
            // Good bodies with a byte turned reach further.
            let values: Vec<Value> = (0..2).map(|_| any(2)).collect();
            let good = if round % 4 == 0 { simple::write(&values) } else { breeze::write(&values) };
            body = good.unwrap().to_vec();
            if let Some(at) = (!body.is_empty()).then(|| fastrand::usize(..body.len())) {
                body[at] = fastrand::u8(..);
            }
        }
        let body = Bytes::from(body);
        for cut in [body.len(), body.len() / 2] {
            // What can be read can be written.
            if let Ok(values) = simple::read(body.slice(..cut)) {
                assert_eq!(simple::read(simple::write(&values).unwrap()), Ok(values));
            }
            let _ = breeze::read(body.slice(..cut));
            let _ = protobuf::read(body.slice(..cut), &kinds);
        }
    }
}

#[test]
fn breeze_is_as_its_libraries_write_it() {
    let person = |fields| Value::Message(Box::new((Text::from("P"), fields)));
    for (body, values) in [
        ("0568656c6c6f", vec!["hello".into()]),
        ("50", vec![Value::Int32(0)]),
        ("407e7f5f", vec![Value::Int32(-16), Value::Int32(46), Value::Int32(-48)]),
        ("8097981f", vec![Value::Int64(-8), Value::Int64(15), Value::Int64(-16)]),
        ("999a9b9cff", vec![Value::Null, Value::Bool(true), Value::Bool(false), Value::Byte(255)]),
        ("9d000000020102", vec![bytes(&[1, 2])]),
        ("9e80009fbfc00000", vec![Value::Int16(-32768), Value::from(-1.5f32)]),
        ("dc023f01610162", vec![Value::Strings(strings(&["a", "b"]))]),
        ("db013f3f016b0176", vec![Value::StringMap(vec![(Text::from("k"), Text::from("v"))])]),
        ("da025199", vec![Value::Array(vec![Value::Int32(1), Value::Null])]),
        // The name once, then a reference to it.
        (
            "de0150000000020151e0000000020152",
            vec![person(vec![(1, Value::Int32(1))]), person(vec![(1, Value::Int32(2))])],
        ),
    ] {
        assert_eq!(breeze::read(hex(body)), Ok(values.clone()), "{body}");
        assert_eq!(breeze::write(&values).unwrap(), hex(body), "{values:?}");
    }
    for (packed, values) in [
        ("dc027f0204", vec![Value::Array(vec![Value::Int32(1), Value::Int32(2)])]),
        ("dc029a9b9a", vec![Value::Array(vec![Value::Bool(false), Value::Bool(true)])]),
        ("db013f98016b02", vec![Value::Map(vec![pair("k", Value::Int64(1))])]),
        ("dc01de015000000000", vec![Value::Array(vec![person(vec![])])]),
    ] {
        assert_eq!(breeze::read(hex(packed)), Ok(values), "{packed}");
    }
    assert_eq!(breeze::read(hex("e000000000")), Err(Unreadable::Reference));
    assert_eq!(breeze::read(hex("dd")), Err(Unreadable::Type(0xdd)));
}

#[test]
fn protobuf_follows_the_description_of_the_method() {
    let values = vec![
        Value::Bool(true),
        Value::Byte(200),
        Value::Int16(-2),
        Value::Int32(i32::MIN),
        Value::Int64(i64::MAX),
        Value::from(1.5f32),
        Value::from(-0.25),
        "text".into(),
        bytes(&[1, 2]),
        Value::Null,
        Value::Array(vec![Value::Int64(1), Value::Null, Value::Int64(-1)]),
    ];
    let described =
        types("boolean,byte,short,int,long,float,double,java.lang.String,byte[],com.example.Message,long[]");
    let body = protobuf::write(&values).unwrap();
    assert_eq!(protobuf::read(body.clone(), &described), Ok(values.clone()));
    let whole = protobuf::write(&values[..10]).unwrap();
    for cut in 0..whole.len() {
        assert_eq!(protobuf::read(whole.slice(..cut), &described[..10]), Err(Unreadable::Cut));
    }
    assert_eq!(protobuf::read(hex("0003"), &[Type::Int32]), Ok(vec![Value::Int32(-2)]));
    assert_eq!(protobuf::read(hex("01"), &[Type::String]), Ok(vec![Value::Null]));
    assert_eq!(protobuf::read(hex("02"), &[Type::String]), Err(Unreadable::Type(2)));
    assert_eq!(protobuf::read(hex("000301"), &[Type::Int32]), Err(Unreadable::Length), "more than was described");
    assert_eq!(types("void"), []);
    let map = Value::StringMap(vec![]);
    assert_eq!(protobuf::write(&[map]).unwrap_err().to_string(), "Motan's protobuf has no map of strings");
}

#[test]
fn json_is_what_people_write() {
    for (text, value) in [
        ("null", Value::Null),
        ("5", Value::Int32(5)),
        ("5000000000", Value::Int64(5_000_000_000)),
        ("5.0", Value::from(5.0)),
        (r#"["a","b"]"#, Value::Strings(strings(&["a", "b"]))),
        (r#"["a",1]"#, Value::Array(vec!["a".into(), Value::Int32(1)])),
        ("[]", Value::Array(vec![])),
        (r#"{"k":"v"}"#, Value::StringMap(vec![(Text::from("k"), Text::from("v"))])),
        (r#"{"k":1}"#, Value::Map(vec![pair("k", Value::Int32(1))])),
        (r#"{"$int64":5}"#, Value::Int64(5)),
        (r#"{"$bytes":"AQID/w=="}"#, bytes(&[1, 2, 3, 255])),
    ] {
        assert_eq!(json::read(text), Ok(value.clone()), "{text}");
        assert_eq!(json::write(&value), text);
    }
    for wrong in
        [r#"{"$byte":256}"#, r#"{"$what":1}"#, r#"{"$bytes":"A"}"#, "18446744073709551615", "{", r#"{"$map":[1]}"#]
    {
        assert!(json::read(wrong).is_err(), "{wrong}");
    }
}
