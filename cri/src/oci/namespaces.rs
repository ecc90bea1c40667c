// SPDX-License-Identifier: Apache-2.0
//! Which namespaces are new, joined, or the host's.

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use shim::plan::{Namespace, Namespaces};

use super::compile::{CompileError, NOT_DONE, unsupported};

pub(super) fn namespaces(linux: &Linux) -> Result<Namespaces, CompileError> {
    let mut spaces = Namespaces::default();
    let mut own_mounts = false;
    for namespace in linux.namespaces().iter().flatten() {
        let from = match namespace.path() {
            Some(path) => Namespace::Join(path.to_string_lossy().into_owned()),
            None => Namespace::New,
        };
        match namespace.typ() {
            LinuxNamespaceType::Pid => spaces.pid = from,
            LinuxNamespaceType::Network => spaces.net = from,
            LinuxNamespaceType::Ipc => spaces.ipc = from,
            LinuxNamespaceType::Uts => spaces.uts = from,
            LinuxNamespaceType::Cgroup => spaces.cgroup = from,
            LinuxNamespaceType::Mount if from == Namespace::New => own_mounts = true,
            LinuxNamespaceType::Mount => {
                return Err(unsupported(
                    "linux.namespaces[mount].path",
                    "a container always gets a mount namespace of its own",
                ));
            }
            other => return Err(unsupported(format!("linux.namespaces[{other}]"), NOT_DONE)),
        }
    }
    match own_mounts {
        true => Ok(spaces),
        false => Err(unsupported(
            "linux.namespaces",
            "without a mount namespace the container would change the host's mounts",
        )),
    }
}
