// SPDX-License-Identifier: Apache-2.0
//! The OCI spec of a container: the runtime's defaults, changed by what CRI says. Pure; everything
//! that needs the disk was looked up before.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities as OciCapabilities, Capability, LinuxCapabilities, LinuxDevice, LinuxDeviceCgroup,
    LinuxNamespace, LinuxNamespaceType, Mount, Spec, User as OciUser,
};

use super::capability::Capabilities;
use super::mounts::BindMount;
use super::user::User;
use crate::fault::{Fault, Result};
use crate::sandbox::userns;
use crate::{oci, oom_score, v1};

/// All that decides a container's spec.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) security: &'a v1::LinuxContainerSecurityContext,
    pub(crate) namespaces: Joined,
    /// The ids of the pod's user namespace; none with the node's.
    pub(crate) ids: Option<userns::Ids>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) tty: bool,
    pub(crate) user: &'a User,
    pub(crate) capabilities: Capabilities,
    /// Mounts of the pod and the files of the sandbox, in order.
    pub(crate) mounts: Vec<BindMount>,
    pub(crate) devices: Vec<(LinuxDevice, LinuxDeviceCgroup)>,
    pub(crate) apparmor: Option<String>,
    pub(crate) oom_score_adj: i64,
    pub(crate) cgroup: &'a str,
    pub(crate) annotations: &'a std::collections::HashMap<String, String>,
}

/// Which namespaces a container joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joined {
    /// The pod's network namespace, or none for the host's.
    pub(crate) net: Option<PathBuf>,
    /// The pod's IPC namespace, or none for the host's.
    pub(crate) ipc: Option<PathBuf>,
    /// The pod's UTS namespace.
    pub(crate) uts: PathBuf,
    /// The sandbox's user namespace.
    pub(crate) user: PathBuf,
    pub(crate) pid: PidNamespace,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PidNamespace {
    Own,
    Host,
    Join(PathBuf),
}

/// Decides the namespaces. `target` is the running first process of the container that TARGET names.
///
/// # Errors
/// When TARGET is asked for and there is no such process.
pub(crate) fn joined(
    options: &v1::NamespaceOption,
    sandbox: &v1::NamespaceOption,
    pause: u32,
    target: Option<u32>,
) -> Result<Joined> {
    let ns = |pid: u32, name: &str| PathBuf::from(format!("/proc/{pid}/ns/{name}"));
    let host = |mode: v1::NamespaceMode| mode == v1::NamespaceMode::Node;
    let pid = match options.pid() {
        v1::NamespaceMode::Container => PidNamespace::Own,
        v1::NamespaceMode::Node => PidNamespace::Host,
        v1::NamespaceMode::Pod if host(sandbox.pid()) => PidNamespace::Host,
        // Pause is the first process of a pid namespace only if the sandbox asked for it.
        v1::NamespaceMode::Pod if sandbox.pid() != v1::NamespaceMode::Pod => {
            return Err(Fault::invalid(
                "namespace_options.pid POD: the sandbox has no pid namespace to share",
            ));
        }
        v1::NamespaceMode::Pod => PidNamespace::Join(ns(pause, "pid")),
        v1::NamespaceMode::Target => PidNamespace::Join(ns(
            target.ok_or_else(|| {
                Fault::invalid(format!(
                    "namespace_options.target_id {:?} is not a running container of this pod",
                    options.target_id
                ))
            })?,
            "pid",
        )),
    };
    Ok(Joined {
        net: (!host(sandbox.network())).then(|| ns(pause, "net")),
        ipc: (!host(sandbox.ipc())).then(|| ns(pause, "ipc")),
        uts: ns(pause, "uts"),
        user: userns::path(pause),
        pid,
    })
}

/// Builds the spec.
///
/// # Errors
/// When a capability is unknown to the OCI vocabulary.
pub(crate) fn build(input: Input<'_>) -> Result<Spec> {
    let mut spec = oci::spec::container_spec();
    if input.security.privileged {
        oci::spec::privileged(&mut spec);
    }
    process(&mut spec, &input)?;
    linux(&mut spec, &input);
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_readonly(Some(input.security.readonly_rootfs));
    spec.set_root(Some(root));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|m| {
        !input
            .mounts
            .iter()
            .any(|own| Path::new(&own.destination) == m.destination())
    });
    mounts.extend(input.mounts.iter().map(oci_mount));
    spec.set_mounts(Some(mounts));
    spec.set_hostname(None);
    spec.set_annotations(Some(input.annotations.clone()));
    Ok(spec)
}

