// SPDX-License-Identifier: Apache-2.0
//! What every controller shares: a keyed work queue, one watch per kind, expectations about writes
//! that the watch has not shown yet, events, and the small facts about objects (names, owners,
//! selectors) that all of them ask for. Each is written once, here.

pub(crate) mod cidr;
pub(crate) mod condition;
pub(crate) mod events;
pub(crate) mod expectations;
pub(crate) mod group;
pub(crate) mod informer;
pub(crate) mod key;
pub(crate) mod owner;
pub(crate) mod pods;
pub(crate) mod queue;
pub(crate) mod selector;
pub(crate) mod sync;
pub(crate) mod taints;
#[cfg(test)]
pub(crate) mod testing;

/// The time of day, passed in so that tests decide it.
///
/// A plain function is enough: controllers only ever ask for "now".
pub(crate) type Clock = fn() -> k8s_openapi::jiff::Timestamp;

/// The clock of the running system.
pub(crate) const SYSTEM_CLOCK: Clock = k8s_openapi::jiff::Timestamp::now;
