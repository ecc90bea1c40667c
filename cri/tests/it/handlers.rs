// SPDX-License-Identifier: Apache-2.0
//! Pods whose pause and containers another OCI runtime makes: runc and crun, as Debian has them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use cri::v1;
use nix::mount::{MsFlags, mount, umount};

use crate::node::{self, Handle, context, shell, test, test_prepared};
use crate::userns::{self, FIRST};
use crate::{streams, volumes};

/// crun refuses hybrid cgroup mounts, and takes the directory of one for the mount itself. So the
/// node's mount namespace gets a directory of cgroup mounts without it.
fn without_hybrid() {
    let (root, unified) = (Path::new("/sys/fs/cgroup"), "unified");
    if !root.join(unified).exists() {
        return;
    }
    let none: Option<&str> = None;
    let fresh = tempfile::tempdir().unwrap();
    let flags = MsFlags::empty();
    mount(Some("cgroups"), fresh.path(), Some("tmpfs"), flags, none).unwrap();
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        if entry.file_name() == unified || !entry.path().is_dir() {
            continue;
        }
        let place = fresh.path().join(entry.file_name());
        std::fs::create_dir(&place).unwrap();
        mount(Some(&entry.path()), &place, none, MsFlags::MS_BIND, none).unwrap();
    }
    mount(Some(fresh.path()), root, none, MsFlags::MS_MOVE, none).unwrap();
}

pub(crate) async fn run_pod(node: &Handle, name: &str, handler: &str) -> String {
    run(node, node.pod(name), handler).await.unwrap()
}

async fn run(
    node: &Handle,
    config: v1::PodSandboxConfig,
    handler: &str,
) -> Result<String, tonic::Status> {
    let request = v1::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: handler.to_owned(),
    };
    let answer = node.cri().await.run_pod_sandbox(request).await?;
    Ok(answer.into_inner().pod_sandbox_id)
}

pub(crate) fn is_there(runtime: &str) -> bool {
    let there = Path::new("/usr/bin").join(runtime).exists()
        || Path::new("/usr/sbin").join(runtime).exists();
    if !there {
        eprintln!("skipped: {runtime} is not installed");
    }
    there
}

fn a_pod_lives_and_goes(handler: &'static str) {
    if !is_there(handler) {
        return;
    }
    test_prepared(false, without_hybrid, move |node| async move {
        let pod = run_pod(&node, "outside", handler).await;
        let state = node
            .config()
            .run_dir
            .join("cri/sandboxes")
            .join(&pod)
            .join("runtime");
        let known = std::fs::read_dir(&state).unwrap().count();
        assert_eq!(known, 1, "pause is not the runtime's");
        let ends = shell("ends", "echo hello; echo oops >&2; hostname; id -u; exit 3");
        let ends = node.launch(&pod, ends).await;
        let lasts = node
            .launch(&pod, shell("lasts", "echo mine > /dev/shm/x; sleep 1000"))
            .await;
        let ended = node.ended(&ends).await;
        assert_eq!(
            (ended.exit_code, ended.reason.as_str()),
            (3, "Error"),
            "{ended:?}"
        );
        let log = std::fs::read_to_string(&ended.log_path).unwrap();
        for line in [
            " stdout F hello\n",
            " stderr F oops\n",
            " stdout F outside\n",
        ] {
            assert!(log.contains(line), "{log}");
        }
        // The pod's own /dev/shm and network.
        let other = node
            .launch(&pod, shell("other", "cat /dev/shm/x; ip addr; sleep 1000"))
            .await;
        let log = node.status(&other).await.log_path;
        let said = node::log_with(&log, "10.88.").await;
        assert!(said.contains(" mine\n"), "{said}");
        let (out, code) = node.exec(&lasts, "echo in; id -u; exit 7").await;
        assert_eq!((out.as_str(), code), ("in\n0\n", 7));
        let request = v1::ExecSyncRequest {
            container_id: lasts.clone(),
            cmd: vec!["/no/such".to_owned()],
            timeout: 10,
        };
        let refused = node.cri().await.exec_sync(request).await.unwrap_err();
        assert!(refused.message().contains("/no/such"), "{refused:?}");
        let stats = v1::ContainerStatsRequest {
            container_id: lasts.clone(),
        };
        let stats = node
            .cri()
            .await
            .container_stats(stats)
            .await
            .unwrap()
            .into_inner();
        let memory = stats.stats.unwrap().memory.unwrap();
        assert!(memory.working_set_bytes.unwrap().value > 0);
        node.stop_container(&lasts, 0).await;
        assert_eq!(node.status(&lasts).await.exit_code, 137);
        let missing = v1::ContainerConfig {
            command: vec!["/no/such".to_owned()],
            ..shell("missing", "")
        };
        let missing = node.create(&pod, missing).await.unwrap();
        let start = v1::StartContainerRequest {
            container_id: missing.clone(),
        };
        let refused = node.cri().await.start_container(start).await.unwrap_err();
        assert!(refused.message().contains("/no/such"), "{refused:?}");
        let status = node.status(&missing).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError")
        );
        node.remove_pod(&pod).await;
        assert!(!state.exists());
    });
}

