// SPDX-License-Identifier: Apache-2.0
//! Waiting for a condition with a generous deadline, and saying what was last seen when it passes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(50);

/// Polls `look` until it gives a value. `look` returns `Err(last seen)` while it isn't so yet.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(seen) if start.elapsed() > deadline => {
                bail!("not within {deadline:?}: {what}; last seen: {seen}")
            }
            Err(_) => sleep(POLL),
        }
    }
}

/// Polls `look` until it says true.
pub fn wait_until(what: &str, deadline: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, deadline, || {
        look().then_some(()).ok_or_else(|| "false".into())
    })
}
