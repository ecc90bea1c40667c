// SPDX-License-Identifier: Apache-2.0
//! Garbage collection by owner references, over every kind that the server has.
//!
//! `graph` holds who owns whom as the watches show it and says whom to look at; `decide` says what
//! to do with one object; `controller` reads the object and its owners *from the server* before it
//! writes, so a stale cache delays a deletion but never causes one.

mod controller;
mod decide;
mod graph;
mod watches;

pub(crate) use controller::Controller;
