// SPDX-License-Identifier: Apache-2.0
//! D-Bus messages as bytes: the few types that talking to systemd needs (D-Bus specification,
//! "Message Protocol"). Little-endian is ours to choose, and what systemd answers here.

use super::CgroupError;

/// A value of a unit property.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Bool(bool),
    Byte(u8),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Uint32s(Vec<u32>),
    Texts(Vec<String>),
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::Byte(_) => "y",
            Value::Int32(_) => "i",
            Value::Uint32(_) => "u",
            Value::Int64(_) => "x",
            Value::Uint64(_) => "t",
            Value::Double(_) => "d",
            Value::Text(_) => "s",
            Value::Bytes(_) => "ay",
            Value::Uint32s(_) => "au",
            Value::Texts(_) => "as",
            Value::Pairs(_) => "a(ss)",
        }
    }
}

/// Bytes being written; every type is aligned from the start of the message or of its body.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        while !self.bytes.len().is_multiple_of(to) {
            self.bytes.push(0);
        }
    }

    pub(super) fn uint32(&mut self, value: u32) -> &mut Self {
        self.align(4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn uint64(&mut self, value: u64) {
        self.align(8);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.uint32(value.len() as u32);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self
    }

    pub(super) fn boolean(&mut self, value: bool) -> &mut Self {
        self.uint32(u32::from(value))
    }

    fn signature(&mut self, value: &str) {
        self.bytes.push(value.len() as u8);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    /// An array: its length in bytes, without what aligns the first element, then the elements.
    fn array<T>(&mut self, align: usize, all: &[T], mut write: impl FnMut(&mut Writer, &T)) {
        self.uint32(0);
        let length_at = self.bytes.len() - 4;
        self.align(align);
        let start = self.bytes.len();
        for one in all {
            write(self, one);
        }
        let length = (self.bytes.len() - start) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => {
                self.boolean(*value);
            }
            Value::Byte(value) => self.bytes.push(*value),
            Value::Int32(value) => {
                self.uint32(*value as u32);
            }
            Value::Uint32(value) => {
                self.uint32(*value);
            }
            Value::Int64(value) => self.uint64(*value as u64),
            Value::Uint64(value) => self.uint64(*value),
            Value::Double(value) => self.uint64(value.to_bits()),
            Value::Text(value) => {
                self.text(value);
            }
            Value::Bytes(all) => self.array(1, all, |w, byte| w.bytes.push(*byte)),
            Value::Uint32s(all) => self.array(4, all, |w, number| {
                w.uint32(*number);
            }),
            Value::Texts(all) => self.array(4, all, |w, text| {
                w.text(text);
            }),
            Value::Pairs(all) => self.array(8, all, |w, (a, b)| {
                w.align(8);
                w.text(a).text(b);
            }),
        }
    }

    /// `a(sv)`
    pub(super) fn properties(&mut self, all: &[(String, Value)]) -> &mut Self {
        self.array(8, all, |w, (name, value)| {
            w.align(8);
            w.text(name);
            w.variant(value);
        });
        self
    }

    /// An empty `a(sa(sv))`: units to make beside, of which there are none.
    pub(super) fn no_units(&mut self) -> &mut Self {
        self.array::<()>(8, &[], |_, ()| {});
        self
    }
}

/// What is called, where.
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    pub(super) signature: &'a str,
}

const LITTLE: u8 = b'l';
const METHOD_CALL: u8 = 1;
const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR: u8 = 4;
const FIELD_REPLY: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;
/// Byte order, type, flags, version, body length, serial, length of the fields.
pub(super) const FIXED: usize = 16;

pub(super) fn encode(serial: u32, call: &Call<'_>, body: &Writer) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes.extend_from_slice(&[LITTLE, METHOD_CALL, 0, 1]);
    out.uint32(body.bytes.len() as u32).uint32(serial);
    let fields = [
        (FIELD_PATH, "o", call.path),
        (FIELD_INTERFACE, "s", call.interface),
        (FIELD_MEMBER, "s", call.member),
        (FIELD_DESTINATION, "s", call.destination),
        (FIELD_SIGNATURE, "g", call.signature),
    ];
    let present = fields.iter().filter(|(_, _, value)| !value.is_empty());
    let present: Vec<_> = present.collect();
    out.array(8, &present, |w, (code, kind, value)| {
        w.align(8);
        w.bytes.push(*code);
        w.signature(kind);
        match *kind {
            "g" => w.signature(value),
            _ => {
                w.text(value);
            }
        }
    });
    out.align(8);
    out.bytes.extend_from_slice(&body.bytes);
    out.bytes
}

