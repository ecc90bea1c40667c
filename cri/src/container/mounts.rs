// SPDX-License-Identifier: Apache-2.0
//! A container's mounts: what CRI asks for, in the OCI spec's words.

use std::path::{Path, PathBuf};

use crate::fault::{Fault, Result};
use crate::image::merged::{self, Found};
use crate::v1;

/// A mount whose source is known to exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BindMount {
    pub(crate) source: PathBuf,
    /// Directories of an image that are merged, topmost first; `source` is not looked at then.
    pub(crate) layers: Vec<PathBuf>,
    /// Absolute.
    pub(crate) destination: String,
    /// In the OCI spec's words: `rbind`, `ro`, `rslave` and so on.
    pub(crate) options: Vec<String>,
    /// The ids that the files show inside, by those on disk; both or none.
    pub(crate) uids: Vec<v1::IdMapping>,
    pub(crate) gids: Vec<v1::IdMapping>,
}

/// What `mount_options` may say. Everything else has a field of its own, or would undo one.
const MOUNT_OPTIONS: [&str; 10] = [
    "noexec",
    "nosuid",
    "nodev",
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
    "nosymfollow",
    "exec",
    "dev",
];

/// Refuses what cannot be, by field name.
///
/// # Errors
/// Names the field.
pub(crate) fn check(mount: &v1::Mount) -> Result<()> {
    let at = &mount.container_path;
    let wrong = |what: String| Err(Fault::invalid(format!("mount at {at:?}: {what}")));
    if mount.container_path.is_empty() || mount.container_path.contains('\0') {
        return Err(Fault::invalid(format!(
            "mount of {:?}: container_path {at:?} is not a path",
            mount.host_path
        )));
    }
    match &mount.image {
        Some(image) => check_image(mount, image).or_else(wrong)?,
        None if !mount.image_sub_path.is_empty() => {
            return wrong("image_sub_path needs image".to_owned());
        }
        None if !mount.host_path.starts_with('/') => {
            return wrong(format!(
                "host_path {:?} is not an absolute path",
                mount.host_path
            ));
        }
        None => {}
    }
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return wrong("uidMappings and gidMappings need each other".to_owned());
    }
    let unknown = |option: &&String| !MOUNT_OPTIONS.contains(&option.as_str());
    if let Some(option) = mount.mount_options.iter().find(unknown) {
        return wrong(format!(
            "mount_options {option:?} is not one of {}",
            MOUNT_OPTIONS.join(", ")
        ));
    }
    if mount.recursive_read_only {
        if !mount.readonly {
            return wrong("recursive_read_only needs readonly".to_owned());
        }
        if mount.propagation() != v1::MountPropagation::PropagationPrivate {
            return wrong("recursive_read_only needs private propagation".to_owned());
        }
    }
    Ok(())
}

fn check_image(mount: &v1::Mount, image: &v1::ImageSpec) -> std::result::Result<(), String> {
    if image.image.is_empty() {
        return Err("image names no image".to_owned());
    }
    if !mount.host_path.is_empty() {
        return Err(format!(
            "image and host_path {:?} exclude each other",
            mount.host_path
        ));
    }
    if !mount.readonly {
        return Err("an image can be mounted readonly only".to_owned());
    }
    match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => Ok(()),
        _ => Err("an image has no propagation".to_owned()),
    }
}

/// The bind mount of a checked wish, once its source was resolved.
pub(crate) fn bind(mount: &v1::Mount, source: PathBuf) -> BindMount {
    let propagation = match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => "rprivate",
        v1::MountPropagation::PropagationHostToContainer => "rslave",
        v1::MountPropagation::PropagationBidirectional => "rshared",
    };
    let access = match (mount.readonly, mount.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let options = ["rbind", propagation, access].map(str::to_owned);
    BindMount {
        source,
        layers: Vec::new(),
        destination: normal(&mount.container_path),
        options: [&options[..], &mount.mount_options].concat(),
        uids: mount.uid_mappings.clone(),
        gids: mount.gid_mappings.clone(),
    }
}

