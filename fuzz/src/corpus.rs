// SPDX-License-Identifier: Apache-2.0
//! The inputs that are kept.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// One at a time: some targets count the process's descriptors.
static ALONE: Mutex<()> = Mutex::new(());

/// Calls `check` with every input of `target` that is kept.
///
/// # Panics
/// On a finding, and when there is no input.
pub fn replay(target: &str, check: fn(&[u8])) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let entries = std::fs::read_dir(dir.join(target)).expect("a corpus");
    let mut count = 0;
    for entry in entries {
        let path = entry.expect("lists").path();
        println!("{}", path.display());
        check(&std::fs::read(path).expect("reads"));
        count += 1;
    }
    assert!(count > 0, "the corpus is empty");
}
