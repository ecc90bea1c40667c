// SPDX-License-Identifier: Apache-2.0
//! Every field that a client can send, and what becomes of it. A field that is new in the proto fails
//! the first test until somebody decides; the second sends what is said to be refused.

use std::collections::{BTreeMap, BTreeSet};

use cri::v1;

use crate::node::{shell, test};

const PROTO: &str = include_str!("../../proto/api.proto");
const PAGE: &str = include_str!("../../../docs/cri.md");

/// What becomes of a field.
enum Does {
    /// It changes what happens.
    Acts,
    /// A pod, or a container, that has it so is refused, and the message has this word.
    RefusesPod(&'static str, fn(&mut v1::PodSandboxConfig)),
    Refuses(&'static str, fn(&mut v1::ContainerConfig)),
    /// Nothing, and why that is right. docs/cri.md lists these.
    Ignored(&'static str),
    /// It belongs to a call that is answered with Unimplemented.
    Unserved,
}
use Does::{Acts, Ignored, Refuses, RefusesPod, Unserved};

const PAUSE: &str = "pause runs no code of the pod, as one user, on a read-only root";
/// A kernel that has SELinux refuses them: `sandbox::security`'s own tests.
const LABEL: &str = "a label means nothing to a kernel without SELinux";
const METADATA_OF_IMAGE: &str = "what a registry is asked for does not depend on it";

#[rustfmt::skip]
fn table() -> Vec<(&'static str, Vec<(&'static str, Does)>)> {
    let acts = |names: &'static str| names.split_whitespace().map(|n| (n, Acts)).collect::<Vec<_>>();
    let with = |names: &'static str, more: Vec<(&'static str, Does)>| {
        let mut all = acts(names);
        all.extend(more);
        all
    };
    vec![
        ("PodSandboxConfig", with(
            "metadata hostname log_directory dns_config port_mappings labels annotations linux",
            vec![("windows", RefusesPod("windows", |c| c.windows = Some(Default::default())))],
        )),
        ("PodSandboxMetadata", acts("name uid namespace attempt")),
        ("DNSConfig", acts("servers searches options")),
        ("PortMapping", acts("protocol container_port host_port host_ip")),
        ("LinuxPodSandboxConfig", acts("cgroup_parent security_context sysctls overhead resources")),
        ("LinuxSandboxSecurityContext", with(
            "namespace_options privileged seccomp apparmor seccomp_profile_path",
            vec![
                ("selinux_options", Ignored(LABEL)),
                ("run_as_user", Ignored(PAUSE)),
                ("run_as_group", Ignored(PAUSE)),
                ("readonly_rootfs", Ignored(PAUSE)),
                ("supplemental_groups", Ignored(PAUSE)),
                ("supplemental_groups_policy", Ignored(PAUSE)),
            ],
        )),
        ("NamespaceOption", acts("network pid ipc target_id userns_options")),
        ("UserNamespace", acts("mode uids gids")),
        ("IDMapping", acts("host_id container_id length")),
        ("SELinuxOption", ["user", "role", "type", "level"].map(|part| (part, Ignored(LABEL))).into()),
        ("SecurityProfile", acts("profile_type localhost_ref")),
        ("ContainerConfig", with(
            "metadata image command args working_dir envs mounts devices labels annotations log_path \
             stdin stdin_once tty linux CDI_devices stop_signal",
            vec![("windows", Refuses("windows", |c| c.windows = Some(Default::default())))],
        )),
        ("ContainerMetadata", acts("name attempt")),
        ("ImageSpec", with("image user_specified_image", vec![
            ("annotations", Ignored(METADATA_OF_IMAGE)),
            ("runtime_handler", Ignored("all handlers share one store: an image is the same for each")),
            ("image_ref", Ignored("it is an answer: what a client sends is replaced")),
        ])),
        ("KeyValue", acts("key value")),
        ("Mount", with(
            "container_path host_path readonly propagation uidMappings gidMappings \
             recursive_read_only image image_sub_path mount_options",
            vec![("selinux_relabel", Ignored("processes have no label, so files need none"))],
        )),
        ("Device", acts("container_path host_path permissions")),
        ("CDIDevice", acts("name")),
        ("LinuxContainerConfig", acts("resources security_context")),
        ("LinuxContainerSecurityContext", with(
            "capabilities privileged namespace_options run_as_user run_as_group run_as_username \
             readonly_rootfs supplemental_groups supplemental_groups_policy no_new_privs masked_paths \
             readonly_paths seccomp apparmor apparmor_profile seccomp_profile_path",
            vec![("selinux_options", Ignored(LABEL))],
        )),
        ("Capability", acts("add_capabilities drop_capabilities add_ambient_capabilities")),
        ("LinuxContainerResources", acts(
            "cpu_period cpu_quota cpu_shares memory_limit_in_bytes oom_score_adj cpuset_cpus \
             cpuset_mems hugepage_limits unified memory_swap_limit_in_bytes",
        )),
        ("HugepageLimit", acts("page_size limit")),
        ("Int64Value", acts("value")),
        ("AuthConfig", acts("username password auth server_address identity_token registry_token")),

        ("VersionRequest", vec![("version", Ignored("there is one version of the answer"))]),
        ("RunPodSandboxRequest", acts("config runtime_handler")),
        ("StopPodSandboxRequest", acts("pod_sandbox_id")),
        ("RemovePodSandboxRequest", acts("pod_sandbox_id")),
        ("PodSandboxStatusRequest", acts("pod_sandbox_id verbose")),
        ("ListPodSandboxRequest", acts("filter")),
        ("StreamPodSandboxesRequest", acts("filter")),
        ("PodSandboxFilter", acts("id state label_selector")),
        ("PodSandboxStatsRequest", acts("pod_sandbox_id")),
        ("ListPodSandboxStatsRequest", acts("filter")),
        ("StreamPodSandboxStatsRequest", acts("filter")),
        ("PodSandboxStatsFilter", acts("id label_selector")),
        ("CreateContainerRequest", with("pod_sandbox_id config", vec![
            ("sandbox_config", Ignored("it is what RunPodSandbox was sent, and that is on record")),
        ])),
        ("StartContainerRequest", acts("container_id")),
        ("StopContainerRequest", acts("container_id timeout")),
        ("RemoveContainerRequest", acts("container_id")),
        ("ListContainersRequest", acts("filter")),
        ("StreamContainersRequest", acts("filter")),
        ("ContainerFilter", acts("id state pod_sandbox_id label_selector")),
        ("ContainerStatusRequest", acts("container_id verbose")),
        ("UpdateContainerResourcesRequest", with("container_id linux windows", vec![
            ("annotations", Ignored("no experimental resource is known by one")),
        ])),
        ("ExecSyncRequest", acts("container_id cmd timeout")),
        ("ExecRequest", acts("container_id cmd tty stdin stdout stderr")),
        ("AttachRequest", acts("container_id stdin tty stdout stderr")),
        ("PortForwardRequest", acts("pod_sandbox_id port")),
        ("ListImagesRequest", acts("filter")),
        ("StreamImagesRequest", acts("filter")),
        ("ImageFilter", acts("image")),
        ("ImageStatusRequest", acts("image verbose")),
        ("PullImageRequest", with("image auth", vec![
            ("sandbox_config", Ignored(METADATA_OF_IMAGE)),
        ])),
        ("RemoveImageRequest", acts("image")),
        ("UpdateRuntimeConfigRequest", acts("runtime_config")),
        ("StatusRequest", acts("verbose")),
        ("ContainerStatsRequest", acts("container_id")),
        ("ListContainerStatsRequest", acts("filter")),
        ("StreamContainerStatsRequest", acts("filter")),
        ("ContainerStatsFilter", acts("id pod_sandbox_id label_selector")),
        ("ReopenContainerLogRequest", acts("container_id")),
        ("UpdatePodSandboxResourcesRequest", acts("pod_sandbox_id overhead resources")),
        ("CheckpointContainerRequest", vec![
            ("container_id", Unserved), ("location", Unserved), ("timeout", Unserved),
        ]),
        ("CheckpointPodRequest", vec![
            ("pod_sandbox_id", Unserved), ("output_path", Unserved), ("container_ids", Unserved),
            ("options", Unserved),
        ]),
        ("RestorePodRequest", vec![
            ("checkpoint_path", Unserved), ("config", Unserved), ("runtime_handler", Unserved),
            ("options", Unserved), ("container_configs", Unserved),
        ]),
    ]
}

/// The fields of every message, by its name.
fn messages(proto: &str) -> BTreeMap<String, BTreeSet<String>> {
    let code: String = proto
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut all = BTreeMap::new();
    for part in code.split("\nmessage ").skip(1) {
        let (name, body) = part.split_once('{').unwrap();
        // Up to the brace that closes it; an enum inside is skipped.
        let (mut depth, mut own) = (0, String::new());
        for character in body.chars() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => {
                    depth -= 1;
                    own.push(';');
                }
                other if depth == 0 => own.push(other),
                _ => {}
            }
        }
        let field = |line: &str| {
            let (before, _) = line.split_once('=')?;
            before.split_whitespace().last().map(str::to_owned)
        };
        all.insert(
            name.trim().to_owned(),
            own.split(';').filter_map(field).collect(),
        );
    }
    all
}

