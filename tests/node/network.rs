// SPDX-License-Identifier: Apache-2.0
//! `podwright network`: the way of a packet, told by a node that runs.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::host::stdout_of;
use tests::{TestHost, wait_for, wait_until};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/busybox:1
    command: [busybox, httpd, -f, -p, "8080"]
    ports: [{containerPort: 8080, hostPort: 8088}]
---
apiVersion: v1
kind: Pod
metadata:
  name: client
  annotations: {kubernetes.io/ingress-bandwidth: 100M, kubernetes.io/egress-bandwidth: 50M}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: localhost/busybox:1, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"#;

fn network(host: &TestHost, args: &[&str]) -> Result<String> {
    stdout_of(&mut host.podwright(&[&["network"], args].concat()))
}

fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn the_way_of_a_packet_is_told() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    host.apply(PODS)?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod",
        "web",
        "client",
        "--timeout=60s",
    ];
    host.kubectl_ok(&ready)?;
    let field = |args: &[&str], pointer: &str| -> Result<String> {
        let object = host.get(args)?;
        let found = object.pointer(pointer).and_then(|v| v.as_str());
        found.map(str::to_owned).context("a field")
    };
    let web = field(&["pod", "web"], "/status/podIP")?;
    let cluster_ip = field(&["service", "web"], "/spec/clusterIP")?;
    wait_for(
        "the Service has its endpoint",
        Duration::from_secs(30),
        || match network(&host, &["service", "web"]) {
            Ok(told) if told.contains("chain pick4-1") => Ok(()),
            Ok(told) => Err(told),
            Err(error) => Err(format!("{error:#}")),
        },
    )?;

    // What limits the client's traffic: a link of its own for what it sends.
    let limiting = || host.sh("grep -cE '^ *pwb[0-9a-f]{8}:' /proc/net/dev || true");
    assert_eq!(limiting()?, "1\n");
    let told = network(&host, &["service", "web"])?;
    let endpoint = format!("-> {web}:8080   pod web on {}", host.name);
    let heading = format!("{cluster_ip}:80/TCP   chain pick4-1");
    says(
        &told,
        &[
            &heading,
            &endpoint,
            "The way of a packet:",
            "an endpoint by chance",
        ],
    );
    assert!(!told.contains("MISSING"), "{told}");
    let told = network(&host, &["service", "nobody"])?;
    says(&told, &["no endpoint serves: clients are refused"]);

    let told = network(&host, &["pod", "web"])?;
    says(
        &told,
        &[
            &format!("{web}/24"),
            "on bridge pw0",
            "route in the pod: 0.0.0.0/0 by way of 10.42.0.1",
            "host port 8088/Tcp on every address of the node -> port 8080 of the pod",
            "Service web leads here: port 8080/TCP, ready",
        ],
    );

    let told = network(&host, &["trace", "client", "web:http"])?;
    says(
        &told,
        &[
            &format!("to {cluster_ip}:80, in by pw0"),
            "podwright prerouting: a Service's address and port",
            "-> to pick4-1",
            &format!("to {web}:8080, in by pw0, out by pw0"),
            "podwright-policy forward: no policy on egress forbids it",
            "Connected after",
        ],
    );
    let told = network(&host, &["trace", "client", "nobody:80"])?;
    says(
        &told,
        &[
            "a Service without an endpoint refuses",
            "TCP is reset",
            "NOT connected: Connection refused",
        ],
    );
    let told = network(&host, &["trace", "client", &format!("{web}:9"), "--udp"])?;
    says(
        &told,
        &[&format!("to {web}:9, in by pw0"), "The datagram was sent."],
    );
    // A trace's table goes with it, or the next could not make its own.

    let failed = network(&host, &["pod", "none"]).expect_err("there is no such pod");
    says(&format!("{failed:#}"), &["pods \"none\" not found"]);
    host.kubectl_ok(&["delete", "pod", "web", "client", "--timeout=60s"])?;
    wait_until(
        "the limit is gone with its pod",
        Duration::from_secs(30),
        || limiting().is_ok_and(|links| links == "0\n"),
    )?;
    server.stop()?;
    host.down()
}
