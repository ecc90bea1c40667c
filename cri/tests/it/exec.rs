// SPDX-License-Identifier: Apache-2.0
//! ExecSync, log rotation, limits and statistics of a running container.

use cri::v1;

use crate::node::{self, shell, test, words};

#[test]
fn exec_gives_output_code_and_a_deadline() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("exec")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let (text, code) = node.exec(&id, "echo out; echo err >&2; pwd; exit 5").await;
        assert_eq!((text.as_str(), code), ("out\n/\n", 5));
        let mut cri = node.cri().await;
        let mut exec = async |command: &[&str], timeout| {
            let request = v1::ExecSyncRequest {
                container_id: id.clone(),
                cmd: words(command),
                timeout,
            };
            cri.exec_sync(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let late = exec(&["sleep", "100"], 1).await.unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        let absent = exec(&["/no/such/file"], 5).await.unwrap_err();
        assert!(absent.message().contains("/no/such/file"), "{absent}");
        let much = exec(&["/bin/sh", "-c", "yes | head -c 20000000"], 60)
            .await
            .unwrap();
        assert_eq!(much.stdout.len(), (16 << 20) - (4 << 10));
        // A child in the background must not hold the answer back.
        let left = exec(&["/bin/sh", "-c", "sleep 100 & echo done"], 30)
            .await
            .unwrap();
        assert_eq!(left.stdout, b"done\n");
        let (sleepers, _) = node.exec(&id, "ps | grep -c '[s]leep 100$'").await;
        assert_eq!(
            sleepers, "1\n",
            "the timed out command is gone, the background one stays"
        );
    });
}

#[test]
fn an_exec_ends_with_its_client() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("hangup")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let request = v1::ExecSyncRequest {
            container_id: id.clone(),
            cmd: words(&["sleep", "3333"]),
            timeout: 0,
        };
        let mut cri = node.cri().await;
        let waited = std::time::Duration::from_millis(500);
        let hung_up = tokio::time::timeout(waited, cri.exec_sync(request)).await;
        assert!(hung_up.is_err());
        let start = std::time::Instant::now();
        while node.exec(&id, "ps | grep -c '[s]leep 3333'").await.0 != "0\n" {
            assert!(start.elapsed() < crate::node::PATIENCE, "it still runs");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_rotated_log_is_opened_anew() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("logs")).await;
        let id = node
            .launch(
                &pod,
                shell("main", "while true; do echo tick; sleep 0.05; done"),
            )
            .await;
        let path = node.status(&id).await.log_path;
        let rotated = format!("{path}.1");
        while std::fs::metadata(&path).map_or(0, |m| m.len()) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        std::fs::rename(&path, &rotated).unwrap();
        let request = v1::ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        node.cri()
            .await
            .reopen_container_log(request)
            .await
            .unwrap();
        let start = std::time::Instant::now();
        while std::fs::metadata(&path).map_or(0, |m| m.len()) == 0 {
            assert!(start.elapsed() < crate::node::PATIENCE);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(
            std::fs::read_to_string(&rotated)
                .unwrap()
                .contains(" stdout F tick\n")
        );
    });
}

#[test]
fn limits_are_applied_updated_and_counted() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("limits")).await;
        let mut config = shell(
            "main",
            "dd if=/dev/zero of=/data/file bs=1k count=64; sleep 1000",
        );
        config.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            oom_score_adj: 900,
            ..Default::default()
        });
        let id = node.launch(&pod, config).await;
        let mut cri = node.cri().await;
        let mut available = async || {
            let request = v1::ContainerStatsRequest {
                container_id: id.clone(),
            };
            let stats = cri
                .container_stats(request)
                .await
                .unwrap()
                .into_inner()
                .stats
                .unwrap();
            let (memory, cpu) = (stats.memory.unwrap(), stats.cpu.unwrap());
            assert!(cpu.usage_core_nano_seconds.unwrap().value > 0);
            if node::counts_pressure() {
                for pressure in [cpu.psi, memory.psi, stats.io.unwrap().psi] {
                    assert!(pressure.unwrap().some.is_some());
                }
            }
            memory.available_bytes.unwrap().value + memory.working_set_bytes.unwrap().value
        };
        assert_eq!(available().await, 64 << 20);
        assert_eq!(node.exec(&id, "cat /proc/1/oom_score_adj").await.0, "900\n");
        let update = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: 128 << 20,
                oom_score_adj: 950,
                ..Default::default()
            }),
            ..Default::default()
        };
        node.cri()
            .await
            .update_container_resources(update)
            .await
            .unwrap();
        assert_eq!(available().await, 128 << 20);
        let score = "cat /proc/1/oom_score_adj /proc/self/oom_score_adj";
        assert_eq!(node.exec(&id, score).await.0, "950\n950\n");
        let shown = node.status(&id).await.resources.unwrap().linux.unwrap();
        assert_eq!(
            (shown.memory_limit_in_bytes, shown.cpu_quota),
            (128 << 20, 50_000)
        );
        let pods = node
            .cri()
            .await
            .list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default())
            .await
            .unwrap()
            .into_inner();
        let linux = pods.stats[0].linux.clone().unwrap();
        assert!(linux.process.unwrap().process_count.unwrap().value >= 2);
        let network = linux.network.unwrap().default_interface.unwrap();
        assert_eq!(network.name, "eth0");
        let layer = linux.containers[0].writable_layer.clone().unwrap();
        assert!(layer.used_bytes.unwrap().value >= 64 << 10);
    });
}

#[test]
fn a_container_out_of_memory_says_so() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("oom")).await;
        let mut config = shell("main", "x=x; while true; do x=$x$x; done");
        config.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 16 << 20,
            ..Default::default()
        });
        let id = node.launch(&pod, config).await;
        let status = node.ended(&id).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "OOMKilled"),
            "{status:?}"
        );
    });
}
