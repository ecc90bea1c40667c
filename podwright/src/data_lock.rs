// SPDX-License-Identifier: Apache-2.0
//! One node per data directory: two would repair each other's pods away.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held for the life of a node's process; the kernel lets go of it when the process ends.
pub(crate) struct DataLock {
    _file: Flock<File>,
}

/// A process that was killed while it started another leaves the lock to that one until it runs its
/// own program: milliseconds, more on a machine that is busy.
const LET_GO: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(20);

impl DataLock {
    /// Takes the lock, or says which process has it. Waits a moment for one that has ended.
    pub(crate) fn take(data_dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(data_dir)
            .with_context(|| format!("creating the data directory {}", data_dir.display()))?;
        let path = data_dir.join("podwright.lock");
        let begun = Instant::now();
        loop {
            let holder = match try_lock(&path)? {
                Ok(file) => return Ok(Self { _file: file }),
                Err(holder) => holder,
            };
            if begun.elapsed() > LET_GO || !has_ended(&holder) {
                bail!(
                    "the data directory {} is in use by process {holder}; stop it first, or give another --data-dir",
                    data_dir.display(),
                )
            }
            std::thread::sleep(TICK);
        }
    }
}

/// The lock, or the number of the process that has it.
fn try_lock(path: &Path) -> anyhow::Result<Result<Flock<File>, String>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            // The number is for the person who meets the lock; the lock itself is the kernel's.
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())?;
            Ok(Ok(file))
        }
        Err((mut file, Errno::EAGAIN)) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            Ok(Err(holder.trim().to_owned()))
        }
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", path.display())),
    }
}

/// Is there no such process any more?
fn has_ended(holder: &str) -> bool {
    let is_number = !holder.is_empty() && holder.bytes().all(|b| b.is_ascii_digit());
    is_number && !Path::new("/proc").join(holder).exists()
}
