// SPDX-License-Identifier: Apache-2.0
//! Where an external runtime finds what only we can mount: the root of a container with ids of its
//! own, its id-mapped volumes, the merged layers of an image, and volumes that the host sees: the
//! runtime's own mount namespace is cut off from the host's, and what we mount there is not.
//!
//! Such a runtime sets a container up as root of the pod's user namespace, to whom our directories
//! are closed. So for pods with ids of their own the mount points lie in directories that anybody may
//! pass through and nobody may list (0711), as containerd has them. What is mounted there is seen by
//! the runtime and its container only.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use oci_spec::runtime::{Mount as OciMount, Spec};
use shim::plan::{Mount, MountAttrs, MountKind};

use crate::fault::{Fault, Result};
use crate::oci;

/// For directories that are passed through, and for all others.
const PASSABLE: u32 = 0o711;
const PRIVATE: u32 = 0o700;

/// Has the mounts of a spec that a runtime cannot make, or may not know how (id-mapped ones, the layers
/// of an image, those that the host sees) bound from `place`. Returns what has to be mounted there.
///
/// # Errors
/// Mounts that cannot be, by their destination.
pub(super) fn take_over(spec: &mut Spec, place: &Path) -> Result<Vec<Mount>> {
    let linux = spec.linux().clone();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let mut taken = Vec::new();
    for (number, mount) in mounts.iter_mut().enumerate() {
        let made = oci::made_by_us(mount, linux.as_ref());
        let Some(made) = made.map_err(|e| Fault::invalid(e.to_string()))? else {
            continue;
        };
        let name = format!("/mount{number}");
        bind_from(mount, &place.join(&name[1..]));
        taken.push(Mount {
            destination: name,
            // These are the runtime's to set, on its own bind.
            attrs: MountAttrs::default(),
            recursive_attrs: MountAttrs::default(),
            propagation: Vec::new(),
            ..made
        });
    }
    spec.set_mounts(Some(mounts));
    Ok(taken)
}

fn bind_from(mount: &mut OciMount, source: &Path) {
    let ours = |word: &String| word.starts_with("lowerdir=") || word == "idmap" || word == "ridmap";
    let mut options = mount.options().clone().unwrap_or_default();
    options.retain(|word| !ours(word));
    if !options.iter().any(|word| word == "bind" || word == "rbind") {
        options.insert(0, "rbind".to_owned());
    }
    mount
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options))
        .set_uid_mappings(None)
        .set_gid_mappings(None);
}

/// Makes a place, with a point for each mount. `run` is the node's runtime directory, where it has to
/// be passable. Blocks.
///
/// # Errors
/// When the disk refuses, or the runtime directory cannot be reached by others.
pub(super) fn make(
    place: &Path,
    run: Option<&Path>,
    names: &[&str],
    mounts: &[Mount],
) -> Result<()> {
    let mode = if run.is_some() { PASSABLE } else { PRIVATE };
    directory(place, mode)?;
    for name in names {
        directory(&place.join(name), mode)?;
    }
    for mount in mounts {
        let point = place.join(mount.destination.trim_start_matches('/'));
        match &mount.kind {
            MountKind::Bind { source, .. } if !Path::new(source).is_dir() => {
                std::fs::write(&point, "")
                    .map_err(|e| Fault::internal(format!("creating {}", point.display()), e))?;
            }
            _ => directory(&point, mode)?,
        }
    }
    run.map_or(Ok(()), |run| open_the_way(place, run))
}

fn directory(dir: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .map_err(|e| Fault::internal(format!("creating {}", dir.display()), e))
}

/// Lets others pass through the node's own directories. Those above are not ours to change.
fn open_the_way(place: &Path, run: &Path) -> Result<()> {
    for dir in place.ancestors() {
        let attempt = |e| Fault::internal(format!("opening {} to others", dir.display()), e);
        let mode = std::fs::metadata(dir)
            .map_err(attempt)?
            .permissions()
            .mode();
        if mode & 0o001 != 0 {
            continue;
        }
        if !dir.starts_with(run) {
            return Err(Fault::precondition(format!(
                "a pod with ids of its own and an external runtime handler has its root filesystem below {:?}, and only root may enter {:?}: let others pass through it (chmod o+x)",
                run.display().to_string(),
                dir.display().to_string()
            )));
        }
        std::fs::set_permissions(dir, Permissions::from_mode(mode | 0o011)).map_err(attempt)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec_edit::SpecEdit;

    fn spec(mounts: &[serde_json::Value]) -> Spec {
        let mut edit = SpecEdit::new(&oci::spec::container_spec()).unwrap();
        edit.set(&["mounts"], mounts.to_vec());
        edit.finish("a test").unwrap()
    }

    #[test]
    fn what_needs_us_is_bound_from_the_place() {
        let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let mut spec = spec(&[
            json!({"destination": "/plain", "type": "bind", "source": "/p", "options": ["rbind", "ro"]}),
            json!({"destination": "/data", "type": "bind", "source": "/d", "options": ["rbind", "rslave", "ro"],
                   "uidMappings": ids, "gidMappings": ids}),
            json!({"destination": "/image", "type": "overlay", "source": "overlay", "options": ["ro", "lowerdir=/a:/b"]}),
        ]);
        let taken = take_over(&mut spec, Path::new("/place")).unwrap();
        let kinds: Vec<_> = taken.iter().map(|mount| &mount.kind).collect();
        let (source, lower) = ("/d".to_owned(), ["/a", "/b"].map(str::to_owned).to_vec());
        let recursive = true;
        assert_eq!(
            kinds,
            [
                &MountKind::Bind { source, recursive },
                &MountKind::Layers { lower }
            ]
        );
        assert!(taken[0].idmap.is_some() && taken[1].idmap.is_none());
        let mounts = serde_json::to_value(spec.mounts()).unwrap();
        let expected = [
            json!({"destination": "/plain", "type": "bind", "source": "/p", "options": ["rbind", "ro"]}),
            json!({"destination": "/data", "type": "bind", "source": "/place/mount1", "options": ["rbind", "rslave", "ro"]}),
            json!({"destination": "/image", "type": "bind", "source": "/place/mount2", "options": ["rbind", "ro"]}),
        ];
        assert_eq!(mounts, json!(expected));
    }

    #[test]
    fn others_pass_through_a_place_or_are_told_why_not() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        directory(&run, PRIVATE).unwrap();
        std::fs::set_permissions(root.path(), Permissions::from_mode(PRIVATE)).unwrap();
        let place = run.join("cri/roots/pod/c");
        let error = make(&place, Some(&run), &["rootfs"], &[]).unwrap_err();
        assert!(error.to_string().contains("chmod o+x"), "{error}");
        std::fs::set_permissions(root.path(), Permissions::from_mode(PASSABLE)).unwrap();
        make(&place, Some(&run), &["rootfs"], &[]).unwrap();
        for dir in [&run, &place, &place.join("rootfs")] {
            let mode = std::fs::metadata(dir).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, PASSABLE, "{dir:?}");
        }
        let bundle = root.path().join("bundle");
        make(&bundle, None, &["rootfs"], &[]).unwrap();
        let mode = std::fs::metadata(&bundle).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, PRIVATE);
    }
}
