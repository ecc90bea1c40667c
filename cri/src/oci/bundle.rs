// SPDX-License-Identifier: Apache-2.0
//! The bundle that hooks of a CRI container are told of: a directory with config.json.

use std::path::Path;

use oci_spec::runtime::Spec;
use shim::plan::Hooks;

/// Writes `config.json` into a container's directory, for a container that has hooks: those read it
/// there, as with containerd. `root.path` is where the root is mounted while they run.
///
/// # Errors
/// When the file cannot be written.
pub fn write_bundle(dir: &Path, spec: &Spec, root: &Path, hooks: &Hooks) -> std::io::Result<()> {
    if *hooks == Hooks::default() {
        return Ok(());
    }
    let mut spec = spec.clone();
    let mut mount = spec.root().clone().unwrap_or_default();
    mount.set_path(root.to_owned());
    spec.set_root(Some(mount));
    std::fs::write(dir.join("config.json"), serde_json::to_vec(&spec)?)
}
