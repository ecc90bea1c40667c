// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicies: how long a change takes to get into the kernel, and what policies cost a
//! connection. In a network namespace of its own.

use std::net::{SocketAddr, TcpListener};
use std::time::Instant;

use anyhow::{Context, Result};
use cni::nft::{Family, Socket};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proxy::apply::Kernel;
use proxy::policy::parse::{self, PodInfo};
use proxy::policy::selector::Labels;
use proxy::policy::state::{Settings, State};
use proxy::policy::world::Change;
use serde_json::{Value, json};

use super::place::{in_own_host, ip};
use super::report::Report;
use super::services::connect;

const TABLE: &str = "pwbench-policy";
const PODS: u32 = 500;

pub(crate) fn measure(runs: usize, report: &mut Report) -> Result<()> {
    in_own_host(|| {
        changes(runs, report)?;
        connections(runs, report)
    })
}

fn settings() -> Settings {
    Settings {
        node: "n1".into(),
        bridge: "pw0".into(),
        attachments: false,
    }
}

/// A pod of this node in namespace `a`, one of five kinds.
fn pod(index: u32) -> Result<Change> {
    let [_, _, high, low] = (index + 2).to_be_bytes();
    let mut labels = Labels::new();
    labels.insert("app".into(), format!("kind{}", index % 5).into());
    labels.insert("name".into(), format!("pod{index}").into());
    let info = PodInfo {
        uids: [index.to_string().into()].into(),
        node: "n1".into(),
        labels,
        ips: [format!("10.42.{high}.{low}").parse()?].into(),
        ports: [(proxy::service::Protocol::Tcp, "web".into(), 8080)].into(),
    };
    Ok(Change::Pod(("a".into(), format!("pod{index}")), Some(info)))
}

fn policy(name: &str, spec: Option<Value>) -> Result<Change> {
    let parsed = |spec: Value| -> Result<_> {
        let meta = json!({"name": name, "namespace": "a"});
        let object: NetworkPolicy =
            serde_json::from_value(json!({"metadata": meta, "spec": spec}))?;
        parse::policy(&object).context("a policy")
    };
    let info = spec.map(parsed).transpose()?;
    Ok(Change::Policy(("a".into(), name.into()), info))
}

/// Everybody of the namespace, from one kind of pods.
fn from_kind(kind: usize) -> Value {
    let from = json!([{"podSelector": {"matchLabels": {"app": format!("kind{kind}")}}}]);
    json!({"podSelector": {}, "ingress": [{"from": from, "ports": [{"port": "web"}]}]})
}

fn changes(runs: usize, report: &mut Report) -> Result<()> {
    let who = format!("{PODS} pods");
    let mut state = State::new(TABLE, &settings());
    let mut kernel = Kernel::default();
    kernel.apply(&state.full())?;
    let pods = (0..PODS).map(pod).collect::<Result<Vec<_>>>()?;
    kernel.apply(&state.update(pods))?;
    let (mut added, mut changed, mut removed, mut one) = (vec![], vec![], vec![], vec![]);
    let mut timed = |change: Change, samples: &mut Vec<_>| -> Result<()> {
        let begun = Instant::now();
        let step = state.update([change]);
        kernel.apply(&step)?;
        samples.push(begun.elapsed());
        Ok(())
    };
    for round in 0..runs.max(20) {
        timed(policy("p", Some(from_kind(round % 5)))?, &mut added)?;
        timed(policy("p", Some(from_kind((round + 1) % 5)))?, &mut changed)?;
        // A pod that comes while a policy holds.
        timed(pod(PODS)?, &mut one)?;
        timed(
            Change::Pod(("a".into(), format!("pod{PODS}")), None),
            &mut vec![],
        )?;
        timed(policy("p", None)?, &mut removed)?;
    }
    for (what, samples) in [
        (
            "a policy that selects all pods is added (object to kernel)",
            &added,
        ),
        ("its peers change", &changed),
        ("it is removed", &removed),
        ("a pod comes while it holds", &one),
    ] {
        report.times(what, &who, samples);
    }
    let mut full = Vec::new();
    for _ in 0..runs.clamp(3, 20) {
        let begun = Instant::now();
        kernel.apply(&state.full())?;
        full.push(begun.elapsed());
    }
    report.times("all rules, from nothing (policies)", &who, &full);
    Socket::open()?.delete_table(Family::Inet, TABLE)?;
    Ok(())
}

/// A client's connections to another pod, without the table, with one policy, with a thousand.
fn connections(runs: usize, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let mut pods = Vec::new();
    for (index, number) in [2_u32, 3].into_iter().enumerate() {
        let path = dir.path().join(format!("pod{index}"));
        cni::netns::create(&path)?;
        let file = path.to_str().context("a path")?;
        ip(&format!(
            "link add vp{index} type veth peer name eth0 netns {file}"
        ))?;
        ip(&format!("addr add 10.42.255.1/32 dev vp{index}"))?;
        ip(&format!("link set vp{index} up"))?;
        ip(&format!("route add 10.42.0.{number}/32 dev vp{index}"))?;
        cni::netns::run(&path, || {
            ip("link set lo up")?;
            ip(&format!("addr add 10.42.0.{number}/32 dev eth0"))?;
            ip("link set eth0 up")?;
            ip("route add 10.42.255.1 dev eth0")?;
            ip("route add default via 10.42.255.1")
        })??;
        pods.push(path);
    }
    let address: SocketAddr = "10.42.0.2:8080".parse()?;
    let listener = cni::netns::run(&pods[0], || TcpListener::bind(address))??;
    std::thread::spawn(move || listener.incoming().flatten().for_each(drop));
    let mut kernel = Kernel::default();
    let kinds = [
        ("no policy component", None),
        ("1 policy", Some(1)),
        ("1000 policies", Some(1000)),
    ];
    let mut samples = [vec![], vec![], vec![]];
    for _ in 0..runs.clamp(5, 20) {
        for (slot, (_, count)) in kinds.into_iter().enumerate() {
            Socket::open()?.delete_table(Family::Inet, TABLE)?;
            if let Some(count) = count {
                let mut state = State::new(TABLE, &settings());
                let mut changes = (0..2).map(pod).collect::<Result<Vec<_>>>()?;
                for index in 0..count {
                    // The client is of the second kind; each policy has a peer of its own as well.
                    let mut spec = from_kind(1);
                    let own = json!({"ipBlock": {"cidr": format!("172.16.{}.{}/32", index / 256, index % 256)}});
                    spec["ingress"][0]["from"]
                        .as_array_mut()
                        .context("peers")?
                        .push(own);
                    changes.push(policy(&format!("p{index}"), Some(spec))?);
                }
                state.update(changes);
                kernel.apply(&state.full())?;
            }
            let (mean, _) = cni::netns::run(&pods[1], || connect(address))??;
            samples[slot].push(mean);
        }
    }
    for ((who, _), samples) in kinds.into_iter().zip(&samples) {
        report.micros("a connection between pods (mean of 2000)", who, samples);
    }
    Socket::open()?.delete_table(Family::Inet, TABLE)?;
    Ok(())
}
