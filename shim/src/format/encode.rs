// SPDX-License-Identifier: Apache-2.0
//! Values to bytes.

use serde::Serialize;
use serde::ser::{
    SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
    SerializeTupleVariant, Serializer,
};

use super::Error;

type Done = Result<(), Error>;
type Never = serde::ser::Impossible<(), Error>;

/// Encodes a value.
///
/// # Errors
/// When it holds a type that the format leaves out.
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    value.serialize(Encoder { out: &mut bytes })?;
    Ok(bytes)
}

struct Encoder<'a> {
    out: &'a mut Vec<u8>,
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The parts of a sequence or tuple, one after the other.
struct Parts<'a> {
    out: &'a mut Vec<u8>,
}

impl Parts<'_> {
    fn part<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        value.serialize(Encoder { out: self.out })
    }
}

/// The fields of a struct: encoded aside, so that zeros at the end can be left out.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    bytes: Vec<u8>,
    count: u64,
    /// (count, length of `bytes`) after the last field that is not zero.
    kept: (u64, usize),
}

impl<'a> Fields<'a> {
    fn new(out: &'a mut Vec<u8>) -> Fields<'a> {
        Fields {
            out,
            bytes: Vec::new(),
            count: 0,
            kept: (0, 0),
        }
    }

    fn field<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        let bytes = to_bytes(value)?;
        self.count += 1;
        // Every type's zero is encoded as zeros, and nothing else is.
        if bytes.iter().all(|byte| *byte == 0) {
            varint(&mut self.bytes, 0);
        } else {
            varint(&mut self.bytes, bytes.len() as u64);
            self.bytes.extend_from_slice(&bytes);
            self.kept = (self.count, self.bytes.len());
        }
        Ok(())
    }

    fn finish(self) -> Done {
        let (count, length) = self.kept;
        varint(self.out, count);
        self.out
            .extend_from_slice(self.bytes.get(..length).unwrap_or_default());
        Ok(())
    }
}

impl<'a> Serializer for Encoder<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Fields<'a>;
    type SerializeMap = Never;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Fields<'a>;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, value: bool) -> Done {
        self.serialize_u8(u8::from(value))
    }

    fn serialize_i8(self, value: i8) -> Done {
        self.serialize_u8(value as u8)
    }

    fn serialize_i16(self, value: i16) -> Done {
        self.serialize_i64(i64::from(value))
    }

    fn serialize_i32(self, value: i32) -> Done {
        self.serialize_i64(i64::from(value))
    }

    fn serialize_i64(self, value: i64) -> Done {
        self.serialize_u64(zigzag(value))
    }

    fn serialize_u8(self, value: u8) -> Done {
        self.out.push(value);
        Ok(())
    }

    fn serialize_u16(self, value: u16) -> Done {
        self.serialize_u64(u64::from(value))
    }

    fn serialize_u32(self, value: u32) -> Done {
        self.serialize_u64(u64::from(value))
    }

    fn serialize_u64(self, value: u64) -> Done {
        varint(self.out, value);
        Ok(())
    }

    fn serialize_f32(self, _: f32) -> Done {
        Err(Error::Unsupported("a float"))
    }

    fn serialize_f64(self, _: f64) -> Done {
        Err(Error::Unsupported("a float"))
    }

    fn serialize_char(self, _: char) -> Done {
        Err(Error::Unsupported("a character"))
    }

    fn serialize_str(self, value: &str) -> Done {
        self.serialize_bytes(value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Done {
        varint(self.out, value.len() as u64);
        self.out.extend_from_slice(value);
        Ok(())
    }

    fn serialize_none(self) -> Done {
        self.serialize_u8(0)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Done {
        self.out.push(1);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Done {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Done {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, index: u32, _: &'static str) -> Done {
        self.serialize_u32(index)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Done {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Done {
        varint(self.out, u64::from(index));
        value.serialize(self)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Parts<'a>, Error> {
        let length = length.ok_or(Error::Unsupported("a sequence of unknown length"))?;
        varint(self.out, length as u64);
        Ok(Parts { out: self.out })
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>, Error> {
        Ok(Parts { out: self.out })
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, Error> {
        Ok(Parts { out: self.out })
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Fields<'a>, Error> {
        varint(self.out, u64::from(index));
        Ok(Fields::new(self.out))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Never, Error> {
        Err(Error::Unsupported("a map"))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'a>, Error> {
        Ok(Fields::new(self.out))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Fields<'a>, Error> {
        varint(self.out, u64::from(index));
        Ok(Fields::new(self.out))
    }
}

impl SerializeSeq for Parts<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        self.part(value)
    }

    fn end(self) -> Done {
        Ok(())
    }
}

impl SerializeTuple for Parts<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        self.part(value)
    }

    fn end(self) -> Done {
        Ok(())
    }
}

impl SerializeTupleStruct for Parts<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        self.part(value)
    }

    fn end(self) -> Done {
        Ok(())
    }
}

impl SerializeTupleVariant for Fields<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        self.field(value)
    }

    fn end(self) -> Done {
        self.finish()
    }
}

impl SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Done {
        self.field(value)
    }

    fn end(self) -> Done {
        self.finish()
    }
}

impl SerializeStructVariant for Fields<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Done {
        self.field(value)
    }

    fn end(self) -> Done {
        self.finish()
    }
}