#[test]
fn every_field_has_been_decided_on() {
    let messages = messages(PROTO);
    let table = table();
    let known: BTreeSet<&str> = table.iter().map(|(message, _)| *message).collect();
    for (message, fields) in &messages {
        let wanted = message.ends_with("Request") && !fields.is_empty();
        assert!(
            !wanted || known.contains(message.as_str()),
            "{message} is new"
        );
    }
    for (message, decided) in &table {
        let decided: BTreeSet<String> = decided
            .iter()
            .map(|(field, _)| (*field).to_owned())
            .collect();
        assert_eq!(&decided, &messages[*message], "{message}");
    }
}

#[test]
fn what_is_said_to_be_ignored_is_in_the_documentation() {
    for (message, fields) in table() {
        for (field, does) in fields {
            if let Ignored(reason) = does {
                assert!(!reason.is_empty());
                assert!(
                    PAGE.contains(field),
                    "{message}.{field} is not in docs/cri.md"
                );
            }
        }
    }
}

#[test]
fn what_is_said_to_be_refused_is_refused_by_name() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("fields")).await;
        for (message, fields) in table() {
            for (field, does) in fields {
                let (word, error) = match does {
                    Refuses(word, change) => {
                        let mut config = shell("refused", "true");
                        change(&mut config);
                        (word, node.create(&pod, config).await.unwrap_err())
                    }
                    RefusesPod(word, change) => {
                        let mut config = node.pod("refused");
                        change(&mut config);
                        let request = v1::RunPodSandboxRequest {
                            config: Some(config),
                            runtime_handler: String::new(),
                        };
                        let answer = node.cri().await.run_pod_sandbox(request).await;
                        (word, answer.unwrap_err())
                    }
                    Acts | Ignored(_) | Unserved => continue,
                };
                assert_eq!(
                    error.code(),
                    tonic::Code::InvalidArgument,
                    "{message}.{field}"
                );
                assert!(error.message().contains(word), "{message}.{field}: {error}");
            }
        }
        assert_eq!(
            (node.pods().await.len(), node.containers().await.len()),
            (1, 0)
        );
    });
}
