// SPDX-License-Identifier: Apache-2.0
//! The `mounts` part of a spec: fstab words become attributes, propagation, filesystem options.

use oci_spec::runtime::{Linux, LinuxIdMapping, Mount, Spec};
use shim::plan::{self, IdMapping, IdMappings, MountAttrs, MountIdmap, MountKind, Propagation};

use super::compile::{CompileContext, CompileError, invalid, unsupported};

pub(super) fn compile(
    spec: &Spec,
    context: &CompileContext,
) -> Result<Vec<plan::Mount>, CompileError> {
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let destination = destination(mount)?;
        let shared = |(_, to): &&(String, String)| clean(to) == clean(&destination);
        if let Some((source, _)) = context.sandbox_binds.iter().find(shared) {
            mounts.push(sandbox_bind(source, destination, words(mount)?.attrs));
        } else if mount.typ().as_deref() == Some("cgroup") {
            mounts.extend(cgroup(mount, destination, context)?);
        } else {
            mounts.push(one(mount, destination, spec.linux().as_ref())?);
        }
    }
    for (source, to) in &context.sandbox_binds {
        if !mounts.iter().any(|m| clean(&m.destination) == clean(to)) {
            let attrs = MountAttrs::default();
            mounts.push(sandbox_bind(source, to.clone(), attrs));
        }
    }
    Ok(mounts)
}

/// Whether the container brings its own directory for `path`.
pub(super) fn is_bound(mounts: &[plan::Mount], path: &str) -> bool {
    mounts.iter().any(|mount| {
        clean(&mount.destination) == path && matches!(mount.kind, MountKind::Bind { .. })
    })
}

fn clean(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" => "/",
        clean => clean,
    }
}

fn destination(mount: &Mount) -> Result<String, CompileError> {
    let path = mount.destination().to_string_lossy().into_owned();
    // runc accepts a relative destination and takes it from the root.
    match path.starts_with('/') {
        true => Ok(path),
        false => Ok(format!("/{path}")),
    }
}

fn sandbox_bind(source: &str, destination: String, attrs: MountAttrs) -> plan::Mount {
    plan::Mount {
        destination,
        kind: MountKind::SandboxBind {
            source: source.to_owned(),
        },
        attrs,
        propagation: None,
        idmap: None,
    }
}

/// The options of one mount, sorted by what they mean.
#[derive(Default)]
struct Words {
    attrs: MountAttrs,
    propagation: Option<Propagation>,
    bind: Option<bool>,
    /// `idmap`, or (true) `ridmap`.
    idmap: Option<bool>,
    filesystem: Vec<String>,
}

fn words(mount: &Mount) -> Result<Words, CompileError> {
    let mut words = Words::default();
    for option in mount.options().iter().flatten() {
        let attrs = &mut words.attrs;
        match option.as_str() {
            "ro" => attrs.readonly = true,
            "rw" => attrs.readonly = false,
            "rro" => {
                attrs.readonly = true;
                attrs.recursive_readonly = true;
            }
            "nosuid" => attrs.nosuid = true,
            "suid" => attrs.nosuid = false,
            "nodev" => attrs.nodev = true,
            "dev" => attrs.nodev = false,
            "noexec" => attrs.noexec = true,
            "exec" => attrs.noexec = false,
            "nosymfollow" => attrs.nosymfollow = true,
            "symfollow" => attrs.nosymfollow = false,
            "noatime" => attrs.noatime = true,
            "strictatime" => attrs.strictatime = true,
            "nodiratime" => attrs.nodiratime = true,
            "diratime" => attrs.nodiratime = false,
            // What the kernel does anyway.
            "relatime" | "norelatime" | "atime" | "nostrictatime" | "defaults" | "async" => {}
            "bind" => words.bind = words.bind.or(Some(false)),
            "rbind" => words.bind = Some(true),
            "private" | "rprivate" => words.propagation = Some(Propagation::Private),
            "slave" | "rslave" => words.propagation = Some(Propagation::Slave),
            "shared" | "rshared" => words.propagation = Some(Propagation::Shared),
            "unbindable" | "runbindable" => words.propagation = Some(Propagation::Unbindable),
            "idmap" => words.idmap = Some(false),
            "ridmap" => words.idmap = Some(true),
            "remount" | "tmpcopyup" | "rrw" | "rnosuid" | "rsuid" | "rnodev" | "rdev"
            | "rnoexec" | "rexec" | "rnoatime" | "ratime" | "rrelatime" => {
                let field = format!("mounts[{}].options", mount.destination().display());
                return Err(unsupported(field, format!("{option:?} is not done")));
            }
            other => words.filesystem.push(other.to_owned()),
        }
    }
    if words.attrs.noatime && words.attrs.strictatime {
        let field = format!("mounts[{}].options", mount.destination().display());
        return Err(invalid(field, "noatime contradicts strictatime"));
    }
    Ok(words)
}

