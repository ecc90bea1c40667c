// SPDX-License-Identifier: Apache-2.0
//! Plugins that are late, broken, hostile or gone, and a runtime that starts again.

use cri::nri::api;
use prost::Message as _;

use super::plugin::{Plugin, Reply, agree, say, socket_of};
use crate::node::{shell, test};

#[test]
fn a_late_plugin_is_dropped_and_the_request_goes_on() {
    test(|node| async move {
        let late = Plugin::join(&node, "00", "late", |method, payload| match method {
            "CreateContainer" => Reply::Never,
            _ => agree(method, payload),
        })
        .await;
        let other = Plugin::join(&node, "10", "other", agree).await;
        let pod = node.run_pod(node.pod("late")).await;
        let id = node.launch(&pod, shell("c", "sleep 1000")).await;
        assert_eq!(late.events_of(&id), ["CreateContainer"]);
        late.dropped().await;
        let expected = [
            "CreateContainer",
            "PostCreateContainer",
            "StartContainer",
            "PostStartContainer",
        ];
        assert_eq!(other.events_of(&id), expected);
    });
}

#[test]
fn nonsense_ends_a_connection_and_nothing_else() {
    test(|node| async move {
        let good = Plugin::join(&node, "50", "good", agree).await;
        for bytes in [
            vec![0xff; 64],
            [
                &[0, 0, 0, 2, 0, 0, 0, 14][..],
                &[0, 0, 0, 4, 0, 0, 0, 1, 1, 0],
                &[0xff; 4],
            ]
            .concat(),
            [
                &[0, 0, 0, 1, 0, 0, 0, 10][..],
                &[0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
            ]
            .concat(),
        ] {
            let bad = Plugin::connect(&node, agree).await;
            bad.send(bytes);
            bad.dropped().await;
        }
        for (index, name) in [("1", "a"), ("0x", "a"), ("00", ""), ("00", "a/b")] {
            let bad = Plugin::connect(&node, agree).await;
            let refused = bad.register(index, name).await.status.unwrap();
            assert_eq!(refused.code, 3, "{refused:?}");
            bad.dropped().await;
        }
        let greedy = Plugin::connect(&node, |method, payload| match method {
            "Configure" => say(&api::ConfigureResponse { events: 1 << 20 }),
            _ => agree(method, payload),
        })
        .await;
        greedy.register("00", "greedy").await;
        greedy.dropped().await;
        let unknown = good.ask("Nonsense", &api::Empty {}).await.status.unwrap();
        assert_eq!(unknown.code, 12);
        let pod = node.run_pod(node.pod("fine")).await;
        good.heard("RunPodSandbox").await;
        node.remove_pod(&pod).await;
    });
}

#[test]
fn plugins_come_back_after_the_runtime_was_killed() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("again")).await;
        let runs = node.launch(&pod, shell("runs", "sleep 1000")).await;
        let ended = node.launch(&pod, shell("ended", "exit 5")).await;
        node.ended(&ended).await;
        let plugin = Plugin::join(&node, "00", "p", agree).await;
        node.crash().await;
        plugin.dropped().await;
        let plugin = Plugin::join(&node, "00", "p", agree).await;
        let synced = plugin.heard("Synchronize").await;
        let synced = api::SynchronizeRequest::decode(synced.payload.as_slice()).unwrap();
        let state = |id: &str| {
            let found = synced.containers.iter().find(|c| c.id == id).unwrap();
            (found.state(), found.exit_code)
        };
        assert_eq!(state(&runs), (api::ContainerState::ContainerRunning, 0));
        assert_eq!(state(&ended), (api::ContainerState::ContainerStopped, 5));
        node.remove_pod(&pod).await;
        assert_eq!(
            plugin.events_of(&runs),
            ["StopContainer", "RemoveContainer"]
        );
        assert_eq!(plugin.events_of(&ended), ["RemoveContainer"]);
        assert_eq!(
            plugin.events_of(&pod),
            ["StopPodSandbox", "RemovePodSandbox"]
        );
    });
}

#[test]
fn a_clean_stop_says_goodbye_and_takes_the_socket() {
    test(|node| async move {
        let plugin = Plugin::join(&node, "00", "p", agree).await;
        let socket = socket_of(&node);
        node.stop().await;
        plugin.heard("Shutdown").await;
        plugin.dropped().await;
        assert!(!socket.exists());
    });
}

#[test]
fn pre_installed_plugins_start_with_the_runtime_and_end_with_it() {
    test(|node| async move {
        node.stop().await;
        let root = node.root();
        let nri = node.config().settings.get().nri.clone();
        std::fs::create_dir_all(&nri.plugin_path).unwrap();
        let program = nri.plugin_path.join("05-witness");
        let note = root.join("witness");
        let script = format!(
            "#!/bin/sh\necho $NRI_PLUGIN_NAME $NRI_PLUGIN_IDX $NRI_PLUGIN_SOCKET > {note}.new\n\
             [ -S /proc/self/fd/$NRI_PLUGIN_SOCKET ] || [ -e /proc/self/fd/$NRI_PLUGIN_SOCKET ] && echo $$ >> {note}.new\n\
             /bin/busybox mv {note}.new {note}\nexec /bin/busybox sleep 1000\n",
            note = note.display(),
        );
        std::fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        node.start().await;
        crate::node::until("the plugin was started", || note.exists()).await;
        let said = std::fs::read_to_string(&note).unwrap();
        let (first, pid) = said.trim().split_once('\n').unwrap();
        assert_eq!(first, "witness 05 0");
        let process = std::path::Path::new("/proc").join(pid);
        // It never registers, so it is given up.
        crate::node::until("the plugin was ended", || !process.exists()).await;
    });
}
