// SPDX-License-Identifier: Apache-2.0
//! Reading JSON without losing that a field was given twice.

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Parses JSON text; also returns the paths of fields that were given more than once.
/// The last one wins, as everywhere in Kubernetes.
pub(crate) fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let repeated = RefCell::new(Vec::new());
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed {
        path: String::new(),
        repeated: &repeated,
    };
    let value = seed.deserialize(&mut text)?;
    text.end()?;
    Ok((value, repeated.into_inner()))
}

struct Seed<'a> {
    path: String,
    repeated: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut found = Vec::new();
        let next = |at: usize| Seed {
            path: format!("{}[{at}]", self.path),
            repeated: self.repeated,
        };
        while let Some(item) = items.next_element_seed(next(found.len()))? {
            found.push(item);
        }
        Ok(found.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut found = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let path = if self.path.is_empty() {
                name.clone()
            } else {
                format!("{}.{name}", self.path)
            };
            if found.contains_key(&name) {
                self.repeated.borrow_mut().push(path.clone());
            }
            let value = fields.next_value_seed(Seed {
                path,
                repeated: self.repeated,
            })?;
            found.insert(name, value);
        }
        Ok(found.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_fields_are_named() {
        let text = br#"{"a":1,"b":[{"c":1,"c":2}],"a":3}"#;
        let (value, repeated) = parse_json(text).expect("JSON");
        assert_eq!(value["a"], 3);
        assert_eq!(repeated, ["b[0].c", "a"]);
        assert!(parse_json(b"{} x").is_err());
    }
}
