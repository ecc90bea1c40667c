// SPDX-License-Identifier: Apache-2.0
//! Keys of Curve25519, as WireGuard uses them.
//!
//! Private keys are shown nowhere and overwritten when they are dropped. What belongs to one in
//! public is computed by the kernel, which has to do it anyway, so there is no cryptography here.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::TryRngCore;
use rand::rngs::OsRng;
use zeroize::Zeroizing;

/// Bytes of a key.
pub(super) const LENGTH: usize = 32;

/// What the others know a node by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; LENGTH]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<PublicKey, String> {
        let wrong = || format!("{text:?} is not a WireGuard key: 32 bytes in base64, not all zero");
        let bytes = STANDARD.decode(text).map_err(|_| wrong())?;
        let key: [u8; LENGTH] = bytes.try_into().map_err(|_| wrong())?;
        // Zero is how the kernel writes "no key".
        if key == [0; LENGTH] {
            return Err(wrong());
        }
        Ok(PublicKey(key))
    }
}

/// What only this node knows.
pub(super) struct PrivateKey(Zeroizing<[u8; LENGTH]>);

impl PrivateKey {
    /// A new one, out of the system's randomness.
    pub(super) fn generate() -> std::io::Result<PrivateKey> {
        let mut bytes = Zeroizing::new([0; LENGTH]);
        OsRng
            .try_fill_bytes(&mut *bytes)
            .map_err(std::io::Error::other)?;
        // A multiple of the cofactor, with the highest bit in a fixed place (RFC 7748, 5).
        bytes[0] &= 0xf8;
        bytes[31] = (bytes[31] & 0x7f) | 0x40;
        Ok(PrivateKey(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }

    /// As `wg genkey` prints it.
    pub(super) fn text(&self) -> Zeroizing<String> {
        // It never grows, which would leave a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(2 * LENGTH));
        STANDARD.encode_string(*self.0, &mut text);
        text.push('\n');
        text
    }

    /// What [`PrivateKey::text`] wrote; `None` if it is not that.
    pub(super) fn parse(text: &str) -> Option<PrivateKey> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim_end()).ok()?);
        let mut key = Zeroizing::new([0; LENGTH]);
        if bytes.len() != LENGTH {
            return None;
        }
        key.copy_from_slice(&bytes);
        let clamped = key[0] & 7 == 0 && key[31] & 0xc0 == 0x40;
        clamped.then_some(PrivateKey(key))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_clamped_new_each_time_and_read_as_it_is_written() {
        let (one, two) = (PrivateKey::generate(), PrivateKey::generate());
        let (one, two) = (one.expect("randomness"), two.expect("randomness"));
        assert_ne!(one.bytes(), two.bytes());
        assert_eq!((one.bytes()[0] & 7, one.bytes()[31] & 0xc0), (0, 0x40));
        let read = PrivateKey::parse(&one.text()).expect("a key");
        assert_eq!(read.bytes(), one.bytes());
        assert!(!format!("{one:?}").contains(one.text().trim()));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "x",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "/////////////////////////////////////////w==",
            "////////////////////////////////////////////",
            " //////////////////////////////////////////8=",
            "//////////////////////////////////////////9=",
        ] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
        let good = "//////////////////////////////////////////8=";
        let key: PublicKey = good.parse().expect("a key");
        assert_eq!((key.0, key.to_string().as_str()), ([0xff; 32], good));
        // Not clamped, so not written by us.
        assert!(PrivateKey::parse(good).is_none());
    }
}
