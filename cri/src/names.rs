// SPDX-License-Identifier: Apache-2.0
//! Name reservations, so that two requests cannot make the same sandbox or container.
//!
//! Held in memory only: at start they are rebuilt from the records that survived recovery, so
//! nothing that a crash left half made can hold a name.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::fault::{Fault, Kind, Result};

/// Name to the identifier that holds it.
#[derive(Debug, Default)]
pub(crate) struct Names {
    held: Mutex<HashMap<String, String>>,
}

impl Names {
    /// Takes `name` for `id`.
    ///
    /// # Errors
    /// `AlreadyExists` with the holder's identifier.
    pub(crate) fn reserve(&self, name: &str, id: &str) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get(name) {
            Some(holder) if holder != id => Err(Fault::new(
                Kind::AlreadyExists,
                format!("name {name:?} is reserved for {holder:?}"),
            )),
            _ => {
                held.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    /// Every identifier that holds a name: those that exist, and those that are being made.
    pub(crate) fn holders(&self) -> std::collections::BTreeSet<String> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.values().cloned().collect()
    }

    /// Gives up whatever `id` holds. Idempotent.
    pub(crate) fn release(&self, id: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, holder| holder != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clash_names_the_holder_and_release_frees_the_name() {
        let names = Names::default();
        names.reserve("web", "1").unwrap();
        names.reserve("web", "1").unwrap();
        let clash = names.reserve("web", "2").unwrap_err();
        assert_eq!(clash.kind, Kind::AlreadyExists);
        assert!(clash.to_string().contains("\"1\""));
        names.release("1");
        names.reserve("web", "2").unwrap();
    }
}