#[test]
fn a_pod_of_runc_lives_and_goes() {
    a_pod_lives_and_goes("runc");
}

#[test]
fn a_pod_of_crun_lives_and_goes() {
    a_pod_lives_and_goes("crun");
}

fn the_daemon_may_be_killed(handler: &'static str) {
    if !is_there(handler) {
        return;
    }
    test_prepared(true, without_hybrid, move |node| async move {
        let pod = run_pod(&node, "killed", handler).await;
        let lasts = node.launch(&pod, shell("lasts", "sleep 1000")).await;
        let command = "while ! [ -e /shared/go ]; do sleep 0.05; done; echo after; exit 5";
        let mut ends = shell("ends", command);
        let shared = node.root().join("shared");
        ends.mounts.push(v1::Mount {
            host_path: shared.display().to_string(),
            container_path: "/shared".to_owned(),
            ..Default::default()
        });
        let ends = node.launch(&pod, ends).await;
        node.kill().await;
        // Without a daemon: the shim lets it end, and keeps its log and code.
        std::fs::write(shared.join("go"), "").unwrap();
        let log = node
            .config()
            .run_dir
            .join("cri/sandboxes")
            .join(&pod)
            .join("exits")
            .join(&ends);
        node::until("its end is on record", || log.exists()).await;
        node.start().await;
        let ended = node.ended(&ends).await;
        assert_eq!(ended.exit_code, 5);
        assert!(
            std::fs::read_to_string(&ended.log_path)
                .unwrap()
                .contains(" after\n")
        );
        let (out, code) = node.exec(&lasts, "echo here").await;
        assert_eq!((out.as_str(), code), ("here\n", 0));
        node.crash().await;
        node.remove_pod(&pod).await;
    });
}

#[test]
fn the_daemon_of_a_pod_of_runc_may_be_killed() {
    the_daemon_may_be_killed("runc");
}

#[test]
fn the_daemon_of_a_pod_of_crun_may_be_killed() {
    the_daemon_may_be_killed("crun");
}

#[test]
fn a_terminal_is_one_and_memory_runs_out() {
    if !is_there("runc") {
        return;
    }
    test_prepared(false, without_hybrid, |node| async move {
        let pod = run_pod(&node, "tty", "runc").await;
        let mut config = shell(
            "tty",
            "stty size; tty; [ -t 1 ] && echo a terminal; sleep 1000",
        );
        config.tty = true;
        let tty = node.launch(&pod, config).await;
        let log = node.status(&tty).await.log_path;
        node::log_with(&log, "a terminal").await;
        let mut hungry = shell("hungry", "head -c 200m /dev/zero | tail");
        let linux = hungry.linux.as_mut().unwrap();
        linux.resources = Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 16 << 20,
            ..Default::default()
        });
        let hungry = node.launch(&pod, hungry).await;
        assert_eq!(node.ended(&hungry).await.reason, "OOMKilled");
        node.remove_pod(&pod).await;
    });
}

