// SPDX-License-Identifier: Apache-2.0
//! What pods' packets cost: iperf3 between two pods of one node beside a bare veth and bridge, and
//! between pods of two nodes beside a VXLAN that is made by hand with ip(8). The two of a pair take
//! turns, so that both meet the same load.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cni::overlay::{Announcement, Backend, Kernel, Own, Peer, Settings, WireGuard};
use cni::{Attachment, Capabilities, Network, PodNetwork};
use serde_json::Value;

use super::installed;
use super::place::{Netns, in_own_host};
use super::report::Report;

/// Of one run of iperf3.
const SECONDS: &str = "2";
const PORT: &str = "5201";
/// The port as /proc/net/tcp writes it, with the state "listening" behind the peer's address.
const LISTENING: &str = ":1451 00000000:0000 0A";
const MTU: u32 = 1450;
const PODS: &str = "10.42.0.0/16";

pub(crate) fn measure(runs: usize, report: &mut Report) -> Result<()> {
    if !installed("iperf3") {
        eprintln!("no iperf3: pods' throughput is not measured");
        return Ok(());
    }
    // One takes seconds, where other operations take milliseconds.
    let runs = runs.div_ceil(10);
    in_own_host(|| {
        let dir = tempfile::tempdir()?;
        let ours = Host::new(&dir.path().join("ours"), by_podwright)?;
        let bare = Host::new(&dir.path().join("bare"), by_hand)?;
        let one = "iperf3, pods of one node";
        turns(
            one,
            runs,
            (&ours, "podwright"),
            (&bare, "veth and bridge"),
            0,
            report,
        )?;
        let two = "iperf3, pods of two nodes";
        let (ours, bare) = ((&ours, "podwright, VXLAN"), (&bare, "VXLAN by hand"));
        turns(two, runs, ours, bare, 1, report)
    })
}

/// Both in turns, from the first pod to the second (`far` 0) or the third (1).
fn turns(
    what: &str,
    runs: usize,
    ours: (&Host, &str),
    bare: (&Host, &str),
    far: usize,
    report: &mut Report,
) -> Result<()> {
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..runs {
        samples[0].push(ours.0.gigabits(far)?);
        samples[1].push(bare.0.gigabits(far)?);
    }
    let [first, second] = samples;
    report.gigabits(what, ours.1, first);
    report.gigabits(what, bare.1, second);
    Ok(())
}

/// Two nodes on a wire; two pods on the first and one on the second.
struct Host {
    pods: [Pod; 3],
    _nodes: [Netns; 2],
}

struct Pod {
    netns: Netns,
    address: String,
}

type Connect = fn(&Path, &[Netns; 2]) -> Result<[Pod; 3]>;

