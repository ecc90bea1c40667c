// SPDX-License-Identifier: Apache-2.0
//! One node per data directory: two would repair each other's pods away.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held for the life of a node's process; the kernel lets go of it when the process ends.
pub(crate) struct DataLock {
    _file: Flock<File>,
}

impl DataLock {
    /// Takes the lock, or says which process has it.
    pub(crate) fn take(data_dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(data_dir)
            .with_context(|| format!("creating the data directory {}", data_dir.display()))?;
        let path = data_dir.join("podwright.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                // The number is for the person who meets the lock; the lock itself is the kernel's.
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EAGAIN)) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                bail!(
                    "the data directory {} is in use by process {}; stop it first, or give another --data-dir",
                    data_dir.display(),
                    holder.trim()
                )
            }
            Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", path.display())),
        }
    }
}
