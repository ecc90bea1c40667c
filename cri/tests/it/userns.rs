// SPDX-License-Identifier: Apache-2.0
//! Pods with user namespaces of their own: their ids inside, outside and on disk, what root in them
//! may do, and that all the rest works as in any pod.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cri::v1;

use crate::node::{Handle, context, own_pid, shell, test};
use crate::streams::{ECHO_SERVER, forwards_ports};

const LENGTH: u32 = 65536;
/// The first ids of the first pod and of the second one.
pub(crate) const FIRST: u32 = 20 * LENGTH;
const SECOND: u32 = 21 * LENGTH;

fn ids(host_id: u32) -> Vec<v1::IdMapping> {
    vec![v1::IdMapping {
        host_id,
        container_id: 0,
        length: LENGTH,
    }]
}

/// The options of a pod whose ids begin at `first`.
pub(crate) fn options(first: u32) -> v1::NamespaceOption {
    v1::NamespaceOption {
        userns_options: Some(v1::UserNamespace {
            mode: v1::NamespaceMode::Pod as i32,
            uids: ids(first),
            gids: ids(first),
        }),
        ..own_pid()
    }
}

pub(crate) fn pod(node: &Handle, name: &str, options: v1::NamespaceOption) -> v1::PodSandboxConfig {
    let mut pod = node.pod(name);
    let context = pod.linux.get_or_insert_default();
    let context = context.security_context.get_or_insert_default();
    context.namespace_options = Some(options);
    pod
}

pub(crate) fn container(name: &str, command: &str, first: u32) -> v1::ContainerConfig {
    let mut config = shell(name, command);
    context(&mut config).namespace_options = Some(options(first));
    config
}

/// A volume, as the kubelet mounts it for such a pod.
fn mount(path: &str, host: &Path, first: u32) -> v1::Mount {
    v1::Mount {
        container_path: path.into(),
        host_path: host.display().to_string(),
        uid_mappings: ids(first),
        gid_mappings: ids(first),
        ..Default::default()
    }
}

async fn info(node: &Handle, container: &str) -> serde_json::Value {
    let request = v1::ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: true,
    };
    let answer = node.cri().await.container_status(request).await.unwrap();
    serde_json::from_str(&answer.into_inner().info["info"]).unwrap()
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (found.uid(), found.gid())
}

/// Every file of the image as it is on disk: path, owner, time of the last change of its inode.
fn layers(node: &Handle) -> Vec<(PathBuf, u32, u32, i64)> {
    let mut found = Vec::new();
    let mut left = vec![node.config().data_dir.join("cri/images/layers")];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                left.push(entry.path());
            }
            found.push((entry.path(), meta.uid(), meta.gid(), meta.ctime_nsec()));
        }
    }
    found.sort();
    let applet = |path: &Path| path.ends_with("bin/sh");
    assert!(found.iter().any(|(path, ..)| applet(path)), "{found:?}");
    found
}

#[test]
fn ids_are_the_pods_inside_the_nodes_outside_and_plain_on_disk() {
    test(|node| async move {
        let sandbox = node.run_pod(pod(&node, "ids", options(FIRST))).await;
        shows_ids(&node, &sandbox).await;
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: sandbox.clone(),
            verbose: false,
        };
        let status = node.cri().await.pod_sandbox_status(request).await.unwrap();
        let linux = status.into_inner().status.unwrap().linux.unwrap();
        assert_eq!(linux.namespaces.unwrap().options.unwrap(), options(FIRST));
    });
}

