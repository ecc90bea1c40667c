// SPDX-License-Identifier: Apache-2.0
//! The bundle of a container that another runtime makes: the spec as that runtime needs it.
//!
//! A spec of ours leaves to the launch what only we do: the root from layers, the pod's /dev/shm, the
//! default seccomp profile, limits that are kept with the record, mounts that are id-mapped. Here they
//! are written out. Pure, but for [`Target::prepare`] and [`pause`].

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use oci_spec::runtime::{LinuxSeccomp, Spec};
use serde_json::{Value, json};
use shim::plan::{
    CgroupJoin, IdMapping, LaunchPlan, Mount, MountAttrs, MountKind, Namespace, Namespaces,
    ProcessPlan, Propagation, PropagationChange, RootFs, UserNamespace,
};

use super::{Handler, place};
use crate::container::ContainerRecord;
use crate::fault::{Fault, Result};
use crate::nri::limits_in_spec;
use crate::oci::{self, SandboxInput};
use crate::sandbox::SandboxRecord;
use crate::server::sandbox_run::make_private_dir;
use crate::spec_edit::SpecEdit;
use crate::v1;

/// What runtimes of today all take.
const OCI_VERSION: &str = "1.0.2";
/// In the container's place: its root, and the pod's /dev/shm.
const ROOT: &str = "rootfs";
const SHM: &str = "shm";

/// What a spec does not say.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) spec: &'a Spec,
    /// Limits, as CRI has them now.
    pub(crate) limits: &'a v1::LinuxContainerResources,
    pub(crate) seccomp: Option<LinuxSeccomp>,
    pub(crate) cgroup: &'a str,
    /// Where the runtime finds its root and what we mount for it.
    pub(crate) place: &'a Path,
    /// Whether the container shares the pod's /dev/shm.
    pub(crate) shares_shm: bool,
    /// The client's annotations mean nothing to a runtime: some runtimes take orders in theirs.
    pub(crate) client_annotations: &'a HashMap<String, String>,
    /// What containerd tells runtimes in annotations.
    pub(crate) annotations: Vec<(&'static str, String)>,
    /// The least OOM score that this process may give.
    pub(crate) least_oom_score: i64,
}

impl<'a> Input<'a> {
    /// A spec that says everything.
    pub(crate) fn of(spec: &'a Spec) -> Self {
        static NONE: LazyLock<(v1::LinuxContainerResources, HashMap<String, String>)> =
            LazyLock::new(Default::default);
        Self {
            spec,
            limits: &NONE.0,
            seccomp: None,
            cgroup: "",
            place: Path::new(""),
            shares_shm: false,
            client_annotations: &NONE.1,
            annotations: Vec::new(),
            least_oom_score: crate::oom_score::least(),
        }
    }
}

/// What containerd tells runtimes: which pod this is, and what of it.
pub(crate) fn annotations(
    sandbox: &SandboxRecord,
    container: Option<&ContainerRecord>,
) -> Vec<(&'static str, String)> {
    let metadata = sandbox.config.0.metadata.clone().unwrap_or_default();
    let kind = container.map_or("sandbox", |_| "container");
    let mut all = vec![
        ("io.kubernetes.cri.container-type", kind.to_owned()),
        ("io.kubernetes.cri.sandbox-id", sandbox.id.clone()),
        ("io.kubernetes.cri.sandbox-name", metadata.name),
        ("io.kubernetes.cri.sandbox-namespace", metadata.namespace),
        ("io.kubernetes.cri.sandbox-uid", metadata.uid),
    ];
    if let Some(container) = container {
        let config = &container.config.0;
        let name = config.metadata.clone().unwrap_or_default().name;
        let image = config.image.clone().unwrap_or_default().image;
        all.push(("io.kubernetes.cri.container-name", name));
        all.push(("io.kubernetes.cri.image-name", image));
    }
    all
}

