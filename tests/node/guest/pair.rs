// SPDX-License-Identifier: Apache-2.0
//! Two machines, each with a kernel of its own and a node: what goes over the wire between them. It
//! runs in the first guest and drives the second.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tests::{TestHost, wait_for};
use vm::Place;

use super::far::{self, Far};
use crate::families;
use crate::overlay::{all_reach_all, plain, pod_ips, pods};

const NEAR: &str = "near";
const NODES: [&str; 2] = [NEAR, far::NAME];
/// From pods of one node to those of the other.
const WAYS: [(&str, &str); 2] = [(NEAR, far::NAME), (far::NAME, NEAR)];

const PATIENCE: Duration = Duration::from_secs(60);

/// How a cluster's nodes are joined, and what that looks like on a node.
struct Joined {
    backend: &'static str,
    /// The link that pods' packets to the other node take.
    link: &'static str,
    /// Of pods that are made while it is so.
    mtu: &'static str,
}

/// One after the other, on the same machines. The first is tried in more ways than the others.
const WAYS_TO_JOIN: &[Joined] = &[
    Joined {
        backend: "vxlan",
        link: "pw-vxlan",
        mtu: "1450",
    },
    Joined {
        backend: "wireguard",
        link: "pw-wg",
        mtu: "1440",
    },
    Joined {
        backend: "host-gw",
        link: "uplink0",
        mtu: "1500",
    },
];

impl Joined {
    fn flags(&self) -> Vec<String> {
        let flags = [
            "--cluster-cidr",
            "10.42.0.0/16,fd42::/48",
            "--network-backend",
            self.backend,
        ];
        flags.map(str::to_owned).to_vec()
    }
}

/// Everything on a machine that a node changes, in words. Forwarding stays on, which gives a machine
/// an anycast address in each network. busybox's shell prefers its own `ip`.
const STATE: &str = "ip=/usr/local/bin/ip
$ip -o -d link | sed 's/^[0-9]*: //'
$ip -o addr; $ip rule; $ip -6 rule; $ip -4 route show table all
$ip -6 route show table all | grep -v ^anycast
$ip neigh show nud permanent; nft list ruleset
ls -d /run/podwright /var/lib/podwright /sys/fs/cgroup/podwright* 2>/dev/null || true
find /etc/cni /var/log/pods -type f 2>/dev/null || true
grep podwright /proc/self/mounts || true
";

#[test]
#[ignore = "it runs in a guest that has another one beside it"]
fn two_machines_are_one_cluster() -> Result<()> {
    let [near_place, far_place] = Place::PAIR;
    let mut near = TestHost::machine(&format!("{},{}", near_place.ipv4(), near_place.ipv6()))?;
    NEAR.clone_into(&mut near.name);
    let far = Far::find(far_place)?;
    let result = cluster(&mut near, &far);
    result.with_context(|| format!("the far node's log ends with:\n{}", far.log_tail()))?;
    near.down()?;
    far.over()
}

fn cluster(near: &mut TestHost, far: &Far) -> Result<()> {
    let before = (near.sh(STATE)?, far.sh(STATE)?);
    near.busybox_image()?;
    far.busybox_image()?;

    for (number, joined) in WAYS_TO_JOIN.iter().enumerate() {
        near.flags = joined.flags();
        near.cluster_flags = families::SERVICES.map(str::to_owned).to_vec();
        let server = near.server()?;
        far.credentials(near)?;
        far.start(near)?;
        near.wait_node_ready(far::NAME)?;
        pods_cross(near, far, joined)?;
        if number == 0 {
            let logs = near.kubectl_ok(&["logs", far::NAME])?;
            ensure!(logs == "far serves\n", "{logs:?}");
            names_and_services_lead_across(near)?;
            connections_outlive_the_node(near, far)?;
        }
        near.kubectl_ok(&["delete", "pod", NEAR, far::NAME])?;
        far.end("TERM")?;
        server.stop()?;
    }
    near.purge()?;
    far.purge(&near.flags)?;
    as_before(NEAR, &before.0, &near.sh(STATE)?)?;
    as_before(far::NAME, &before.1, &far.sh(STATE)?)
}

/// What is in one of two texts and not in the other is an error.
fn as_before(machine: &str, before: &str, after: &str) -> Result<()> {
    let lacks = |text: &str, line: &&str| !text.lines().any(|other| other == *line);
    let gone: Vec<_> = before.lines().filter(|line| lacks(after, line)).collect();
    let left: Vec<_> = after.lines().filter(|line| lacks(before, line)).collect();
    ensure!(
        gone.is_empty() && left.is_empty(),
        "on {machine} purge left {left:#?}, and gone are {gone:#?}"
    );
    Ok(())
}

/// A Service for each of the pods, by its name.
fn services(near: &TestHost) -> Result<()> {
    for name in NODES {
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"ipFamilyPolicy": "RequireDualStack", "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 7000}]},
        });
        near.apply(&service.to_string())?;
    }
    Ok(())
}

fn inside(near: &TestHost, pod: &str, script: &str) -> Result<String> {
    near.kubectl_ok(&["exec", pod, "--", "sh", "-ec", script])
}

