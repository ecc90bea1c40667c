// SPDX-License-Identifier: Apache-2.0
//! Gives memory back once the daemon is at rest: what the allocator keeps after a burst, and the
//! program's own pages that only start-up or the burst needed.
//!
//! Most of an idle daemon's memory is program: the kernel maps 64 KiB around each page that is
//! touched, and never takes clean pages out of a page table while memory is plenty. Those that are
//! needed again come back from the page cache, without reading the disk.

mod sys;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::runtime::Runtime;

/// Quiet for this long is rest. A pod's start is several requests, far closer together.
const REST: Duration = Duration::from_secs(2);

/// What tells work from rest. Nothing wakes up while there is no work.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    beats: AtomicU64,
    begun: Notify,
}

impl Pulse {
    /// Work begins, goes on or ends.
    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
        self.begun.notify_one();
    }

    /// Waits for work, and then until it has rested.
    async fn rested(&self) {
        self.begun.notified().await;
        let mut before = None;
        loop {
            let now = Some(self.beats.load(Ordering::Relaxed));
            if now == before {
                return;
            }
            before = now;
            tokio::time::sleep(REST).await;
        }
    }
}

/// Trims after each burst of work, until the daemon stops. Its start is the first one.
pub(crate) async fn at_rest(runtime: Arc<Runtime>) {
    runtime.pulse.beat();
    loop {
        tokio::select! {
            () = runtime.pulse.rested() => {}
            () = runtime.stopping.cancelled() => return,
        }
        // Takes well below a millisecond, mostly in the kernel.
        let _ = tokio::task::spawn_blocking(sys::trim).await;
    }
}

/// Address ranges of `smaps` (proc_pid_smaps(5)) that are parts of `executable` as they are in its
/// file: mapped privately, not writable, and with no page of the process's own (relocated data has).
fn untouched(smaps: &str, executable: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(own) = line.strip_prefix("Anonymous:") {
            if let (Some(range), "0 kB") = (candidate.take(), own.trim()) {
                found.push(range);
            }
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(access)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        let address = |text| usize::from_str_radix(text, 16).ok();
        if let (Some(start), Some(end)) = (address(start), address(end)) {
            let program = matches!(access, "r-xp" | "r--p") && words.nth(3) == Some(executable);
            candidate = program.then_some((start, end));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rest_comes_after_work() {
        let pulse = Arc::new(Pulse::default());
        let none = tokio::time::timeout(REST * 10, pulse.rested()).await;
        assert!(none.is_err(), "no work, no rest");
        let start = tokio::time::Instant::now();
        let working = pulse.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                working.beat();
                tokio::time::sleep(REST / 2).await;
            }
        });
        pulse.rested().await;
        assert!(start.elapsed() >= REST * 5, "{:?}", start.elapsed());
    }

    #[test]
    fn only_what_is_as_in_the_file_is_given_back() {
        let smaps = "\
00400000-00500000 r--p 00000000 08:01 7      /usr/bin/pw
Rss:                 512 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
00500000-00900000 r-xp 00100000 08:01 7      /usr/bin/pw
Anonymous:             0 kB
00900000-00a00000 r--p 00500000 08:01 7      /usr/bin/pw
Anonymous:           300 kB
00a00000-00b00000 rw-p 00600000 08:01 7      /usr/bin/pw
Anonymous:             0 kB
7f0000000000-7f0000100000 r--p 00000000 08:01 9  /usr/lib/locale
Anonymous:             0 kB
7f0000200000-7f0000300000 rw-p 00000000 00:00 0
Anonymous:             0 kB
";
        let expected = [(0x40_0000, 0x50_0000), (0x50_0000, 0x90_0000)];
        assert_eq!(untouched(smaps, "/usr/bin/pw"), expected);
    }

    #[test]
    fn the_program_goes_on_after_its_pages_were_given_back() {
        let text = std::hint::black_box("still here").to_owned();
        sys::trim();
        assert_eq!(text, "still here");
    }
}
