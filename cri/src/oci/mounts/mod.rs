// SPDX-License-Identifier: Apache-2.0
//! The `mounts` part of a spec: what is mounted where, with which attributes.

mod cgroup;
mod idmap;
mod words;

use std::path::Path;

use oci_spec::runtime::{Linux, Mount, Spec};
use shim::plan::{self, MountAttrs, MountKind, RootFs, path_in_root};

use super::compile::{CompileContext, CompileError, invalid, unsupported};
pub(super) use idmap::id_mappings;
pub use words::KNOWN;
use words::Words;
pub(super) use words::propagation;

/// The mounts of a container, and links that belong to them: (path, target).
#[derive(Default)]
pub(super) struct Mounts {
    pub mounts: Vec<plan::Mount>,
    pub links: Vec<(String, String)>,
}

pub(super) fn compile(spec: &Spec, context: &CompileContext) -> Result<Mounts, CompileError> {
    let mut all = Mounts::default();
    for mount in spec.mounts().iter().flatten() {
        let destination = destination(mount, &context.rootfs)?;
        let words = sorted(mount, &destination)?;
        let shared = |(_, to): &&(String, String)| path_in_root(to) == destination;
        if let Some((source, _)) = context.sandbox_binds.iter().find(shared) {
            all.mounts
                .push(sandbox_bind(source, destination, words.attrs));
        } else if mount.typ().as_deref() == Some("cgroup") && words.bind.is_none() {
            cgroup::compile(&destination, &words, spec, context, &mut all);
        } else {
            let mount = one(mount, destination, words, spec.linux().as_ref(), context)?;
            all.mounts.push(mount);
        }
    }
    for (source, to) in &context.sandbox_binds {
        let to = path_in_root(to);
        if !all.mounts.iter().any(|mount| mount.destination == to) {
            let attrs = MountAttrs::default();
            all.mounts.push(sandbox_bind(source, to, attrs));
        }
    }
    Ok(all)
}

/// A mount that other runtimes cannot make, or may not know how: with ids of its own, of layers that
/// do not fit into one mount(2), or one that the host sees. None for all others.
///
/// # Errors
/// As [`compile`].
pub(crate) fn made_by_us(
    mount: &Mount,
    linux: Option<&Linux>,
) -> Result<Option<plan::Mount>, CompileError> {
    let layers = mount.typ().as_deref() == Some("overlay");
    let mapped = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
    let shared = is_shared(mount);
    if !layers && !mapped && !shared {
        return Ok(None);
    }
    let context = CompileContext::default();
    let destination = destination(mount, &context.rootfs)?;
    let words = sorted(mount, &destination)?;
    let made = one(mount, destination, words, linux, &context)?;
    let of_layers = matches!(made.kind, MountKind::Layers { .. });
    Ok((of_layers || made.idmap.is_some() || shared).then_some(made))
}

/// Whether what is mounted in it is to be seen by the host.
pub(crate) fn is_shared(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|word| word == "shared" || word == "rshared")
}

/// Whether the container brings its own directory for `path`.
pub(super) fn is_bound(mounts: &[plan::Mount], path: &str) -> bool {
    let bind =
        |kind: &MountKind| matches!(kind, MountKind::Bind { .. } | MountKind::OwnBind { .. });
    mounts
        .iter()
        .any(|mount| mount.destination == path && bind(&mount.kind))
}

/// The path in the container, of a path that may be given as one of the host.
fn in_root(path: &str, rootfs: &RootFs) -> Option<String> {
    let RootFs::Dir(root) = rootfs else {
        return None;
    };
    let rest = Path::new(&path_in_root(path))
        .strip_prefix(root)
        .ok()?
        .to_owned();
    (root != "/").then(|| path_in_root(&rest.to_string_lossy()))
}

/// What may be mounted on inside /proc: files that lxcfs emulates, as runc has it. The launch
/// checks again, by what the path leads to.
const PROC_FILES: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

fn destination(mount: &Mount, rootfs: &RootFs) -> Result<String, CompileError> {
    let given = mount.destination().to_string_lossy();
    // runc accepts a relative destination and takes it from the root, and one below the root
    // filesystem's own path.
    let path = in_root(&given, rootfs).unwrap_or_else(|| path_in_root(&given));
    let refused = |reason| Err(invalid(format!("mounts[{given}].destination"), reason));
    if given.is_empty() || given.contains('\0') {
        return refused("it is empty or contains null byte");
    }
    if path == "/" {
        return refused("the mount point is on the top of rootfs");
    }
    match path.strip_prefix("/proc/") {
        Some(file) if !PROC_FILES.contains(&file) => {
            refused("it cannot be mounted because it is inside /proc")
        }
        _ => Ok(path),
    }
}