/// As Debian's /run: whatever runs from there has to come to it by a mount of its own.
#[test]
fn a_run_directory_may_forbid_execution() {
    test_prepared(false, without_hybrid, |node| async move {
        let run = node.config().run_dir;
        node.stop().await;
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let none: Option<&str> = None;
        mount(Some("run"), &run, Some("tmpfs"), flags, none).unwrap();
        node.start().await;
        for handler in ["", "runc", "crun"] {
            if handler.is_empty() || is_there(handler) {
                let pod = run_pod(&node, "noexec", handler).await;
                let ends = node.launch(&pod, shell("ends", "exit 3")).await;
                assert_eq!(node.ended(&ends).await.exit_code, 3);
                node.remove_pod(&pod).await;
            }
        }
        node.stop().await;
        umount(&run).unwrap();
        node.start().await;
    });
}

#[test]
fn handlers_are_listed_and_unknown_ones_refused() {
    test(|node| async move {
        let request = v1::StatusRequest { verbose: false };
        let status = node.cri().await.status(request).await.unwrap().into_inner();
        let names: Vec<_> = status
            .runtime_handlers
            .iter()
            .map(|h| h.name.as_str())
            .collect();
        assert_eq!(names, ["", "podwright", "crun", "runc"]);
        let request = v1::RunPodSandboxRequest {
            config: Some(node.pod("unknown")),
            runtime_handler: "kata".to_owned(),
        };
        let refused = node.cri().await.run_pod_sandbox(request).await.unwrap_err();
        assert_eq!(refused.message(), "no runtime for \"kata\" is configured");
    });
}

/// What streams carry, and what is killed, is inside, behind a process of the runtime.
fn streams_reach_into_it(handler: &'static str) {
    if !is_there(handler) {
        return;
    }
    test_prepared(false, without_hybrid, move |node| async move {
        let pod = run_pod(&node, "streams", handler).await;
        streams::execs_with_streams(&node, &pod).await;
        streams::execs_with_a_terminal(&node, &pod).await;
        streams::attaches(&node, &pod).await;
        streams::attaches_to_a_terminal(&node, &pod).await;
        let server = shell("server", streams::ECHO_SERVER);
        let server = node.launch(&pod, server).await;
        streams::forwards_ports(&node, &pod, &server).await;
        let lasts = node.launch(&pod, shell("lasts", "sleep 1000")).await;
        let request = v1::ExecSyncRequest {
            container_id: lasts.clone(),
            cmd: node::words(&["sleep", "5432"]),
            timeout: 1,
        };
        let late = node.cri().await.exec_sync(request).await.unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        streams::gone(&node, &lasts, "[s]leep 5432").await;
        node.remove_pod(&pod).await;
    });
}

#[test]
fn streams_reach_into_runc() {
    streams_reach_into_it("runc");
}

#[test]
fn streams_reach_into_crun() {
    streams_reach_into_it("crun");
}

fn images_are_volumes(handler: &'static str) {
    if !is_there(handler) {
        return;
    }
    test_prepared(false, without_hybrid, move |node| async move {
        let pod = run_pod(&node, "volumes", handler).await;
        volumes::shows_an_image(&node, &pod).await;
        node.remove_pod(&pod).await;
    });
}

