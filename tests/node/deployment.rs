// SPDX-License-Identifier: Apache-2.0
//! A Deployment behind a Service, from apply to delete, driven by a stock kubectl.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::{TestHost, wait_for, wait_until};

const EXAMPLE: &str = include_str!("../../examples/hello.yaml");

fn page(host: &TestHost, address: &str) -> Result<String> {
    let fetch = format!("timeout 5 busybox wget -qO- http://{address}/");
    wait_for(
        &format!("a page from {address}"),
        Duration::from_secs(30),
        || host.sh(&fetch).map_err(|error| format!("{error:#}")),
    )
}

#[test]
fn a_stock_kubectl_drives_a_deployment_through_its_life() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;

    let applied = host.apply(EXAMPLE)?;
    assert!(
        applied.contains("deployment.apps/hello created"),
        "{applied}"
    );
    rollout(&host)?;

    let service = host.get(&["service", "hello"])?;
    let cluster_ip = service["spec"]["clusterIP"]
        .as_str()
        .context("a ClusterIP")?;
    assert_eq!(page(&host, cluster_ip)?, "Hello from podwright\n");
    let node_port = format!("{}:30080", tests::host::HOST_IP);
    assert_eq!(page(&host, &node_port)?, "Hello from podwright\n");

    let again = host.apply(EXAMPLE)?;
    assert!(again.contains("deployment.apps/hello unchanged"), "{again}");

    host.kubectl_ok(&["scale", "deployment", "hello", "--replicas", "3"])?;
    rollout(&host)?;
    let pods = pod_names(&host)?;
    assert_eq!(pods.len(), 3, "{pods:?}");
    // Every endpoint is behind the Service by now, so asking often enough meets all of them.
    for _ in 0..12 {
        page(&host, cluster_ip)?;
    }

    // The readiness probe alone makes the server log requests.
    wait_until(
        "the pod has logged a request",
        Duration::from_secs(30),
        || {
            let logs = host.kubectl_ok(&["logs", &pods[0]]).unwrap_or_default();
            logs.contains("url:/index.html") || logs.contains("response:200")
        },
    )?;
    let said = host.kubectl_ok(&["exec", &pods[0], "--", "cat", "/www/index.html"])?;
    assert_eq!(said, "Hello from podwright\n");
    let code = host
        .kubectl(&["exec", &pods[0], "--", "sh", "-c", "exit 7"])
        .status()?;
    assert_eq!(code.code(), Some(7));
    let described = host.kubectl_ok(&["describe", "pod", &pods[0]])?;
    for expected in [
        "Liveness:",
        "Readiness:",
        "Startup:",
        "Started",
        "ConfigMap",
    ] {
        assert!(
            described.contains(expected),
            "no {expected:?} in\n{described}"
        );
    }

    host.kubectl_ok(&["set", "env", "deployment/hello", "GREETING=hi"])?;
    rollout(&host)?;
    let renewed = pod_names(&host)?;
    assert!(
        renewed.iter().all(|pod| !pods.contains(pod)),
        "{renewed:?} {pods:?}"
    );
    host.kubectl_ok(&["rollout", "undo", "deployment/hello"])?;
    rollout(&host)?;

    let file = host.write("hello.yaml", EXAMPLE)?;
    host.kubectl_ok(&["delete", "-f", &file, "--timeout=60s"])?;
    wait_until("the pods are gone", Duration::from_secs(60), || {
        pod_names(&host).is_ok_and(|pods| pods.is_empty())
    })?;
    server.stop()?;
    host.down()
}

fn rollout(host: &TestHost) -> Result<()> {
    let status = ["rollout", "status", "deployment/hello", "--timeout=120s"];
    host.kubectl_ok(&status).map(drop).with_context(|| {
        let pods = host.kubectl_ok(&["get", "pods", "-o", "wide"]);
        let events = host.kubectl_ok(&["get", "events"]);
        format!(
            "{}\n{}",
            pods.unwrap_or_default(),
            events.unwrap_or_default()
        )
    })
}

/// Names of the pods that are not on their way out.
fn pod_names(host: &TestHost) -> Result<Vec<String>> {
    let list = host.get(&["pods", "-l", "app=hello"])?;
    let pods = list["items"].as_array().context("a list of pods")?;
    let staying = pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(staying
        .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
        .collect())
}
