// SPDX-License-Identifier: Apache-2.0
//! `kill -9` of everything but shim and pause loses nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::pods::{condition, container, script_pod};
use tests::{TestHost, wait_for};

const EXAMPLE: &str = include_str!("../../examples/hello.yaml");

/// What must not change for a container that keeps running.
fn identities(host: &TestHost) -> Result<Vec<(String, String, Value)>> {
    let list = host.get(&["pods", "-l", "app=hello"])?;
    let pods = list["items"].as_array().context("a list of pods")?;
    Ok(pods
        .iter()
        .filter_map(|pod| {
            let web = container(pod, "web")?;
            Some((
                pod["metadata"]["name"].as_str()?.to_owned(),
                web["containerID"].as_str()?.to_owned(),
                web["restartCount"].clone(),
            ))
        })
        .collect())
}

#[test]
fn kill_9_of_the_server_loses_no_container_no_log_line_and_no_exit_code() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    host.apply(EXAMPLE)?;
    // Runs on while nobody is there to see it, counts aloud, and ends with a code of its own.
    let script = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 7";
    host.apply(&script_pod("counter", "Never", script))?;
    host.kubectl_ok(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    host.wait_pod_phase("counter", "Running")?;
    let before = identities(&host)?;
    assert_eq!(before.len(), 2, "{before:?}");
    let transition = ready_since(&host, &before[0].0)?;

    server.kill()?;
    // Rules and containers are the kernel's now: the page is still served.
    let node_port = format!("http://{}:30080/", tests::host::HOST_IP);
    for _ in 0..5 {
        let page = host.sh(&format!("timeout 5 busybox wget -qO- {node_port}"))?;
        assert_eq!(page, "Hello from podwright\n");
    }
    std::thread::sleep(Duration::from_secs(7));

    let server = host.server()?;
    let code = host.wait_pod("has ended", "counter", |pod| {
        container(pod, "main")?["state"]["terminated"]["exitCode"].as_i64()
    })?;
    assert_eq!(code, 7);
    let logs = host.kubectl_ok(&["logs", "counter"])?;
    let expected: String = (0..60).map(|i| format!("line {i}\n")).collect();
    assert_eq!(logs, expected);
    assert_eq!(
        identities(&host)?,
        before,
        "a container was replaced or restarted"
    );
    assert_eq!(
        ready_since(&host, &before[0].0)?,
        transition,
        "the restart was visible in the pod's Ready condition"
    );
    let said = host.kubectl_ok(&["exec", &before[0].0, "--", "echo", "still here"])?;
    assert_eq!(said, "still here\n");
    server.stop()?;
    host.down()
}

fn ready_since(host: &TestHost, pod: &str) -> Result<Value> {
    let pod = host.pod(pod)?;
    assert_eq!(condition(&pod, "Ready"), Some("True"));
    let conditions = pod["status"]["conditions"]
        .as_array()
        .context("conditions")?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready");
    Ok(ready.context("a Ready condition")?["lastTransitionTime"].clone())
}

#[test]
fn kill_9_at_any_moment_of_a_rollout_leaves_nothing_behind() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let mut server = host.server()?;
    host.apply(EXAMPLE)?;
    for pause_millis in [0_u64, 40, 120, 300, 700, 1500] {
        let round = format!("ROUND={pause_millis}");
        host.kubectl_ok(&["set", "env", "deployment/hello", &round])?;
        std::thread::sleep(Duration::from_millis(pause_millis));
        server.kill()?;
        server = host.server()?;
    }
    host.kubectl_ok(&["rollout", "status", "deployment/hello", "--timeout=180s"])?;
    wait_for("two pods are left", Duration::from_secs(120), || {
        let pods = identities(&host).map_err(|error| format!("{error:#}"))?;
        (pods.len() == 2)
            .then_some(())
            .ok_or_else(|| format!("{pods:?}"))
    })?;
    // What the kernel holds is what the API says: two pods, so two host ends and two namespaces.
    wait_for(
        "two links and two namespaces",
        Duration::from_secs(60),
        || {
            let links = host
                .sh("ip -o link show | grep -cE ' pw[0-9a-f]{8}@'")
                .unwrap_or_default();
            let namespaces = host.sh("ls run/cri/netns | wc -l").unwrap_or_default();
            let counts = (links.trim().to_owned(), namespaces.trim().to_owned());
            (counts == ("2".into(), "2".into()))
                .then_some(())
                .ok_or_else(|| format!("{counts:?}"))
        },
    )?;
    server.stop()?;
    host.down()
}
