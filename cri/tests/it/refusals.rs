// SPDX-License-Identifier: Apache-2.0
//! Bad input: a clear refusal, the right code, and a node that stays healthy.

use cri::v1;

use crate::node::{context, shell, test};

#[test]
fn what_is_not_there_is_named() {
    test(|node| async move {
        let mut cri = node.cri().await;
        let pod = node.run_pod(node.pod("refuse")).await;
        let mut absent = shell("c", "true");
        absent.image.as_mut().unwrap().image = "example.test/absent:1".into();
        let error = node.create(&pod, absent).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::NotFound);
        assert!(error.message().contains("example.test/absent:1"));
        let error = node.create("feed", shell("c", "true")).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::NotFound);
        let same = v1::RunPodSandboxRequest {
            config: Some(node.pod("refuse")),
            runtime_handler: String::new(),
        };
        let error = cri.run_pod_sandbox(same).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::AlreadyExists);
        assert!(error.message().contains(&pod), "{error}");
        let handler = v1::RunPodSandboxRequest {
            config: Some(node.pod("other")),
            runtime_handler: "kata".into(),
        };
        assert!(
            cri.run_pod_sandbox(handler)
                .await
                .unwrap_err()
                .message()
                .contains("kata")
        );
        let error = cri
            .checkpoint_container(v1::CheckpointContainerRequest::default())
            .await
            .unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unimplemented);
        assert!(error.message().contains("CheckpointContainer"));
    });
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_nothing() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("refuse")).await;
        type Change = fn(&mut v1::ContainerConfig);
        let cases: [(&str, Change); 6] = [
            ("FLY", |c| {
                context(c).capabilities = Some(v1::Capability {
                    add_capabilities: vec!["FLY".into()],
                    ..Default::default()
                });
            }),
            ("ghost", |c| context(c).run_as_username = "ghost".into()),
            ("log_path", |c| c.log_path = "../../x".into()),
            ("unresolvable CDI devices v/d=1", |c| {
                c.cdi_devices = vec![v1::CdiDevice {
                    name: "v/d=1".into(),
                }]
            }),
            ("privileged", |c| context(c).privileged = true),
            ("/dev/absent", |c| {
                c.devices = vec![v1::Device {
                    host_path: "/dev/absent".into(),
                    ..Default::default()
                }];
            }),
        ];
        for (word, change) in cases {
            let mut config = shell("bad", "true");
            change(&mut config);
            let error = node.create(&pod, config).await.unwrap_err();
            assert!(error.message().contains(word), "{word}: {error}");
        }
        assert!(node.containers().await.is_empty());
        let left = std::fs::read_dir(node.config().data_dir.join("cri/containers")).unwrap();
        assert_eq!(left.count(), 0);
        let mut host = node.pod("host");
        let linux = host.linux.as_mut().unwrap();
        linux.sysctls = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
        let options = linux
            .security_context
            .as_mut()
            .unwrap()
            .namespace_options
            .as_mut()
            .unwrap();
        options.network = v1::NamespaceMode::Node as i32;
        let request = v1::RunPodSandboxRequest {
            config: Some(host),
            runtime_handler: String::new(),
        };
        let error = node.cri().await.run_pod_sandbox(request).await.unwrap_err();
        assert!(error.message().contains("net.ipv4.ip_forward"), "{error}");
    });
}

#[test]
fn a_container_that_cannot_start_says_why() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("start")).await;
        let mut config = shell("main", "true");
        config.command = vec!["/no/such/program".into()];
        let id = node.create(&pod, config).await.unwrap();
        let request = v1::StartContainerRequest {
            container_id: id.clone(),
        };
        let error = node.cri().await.start_container(request).await.unwrap_err();
        assert!(error.message().contains("/no/such/program"), "{error}");
        let status = node.status(&id).await;
        assert_eq!(status.state(), v1::ContainerState::ContainerExited);
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError")
        );
        assert!(status.message.contains("/no/such/program"));
    });
}

#[test]
fn a_network_that_fails_fails_the_pod_and_nothing_else() {
    test(|node| async move {
        std::fs::remove_dir_all(node.config().cni_conf_dir).unwrap();
        let request = v1::RunPodSandboxRequest {
            config: Some(node.pod("net")),
            runtime_handler: String::new(),
        };
        let error = node.cri().await.run_pod_sandbox(request).await.unwrap_err();
        assert!(error.message().contains("network"), "{error}");
        assert!(node.pods().await.is_empty());
        let mut host = node.pod("host");
        let linux = host.linux.as_mut().unwrap();
        let options = linux
            .security_context
            .as_mut()
            .unwrap()
            .namespace_options
            .as_mut()
            .unwrap();
        options.network = v1::NamespaceMode::Node as i32;
        let pod = node.run_pod(host).await;
        let id = node.launch(&pod, shell("main", "true")).await;
        assert_eq!(node.ended(&id).await.exit_code, 0);
    });
}
