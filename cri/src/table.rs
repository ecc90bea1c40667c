// SPDX-License-Identifier: Apache-2.0
//! Objects by identifier.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fault::Result;
use crate::ids;

/// All sandboxes, or all containers.
#[derive(Debug)]
pub(crate) struct Table<T> {
    what: &'static str,
    entries: Mutex<BTreeMap<String, Arc<T>>>,
}

impl<T> Table<T> {
    /// `what` names the objects in errors.
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            entries: Mutex::new(BTreeMap::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<T>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, id: String, entry: Arc<T>) {
        self.lock().insert(id, entry);
    }

    pub(crate) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// The object of this identifier, whole or an unambiguous prefix.
    ///
    /// # Errors
    /// Not found, or ambiguous.
    pub(crate) fn find(&self, given: &str) -> Result<Arc<T>> {
        let entries = self.lock();
        let id = ids::resolve(self.what, entries.keys(), given)?;
        Ok(entries[id].clone())
    }

    /// The object of exactly this identifier.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<T>> {
        self.lock().get(id).cloned()
    }

    /// A copy of all, in the order of identifiers.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.lock().values().cloned().collect()
    }
}