fn sorted(mount: &Mount, destination: &str) -> Result<Words, CompileError> {
    let options = mount.options().as_deref().unwrap_or_default();
    words::sort(options).map_err(|word| {
        let field = format!("mounts[{destination}].options");
        unsupported(field, format!("{word:?} is not done"))
    })
}

fn sandbox_bind(source: &str, destination: String, attrs: MountAttrs) -> plan::Mount {
    plan::Mount {
        destination,
        kind: MountKind::SandboxBind {
            source: source.to_owned(),
        },
        attrs,
        recursive_attrs: MountAttrs::default(),
        propagation: Vec::new(),
        idmap: None,
    }
}

fn one(
    mount: &Mount,
    destination: String,
    words: Words,
    linux: Option<&Linux>,
    context: &CompileContext,
) -> Result<plan::Mount, CompileError> {
    let field = |part: &str| format!("mounts[{destination}].{part}");
    let kind = kind(mount, &words, context).map_err(|(part, why)| invalid(field(part), why))?;
    let filesystem = matches!(
        kind,
        MountKind::Filesystem { .. } | MountKind::Layers { .. }
    );
    if let (false, Some(option)) = (filesystem, words.filesystem.first()) {
        let reason = format!("{option:?} means nothing for a bind mount");
        return Err(unsupported(field("options"), reason));
    }
    if words.copy_up && mount.typ().as_deref() != Some("tmpfs") {
        return Err(invalid(field("options"), "tmpcopyup needs type tmpfs"));
    }
    let idmap = idmap::compile(mount, words.idmap, &kind, linux)
        .map_err(|reason| invalid(field("uidMappings"), reason))?;
    // A new filesystem is one mount, for which recursive words say the same as the plain ones.
    let (attrs, recursive_attrs) = match filesystem {
        true => (
            words.attrs.then(words.recursive_attrs),
            MountAttrs::default(),
        ),
        false => (words.attrs, words.recursive_attrs),
    };
    Ok(plan::Mount {
        destination,
        kind,
        attrs,
        recursive_attrs,
        propagation: words.propagation,
        idmap,
    })
}

type Wrong = (&'static str, &'static str);

fn kind(mount: &Mount, words: &Words, context: &CompileContext) -> Result<MountKind, Wrong> {
    let source = mount.source().as_ref();
    let source = source.map(|path| path.to_string_lossy().into_owned());
    let fstype = mount.typ().as_deref().unwrap_or_default();
    let bind = words.bind.or((fstype == "bind").then_some(true));
    if source
        .as_deref()
        .is_some_and(|source| source.contains('\0'))
    {
        return Err(("source", "mount field contains null byte"));
    }
    if words.remount {
        return Ok(MountKind::Remount);
    }
    let Some(recursive) = bind else {
        return match fstype {
            "" | "none" => Err(("type", "it is neither a bind nor a filesystem")),
            "overlay" if layers(words).is_some() => Ok(MountKind::Layers {
                lower: layers(words).unwrap_or_default(),
            }),
            _ => Ok(MountKind::Filesystem {
                fstype: fstype.to_owned(),
                source: source.unwrap_or_else(|| fstype.to_owned()),
                options: [&words.superblock[..], &words.filesystem].concat(),
                copy_up: words.copy_up,
                fallback: None,
            }),
        };
    };
    let source = source
        .filter(|source| source.starts_with('/'))
        .ok_or(("source", "a bind needs an absolute path"))?;
    Ok(match in_root(&source, &context.rootfs) {
        // The container's own tree, as it is when this mount is made.
        Some(source) => MountKind::OwnBind { source, recursive },
        None => MountKind::Bind { source, recursive },
    })
}

/// An overlay of lower directories alone: the launch opens them one by one, so that any number fits
/// and they can be id-mapped.
fn layers(words: &Words) -> Option<Vec<String>> {
    let [only] = &words.filesystem[..] else {
        return None;
    };
    let lower = split_layers(only.strip_prefix("lowerdir=")?);
    (lower.len() > 1).then_some(lower)
}

/// Overlay's list: separated by colons, with a backslash before one that is part of a name.
fn split_layers(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' => all.push(String::new()),
            '\\' => all
                .last_mut()
                .expect("never empty")
                .extend(characters.next()),
            other => all.last_mut().expect("never empty").push(other),
        }
    }
    all
}