fn process(spec: &mut Spec, input: &Input<'_>) -> Result<()> {
    let mut process = spec.process().clone().unwrap_or_default();
    let mut user = OciUser::default();
    user.set_uid(input.user.uid)
        .set_gid(input.user.gid)
        .set_additional_gids(Some(input.user.groups.clone()));
    let mut env = input.env.clone();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", input.user.home));
    }
    process
        .set_args(Some(input.args.clone()))
        .set_env(Some(env))
        .set_cwd(PathBuf::from(&input.cwd))
        .set_terminal(Some(input.tty))
        .set_user(user)
        .set_no_new_privileges(Some(input.security.no_new_privs))
        .set_apparmor_profile(input.apparmor.clone());
    // Also when it is zero: without one of its own, it would have the shim's.
    process.set_oom_score_adj(Some(oom_score::checked(input.oom_score_adj)?));
    if !input.security.privileged {
        process.set_capabilities(Some(capabilities(&input.capabilities)?));
    }
    spec.set_process(Some(process));
    Ok(())
}

fn capabilities(wanted: &Capabilities) -> Result<LinuxCapabilities> {
    let set = |names: &std::collections::BTreeSet<&'static str>| -> Result<OciCapabilities> {
        names
            .iter()
            .map(|name| {
                name.parse::<Capability>()
                    .map_err(|e| Fault::internal(format!("capability {name}"), e))
            })
            .collect()
    };
    let granted = set(&wanted.bounding)?;
    let ambient = set(&wanted.ambient)?;
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(granted.clone()))
        .set_permitted(Some(granted.clone()))
        .set_effective(Some(granted))
        .set_inheritable(Some(ambient.clone()))
        .set_ambient(Some(ambient));
    Ok(sets)
}

fn linux(spec: &mut Spec, input: &Input<'_>) {
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut spaces = namespaces(&input.namespaces);
    if let Some(ids) = &input.ids {
        let (uids, gids) = ids.oci();
        linux
            .set_uid_mappings(Some(uids))
            .set_gid_mappings(Some(gids));
        let mut user = LinuxNamespace::default();
        user.set_typ(LinuxNamespaceType::User)
            .set_path(Some(input.namespaces.user.clone()));
        spaces.push(user);
    }
    linux.set_namespaces(Some(spaces));
    linux.set_cgroups_path(Some(PathBuf::from(input.cgroup)));
    if !input.security.privileged {
        // Exactly what is asked for, even nothing: this is how the kubelet says procMount Unmasked.
        linux.set_masked_paths(Some(input.security.masked_paths.clone()));
        linux.set_readonly_paths(Some(input.security.readonly_paths.clone()));
    }
    let strongest = ["rshared", "rslave"].into_iter().find(|p| {
        input
            .mounts
            .iter()
            .any(|m| m.options.iter().any(|o| o == p))
    });
    linux.set_rootfs_propagation(strongest.map(str::to_owned));
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    for (device, rule) in &input.devices {
        devices.retain(|d| d.path() != device.path());
        devices.push(device.clone());
        rules.push(rule.clone());
    }
    resources.set_devices(Some(rules));
    linux.set_devices(Some(devices));
    linux.set_resources(Some(resources));
    spec.set_linux(Some(linux));
}

fn namespaces(joined: &Joined) -> Vec<LinuxNamespace> {
    let one = |kind: LinuxNamespaceType, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        namespace
    };
    let mut all = vec![
        one(LinuxNamespaceType::Mount, None),
        one(LinuxNamespaceType::Cgroup, None),
        one(LinuxNamespaceType::Uts, Some(joined.uts.clone())),
    ];
    if let Some(net) = &joined.net {
        all.push(one(LinuxNamespaceType::Network, Some(net.clone())));
    }
    if let Some(ipc) = &joined.ipc {
        all.push(one(LinuxNamespaceType::Ipc, Some(ipc.clone())));
    }
    match &joined.pid {
        PidNamespace::Host => {}
        PidNamespace::Own => all.push(one(LinuxNamespaceType::Pid, None)),
        PidNamespace::Join(path) => all.push(one(LinuxNamespaceType::Pid, Some(path.clone()))),
    }
    all
}

