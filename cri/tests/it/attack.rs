// SPDX-License-Identifier: Apache-2.0
//! Attacks through the CRI: what a pod's author can write into its configuration, its image or its
//! log directory, and what a container can print.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cri::v1;

use crate::node::{PATIENCE, context, shell, test, words};

/// CVE-2022-0811 and its kin: one sysctl that carries another, into the pod and out of it.
#[test]
fn a_sandbox_sysctl_changes_itself_only() {
    test(|node| async move {
        let pattern = || std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        let before = pattern();
        for (number, (name, value)) in [
            ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
            ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/evil"),
            ("kernel.core_pattern", "|/evil"),
            ("net.ipv4/../../kernel.core_pattern", "|/evil"),
            ("kernel.shm_rmid_forced=1+kernel.core_pattern", "|/evil"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut config = node.pod(&format!("sysctl{number}"));
            let linux = config.linux.get_or_insert_default();
            linux.sysctls = [(name.to_owned(), value.to_owned())].into();
            let request = v1::RunPodSandboxRequest {
                config: Some(config),
                runtime_handler: String::new(),
            };
            let result = node.cri().await.run_pod_sandbox(request).await;
            assert_eq!(pattern(), before, "{name:?} = {value:?}");
            match result {
                Ok(answer) => node.remove_pod(&answer.into_inner().pod_sandbox_id).await,
                Err(error) => assert!(!error.message().chars().any(char::is_control), "{error}"),
            }
        }
    });
}

/// Annotations are the user's: none of them means anything to the runtime (CVE-2022-0811,
/// CVE-2023-6476, CVE-2024-3154), and no label or annotation reaches a cgroup.
#[test]
fn annotations_change_nothing() {
    test(|node| async move {
        let keys = [
            "io.kubernetes.cri-o.userns-mode",
            "io.kubernetes.cri-o.Devices",
            "io.kubernetes.cri-o.UnifiedCgroup.main",
            "org.systemd.property.ExecStartPre",
            "run.oci.hooks.stdout",
            "run.oci.handler",
            "cdi.k8s.io/x",
        ];
        let annotations =
            keys.map(|key| (key.to_owned(), "/dev/kmsg;memory.max=1|/evil".to_owned()));
        let show = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/1/status; ls /dev; \
            cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null";
        let mut seen = Vec::new();
        for (name, annotations) in [
            ("without", Default::default()),
            ("with", annotations.into()),
        ] {
            let mut config = node.pod(name);
            config.annotations = annotations;
            let pod = node.run_pod(config.clone()).await;
            let mut main = shell("main", "sleep 1000");
            main.annotations = config.annotations;
            // Of a container (which a kubelet writes, not a pod's author) this one names devices.
            main.annotations.remove("cdi.k8s.io/x");
            let id = node.launch(&pod, main).await;
            seen.push(node.exec(&id, show).await);
        }
        assert_eq!(seen[0], seen[1]);
    });
}

/// CVE-2024-21626 by way of the image's or the pod's working directory.
#[test]
fn a_working_directory_does_not_lead_out() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("cwd")).await;
        let loot = node.root().join("loot");
        std::fs::write(&loot, "secret").unwrap();
        let up = "../../../../../../../../../../..";
        for number in 0..24 {
            let name = format!("c{number}");
            let command = format!("cat ./{up}{} && echo ESCAPED; true", loot.display());
            let mut config = shell(&name, &command);
            config.working_dir = format!("/proc/self/fd/{number}");
            let Ok(id) = node.create(&pod, config).await else {
                continue;
            };
            let request = v1::StartContainerRequest {
                container_id: id.clone(),
            };
            if node.cri().await.start_container(request).await.is_ok() {
                let log = node.ended(&id).await.log_path;
                let text = std::fs::read_to_string(log).unwrap();
                assert!(!text.contains("ESCAPED"), "{number}: {text}");
            }
        }
    });
}

/// CVE-2022-2995: with the primary group among the supplementary ones, a set-group-id program does
/// not shed it.
#[test]
fn the_primary_group_cannot_be_shed() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("groups")).await;
        let mut config = shell("main", "sleep 1000");
        context(&mut config).run_as_username = "web".into();
        context(&mut config).supplemental_groups = vec![77];
        let id = node.launch(&pod, config).await;
        let show = "grep -E 'Groups|CapInh|CapEff' /proc/self/status /proc/1/status";
        let (text, _) = node.exec(&id, show).await;
        for wanted in [
            "1/status:Groups:\t63 77 102 \n",
            "self/status:Groups:\t63 77 102 \n",
            "1/status:CapInh:\t0000000000000000\n",
            "self/status:CapInh:\t0000000000000000\n",
            "self/status:CapEff:\t0000000000000000\n",
        ] {
            assert!(text.contains(wanted), "{wanted:?}: {text}");
        }
    });
}

