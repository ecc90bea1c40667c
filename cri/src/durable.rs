// SPDX-License-Identifier: Apache-2.0
//! One object's record: in memory for readers, on disk for the next daemon, changed by one writer at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, watch};

use crate::fault::{Fault, Result};
use crate::record::{self, Subject};

/// A record that readers see only once it is on disk.
#[derive(Debug)]
pub(crate) struct Durable<R> {
    dir: PathBuf,
    current: watch::Sender<Arc<R>>,
    writer: Mutex<()>,
}

impl<R: Clone + Serialize + DeserializeOwned + Subject + Send + Sync + 'static> Durable<R> {
    /// Takes over a record that was read from `dir`.
    pub(crate) fn loaded(dir: PathBuf, record: R) -> Self {
        Self {
            dir,
            current: watch::Sender::new(Arc::new(record)),
            writer: Mutex::new(()),
        }
    }

    /// Writes a first record to `dir`, which exists.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) async fn create(dir: PathBuf, record: R) -> Result<Self> {
        write(&dir, record.clone()).await?;
        Ok(Self::loaded(dir, record))
    }

    /// The present record.
    pub(crate) fn get(&self) -> Arc<R> {
        self.current.borrow().clone()
    }

    /// Where the record lives.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Changes the record: on disk first, then for readers. `change` returns whether it changed
    /// anything; if not, nothing is written. Call it from a task that is not dropped halfway.
    ///
    /// # Errors
    /// When the disk refuses; readers then still see the former record.
    pub(crate) async fn update(&self, change: impl FnOnce(&mut R) -> bool) -> Result<bool> {
        let _writer = self.writer.lock().await;
        let mut record = R::clone(&self.current.borrow());
        if !change(&mut record) {
            return Ok(false);
        }
        write(&self.dir, record.clone()).await?;
        self.current.send_replace(Arc::new(record));
        Ok(true)
    }

    /// Changes what readers see although the disk does not take it: for facts that cannot be
    /// undone, like an exit. The next daemon learns them from the shim again.
    pub(crate) async fn update_regardless(&self, change: impl Fn(&mut R) -> bool) -> bool {
        match self.update(&change).await {
            Ok(changed) => changed,
            Err(fault) => {
                tracing::warn!(error = %fault.chain(), "a record could not be written");
                self.current.send_if_modified(|current| {
                    let mut record = R::clone(current);
                    let changed = change(&mut record);
                    *current = Arc::new(record);
                    changed
                })
            }
        }
    }

    /// Waits until the record is as `wanted`. No deadline of its own.
    pub(crate) async fn until(&self, wanted: impl Fn(&R) -> bool) {
        let mut receiver = self.current.subscribe();
        // The sender lives in self, so the channel cannot close while we wait.
        let _ = receiver.wait_for(|record| wanted(record)).await;
    }
}

async fn write<R: Serialize + Subject + Send + 'static>(dir: &Path, record: R) -> Result<()> {
    let dir = dir.to_owned();
    crate::blocking::run("writing a record", move || {
        record::write(&dir, &record).map_err(|e| Fault::internal("saving state", e))
    })
    .await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_see_what_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let durable = Durable::create(dir.path().to_owned(), sample())
            .await
            .unwrap();
        assert!(!durable.update(|_| false).await.unwrap());
        assert!(
            durable
                .update(|r| {
                    r.n = 2;
                    true
                })
                .await
                .unwrap()
        );
        durable.until(|r| r.n == 2).await;
        let read: Sample = record::read(dir.path()).unwrap().unwrap();
        assert_eq!(read.n, durable.get().n);
    }

    #[tokio::test]
    async fn a_fact_is_seen_even_when_the_disk_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let durable = Durable::create(dir.path().join("."), sample())
            .await
            .unwrap();
        drop(dir);
        assert!(
            durable
                .update(|r| {
                    r.n = 3;
                    true
                })
                .await
                .is_err()
        );
        assert!(
            durable
                .update_regardless(|r| {
                    r.n = 3;
                    true
                })
                .await
        );
        assert_eq!(durable.get().n, 3);
    }

    #[derive(Clone, Debug, Serialize, serde::Deserialize)]
    struct Sample {
        n: u32,
    }

    impl Subject for Sample {
        fn has_ended(&self) -> bool {
            false
        }
    }

    fn sample() -> Sample {
        Sample { n: 1 }
    }
}
