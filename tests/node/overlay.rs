// SPDX-License-Identifier: Apache-2.0
//! Three nodes on one wire: a server and two agents, with pods on each.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::{TestHost, TestNet, wait_for, wait_until};

use crate::families;

/// Generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tells each client the address that it comes from, and has a megabyte of its own name.
const ECHO: &str = r"mkdir -p /www/cgi-bin
yes $(hostname) | head -c 1048576 >/www/big
printf '#!/bin/sh\necho Content-Type: text/plain\necho\necho $REMOTE_ADDR\n' > /www/cgi-bin/who
chmod 755 /www/cgi-bin/who
echo $(hostname) serves
exec httpd -f -p 7000 -h /www";

/// Hosts of a net, each with the image and these flags. The first is the server's.
fn hosts(net: &TestNet, count: u8, dual: bool, flags: &[&str]) -> Result<Vec<TestHost>> {
    (11..11 + count)
        .map(|number| {
            let mut host = net.host(number, dual)?;
            host.flags = flags.iter().map(ToString::to_string).collect();
            host.busybox_image()?;
            Ok(host)
        })
        .collect()
}

/// A pod on each of these nodes, named by the node; waits until all are Ready.
pub(crate) fn pods(server: &TestHost, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": node, "labels": {"app": node}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main",
                    "image": "localhost/busybox:1",
                    "command": ["sh", "-c", ECHO],
                }],
            },
        });
        server.apply(&pod.to_string())?;
    }
    nodes
        .iter()
        .try_for_each(|node| server.wait_pod_ready(node))
}