fn oci_mount(mount: &BindMount) -> Mount {
    let mut spec = Mount::default();
    spec.set_destination(PathBuf::from(&mount.destination));
    if mount.layers.is_empty() {
        spec.set_typ(Some("bind".to_owned()))
            .set_source(Some(mount.source.clone()))
            .set_options(Some(mount.options.clone()));
    } else {
        let mut options = mount.options.clone();
        options.retain(|option| option != "rbind");
        options.push(oci::lowerdir(&mount.layers));
        spec.set_typ(Some("overlay".to_owned()))
            .set_source(Some("overlay".into()))
            .set_options(Some(options));
    }
    if !mount.uids.is_empty() {
        spec.set_uid_mappings(Some(userns::oci(&mount.uids)))
            .set_gid_mappings(Some(userns::oci(&mount.gids)));
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::NamespaceMode::{Container, Node, Pod, Target};

    fn options(pid: v1::NamespaceMode, network: v1::NamespaceMode) -> v1::NamespaceOption {
        v1::NamespaceOption {
            pid: pid as i32,
            network: network as i32,
            ..Default::default()
        }
    }

    #[test]
    fn a_container_joins_its_pod() {
        let own = joined(&options(Container, Pod), &options(Container, Pod), 7, None).unwrap();
        assert_eq!(own.net.as_deref(), Some(Path::new("/proc/7/ns/net")));
        assert_eq!(own.pid, PidNamespace::Own);
        let shared = joined(&options(Pod, Pod), &options(Pod, Pod), 7, None).unwrap();
        assert_eq!(shared.pid, PidNamespace::Join("/proc/7/ns/pid".into()));
        let host = joined(&options(Node, Node), &options(Node, Node), 7, None).unwrap();
        assert_eq!((host.net, host.pid), (None, PidNamespace::Host));
    }

    #[test]
    fn a_target_must_run() {
        let wish = options(Target, Pod);
        assert!(joined(&wish, &options(Container, Pod), 7, None).is_err());
        let found = joined(&wish, &options(Container, Pod), 7, Some(9)).unwrap();
        assert_eq!(found.pid, PidNamespace::Join("/proc/9/ns/pid".into()));
    }

    fn input<'a>(
        security: &'a v1::LinuxContainerSecurityContext,
        user: &'a User,
        annotations: &'a std::collections::HashMap<String, String>,
    ) -> Input<'a> {
        Input {
            security,
            namespaces: joined(&options(Container, Pod), &options(Container, Pod), 7, None)
                .unwrap(),
            ids: None,
            args: vec!["sh".into()],
            env: vec!["A=1".into()],
            cwd: "/".into(),
            tty: false,
            user,
            capabilities: Capabilities::default(),
            mounts: vec![BindMount {
                source: "/src".into(),
                layers: Vec::new(),
                destination: "/dev/mqueue".into(),
                options: vec!["rbind".into(), "rslave".into(), "ro".into()],
                uids: Vec::new(),
                gids: Vec::new(),
            }],
            devices: Vec::new(),
            apparmor: None,
            oom_score_adj: 500,
            cgroup: "/p/c",
            annotations,
        }
    }

    #[test]
    fn the_spec_says_what_cri_says() {
        let security = v1::LinuxContainerSecurityContext {
            readonly_rootfs: true,
            no_new_privs: true,
            masked_paths: vec!["/proc/kcore".into()],
            ..Default::default()
        };
        let user = User {
            home: "/root".into(),
            ..Default::default()
        };
        let annotations = Default::default();
        let spec = build(input(&security, &user, &annotations)).unwrap();
        let process = spec.process().clone().unwrap();
        assert_eq!(process.env().clone().unwrap(), ["A=1", "HOME=/root"]);
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.oom_score_adj(), Some(500));
        assert_eq!(spec.root().clone().unwrap().readonly(), Some(true));
        let linux = spec.linux().clone().unwrap();
        assert_eq!(linux.masked_paths().clone().unwrap(), ["/proc/kcore"]);
        assert_eq!(linux.rootfs_propagation().as_deref(), Some("rslave"));
        let at = |path: &str| {
            let mounts = spec.mounts().clone().unwrap();
            mounts
                .iter()
                .filter(|m| m.destination() == Path::new(path))
                .count()
        };
        assert_eq!(at("/dev/mqueue"), 1);
    }
}
