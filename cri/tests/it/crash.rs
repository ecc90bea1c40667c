// SPDX-License-Identifier: Apache-2.0
//! The daemon is killed at arbitrary moments; the next one must find its way.

use std::time::Duration;

use cri::v1;

use crate::node::{shell, test};

#[test]
fn a_sandbox_cut_short_never_blocks_its_successor() {
    test(|node| async move {
        for step in 0..12_u64 {
            let mut cri = node.cri().await;
            let request = v1::RunPodSandboxRequest {
                config: Some(node.pod("again")),
                runtime_handler: String::new(),
            };
            let run = tokio::spawn(async move { cri.run_pod_sandbox(request).await });
            tokio::time::sleep(Duration::from_millis(step * 4)).await;
            node.crash().await;
            let _ = run.await;
            // Made completely or not at all; either way the same pod can be run now.
            for pod in node.pods().await {
                assert_eq!(
                    pod.state(),
                    v1::PodSandboxState::SandboxReady,
                    "step {step}"
                );
                node.remove_pod(&pod.id).await;
            }
            let pod = node.run_pod(node.pod("again")).await;
            node.remove_pod(&pod).await;
        }
        let netns = node.config().run_dir.join("cri/netns");
        assert_eq!(std::fs::read_dir(netns).unwrap().count(), 0);
    });
}

#[test]
fn containers_cut_short_are_whole_or_gone() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("cut")).await;
        for step in 0..8_u64 {
            let name = format!("c{step}");
            let config = shell(&name, "sleep 1000");
            let (mut cri, pod_) = (node.cri().await, pod.clone());
            let run = tokio::spawn(async move {
                let request = v1::CreateContainerRequest {
                    pod_sandbox_id: pod_,
                    config: Some(config),
                    sandbox_config: None,
                };
                let id = cri
                    .create_container(request)
                    .await?
                    .into_inner()
                    .container_id;
                cri.start_container(v1::StartContainerRequest { container_id: id })
                    .await
            });
            tokio::time::sleep(Duration::from_millis(step * 4)).await;
            node.crash().await;
            let _ = run.await;
            for container in node.containers().await {
                let mut cri = node.cri().await;
                let container_id = container.id.clone();
                if container.state() == v1::ContainerState::ContainerCreated {
                    let request = v1::StartContainerRequest {
                        container_id: container_id.clone(),
                    };
                    cri.start_container(request).await.unwrap();
                }
                assert_eq!(node.exec(&container.id, "echo ok").await.0, "ok\n");
                cri.remove_container(v1::RemoveContainerRequest { container_id })
                    .await
                    .unwrap();
            }
        }
        assert_eq!(node.pods().await.len(), 1);
    });
}

#[test]
fn leftovers_without_a_record_are_swept() {
    test(|node| async move {
        node.kill().await;
        let config = node.config();
        let id = "ab".repeat(32);
        for dir in [
            "data/cri/containers",
            "data/cri/sandboxes",
            "run/cri/sandboxes",
        ] {
            std::fs::create_dir_all(node.root().join(dir).join(&id).join("upper")).unwrap();
        }
        let netns = config.run_dir.join("cri/netns").join(&id);
        cni::netns::create(&netns).unwrap();
        node.start().await;
        assert!(!netns.exists());
        for dir in [
            "data/cri/containers",
            "data/cri/sandboxes",
            "run/cri/sandboxes",
        ] {
            assert!(!node.root().join(dir).join(&id).exists(), "{dir}");
        }
    });
}
