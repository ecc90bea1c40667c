// SPDX-License-Identifier: Apache-2.0
//! A test host: podwright's own pod network in the namespaces of the test, pods, and a neighbour.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cni::{Attachment, Capabilities, Network, PortMapping, netns};

pub(crate) use cni::chain as report;

use crate::place::{Dir, run};

pub(crate) struct Host {
    pub(crate) dir: Dir,
    pub(crate) network: Network,
    runtime: tokio::runtime::Runtime,
}

impl Host {
    /// A network with podwright's own configuration, in the namespaces of this thread.
    pub(crate) fn new() -> Host {
        let dir = Dir::new();
        let conf = dir.path().join("conf");
        std::fs::create_dir(&conf).expect("mkdir");
        let network = cni::PodNetwork::new("pwt0", "pwt", "10.42.0.0/24", "10.42.0.0/16");
        let text = cni::default_conflist(&network.expect("lists"));
        std::fs::write(conf.join("10-podwright.conflist"), text).expect("write");
        let network = Network::load(&conf, &dir.path().join("bin"), &dir.path().join("state"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        Host {
            dir,
            network,
            runtime,
        }
    }

    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(crate) fn attachment(&self, name: &str, ports: &[PortMapping]) -> Attachment {
        Attachment {
            container_id: name.to_owned(),
            netns: self.dir.path().join("netns").join(name),
            ifname: "eth0".into(),
            pod_name: name.into(),
            pod_namespace: "default".into(),
            pod_uid: "u".into(),
            capabilities: Capabilities {
                port_mappings: ports.to_vec(),
                ..Capabilities::default()
            },
        }
    }

    /// A pod: its namespace's path and its address.
    pub(crate) fn pod(&self, name: &str, ports: &[PortMapping]) -> (PathBuf, std::net::IpAddr) {
        let attachment = self.attachment(name, ports);
        netns::create(&attachment.netns).expect("netns");
        let result = self
            .run(self.network.add(&attachment))
            .unwrap_or_else(|e| panic!("{}", report(&e)));
        (attachment.netns, result.ips[0].address.addr)
    }
}

pub(crate) fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    netns::run(netns, work).expect("enter")
}

/// A neighbour of the host on 192.0.2.0/24: host .1, neighbour .2, without a route to the pods.
pub(crate) fn neighbour(host: &Host) -> PathBuf {
    let path = host.dir.path().join("netns/neighbour");
    netns::create(&path).expect("netns");
    let file = path.to_str().expect("utf-8");
    run(
        "ip",
        &["link", "add", "up0", "type", "veth", "peer", "name", "out0"],
    );
    run("ip", &["link", "set", "out0", "netns", file]);
    run("ip", &["addr", "add", "192.0.2.1/24", "dev", "up0"]);
    run("ip", &["link", "set", "up0", "up"]);
    inside(&path, || {
        run("ip", &["addr", "add", "192.0.2.2/24", "dev", "out0"]);
        run("ip", &["link", "set", "out0", "up"]);
    });
    path
}

pub(crate) fn at(ip: impl Into<std::net::IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}
