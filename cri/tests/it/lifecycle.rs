// SPDX-License-Identifier: Apache-2.0
//! From RunPodSandbox to RemovePodSandbox, as a kubelet goes.

use std::time::{Duration, Instant};

use cri::v1;

use crate::node::{IMAGE, shell, test};

#[test]
fn a_pod_lives_and_goes() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("web")).await;
        let mut cri = node.cri().await;
        let status = cri
            .pod_sandbox_status(v1::PodSandboxStatusRequest {
                pod_sandbox_id: pod[..12].to_owned(),
                verbose: true,
            })
            .await
            .unwrap()
            .into_inner();
        let sandbox = status.status.unwrap();
        assert_eq!(sandbox.state(), v1::PodSandboxState::SandboxReady);
        assert!(sandbox.network.unwrap().ip.starts_with("10.88.0."));
        assert!(status.info["info"].contains("\"netns\""));

        let id = node
            .create(
                &pod,
                shell("main", "echo hello; echo oops >&2; hostname; exit 3"),
            )
            .await
            .unwrap();
        assert_eq!(
            node.status(&id).await.state(),
            v1::ContainerState::ContainerCreated
        );
        cri.start_container(v1::StartContainerRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap();
        let ended = node.ended(&id).await;
        assert_eq!(
            (ended.exit_code, ended.reason.as_str()),
            (3, "Error"),
            "{ended:?}"
        );
        assert!(ended.created_at <= ended.started_at && ended.started_at <= ended.finished_at);
        assert!(ended.image_ref.contains("sha256:"));
        assert_eq!(ended.image.unwrap().image, IMAGE);

        let log = std::fs::read_to_string(&ended.log_path).unwrap();
        assert!(log.contains(" stdout F hello\n"), "{log}");
        assert!(log.contains(" stderr F oops\n"), "{log}");
        assert!(log.contains(" stdout F web\n"), "{log}");

        let twice = cri
            .start_container(v1::StartContainerRequest {
                container_id: id.clone(),
            })
            .await
            .unwrap_err();
        assert_eq!(twice.code(), tonic::Code::FailedPrecondition);
        for _ in 0..2 {
            node.stop_container(&id, 1).await;
            cri.remove_container(v1::RemoveContainerRequest {
                container_id: id.clone(),
            })
            .await
            .unwrap();
        }
        assert!(node.containers().await.is_empty());
        node.remove_pod(&pod).await;
        node.remove_pod(&pod).await;
        assert!(node.pods().await.is_empty());
        let gone = cri
            .pod_sandbox_status(v1::PodSandboxStatusRequest {
                pod_sandbox_id: pod.clone(),
                verbose: false,
            })
            .await
            .unwrap_err();
        assert_eq!(gone.code(), tonic::Code::NotFound);
        assert!(gone.message().contains(&pod));
    });
}

#[test]
fn stopping_asks_first_and_kills_after_the_grace_period() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("grace")).await;
        let polite = node
            .launch(
                &pod,
                shell(
                    "polite",
                    "trap 'exit 7' TERM; touch /ready; while true; do sleep 0.1; done",
                ),
            )
            .await;
        let deaf = node
            .launch(
                &pod,
                shell(
                    "deaf",
                    "trap '' TERM; touch /ready; while true; do sleep 0.1; done",
                ),
            )
            .await;
        for id in [&polite, &deaf] {
            let (_, code) = node
                .exec(id, "while ! [ -e /ready ]; do sleep 0.05; done")
                .await;
            assert_eq!(code, 0);
        }
        node.stop_container(&polite, 30).await;
        assert_eq!(node.status(&polite).await.exit_code, 7);
        let start = Instant::now();
        node.stop_container(&deaf, 1).await;
        assert!(start.elapsed() >= Duration::from_secs(1));
        let status = node.status(&deaf).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    });
}

