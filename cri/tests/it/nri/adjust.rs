// SPDX-License-Identifier: Apache-2.0
//! What plugins change, seen from inside the container and in its cgroup.

use std::sync::Arc;
use std::sync::Mutex;

use cri::nri::api;
use cri::v1;
use prost::Message as _;

use super::plugin::{Plugin, adjusting, agree, pair, say};
use crate::node::{shell, test};

fn variable(key: &str, value: &str) -> api::KeyValue {
    api::KeyValue {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn adjustment(root: &std::path::Path) -> api::ContainerAdjustment {
    api::ContainerAdjustment {
        annotations: pair("said", "by-plugin"),
        env: vec![variable("ADDED", "1"), variable("-FROM_IMAGE", "")],
        mounts: vec![api::Mount {
            destination: "/injected".to_owned(),
            r#type: "bind".to_owned(),
            source: root.display().to_string(),
            options: vec!["rbind".to_owned(), "ro".to_owned()],
        }],
        rlimits: vec![api::PosixRlimit {
            r#type: "RLIMIT_NOFILE".to_owned(),
            hard: 512,
            soft: 256,
        }],
        linux: Some(api::LinuxContainerAdjustment {
            devices: vec![api::LinuxDevice {
                path: "/dev/injected".to_owned(),
                r#type: "c".to_owned(),
                major: 1,
                minor: 3,
                ..Default::default()
            }],
            oom_score_adj: Some(api::OptionalInt { value: 321 }),
            resources: Some(api::LinuxResources {
                memory: Some(api::LinuxMemory {
                    limit: Some(api::OptionalInt64 { value: 64 << 20 }),
                    ..Default::default()
                }),
                pids: Some(api::LinuxPids { limit: 77 }),
                ..Default::default()
            }),
            seccomp_policy: Some(api::LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".to_owned(),
                architectures: vec!["SCMP_ARCH_X86_64".to_owned()],
                syscalls: vec![api::LinuxSyscall {
                    names: vec!["mkdir".to_owned(), "mkdirat".to_owned()],
                    action: "SCMP_ACT_ERRNO".to_owned(),
                    errno_ret: Some(api::OptionalUInt32 { value: 28 }),
                    args: Vec::new(),
                }],
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn a_container_is_as_plugins_want_it() {
    test(|node| async move {
        let root = node.root();
        std::fs::write(root.join("note"), "hello").unwrap();
        let _plugin = Plugin::join(&node, "00", "adjust", adjusting(adjustment(&root))).await;
        let pod = node.run_pod(node.pod("adjusted")).await;
        let command = "env; cat /injected/note; echo; ulimit -n; cat /proc/self/oom_score_adj; \
                       echo x > /dev/injected && echo wrote; mkdir /data/x || echo refused; \
                       touch /injected/x || echo read-only; sleep 1000";
        let id = node.launch(&pod, shell("c", command)).await;
        let log = node.status(&id).await.log_path;
        let said = crate::node::log_with(&log, "read-only").await;
        for line in ["ADDED=1", "hello", "256", "321", "wrote", "refused"] {
            assert!(said.contains(&format!(" {line}\n")), "no {line} in {said}");
        }
        assert!(!said.contains("FROM_IMAGE"), "{said}");
        // Also in what is executed there.
        let (out, code) = node.exec(&id, "mkdir /data/y; echo $ADDED").await;
        assert_eq!((out.trim(), code), ("1", 0));
        let status = node.status(&id).await;
        let limits = status.resources.unwrap().linux.unwrap();
        assert_eq!(limits.memory_limit_in_bytes, 64 << 20);
        assert_eq!(
            crate::node::cgroup_value(&node, &id, "pids", "pids.max"),
            "77"
        );
        assert_eq!(
            crate::node::memory_limit(&node, &id),
            (64 << 20).to_string()
        );
    });
}

#[test]
fn two_plugins_that_disagree_are_both_named() {
    test(|node| async move {
        let said = |value: &str| api::ContainerAdjustment {
            annotations: pair("key", value),
            ..Default::default()
        };
        let _a = Plugin::join(&node, "10", "b", adjusting(said("1"))).await;
        let _b = Plugin::join(&node, "00", "a", adjusting(said("2"))).await;
        let pod = node.run_pod(node.pod("torn")).await;
        let refused = node.create(&pod, shell("c", "true")).await.unwrap_err();
        let expected = "plugins \"10-b\" and \"00-a\" both tried to set Annotations key";
        assert!(refused.message().contains(expected), "{refused:?}");
        assert!(node.containers().await.is_empty());
    });
}

#[test]
fn later_plugins_see_the_changes_of_earlier_ones_and_validators_the_outcome() {
    test(|node| async move {
        let said = api::ContainerAdjustment {
            env: vec![variable("ADDED", "first")],
            ..Default::default()
        };
        let _first = Plugin::join(&node, "00", "first", adjusting(said)).await;
        let second = Plugin::join(&node, "10", "second", |method, payload| match method {
            // Everything, and so validation too.
            "Configure" => say(&api::ConfigureResponse { events: 0 }),
            "ValidateContainerAdjustment" => {
                let request = api::ValidateContainerAdjustmentRequest::decode(payload).unwrap();
                let env = &request.adjust.as_ref().unwrap().env;
                assert_eq!(env[0].value, "first");
                let owners = &request.owners.unwrap().owners[&request.container.unwrap().id];
                let env = &owners.compound[&(api::Field::Env as i32)].owners;
                say(&api::ValidateContainerAdjustmentResponse {
                    reject: env["ADDED"] != "00-first" || request.plugins.len() < 2,
                    reason: format!("{env:?} {:?}", request.plugins),
                })
            }
            _ => agree(method, payload),
        })
        .await;
        let pod = node.run_pod(node.pod("valid")).await;
        node.create(&pod, shell("c", "true")).await.unwrap();
        let seen = second.heard("CreateContainer").await.container.env;
        assert!(seen.contains(&"ADDED=first".to_owned()), "{seen:?}");
        second.heard("ValidateContainerAdjustment").await;
        let _third = Plugin::join(&node, "20", "no", |method, payload| match method {
            "Configure" => say(&api::ConfigureResponse { events: 0 }),
            "ValidateContainerAdjustment" => say(&api::ValidateContainerAdjustmentResponse {
                reject: true,
                reason: "policy".to_owned(),
            }),
            _ => agree(method, payload),
        })
        .await;
        let refused = node.create(&pod, shell("d", "true")).await.unwrap_err();
        let expected = "validator \"20-no\" rejected container adjustment, reason: policy";
        assert!(refused.message().contains(expected), "{refused:?}");
    });
}

fn limit(id: &str, bytes: i64) -> api::ContainerUpdate {
    api::ContainerUpdate {
        container_id: id.to_owned(),
        linux: Some(api::LinuxContainerUpdate {
            resources: Some(api::LinuxResources {
                memory: Some(api::LinuxMemory {
                    limit: Some(api::OptionalInt64 { value: bytes }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ignore_failure: false,
    }
}

#[test]
fn updates_of_clients_and_of_plugins_reach_the_cgroup() {
    test(|node| async move {
        let others: Arc<Mutex<Option<String>>> = Arc::default();
        let told = others.clone();
        let plugin = Plugin::join(&node, "00", "limits", move |method, payload| match method {
            "UpdateContainer" => {
                let request = api::UpdateContainerRequest::decode(payload).unwrap();
                let memory = request.linux_resources.unwrap().memory.unwrap();
                let wanted = memory.limit.unwrap().value;
                let id = request.container.unwrap().id;
                say(&api::UpdateContainerResponse {
                    update: vec![limit(&id, wanted + (1 << 20))],
                    ..Default::default()
                })
            }
            "StopContainer" => say(&api::StopContainerResponse {
                update: told
                    .lock()
                    .unwrap()
                    .iter()
                    .map(|id| limit(id, 48 << 20))
                    .collect(),
            }),
            _ => agree(method, payload),
        })
        .await;
        let pod = node.run_pod(node.pod("updates")).await;
        let one = node.launch(&pod, shell("one", "sleep 1000")).await;
        let two = node.launch(&pod, shell("two", "sleep 1000")).await;
        let request = v1::UpdateContainerResourcesRequest {
            container_id: one.clone(),
            linux: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: 32 << 20,
                ..Default::default()
            }),
            ..Default::default()
        };
        node.cri()
            .await
            .update_container_resources(request)
            .await
            .unwrap();
        assert_eq!(
            crate::node::memory_limit(&node, &one),
            (33 << 20).to_string()
        );
        let limits = node.status(&one).await.resources.unwrap().linux.unwrap();
        assert_eq!(limits.memory_limit_in_bytes, 33 << 20);
        plugin.heard("PostUpdateContainer").await;
        // Unasked: one that can be done, one that cannot.
        let nobody = "f".repeat(64);
        let answer = plugin
            .ask(
                "UpdateContainers",
                &api::UpdateContainersRequest {
                    update: vec![limit(&two, 40 << 20), limit(&nobody, 1 << 20)],
                    ..Default::default()
                },
            )
            .await;
        let answer = api::UpdateContainersResponse::decode(answer.payload.as_slice()).unwrap();
        assert_eq!(answer.failed.len(), 1);
        assert_eq!(answer.failed[0].container_id, nobody);
        assert_eq!(
            crate::node::memory_limit(&node, &two),
            (40 << 20).to_string()
        );
        // When one stops, another gets what it had.
        *others.lock().unwrap() = Some(two.clone());
        node.stop_container(&one, 0).await;
        crate::node::until("the other's limit grows", || {
            crate::node::memory_limit(&node, &two) == (48 << 20).to_string()
        })
        .await;
        // And it is thrown out.
        plugin
            .ask(
                "UpdateContainers",
                &api::UpdateContainersRequest {
                    evict: vec![api::ContainerEviction {
                        container_id: two.clone(),
                        reason: "test".to_owned(),
                    }],
                    ..Default::default()
                },
            )
            .await;
        assert_eq!(node.ended(&two).await.exit_code, 137);
    });
}