impl Host {
    fn new(dir: &Path, connect: Connect) -> Result<Host> {
        let nodes = [Netns::new(dir.join("n1"))?, Netns::new(dir.join("n2"))?];
        let second = nodes[1].path().display();
        let wire = format!("link add eth0 type veth peer name eth0 netns {second}");
        nodes[0].ip(&[&wire])?;
        for (number, node) in (1..).zip(&nodes) {
            node.run(|| Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
            let address = format!("addr add 192.0.2.{number}/24 dev eth0");
            node.ip(&[&address, "link set eth0 up"])?;
        }
        Ok(Host {
            pods: connect(dir, &nodes)?,
            _nodes: nodes,
        })
    }

    fn gigabits(&self, far: usize) -> Result<f64> {
        let [client, servers @ ..] = &self.pods;
        let server = &servers[far];
        let mut listener = server.listen()?;
        let output = client.netns.run(|| {
            let args = ["-c", &server.address, "-p", PORT, "-t", SECONDS, "-J"];
            let mut command = Command::new("iperf3");
            Ok(command.args(args).stdin(Stdio::null()).output()?)
        });
        // It ends after one client; when there was none, now.
        let _ = listener.kill();
        listener.wait()?;
        let said: Value = serde_json::from_slice(&output?.stdout).context("iperf3 -J")?;
        let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
        let error = || format!("iperf3 to {}: {}", server.address, said["error"]);
        bits.map(|bits| bits / 1e9).with_context(error)
    }
}

impl Pod {
    fn listen(&self) -> Result<Child> {
        self.netns.run(|| {
            let mut command = Command::new("iperf3");
            command.args(["-s", "-1", "-4", "-p", PORT]);
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
            for _ in 0..500 {
                if std::fs::read_to_string("/proc/thread-self/net/tcp")?.contains(LISTENING) {
                    return Ok(child);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            child.kill()?;
            child.wait()?;
            bail!("iperf3 does not listen")
        })
    }
}

/// As podwright's nodes do it, without the API.
fn by_podwright(dir: &Path, nodes: &[Netns; 2]) -> Result<[Pod; 3]> {
    let settings = Settings {
        backend: Backend::Vxlan,
        link: Settings::LINK.into(),
        vni: Settings::VNI,
        port: Settings::PORT,
        wireguard: WireGuard::usual(dir.join("keys")),
        cluster: cni::cidr::list(PODS)?,
        bridge: "pw0".into(),
        nft_table: "pwbench".into(),
    };
    let all = [own(1)?, own(2)?];
    for (index, node) in nodes.iter().enumerate() {
        let (me, other) = (&all[index], &all[1 - index]);
        let peer = Peer {
            name: other.name.clone(),
            pod_cidrs: other.pod_cidrs.clone(),
            announcement: Announcement::of(&settings, other).context("an announcement")?,
        };
        let seen = node.run(|| Ok(Kernel::open(settings.clone())?.sync(me, &[peer])?))?;
        ensure!(seen.problems.is_empty(), "{:?}", seen.problems);
    }
    Ok([
        attach(dir, &nodes[0], "a", 1)?,
        attach(dir, &nodes[0], "b", 1)?,
        attach(dir, &nodes[1], "c", 2)?,
    ])
}

fn own(number: u8) -> Result<Own> {
    Ok(Own {
        name: format!("n{number}"),
        addresses: vec![format!("192.0.2.{number}").parse()?],
        pod_cidrs: cni::cidr::list(&format!("10.42.{number}.0/24"))?,
        keys: None,
    })
}

fn attach(dir: &Path, node: &Netns, name: &str, number: u8) -> Result<Pod> {
    let here = dir.join(format!("cni{number}"));
    let conf = here.join("conf");
    std::fs::create_dir_all(&conf)?;
    let mut network = PodNetwork::new("pw0", "pwbench", &format!("10.42.{number}.0/24"), PODS)?;
    network.mtu = Some(MTU);
    let list = cni::default_conflist(&network);
    std::fs::write(conf.join("10-podwright.conflist"), list)?;
    let netns = Netns::new(dir.join(name))?;
    let attachment = Attachment {
        container_id: name.into(),
        netns: netns.path().to_owned(),
        ifname: "eth0".into(),
        pod_name: name.into(),
        pod_namespace: "default".into(),
        pod_uid: "u".into(),
        capabilities: Capabilities::default(),
    };
    let result = node.run(|| {
        // Its threads are those of this namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let network = Network::load(&conf, &here.join("bin"), &here.join("state"));
        Ok(runtime.block_on(network.add(&attachment))?)
    })?;
    let address = result.ips[0].address.addr.to_string();
    Ok(Pod { netns, address })
}

/// The same with ip(8) alone: no rules, no connection tracking.
fn by_hand(dir: &Path, nodes: &[Netns; 2]) -> Result<[Pod; 3]> {
    for (me, other, node) in [(1, 2, &nodes[0]), (2, 1, &nodes[1])] {
        let vxlan = format!(
            "link add vx0 address 02:00:00:00:00:0{me} mtu {MTU} type vxlan id 1 dstport 8472 \
             local 192.0.2.{me} nolearning"
        );
        let theirs = format!("lladdr 02:00:00:00:00:0{other} dev vx0");
        node.ip(&[
            &format!("link add br0 mtu {MTU} type bridge"),
            &format!("addr add 10.42.{me}.1/24 dev br0"),
            "link set br0 up",
            &vxlan,
            &format!("addr add 10.42.{me}.0/32 dev vx0"),
            "link set vx0 up",
            &format!("neigh add 10.42.{other}.0 {theirs} nud permanent"),
            &format!("route add 10.42.{other}.0/24 via 10.42.{other}.0 dev vx0 onlink"),
        ])?;
        let entry = format!("fdb add 02:00:00:00:00:0{other} dev vx0 dst 192.0.2.{other}");
        node.run(|| {
            let status = Command::new("bridge").args(entry.split(' ')).status()?;
            ensure!(status.success(), "bridge {entry}");
            Ok(())
        })?;
    }
    Ok([
        plug(dir, &nodes[0], "a", 1, 2)?,
        plug(dir, &nodes[0], "b", 1, 3)?,
        plug(dir, &nodes[1], "c", 2, 2)?,
    ])
}

fn plug(dir: &Path, node: &Netns, name: &str, number: u8, last: u8) -> Result<Pod> {
    let (netns, address) = (
        Netns::new(dir.join(name))?,
        format!("10.42.{number}.{last}"),
    );
    let path = netns.path().display();
    node.ip(&[
        &format!("link add v{name} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {path}"),
        &format!("link set v{name} master br0 up"),
    ])?;
    netns.ip(&[
        &format!("addr add {address}/24 dev eth0"),
        "link set eth0 up",
        &format!("route add default via 10.42.{number}.1"),
    ])?;
    Ok(Pod { netns, address })
}
