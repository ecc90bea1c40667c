// SPDX-License-Identifier: Apache-2.0
//! Decodes a value into a type and notes every field that the type does not have.
//!
//! The generated types hand the list of their fields to `deserialize_struct`, which is all that is
//! needed to tell an unknown field and to guess what was meant.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeOwned, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) path: String,
    pub(crate) message: String,
}

/// More wrong types than this in one object are not looked for.
const WRONG_TYPES_MAX: usize = 20;

/// All faults of a value: unknown fields and wrong types, each with its path.
///
/// Decoding ends at the first wrong type, so that field is blanked and decoding starts again.
pub(crate) fn faults<T: DeserializeOwned>(value: &Value) -> Vec<Fault> {
    let mut value = value.clone();
    let mut wrong: Vec<Fault> = Vec::new();
    loop {
        let unknown = RefCell::new(Vec::new());
        let strict = Strict {
            value: &value,
            path: Path::default(),
            unknown: &unknown,
        };
        let error = T::deserialize(strict).err();
        let Some(Error { path, message }) = error else {
            wrong.extend(unknown.into_inner());
            return wrong;
        };
        let path = path.unwrap_or_default();
        wrong.push(Fault {
            path: path.shown,
            message,
        });
        let blank = value.pointer_mut(&path.pointer).filter(|v| !v.is_null());
        match blank {
            Some(field) if wrong.len() < WRONG_TYPES_MAX => *field = Value::Null,
            _ => {
                wrong.extend(unknown.into_inner());
                return wrong;
            }
        }
    }
}

/// Where a value is: for people, and as a JSON pointer (RFC 6901).
#[derive(Debug, Clone, Default)]
struct Path {
    shown: String,
    pointer: String,
}

impl Path {
    fn field(&self, name: &str) -> Self {
        let shown = if self.shown.is_empty() {
            name.to_owned()
        } else if name.contains(['.', '/']) {
            format!("{}[{name}]", self.shown)
        } else {
            format!("{}.{name}", self.shown)
        };
        let escaped = name.replace('~', "~0").replace('/', "~1");
        Self {
            shown,
            pointer: format!("{}/{escaped}", self.pointer),
        }
    }

    fn item(&self, index: usize) -> Self {
        Self {
            shown: format!("{}[{index}]", self.shown),
            pointer: format!("{}/{index}", self.pointer),
        }
    }
}

/// What a value is, in words.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) => format!("the string {value:?}"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

#[derive(Debug)]
struct Error {
    path: Option<Path>,
    message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            path: None,
            message: in_words(message.to_string()),
        }
    }
}

/// Says what was expected as a person would, where serde names a type of Rust.
fn in_words(message: String) -> String {
    const TYPES: [(&str, &str); 5] = [
        ("expected i32", "expected an integer"),
        ("expected i64", "expected an integer"),
        ("expected u16", "expected an integer"),
        ("expected f64", "expected a number"),
        ("expected a sequence", "expected a list"),
    ];
    let known = TYPES.iter().find_map(|(rust, words)| {
        let start = message.strip_suffix(rust)?;
        Some(format!("{start}{words}"))
    });
    known.unwrap_or(message)
}

struct Strict<'a> {
    value: &'a Value,
    path: Path,
    unknown: &'a RefCell<Vec<Fault>>,
}

impl<'a> Strict<'a> {
    fn at(&self, path: Path, value: &'a Value) -> Self {
        Self {
            value,
            path,
            unknown: self.unknown,
        }
    }

    fn note_unknown(&self, name: &str, known: &[&str]) {
        let hint = match closest(name, known) {
            Some(close) => format!("did you mean {close:?}?"),
            None => format!("expected one of {}", known.join(", ")),
        };
        self.unknown.borrow_mut().push(Fault {
            path: self.path.field(name).shown,
            message: format!("unknown field, {hint}"),
        });
    }
}

/// The known name that differs by at most a third of the letters.
fn closest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let distance = |other: &str| distance(&name.to_lowercase(), &other.to_lowercase());
    let best = known.iter().min_by_key(|other| distance(other))?;
    (distance(best) <= name.len().max(3) / 3).then_some(best)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl<'de> de::Deserializer<'de> for Strict<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let path = self.path.clone();
        let result = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
                parent: self,
            }),
            Value::Object(fields) => visitor.visit_map(Fields {
                fields: fields.iter(),
                next: None,
                parent: self,
            }),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_u64(value),
                (_, Some(value), _) => visitor.visit_i64(value),
                (_, _, Some(value)) => visitor.visit_f64(value),
                (None, None, None) => Err(de::Error::custom("expected a number that fits 64 bits")),
            },
        };
        result.map_err(|error| place(error, path))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let path = self.path.clone();
        visitor
            .visit_newtype_struct(self)
            .map_err(|error| place(error, path))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Value::Object(fields) = self.value {
            for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
                self.note_unknown(name, known);
            }
        }
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The innermost place wins.
fn place(mut error: Error, path: Path) -> Error {
    error.path.get_or_insert(path);
    error
}

struct Items<'de> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Value>>,
    parent: Strict<'de>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((index, item)) = self.items.next() else {
            return Ok(None);
        };
        let path = self.parent.path.item(index);
        seed.deserialize(self.parent.at(path, item)).map(Some)
    }
}

struct Fields<'de> {
    fields: serde_json::map::Iter<'de>,
    next: Option<(&'de String, &'de Value)>,
    parent: Strict<'de>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Error;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.next = self.fields.next();
        let Some((name, _)) = self.next else {
            return Ok(None);
        };
        seed.deserialize(name.as_str().into_deserializer())
            .map(Some)
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, value) = self
            .next
            .take()
            .ok_or_else(|| <Error as de::Error>::custom("a value was asked for before its key"))?;
        let path = self.parent.path.field(name);
        seed.deserialize(self.parent.at(path, value))
    }
}