/// The config.json of a container, and what has to be mounted in its place.
///
/// # Errors
/// What an external runtime cannot do here, by name.
fn config(input: Input<'_>) -> Result<(Value, Vec<Mount>)> {
    let mut limited = limits_in_spec(input.spec, input.limits)?;
    let mut mounts = place::take_over(&mut limited, input.place)?;
    let mut edit = SpecEdit::new(&limited)?;
    edit.set(&["ociVersion"], OCI_VERSION);
    let rootfs = input.place.join(ROOT).display().to_string();
    edit.set(&["root", "path"], rootfs);
    edit.set(&["linux", "cgroupsPath"], input.cgroup);
    if let Some(profile) = input.seccomp {
        let profile = serde_json::to_value(profile)
            .map_err(|e| Fault::internal("encoding a seccomp profile", e))?;
        edit.set(&["linux", "seccomp"], profile);
    }
    if input.shares_shm {
        let mount = json!({
            "destination": "/dev/shm", "type": "bind", "source": input.place.join(SHM),
            "options": ["rbind", "nosuid", "noexec", "nodev"],
        });
        edit.put(&["mounts"], "destination", mount);
        mounts.push(pods_shm());
    }
    for (name, value) in input.client_annotations {
        if edit.get(&["annotations", name]).and_then(Value::as_str) == Some(value) {
            edit.unset(&["annotations", name]);
        }
    }
    for (name, value) in input.annotations {
        edit.set(&["annotations", name], value);
    }
    let score = edit
        .get(&["process", "oomScoreAdj"])
        .and_then(Value::as_i64);
    if let Some(score) = score.filter(|score| *score < input.least_oom_score) {
        tracing::debug!(
            score,
            least = input.least_oom_score,
            "an OOM score is clamped"
        );
        edit.set(&["process", "oomScoreAdj"], input.least_oom_score);
    }
    Ok((edit.into_value(), mounts))
}

/// A container that a handler is to make.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) handler: &'a Handler,
    pub(crate) id: &'a str,
    /// Has its config.json.
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: RootFs,
    pub(crate) joins: CgroupJoin,
}

impl Target<'_> {
    /// Writes the bundle, and makes the launch plan. Blocks.
    ///
    /// # Errors
    /// What the runtime cannot do here, by name; or the disk refuses.
    pub(crate) fn prepare(self, input: Input<'_>) -> Result<LaunchPlan> {
        let place = self.handler.place(self.bundle, self.id);
        let spec = input.spec;
        let rootfs_propagation = propagation(spec, self.handler.ids.is_some())?;
        let (config, mounts) = config(Input {
            place: &place,
            ..input
        })?;
        place::make(&place, self.handler.passable(), &[ROOT, SHM], &mounts)?;
        write(self.bundle, &config)?;
        let shows = mounts.iter().any(|mount| !is_sandboxs(mount));
        let process = spec.process().as_ref();
        let ids = self.handler.ids.as_ref().map(|mapped| mapped.ids.plan());
        Ok(LaunchPlan {
            rootfs_propagation,
            namespaces: Namespaces {
                pid: pid_namespace(spec),
                ..Namespaces::default()
            },
            cgroup: self.joins,
            // A directory is pause's, which needs no ids.
            rootfs_idmap: ids.filter(|_| matches!(self.rootfs, RootFs::Overlay { .. })),
            rootfs: self.rootfs,
            mounts,
            process: ProcessPlan {
                terminal: process.and_then(|p| p.terminal()).unwrap_or(false),
                ..ProcessPlan::default()
            },
            external: Some(self.handler.external(self.bundle, self.id, shows)),
            ..LaunchPlan::default()
        })
    }
}

/// How the mounts that we make for a runtime propagate: as the host's where one of them is to be seen
/// there, else not back to it.
fn propagation(spec: &Spec, own_ids: bool) -> Result<Option<PropagationChange>> {
    let mut mounts = spec.mounts().iter().flatten();
    let Some(mount) = mounts.find(|mount| oci::is_shared(mount)) else {
        return Ok(None);
    };
    if own_ids {
        // Nothing that is mounted in a user namespace goes back to the host (mount_namespaces(7)).
        return Err(Fault::invalid(format!(
            "mount {:?}: bidirectional propagation is not supported with an external runtime handler in a pod with ids of its own",
            mount.destination().display().to_string()
        )));
    }
    Ok(Some(PropagationChange {
        to: Propagation::Shared,
        recursive: true,
    }))
}

fn pods_shm() -> Mount {
    Mount {
        destination: format!("/{SHM}"),
        kind: MountKind::SandboxBind {
            source: "/dev/shm".to_owned(),
        },
        attrs: MountAttrs::default(),
        recursive_attrs: MountAttrs::default(),
        propagation: Vec::new(),
        idmap: None,
    }
}

fn is_sandboxs(mount: &Mount) -> bool {
    matches!(mount.kind, MountKind::SandboxBind { .. })
}