/// Its root and volumes are mapped by us, so that runtimes that cannot do that serve as well.
fn a_pod_has_ids_of_its_own(handler: &'static str) {
    if !is_there(handler) {
        return;
    }
    test_prepared(false, without_hybrid, move |node| async move {
        let status = v1::StatusRequest { verbose: false };
        let status = node.cri().await.status(status).await.unwrap();
        let handlers = status.into_inner().runtime_handlers;
        let said = handlers.iter().find(|h| h.name == handler).unwrap();
        assert!(said.features.unwrap().user_namespaces);

        let config = userns::pod(&node, "ids", userns::options(FIRST));
        let close = |mode| std::fs::set_permissions(node.root(), Permissions::from_mode(mode));
        close(0o700).unwrap();
        let refused = run(&node, config.clone(), handler).await.unwrap_err();
        assert!(refused.message().contains("chmod o+x"), "{refused}");
        close(0o711).unwrap();
        let pod = run(&node, config, handler).await.unwrap();
        userns::shows_ids(&node, &pod).await;

        // Its streams are its user's, also those of an exec.
        let said = "echo out > /dev/stdout; echo err > /dev/stderr; sleep 1000";
        let mut config = userns::container("streams", said, FIRST);
        context(&mut config).run_as_user = Some(v1::Int64Value { value: 1000 });
        let id = node.launch(&pod, config).await;
        let log = node.status(&id).await.log_path;
        node::log_with(&log, " stdout F out\n").await;
        node::log_with(&log, " stderr F err\n").await;
        let said = "id -u; echo said > /dev/stdout; touch /dev/shm/x && cat /dev/shm/x";
        assert_eq!(node.exec(&id, said).await, ("1000\nsaid\n".to_owned(), 0));

        // Another daemon goes on, and what went leaves nothing.
        node.crash().await;
        let rules = "ip addr add 10.99.0.1/32 dev lo && mount -t tmpfs none /tmp; echo $?";
        let mut config = userns::container("after", &format!("{rules}; exit 7"), FIRST);
        context(&mut config).capabilities = Some(v1::Capability {
            add_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
        let id = node.launch(&pod, config).await;
        let ended = node.ended(&id).await;
        let log = std::fs::read_to_string(&ended.log_path).unwrap();
        assert_eq!(ended.exit_code, 7, "{log}");
        assert!(log.contains(" stdout F 0\n"), "{log}");
        let roots = node.config().run_dir.join("cri/roots");
        let count = || std::fs::read_dir(roots.join(&pod)).unwrap().count();
        node::until("only pause, and two that run, have a root", || count() == 3).await;
        node.remove_pod(&pod).await;
        assert_eq!(std::fs::read_dir(&roots).unwrap().count(), 0);
    });
}

#[test]
fn a_pod_of_runc_has_ids_of_its_own() {
    a_pod_has_ids_of_its_own("runc");
}

#[test]
fn a_pod_of_crun_has_ids_of_its_own() {
    a_pod_has_ids_of_its_own("crun");
}

#[test]
fn images_are_volumes_of_runc() {
    images_are_volumes("runc");
}

#[test]
fn images_are_volumes_of_crun() {
    images_are_volumes("crun");
}

/// What a container mounts in such a volume is the host's, and the other way round.
fn mounts_go_both_ways(handler: &'static str) {
    if !handler.is_empty() && !is_there(handler) {
        return;
    }
    // Apart: the daemon looks at the mounts of its process, which are not this thread's here.
    test_prepared(true, without_hybrid, move |node| async move {
        let both = node.root().join("both");
        std::fs::create_dir(&both).unwrap();
        let none: Option<&str> = None;
        let tmpfs = |at: &Path| mount(none, at, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        tmpfs(&both);
        mount(none, &both, none, MsFlags::MS_SHARED, none).unwrap();
        let pod = run_pod(&node, "both", handler).await;
        let mut config = shell(
            "both",
            "mkdir /both/in && mount -t tmpfs in /both/in && echo x > /both/in/x; \
             until [ -e /both/out/y ]; do sleep 0.05; done; echo seen; sleep 1000",
        );
        config.mounts.push(v1::Mount {
            host_path: both.display().to_string(),
            container_path: "/both".to_owned(),
            propagation: v1::MountPropagation::PropagationBidirectional.into(),
            ..Default::default()
        });
        context(&mut config).capabilities = Some(v1::Capability {
            add_capabilities: vec!["SYS_ADMIN".into()],
            ..Default::default()
        });
        let id = node.launch(&pod, config).await;
        let inside = both.join("in/x");
        node::until("the host sees the container's mount", || inside.exists()).await;
        let outside = both.join("out");
        std::fs::create_dir(&outside).unwrap();
        tmpfs(&outside);
        std::fs::write(outside.join("y"), "").unwrap();
        let log = node.status(&id).await.log_path;
        node::log_with(&log, "seen").await;
        node.remove_pod(&pod).await;
        // Both are the host's now, which the pod did not take along.
        for place in [both.join("in"), outside, both] {
            umount(&place).unwrap();
        }
    });
}

#[test]
fn mounts_go_both_ways_with_our_own_runtime() {
    mounts_go_both_ways("");
}

#[test]
fn mounts_go_both_ways_with_runc() {
    mounts_go_both_ways("runc");
}

#[test]
fn mounts_go_both_ways_with_crun() {
    mounts_go_both_ways("crun");
}
