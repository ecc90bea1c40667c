// SPDX-License-Identifier: Apache-2.0
//! The encoding of messages between a daemon and a shim of different builds.
//!
//! A shim lives as long as its pod, so a daemon meets shims that are older than itself, and after a
//! step back also newer ones. Types may therefore grow, by two rules:
//!
//! - A struct gets new fields at its end, and an enum new variants at its end. Nothing that exists
//!   changes its type, moves or goes.
//! - The zero value of a new field (`false`, 0, `None`, nothing in it) means: as before.
//!
//! Each field of a struct carries its length, and fields at the end that are zero are left out. So
//! what is not new is encoded as it always was, byte for byte. A reader takes what is missing as
//! zero. What it does not know it refuses by name, or skips, as its caller wants ([`Newer`]).
//!
//! | type | bytes |
//! |---|---|
//! | `bool`, `u8`, `i8` | one |
//! | other integers | LEB128; signed ones zigzag first |
//! | string, bytes, sequence | number of bytes or elements, then these |
//! | option | 0, or 1 and the value |
//! | tuple | its parts |
//! | struct | number of fields, then each: length, bytes (none if it is zero) |
//! | enum | number of the variant; what it holds as above, several parts as a struct |
//!
//! Floats, characters, 128 bit integers and maps are not part of it.

mod decode;
mod encode;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod golden_plans;

use std::fmt;

pub use decode::from_bytes;
pub use encode::to_bytes;

/// What a reader does with fields that it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newer {
    /// Requests: to ignore a part would be to do something else than what was asked.
    Refuse,
    /// Answers: what the reader does not know, it cannot miss.
    Skip,
}

/// Why bytes are no such value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The bytes end too early, or go on after the value.
    Length,
    /// Field `number` (from 0) of this struct or variant is not known here.
    NewerField { of: &'static str, number: usize },
    /// Variant `number` (from 0) of this enum is not known here.
    NewerVariant { of: &'static str, number: u64 },
    /// A type that the format leaves out.
    Unsupported(&'static str),
    /// Anything else that is wrong with the bytes.
    Invalid(String),
}

impl Error {
    /// Whether the bytes are all right, but of a newer build.
    pub fn is_newer(&self) -> bool {
        matches!(self, Error::NewerField { .. } | Error::NewerVariant { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Length => out.write_str("the message has the wrong length"),
            Error::NewerField { of, number } => {
                write!(out, "field {number} of {of} is newer than this build")
            }
            Error::NewerVariant { of, number } => {
                write!(out, "variant {number} of {of} is newer than this build")
            }
            Error::Unsupported(what) => write!(out, "{what} cannot be encoded"),
            Error::Invalid(why) => out.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

impl serde::ser::Error for Error {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Error::Invalid(why.to_string())
    }
}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Error::Invalid(why.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize, de::DeserializeOwned};

    use super::*;

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    struct Old {
        name: String,
        size: Option<(u16, u16)>,
        kind: OldKind,
        last: i64,
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    enum OldKind {
        #[default]
        Plain,
        Named {
            path: String,
        },
        Pair(u32, bool),
        One(Box<Old>),
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    struct New {
        name: String,
        size: Option<(u16, u16)>,
        kind: NewKind,
        last: i64,
        also: bool,
        list: Vec<String>,
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    enum NewKind {
        #[default]
        Plain,
        Named {
            path: String,
            mode: u32,
        },
        Pair(u32, bool),
        One(Box<New>),
        Latest,
    }

    fn refuse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
        from_bytes(bytes, Newer::Refuse)
    }

    fn old() -> Old {
        Old {
            name: "näme".into(),
            size: Some((80, 300)),
            kind: OldKind::One(Box::new(Old {
                kind: OldKind::Named { path: "/x".into() },
                last: -3,
                ..Old::default()
            })),
            last: i64::MIN,
        }
    }

    #[test]
    fn values_survive() {
        for kind in [OldKind::Plain, OldKind::Pair(u32::MAX, true)] {
            let value = Old { kind, ..old() };
            assert_eq!(refuse::<Old>(&to_bytes(&value).unwrap()), Ok(value));
        }
        assert_eq!(refuse::<Old>(&to_bytes(&old()).unwrap()), Ok(old()));
        let answers: [Result<Vec<u8>, i32>; 2] = [Ok(vec![0, 255]), Err(i32::MIN)];
        for answer in answers {
            let bytes = to_bytes(&answer).unwrap();
            assert_eq!(refuse::<Result<Vec<u8>, i32>>(&bytes), Ok(answer));
        }
    }

    #[test]
    fn what_is_not_new_is_encoded_as_before() {
        let new = New {
            name: "a".into(),
            kind: NewKind::Named {
                path: "b".into(),
                mode: 0,
            },
            ..New::default()
        };
        let same = Old {
            name: "a".into(),
            kind: OldKind::Named { path: "b".into() },
            ..Old::default()
        };
        let bytes = to_bytes(&same).unwrap();
        assert_eq!(to_bytes(&new).unwrap(), bytes);
        assert_eq!(bytes, [3, 2, 1, b'a', 0, 5, 1, 1, 2, 1, b'b']);
        assert_eq!(refuse::<Old>(&bytes), Ok(same));
        assert_eq!(refuse::<New>(&bytes), Ok(new));
        assert_eq!(refuse::<New>(&[0]), Ok(New::default()));
    }

    #[test]
    fn what_is_new_is_refused_by_name_or_skipped() {
        let new = New {
            name: "a".into(),
            also: true,
            ..New::default()
        };
        let bytes = to_bytes(&new).unwrap();
        let error = refuse::<Old>(&bytes).unwrap_err();
        assert!(error.is_newer());
        assert_eq!(error.to_string(), "field 4 of Old is newer than this build");
        let skipped: Old = from_bytes(&bytes, Newer::Skip).unwrap();
        assert_eq!(skipped.name, "a");
        let latest = to_bytes(&NewKind::Latest).unwrap();
        for newer in [Newer::Refuse, Newer::Skip] {
            let error = from_bytes::<OldKind>(&latest, newer).unwrap_err();
            assert_eq!(
                error.to_string(),
                "variant 4 of OldKind is newer than this build"
            );
        }
    }

    #[test]
    fn damaged_bytes_are_errors() {
        let bytes = to_bytes(&old()).unwrap();
        for end in 0..bytes.len() {
            assert!(refuse::<Old>(&bytes[..end]).is_err(), "{end}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(refuse::<Old>(&longer), Err(Error::Length));
        for bytes in [
            &[0xff; 16][..],
            &[1, 200, 1],
            &[2, 1, 5],
            &[4, 0, 2, 9, 9, 0, 0],
        ] {
            assert!(refuse::<Old>(bytes).is_err(), "{bytes:?}");
        }
        assert!(refuse::<Vec<u64>>(&[0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }
}
