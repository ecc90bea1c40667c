// SPDX-License-Identifier: Apache-2.0
//! What plugins are told, when, and what others see meanwhile.

use std::sync::Arc;

use cri::nri::api;
use cri::v1;
use prost::Message as _;
use tokio::sync::Notify;

use super::plugin::{Plugin, Reply, agree, say};
use crate::node::{Handle, shell, test};

async fn remove_container(node: &Handle, id: &str) {
    let request = v1::RemoveContainerRequest {
        container_id: id.to_owned(),
    };
    node.cri().await.remove_container(request).await.unwrap();
}

#[test]
fn a_pods_life_is_told_in_order_and_once() {
    test(|node| async move {
        let plugin = Plugin::join(&node, "00", "order", agree).await;
        let configured = plugin.heard("Configure").await;
        let configured = api::ConfigureRequest::decode(configured.payload.as_slice()).unwrap();
        assert_eq!(configured.runtime_name, "podwright");
        assert_eq!(configured.request_timeout, 5000);
        let pod = node.run_pod(node.pod("told")).await;
        let stopped = node.launch(&pod, shell("stopped", "sleep 1000")).await;
        let ended = node.launch(&pod, shell("ended", "exit 3")).await;
        // Told although nobody asks: it ended by itself.
        plugin
            .until(|seen| {
                let of = |s: &&super::plugin::Seen| s.container.id == ended;
                seen.iter()
                    .filter(of)
                    .find(|s| s.method == "StopContainer")
                    .cloned()
            })
            .await;
        let never = node.create(&pod, shell("never", "true")).await.unwrap();
        for _ in 0..2 {
            node.stop_container(&stopped, 0).await;
            remove_container(&node, &stopped).await;
        }
        remove_container(&node, &ended).await;
        node.remove_pod(&pod).await;
        node.remove_pod(&pod).await;
        let whole = [
            "CreateContainer",
            "PostCreateContainer",
            "StartContainer",
            "PostStartContainer",
            "StopContainer",
            "RemoveContainer",
        ];
        assert_eq!(plugin.events_of(&stopped), whole);
        assert_eq!(plugin.events_of(&ended), whole);
        let unstarted = [whole[0], whole[1], whole[4], whole[5]];
        assert_eq!(plugin.events_of(&never), unstarted);
        let expected = ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"];
        assert_eq!(plugin.events_of(&pod), expected);
        // All of its containers had stopped before.
        let methods = plugin.methods();
        let stop = methods.iter().position(|m| m == "StopPodSandbox").unwrap();
        let stopped_before = methods[..stop].iter().filter(|m| *m == "StopContainer");
        assert_eq!(stopped_before.count(), 2);
        let told = plugin.heard("RunPodSandbox").await.pod;
        assert_eq!(
            (told.name.as_str(), told.id.as_str()),
            ("told", pod.as_str())
        );
        assert!(told.ips[0].starts_with("10.88."));
        assert!(told.pid > 0);
        let told = plugin.heard("CreateContainer").await.container;
        assert_eq!(told.name, "stopped");
        assert!(told.env.contains(&"FROM_IMAGE=yes".to_owned()));
        assert!(told.mounts.iter().any(|m| m.destination == "/proc"));
    });
}

#[test]
fn a_pod_shows_only_after_plugins_agreed() {
    test(|node| async move {
        let let_go = Arc::new(Notify::new());
        let waits = let_go.clone();
        let plugin = Plugin::join(&node, "00", "slow", move |method, payload| match method {
            "RunPodSandbox" => Reply::When(waits.clone()),
            _ => agree(method, payload),
        })
        .await;
        let running = tokio::spawn({
            let node = node.clone();
            async move { node.run_pod(node.pod("late")).await }
        });
        let asked = plugin.heard("RunPodSandbox").await;
        assert!(node.pods().await.is_empty());
        let early = node.create(&asked.pod.id, shell("early", "true")).await;
        assert_eq!(early.unwrap_err().code(), tonic::Code::NotFound);
        let_go.notify_one();
        assert_eq!(running.await.unwrap(), asked.pod.id);
        assert_eq!(node.pods().await.len(), 1);
        assert!(!plugin.methods().contains(&"CreateContainer".to_owned()));
    });
}

#[test]
fn a_refusal_undoes_what_was_made() {
    test(|node| async move {
        let first = std::sync::atomic::AtomicBool::new(true);
        let plugin = Plugin::join(&node, "00", "strict", move |method, payload| {
            let once = || first.swap(false, std::sync::atomic::Ordering::Relaxed);
            match method {
                "RunPodSandbox" if once() => Reply::Refuse(2, "not today"),
                "CreateContainer" => Reply::Refuse(2, "not like this"),
                "StopPodSandbox" => Reply::Refuse(2, "stay"),
                _ => agree(method, payload),
            }
        })
        .await;
        let request = v1::RunPodSandboxRequest {
            config: Some(node.pod("refused")),
            ..Default::default()
        };
        let refused = node.cri().await.run_pod_sandbox(request).await.unwrap_err();
        let text = refused.message();
        assert!(
            text.contains("\"00-strict\"") && text.contains("not today"),
            "{text}"
        );
        assert!(node.pods().await.is_empty());
        let attempted = plugin.heard("RunPodSandbox").await.pod.id;
        let undone = ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"];
        assert_eq!(plugin.events_of(&attempted), undone);
        // The same pod again: its name is free.
        let pod = node.run_pod(node.pod("refused")).await;
        let refused = node.create(&pod, shell("c", "true")).await.unwrap_err();
        assert!(refused.message().contains("not like this"), "{refused:?}");
        assert!(node.containers().await.is_empty());
        let methods = plugin.methods();
        assert!(!methods.contains(&"StartContainer".to_owned()));
        assert_eq!(methods.last().unwrap(), "RemoveContainer");
    });
}