/// The mount of an image's layers, topmost first: a merged directory, or a single one or a file of
/// it bound. `image_sub_path` is looked up in the merged tree, and leads nowhere else. Blocks on the
/// disk.
///
/// # Errors
/// When the path is not in the image, or is neither a directory nor a file.
pub(crate) fn of_image(mount: &v1::Mount, layers: &[PathBuf]) -> Result<BindMount> {
    let (at, path) = (&mount.container_path, &mount.image_sub_path);
    let attempt = format!("mount at {at:?}: image_sub_path {path:?}");
    let found = merged::find(layers, Path::new(path));
    let found = found.map_err(|e| Fault::internal(attempt.clone(), e))?;
    let not_there = || Fault::invalid(format!("{attempt} is not in the image"));
    match found.ok_or_else(not_there)? {
        Found::Directory(mut merged) if merged.len() == 1 => Ok(bind(mount, merged.remove(0))),
        Found::Directory(merged) => Ok(BindMount {
            layers: merged,
            ..bind(mount, PathBuf::new())
        }),
        Found::Other(file) if file.symlink_metadata().is_ok_and(|m| m.is_file()) => {
            Ok(bind(mount, file))
        }
        Found::Other(_) => Err(Fault::invalid(format!(
            "{attempt} is neither a directory nor a file"
        ))),
    }
}

/// An absolute path without empty or `.` parts. `..` stays: the launch resolves it beneath the root.
pub(crate) fn normal(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .collect();
    format!("/{}", parts.join("/"))
}

/// Shallow destinations first, so that a mount never hides one made before it; the order of equals stays.
pub(crate) fn sort(mounts: &mut [BindMount]) {
    mounts.sort_by_key(|m| m.destination.split('/').filter(|p| !p.is_empty()).count());
}

/// How the mount below `path` propagates, out of the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Propagates {
    pub(crate) shared: bool,
    pub(crate) slave: bool,
}

/// Whether the host's mount under `source` can do what `wanted` needs.
///
/// # Errors
/// In containerd's words, when it is not shared (Bidirectional) or neither shared nor slave (HostToContainer).
pub(crate) fn check_propagation(
    wanted: v1::MountPropagation,
    source: &Path,
    mountinfo: &str,
) -> Result<()> {
    if wanted == v1::MountPropagation::PropagationPrivate {
        return Ok(());
    }
    let (mount_point, seen) = mount_of(source, mountinfo).ok_or_else(|| {
        Fault::invalid(format!(
            "no mount of this machine holds {}",
            source.display()
        ))
    })?;
    let (fits, needs) = match wanted {
        v1::MountPropagation::PropagationBidirectional => (seen.shared, "a shared mount"),
        _ => (seen.shared || seen.slave, "a shared or slave mount"),
    };
    if fits {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "path {:?} is mounted on {mount_point:?} but it is not {needs}",
        source.display().to_string()
    )))
}

fn mount_of(path: &Path, mountinfo: &str) -> Option<(String, Propagates)> {
    let mut best: Option<(String, Propagates)> = None;
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4).map(unescape) else {
            continue;
        };
        let optional: Vec<&str> = fields.skip(1).take_while(|f| *f != "-").collect();
        // Later lines were mounted later, so they win among equals.
        let longer = best.as_ref().is_none_or(|(b, _)| point.len() >= b.len());
        if longer && path.starts_with(&point) {
            let has = |word: &str| optional.iter().any(|f| f.starts_with(word));
            let propagates = Propagates {
                shared: has("shared:"),
                slave: has("master:"),
            };
            best = Some((point, propagates));
        }
    }
    best
}

