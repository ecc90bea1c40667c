// SPDX-License-Identifier: Apache-2.0
//! A stored version of an object: its encoded JSON, and where the revision stands in it.
//!
//! The revision is only known when the change is made, but encoding should happen once and
//! outside the writer. So `metadata.resourceVersion` is always the first field of the metadata,
//! encoded empty, and the digits are set in when the revision is known.

use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::Header;

/// What stands before the revision. The fields before it, `apiVersion` and `kind`, are ours, so
/// the first occurrence is the right one.
const MARK: &[u8] = br#""metadata":{"resourceVersion":""#;

/// One version of an object.
#[derive(Debug)]
pub(crate) struct Object {
    key: Box<str>,
    revision: u64,
    bytes: Bytes,
    revision_at: usize,
    header: OnceLock<Header>,
}

impl Object {
    /// The object as it was read from disk, or `None` when the bytes are not ours.
    pub(super) fn loaded(key: &str, revision: u64, bytes: Vec<u8>) -> Option<Self> {
        let at = bytes.windows(MARK.len()).position(|w| w == MARK)?;
        Some(Self {
            key: key.into(),
            revision,
            revision_at: at + MARK.len(),
            bytes: bytes.into(),
            header: OnceLock::new(),
        })
    }

    /// The key that it is stored under.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Revision of the change that made it.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The encoded JSON, `resourceVersion` included.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The parsed header.
    pub(crate) fn header(&self) -> &Header {
        self.header.get_or_init(|| Header::parse(&self.bytes))
    }

    /// The whole object, parsed.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("stored bytes were encoded by this module")
    }

    /// The same content with another revision: how a deletion shows the last state.
    pub(crate) fn at_revision(&self, revision: u64) -> Self {
        let digits = self.revision.to_string().len();
        let draft = Draft {
            head: self.bytes[..self.revision_at].to_vec(),
            tail: self.bytes[self.revision_at + digits..].to_vec(),
        };
        draft.seal(&self.key, revision)
    }
}

/// An encoded object that has no revision yet.
#[derive(Debug)]
pub(crate) struct Draft {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Draft {
    /// Encodes an object. `resourceVersion` and `managedFields` in it are dropped.
    pub(crate) fn encode(value: &Value) -> Self {
        let empty = Map::new();
        let object = value.as_object().unwrap_or(&empty);
        let mut head = b"{".to_vec();
        for field in ["apiVersion", "kind"] {
            if let Some(found) = object.get(field) {
                member(&mut head, field, found);
                head.push(b',');
            }
        }
        head.extend_from_slice(MARK);
        let mut tail = b"\"".to_vec();
        let metadata = object.get("metadata").and_then(Value::as_object);
        for (field, found) in metadata.unwrap_or(&empty) {
            if field != "resourceVersion" && field != "managedFields" {
                tail.push(b',');
                member(&mut tail, field, found);
            }
        }
        tail.push(b'}');
        for (field, found) in object {
            if !matches!(field.as_str(), "apiVersion" | "kind" | "metadata") {
                tail.push(b',');
                member(&mut tail, field, found);
            }
        }
        tail.push(b'}');
        Self { head, tail }
    }

    /// Sets the revision in.
    pub(super) fn seal(self, key: &str, revision: u64) -> Object {
        let digits = revision.to_string();
        let mut bytes = Vec::with_capacity(self.head.len() + digits.len() + self.tail.len());
        bytes.extend_from_slice(&self.head);
        bytes.extend_from_slice(digits.as_bytes());
        bytes.extend_from_slice(&self.tail);
        Object {
            key: key.into(),
            revision,
            revision_at: self.head.len(),
            bytes: bytes.into(),
            header: OnceLock::new(),
        }
    }

    /// The object as it would be stored, for a dry run.
    pub(crate) fn preview(self, key: &str, revision: u64) -> Object {
        self.seal(key, revision)
    }
}

fn member(out: &mut Vec<u8>, name: &str, value: &Value) {
    serde_json::to_writer(&mut *out, name).expect("a string encodes into memory");
    out.push(b':');
    serde_json::to_writer(out, value).expect("a JSON value encodes into memory");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_revision_is_set_in_and_can_be_exchanged() {
        let value = json!({"kind": "Pod", "apiVersion": "v1", "spec": {"a": 1},
            "metadata": {"name": "x", "resourceVersion": "9",
                "annotations": {"k": "\"metadata\":{\"resourceVersion\":\"7"}}});
        let object = Draft::encode(&value).seal("pods/d/x", 12);
        assert_eq!(object.value()["metadata"]["resourceVersion"], "12");
        assert_eq!(object.value()["spec"]["a"], 1);
        let later = object.at_revision(1234);
        assert_eq!(later.value()["metadata"]["resourceVersion"], "1234");
        let read = Object::loaded("pods/d/x", 1234, later.bytes().to_vec()).expect("ours");
        assert_eq!(
            read.at_revision(5).value()["metadata"]["resourceVersion"],
            "5"
        );
        assert_eq!(read.header().name, "x");
    }

    #[test]
    fn an_object_without_metadata_still_gets_a_revision() {
        let object = Draft::encode(&json!({"kind": "X", "apiVersion": "v1"})).seal("x//y", 3);
        assert_eq!(object.value()["metadata"]["resourceVersion"], "3");
    }
}