#[test]
fn nothing_is_lost_while_a_plugin_is_synchronized() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("sync")).await;
        let before = node.launch(&pod, shell("before", "sleep 1000")).await;
        let let_go = Arc::new(Notify::new());
        let waits = let_go.clone();
        let plugin = Plugin::connect(&node, move |method, payload| match method {
            "Synchronize" => Reply::When(waits.clone()),
            _ => agree(method, payload),
        })
        .await;
        plugin.register("10", "late").await;
        let synced = plugin.heard("Synchronize").await;
        let synced = api::SynchronizeRequest::decode(synced.payload.as_slice()).unwrap();
        assert_eq!(synced.pods[0].id, pod);
        let ids: Vec<_> = synced.containers.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids, [before.as_str()]);
        assert_eq!(
            synced.containers[0].state(),
            api::ContainerState::ContainerRunning
        );
        let creating = tokio::spawn({
            let (node, pod) = (node.clone(), pod.clone());
            async move { node.create(&pod, shell("during", "true")).await.unwrap() }
        });
        // The first one is not held up.
        node.stop_container(&before, 0).await;
        let_go.notify_one();
        let during = creating.await.unwrap();
        let expected = ["CreateContainer", "PostCreateContainer"];
        plugin
            .until(|_| (plugin.events_of(&during) == expected).then_some(()))
            .await;
    });
}

#[test]
fn old_plugins_are_told_by_state_change_and_only_what_they_want() {
    test(|node| async move {
        let old = Plugin::join(&node, "00", "old", |method, payload| match method {
            "Configure" | "Synchronize" | "StateChange" | "CreateContainer" | "StopContainer" => {
                agree(method, payload)
            }
            _ => Reply::Refuse(12, "unimplemented"),
        })
        .await;
        let picky = Plugin::join(&node, "10", "picky", |method, payload| match method {
            "Configure" => say(&api::ConfigureResponse {
                events: 1 << (api::Event::RemovePodSandbox as i32 - 1),
            }),
            _ => agree(method, payload),
        })
        .await;
        let pod = node.run_pod(node.pod("old")).await;
        node.launch(&pod, shell("c", "sleep 1000")).await;
        node.remove_pod(&pod).await;
        assert_eq!(
            picky.methods(),
            ["Configure", "Synchronize", "RemovePodSandbox"]
        );
        let changes: Vec<_> = old
            .seen()
            .into_iter()
            .filter(|seen| seen.method == "StateChange")
            .map(|seen| api::StateChangeEvent::decode(seen.payload.as_slice()).unwrap())
            .collect();
        let events: Vec<_> = changes.iter().map(|change| change.event()).collect();
        use api::Event::{
            PostCreateContainer, PostStartContainer, RemoveContainer, RemovePodSandbox,
            RunPodSandbox, StartContainer, StopPodSandbox,
        };
        let expected = [
            RunPodSandbox,
            PostCreateContainer,
            StartContainer,
            PostStartContainer,
            StopPodSandbox,
            RemoveContainer,
            RemovePodSandbox,
        ];
        assert_eq!(events, expected);
        assert_eq!(changes[0].pod.as_ref().unwrap().id, pod);
    });
}

#[test]
fn a_change_of_a_pods_resources_is_told_and_can_be_refused() {
    test(|node| async move {
        let plugin = Plugin::join(&node, "00", "limits", |method, payload| {
            let refuse = method == "UpdatePodSandbox" && {
                let request = api::UpdatePodSandboxRequest::decode(payload).unwrap();
                let cpu = request.linux_resources.unwrap().cpu.unwrap();
                cpu.shares.unwrap().value > 1000
            };
            match refuse {
                true => Reply::Refuse(2, "too much"),
                false => agree(method, payload),
            }
        })
        .await;
        let pod = node.run_pod(node.pod("resized")).await;
        let update = async |shares: i64| {
            let request = v1::UpdatePodSandboxResourcesRequest {
                pod_sandbox_id: pod.clone(),
                overhead: None,
                resources: Some(v1::LinuxContainerResources {
                    cpu_shares: shares,
                    ..Default::default()
                }),
            };
            let mut cri = node.cri().await;
            cri.update_pod_sandbox_resources(request).await
        };
        update(512).await.unwrap();
        plugin.heard("PostUpdatePodSandbox").await;
        let refused = update(2048).await.unwrap_err();
        assert!(refused.message().contains("too much"), "{refused:?}");
    });
}
