// SPDX-License-Identifier: Apache-2.0
//! Bytes to values. The bytes may be anybody's: nothing is believed, nothing is reserved in advance.

use serde::de::value::U32Deserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, SeqAccess,
    VariantAccess, Visitor,
};

use super::{Error, Newer};

/// Decodes one value, which must take up all of the bytes.
///
/// # Errors
/// When the bytes are no such value, or a newer one.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8], newer: Newer) -> Result<T, Error> {
    let mut decoder = Decoder {
        bytes,
        absent: false,
        newer,
    };
    let value = T::deserialize(&mut decoder)?;
    decoder.at_end()?;
    Ok(value)
}

struct Decoder<'a> {
    bytes: &'a [u8],
    /// A field that was left out: every byte of it reads as zero.
    absent: bool,
    newer: Newer,
}

impl<'a> Decoder<'a> {
    fn at_end(&self) -> Result<(), Error> {
        match self.bytes {
            [] => Ok(()),
            _ => Err(Error::Length),
        }
    }

    fn byte(&mut self) -> Result<u8, Error> {
        match self.bytes.split_first() {
            Some((byte, rest)) => {
                self.bytes = rest;
                Ok(*byte)
            }
            None if self.absent => Ok(0),
            None => Err(Error::Length),
        }
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Invalid("a number exceeds 64 bits".into()))
    }

    fn signed(&mut self) -> Result<i64, Error> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    fn length(&mut self) -> Result<usize, Error> {
        usize::try_from(self.varint()?).map_err(|_| Error::Length)
    }

    fn slice(&mut self) -> Result<&'a [u8], Error> {
        let length = self.length()?;
        let (slice, rest) = self.bytes.split_at_checked(length).ok_or(Error::Length)?;
        self.bytes = rest;
        Ok(slice)
    }

    fn structure<'de, V: Visitor<'de>>(
        &mut self,
        name: &'static str,
        known: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let count = self.length()?;
        let value = visitor.visit_seq(Fields {
            decoder: self,
            left: known,
            encoded: count,
        })?;
        for number in known..count {
            let unknown = self.slice()?;
            if !unknown.is_empty() && self.newer == Newer::Refuse {
                return Err(Error::NewerField { of: name, number });
            }
        }
        Ok(value)
    }
}

/// A fixed number of values, one after the other.
struct Parts<'d, 'a> {
    decoder: &'d mut Decoder<'a>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Parts<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.decoder).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        // A claim, not yet a fact: no more than there are bytes for.
        Some(self.left.min(self.decoder.bytes.len()))
    }
}

/// The fields of a struct, each with a length.
struct Fields<'d, 'a> {
    decoder: &'d mut Decoder<'a>,
    /// Fields that the reader still wants.
    left: usize,
    /// Fields that are still encoded.
    encoded: usize,
}

impl<'de> SeqAccess<'de> for Fields<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let bytes = match self.encoded {
            0 => &[],
            _ => {
                self.encoded -= 1;
                self.decoder.slice()?
            }
        };
        let mut field = Decoder {
            bytes,
            absent: bytes.is_empty(),
            newer: self.decoder.newer,
        };
        let value = seed.deserialize(&mut field)?;
        field.at_end()?;
        Ok(Some(value))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

struct Variant<'d, 'a> {
    decoder: &'d mut Decoder<'a>,
    of: &'static str,
    index: u32,
}

impl<'de> EnumAccess<'de> for Variant<'_, '_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let index: U32Deserializer<Error> = self.index.into_deserializer();
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, '_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self.decoder)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        self.decoder.structure(self.of, length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.decoder.structure(self.of, fields.len(), visitor)
    }
}

/// Integers are checked for their range by the visitor.
macro_rules! integers {
    ($($method:ident $read:ident $visit:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.$read()?)
        }
    )*};
}

/// Types that the format leaves out.
macro_rules! left_out {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::Unsupported("this type"))
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Decoder<'_> {
    type Error = Error;

    integers! {
        deserialize_u8 byte visit_u8
        deserialize_u16 varint visit_u64
        deserialize_u32 varint visit_u64
        deserialize_u64 varint visit_u64
        deserialize_i16 signed visit_i64
        deserialize_i32 signed visit_i64
        deserialize_i64 signed visit_i64
    }

    left_out! {
        deserialize_any deserialize_ignored_any deserialize_identifier deserialize_map
        deserialize_f32 deserialize_f64 deserialize_char
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.byte()? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            _ => Err(Error::Invalid("neither true nor false".into())),
        }
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i8(self.byte()? as i8)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = std::str::from_utf8(self.slice()?)
            .map_err(|_| Error::Invalid("a text is not UTF-8".into()))?;
        visitor.visit_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bytes(self.slice()?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.byte()? {
            0 => visitor.visit_none(),
            1 => visitor.visit_some(self),
            _ => Err(Error::Invalid("neither none nor some".into())),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = self.length()?;
        // An element takes a byte at least, so a longer claim is a lie.
        if left > self.bytes.len() {
            return Err(Error::Length);
        }
        visitor.visit_seq(Parts {
            decoder: self,
            left,
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Parts {
            decoder: self,
            left: length,
        })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.structure(name, fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let number = self.varint()?;
        match u32::try_from(number) {
            Ok(index) if (index as usize) < variants.len() => visitor.visit_enum(Variant {
                decoder: self,
                of: name,
                index,
            }),
            _ => Err(Error::NewerVariant { of: name, number }),
        }
    }
}