/// A message as received.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) reply_to: u32,
    pub(super) member: String,
    pub(super) error: String,
    body: Vec<u8>,
}

pub(super) const REPLY: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// How long the rest of a message is, from its fixed part.
pub(super) fn rest(fixed: &[u8; FIXED]) -> Result<usize, CgroupError> {
    /// Far above anything that systemd answers to us; the protocol's own bound is 128 MiB.
    const MESSAGE_MAX: usize = 16 << 20;
    let number = |at: usize| {
        let bytes = [fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]];
        u32::from_le_bytes(bytes) as usize
    };
    let (body, fields) = (number(4), number(12));
    let total = fields.next_multiple_of(8).saturating_add(body);
    if fixed[0] != LITTLE || total > MESSAGE_MAX {
        return Err(malformed());
    }
    Ok(total)
}

pub(super) fn malformed() -> CgroupError {
    CgroupError::Systemd {
        action: "reading its answer".to_owned(),
        reason: "the D-Bus message is malformed".to_owned(),
    }
}

pub(super) fn decode(fixed: &[u8; FIXED], rest: &[u8]) -> Result<Message, CgroupError> {
    let fields = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]) as usize;
    let mut message = Message {
        kind: fixed[1],
        body: rest
            .get(fields.next_multiple_of(8)..)
            .ok_or_else(malformed)?
            .to_vec(),
        ..Message::default()
    };
    // The fixed part's length is a multiple of 8: alignment counts from here as well.
    let mut reader = Reader {
        bytes: rest.get(..fields).ok_or_else(malformed)?,
        at: 0,
    };
    while reader.at < fields {
        reader.align(8);
        let code = reader.byte()?;
        match reader.signature()?.as_str() {
            "s" | "o" => {
                let text = reader.text()?;
                match code {
                    FIELD_MEMBER => message.member = text,
                    FIELD_ERROR => message.error = text,
                    _ => {}
                }
            }
            "u" => {
                let number = reader.uint32()?;
                if code == FIELD_REPLY {
                    message.reply_to = number;
                }
            }
            "g" => drop(reader.signature()?),
            _ => return Err(malformed()),
        }
    }
    Ok(message)
}

impl Message {
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            bytes: &self.body,
            at: 0,
        }
    }
}

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&[u8], CgroupError> {
        let end = self.at.checked_add(count).ok_or_else(malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or_else(malformed)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, CgroupError> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn uint32(&mut self) -> Result<u32, CgroupError> {
        self.align(4);
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(super) fn text(&mut self) -> Result<String, CgroupError> {
        let length = self.uint32()? as usize;
        let text = self.take(length)?.to_vec();
        self.take(1)?;
        String::from_utf8(text).map_err(|_| malformed())
    }

    pub(super) fn signature(&mut self) -> Result<String, CgroupError> {
        let length = usize::from(self.byte()?);
        let text = self.take(length)?.to_vec();
        self.take(1)?;
        String::from_utf8(text).map_err(|_| malformed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_can_be_read_back() {
        let mut body = Writer::default();
        body.text("unit").text("replace").properties(&[
            ("PIDs".into(), Value::Uint32s(vec![7, 8])),
            ("Delegate".into(), Value::Bool(true)),
            (
                "DeviceAllow".into(),
                Value::Pairs(vec![("a".into(), "r".into())]),
            ),
        ]);
        let call = Call {
            destination: "",
            path: "/a",
            interface: "b.c",
            member: "D",
            signature: "ssa(sv)",
        };
        let bytes = encode(5, &call, &body);
        let (fixed, after) = bytes.split_first_chunk::<FIXED>().expect("a head");
        assert_eq!(rest(fixed).expect("a length"), after.len());
        let message = decode(fixed, after).expect("decodes");
        assert_eq!((message.kind, message.member.as_str()), (METHOD_CALL, "D"));
        let mut reader = message.reader();
        assert_eq!(reader.text().expect("text"), "unit");
        assert_eq!(reader.text().expect("text"), "replace");
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_refused() {
        let mut fixed = [0u8; FIXED];
        fixed[0] = LITTLE;
        fixed[12] = 40;
        assert!(decode(&fixed, &[0; 8]).is_err());
        fixed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(rest(&fixed).is_err());
        fixed[12] = 16;
        assert!(
            decode(
                &fixed,
                &[1, 1, b'x', 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0]
            )
            .is_err()
        );
    }
}