/// Whether the first process takes the others with it: only when it is the first of its namespace.
fn pid_namespace(spec: &Spec) -> Namespace {
    use oci_spec::runtime::LinuxNamespaceType;
    let linux = spec.linux().as_ref();
    let spaces = linux.and_then(|l| l.namespaces().as_ref());
    let mut spaces = spaces.into_iter().flatten();
    match spaces.find(|space| space.typ() == LinuxNamespaceType::Pid) {
        Some(space) if space.path().is_none() => Namespace::New,
        Some(_) => Namespace::Join(String::new()),
        None => Namespace::Host,
    }
}

fn write(bundle: &Path, config: &Value) -> Result<()> {
    make_private_dir(bundle)?;
    let path = bundle.join("config.json");
    let text =
        serde_json::to_vec(config).map_err(|e| Fault::internal("encoding an OCI spec", e))?;
    std::fs::write(&path, text)
        .map_err(|e| Fault::internal(format!("writing {}", path.display()), e))
}

/// Makes the bundle of a pod's sandbox process, and its launch plan. Blocks.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn pause(
    handler: &Handler,
    id: &str,
    input: &SandboxInput,
    cgroup: &str,
    annotations: Vec<(&'static str, String)>,
) -> Result<LaunchPlan> {
    let bundle = handler.bundle_of(id);
    let rootfs = bundle.join(ROOT);
    for dir in ["dev", "proc", "sys", ""].map(|name| rootfs.join(name)) {
        make_private_dir(&dir)?;
        open_to_all(&dir)?;
    }
    let copy = rootfs.join("pause");
    std::fs::copy(&input.pause, &copy)
        .map_err(|e| Fault::internal(format!("writing {}", copy.display()), e))?;
    let target = Target {
        handler,
        id,
        bundle: &bundle,
        rootfs: RootFs::Dir(rootfs.display().to_string()),
        joins: input.cgroup.clone(),
    };
    target.prepare(Input {
        cgroup,
        annotations,
        ..Input::of(&pause_spec(input)?)
    })
}

/// It is the pod's `/`: whoever is not root must get through.
fn open_to_all(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
        .map_err(|e| Fault::internal(format!("opening {}", dir.display()), e))
}

fn pause_spec(input: &SandboxInput) -> Result<Spec> {
    let mut edit = SpecEdit::new(&oci::spec::container_spec())?;
    edit.set(&["process", "args"], vec!["/pause"]);
    edit.set(&["process", "env"], vec!["HOME=/", "PATH=/"]);
    let user = oci::PAUSE_USER;
    edit.set(&["process", "user"], json!({"uid": user, "gid": user}));
    edit.set(&["process", "noNewPrivileges"], true);
    edit.set(&["process", "oomScoreAdj"], input.oom_score_adj);
    edit.unset(&["process", "capabilities"]);
    edit.set(&["root", "readonly"], true);
    let shm = json!({
        "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777", format!("size={}", input.shm_bytes)],
    });
    edit.put(&["mounts"], "destination", shm);
    let mut spaces = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    if let Some(netns) = &input.netns {
        spaces.push(json!({"type": "network", "path": netns}));
        spaces.push(json!({"type": "uts"}));
        edit.set(&["hostname"], input.hostname.as_str());
    }
    if !input.host_ipc {
        spaces.push(json!({"type": "ipc"}));
    }
    if let UserNamespace::Join { path, ids } = &input.users {
        spaces.push(json!({"type": "user", "path": path}));
        edit.set(&["linux", "uidMappings"], mappings(&ids.uid));
        edit.set(&["linux", "gidMappings"], mappings(&ids.gid));
    }
    // Only who owns its pid namespace may mount a proc of it.
    if input.share_pid || input.users != UserNamespace::Host {
        spaces.push(json!({"type": "pid"}));
    }
    edit.set(&["linux", "namespaces"], spaces);
    for (name, value) in &input.sysctls {
        edit.set(&["linux", "sysctl", name], value.as_str());
    }
    edit.finish("podwright")
}

