// SPDX-License-Identifier: Apache-2.0
//! The calls that give memory back. Failures change nothing, so none is reported.
#![expect(
    unsafe_code,
    reason = "malloc_trim(3) and madvise(2) have no safe wrapper here"
)]

use super::untouched;

/// Gives back free heap, and the program's pages as they are in its file.
pub(super) fn trim() {
    // SAFETY: malloc_trim(3) takes the allocator's own locks and touches only memory that is free.
    unsafe { libc::malloc_trim(0) };
    let executable = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let executable = executable.to_string_lossy();
    // The kernel's note on a file that was replaced meanwhile.
    let name = executable.strip_suffix(" (deleted)").unwrap_or(&executable);
    for (start, end) in untouched(&smaps, name) {
        let address = std::ptr::with_exposed_provenance_mut::<libc::c_void>(start);
        // SAFETY: the range is one private mapping of this program's file that nobody can write to
        // and that has no page of its own (`untouched`), and such mappings of the program stay for
        // the life of the process. The kernel drops page table entries only: the next access finds
        // the same bytes in the file, which cannot be written to while it is executed (ETXTBSY).
        unsafe { libc::madvise(address, end - start, libc::MADV_DONTNEED) };
    }
}
