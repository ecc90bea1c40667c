// SPDX-License-Identifier: Apache-2.0
//! SCTP: associations through a Service and a host port, made by sockets in pods' namespaces.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, listen,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use tests::host::HOST_IP;
use tests::{TestHost, wait_for};

use crate::network_faults::namespace;

const PATIENCE: Duration = Duration::from_secs(60);
/// For one attempt. The kernel asks again after three seconds.
const ATTEMPT_SECONDS: i64 = 10;
const HOST_PORT: u16 = 9001;

const CLUSTER: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: server, labels: { app: server } }
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/busybox:1
    command: [sleep, "100000"]
    ports: [{ containerPort: 9000, hostPort: 9001, protocol: SCTP }]
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  terminationGracePeriodSeconds: 0
  containers: [{ name: main, image: "localhost/busybox:1", command: [sleep, "100000"] }]
---
apiVersion: v1
kind: Service
metadata: { name: sctp }
spec: { selector: { app: server }, ports: [{ port: 90, targetPort: 9000, protocol: SCTP }] }
"#;

/// A pod's namespace as this process finds it: the host has mounts of its own.
fn netns(host: &TestHost, pod: &str) -> Result<PathBuf> {
    let holder = host.netns();
    let holder = holder.ancestors().nth(2).context("a process")?;
    let path = namespace(host, pod)?;
    Ok(holder.join("root").join(path.trim_start_matches('/')))
}

/// A socket of the kind that is used as one of TCP is.
fn sctp() -> nix::Result<std::os::fd::OwnedFd> {
    let (kind, flags) = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
    let socket = socket(AddressFamily::Inet, kind, flags, SockProtocol::Sctp)?;
    let time = TimeVal::new(ATTEMPT_SECONDS, 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &time)?;
    setsockopt(&socket, sockopt::SendTimeout, &time)?;
    Ok(socket)
}

fn listener(netns: &Path, port: u16) -> Result<TcpListener> {
    let made = cni::netns::run(netns, || {
        let socket = sctp()?;
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        bind(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            &SockaddrIn::from(any),
        )?;
        listen(&socket, Backlog::new(8)?)?;
        Ok::<_, nix::Error>(TcpListener::from(socket))
    })?;
    made.context("listening on SCTP")
}

/// Connects, says a word and hears one; what the server heard, and from whom.
fn exchange(from: &Path, to: SocketAddrV4, server: &TcpListener) -> Result<(String, SocketAddr)> {
    let connected = cni::netns::run(from, || {
        let socket = sctp()?;
        connect(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            &SockaddrIn::from(to),
        )?;
        Ok::<_, nix::Error>(TcpStream::from(socket))
    })?;
    let mut client = connected.with_context(|| format!("connecting to {to}"))?;
    let (mut served, peer) = server.accept().context("accepting")?;
    client.write_all(b"word")?;
    let mut heard = [0; 16];
    let length = served.read(&mut heard)?;
    served.write_all(b"answer")?;
    let mut answer = [0; 16];
    let answered = client.read(&mut answer)?;
    ensure!(&answer[..answered] == b"answer");
    Ok((String::from_utf8_lossy(&heard[..length]).into_owned(), peer))
}

#[test]
#[ignore = "the kernel must have SCTP: it runs in a guest"]
fn associations_go_through_a_service_and_a_host_port() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let node = host.server()?;
    host.apply(CLUSTER)?;
    host.wait_pod_ready("server")?;
    host.wait_pod_ready("client")?;
    let server = listener(&netns(&host, "server")?, 9000)?;
    let client = netns(&host, "client")?;
    let own = host.pod("client")?["status"]["podIP"].clone();
    let service = host.get(&["service", "sctp"])?;
    let service: Ipv4Addr = service["spec"]["clusterIP"]
        .as_str()
        .context("an address")?
        .parse()?;
    let by_service = SocketAddrV4::new(service, 90);
    let by_host_port = SocketAddrV4::new(HOST_IP.parse()?, HOST_PORT);
    for (from, to) in [
        (client.clone(), by_service),
        (client, by_host_port),
        (host.netns(), by_service),
        (host.netns(), by_host_port),
    ] {
        let (heard, peer) = wait_for(&format!("{to} from {}", from.display()), PATIENCE, || {
            exchange(&from, to, &server).map_err(|error| format!("{error:#}"))
        })?;
        ensure!(heard == "word", "{heard:?}");
        if to == by_service && from != host.netns() {
            ensure!(own == peer.ip().to_string(), "{own} is seen as {peer}");
        }
        println!("{to} is answered, and sees {peer}");
    }
    node.stop()?;
    host.down()
}
