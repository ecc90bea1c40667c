// SPDX-License-Identifier: Apache-2.0
//! Pod networking by the Container Network Interface (CNI 1.1), and the Linux network primitives
//! that the rest of podwright uses.
//!
//! `cri` owns a [`Network`] and asks it to [`Network::add`], [`Network::check`], [`Network::del`]
//! and [`Network::gc`] a pod's [`Attachment`], and for its [`Network::status`]. The network is a
//! configuration list on disk, read again for every operation. The plugin types in [`plugin_names`]
//! run in process; any other type is an executable in the plugin directory. The built-in plugins are
//! executables too: [`plugin_main`] answers by name.
//!
//! Everything here blocks for microseconds to milliseconds on netlink sockets. [`Network`] moves
//! that work to threads which end with the operation; nothing in this crate runs on its own.
//! [`Network::keep`] is a future that the owner of the network polls: it hears when somebody takes a
//! bridge or rules away, and has them restored; and it has the kernel forget connections of pods that
//! are gone.
//!
//! What this crate never does: hold state in memory that disk and kernel do not tell again, touch an
//! nftables table that is not its own, or change the namespace of a thread that somebody else uses.

pub mod attached;
mod attachment;
mod builtin;
pub mod cidr;
pub mod conf;
pub mod conntrack;
mod exec;
mod fields;
mod forget;
mod hash;
mod known;
pub mod link;
mod netlink;
pub mod netns;
pub mod network;
pub mod nft;
pub mod overlay;
mod plugin_main;
mod record;
pub mod setup;
mod sys;
mod sysctl;
pub mod types;

pub use fields::FieldError;
pub use known::Known;
pub use network::{
    Attached, Attachment, Capabilities, Error, Network, PortMapping, Protocol, chain,
};
pub use plugin_main::{is_plugin, plugin_main, plugin_names};
pub use setup::{CleanupError, PodNetwork, cleanup, default_conflist};