pub(crate) fn pod_ips(server: &TestHost, name: &str) -> Result<Vec<String>> {
    let pod = server.pod(name)?;
    let list = pod["status"]["podIPs"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    Ok(list
        .iter()
        .filter_map(|entry| entry["ip"].as_str().map(str::to_owned))
        .collect())
}

/// What a pod hears from a server: the address that it seems to have there.
pub(crate) fn ask(server: &TestHost, pod: &str, address: &str, port: u16) -> Result<String> {
    let address = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    let url = format!("http://{address}:{port}/cgi-bin/who");
    let said = server.kubectl_ok(&["exec", pod, "--", "timeout", "5", "wget", "-qO-", &url])?;
    Ok(plain(&said).to_owned())
}

/// An address without the clothes that httpd gives it.
pub(crate) fn plain(said: &str) -> &str {
    let host = said.trim().trim_matches(['[', ']']);
    host.strip_prefix("::ffff:").unwrap_or(host)
}

/// Every pod reaches every other in every family, and is seen by its own address.
pub(crate) fn all_reach_all(server: &TestHost, names: &[&str]) -> Result<()> {
    for from in names {
        for to in names.iter().filter(|to| *to != from) {
            let (own, there) = (pod_ips(server, from)?, pod_ips(server, to)?);
            ensure!(!own.is_empty() && own.len() == there.len());
            for (own, there) in own.iter().zip(&there) {
                wait_for(&format!("{from} hears {to}"), PATIENCE, || {
                    match ask(server, from, there, 7000) {
                        Ok(seen) if seen == *own => Ok(()),
                        Ok(seen) => Err(format!("{there} saw {seen} instead of {own}")),
                        Err(error) => Err(format!("{error:#}")),
                    }
                })?;
            }
        }
    }
    Ok(())
}

/// Links and routes between nodes that a host has.
fn traces(host: &TestHost) -> Result<String> {
    host.sh(
        "ip -o link show type vxlan; ip route show proto 112; ip -6 route show proto 112; \
         if ip link show pw-vxlan >/dev/null 2>&1; then bridge fdb show dev pw-vxlan; ip neigh show dev pw-vxlan nud permanent; fi",
    )
}

fn no_traces(host: &TestHost) -> Result<()> {
    let left = traces(host)?;
    ensure!(left.trim().is_empty(), "left on {}: {left}", host.name);
    Ok(())
}

#[test]
fn three_nodes_are_one_network_over_vxlan() -> Result<()> {
    let net = TestNet::new()?;
    let mut all = hosts(&net, 3, false, &[])?;
    let (a, rest) = all.split_first_mut().context("three")?;
    let (b, rest) = rest.split_first_mut().context("three")?;
    let c = &mut rest[0];
    let server = a.server()?;
    let on_b = b.agent(a)?;
    let on_c = c.agent(a)?;
    let (a, b_name, c_name) = (&*a, on_b.host().name.clone(), on_c.host().name.clone());
    let names = [a.name.as_str(), &b_name, &c_name];
    pods(a, &names)?;
    all_reach_all(a, &names)?;
    let mtu = a.kubectl_ok(&["exec", &b_name, "--", "cat", "/sys/class/net/eth0/mtu"])?;
    assert_eq!(mtu.trim(), "1450");

    // A Service whose endpoints are elsewhere, from a pod and from the node itself.
    a.kubectl_ok(&[
        "expose",
        "pod",
        &c_name,
        "--name",
        "far",
        "--port",
        "80",
        "--target-port",
        "7000",
    ])?;
    let far = a.get(&["service", "far"])?;
    let far = far["spec"]["clusterIP"]
        .as_str()
        .context("an address")?
        .to_owned();
    let own = pod_ips(a, &b_name)?.remove(0);
    wait_for("a Service across nodes", PATIENCE, || {
        match ask(a, &b_name, &far, 80) {
            Ok(seen) if seen == own => Ok(()),
            other => Err(format!("{other:?}, wanted {own}")),
        }
    })?;
    wait_until("the node reaches it too", PATIENCE, || {
        let asked = a.sh(&format!(
            "timeout 5 busybox wget -qO- http://{far}/cgi-bin/who"
        ));
        asked.is_ok_and(|said| !said.is_empty())
    })?;
    let logs = a.kubectl_ok(&["logs", &c_name])?;
    assert_eq!(logs, format!("{c_name} serves\n"));

    // What somebody takes away comes back.
    let whole = traces(a)?;
    for damage in [
        "ip link del pw-vxlan",
        "ip route flush proto 112",
        "ip neigh flush dev pw-vxlan nud permanent",
    ] {
        a.sh(damage)?;
        let begun = Instant::now();
        wait_until(
            &format!("repaired after {damage}"),
            Duration::from_secs(5),
            || traces(a).is_ok_and(|now| now.lines().count() == whole.lines().count()),
        )?;
        println!("{damage}: repaired within {:?}", begun.elapsed());
    }
    all_reach_all(a, &names)?;

    // An agent that is killed leaves the paths; one that comes back takes them over.
    let before = traces(on_b.host())?;
    let host_b = on_b.host();
    on_b.kill()?;
    assert_eq!(traces(host_b)?, before);
    let on_b = b.agent(a)?;
    all_reach_all(a, &names)?;

    // A node that comes back with another address.
    on_b.stop()?;
    b.sh("ip addr del 192.0.2.12/24 dev uplink0; ip addr add 192.0.2.22/24 dev uplink0; ip route add default via 192.0.2.1")?;
    b.node_ip = "192.0.2.22".into();
    let on_b = b.agent(a)?;
    wait_until("the others learn it", PATIENCE, || {
        traces(a).is_ok_and(|t| t.contains("192.0.2.22") && !t.contains("192.0.2.12 "))
    })?;
    all_reach_all(a, &names)?;

    // A node that goes.
    let range = a.get(&["node", &c_name])?;
    let range = range["spec"]["podCIDR"]
        .as_str()
        .context("a range")?
        .to_owned();
    on_c.stop()?;
    a.kubectl_ok(&["delete", "node", &c_name])?;
    for host in [a, on_b.host()] {
        wait_until("it is forgotten", PATIENCE, || {
            traces(host).is_ok_and(|traces| !traces.contains(&range))
        })?;
    }
    all_reach_all(a, &names[..2])?;

    on_b.stop()?;
    server.stop()?;
    for host in all {
        host.purge()?;
        no_traces(&host)?;
        host.down()?;
    }
    Ok(())
}

/// A node whose way to the others is another after a restart: the old link goes, with its addresses,
/// and nobody is said to have taken what pods need.
fn another_way_is_no_damage(host: &mut TestHost) -> Result<()> {
    let before = host.flags.clone();
    let other = ["--flannel-backend", "host-gw"].map(str::to_owned);
    host.flags.extend(other);
    let server = host.server()?;
    wait_until("the old link is gone", PATIENCE, || {
        traces(host).is_ok_and(|traces| !traces.contains("vxlan"))
    })?;
    // It would be heard of after a second at most.
    std::thread::sleep(Duration::from_millis(2500));
    let alarms = host.sh("grep 'somebody took' server.log || true")?;
    ensure!(alarms.is_empty(), "{alarms}");
    server.stop()?;
    host.flags = before;
    Ok(())
}

/// A server and one agent with both families and these flags.
fn two_nodes(flags: &[&str], check: impl Fn(&TestHost, &[&str]) -> Result<()>) -> Result<()> {
    let net = TestNet::new()?;
    let mut all = hosts(&net, 2, true, flags)?;
    for host in &mut all {
        host.cluster_flags = families::SERVICES.map(str::to_owned).to_vec();
    }
    let (a, rest) = all.split_first_mut().context("two")?;
    let server = a.server()?;
    let agent = rest[0].agent(a)?;
    let (a, other) = (&*a, agent.host().name.clone());
    let names = [a.name.as_str(), &other];
    pods(a, &names)?;
    all_reach_all(a, &names)?;
    check(a, &names)?;
    agent.stop()?;
    server.stop()?;
    if !flags.contains(&"host-gw") {
        another_way_is_no_damage(&mut all[0])?;
    }
    for host in all {
        host.purge()?;
        no_traces(&host)?;
        host.down()?;
    }
    Ok(())
}

#[test]
fn both_families_cross_over_vxlan() -> Result<()> {
    let flags = ["--cluster-cidr", "10.42.0.0/16,fd42::/48"];
    two_nodes(&flags, |a, names| {
        for name in names {
            let ips = pod_ips(a, name)?;
            ensure!(ips.len() == 2 && ips[1].starts_with("fd42:"), "{ips:?}");
        }
        families::come_and_go(a, names[0], names[1])
    })
}

#[test]
fn both_families_cross_by_host_gw() -> Result<()> {
    let flags = [
        "--cluster-cidr",
        "10.42.0.0/16,fd42::/48",
        "--flannel-backend",
        "host-gw",
    ];
    two_nodes(&flags, |a, names| {
        let traces = traces(a)?;
        ensure!(
            !traces.contains("vxlan") && traces.contains("via 192.0.2.12"),
            "{traces}"
        );
        let mtu = a.kubectl_ok(&["exec", names[1], "--", "cat", "/sys/class/net/eth0/mtu"])?;
        ensure!(mtu.trim() == "1500", "{mtu}");
        Ok(())
    })
}
