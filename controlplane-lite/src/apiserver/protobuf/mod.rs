// SPDX-License-Identifier: Apache-2.0
//! Request bodies in protobuf, which `kubectl create` sends for built-in kinds: decoded to JSON.
//!
//! Answers are always JSON, which every client accepts beside protobuf. The field numbers are in
//! `wire.tbl`: one message per line, each field as `number:name:type`, where `*` marks a list,
//! `%` a map from strings, and `=` a message whose fields stand in the outer object.
//! Envelope: apimachinery, `pkg/runtime/serializer/protobuf` (`k8s\0`, then `runtime.Unknown`).

mod reader;

use std::{collections::HashMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use self::reader::{Field, Malformed, Reader, Wire};

/// First bytes of an enveloped message.
const MAGIC: &[u8] = b"k8s\0";
/// Types that are not messages. A `0` marks what Go leaves out of JSON when it is zero.
const SCALARS: &[&str] = &[
    "string",
    "bytes",
    "bool",
    "bool0",
    "int",
    "int0",
    "quantity",
    "time",
    "microtime",
    "intstr",
];
/// Messages inside messages.
const DEPTH_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    List,
    Map,
    Inline,
}

#[derive(Debug, Clone, Copy)]
struct FieldType {
    name: &'static str,
    shape: Shape,
    kind: &'static str,
}

type Message = HashMap<u64, FieldType>;

static TABLE: LazyLock<HashMap<&'static str, Message>> = LazyLock::new(|| {
    let lines = include_str!("wire.tbl").lines();
    let messages = lines.map(|line| {
        let (name, fields) = line.split_once(' ').unwrap_or((line, ""));
        (name, fields.split(' ').filter_map(parse_field).collect())
    });
    messages.collect()
});

fn parse_field(text: &'static str) -> Option<(u64, FieldType)> {
    let mut parts = text.splitn(3, ':');
    let number = parts.next()?.parse().ok()?;
    let (name, kind) = (parts.next()?, parts.next()?);
    let (shape, kind) = match kind.as_bytes().first()? {
        b'*' => (Shape::List, &kind[1..]),
        b'%' => (Shape::Map, &kind[1..]),
        b'=' => (Shape::Inline, &kind[1..]),
        _ => (Shape::One, kind),
    };
    Some((number, FieldType { name, shape, kind }))
}

