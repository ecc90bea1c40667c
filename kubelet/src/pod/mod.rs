// SPDX-License-Identifier: Apache-2.0
//! One pod: what is wanted, what is seen, what to do next. Core, apart from `actor`.

pub mod labels;
pub mod state;