/// A pod on each node. They see each other by their own addresses. A megabyte and the biggest packet
/// of each family go both ways, over the link that they should take, and none of it is cut: a pod's
/// packets are not bigger than what the link carries.
fn pods_cross(near: &TestHost, far: &Far, joined: &Joined) -> Result<()> {
    pods(near, &NODES)?;
    all_reach_all(near, &NODES)?;
    let before = sent(near, far, joined)?;
    for (from, to) in WAYS {
        let there = pod_ips(near, to)?;
        let [v4, v6] = there.as_slice() else {
            bail!("{to} has an address of each family: {there:?}");
        };
        // Headers of a ping are 20 and 8 bytes, or 40 and 8.
        let script = format!(
            "yes {to} | head -c 1048576 >/tmp/want
for there in {v4} '[{v6}]'; do
  timeout 60 wget -qO /tmp/got http://$there:7000/big
  cmp /tmp/got /tmp/want
done
mtu=$(cat /sys/class/net/eth0/mtu)
ping -q -c 1 -W 10 -s $((mtu - 28)) {v4} >/dev/null
ping -q -c 1 -W 10 -s $((mtu - 48)) {v6} >/dev/null
echo $mtu"
        );
        let mtu = inside(near, from, &script)?;
        ensure!(mtu.trim() == joined.mtu, "{}: MTU {mtu}", joined.backend);
    }
    let after = sent(near, far, joined)?;
    for (before, after) in before.into_iter().zip(after) {
        let sent = after - before;
        ensure!(sent > 2 << 20, "{}: only {sent} bytes", joined.link);
    }
    let cut = [near.sh(FRAGMENTS)?, far.sh(FRAGMENTS)?];
    ensure!(cut.iter().all(|count| count == "0\n0\n"), "{cut:?}");
    let links = near.sh("ls /sys/class/net")?;
    let others = links
        .lines()
        .filter(|link| *link != joined.link && link.starts_with("pw-"));
    ensure!(others.count() == 0, "{}: {links}", joined.backend);
    Ok(())
}

/// Bytes that each machine has sent by the link that joins them.
fn sent(near: &TestHost, far: &Far, joined: &Joined) -> Result<[u64; 2]> {
    let read = format!("cat /sys/class/net/{}/statistics/tx_bytes", joined.link);
    let [near, far] = [near.sh(&read)?, far.sh(&read)?];
    Ok([near.trim().parse()?, far.trim().parse()?])
}

/// How many fragments the machine made, of each family.
const FRAGMENTS: &str = r#"awk '/^Ip:/ { if (at) print $at; for (i = 1; i <= NF; i++) if ($i == "FragCreates") at = i }' /proc/net/snmp
awk '/^Ip6FragCreates/ { print $2 }' /proc/net/snmp6
"#;

/// A Service whose endpoint is on the other node, by its address of each family and by its names, on
/// both nodes. The endpoint sees the client's own address.
fn names_and_services_lead_across(near: &TestHost) -> Result<()> {
    services(near)?;
    for (from, to) in WAYS {
        let [v4, v6] = families::both_ips(near, to)?;
        let own = pod_ips(near, from)?;
        let script = format!(
            "for host in {v4} '[{v6}]' {to} {to}.default.svc.cluster.local; do
  timeout 10 wget -qO- http://$host/cgi-bin/who
done"
        );
        wait_for(&format!("{from} reaches Service {to}"), PATIENCE, || {
            let said = inside(near, from, &script).map_err(|error| format!("{error:#}"))?;
            let seen: Vec<_> = said.lines().map(plain).collect();
            match seen.as_slice() {
                // Which family a name leads to is the resolver's choice.
                [a, b, c, d]
                    if [*a, *b] == *own
                        && [c, d].iter().all(|seen| own.iter().any(|ip| ip == *seen)) =>
                {
                    Ok(())
                }
                _ => Err(format!("seen as {seen:?}, wanted {own:?}")),
            }
        })?;
    }
    Ok(())
}

/// The node is killed and comes back. Its pods live, and so do their connections across nodes.
fn connections_outlive_the_node(near: &TestHost, far: &Far) -> Result<()> {
    let there = pod_ips(near, far::NAME)?.remove(0);
    // 1B59 is port 7001.
    let echo = "nc -ll -p 7001 -e cat >/dev/null 2>&1 </dev/null &
until grep -q ':1B59 ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done";
    inside(near, far::NAME, echo)?;
    let talk = format!(
        "{{ (while sleep 0.2; do echo tick; done) | nc {there} 7001; }} >/tmp/ticks 2>&1 </dev/null &"
    );
    inside(near, NEAR, &talk)?;
    let client = inside(near, NEAR, "pidof nc")?;
    let heard = || -> Result<usize> {
        let said = inside(near, NEAR, "pidof nc; grep -c tick /tmp/ticks || true")?;
        let ticks = said.strip_prefix(&client);
        Ok(ticks.context("the connection has ended")?.trim().parse()?)
    };
    let more = |than: usize| {
        wait_for("the connection goes on", PATIENCE, || match heard() {
            Ok(ticks) if ticks >= than + 10 => Ok(ticks),
            other => Err(format!("{other:?}, more than {than} wanted")),
        })
    };
    more(0)?;
    far.end("KILL")?;
    let ticks = more(heard()?)?;
    far.start(near)?;
    wait_for("the node takes its pod over", PATIENCE, || {
        inside(near, far::NAME, "pidof nc").map_err(|error| format!("{error:#}"))
    })?;
    more(ticks)?;
    let status = &near.pod(far::NAME)?["status"];
    ensure!(status["podIP"] == there, "{status}");
    let restarts = &status["containerStatuses"][0]["restartCount"];
    ensure!(*restarts == 0, "{status}");
    Ok(())
}