/// Decodes an enveloped object to JSON with `apiVersion` and `kind`.
///
/// # Errors
/// A sentence that says what cannot be decoded.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, String> {
    let bytes = bytes
        .strip_prefix(MAGIC)
        .ok_or("the body does not begin with the protobuf prefix")?;
    let malformed = |Malformed| "the protobuf body is malformed".to_owned();
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Reader::new(bytes) {
        match field.map_err(malformed)? {
            Field {
                number: 1,
                value: Wire::Bytes(meta),
            } => {
                for field in Reader::new(meta) {
                    match field.map_err(malformed)? {
                        Field {
                            number: 1,
                            value: Wire::Bytes(text),
                        } => version = utf8(text),
                        Field {
                            number: 2,
                            value: Wire::Bytes(text),
                        } => kind = utf8(text),
                        _ => {}
                    }
                }
            }
            Field {
                number: 2,
                value: Wire::Bytes(inner),
            } => raw = inner,
            Field {
                number: 3,
                value: Wire::Bytes(encoding),
            } if !encoding.is_empty() => {
                return Err(format!(
                    "content encoding {} is not supported",
                    utf8(encoding)
                ));
            }
            _ => {}
        }
    }
    let name = message_name(&version, &kind);
    let (name, _) = TABLE.get_key_value(name.as_str()).ok_or_else(|| {
        format!("kind {kind} of {version} cannot be decoded from protobuf: send JSON")
    })?;
    let mut object = message(name, raw, 0).map_err(malformed)?;
    object.insert("apiVersion".to_owned(), version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

/// Name in the table: the group's first word, unless the kind is of the core or meta group.
fn message_name(version: &str, kind: &str) -> String {
    match version.split_once('/') {
        Some((group, _)) if kind != "DeleteOptions" => {
            let group = group.split('.').next().unwrap_or(group);
            format!("{group}.{kind}")
        }
        _ => kind.to_owned(),
    }
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, Malformed> {
    if depth > DEPTH_MAX {
        return Err(Malformed);
    }
    let types = TABLE.get(name).ok_or(Malformed)?;
    let mut object = Map::new();
    for field in Reader::new(bytes) {
        let field = field?;
        let Some(known) = types.get(&field.number) else {
            continue;
        };
        let name = known.name.to_owned();
        match known.shape {
            Shape::Inline => {
                let Wire::Bytes(inner) = field.value else {
                    return Err(Malformed);
                };
                object.extend(message(known.kind, inner, depth + 1)?);
            }
            Shape::List => {
                let list = object
                    .entry(name)
                    .or_insert_with(|| Value::Array(Vec::new()));
                let item = value(known.kind, field.value, depth)?.unwrap_or_else(|| "".into());
                list.as_array_mut().ok_or(Malformed)?.push(item);
            }
            Shape::Map => {
                let map = object
                    .entry(name)
                    .or_insert_with(|| Value::Object(Map::new()));
                let (key, item) = entry(known.kind, field.value, depth)?;
                map.as_object_mut().ok_or(Malformed)?.insert(key, item);
            }
            Shape::One => {
                if let Some(value) = value(known.kind, field.value, depth)? {
                    object.insert(name, value);
                }
            }
        }
    }
    Ok(object)
}

fn entry(kind: &str, wire: Wire<'_>, depth: usize) -> Result<(String, Value), Malformed> {
    let Wire::Bytes(bytes) = wire else {
        return Err(Malformed);
    };
    let (mut key, mut item) = (String::new(), None);
    for field in Reader::new(bytes) {
        match field? {
            Field {
                number: 1,
                value: Wire::Bytes(text),
            } => key = utf8(text),
            Field {
                number: 2,
                value: wire,
            } => item = value(kind, wire, depth)?,
            _ => {}
        }
    }
    Ok((key, item.unwrap_or_else(|| "".into())))
}

/// A value, or nothing for what Go leaves out of JSON: an empty text or time.
fn value(kind: &str, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, Malformed> {
    Ok(match (kind, wire) {
        ("string", Wire::Bytes(text)) => {
            Some(utf8(text)).filter(|t| !t.is_empty()).map(Value::from)
        }
        ("bytes", Wire::Bytes(bytes)) => Some(STANDARD.encode(bytes).into()),
        ("bool0" | "int0", Wire::Number(0)) => None,
        ("bool" | "bool0", Wire::Number(number)) => Some((number != 0).into()),
        ("int" | "int0", Wire::Number(number)) => Some(number.cast_signed().into()),
        ("quantity", Wire::Bytes(bytes)) => Some(text_of(bytes, 1)?.into()),
        ("time", Wire::Bytes(bytes)) => time(bytes, "%Y-%m-%dT%H:%M:%SZ")?,
        ("microtime", Wire::Bytes(bytes)) => time(bytes, "%Y-%m-%dT%H:%M:%S%.6fZ")?,
        ("intstr", Wire::Bytes(bytes)) => Some(if number_of(bytes, 1)? == 1 {
            text_of(bytes, 3)?.into()
        } else {
            number_of(bytes, 2)?.into()
        }),
        (kind, _) if SCALARS.contains(&kind) => return Err(Malformed),
        (name, Wire::Bytes(inner)) => Some(Value::Object(message(name, inner, depth + 1)?)),
        _ => return Err(Malformed),
    })
}

fn text_of(bytes: &[u8], wanted: u64) -> Result<String, Malformed> {
    for field in Reader::new(bytes) {
        match field? {
            Field {
                number,
                value: Wire::Bytes(text),
            } if number == wanted => return Ok(utf8(text)),
            _ => {}
        }
    }
    Ok(String::new())
}

fn number_of(bytes: &[u8], wanted: u64) -> Result<i64, Malformed> {
    for field in Reader::new(bytes) {
        match field? {
            Field {
                number,
                value: Wire::Number(found),
            } if number == wanted => {
                return Ok(found.cast_signed());
            }
            _ => {}
        }
    }
    Ok(0)
}

fn time(bytes: &[u8], format: &str) -> Result<Option<Value>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let nanoseconds = i32::try_from(number_of(bytes, 2)?).map_err(|_| Malformed)?;
    let at = jiff::Timestamp::new(number_of(bytes, 1)?, nanoseconds).map_err(|_| Malformed)?;
    Ok(Some(at.strftime(format).to_string().into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A length-delimited field.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).expect("short")];
        out.extend_from_slice(content);
        out
    }

    fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn an_object_is_decoded_to_json() {
        let metadata = [
            field(1, b"cm"),
            field(2, b""),
            field(8, b""),
            field(11, &[field(1, b"k"), field(2, b"v")].concat()),
        ]
        .concat();
        let data = [field(1, b"a"), field(2, b"b")].concat();
        let raw = [field(1, &metadata), field(2, &data)].concat();
        assert_eq!(
            decode(&envelope("v1", "ConfigMap", &raw)).expect("decodes"),
            json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "cm", "labels": {"k": "v"}}, "data": {"a": "b"}})
        );
    }

    #[test]
    fn nonsense_is_refused_and_nothing_panics() {
        assert!(decode(b"{}").is_err());
        assert!(decode(&envelope("v1", "Nonsense", b"")).is_err());
        assert!(decode(&envelope("v1", "Pod", b"\x0a\xff")).is_err());
        assert!(decode(&envelope("v1", "Pod", b"\x0a\x01\x08")).is_err());
        let deep = (0..60).fold(Vec::new(), |inner, _| {
            field(2, &inner[..inner.len().min(100)])
        });
        let _ = decode(&envelope("v1", "Pod", &deep));
    }

    #[test]
    fn every_type_in_the_table_is_known() {
        for (name, fields) in TABLE.iter() {
            for field in fields.values() {
                let known = SCALARS.contains(&field.kind) || TABLE.contains_key(field.kind);
                assert!(known, "{name}.{}: {}", field.name, field.kind);
            }
        }
    }
}
