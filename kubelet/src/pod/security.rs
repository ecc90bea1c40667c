// SPDX-License-Identifier: Apache-2.0
//! Security contexts: the container's field wins over the pod's. Pure.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile,
    SecurityContext,
};

use super::spec;
use super::state::ImageSeen;
use crate::cri_v1 as cri;

/// The paths hidden from unprivileged containers (containerd's and CRI-O's common list).
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// The paths that unprivileged containers may read only.
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

fn pod_context(pod: &Pod) -> PodSecurityContext {
    spec::spec(pod).security_context.clone().unwrap_or_default()
}

fn int(value: Option<i64>) -> Option<cri::Int64Value> {
    value.map(|value| cri::Int64Value { value })
}

fn namespaces(pod: &Pod, userns: &cri::UserNamespace) -> cri::NamespaceOption {
    let spec_of = spec::spec(pod);
    let mode = |host: Option<bool>, otherwise: cri::NamespaceMode| {
        let host = host.unwrap_or(false);
        i32::from(if host {
            cri::NamespaceMode::Node
        } else {
            otherwise
        })
    };
    let shared = spec_of.share_process_namespace.unwrap_or(false);
    let pid = if shared {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: mode(spec_of.host_network, cri::NamespaceMode::Pod),
        pid: mode(spec_of.host_pid, pid),
        ipc: mode(spec_of.host_ipc, cri::NamespaceMode::Pod),
        userns_options: Some(userns.clone()),
        ..Default::default()
    }
}

/// `seccompProfile`; without one the container is unconfined, as with upstream's
/// `seccompDefault: false`.
fn seccomp(profile: Option<&SeccompProfile>) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, localhost) = match profile.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => (ProfileType::RuntimeDefault, None),
        Some("Localhost") => (
            ProfileType::Localhost,
            profile.and_then(|profile| profile.localhost_profile.clone()),
        ),
        _ => (ProfileType::Unconfined, None),
    };
    cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: localhost.unwrap_or_default(),
    }
}

fn apparmor(profile: Option<&AppArmorProfile>) -> Option<cri::SecurityProfile> {
    use cri::security_profile::ProfileType;
    let profile = profile?;
    let kind = match profile.type_.as_str() {
        "Localhost" => ProfileType::Localhost,
        "Unconfined" => ProfileType::Unconfined,
        _ => ProfileType::RuntimeDefault,
    };
    Some(cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: profile.localhost_profile.clone().unwrap_or_default(),
    })
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<cri::SeLinuxOption> {
    let options = options?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Some(cri::SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    })
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    if let Some(group) = context.fs_group.filter(|group| !groups.contains(group)) {
        groups.push(group);
    }
    groups
}

fn groups_policy(context: &PodSecurityContext) -> i32 {
    match context.supplemental_groups_policy.as_deref() {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict.into(),
        _ => cri::SupplementalGroupsPolicy::Merge.into(),
    }
}

fn is_privileged(container: &Container) -> bool {
    let context = container.security_context.as_ref();
    context
        .and_then(|context| context.privileged)
        .unwrap_or(false)
}

/// The sandbox's security context. It is privileged when any container is, as upstream has it.
pub fn sandbox(pod: &Pod, userns: &cri::UserNamespace) -> cri::LinuxSandboxSecurityContext {
    let context = pod_context(pod);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, userns)),
        selinux_options: selinux(context.se_linux_options.as_ref()),
        run_as_user: int(context.run_as_user),
        run_as_group: int(context
            .run_as_group
            .filter(|_| context.run_as_user.is_some())),
        supplemental_groups: groups(&context),
        supplemental_groups_policy: groups_policy(&context),
        privileged: spec::containers(pod).any(|(_, container)| is_privileged(container)),
        // pause needs no system call that the default profile refuses.
        seccomp: Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        ..Default::default()
    }
}

/// The sysctls of the pod.
pub fn sysctls(pod: &Pod) -> HashMap<String, String> {
    let list = pod_context(pod).sysctls.unwrap_or_default();
    list.into_iter()
        .map(|item| (item.name.replace('/', "."), item.value))
        .collect()
}

