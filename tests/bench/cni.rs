// SPDX-License-Identifier: Apache-2.0
//! The pod network: how long it takes to attach and to detach a pod, beside the reference plugins as
//! executables (Debian's containernetworking-plugins). In a network namespace of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ::cni::{Attachment, Capabilities, Network, netns};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::place::in_own_host;
use super::report::Report;

const REFERENCE: &str = "/usr/lib/cni";
/// Leases beside which one more is taken.
const MANY: usize = 1000;

pub(crate) fn measure(runs: usize, report: &mut Report) -> Result<()> {
    in_own_host(|| {
        let alone = json!([bridge()]);
        in_process("bridge alone", &alone, 0, Pace::Settled, runs, report)?;
        let back_to_back = "bridge alone, back to back";
        in_process(back_to_back, &alone, 0, Pace::BackToBack, runs, report)?;
        let default = default_plugins();
        in_process("the default list", &default, 0, Pace::Settled, runs, report)?;
        let many = format!("bridge alone, {MANY} leases");
        in_process(&many, &alone, MANY, Pace::Settled, runs, report)?;
        if Path::new(REFERENCE).join("bridge").exists() {
            reference("bridge alone", 0, runs, report)?;
            reference(&many, MANY, runs, report)?;
        }
        Ok(())
    })
}

fn bridge() -> Value {
    json!({"type": "bridge", "bridge": "cnib0", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.44.0.0/16"}})
}

/// As podwright writes it by itself.
fn default_plugins() -> Value {
    let own = json!({"table": "cnib"});
    json!([
        {"type": "bridge", "bridge": "cnib0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "subnet": "10.44.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]},
            "podwright": {"table": "cnib", "routed": true, "clusterCIDRs": ["10.44.0.0/16"]}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "podwright": own},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        {"type": "loopback"}
    ])
}

/// When the next pod comes.
#[derive(Clone, Copy, PartialEq)]
enum Pace {
    /// When the kernel has taken the last one's namespace apart, as it is between two pods of a node.
    Settled,
    /// At once. The kernel takes namespaces apart in the background, under the lock that every change
    /// of a link waits for.
    BackToBack,
}

/// Until no pod's link is left.
fn settle() -> Result<()> {
    let begun = Instant::now();
    loop {
        let links = nix::net::if_::if_nameindex()?;
        let is_constant = |name: &[u8]| matches!(name, b"lo" | b"cnib0");
        if links.iter().all(|link| is_constant(link.name().to_bytes())) {
            break;
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "a pod's link stays"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    // Links leave the list before the kernel has let go of them.
    std::thread::sleep(Duration::from_millis(30));
    Ok(())
}

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Result<Scene> {
        Ok(Scene {
            dir: tempfile::tempdir()?,
        })
    }

    fn netns(&self, id: &str) -> PathBuf {
        self.dir.path().join("netns").join(id)
    }

    /// Leases of containers that nobody asks about, in the layout that both know.
    fn fill(&self, dir: &str, count: usize) -> Result<()> {
        let dir = self.dir.path().join(dir).join("n");
        std::fs::create_dir_all(&dir)?;
        for index in 0..count {
            let address = format!("10.44.{}.{}", 100 + index / 250, index % 250);
            std::fs::write(dir.join(address), format!("other{index}\r\neth0"))?;
        }
        Ok(())
    }
}

fn in_process(
    what: &str,
    plugins: &Value,
    leases: usize,
    pace: Pace,
    runs: usize,
    report: &mut Report,
) -> Result<()> {
    let scene = Scene::new()?;
    let conf = scene.dir.path().join("conf");
    std::fs::create_dir(&conf)?;
    let list = json!({"cniVersion": "1.1.0", "name": "n", "plugins": plugins});
    std::fs::write(conf.join("10-n.conflist"), list.to_string())?;
    let state = scene.dir.path().join("state");
    scene.fill("state/networks", leases)?;
    let network = Network::load(&conf, Path::new("/nonexistent"), &state);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    for run in 0..runs + runs / 10 {
        let attachment = attachment(&scene, run);
        if pace == Pace::Settled {
            settle()?;
        }
        netns::create(&attachment.netns)?;
        let begun = Instant::now();
        runtime.block_on(network.add(&attachment))?;
        let added = begun.elapsed();
        let begun = Instant::now();
        runtime.block_on(network.del_with_netns(&attachment))?;
        if run >= runs / 10 {
            adds.push(added);
            dels.push(begun.elapsed());
        }
    }
    report.times(&format!("CNI ADD, {what}"), "podwright", &adds);
    report.times(&format!("CNI DEL, {what}"), "podwright", &dels);
    Ok(())
}

fn attachment(scene: &Scene, run: usize) -> Attachment {
    let id = format!("c{run}");
    Attachment {
        netns: scene.netns(&id),
        container_id: id,
        ifname: "eth0".into(),
        pod_name: "p".into(),
        pod_namespace: "d".into(),
        pod_uid: "u".into(),
        capabilities: Capabilities::default(),
    }
}

fn reference(what: &str, leases: usize, runs: usize, report: &mut Report) -> Result<()> {
    let scene = Scene::new()?;
    scene.fill("leases", leases)?;
    let mut conf = bridge();
    conf["cniVersion"] = "1.0.0".into();
    conf["name"] = "n".into();
    conf["ipam"]["dataDir"] = scene.dir.path().join("leases").to_str().into();
    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    for run in 0..runs + runs / 10 {
        let id = format!("c{run}");
        let path = scene.netns(&id);
        settle()?;
        netns::create(&path)?;
        let added = execute("ADD", &id, &path, &conf)?;
        let deleted = execute("DEL", &id, &path, &conf)?;
        netns::remove(&path)?;
        if run >= runs / 10 {
            adds.push(added);
            dels.push(deleted);
        }
    }
    report.times(&format!("CNI ADD, {what}"), "reference", &adds);
    report.times(&format!("CNI DEL, {what}"), "reference", &dels);
    Ok(())
}

fn execute(verb: &str, id: &str, netns: &Path, conf: &Value) -> Result<Duration> {
    let begun = Instant::now();
    let mut child = Command::new(Path::new(REFERENCE).join("bridge"))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", REFERENCE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("the reference bridge plugin")?;
    let mut input = child.stdin.take().context("a pipe")?;
    input.write_all(conf.to_string().as_bytes())?;
    drop(input);
    let out = child.wait_with_output()?;
    let took = begun.elapsed();
    ensure!(
        out.status.success(),
        "{verb}: {}",
        String::from_utf8_lossy(&out.stdout)
    );
    Ok(took)
}
