// SPDX-License-Identifier: Apache-2.0
//! Container logs: reading, following and rotating CRI log files.
//!
//! [`options`], [`select`], [`line`] and [`tail`] decide; [`follow`] reads the file and waits.

mod follow;
mod line;
mod options;
mod select;
mod tail;

pub(super) use follow::{Alive, read};
pub(super) use options::{LogOptions, OptionsError};
pub(super) use select::{container_id, has_container};