#[test]
fn subscribers_hear_what_happens() {
    test(|node| async move {
        let mut cri = node.cri().await;
        let mut events = cri
            .get_container_events(v1::GetEventsRequest {})
            .await
            .unwrap()
            .into_inner();
        let pod = node.run_pod(node.pod("events")).await;
        let id = node.launch(&pod, shell("main", "true")).await;
        node.ended(&id).await;
        node.remove_pod(&pod).await;
        let mut seen = Vec::new();
        while seen.len() < 8 {
            let event = events.message().await.unwrap().unwrap();
            assert!(event.pod_sandbox_status.is_some());
            let who = if event.container_id == pod {
                "pod"
            } else {
                "container"
            };
            seen.push((who, event.container_event_type().as_str_name()));
        }
        for expected in [
            ("pod", "CONTAINER_CREATED_EVENT"),
            ("pod", "CONTAINER_STARTED_EVENT"),
            ("container", "CONTAINER_CREATED_EVENT"),
            ("container", "CONTAINER_STARTED_EVENT"),
            ("container", "CONTAINER_STOPPED_EVENT"),
            ("container", "CONTAINER_DELETED_EVENT"),
            ("pod", "CONTAINER_STOPPED_EVENT"),
            ("pod", "CONTAINER_DELETED_EVENT"),
        ] {
            assert!(
                seen.contains(&expected),
                "{expected:?} is missing in {seen:?}"
            );
        }
    });
}

#[test]
fn pods_talk_to_each_other_and_have_their_dns() {
    test(|node| async move {
        let mut config = node.pod("server");
        config.dns_config = Some(v1::DnsConfig {
            servers: vec!["10.43.0.10".into()],
            searches: vec!["svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        });
        let server = node.run_pod(config).await;
        let serving = node
            .launch(
                &server,
                shell("s", "while true; do echo welcome | nc -l -p 80; done"),
            )
            .await;
        let (resolv, _) = node.exec(&serving, "cat /etc/resolv.conf").await;
        assert_eq!(
            resolv,
            "search svc.cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n"
        );
        let status = node
            .cri()
            .await
            .pod_sandbox_status(v1::PodSandboxStatusRequest {
                pod_sandbox_id: server.clone(),
                verbose: false,
            })
            .await
            .unwrap();
        let ip = status.into_inner().status.unwrap().network.unwrap().ip;
        let client = node.run_pod(node.pod("client")).await;
        let asking = node.launch(&client, shell("c", "sleep 1000")).await;
        let ask = format!(
            "for i in 1 2 3 4 5 6 7 8 9 10; do nc -w 2 {ip} 80 </dev/null && break; sleep 0.2; done"
        );
        let (text, _) = node.exec(&asking, &ask).await;
        assert_eq!(text, "welcome\n");
    });
}

#[test]
fn readiness_and_images_are_reported() {
    test(|node| async move {
        let mut cri = node.cri().await;
        let version = cri
            .version(v1::VersionRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(version.runtime_name, "podwright");
        let config = cri
            .runtime_config(v1::RuntimeConfigRequest {})
            .await
            .unwrap()
            .into_inner();
        let driver = config.linux.unwrap().cgroup_driver();
        assert_eq!(driver, v1::CgroupDriver::Cgroupfs);
        let status = cri
            .status(v1::StatusRequest { verbose: true })
            .await
            .unwrap()
            .into_inner();
        let conditions = status.status.unwrap().conditions;
        assert!(conditions.iter().all(|c| c.status), "{conditions:?}");
        std::fs::remove_dir_all(node.config().cni_conf_dir).unwrap();
        let status = cri
            .status(v1::StatusRequest { verbose: false })
            .await
            .unwrap()
            .into_inner();
        let network = status.status.unwrap().conditions.pop().unwrap();
        assert_eq!(
            (network.status, network.reason.as_str()),
            (false, "NetworkPluginNotReady")
        );

        let mut images = node.images().await;
        let named = |name: &str| v1::ImageStatusRequest {
            image: Some(v1::ImageSpec {
                image: name.into(),
                ..Default::default()
            }),
            verbose: false,
        };
        let found = images
            .image_status(named(IMAGE))
            .await
            .unwrap()
            .into_inner()
            .image
            .unwrap();
        assert_eq!(found.uid.unwrap().value, 0);
        let absent = images
            .image_status(named("example.test/absent:1"))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(absent.image, None);
        let usage = images
            .image_fs_info(v1::ImageFsInfoRequest {})
            .await
            .unwrap()
            .into_inner();
        assert!(usage.image_filesystems[0].used_bytes.unwrap().value > 0);
        for _ in 0..2 {
            let image = Some(v1::ImageSpec {
                image: IMAGE.into(),
                ..Default::default()
            });
            images
                .remove_image(v1::RemoveImageRequest { image })
                .await
                .unwrap();
        }
        let left = images
            .list_images(v1::ListImagesRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert!(left.images.is_empty());
    });
}
