// SPDX-License-Identifier: Apache-2.0
//! CDI, the Container Device Interface: what a container must be given so that it can use a device
//! of some vendor, from files that the vendor writes.
//!
//! [`spec`] is one file and what makes it valid, [`name`] the names of devices, [`cache`] all files
//! and who wins, `apply` the edits of an OCI spec.

mod apply;
mod cache;
pub mod name;
pub mod spec;

use std::path::PathBuf;

pub use cache::{Cache, Unresolvable};
use oci_spec::runtime::Spec;

use crate::fault::{Fault, Result};
use crate::{blocking, v1};

/// The devices that a container names, in the order in which they are given to it: those of its
/// configuration, then those of its annotations.
///
/// # Errors
/// The first name that is none.
pub(crate) fn wanted(config: &v1::ContainerConfig) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let annotated = name::annotated(&config.annotations).map_err(Fault::invalid)?;
    let named = config.cdi_devices.iter().map(|device| device.name.clone());
    for name in named.chain(annotated) {
        name::parse(&name).map_err(Fault::invalid)?;
        if !all.contains(&name) {
            all.push(name);
        }
    }
    Ok(all)
}

/// Gives a container its devices.
///
/// # Errors
/// Devices that nobody describes; a device that the host does not have.
pub(crate) async fn inject(dirs: Vec<PathBuf>, spec: &Spec, devices: Vec<String>) -> Result<Spec> {
    let spec = spec.clone();
    blocking::run("looking up CDI devices", move || {
        let cache = Cache::read(&dirs);
        for (of, why) in cache.errors() {
            tracing::warn!(of, why, "cdi: a specification is wrong");
        }
        let edits = cache
            .resolve(&devices)
            .map_err(|e| Fault::invalid(format!("CDI device injection failed: {e}")))?;
        apply::apply(&spec, &edits).map_err(|f| f.within("CDI device injection failed"))
    })
    .await?
}

/// What a verbose Status says: directories, devices, and what is wrong.
///
/// # Errors
/// When the work panics.
pub(crate) async fn report(dirs: Vec<PathBuf>) -> Result<serde_json::Value> {
    blocking::run("reading CDI specifications", move || {
        let cache = Cache::read(&dirs);
        serde_json::json!({
            "specDirs": dirs, "devices": cache.devices(), "errors": cache.errors(),
        })
    })
    .await
}
