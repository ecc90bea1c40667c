// SPDX-License-Identifier: Apache-2.0
//! How the allocator is set up.
#![expect(unsafe_code, reason = "mallopt(3) has no safe wrapper")]

/// Lets threads share `count` arenas. Each arena keeps free memory that no other can use, and glibc
/// would make one for nearly every thread: a burst of blocking calls on 60 threads left 10 MiB behind.
pub(crate) fn share_arenas(count: usize) {
    let count = libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX);
    // SAFETY: mallopt(3) takes the allocator's own lock, and changes a number that is only read when
    // a thread allocates for the first time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, count) };
}