fn unescape(field: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 8:2 / /data rw shared:7 - ext4 /dev/sdb rw
3 2 8:3 / /data/in\\040side rw master:7 - ext4 /dev/sdc rw
";

    fn mount(path: &str) -> v1::Mount {
        v1::Mount {
            container_path: path.into(),
            host_path: "/src".into(),
            ..Default::default()
        }
    }

    #[test]
    fn wishes_become_options() {
        let mut wish = mount("var//./x/");
        assert_eq!(bind(&wish, "/src".into()).destination, "/var/x");
        assert_eq!(
            bind(&wish, "/src".into()).options,
            ["rbind", "rprivate", "rw"]
        );
        wish.readonly = true;
        wish.recursive_read_only = true;
        assert!(check(&wish).is_ok());
        assert_eq!(bind(&wish, "/src".into()).options[2], "rro");
        wish.propagation = v1::MountPropagation::PropagationHostToContainer as i32;
        assert!(check(&wish).is_err());
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let mut wish = mount("/x");
        wish.uid_mappings = vec![v1::IdMapping::default()];
        assert!(
            check(&wish)
                .unwrap_err()
                .to_string()
                .contains("uidMappings")
        );
        let mut relative = mount("/x");
        relative.host_path = "src".into();
        assert!(check(&relative).is_err());
    }

    #[test]
    fn an_image_is_mounted_readonly_and_alone() {
        let mut wish = mount("/x");
        wish.image = Some(v1::ImageSpec {
            image: "data:1".into(),
            ..Default::default()
        });
        let refused = |wish: &v1::Mount| check(wish).unwrap_err().to_string();
        assert!(refused(&wish).contains("host_path"));
        wish.host_path.clear();
        assert!(refused(&wish).contains("readonly"));
        wish.readonly = true;
        assert!(check(&wish).is_ok());
        wish.image = None;
        wish.host_path = "/src".into();
        wish.image_sub_path = "etc".into();
        assert!(refused(&wish).contains("image_sub_path"));
    }

    #[test]
    fn a_sub_path_stays_in_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let layers = ["a", "b"].map(|name| dir.path().join(name));
        for layer in &layers {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        std::fs::create_dir(layers[1].join("only")).unwrap();
        std::fs::write(layers[1].join("etc/passwd"), "").unwrap();
        std::os::unix::fs::symlink("/tmp", layers[0].join("out")).unwrap();
        let place = |path: &str| {
            let mut wish = mount("/x");
            wish.readonly = true;
            wish.image_sub_path = path.into();
            of_image(&wish, &layers)
        };
        assert_eq!(place("").unwrap().layers, layers);
        assert_eq!(place("only").unwrap().source, layers[1].join("only"));
        let file = place("../../etc/passwd").unwrap();
        assert_eq!(file.source, layers[1].join("etc/passwd"));
        for absent in ["out", "etc/none", "etc/passwd/x"] {
            let error = place(absent).unwrap_err().to_string();
            assert!(error.contains("image_sub_path"), "{error}");
        }
    }

    #[test]
    fn options_are_of_a_list() {
        let mut wish = mount("/x");
        wish.mount_options = vec!["noexec".into()];
        assert!(check(&wish).is_ok());
        assert_eq!(bind(&wish, "/src".into()).options[3], "noexec");
        wish.mount_options.push("rw".into());
        assert!(check(&wish).unwrap_err().to_string().contains("\"rw\""));
    }

    #[test]
    fn parents_come_before_children() {
        let mut mounts: Vec<BindMount> = ["/a/b/c", "/a", "/b/c"]
            .map(|p| bind(&mount(p), "/src".into()))
            .to_vec();
        sort(&mut mounts);
        let order: Vec<&str> = mounts.iter().map(|m| m.destination.as_str()).collect();
        assert_eq!(order, ["/a", "/b/c", "/a/b/c"]);
    }

    #[test]
    fn propagation_is_checked_against_the_mount_below() {
        use v1::MountPropagation::{
            PropagationBidirectional as Both, PropagationHostToContainer as In,
        };
        let check = |wanted, path: &str| check_propagation(wanted, Path::new(path), MOUNTINFO);
        assert!(check(Both, "/data/x").is_ok());
        assert!(check(Both, "/data/in side/x").is_err());
        assert!(check(In, "/data/in side/x").is_ok());
        let error = check(In, "/home").unwrap_err().to_string();
        assert_eq!(
            error,
            "path \"/home\" is mounted on \"/\" but it is not a shared or slave mount"
        );
    }
}
