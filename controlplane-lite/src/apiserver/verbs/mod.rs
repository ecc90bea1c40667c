// SPDX-License-Identifier: Apache-2.0
//! The verbs. Each works on any row of the table of kinds.

mod bind;
mod change;
mod create;
mod decode;
mod delete;
mod evict;
mod patching;
mod read;
mod scale;
mod watch;

pub(crate) use self::{
    bind::bind,
    create::{create, store_new},
    delete::{DeleteOptions, delete, delete_collection},
    evict::evict,
    patching::{patch, update},
    read::{get, list},
    scale::{scale_get, scale_patch, scale_update},
    watch::watch,
};

use super::error::ApiError;
use crate::store::CommitError;

/// Attempts at a change that somebody else keeps getting in the way of. Each attempt that fails
/// means that another one succeeded, so this is only reached by a fault.
const ATTEMPTS: usize = 256;

/// A failure of the store as the client sees it.
fn store_failure(error: &CommitError) -> ApiError {
    ApiError::internal(error)
}