/// The ids of a pod's containers inside, outside and on disk, whoever makes them.
pub(crate) async fn shows_ids(node: &Handle, sandbox: &str) {
    let before = layers(node);
    let volume = node.root().join("volume");
    fs::create_dir_all(&volume).unwrap();
    std::os::unix::fs::chown(&volume, Some(1000), Some(2000)).unwrap();
    fs::write(volume.join("theirs"), "seen").unwrap();
    std::os::unix::fs::chown(volume.join("theirs"), Some(1000), Some(2000)).unwrap();
    let mut config = container("root", "touch /mine /data/mine; sleep 1000", FIRST);
    config.mounts = vec![mount("/data", &volume, FIRST)];
    let id = node.launch(sandbox, config).await;
    let (text, code) = node
            .exec(
                &id,
                "while ! [ -e /data/mine ]; do sleep 0.05; done; cat /proc/self/uid_map; \
                 busybox stat -c '%n %u %g' /mine /data /data/mine /data/theirs /bin/busybox /etc/hostname /dev/shm; \
                 cat /data/theirs; id -u",
            )
            .await;
    assert_eq!(code, 0, "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    let first = FIRST.to_string();
    assert_eq!(words[..3], ["0", first.as_str(), "65536"]);
    for expected in [
        "/mine 0 0",
        "/data 1000 2000",
        "/data/mine 0 0",
        "/data/theirs 1000 2000",
        "/bin/busybox 0 0",
        "/etc/hostname 0 0",
        "/dev/shm 0 0",
    ] {
        assert!(
            text.contains(&format!("{expected}\n")),
            "{expected}: {text}"
        );
    }
    assert!(text.ends_with("seen0\n"), "{text}");

    let info = info(node, &id).await;
    let pid = info["pid"].as_u64().unwrap();
    assert_eq!(owner(Path::new(&format!("/proc/{pid}"))), (FIRST, FIRST));
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", first.as_str(), "65536"]);
    // Nothing on disk belongs to the pod's ids: a volume can go to another pod, or to none.
    assert_eq!(owner(&volume.join("mine")), (0, 0));
    let upper = PathBuf::from(info["upper"].as_str().unwrap());
    assert_eq!(owner(&upper.join("mine")), (0, 0));
    assert!(layers(node) == before, "a layer was touched");

    let mut config = container("user", "touch /data/users; id -u; id -G", FIRST);
    config.mounts = vec![mount("/data", &volume, FIRST)];
    context(&mut config).run_as_user = Some(v1::Int64Value { value: 1000 });
    context(&mut config).supplemental_groups = vec![2000];
    let id = node.launch(sandbox, config).await;
    assert_eq!(node.ended(&id).await.exit_code, 0);
    assert_eq!(owner(&volume.join("users")), (1000, 0));

    let shown = node.status(&id).await.mounts;
    assert_eq!(shown[0].uid_mappings, ids(FIRST));
}

#[test]
fn two_pods_share_no_id() {
    test(|node| async move {
        let secret = node.root().join("secret");
        fs::create_dir_all(&secret).unwrap();
        let mut running = Vec::new();
        for (name, first) in [("one", FIRST), ("two", SECOND)] {
            let sandbox = node.run_pod(pod(&node, name, options(first))).await;
            let id = node
                .launch(&sandbox, container(name, "sleep 1000", first))
                .await;
            let pid = info(&node, &id).await["pid"].as_u64().unwrap();
            assert_eq!(owner(Path::new(&format!("/proc/{pid}"))).0, first);
            let users = fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
            running.push((sandbox, users));
        }
        assert_ne!(running[0].1, running[1].1);
        // A mount without maps shows the node's ids, which do not exist inside.
        let mut config = container("bare", "busybox stat -c %u /data; touch /data/x", FIRST);
        config.mounts = vec![v1::Mount {
            uid_mappings: vec![],
            gid_mappings: vec![],
            ..mount("/data", &secret, FIRST)
        }];
        let id = node.launch(&running[0].0, config).await;
        let status = node.ended(&id).await;
        assert_eq!(status.exit_code, 1);
        let log = fs::read_to_string(status.log_path).unwrap();
        assert!(
            log.contains("65534") && log.contains("Permission denied"),
            "{log}"
        );
    });
}

#[test]
fn root_of_a_pod_rules_its_namespaces_and_nothing_else() {
    test(|node| async move {
        let mut config = pod(&node, "caps", options(FIRST));
        config.linux.as_mut().unwrap().sysctls =
            [("net.ipv4.tcp_syncookies".to_owned(), "0".to_owned())].into();
        let sandbox = node.run_pod(config).await;
        let mut config = container("all", "sleep 1000", FIRST);
        // Nothing is hidden or read-only, nothing filtered: what is left is the user namespace.
        context(&mut config).capabilities = Some(v1::Capability {
            add_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
        context(&mut config).seccomp = Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::Unconfined as i32,
            ..Default::default()
        });
        let id = node.launch(&sandbox, config).await;
        let (text, _) = node.exec(&id, "grep CapEff /proc/self/status").await;
        let set = text.trim().rsplit('\t').next().unwrap();
        let set = u64::from_str_radix(set, 16).unwrap();
        assert_eq!(set & 1 << 21, 1 << 21, "CAP_SYS_ADMIN is held: {text}");
        // Its own: mounts, addresses, sysctls of its network.
        for allowed in [
            "mount -t tmpfs none /tmp && touch /tmp/x",
            "ip addr add 10.99.0.1/32 dev lo && ip addr show lo | grep -q 10.99.0.1",
            "cat /proc/sys/net/ipv4/tcp_syncookies | grep -q 0",
            "echo 1 > /proc/sys/net/ipv4/tcp_syncookies",
            "busybox hostname other",
            "ls /dev/mqueue /sys/class/net/eth0",
            "ip addr show lo | grep -q UP",
        ] {
            let (text, code) = node.exec(&id, &format!("{{ {allowed}; }} 2>&1")).await;
            assert_eq!(code, 0, "{allowed}: {text}");
        }
        // Not its own: devices, and what the kernel has once for all.
        for forbidden in [
            "busybox mknod /dev/disk b 8 0",
            "busybox mknod /tmp/null c 1 3",
            "mount -t ext4 /dev/null /tmp",
            "echo 1 > /proc/sys/kernel/printk",
            "echo x > /proc/sys/kernel/core_pattern",
            "echo 0 > /proc/sys/vm/swappiness",
            "echo b > /proc/sysrq-trigger",
            "busybox chown 70000 /bin/busybox",
            "busybox dmesg -n 1",
            // The class of CVE-2022-0492: a hierarchy of one's own, or the shown one made writable.
            "mount -t cgroup2 none /tmp && busybox mkdir /tmp/x",
            "mount -t cgroup -o memory none /tmp && busybox mkdir /tmp/x",
            "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,rw,bind $d; \
             [ -e $d/cgroup.procs ] && busybox mkdir $d/x && exit 0; done; false",
        ] {
            let (text, code) = node.exec(&id, &format!("{{ {forbidden}; }} 2>&1")).await;
            assert_ne!(code, 0, "{forbidden}: {text}");
        }
        // The container's root sees the node's processes nowhere and cannot signal them.
        let (text, _) = node
            .exec(
                &id,
                &format!("kill -0 {} 2>&1; echo $?", std::process::id()),
            )
            .await;
        assert!(text.ends_with("1\n"), "{text}");
    });
}

#[test]
fn containers_share_the_pods_namespaces() {
    test(|node| async move {
        let shared = v1::NamespaceOption {
            pid: v1::NamespaceMode::Pod as i32,
            ..options(FIRST)
        };
        let sandbox = node.run_pod(pod(&node, "shared", shared.clone())).await;
        let with = |name: &str, command: &str| {
            let mut config = container(name, command, FIRST);
            context(&mut config).namespace_options = Some(shared.clone());
            config
        };
        let first = with("first", "touch /dev/shm/mine; sleep 1234");
        node.launch(&sandbox, first).await;
        let second = node.launch(&sandbox, with("second", "sleep 1000")).await;
        let (text, _) = node
            .exec(
                &second,
                "while ! [ -e /dev/shm/mine ]; do sleep 0.05; done; ps | grep -c '[s]leep 1234'; hostname; touch /dev/shm/too && echo written",
            )
            .await;
        assert_eq!(text, "1\nshared\nwritten\n");
        let server = node.launch(&sandbox, with("server", ECHO_SERVER)).await;
        forwards_ports(&node, &sandbox, &server).await;
    });
}

#[test]
fn a_killed_daemon_finds_the_pods_ids_again() {
    test(|node| async move {
        let sandbox = node.run_pod(pod(&node, "outlive", options(FIRST))).await;
        let main = container("main", "while true; do echo tick; sleep 0.1; done", FIRST);
        let id = node.launch(&sandbox, main).await;
        let created = node
            .create(&sandbox, container("created", "exit 7", FIRST))
            .await
            .unwrap();
        node.crash().await;
        let (text, code) = node.exec(&id, "cat /proc/self/gid_map; id -u").await;
        assert_eq!(code, 0, "{text}");
        assert!(text.contains(&FIRST.to_string()), "{text}");
        let request = v1::StartContainerRequest {
            container_id: created.clone(),
        };
        node.cri().await.start_container(request).await.unwrap();
        assert_eq!(node.ended(&created).await.exit_code, 7);
        let after = node
            .launch(&sandbox, container("after", "exit 8", FIRST))
            .await;
        assert_eq!(node.ended(&after).await.exit_code, 8);
        let request = v1::ContainerStatsRequest {
            container_id: id.clone(),
        };
        let stats = node.cri().await.container_stats(request).await.unwrap();
        assert!(stats.into_inner().stats.unwrap().memory.is_some());
        let log = fs::read_to_string(node.status(&id).await.log_path).unwrap();
        assert!(log.contains("stdout F tick"), "{log}");
        node.remove_pod(&sandbox).await;
        assert!(node.containers().await.is_empty());
    });
}

#[test]
fn options_that_do_not_fit_are_refused() {
    test(|node| async move {
        let run = async |options: v1::NamespaceOption| {
            let request = v1::RunPodSandboxRequest {
                config: Some(pod(&node, "refused", options)),
                runtime_handler: String::new(),
            };
            let refused = node.cri().await.run_pod_sandbox(request).await;
            refused.unwrap_err().message().to_owned()
        };
        let mut host = options(FIRST);
        host.network = v1::NamespaceMode::Node as i32;
        let text = run(host).await;
        assert!(text.contains("namespace_options.network NODE"), "{text}");
        let mut bare = options(FIRST);
        bare.userns_options.as_mut().unwrap().gids.clear();
        let text = run(bare).await;
        assert!(
            text.contains("can't use user namespace mode \"POD\" without UID and GID mappings"),
            "{text}"
        );
        let mut nodes = options(FIRST);
        nodes.userns_options.as_mut().unwrap().mode = v1::NamespaceMode::Node as i32;
        let text = run(nodes).await;
        assert!(text.contains("mode \"NODE\" with mappings"), "{text}");
        assert!(node.pods().await.is_empty());

        let sandbox = node.run_pod(pod(&node, "right", options(FIRST))).await;
        for wrong in [own_pid(), options(SECOND)] {
            let mut config = shell("wrong", "true");
            context(&mut config).namespace_options = Some(wrong);
            let refused = node.create(&sandbox, config).await.unwrap_err();
            let text = "user namespace config for sandbox is different from container.";
            assert!(refused.message().contains(text), "{refused}");
        }
        let mut config = container("half", "true", FIRST);
        config.mounts = vec![v1::Mount {
            gid_mappings: vec![],
            ..mount("/data", &node.root(), FIRST)
        }];
        let refused = node.create(&sandbox, config).await.unwrap_err();
        assert!(refused.message().contains("gidMappings"), "{refused}");
        let mut config = container("beyond", "true", FIRST);
        context(&mut config).run_as_user = Some(v1::Int64Value { value: 70000 });
        let id = node.create(&sandbox, config).await.unwrap();
        let request = v1::StartContainerRequest {
            container_id: id.clone(),
        };
        let refused = node.cri().await.start_container(request).await.unwrap_err();
        assert!(
            refused.message().contains("70000 is not mapped"),
            "{refused}"
        );
        let status = v1::StatusRequest { verbose: false };
        let status = node.cri().await.status(status).await.unwrap();
        let handlers = status.into_inner().runtime_handlers;
        let own = handlers.iter().find(|h| h.name.is_empty()).unwrap();
        assert!(own.features.unwrap().user_namespaces);
    });
}
