// SPDX-License-Identifier: Apache-2.0
//! Which ids a bind mount shows.

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Mount};
use shim::plan::{IdMapping, IdMappings, MountIdmap, MountKind};

fn joins_users(linux: &Linux) -> bool {
    let spaces = linux.namespaces().iter().flatten();
    let mut users = spaces.filter(|space| space.typ() == LinuxNamespaceType::User);
    users.any(|space| space.path().is_some())
}

/// The mount's own maps; for the words `idmap` and `ridmap` alone, the container's.
pub(super) fn compile(
    mount: &Mount,
    word: Option<bool>,
    kind: &MountKind,
    linux: Option<&Linux>,
) -> Result<Option<MountIdmap>, &'static str> {
    let (uid, gid) = (mount.uid_mappings(), mount.gid_mappings());
    let own = uid.is_some() || gid.is_some();
    if !own && word.is_none() {
        return Ok(None);
    }
    let mappable = matches!(
        kind,
        MountKind::Bind { .. } | MountKind::OwnBind { .. } | MountKind::Layers { .. }
    );
    if !mappable {
        return Err("id-mapped mounts are only supported for bind-mounts");
    }
    let mappings = match own {
        true => id_mappings(uid.as_deref(), gid.as_deref()),
        false => id_mappings(
            linux.and_then(|linux| linux.uid_mappings().as_deref()),
            linux.and_then(|linux| linux.gid_mappings().as_deref()),
        ),
    };
    // Those of a namespace that is joined need not be told.
    let joined = !own && linux.is_some_and(joins_users) && mappings == IdMappings::default();
    if !joined && (mappings.uid.is_empty() || mappings.gid.is_empty()) {
        return Err("id-mapped mounts must have both uid and gid mappings specified");
    }
    Ok(Some(MountIdmap {
        mappings,
        recursive: word == Some(true),
    }))
}

/// Maps as the specification has them, in the plan's form.
pub(in crate::oci) fn id_mappings(
    uid: Option<&[LinuxIdMapping]>,
    gid: Option<&[LinuxIdMapping]>,
) -> IdMappings {
    let lines = |map: Option<&[LinuxIdMapping]>| {
        let line = |line: &LinuxIdMapping| IdMapping {
            container: line.container_id(),
            host: line.host_id(),
            size: line.size(),
        };
        map.unwrap_or_default().iter().map(line).collect()
    };
    IdMappings {
        uid: lines(uid),
        gid: lines(gid),
    }
}
