// SPDX-License-Identifier: Apache-2.0
//! The launch plan of a pod's sandbox process.

use std::path::PathBuf;

use shim::plan::{
    CgroupJoin, Executable, LaunchPlan, Mount, MountAttrs, MountKind, Namespace, Namespaces,
    ProcessPlan, RootFs, User, UserNamespace,
};
use shim::sys::mounts::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID};

use super::compile::CompileError;
use super::sysctl::sysctl_path;

/// What a sandbox needs.
#[derive(Debug, Clone, Default)]
pub struct SandboxInput {
    /// `Programs::pause`.
    pub pause: PathBuf,
    /// The pod's network namespace file; none means the host's network.
    pub netns: Option<PathBuf>,
    pub hostname: String,
    /// The pod's user namespace; owns its IPC, UTS and pid namespaces. 65535 must be mapped in it.
    /// A network namespace that is to belong to it as well has to be made in it
    /// (`shim::launch::{new_user_namespace, new_network_namespace}`): then the user namespace
    /// exists before, and is joined by the path of a descriptor that is held meanwhile.
    pub users: UserNamespace,
    /// The pod uses the host's IPC namespace.
    pub host_ipc: bool,
    /// The pod's containers share one pid namespace, which pause is the first process of.
    /// Otherwise pause stays in the host's.
    pub share_pid: bool,
    /// `name=value` as in the pod's security context, for example ("net.ipv4.ip_forward", "1").
    pub sysctls: Vec<(String, String)>,
    /// Bytes of the pod's /dev/shm (64 MiB in the kubelet).
    pub shm_bytes: u64,
    pub cgroup: CgroupJoin,
    pub oom_score_adj: i32,
}

/// Builds the plan for pause: new IPC and UTS namespaces, the given network, an empty read-only
/// root, and the pod's /dev/shm, which containers join with `CompileContext::sandbox_binds`
/// (`("/dev/shm", "/dev/shm")`), unless the pod uses the host's IPC namespace, and so its /dev/shm.
///
/// Containers join the namespaces by `/proc/<sandbox pid>/ns/{user,ipc,uts,pid}`. With the host's
/// network, the host name is the host's too, as in every pod of that kind.
///
/// # Errors
/// Names a sysctl that is not namespaced, or that would change the host's namespaces.
pub fn sandbox_plan(input: &SandboxInput) -> Result<LaunchPlan, CompileError> {
    let new_unless = |host: bool| match host {
        true => Namespace::Host,
        false => Namespace::New,
    };
    let namespaces = Namespaces {
        user: input.users.clone(),
        pid: new_unless(!input.share_pid),
        net: match &input.netns {
            Some(path) => Namespace::Join(path.to_string_lossy().into_owned()),
            None => Namespace::Host,
        },
        ipc: new_unless(input.host_ipc),
        uts: new_unless(input.netns.is_none()),
        ..Namespaces::default()
    };
    let sysctls = input
        .sysctls
        .iter()
        .map(|(name, value)| Ok((sysctl_path(name, &namespaces)?, value.clone())))
        .collect::<Result<_, CompileError>>()?;
    let pause = input.pause.to_string_lossy().into_owned();
    Ok(LaunchPlan {
        cgroup: input.cgroup.clone(),
        rootfs: RootFs::Empty,
        rootfs_readonly: true,
        mounts: if input.host_ipc {
            Vec::new()
        } else {
            vec![shm(input.shm_bytes)]
        },
        hostname: (namespaces.uts == Namespace::New).then(|| input.hostname.clone()),
        sysctls,
        namespaces,
        process: ProcessPlan {
            executable: Executable::HostFile(pause),
            args: vec!["/pause".to_owned()],
            env: vec!["HOME=/".to_owned()],
            cwd: "/".to_owned(),
            // It needs nothing, so it gets nothing. As nobody: no capability comes back on exec.
            user: User {
                uid: PAUSE_USER,
                gid: PAUSE_USER,
                ..User::default()
            },
            no_new_privileges: true,
            oom_score_adj: Some(input.oom_score_adj),
            ..ProcessPlan::default()
        },
        ..LaunchPlan::default()
    })
}

/// The pause image's user.
pub(crate) const PAUSE_USER: u32 = 65535;

fn shm(bytes: u64) -> Mount {
    Mount {
        destination: "/dev/shm".to_owned(),
        kind: MountKind::Filesystem {
            fstype: "tmpfs".to_owned(),
            source: "shm".to_owned(),
            options: vec!["mode=1777".to_owned(), format!("size={bytes}")],
            copy_up: false,
            fallback: None,
        },
        attrs: MountAttrs::setting(ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC),
        recursive_attrs: MountAttrs::default(),
        propagation: Vec::new(),
        idmap: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_on_the_hosts_network_changes_nothing_of_the_host() {
        let mut input = SandboxInput {
            hostname: "web".into(),
            shm_bytes: 1 << 26,
            ..SandboxInput::default()
        };
        let plan = sandbox_plan(&input).expect("builds");
        assert_eq!(plan.hostname, None);
        assert_eq!(plan.namespaces.uts, Namespace::Host);
        input.sysctls = vec![("net.core.somaxconn".into(), "1".into())];
        assert!(sandbox_plan(&input).is_err());
        input.netns = Some("/run/netns/x".into());
        let plan = sandbox_plan(&input).expect("builds");
        assert_eq!(plan.hostname.as_deref(), Some("web"));
        assert_eq!(plan.sysctls[0].0, "net/core/somaxconn");
    }
}