/// The log directory may be a volume of the pod: a link in place of the log leads nowhere.
#[test]
fn a_link_in_place_of_the_log_is_not_followed() {
    test(|node| async move {
        let config = node.pod("logs");
        let dir = PathBuf::from(&config.log_directory).join("main");
        let victim = node.root().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        let pod = node.run_pod(config).await;
        let first = shell(
            "main",
            "echo first; while ! [ -e /go ]; do sleep 0.1; done; echo second",
        );
        let id = node.launch(&pod, first).await;
        let log = dir.join("0.log");
        std::fs::remove_file(&log).unwrap();
        symlink(&victim, &log).unwrap();
        let request = v1::ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        let error = node.cri().await.reopen_container_log(request).await;
        assert!(error.is_err(), "the link was followed");
        node.exec(&id, "touch /go").await;
        node.ended(&id).await;
        let mut second = shell("second", "echo third");
        second.log_path = "main/0.log".into();
        if let Ok(id) = node.create(&pod, second).await {
            let request = v1::StartContainerRequest { container_id: id };
            let _ = node.cri().await.start_container(request).await;
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        std::fs::remove_file(&log).unwrap();
    });
}

/// CVE-2022-1708 and CVE-2022-31030: a command may print without end.
#[test]
fn the_output_of_an_exec_is_bounded() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("flood")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let request = v1::ExecSyncRequest {
            container_id: id,
            cmd: words(&[
                "/bin/sh",
                "-c",
                "head -c 40000000 /dev/zero; echo end >&2; exit 3",
            ]),
            // Under an emulated processor this takes a while.
            timeout: PATIENCE.as_secs() as i64,
        };
        let answer = node.cri().await.exec_sync(request).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(answer.exit_code, 3, "it was not held up");
        let total = answer.stdout.len() + answer.stderr.len();
        assert!(total < 16 << 20 && answer.stdout.len() > 8 << 20, "{total}");
    });
}

/// CVE-2021-41103 and CVE-2024-25621: another user of the host reaches no container's files, and
/// no set-user-id program in an image.
#[test]
fn other_users_of_the_host_cannot_enter() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("modes")).await;
        node.launch(&pod, shell("main", "sleep 1000")).await;
        let config = node.config();
        for top in [&config.data_dir, &config.run_dir] {
            let mut open = Vec::new();
            reachable(top, &mut open);
            assert!(open.is_empty(), "others may enter {open:?}");
        }
    });
}

/// Directories below `dir` that somebody else may list, or files that he may open, with every
/// directory on the way open to him as well.
fn reachable(dir: &Path, open: &mut Vec<PathBuf>) {
    let mode = |path: &Path| {
        std::fs::symlink_metadata(path)
            .unwrap()
            .permissions()
            .mode()
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && mode(&path) & 0o001 != 0 {
            let files = std::fs::read_dir(&path).unwrap().count();
            if files > 0 && mode(&path) & 0o004 != 0 {
                open.push(path.clone());
            }
            reachable(&path, open);
        } else if kind.is_file() && mode(&path) & 0o4000 != 0 {
            open.push(path);
        }
    }
}

/// CVE-2025-64329: clients that attach and vanish leave nothing behind.
#[test]
fn attached_clients_that_vanish_leave_nothing() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("leak")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let shim = shim_of(&node.root());
        let count = |pid: u32| {
            std::fs::read_dir(format!("/proc/{pid}/fd"))
                .unwrap()
                .count()
        };
        let own = std::process::id();
        let before = (
            count(shim),
            tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks(),
        );
        for _ in 0..40 {
            let request = v1::AttachRequest {
                container_id: id.clone(),
                stdout: true,
                stderr: true,
                ..Default::default()
            };
            let url = node.attach_url(request).await;
            let socket = crate::streams::open(&url, "v5.channel.k8s.io")
                .await
                .unwrap();
            drop(socket);
        }
        let start = std::time::Instant::now();
        loop {
            let tasks = tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks();
            // Connections of this test's own clients come and go.
            if count(shim) <= before.0 && tasks <= before.1 + 8 {
                break;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{} descriptors of the shim, {} of ours, {tasks} tasks; before {before:?}",
                count(shim),
                count(own)
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
}

/// CVE-2020-15257: a pod in the host's network finds no socket of ours there.
#[test]
fn there_are_no_abstract_sockets() {
    test(|node| async move {
        let mut config = node.pod("host");
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        let options = security.namespace_options.get_or_insert_default();
        options.network = v1::NamespaceMode::Node as i32;
        let namespaces = options.clone();
        let pod = node.run_pod(config).await;
        let mut main = shell("main", "sleep 1000");
        context(&mut main).namespace_options = Some(namespaces);
        let id = node.launch(&pod, main).await;
        let (text, code) = node.exec(&id, "cat /proc/net/unix").await;
        assert_eq!(code, 0, "{text}");
        assert!(!text.contains('@'), "{text}");
    });
}

/// The shim of the only pod below this directory.
fn shim_of(root: &Path) -> u32 {
    let root = root.to_string_lossy().into_owned();
    let found = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut words = line.split('\0');
            let shim = words.next()?.contains("shim") && words.next()?.starts_with(&root);
            shim.then(|| entry.file_name().to_str()?.parse().ok())?
        });
    found.expect("a shim")
}
