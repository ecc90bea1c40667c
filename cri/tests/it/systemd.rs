// SPDX-License-Identifier: Apache-2.0
//! `cgroup-driver: systemd`: pods as slices of a real systemd, containers as its scopes.

use std::error::Error as _;
use std::path::Path;

use cri::settings::CgroupDriver;
use cri::v1;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::handlers;
use crate::node::{Handle, shell, test, until};
use crate::under_systemd::{BOOTED, run_under_systemd, show, systemctl};

fn settings(node: &Handle) -> cri::Settings {
    let mut settings = node.config().settings.get().as_ref().clone();
    settings.cgroup_driver = CgroupDriver::Systemd;
    settings
}

#[test]
fn without_systemd_the_driver_is_refused_by_name() {
    if Path::new(BOOTED).is_dir() {
        return;
    }
    test(|node| async move {
        node.stop().await;
        let mut config = node.config();
        config.settings = cri::Live::new(settings(&node));
        let (ready, _is_ready) = oneshot::channel();
        let run = cri::run(config, ready, CancellationToken::new());
        let error = run.await.expect_err("refused");
        let said = format!("{error}: {:?}", error.source().map(ToString::to_string));
        let expected = format!("systemd does not run on this host ({BOOTED} is missing)");
        assert!(said.contains(&expected), "{said}");
        node.start().await;
    });
}

#[test]
fn pods_are_slices_and_containers_scopes_of_systemds() {
    run_under_systemd("systemd::inside");
}

/// What the service of the test above does.
#[test]
#[ignore = "it needs systemd as its first process; the test above runs it there"]
fn inside() {
    test(|node| async move {
        // One of the other driver's, which the next daemon still has to find and to take apart.
        let before = node.run_pod(node.pod("before")).await;
        node.restart_with(settings(&node)).await;
        assert_eq!(driver(&node).await, v1::CgroupDriver::Systemd);
        node.remove_pod(&before).await;

        a_pod_without_a_parent_has_a_slice_of_ours(&node, "").await;
        if handlers::is_there("runc") {
            a_pod_without_a_parent_has_a_slice_of_ours(&node, "runc").await;
        }
        the_kubelets_slice_is_used(&node).await;
        what_cannot_start_leaves_no_scope(&node).await;
    });
}

async fn driver(node: &Handle) -> v1::CgroupDriver {
    let mut cri = node.cri().await;
    let answer = cri.runtime_config(v1::RuntimeConfigRequest {}).await;
    let linux = answer.unwrap().into_inner().linux;
    linux.unwrap().cgroup_driver()
}

fn limited(name: &str) -> v1::ContainerConfig {
    let mut config = shell(name, "sleep 1000");
    config.linux.as_mut().unwrap().resources = Some(memory(64 << 20));
    config
}

fn memory(limit: i64) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        memory_limit_in_bytes: limit,
        ..Default::default()
    }
}

/// The property of systemd's that holds the memory limit.
fn memory_property() -> &'static str {
    match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => "MemoryMax",
        false => "MemoryLimit",
    }
}

fn scope(id: &str) -> String {
    format!("podwright-{id}.scope")
}

/// A unit that has ended is forgotten a little later.
async fn is_gone(unit: &str) {
    until(&format!("{unit} is gone"), || {
        show(unit, "LoadState") == "not-found"
    })
    .await;
}

/// Every process of a container, and no other, is in its scope.
async fn only_process(node: &Handle, scope: &str) -> String {
    let path = show(scope, "ControlGroup");
    let trees = ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd"];
    let files = trees.map(|tree| format!("{tree}{path}/cgroup.procs"));
    let file = files.iter().find(|file| Path::new(file).exists());
    let file = file.unwrap_or_else(|| panic!("no cgroup {path:?} in {:?}", node.root()));
    let pids = std::fs::read_to_string(file).unwrap();
    let pids: Vec<&str> = pids.lines().collect();
    assert_eq!(pids.len(), 1, "no placeholder is left: {pids:?}");
    std::fs::read_to_string(format!("/proc/{}/cgroup", pids[0])).unwrap()
}

/// Its scopes are made by us, or by the runtime of this handler.
async fn a_pod_without_a_parent_has_a_slice_of_ours(node: &Handle, handler: &str) {
    let pod = handlers::run_pod(node, "own", handler).await;
    let id = node.launch(&pod, limited("c")).await;
    let parent = node.config().cgroup_parent;
    let parent = parent.trim_start_matches('/').replace('-', "_");
    let slice = format!("{parent}-{pod}.slice");
    assert_eq!(show(&slice, "ActiveState"), "active");
    let path = format!("/{parent}.slice/{slice}/{}", scope(&id));
    assert_eq!(show(&scope(&id), "ControlGroup"), path);
    for member in [&pod, &id] {
        assert_eq!(show(&scope(member), "Slice"), slice);
        let groups = only_process(node, &scope(member)).await;
        let expected = format!("{slice}/{}", scope(member));
        // On v1, systemd takes pause, which has no device rules, out of that controller's scope.
        let mut others = groups.lines().filter(|line| {
            !line.ends_with(&expected) && !line.ends_with(":/") && !line.contains(":devices:")
        });
        assert_eq!(others.next(), None, "{groups}");
    }
    assert_eq!(show(&scope(&id), memory_property()), (64 << 20).to_string());

    let update = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(memory(96 << 20)),
        ..Default::default()
    };
    let mut cri = node.cri().await;
    cri.update_container_resources(update).await.unwrap();
    systemctl(&["daemon-reload"]);
    assert_eq!(show(&scope(&id), memory_property()), (96 << 20).to_string());

    node.crash().await;
    assert_eq!(node.exec(&id, "echo here").await, ("here\n".to_owned(), 0));
    let request = v1::ContainerStatsRequest {
        container_id: id.clone(),
    };
    let stats = node.cri().await.container_stats(request).await.unwrap();
    let stats = stats.into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);

    node.stop_container(&id, 0).await;
    node.remove_pod(&pod).await;
    for unit in [scope(&id), scope(&pod), slice] {
        is_gone(&unit).await;
    }
}

async fn the_kubelets_slice_is_used(node: &Handle) {
    let slice = "kubepods-burstable-pod1_2.slice";
    let path = format!("/kubepods.slice/kubepods-burstable.slice/{slice}");
    let mut config = node.pod("kubelets");
    config.linux.as_mut().unwrap().cgroup_parent = path.clone();
    let pod = node.run_pod(config).await;
    let id = node.launch(&pod, shell("c", "sleep 1000")).await;
    let expected = format!("{path}/{}", scope(&id));
    assert_eq!(show(&scope(&id), "ControlGroup"), expected);
    node.remove_pod(&pod).await;
    is_gone(&scope(&id)).await;
    // The kubelet may go on with it: what counts is that nothing of it is left.
    until("the slice is stopped", || {
        show(slice, "ActiveState") == "inactive"
    })
    .await;
    systemctl(&["stop", "kubepods.slice"]);
}

async fn what_cannot_start_leaves_no_scope(node: &Handle) {
    let pod = node.run_pod(node.pod("broken")).await;
    let mut config = shell("c", "");
    config.command = vec!["/no/such/program".to_owned()];
    let id = node.create(&pod, config).await.unwrap();
    let request = v1::StartContainerRequest {
        container_id: id.clone(),
    };
    let started = node.cri().await.start_container(request).await;
    started.expect_err("there is no such program");
    is_gone(&scope(&id)).await;
    node.remove_pod(&pod).await;
}
