// SPDX-License-Identifier: Apache-2.0
//! Images: names, a content-addressed store, pulling, import and export, building, and the
//! unpacked layer directories that containers are mounted from.
//!
//! Two callers: the CRI server in this crate, and `podwright image` on the command line. Both may
//! use one store directory at the same time; every read looks at the disk, so each sees what the
//! other did. No task of this module outlives the call that started it, except that work on the
//! blocking pool finishes when its caller goes away (dropping a future here is always safe).
//!
//! Where is the thing that…
//! - understands `busybox:1.36`: [`reference`]; `sha256:…`: [`digest`]
//! - lays out the directory, locks, commits records: `disk`; removes unused content: `gc`
//! - is called from outside: [`store`]
//! - unpacks a layer: `layer`, over `tar_stream` (parsing) and `rooted` (paths beneath a root)
//! - takes content in, whatever it comes from, and makes it visible: `content`, `records`
//! - pulls: `pull`, over `registry` (one endpoint of the distribution protocol), `manifest` and
//!   [`platform`] (what to take of an index), and `intake` (a layer on its way to the disk)
//! - knows passwords: [`auth`] (from the CRI), [`credentials`] (from files and helpers)
//! - looks whether the disk kept what was written: `heal`
//! - reads and writes OCI layouts and archives: `import`, `export`; makes images: `build`
//! - gives fuzzers what reads input from outside: `doors`
//! - looks up users in an image: [`user`]; the command line: [`cli`]

pub mod auth;
mod build;
pub mod cli;
mod content;
pub mod credentials;
pub mod digest;
mod disk;
#[doc(hidden)]
pub mod doors;
mod download;
pub mod error;
mod export;
mod gc;
mod heal;
mod implied;
mod import;
mod intake;
mod layer;
mod manifest;
pub(crate) mod merged;
mod pipe;
pub mod platform;
mod pull;
mod records;
pub mod reference;
mod registry;
mod rooted;
mod sparse;
pub mod store;
mod tar_stream;
pub mod types;
mod usage;
pub mod user;

pub use digest::Digest;
pub use error::{ErrorKind, ImageError};
pub use platform::Platform;
pub use reference::{Reference, ReferenceError};
pub use store::ImageStore;
pub use types::{
    Auth, BuildOptions, DiskUsage, ExportFormat, FsInfo, Image, Progress, ProgressFn, PullOptions,
    Removed, RootfsSource, no_progress,
};