fn one(
    mount: &Mount,
    destination: String,
    linux: Option<&Linux>,
) -> Result<plan::Mount, CompileError> {
    let words = words(mount)?;
    let field = |part: &str| format!("mounts[{destination}].{part}");
    let source = mount
        .source()
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned());
    let kind = match (mount.typ().as_deref(), words.bind) {
        (Some("bind"), None) => bind(source, true),
        (_, Some(recursive)) => bind(source, recursive),
        (None | Some("" | "none"), None) => {
            return Err(invalid(
                field("type"),
                "it is neither a bind nor a filesystem",
            ));
        }
        (Some(fstype), None) => Some(MountKind::Filesystem {
            fstype: fstype.to_owned(),
            source: source.unwrap_or_else(|| fstype.to_owned()),
            options: words.filesystem.clone(),
        }),
    };
    let kind = kind.ok_or_else(|| invalid(field("source"), "a bind needs an absolute path"))?;
    if let (MountKind::Bind { .. }, Some(option)) = (&kind, words.filesystem.first()) {
        let reason = format!("{option:?} means nothing for a bind mount");
        return Err(unsupported(field("options"), reason));
    }
    let idmap = idmap(mount, words.idmap, &kind, linux)
        .map_err(|reason| invalid(field("uidMappings"), reason))?;
    Ok(plan::Mount {
        destination,
        kind,
        attrs: words.attrs,
        propagation: words.propagation,
        idmap,
    })
}

/// The mount's own maps; for the words `idmap` and `ridmap` alone, the container's.
fn idmap(
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
    if !matches!(kind, MountKind::Bind { .. }) {
        return Err("id-mapped mounts are only supported for bind-mounts");
    }
    let mappings = match own {
        true => id_mappings(uid.as_deref(), gid.as_deref()),
        false => id_mappings(
            linux.and_then(|linux| linux.uid_mappings().as_deref()),
            linux.and_then(|linux| linux.gid_mappings().as_deref()),
        ),
    };
    if mappings.uid.is_empty() || mappings.gid.is_empty() {
        return Err("id-mapped mounts must have both uid and gid mappings specified");
    }
    Ok(Some(MountIdmap {
        mappings,
        recursive: word == Some(true),
    }))
}

/// Maps as the specification has them, in the plan's form.
pub(super) fn id_mappings(
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

fn bind(source: Option<String>, recursive: bool) -> Option<MountKind> {
    let source = source.filter(|source| source.starts_with('/'))?;
    Some(MountKind::Bind { source, recursive })
}

/// A `cgroup` mount: cgroup2 itself, or on v1 a tmpfs with the container's own directory of every
/// controller bound into it, so that no container sees another's.
fn cgroup(
    mount: &Mount,
    destination: String,
    context: &CompileContext,
) -> Result<Vec<plan::Mount>, CompileError> {
    let attrs = words(mount)?.attrs;
    let filesystem = |fstype: &str, options: Vec<String>| plan::Mount {
        destination: destination.clone(),
        kind: MountKind::Filesystem {
            fstype: fstype.to_owned(),
            source: "cgroup".to_owned(),
            options,
        },
        attrs,
        propagation: None,
        idmap: None,
    };
    if context.cgroup_v2 {
        return Ok(vec![filesystem("cgroup2", Vec::new())]);
    }
    let mut mounts = vec![filesystem(
        "tmpfs",
        vec!["mode=755".into(), "size=64k".into()],
    )];
    for dir in &context.cgroup.v1 {
        let controller = controller(dir);
        mounts.push(plan::Mount {
            destination: format!("{}/{controller}", clean(&destination)),
            kind: MountKind::Bind {
                source: dir.clone(),
                recursive: false,
            },
            attrs,
            propagation: None,
            idmap: None,
        });
    }
    Ok(mounts)
}

/// Hierarchies are mounted side by side: `/sys/fs/cgroup/<controllers>/<path of the cgroup>`.
fn controller(dir: &str) -> &str {
    const PARTS_OF_THE_ROOT: usize = 4;
    dir.split('/').nth(PARTS_OF_THE_ROOT).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mount(value: serde_json::Value) -> Result<plan::Mount, CompileError> {
        let mount: Mount = serde_json::from_value(value).expect("a mount");
        one(&mount, destination(&mount)?, None)
    }

    #[test]
    fn options_are_sorted_by_meaning() {
        let bound = mount(
            json!({"destination": "/data", "type": "bind", "source": "/srv",
            "options": ["rbind", "rslave", "ro", "nosuid"]}),
        )
        .expect("compiles");
        assert_eq!(bound.propagation, Some(Propagation::Slave));
        assert!(bound.attrs.readonly && bound.attrs.nosuid && !bound.attrs.nodev);
        let tmpfs = mount(json!({"destination": "/t", "type": "tmpfs",
            "options": ["size=1m", "noexec"]}))
        .expect("compiles");
        assert!(
            matches!(tmpfs.kind, MountKind::Filesystem { options, .. } if options == ["size=1m"])
        );
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
                "\"tmpcopyup\"",
            ),
            (
                json!({"destination": "/x", "source": "/s", "options": ["bind", "bogus"]}),
                "\"bogus\"",
            ),
        ] {
            let error = mount(value).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_v1_cgroup_mount_shows_only_the_containers_directories() {
        let cgroup_mount: Mount = serde_json::from_value(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]}))
        .expect("a mount");
        let mut context = CompileContext::default();
        context.cgroup.v1 = vec!["/sys/fs/cgroup/cpu,cpuacct/podwright/x".into()];
        let mounts = cgroup(&cgroup_mount, "/sys/fs/cgroup".into(), &context).expect("compiles");
        assert_eq!(mounts[1].destination, "/sys/fs/cgroup/cpu,cpuacct");
        assert!(mounts[1].attrs.readonly);
    }
}
