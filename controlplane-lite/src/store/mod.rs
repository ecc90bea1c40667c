// SPDX-License-Identifier: Apache-2.0
//! The store: revisions, compare-and-swap, ranges, watches from a revision, compaction.
//!
//! [`Store`] is what the API server needs and nothing more; it is the part of etcd's interface
//! that Kubernetes uses, so that etcd can stand behind it too. [`Embedded`] is the back end in
//! this process: SQLite makes a change durable before it is acknowledged, and an index in memory
//! answers every read. Reading never waits for the disk, and writing waits for it once per group.
//!
//! A key is `<plural>[.<group>]/<namespace>/<name>`; the namespace is empty for cluster scope.

mod embedded;
mod header;
mod index;
mod log;
mod object;

pub(crate) use embedded::Embedded;
pub(crate) use header::Header;
pub(crate) use index::{Batch, Event, EventKind, Snapshot};
pub(crate) use object::{Draft, Object};

use std::{path::PathBuf, sync::Arc};

use futures::future::BoxFuture;
use tokio::sync::watch;

/// What must hold of the changed key itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// The key is not there.
    Absent,
    /// The key was last changed at this revision.
    Revision(u64),
}

/// What else must hold at the moment of the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Guard {
    /// This key was last changed at this revision.
    Key {
        /// The other key.
        key: String,
        /// Its revision when the caller looked.
        revision: u64,
    },
    /// Nothing of this resource changed after the revision.
    Resource {
        /// First part of the keys.
        resource: String,
        /// Revision of the snapshot that the caller decided on.
        revision: u64,
    },
}

/// One change of one key.
#[derive(Debug)]
pub(crate) struct Change {
    /// The key.
    pub(crate) key: String,
    /// Condition on the key.
    pub(crate) expect: Expect,
    /// Conditions on others.
    pub(crate) guards: Vec<Guard>,
    /// The new content, or nothing to delete.
    pub(crate) put: Option<Draft>,
}

/// Why a change was not made. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    /// The key does not fulfil the expectation; here is what is there instead.
    #[error("the object changed in between")]
    Conflict(Option<Arc<Object>>),
    /// Another condition does not hold any more: look again and decide anew.
    #[error("what the change was based on has changed")]
    Guard,
    /// The disk failed.
    #[error("writing to the store: {0}")]
    Failed(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// The revision is not kept any more.
#[derive(Debug, thiserror::Error)]
#[error("revision {asked} is older than the oldest kept, {oldest}")]
pub(crate) struct Expired {
    pub(crate) asked: u64,
    pub(crate) oldest: u64,
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("opening the store in {path}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// SQLite's error.
        #[source]
        source: rusqlite::Error,
    },
    /// The folder could not be made.
    #[error("making {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A newer program wrote it.
    #[error("the store in {path} has format {found}, and this program knows format {known}")]
    Format {
        /// The database file.
        path: PathBuf,
        /// Format found.
        found: i64,
        /// Format understood.
        known: i64,
    },
    /// The writer thread could not be started.
    #[error("starting the writer of the store")]
    Thread(#[source] std::io::Error),
}

/// What the API server needs of a store.
pub(crate) trait Store: Send + Sync + 'static {
    /// Newest revision that readers can see.
    fn revision(&self) -> u64;

    /// The object under a key.
    fn get(&self, key: &str) -> Option<Arc<Object>>;

    /// All objects whose key starts with `prefix`, now or as they were at a revision.
    fn range(&self, prefix: &str, at: Option<u64>) -> Result<Snapshot, Expired>;

    /// Makes a change durable. Safe to drop: the change is made, or not, as a whole.
    fn commit(&self, change: Change) -> BoxFuture<'_, Result<Arc<Object>, CommitError>>;

    /// Up to `limit` events of a resource after a revision, oldest first.
    fn events(&self, resource: &str, after: u64, limit: usize) -> Result<Batch, Expired>;

    /// Wakes up whenever events of a resource were added. A wake-up means: look again.
    fn subscribe(&self, resource: &str) -> watch::Receiver<u64>;

    /// Forgets what was replaced or deleted at or before a revision.
    fn compact(&self, upto: u64) -> BoxFuture<'_, Result<(), CommitError>>;
}

/// First part of a key.
pub(crate) fn resource_of(key: &str) -> &str {
    key.split('/').next().unwrap_or(key)
}
