// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicies that kubectl applies, and pods that try to get past them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cni::nft::{Family, Socket};
use tests::{TestHost, wait_until};

const PODS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: friends, labels: { team: blue } }
---
apiVersion: v1
kind: Pod
metadata: { name: server, labels: { app: server } }
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/busybox:1
    command: [sh, -c, "mkdir -p /www && echo served > /www/index.html && exec httpd -f -p 8080 -h /www"]
    ports: [{ name: web, containerPort: 8080 }]
    readinessProbe: { httpGet: { path: /, port: web }, periodSeconds: 1 }
---
apiVersion: v1
kind: Service
metadata: { name: server }
spec: { selector: { app: server }, ports: [{ port: 80, targetPort: web }] }
---
apiVersion: v1
kind: Pod
metadata: { name: near, labels: { app: near } }
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - { name: main, image: "localhost/busybox:1", command: [sleep, "3600"] }
---
apiVersion: v1
kind: Pod
metadata: { name: far, namespace: friends, labels: { app: far } }
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - { name: main, image: "localhost/busybox:1", command: [sleep, "3600"] }
"#;

const DENY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: deny }
spec: { podSelector: {}, policyTypes: [Ingress] }
"#;

const ALLOW: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: allow }
spec:
  podSelector: { matchLabels: { app: server } }
  ingress:
  - from:
    - namespaceSelector: { matchLabels: { team: blue } }
    ports: [{ port: web }]
"#;

/// A pod that asks as its first act, and says what came of it.
const EARLY: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: NAME, labels: { app: NAME } }
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: localhost/busybox:1
    command: [sh, -c, "timeout 2 wget -qO- http://ADDRESS/ || echo refused"]
"#;

const EGRESS: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: silence }
spec: { podSelector: { matchLabels: { app: muted } }, policyTypes: [Egress] }
"#;

/// Does a pod get the page, from an address or a Service's?
fn gets(host: &TestHost, pod: &[&str], address: &str) -> bool {
    let url = format!("http://{address}/");
    let fetch = ["--", "timeout", "2", "wget", "-qO-", &url];
    let page = host.kubectl_ok(&[&["exec"], pod, &fetch].concat());
    page.is_ok_and(|page| page == "served\n")
}

fn soon(what: &str, holds: impl FnMut() -> bool) -> Result<()> {
    wait_until(what, Duration::from_secs(30), holds)
}

#[test]
fn policies_hold_from_the_first_packet_on() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    host.apply(PODS)?;
    host.wait_pod_ready("server")?;
    host.wait_pod_ready("near")?;
    host.kubectl_ok(&[
        "wait",
        "-n",
        "friends",
        "--for=condition=Ready",
        "pod/far",
        "--timeout=60s",
    ])?;
    let (near, far): (&[&str], &[&str]) = (&["near"], &["-n", "friends", "far"]);
    let ip = host.pod("server")?["status"]["podIP"]
        .as_str()
        .context("an address")?
        .to_owned();
    let direct = format!("{ip}:8080");
    let service = host.get(&["service", "server"])?;
    let cluster = service["spec"]["clusterIP"]
        .as_str()
        .context("a cluster IP")?
        .to_owned();
    for pod in [near, far] {
        soon("no policy, no limit", || {
            gets(&host, pod, &direct) && gets(&host, pod, &cluster)
        })?;
    }

    let said = host.apply(DENY)?;
    ensure!(
        said.contains("networkpolicy.networking.k8s.io/deny created"),
        "{said}"
    );
    soon("it is closed", || !gets(&host, near, &direct))?;
    assert!(!gets(&host, far, &cluster));
    host.apply(ALLOW)?;
    soon("one namespace may", || gets(&host, far, &cluster))?;
    assert!(gets(&host, far, &direct) && !gets(&host, near, &direct));
    let shown = host.kubectl_ok(&["get", "netpol"])?;
    assert!(
        shown.contains("POD-SELECTOR") && shown.contains("app=server"),
        "{shown}"
    );
    // The node's own probes went on all the while.
    host.wait_pod_ready("server")?;
    host.sh(&format!("timeout 5 busybox wget -qO- http://{direct}/"))?;

    // What a new pod does first: one is let through at once, one that must not is not.
    host.kubectl_ok(&["delete", "netpol", "deny", "allow"])?;
    host.apply(EGRESS)?;
    for (name, expected) in [("prompt", "served"), ("muted", "refused")] {
        host.apply(&EARLY.replace("NAME", name).replace("ADDRESS", &direct))?;
        host.wait_pod_phase(name, "Succeeded")?;
        let log = host.kubectl_ok(&["logs", name])?;
        // The shell says that it ended wget, before or after.
        assert!(log.lines().any(|line| line == expected), "{name}: {log}");
    }

    // Rules outlive the server, and a new one goes on with them.
    host.apply(DENY)?;
    soon("it is closed again", || !gets(&host, near, &direct))?;
    server.kill()?;
    let rules = cni::netns::run(&host.netns(), || -> Result<_> {
        Ok(Socket::open()?.rules(Family::Inet, "podwright-policy")?)
    })?;
    assert!(!rules?.is_empty(), "the rules are gone with the server");
    let server = host.server()?;
    assert!(!gets(&host, near, &direct));
    host.kubectl_ok(&["delete", "netpol", "--all"])?;
    soon("it is open", || gets(&host, near, &direct))?;
    server.stop()?;
    host.down()
}

#[test]
fn a_wrong_policy_is_refused_by_its_field() -> Result<()> {
    let host = TestHost::new()?;
    let server = host.server()?;
    let wrong = DENY.replace("policyTypes: [Ingress]", "policyTypes: [Both]");
    let error = host.apply(&wrong).expect_err("no such type").to_string();
    let expected = "spec.policyTypes[0]: Unsupported value: \"Both\": supported values: \"Ingress\", \"Egress\"";
    assert!(error.contains(expected), "{error}");
    server.stop()?;
    host.down()
}
