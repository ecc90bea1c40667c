// SPDX-License-Identifier: Apache-2.0
//! Containers outlive the daemon, however it ends, and what happened meanwhile is learned.

use cri::v1;

use crate::node::{Handle, PATIENCE, context, shell, test};

#[test]
fn a_killed_daemon_loses_nothing() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("outlive")).await;
        let stays = node
            .launch(
                &pod,
                shell("stays", "while true; do echo tick; sleep 0.1; done"),
            )
            .await;
        let ends = node
            .launch(
                &pod,
                shell("ends", "while ! [ -e /go ]; do sleep 0.05; done; exit 9"),
            )
            .await;
        let created = node
            .create(&pod, shell("created", "sleep 1000"))
            .await
            .unwrap();
        let before = node.status(&stays).await;
        // It ends while nobody watches: half a second after the daemon is dead.
        let (_, code) = node
            .exec(&ends, "(sleep 0.5; touch /go) >/dev/null 2>&1 &")
            .await;
        assert_eq!(code, 0);
        node.kill().await;
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        node.start().await;

        let after = node.status(&stays).await;
        assert_eq!(after.state(), v1::ContainerState::ContainerRunning);
        assert_eq!(after.created_at, before.created_at);
        let status = node.ended(&ends).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (9, "Error"),
            "{status:?}"
        );
        assert_eq!(
            node.status(&created).await.state(),
            v1::ContainerState::ContainerCreated
        );
        let (text, _) = node.exec(&stays, "echo alive").await;
        assert_eq!(text, "alive\n");
        let request = v1::StartContainerRequest {
            container_id: created.clone(),
        };
        node.cri().await.start_container(request).await.unwrap();
        let log = std::fs::read_to_string(&after.log_path).unwrap();
        assert!(
            log.lines().count() > 15,
            "logs were written meanwhile: {}",
            log.lines().count()
        );
        node.remove_pod(&pod).await;
        assert!(node.containers().await.is_empty());
    });
}

#[test]
fn a_clean_stop_keeps_containers_too() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("clean")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        node.stop().await;
        node.start().await;
        assert_eq!(
            node.status(&id).await.state(),
            v1::ContainerState::ContainerRunning
        );
        assert_eq!(
            node.pods().await[0].state(),
            v1::PodSandboxState::SandboxReady
        );
    });
}

#[test]
fn a_dead_shim_is_noticed_and_its_containers_are_ended() {
    test(|node| async move {
        // Its processes share a pid namespace, which nobody's end takes down.
        let mut config = node.pod("shim");
        let linux = config.linux.get_or_insert_default();
        linux.security_context = None;
        let pod = node.run_pod(config).await;
        let mut main = shell("main", "sleep 1000 & sleep 1000");
        context(&mut main).namespace_options = None;
        let id = node.launch(&pod, main).await;
        kill_shim(&node, &pod);
        let status = node.ended(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
        nothing_runs_in(&pod).await;
        node.remove_pod(&pod).await;
    });
}

#[test]
fn a_shim_that_died_with_the_daemon_is_noticed_at_the_next_start() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("both")).await;
        let runs = node.launch(&pod, shell("runs", "sleep 1000")).await;
        let ended = node.launch(&pod, shell("ended", "exit 6")).await;
        let exits = node.config().run_dir.join("cri/sandboxes").join(&pod);
        node.ended(&ended).await;
        let late = node.launch(
            &pod,
            shell("late", "while ! [ -e /go ]; do sleep 0.05; done; exit 4"),
        );
        let late = late.await;
        node.exec(&late, "(sleep 0.5; touch /go) >/dev/null 2>&1 &")
            .await;
        node.kill().await;
        // Only the shim knows how this one ended, and leaves a record.
        let record = exits.join("exits").join(&late);
        let start = std::time::Instant::now();
        while !record.exists() {
            assert!(start.elapsed() < PATIENCE, "no record in {record:?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        kill_shim(&node, &pod);
        node.start().await;
        assert_eq!(node.ended(&late).await.exit_code, 4);
        assert_eq!(node.ended(&ended).await.exit_code, 6);
        let status = node.ended(&runs).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
        nothing_runs_in(&pod).await;
        assert_eq!(
            node.pods().await[0].state(),
            v1::PodSandboxState::SandboxNotready
        );
        node.remove_pod(&pod).await;
    });
}

fn kill_shim(node: &Handle, pod: &str) {
    let dir = node.config().run_dir.join("cri/sandboxes").join(pod);
    let shim = shim_of(dir.to_str().unwrap());
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Waits until no process is in a cgroup of this pod.
async fn nothing_runs_in(pod: &str) {
    let start = std::time::Instant::now();
    loop {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let cgroups =
            processes.filter_map(|p| std::fs::read_to_string(p.path().join("cgroup")).ok());
        let left = cgroups.filter(|text| text.contains(pod)).count();
        if left == 0 {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{left} processes are left");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

pub(crate) fn shim_of(dir: &str) -> nix::unistd::Pid {
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(dir) {
            let pid: i32 = process.file_name().to_str().unwrap().parse().unwrap();
            return nix::unistd::Pid::from_raw(pid);
        }
    }
    panic!("no shim has {dir} on its command line");
}
