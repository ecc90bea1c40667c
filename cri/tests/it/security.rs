// SPDX-License-Identifier: Apache-2.0
//! What a container may do, seen from within it.

use cri::v1;

use crate::node::{context, own_pid, shell, test};

#[test]
fn the_root_can_be_read_only() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("ro")).await;
        let mut config = shell("ro", "touch /x && exit 1; touch /dev/shm/x && echo shm");
        context(&mut config).readonly_rootfs = true;
        let id = node.launch(&pod, config).await;
        let status = node.ended(&id).await;
        assert_eq!(status.exit_code, 0);
        let log = std::fs::read_to_string(status.log_path).unwrap();
        assert!(
            log.contains("Read-only file system") && log.contains("stdout F shm"),
            "{log}"
        );
        let id = node.launch(&pod, shell("rw", "touch /x")).await;
        assert_eq!(node.ended(&id).await.exit_code, 0);
    });
}

#[test]
fn the_user_is_resolved_in_the_image() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("user")).await;
        let mut config = shell("named", "sleep 1000");
        context(&mut config).run_as_username = "web".into();
        context(&mut config).supplemental_groups = vec![77];
        let id = node.launch(&pod, config).await;
        let (text, _) = node
            .exec(&id, "id -u; id -g; id -G; echo $HOME $FROM_IMAGE")
            .await;
        assert_eq!(text, "101\n102\n102 63 77\n/data yes\n");
        let user = node.status(&id).await.user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid), (101, 102));
    });
}

#[test]
fn capabilities_privileges_and_filters_are_as_asked() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("caps")).await;
        let show = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; sleep 1000";
        let mut config = shell("none", show);
        context(&mut config).no_new_privs = true;
        context(&mut config).capabilities = Some(v1::Capability {
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["NET_ADMIN".into()],
            ..Default::default()
        });
        let id = node.launch(&pod, config).await;
        let (text, _) = node
            .exec(&id, "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/1/status")
            .await;
        assert!(text.contains("CapEff:\t0000000000001000"), "{text}");
        assert!(
            text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"),
            "{text}"
        );
        let (text, _) = node.exec(&id, "grep CapEff /proc/self/status").await;
        assert!(
            text.contains("0000000000001000"),
            "an exec has no more: {text}"
        );
    });
}

#[test]
fn paths_are_masked_and_made_read_only() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("paths")).await;
        let mut config = shell("main", "sleep 1000");
        context(&mut config).masked_paths = vec!["/proc/kcore".into(), "/proc/acpi".into()];
        context(&mut config).readonly_paths = vec!["/proc/sys".into()];
        let id = node.launch(&pod, config).await;
        let (text, _) = node
            .exec(
                &id,
                "head -c 1 /proc/kcore | wc -c; touch /proc/sys/kernel/domainname 2>&1",
            )
            .await;
        assert!(
            text.starts_with("0\n") && text.contains("Read-only"),
            "{text}"
        );
    });
}

#[test]
fn containers_of_a_pod_share_what_the_pod_says() {
    test(|node| async move {
        let mut shared = node.pod("shared");
        let options = v1::NamespaceOption::default();
        let context_ = v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options.clone()),
            ..Default::default()
        };
        shared.linux.as_mut().unwrap().security_context = Some(context_);
        shared.linux.as_mut().unwrap().sysctls =
            [("net.ipv4.tcp_syncookies".to_owned(), "0".to_owned())].into();
        let pod = node.run_pod(shared).await;
        let mut first = shell("first", "touch /dev/shm/mine; sleep 1234");
        context(&mut first).namespace_options = Some(options.clone());
        let first = node.launch(&pod, first).await;
        let mut second = shell("second", "sleep 1000");
        context(&mut second).namespace_options = Some(options);
        let second = node.launch(&pod, second).await;
        let (text, _) = node
            .exec(&second, "while ! [ -e /dev/shm/mine ]; do sleep 0.1; done; ps | grep -c '[s]leep 1234'; hostname; cat /proc/sys/net/ipv4/tcp_syncookies")
            .await;
        assert_eq!(text, "1\nshared\n0\n");
        // With a shared pid namespace the end of the first process does not end the others.
        node.stop_container(&first, 0).await;
        assert_eq!(
            node.status(&second).await.state(),
            v1::ContainerState::ContainerRunning
        );
        let mut target = shell("debug", "ps; sleep 1000");
        context(&mut target).namespace_options = Some(v1::NamespaceOption {
            pid: v1::NamespaceMode::Target as i32,
            target_id: second.clone(),
            ..own_pid()
        });
        let target = node.launch(&pod, target).await;
        let (text, _) = node.exec(&target, "ps").await;
        assert!(text.contains("sleep 1000"), "{text}");
    });
}

#[test]
fn volumes_are_mounted_as_asked() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("volumes")).await;
        let source = node.root().join("volume");
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join("file"), "content").unwrap();
        let mount = |path: &str, host: &str, readonly| v1::Mount {
            container_path: path.into(),
            host_path: host.into(),
            readonly,
            ..Default::default()
        };
        let mut config = shell("main", "sleep 1000");
        let absent = node.root().join("made/by/us").display().to_string();
        config.mounts = vec![
            mount("/deep/er/path", &source.display().to_string(), true),
            mount("/made", &absent, false),
            mount(
                "/etc/hosts",
                &source.join("file").display().to_string(),
                true,
            ),
        ];
        let id = node.launch(&pod, config).await;
        let (text, _) = node
            .exec(&id, "cat /deep/er/path/file /etc/hosts; touch /deep/er/path/x 2>&1; touch /made/here; cat /etc/hostname")
            .await;
        assert!(text.starts_with("contentcontent"), "{text}");
        assert!(
            text.contains("Read-only") && text.ends_with("volumes\n"),
            "{text}"
        );
        assert!(node.root().join("made/by/us/here").exists());
    });
}