/// The container's security context, pod and container merged. The image's user is used when neither
/// says who to run as.
pub fn container(
    pod: &Pod,
    container: &Container,
    image: &ImageSeen,
    userns: &cri::UserNamespace,
) -> cri::LinuxContainerSecurityContext {
    let own = container.security_context.clone().unwrap_or_default();
    let context = pod_context(pod);
    let user = own.run_as_user.or(context.run_as_user);
    let privileged = own.privileged.unwrap_or(false);
    let hide = !privileged && own.proc_mount.as_deref() != Some("Unmasked");
    let paths = |list: &[&str]| -> Vec<String> {
        let list = if hide { list } else { &[] };
        list.iter().map(|path| (*path).to_owned()).collect()
    };
    let seccomp_profile = own
        .seccomp_profile
        .as_ref()
        .or(context.seccomp_profile.as_ref());
    let apparmor_profile = own
        .app_armor_profile
        .as_ref()
        .or(context.app_armor_profile.as_ref());
    cri::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|caps| cri::Capability {
            add_capabilities: caps.add.clone().unwrap_or_default(),
            drop_capabilities: caps.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod, userns)),
        selinux_options: selinux(
            own.se_linux_options
                .as_ref()
                .or(context.se_linux_options.as_ref()),
        ),
        run_as_user: int(user.or(image.uid)),
        run_as_username: match user.or(image.uid) {
            Some(_) => String::new(),
            None => image.username.clone(),
        },
        run_as_group: int(own.run_as_group.or(context.run_as_group)),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(&context),
        supplemental_groups_policy: groups_policy(&context),
        no_new_privs: no_new_privs(&own),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp(if privileged { None } else { seccomp_profile })),
        apparmor: apparmor(apparmor_profile).filter(|_| !privileged),
        ..Default::default()
    }
}

/// `allowPrivilegeEscalation: false`, unless something in the context needs escalation anyway.
fn no_new_privs(own: &SecurityContext) -> bool {
    own.allow_privilege_escalation == Some(false)
}

/// `runAsNonRoot` against the user that the container will have. The texts are upstream's.
///
/// # Errors
/// The text for CreateContainerConfigError.
pub fn verify_non_root(pod: &Pod, container: &Container, image: &ImageSeen) -> Result<(), String> {
    let own = container.security_context.clone().unwrap_or_default();
    let context = pod_context(pod);
    if own.run_as_non_root.or(context.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let whom = format!(
        "(pod: \"{}\", container: {})",
        spec::display(pod),
        container.name
    );
    if let Some(user) = own.run_as_user.or(context.run_as_user) {
        if user == 0 {
            return Err(format!(
                "container's runAsUser breaks non-root policy {whom}"
            ));
        }
        return Ok(());
    }
    match image.uid {
        Some(0) => Err(format!(
            "container has runAsNonRoot and image will run as root {whom}"
        )),
        Some(_) => Ok(()),
        None if image.username.is_empty() => Err(format!(
            "container has runAsNonRoot and image will run as root {whom}"
        )),
        None => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {whom}",
            image.username
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod;

    fn check(spec: &str, uid: Option<i64>, username: &str) -> String {
        let pod = pod(spec);
        let image = ImageSeen {
            uid,
            username: username.to_owned(),
            ..Default::default()
        };
        let container = &spec::spec(&pod).containers[0];
        verify_non_root(&pod, container, &image)
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn non_root_is_verified_before_the_container_is_made() {
        let who = "(pod: \"p_ns(u)\", container: a)";
        let policy = "containers: [{name: a, image: x}]\nsecurityContext: {runAsNonRoot: true}";
        assert_eq!(check("containers: [{name: a, image: x}]", Some(0), ""), "");
        assert_eq!(check(policy, Some(1000), ""), "");
        let root = format!("container has runAsNonRoot and image will run as root {who}");
        assert_eq!(check(policy, Some(0), ""), root);
        assert_eq!(check(policy, None, ""), root);
        assert_eq!(
            check(policy, None, "www"),
            format!(
                "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root {who}"
            )
        );
        let zero = "containers: [{name: a, image: x, securityContext: {runAsUser: 0}}]\nsecurityContext: {runAsNonRoot: true, runAsUser: 5}";
        assert_eq!(
            check(zero, Some(7), ""),
            format!("container's runAsUser breaks non-root policy {who}")
        );
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let pod = pod("
securityContext: {runAsUser: 1, runAsGroup: 2, fsGroup: 3, supplementalGroups: [4], seccompProfile: {type: RuntimeDefault}}
containers: [{name: a, image: x, securityContext: {runAsUser: 9, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true}}]");
        let merged = container(
            &pod,
            &spec::spec(&pod).containers[0],
            &ImageSeen::default(),
            &cri::UserNamespace::default(),
        );
        assert_eq!(merged.run_as_user.map(|user| user.value), Some(9));
        assert_eq!(merged.run_as_group.map(|group| group.value), Some(2));
        assert_eq!(merged.supplemental_groups, [4, 3]);
        assert!(merged.no_new_privs && merged.readonly_rootfs && !merged.masked_paths.is_empty());
        assert_eq!(merged.seccomp.map(|profile| profile.profile_type), Some(0));
    }
}