fn mappings(ids: &[IdMapping]) -> Value {
    let line = |ids: &IdMapping| json!({"containerID": ids.container, "hostID": ids.host, "size": ids.size});
    ids.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(spec: &Spec) -> Input<'_> {
        Input {
            spec,
            limits: Box::leak(Box::new(v1::LinuxContainerResources {
                memory_limit_in_bytes: 77,
                ..Default::default()
            })),
            seccomp: None,
            cgroup: "/p/c",
            place: Path::new("/b"),
            shares_shm: true,
            client_annotations: Box::leak(Box::new(
                [("run.oci.handler".to_owned(), "x".to_owned())].into(),
            )),
            annotations: vec![("io.kubernetes.cri.sandbox-id", "s".to_owned())],
            least_oom_score: 0,
        }
    }

    #[test]
    fn a_config_says_what_our_own_launch_does() {
        let mut edit = SpecEdit::new(&oci::spec::container_spec()).unwrap();
        edit.set(&["process", "oomScoreAdj"], -998);
        edit.set(&["annotations", "run.oci.handler"], "x");
        edit.set(&["annotations", "of.a.plugin"], "y");
        let spec = edit.finish("a test").unwrap();
        let (value, mounts) = config(input(&spec)).unwrap();
        assert!(mounts.len() == 1 && is_sandboxs(&mounts[0]), "{mounts:?}");
        assert_eq!(value["annotations"]["of.a.plugin"], "y");
        assert_eq!(value["annotations"].get("run.oci.handler"), None);
        for (pointer, expected) in [
            ("/ociVersion", json!("1.0.2")),
            ("/root/path", json!("/b/rootfs")),
            ("/process/oomScoreAdj", json!(0)),
            ("/linux/cgroupsPath", json!("/p/c")),
            ("/linux/resources/memory/limit", json!(77)),
            ("/annotations/io.kubernetes.cri.sandbox-id", json!("s")),
        ] {
            assert_eq!(value.pointer(pointer), Some(&expected), "{pointer}");
        }
        let mounts = value["mounts"].as_array().unwrap();
        let shm: Vec<_> = mounts
            .iter()
            .filter(|m| m["destination"] == "/dev/shm")
            .collect();
        assert_eq!((shm.len(), &shm[0]["source"]), (1, &json!("/b/shm")));
    }

    #[test]
    fn what_the_host_sees_is_bound_by_us_or_refused_by_name() {
        let none = oci::spec::container_spec();
        assert_eq!(propagation(&none, true).unwrap(), None);
        let mut edit = SpecEdit::new(&none).unwrap();
        let mount = json!({"destination": "/m", "type": "bind", "source": "/h", "options": ["rbind", "rshared"]});
        edit.push(&["mounts"], mount);
        let spec = edit.finish("a test").unwrap();
        let change = propagation(&spec, false).unwrap();
        assert_eq!(change.map(|change| change.to), Some(Propagation::Shared));
        let (value, made) = config(input(&spec)).unwrap();
        assert!(
            made.iter().any(|mount| mount.kind == bind_of("/h")),
            "{made:?}"
        );
        let mounts = value["mounts"].as_array().unwrap();
        let bound = mounts.iter().find(|m| m["destination"] == "/m").unwrap();
        assert!(
            bound["source"].as_str().unwrap().starts_with("/b/mount"),
            "{bound}"
        );
        assert_eq!(bound["options"], json!(["rbind", "rshared"]));
        let error = propagation(&spec, true).unwrap_err().to_string();
        assert!(
            error.contains("\"/m\"") && error.contains("ids of its own"),
            "{error}"
        );
    }

    fn bind_of(source: &str) -> MountKind {
        MountKind::Bind {
            source: source.to_owned(),
            recursive: true,
        }
    }

    #[test]
    fn pause_has_the_pods_namespaces() {
        let spec = pause_spec(&SandboxInput {
            netns: Some("/run/netns/x".into()),
            hostname: "web".into(),
            share_pid: true,
            ..SandboxInput::default()
        })
        .unwrap();
        assert_eq!(pid_namespace(&spec), Namespace::New);
        assert_eq!(spec.hostname().as_deref(), Some("web"));
        let line = IdMapping {
            container: 0,
            host: 7,
            size: 9,
        };
        let mapped = pause_spec(&SandboxInput {
            users: UserNamespace::Join {
                path: "/u".into(),
                ids: shim::plan::IdMappings {
                    uid: vec![line],
                    gid: vec![line],
                },
            },
            ..SandboxInput::default()
        })
        .unwrap();
        assert_eq!(pid_namespace(&mapped), Namespace::New, "it mounts a proc");
        let linux = serde_json::to_value(mapped.linux()).unwrap();
        let expected = json!([{"containerID": 0, "hostID": 7, "size": 9}]);
        assert_eq!(
            (&linux["uidMappings"], &linux["gidMappings"]),
            (&expected, &expected)
        );
        let host = pause_spec(&SandboxInput::default()).unwrap();
        assert_eq!(
            (host.hostname(), pid_namespace(&host)),
            (&None, Namespace::Host)
        );
    }
}
