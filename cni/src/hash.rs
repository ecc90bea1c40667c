// SPDX-License-Identifier: Apache-2.0
//! A small hash for names. Its values are on disk and in the kernel, so it must never change.

/// FNV-1a, 64 bits.
pub(crate) fn fnv64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The same, folded to 32.
pub(crate) fn fnv32(bytes: &[u8]) -> u32 {
    let hash = fnv64(bytes);
    let low = u32::try_from(hash & u64::from(u32::MAX)).expect("masked");
    let high = u32::try_from(hash >> 32).expect("shifted");
    low ^ high
}
