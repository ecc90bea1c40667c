// SPDX-License-Identifier: Apache-2.0
//! What goes wrong with a node's network: the person hears of it where kubectl shows it, and the node
//! recovers by itself.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::host::stdout_of;
use tests::pods::{condition, script_pod};
use tests::{TestHost, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// What is taken away is back by then.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

/// Waits for an event of `reason` about a pod that says all of `parts`.
fn said(host: &TestHost, pod: &str, reason: &str, parts: &[&str]) -> Result<()> {
    wait_for(
        &format!("{reason} of {pod} says {parts:?}"),
        PATIENCE,
        || {
            let about = format!("involvedObject.name={pod},reason={reason}");
            let events = host.get(&["events", "--field-selector", &about]);
            let events = events.map_err(|error| format!("{error:#}"))?;
            let items = events["items"].as_array().cloned().unwrap_or_default();
            let messages = items.iter().filter_map(|event| event["message"].as_str());
            let messages: Vec<&str> = messages.collect();
            let all = |message: &&str| parts.iter().all(|part| message.contains(part));
            if messages.iter().any(all) {
                Ok(())
            } else {
                Err(format!("{messages:#?}"))
            }
        },
    )
}

#[test]
fn the_node_names_what_is_wrong_with_its_network_configuration() -> Result<()> {
    let host = TestHost::new()?;
    let server = host.server()?;
    let wrong = r#"{"cniVersion": "1.0.0", "name": "n",
        "plugins": [{"type": "bridge", "bridge": "pw0", "isGatway": true}]}"#;
    let ready = |wanted: &str, parts: &[&str]| {
        wait_for(&format!("Ready={wanted}"), PATIENCE, || {
            let node = host
                .get(&["node", &host.name])
                .map_err(|e| format!("{e:#}"))?;
            let conditions = node["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let ready = conditions.iter().find(|c| c["type"] == "Ready");
            let message = ready
                .and_then(|c| c["message"].as_str())
                .unwrap_or_default();
            let is = condition(&node, "Ready") == Some(wanted);
            let says = parts.iter().all(|part| message.contains(part));
            if is && says {
                Ok(())
            } else {
                Err(format!("{ready:?}"))
            }
        })
    };
    // Before podwright's own by name, so it counts.
    let file = host.write("cni/05-typo.conflist", wrong)?;
    ready(
        "False",
        &[
            "NetworkReady=false",
            "05-typo.conflist",
            "plugins[0].isGatway",
        ],
    )?;
    std::fs::write(&file, "{")?;
    ready("False", &["05-typo.conflist", "EOF"])?;
    std::fs::remove_file(&file)?;
    ready("True", &[])?;
    server.stop()?;
    host.down()
}

/// Two addresses, and a plugin of somebody else.
const SMALL: &str = r#"{"cniVersion": "1.0.0", "name": "small", "plugins": [
    {"type": "bridge", "bridge": "small0", "isGateway": true, "ipam": {"type": "host-local",
     "ranges": [[{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.2", "rangeEnd": "10.99.0.3"}]]}},
    {"type": "switch"}]}"#;

/// What the plugin does at ADD.
fn switch(host: &TestHost, at_add: &str) -> Result<()> {
    let script = format!("#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\n{at_add}\n");
    // Renamed into place: one that runs is not written to.
    let new = host.write("plugins/.switch", &script)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(&new, host.path().join("plugins/switch"))?;
    Ok(())
}

#[test]
fn a_pod_tells_of_its_plugin_and_of_addresses_that_ran_out() -> Result<()> {
    let mut host = TestHost::new()?;
    host.busybox_image()?;
    host.write("cni/10-small.conflist", SMALL)?;
    let config = host.write("node.yaml", "cri: {network: {plugin-timeout: 1s}}\n")?;
    let plugins = host.path().join("plugins").to_string_lossy().into_owned();
    host.flags = vec!["--config".into(), config, "--cni-bin-dir".into(), plugins];
    switch(&host, "echo no answer from the rack >&2; sleep 1000")?;
    let server = host.server()?;
    let pod = |name: &str| script_pod(name, "Always", "exec sleep 100000");
    host.apply(&pod("one"))?;
    let reason = "FailedCreatePodSandBox";
    said(
        &host,
        "one",
        reason,
        &["did not end within", "no answer from the rack"],
    )?;
    switch(&host, "echo all is well; echo it speaks in riddles >&2")?;
    said(
        &host,
        "one",
        reason,
        &["all is well", "which is no result", "it speaks in riddles"],
    )?;
    switch(&host, "exit 0")?;
    host.wait_pod_ready("one")?;
    // What failed attempts had is free again, or the second pod would find no address.
    host.apply(&pod("two"))?;
    host.wait_pod_ready("two")?;

    host.apply(&pod("three"))?;
    said(
        &host,
        "three",
        reason,
        &["no IP addresses available in range set"],
    )?;
    let address = host.pod("one")?["status"]["podIP"].clone();
    host.kubectl_ok(&["delete", "pod", "one"])?;
    host.wait_pod_ready("three")?;
    assert_eq!(host.pod("three")?["status"]["podIP"], address);
    let node = host.get(&["node", &host.name])?;
    assert_eq!(condition(&node, "Ready"), Some("True"));
    server.stop()?;
    host.down()
}

const AROUND: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/busybox:1
    command: [sh, -c, "mkdir /w; echo served > /w/index.html; exec httpd -f -p 8080 -h /w"]
    ports: [{ containerPort: 8080, hostPort: 8088 }]
---
apiVersion: v1
kind: Pod
metadata: { name: friend, labels: { app: friend } }
spec:
  terminationGracePeriodSeconds: 0
  containers: [{ name: main, image: "localhost/busybox:1", command: [sleep, "100000"] }]
---
apiVersion: v1
kind: Pod
metadata: { name: stranger }
spec:
  terminationGracePeriodSeconds: 0
  containers: [{ name: main, image: "localhost/busybox:1", command: [sleep, "100000"] }]
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: web }
spec:
  podSelector: { matchLabels: { app: web } }
  ingress: [{ from: [{ podSelector: { matchLabels: { app: friend } } }] }]
"#;

/// What somebody else has on the same host.
const OTHERS: &str = "nft 'table inet others { set s { type ipv4_addr; elements = { 192.0.2.77 }; }
    chain c { type filter hook forward priority 10; ip saddr @s counter drop; }
    }'
    ip link add others0 type bridge; ip addr add 198.51.100.1/24 dev others0";
const OTHERS_NOW: &str = "nft list table inet others; ip -o addr show dev others0";

/// The file that holds a pod's network namespace.
pub(crate) fn namespace(host: &TestHost, pod: &str) -> Result<String> {
    let told = stdout_of(&mut host.podwright(&["network", "pod", pod]))?;
    let line = told
        .lines()
        .find_map(|line| line.trim().strip_prefix("namespace "));
    Ok(line.context("a namespace")?.to_owned())
}

#[test]
fn what_somebody_takes_from_a_running_node_comes_back() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    host.apply(AROUND)?;
    for pod in ["web", "friend", "stranger"] {
        host.wait_pod_ready(pod)?;
    }
    host.sh(OTHERS)?;
    let others = host.sh(OTHERS_NOW)?;
    let (friend, stranger) = (namespace(&host, "friend")?, namespace(&host, "stranger")?);
    let service = host.get(&["service", "web"])?;
    let service = service["spec"]["clusterIP"]
        .as_str()
        .context("an address")?;
    let gets = |netns: &str, url: &str| {
        let ask = format!("nsenter --net={netns} timeout 1 busybox wget -qO- {url}");
        host.sh(&ask).is_ok_and(|page| page == "served\n")
    };
    let own = host.netns().to_string_lossy().into_owned();
    let by_service = format!("http://{service}/");
    let by_host_port = format!("http://{}:8088/", tests::host::HOST_IP);
    // Through a Service, past a policy; by host port from the node.
    let whole =
        || gets(&friend, &by_service) && gets(&own, &by_host_port) && !gets(&stranger, &by_service);
    wait_until("it works", PATIENCE, whole)?;
    for damage in [
        "ip link del pw0",
        "nft flush table inet podwright-cni",
        "nft delete table inet podwright",
        "nft flush table inet podwright",
        "nft delete table inet podwright-policy",
        "nft flush chain inet podwright-policy forward",
    ] {
        host.sh(damage)?;
        let begun = Instant::now();
        wait_until(&format!("{damage} is repaired"), REPAIRED_WITHIN, whole)?;
        println!("{damage}: whole again after {:.1?}", begun.elapsed());
    }
    assert_eq!(host.sh(OTHERS_NOW)?, others);
    server.stop()?;
    host.down()
}
