// SPDX-License-Identifier: Apache-2.0
//! A deserializer over a JSON value that knows where it is.

use std::{cell::RefCell, fmt};

use serde::{
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer,
        MapAccess, SeqAccess, Unexpected, Visitor,
    },
    forward_to_deserialize_any,
};
use serde_json::Value;

/// A field has the wrong type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TypeError {
    /// Path of the field.
    pub(crate) path: String,
    /// What was expected and what was there.
    pub(crate) message: String,
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl std::error::Error for TypeError {}

impl de::Error for TypeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            path: String::new(),
            message: message.to_string(),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format!("expected {expected}, got {found}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format!("expected {expected}, got {found}"))
    }
}

/// Decodes a value; also returns the paths that the type ignored.
pub(super) fn decode<T: DeserializeOwned>(value: &Value) -> Result<(T, Vec<String>), TypeError> {
    let place = Place::default();
    let decoded = T::deserialize(Tracked {
        value,
        place: &place,
    });
    let place = place.0.into_inner();
    match decoded {
        Ok(decoded) => Ok((decoded, place.unknown)),
        Err(error) => Err(TypeError {
            path: place.failed.unwrap_or_default(),
            ..error
        }),
    }
}

#[derive(Default)]
struct Place(RefCell<Found>);

#[derive(Default)]
struct Found {
    path: Vec<String>,
    unknown: Vec<String>,
    failed: Option<String>,
}

impl Found {
    fn text(&self) -> String {
        self.path.concat().trim_start_matches('.').to_owned()
    }
}

impl Place {
    /// Runs something one step deeper, and notes where the innermost failure was.
    fn within<T>(
        &self,
        step: String,
        run: impl FnOnce() -> Result<T, TypeError>,
    ) -> Result<T, TypeError> {
        self.0.borrow_mut().path.push(step);
        let result = run();
        let mut found = self.0.borrow_mut();
        if result.is_err() && found.failed.is_none() {
            found.failed = Some(found.text());
        }
        found.path.pop();
        result
    }
}

#[derive(Clone, Copy)]
struct Tracked<'a> {
    value: &'a Value,
    place: &'a Place,
}

impl<'de> Deserializer<'de> for Tracked<'_> {
    type Error = TypeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(n) => match (n.as_u64(), n.as_i64()) {
                (Some(n), _) => visitor.visit_u64(n),
                (_, Some(n)) => visitor.visit_i64(n),
                _ => visitor.visit_f64(n.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(s) => visitor.visit_str(s),
            Value::Array(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
                place: self.place,
            }),
            Value::Object(fields) => visitor.visit_map(Fields {
                fields: fields.iter(),
                current: None,
                place: self.place,
            }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        if self.value.is_null() {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        // A quantity may be written as a number (apimachinery, `Quantity.UnmarshalJSON`).
        if let (Value::Number(number), "Quantity") = (self.value, name) {
            return visitor.visit_newtype_struct(number.to_string().into_deserializer());
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        let mut found = self.place.0.borrow_mut();
        let path = found.text();
        found.unknown.push(path);
        drop(found);
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct enum identifier
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    place: &'a Place,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = TypeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, TypeError> {
        let Some((at, value)) = self.items.next() else {
            return Ok(None);
        };
        let place = self.place;
        let item = || seed.deserialize(Tracked { value, place });
        place.within(format!("[{at}]"), item).map(Some)
    }
}

struct Fields<'a> {
    fields: serde_json::map::Iter<'a>,
    current: Option<(&'a String, &'a Value)>,
    place: &'a Place,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = TypeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, TypeError> {
        self.current = self.fields.next();
        let Some((name, _)) = self.current else {
            return Ok(None);
        };
        seed.deserialize(name.as_str().into_deserializer())
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, TypeError> {
        let (name, value) = self.current.expect("serde asks for a key before its value");
        let place = self.place;
        let field = || seed.deserialize(Tracked { value, place });
        place.within(format!(".{name}"), field)
    }
}
