// SPDX-License-Identifier: Apache-2.0
//! The bundle of a container that another runtime makes: the spec as that runtime needs it.
//!
//! A spec of ours leaves to the launch what only we do: the root from layers, the pod's /dev/shm, the
//! default seccomp profile, limits that are kept with the record. Here they are written out. Pure,
//! but for [`write`] and [`pause`].

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, Spec};
use serde_json::{Value, json};
use shim::plan::{
    LaunchPlan, Mount, MountAttrs, MountKind, Namespace, Namespaces, ProcessPlan, RootFs,
};

use super::Handler;
use crate::container::ContainerRecord;
use crate::fault::{Fault, Result};
use crate::nri::limits_in_spec;
use crate::oci::{self, SandboxInput};
use crate::sandbox::SandboxRecord;
use crate::spec_edit::SpecEdit;
use crate::v1;

/// What runtimes of today all take.
const OCI_VERSION: &str = "1.0.2";
/// The directory of the pod's /dev/shm in the bundle.
const SHM: &str = "shm";
/// What mount(2) takes of a filesystem's options: a page, with a zero at its end.
const MOUNT_DATA_MAX: usize = 4095;

/// What a spec does not say.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) spec: &'a Spec,
    /// Limits, as CRI has them now.
    pub(crate) limits: &'a v1::LinuxContainerResources,
    pub(crate) seccomp: Option<LinuxSeccomp>,
    pub(crate) cgroup: &'a str,
    /// The bundle's directory, when the container shares the pod's /dev/shm.
    pub(crate) shm_in: Option<&'a Path>,
    /// The client's annotations mean nothing to a runtime: some runtimes take orders in theirs.
    pub(crate) client_annotations: &'a HashMap<String, String>,
    /// What containerd tells runtimes in annotations.
    pub(crate) annotations: Vec<(&'static str, String)>,
    /// The least OOM score that this process may give.
    pub(crate) least_oom_score: i64,
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

/// The config.json of a container.
///
/// # Errors
/// What an external runtime cannot do here, by name.
pub(crate) fn config(input: Input<'_>) -> Result<Value> {
    let limited = limits_in_spec(input.spec, input.limits)?;
    refuse(&limited)?;
    let mut edit = SpecEdit::new(&limited)?;
    edit.set(&["ociVersion"], OCI_VERSION);
    edit.set(&["root", "path"], "rootfs");
    edit.set(&["linux", "cgroupsPath"], input.cgroup);
    if let Some(profile) = input.seccomp {
        let profile = serde_json::to_value(profile)
            .map_err(|e| Fault::internal("encoding a seccomp profile", e))?;
        edit.set(&["linux", "seccomp"], profile);
    }
    if let Some(bundle) = input.shm_in {
        let mount = json!({
            "destination": "/dev/shm", "type": "bind", "source": bundle.join(SHM),
            "options": ["rbind", "nosuid", "noexec", "nodev"],
        });
        edit.put(&["mounts"], "destination", mount);
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
    Ok(edit.into_value())
}

fn refuse(spec: &Spec) -> Result<()> {
    for mount in spec.mounts().iter().flatten() {
        let options = mount.options().iter().flatten();
        if options.clone().any(|o| o == "rshared" || o == "shared") {
            return Err(Fault::invalid(format!(
                "mount {:?}: bidirectional propagation is not supported with an external runtime handler",
                mount.destination().display().to_string()
            )));
        }
        // An image volume: these runtimes mount it as it stands, all options at once.
        let length: usize = options.map(|option| option.len() + 1).sum();
        if mount.typ().as_deref() == Some("overlay") && length > MOUNT_DATA_MAX {
            return Err(Fault::invalid(format!(
                "mount {:?}: an image of so many layers does not fit into one mount(2), by which external runtime handlers mount it",
                mount.destination().display().to_string()
            )));
        }
        if mount.uid_mappings().is_some() {
            return Err(Fault::invalid(format!(
                "mount {:?}: uidMappings are not supported with an external runtime handler",
                mount.destination().display().to_string()
            )));
        }
    }
    Ok(())
}

/// The launch plan of a container whose config.json is in `bundle`.
pub(crate) fn plan(
    handler: &Handler,
    bundle: &Path,
    id: &str,
    spec: &Spec,
    (rootfs, cgroup): (RootFs, shim::plan::CgroupJoin),
    shares_shm: bool,
) -> LaunchPlan {
    let process = spec.process().as_ref();
    let shm = Mount {
        destination: format!("/{SHM}"),
        kind: MountKind::SandboxBind {
            source: "/dev/shm".to_owned(),
        },
        attrs: MountAttrs::default(),
        recursive_attrs: MountAttrs::default(),
        propagation: Vec::new(),
        idmap: None,
    };
    LaunchPlan {
        namespaces: Namespaces {
            pid: pid_namespace(spec),
            ..Namespaces::default()
        },
        cgroup,
        rootfs,
        mounts: shares_shm.then_some(shm).into_iter().collect(),
        process: ProcessPlan {
            terminal: process.and_then(|p| p.terminal()).unwrap_or(false),
            ..ProcessPlan::default()
        },
        external: Some(handler.external(bundle, id)),
        ..LaunchPlan::default()
    }
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

/// Makes the places in a bundle that mounts go to, and writes config.json. Blocks.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn write(bundle: &Path, config: &Value) -> Result<()> {
    for dir in ["rootfs", SHM] {
        crate::server::sandbox_run::make_private_dir(&bundle.join(dir))?;
    }
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
    let spec = pause_spec(input)?;
    let value = config(Input {
        spec: &spec,
        limits: &v1::LinuxContainerResources::default(),
        seccomp: None,
        cgroup,
        shm_in: None,
        client_annotations: &HashMap::new(),
        annotations,
        least_oom_score: crate::oom_score::least(),
    })?;
    write(&bundle, &value)?;
    let rootfs = bundle.join("rootfs");
    for dir in ["dev", "proc", "sys"] {
        crate::server::sandbox_run::make_private_dir(&rootfs.join(dir))?;
    }
    open_to_all(&rootfs)?;
    let copy = rootfs.join("pause");
    std::fs::copy(&input.pause, &copy)
        .map_err(|e| Fault::internal(format!("writing {}", copy.display()), e))?;
    let place = (RootFs::Empty, input.cgroup.clone());
    Ok(plan(handler, &bundle, id, &spec, place, false))
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
    if input.share_pid {
        spaces.push(json!({"type": "pid"}));
    }
    edit.set(&["linux", "namespaces"], spaces);
    for (name, value) in &input.sysctls {
        edit.set(&["linux", "sysctl", name], value.as_str());
    }
    edit.finish("podwright")
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
            shm_in: Some(Path::new("/b")),
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
        let value = config(input(&spec)).unwrap();
        assert_eq!(value["annotations"]["of.a.plugin"], "y");
        assert_eq!(value["annotations"].get("run.oci.handler"), None);
        for (pointer, expected) in [
            ("/ociVersion", json!("1.0.2")),
            ("/root/path", json!("rootfs")),
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
    fn what_cannot_be_done_is_refused_by_name() {
        let mut edit = SpecEdit::new(&oci::spec::container_spec()).unwrap();
        let mount = json!({"destination": "/m", "type": "bind", "options": ["rshared"]});
        edit.push(&["mounts"], mount);
        let spec = edit.finish("a test").unwrap();
        let error = config(input(&spec)).unwrap_err().to_string();
        assert!(
            error.contains("\"/m\"") && error.contains("propagation"),
            "{error}"
        );
        let volume = |layers: usize| {
            let mut edit = SpecEdit::new(&oci::spec::container_spec()).unwrap();
            let lower = format!("lowerdir={}", vec!["x".repeat(99); layers].join(":"));
            let mount = json!({"destination": "/v", "type": "overlay", "options": ["ro", lower]});
            edit.push(&["mounts"], mount);
            let spec = edit.finish("a test").unwrap();
            config(input(&spec)).map_err(|fault| fault.to_string())
        };
        assert!(volume(40).is_ok());
        let error = volume(41).unwrap_err();
        assert!(
            error.contains("\"/v\"") && error.contains("layers"),
            "{error}"
        );
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
        let host = pause_spec(&SandboxInput::default()).unwrap();
        assert_eq!(
            (host.hostname(), pid_namespace(&host)),
            (&None, Namespace::Host)
        );
    }
}
