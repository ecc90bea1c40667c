// SPDX-License-Identifier: Apache-2.0
//! What a cluster hands out once: load balancers' ports on the nodes, and pods' host ports. And what a
//! node says of others that it cannot reach.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::host::HOST_IP;
use tests::{TestHost, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

fn server_pod(name: &str, host_port: Option<u16>) -> Value {
    let mut port = json!({"containerPort": 8080});
    if let Some(number) = host_port {
        port["hostPort"] = number.into();
    }
    let serve = "mkdir /w; hostname > /w/index.html; exec httpd -f -p 8080 -h /w";
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": "localhost/busybox:1",
                "command": ["sh", "-c", serve],
                "ports": [port],
            }],
        },
    })
}

fn balancer(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app": name},
            "ports": [{"port": port, "targetPort": 8080}],
        },
    })
}

/// The addresses that a load balancer has.
fn given(host: &TestHost, name: &str) -> Result<Vec<String>> {
    let service = host.get(&["service", name])?;
    let ingress = service["status"]["loadBalancer"]["ingress"]
        .as_array()
        .cloned();
    let ips = ingress.unwrap_or_default();
    Ok(ips
        .iter()
        .filter_map(|i| i["ip"].as_str().map(str::to_owned))
        .collect())
}

/// Who answers at a port of the node.
fn answers(host: &TestHost, port: u16) -> String {
    let ask = format!("timeout 2 busybox wget -qO- http://{HOST_IP}:{port}/");
    host.sh(&ask).unwrap_or_default().trim().to_owned()
}

fn condition_message(host: &TestHost, pod: &str) -> Result<String> {
    let pod = host.pod(pod)?;
    let conditions = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let scheduled = conditions.iter().find(|c| c["type"] == "PodScheduled");
    let message = scheduled.and_then(|c| c["message"].as_str());
    Ok(message.unwrap_or_default().to_owned())
}

#[test]
fn a_port_of_the_node_is_given_once() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    for name in ["one", "two"] {
        host.apply(&server_pod(name, None).to_string())?;
    }
    host.apply(&server_pod("claims", Some(8089)).to_string())?;
    for name in ["one", "two", "claims"] {
        host.wait_pod_ready(name)?;
    }

    // A load balancer gets the node's address, and the port there leads to its pods.
    host.apply(&balancer("one", 8081).to_string())?;
    wait_until("an address", PATIENCE, || {
        given(&host, "one").is_ok_and(|ips| ips == [HOST_IP])
    })?;
    wait_until("the balancer leads to its pod", PATIENCE, || {
        answers(&host, 8081) == "one"
    })?;
    let shown = host.kubectl_ok(&["get", "service", "one"])?;
    ensure!(
        shown.contains("LoadBalancer") && shown.contains(HOST_IP),
        "{shown}"
    );

    // The same port again, and one of a pod: no address, and an event that says who has it.
    host.apply(&balancer("two", 8081).to_string())?;
    let said = host.wait_event("two", "SyncLoadBalancerFailed")?;
    let taken = "port 8081/TCP of the nodes is taken by Service default/one";
    ensure!(said.ends_with(taken), "{said}");
    host.apply(&balancer("claims", 8089).to_string())?;
    let said = host.wait_event("claims", "SyncLoadBalancerFailed")?;
    let taken = "port 8089/TCP of the nodes is taken by pod default/claims";
    ensure!(said.ends_with(taken), "{said}");
    ensure!(given(&host, "two")?.is_empty() && given(&host, "claims")?.is_empty());
    ensure!(answers(&host, 8081) == "one" && answers(&host, 8089) == "claims");

    // Who waits gets it when it is free.
    host.kubectl_ok(&["delete", "service", "one"])?;
    wait_until("the port goes on to the next", PATIENCE, || {
        given(&host, "two").is_ok_and(|ips| ips == [HOST_IP]) && answers(&host, 8081) == "two"
    })?;

    // A second pod with the host port finds no node, until the first has gone.
    host.apply(&server_pod("waits", Some(8089)).to_string())?;
    wait_for("it is told why", PATIENCE, || {
        let said = condition_message(&host, "waits").map_err(|e| format!("{e:#}"))?;
        let why = "didn't have free ports for the requested pod ports";
        if said.contains(why) {
            Ok(())
        } else {
            Err(said)
        }
    })?;
    host.wait_event("waits", "FailedScheduling")?;
    host.kubectl_ok(&["delete", "service", "claims"])?;
    host.kubectl_ok(&["delete", "pod", "claims"])?;
    host.wait_pod_ready("waits")?;
    wait_until("the host port leads to it", PATIENCE, || {
        answers(&host, 8089) == "waits"
    })?;
    server.stop()?;
    host.down()
}

#[test]
fn a_node_that_cannot_be_understood_is_an_event() -> Result<()> {
    let host = TestHost::new()?;
    let server = host.server()?;
    let other = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "other",
            "annotations": {"podwright.io/overlay": "{\"backend\": \"pigeons\", \"addresses\": [\"192.0.2.2\"]}"},
        },
        "spec": {"podCIDR": "10.42.77.0/24", "podCIDRs": ["10.42.77.0/24"]},
    });
    host.apply(&other.to_string())?;
    let said = host.wait_event(&host.name, "OverlayProblem")?;
    ensure!(
        said.starts_with("node other: ") && said.contains("pigeons"),
        "{said}"
    );
    let described = host.kubectl_ok(&["describe", "node", &host.name])?;
    ensure!(described.contains("OverlayProblem"), "{described}");
    let node = host.get(&["node", &host.name])?;
    let ready = tests::pods::condition(&node, "Ready").context("a Ready condition")?;
    ensure!(ready == "True");
    server.stop()?;
    host.down()
}