/// The option that names these layers, topmost first: the opposite of what a launch reads from it.
pub(crate) fn lowerdir(layers: &[std::path::PathBuf]) -> String {
    let escaped = layers.iter().map(|layer| {
        let path = layer.to_string_lossy();
        path.replace('\\', "\\\\").replace(':', "\\:")
    });
    format!("lowerdir={}", escaped.collect::<Vec<_>>().join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use shim::plan::Propagation;
    use shim::sys::mounts::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY};

    fn mount(value: serde_json::Value) -> Result<plan::Mount, CompileError> {
        let mount: Mount = serde_json::from_value(value).expect("a mount");
        let context = CompileContext {
            rootfs: RootFs::Dir("/bundle/rootfs".into()),
            ..CompileContext::default()
        };
        let destination = destination(&mount, &context.rootfs)?;
        let words = sorted(&mount, &destination)?;
        one(&mount, destination, words, None, &context)
    }

    #[test]
    fn options_are_sorted_by_meaning() {
        let bound = mount(
            json!({"destination": "/data", "type": "bind", "source": "/srv",
            "options": ["rbind", "rslave", "ro", "nosuid", "rnodev"]}),
        )
        .expect("compiles");
        assert_eq!(bound.propagation[0].to, Propagation::Slave);
        assert!(bound.propagation[0].recursive);
        assert_eq!(bound.attrs.set, ATTR_RDONLY | ATTR_NOSUID);
        assert_eq!(bound.recursive_attrs.set, ATTR_NODEV);
        let tmpfs = mount(json!({"destination": "/t", "type": "tmpfs",
            "options": ["size=1m", "rro", "tmpcopyup"]}))
        .expect("compiles");
        assert_eq!(tmpfs.attrs.set, ATTR_RDONLY);
        assert!(
            matches!(tmpfs.kind, MountKind::Filesystem { options, copy_up: true, .. } if options == ["size=1m"])
        );
    }

    #[test]
    fn lower_directories_alone_are_layers() {
        let paths = ["/a:b".into(), "/c\\d".into()];
        let options = ["ro".to_owned(), lowerdir(&paths)];
        let mounted = mount(
            json!({"destination": "/v", "type": "overlay", "source": "overlay",
            "options": options}),
        )
        .expect("compiles");
        assert_eq!(mounted.attrs.set, ATTR_RDONLY);
        let lower = vec!["/a:b".to_owned(), "/c\\d".to_owned()];
        assert_eq!(mounted.kind, MountKind::Layers { lower });
        let written = mount(json!({"destination": "/v", "type": "overlay",
            "options": ["lowerdir=/a:/b", "upperdir=/u", "workdir=/w"]}))
        .expect("compiles");
        assert!(matches!(written.kind, MountKind::Filesystem { .. }));
    }

    #[test]
    fn paths_below_the_root_filesystems_own_path_are_the_containers() {
        let bound = mount(json!({"destination": "/bundle/rootfs/../rootfs/data",
            "source": "/bundle/rootfs/tmp", "options": ["bind"]}));
        let bound = bound.expect("compiles");
        assert_eq!(bound.destination, "/data");
        assert!(matches!(bound.kind, MountKind::OwnBind { source, .. } if source == "/tmp"));
        let relative = mount(json!({"destination": "a/../../data", "source": "/srv",
            "options": ["bind"]}));
        assert_eq!(relative.expect("compiles").destination, "/data");
    }

    #[test]
    fn contradictions_and_unknown_words_are_named() {
        for (value, expected) in [
            (
                json!({"destination": "/x", "type": "bind", "source": "srv"}),
                "mounts[/x].source",
            ),
            (
                json!({"destination": "/x", "source": "/s", "options": ["bind", "tmpcopyup"]}),
                "tmpcopyup",
            ),
            (
                json!({"destination": "/x", "source": "/s", "options": ["bind", "bogus"]}),
                "\"bogus\"",
            ),
            (
                json!({"destination": "/x", "type": "ext4", "options": ["iversion"]}),
                "\"iversion\"",
            ),
            (
                json!({"destination": "/proc/../", "type": "tmpfs"}),
                "on the top of rootfs",
            ),
            (
                json!({"destination": "/proc/sys", "type": "tmpfs"}),
                "inside /proc",
            ),
        ] {
            let error = mount(value).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(
            mount(json!({"destination": "/proc/cpuinfo", "source": "/s",
            "options": ["bind"]}))
            .is_ok()
        );
    }
}
