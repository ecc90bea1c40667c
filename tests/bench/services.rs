// SPDX-License-Identifier: Apache-2.0
//! Services: how long rules take to get into the kernel, what the proxy needs for them, and what
//! they cost a connection, with 10 Services and with 10,000. In a network namespace of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cni::nft::{Family, Monitor, Socket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proxy::apply::Kernel;
use proxy::compile::compile;
use proxy::parse::{EndpointInfo, PortInfo, ServiceInfo, SliceInfo};
use proxy::rules::{LocalDetect, Settings};
use proxy::service::{Node, Protocol, ServiceRules};
use proxy::state::{ServiceKey, State};
use serde_json::{Value, json};

use super::api::{Api, NODES, SERVICES, SLICES};
use super::place::{in_own_host, ip};
use super::report::Report;

const TABLE: &str = "pwbench";
const SIZES: [u32; 2] = [10, 10_000];
/// Connections of one sample.
const CONNECTIONS: u32 = 2000;
/// Set in a copy of this program that is to be the proxy: its kubeconfig.
const CHILD: &str = "PODWRIGHT_BENCH_PROXY";

/// Be the proxy, if that is what this process is for.
pub(crate) fn child() -> Option<Result<()>> {
    let kubeconfig = PathBuf::from(std::env::var_os(CHILD)?);
    let config = proxy::Config {
        kubeconfig,
        node_name: "n1".into(),
        node_ips: vec!["192.0.2.1".parse().ok()?],
        cluster_cidr: "10.42.0.0/16".into(),
        nft_table: TABLE.into(),
        bridge: "pw0".into(),
        options: proxy::Options::default(),
        policies: None,
    };
    let run = || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let stop = tokio_util::sync::CancellationToken::new();
        runtime.block_on(async {
            let proxy = tokio::spawn(proxy::run(config, ready, stop));
            is_ready.await.context("the proxy ended")?;
            println!("ready");
            Ok(proxy.await??)
        })
    };
    Some(run())
}

pub(crate) fn measure(runs: usize, report: &mut Report) -> Result<()> {
    in_own_host(|| {
        ip("addr add 192.0.2.1/32 dev lo")?;
        for size in SIZES {
            kernel(size, runs, report)?;
            whole(size, runs, report)?;
        }
        connections(runs, report)
    })
}

fn key(index: u32) -> ServiceKey {
    ("default".into(), format!("s{index}"))
}

fn cluster_ip(index: u32) -> String {
    let [_, _, high, low] = index.to_be_bytes();
    format!("10.43.{high}.{low}")
}

fn settings() -> Result<Settings> {
    Ok(Settings {
        local: LocalDetect::Cidrs(vec!["10.42.0.0/16".parse()?]),
        node_ports: vec!["192.0.2.1/32".parse()?],
        masquerade_all: false,
        strict: false,
    })
}

fn service(index: u32, endpoints: &[&str]) -> Result<(ServiceInfo, SliceInfo)> {
    let port = PortInfo {
        name: "web".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    let endpoint = |ip: &&str| {
        Ok(EndpointInfo {
            addr: ip.parse()?,
            local: false,
            ready: true,
            fallback: false,
            zones: Box::default(),
            nodes: Box::default(),
        })
    };
    let endpoints = endpoints.iter().map(endpoint).collect::<Result<_>>()?;
    let service = ServiceInfo {
        ports: [port].into(),
        cluster_ips: [cluster_ip(index).parse()?].into(),
        ..ServiceInfo::default()
    };
    let slice = SliceInfo {
        service: key(index).1.into(),
        ports: [("web".into(), Protocol::Tcp, 8080)].into(),
        endpoints,
    };
    Ok((service, slice))
}

type Changes = Vec<(ServiceKey, Option<ServiceRules>)>;

fn compiled(services: &[(ServiceInfo, SliceInfo)], node: &Node) -> Changes {
    let rules = services
        .iter()
        .map(|(service, slice)| compile(service, [slice], node));
    (0..).map(key).zip(rules.map(Some)).collect()
}

/// From what is known of the objects to the kernel, without an API server.
fn kernel(size: u32, runs: usize, report: &mut Report) -> Result<()> {
    let who = format!("{size} Services");
    let services = (0..size)
        .map(|index| service(index, &["10.42.1.1", "10.42.1.2"]))
        .collect::<Result<Vec<_>>>()?;
    let node = Node::named("n1", &[]);
    let mut kernel = Kernel::default();
    let mut state = State::new(TABLE, settings()?);
    let mut all = Vec::new();
    for _ in 0..runs.clamp(3, 10) {
        Socket::open()?.delete_table(Family::Inet, TABLE)?;
        state = State::new(TABLE, settings()?);
        let begun = Instant::now();
        state.adopt(compiled(&services, &node));
        kernel.apply(&state.full().transaction)?;
        all.push(begun.elapsed());
    }
    report.times("all rules, from nothing (objects to kernel)", &who, &all);
    let sets: [&[&str]; 3] = [
        &["10.42.1.1", "10.42.1.9"],
        &["10.42.1.1", "10.42.1.9", "10.42.1.10"],
        &["10.42.1.1", "10.42.1.2"],
    ];
    let mut one = Vec::new();
    for round in 0..(runs * 20).max(300) {
        let (service, slice) = service(7, sets[round % 3])?;
        let begun = Instant::now();
        let step = state.update(vec![(key(7), Some(compile(&service, [&slice], &node)))]);
        kernel.apply(&step.transaction)?;
        one.push(begun.elapsed());
    }
    report.times(
        "one Service's endpoints change (objects to kernel)",
        &who,
        &one,
    );
    Socket::open()?.delete_table(Family::Inet, TABLE)?;
    Ok(())
}

fn slice_object(index: u32, second: &str) -> Value {
    let endpoint = |ip: &str| {
        json!({"addresses": [ip], "nodeName": "n2",
            "conditions": {"ready": true, "serving": true, "terminating": false}})
    };
    json!({
        "metadata": {
            "name": format!("s{index}-abcde"), "namespace": "default",
            "uid": format!("{index:08x}-0000-4000-8000-000000000000"),
            "labels": {"kubernetes.io/service-name": format!("s{index}")}
        },
        "addressType": "IPv4",
        "endpoints": [endpoint("10.42.1.1"), endpoint(second)],
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}]
    })
}

fn service_object(index: u32) -> Value {
    let ip = cluster_ip(index);
    json!({
        "metadata": {
            "name": format!("s{index}"), "namespace": "default",
            "uid": format!("{index:08x}-0000-4000-8000-000000000001"),
            "labels": {"app": format!("a{index}")}
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "selector": {"app": format!("a{index}")},
            "ports": [{"name": "web", "port": 80, "protocol": "TCP", "targetPort": 8080}]
        }
    })
}

/// A proxy in a process of its own, which ends with this.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A proxy beside an API server: its start, the way of one event, its memory.
fn whole(size: u32, runs: usize, report: &mut Report) -> Result<()> {
    let who = format!("{size} Services");
    let dir = tempfile::tempdir()?;
    let api = Api::default();
    api.fill(SERVICES, (0..size).map(service_object).collect());
    api.fill(
        SLICES,
        (0..size).map(|i| slice_object(i, "10.42.1.2")).collect(),
    );
    api.fill(NODES, vec![json!({"metadata": {"name": "n1"}})]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let kubeconfig = runtime.block_on(api.serve(dir.path()));
    std::thread::scope(|scope| {
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        scope.spawn(move || runtime.block_on(async { ended.await.ok() }));
        let outcome = with_proxy(&api, &kubeconfig, runs, &who, report);
        drop(end);
        outcome
    })
}

fn with_proxy(
    api: &Api,
    kubeconfig: &Path,
    runs: usize,
    who: &str,
    report: &mut Report,
) -> Result<()> {
    let begun = Instant::now();
    let child = Command::new(std::env::current_exe()?)
        .env(CHILD, kubeconfig)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut proxy = Proxy(child);
    let mut line = String::new();
    let out = proxy.0.stdout.take().context("its output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
    ensure!(line == "ready\n", "the proxy did not serve");
    report.times(
        "proxy's start to all rules (with the API's lists)",
        who,
        &[begun.elapsed()],
    );
    while api.watches() < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut socket = Socket::open()?;
    let monitor = Monitor::open(socket.port()?)?;
    // Service 7, TCP 80, slot 1.
    let key = [10, 43, 0, 7, 6, 0, 0, 0, 0, 80, 0, 0, 1, 0, 0, 0];
    let mut samples = Vec::new();
    for round in 0..(runs * 10).max(200) {
        let last = u8::try_from(10 + round % 2).expect("small");
        let wanted = [10, 42, 9, last, 31, 144, 0, 0];
        let object = slice_object(7, &format!("10.42.9.{last}"));
        monitor.changed(Family::Inet, TABLE)?; // the last round's
        let begun = Instant::now();
        api.say(SLICES, "MODIFIED", object);
        // The kernel tells when it is done: somebody who asks again and again would hold one of the
        // processors that the proxy needs.
        loop {
            let mut ready = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
            let woken = poll(&mut ready, PollTimeout::from(5000_u16))?;
            ensure!(woken > 0, "the change did not arrive");
            if monitor.changed(Family::Inet, TABLE)? {
                break;
            }
        }
        let elapsed = begun.elapsed();
        let is = socket.element(Family::Inet, TABLE, "endpoints4", &key)?;
        ensure!(is.as_deref() == Some(&wanted[..]), "another change arrived");
        samples.push(elapsed);
        std::thread::sleep(Duration::from_millis(2));
    }
    report.times(
        "one endpoint changes (watch event to kernel)",
        who,
        &samples,
    );
    let pss = super::memory::pss_kib(proxy.0.id());
    report.kib("service proxy (PSS)", who, vec![pss]);
    drop(proxy);
    Socket::open()?.delete_table(Family::Inet, TABLE)?;
    Ok(())
}

/// A client's connections to a Service, made and closed one after the other, by turns with few and
/// with many Services in the kernel.
fn connections(runs: usize, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let client = dir.path().join("client");
    cni::netns::create(&client)?;
    let file = client.to_str().context("a path")?;
    ip(&format!(
        "link add vb0 type veth peer name eth0 netns {file}"
    ))?;
    ip("addr add 10.42.0.1/24 dev vb0")?;
    ip("link set vb0 up")?;
    cni::netns::run(&client, || {
        ip("link set lo up")?;
        ip("addr add 10.42.0.2/24 dev eth0")?;
        ip("link set eth0 up")?;
        ip("route add default via 10.42.0.1")
    })??;
    let listener = TcpListener::bind("10.42.0.1:8080")?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            drop(stream);
        }
    });
    let node = Node::named("n1", &[]);
    let mut kernel = Kernel::default();
    let mut samples = [Vec::new(), Vec::new()];
    let mut firsts = [Vec::new(), Vec::new()];
    for _ in 0..runs.clamp(5, 20) {
        for (slot, size) in SIZES.into_iter().enumerate() {
            let services = (0..size)
                .map(|index| service(index, &["10.42.0.1"]))
                .collect::<Result<Vec<_>>>()?;
            let mut state = State::new(TABLE, settings()?);
            state.adopt(compiled(&services, &node));
            kernel.apply(&state.full().transaction)?;
            let address: SocketAddr = format!("{}:80", cluster_ip(7)).parse()?;
            let (each, first) = cni::netns::run(&client, || connect(address))??;
            samples[slot].push(each);
            firsts[slot].push(first);
        }
    }
    for (slot, size) in SIZES.into_iter().enumerate() {
        let who = format!("{size} Services");
        report.micros(
            "a connection to a Service (mean of 2000)",
            &who,
            &samples[slot],
        );
        report.micros(
            "a connection to a Service (median of 2000)",
            &who,
            &firsts[slot],
        );
    }
    cni::netns::remove(&client)?;
    Socket::open()?.delete_table(Family::Inet, TABLE)?;
    Ok(())
}

/// Connections made and closed one after the other: the mean, and the median.
pub(crate) fn connect(address: SocketAddr) -> Result<(Duration, Duration)> {
    let mut each = Vec::new();
    let begun = Instant::now();
    for _ in 0..CONNECTIONS {
        let one = Instant::now();
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        each.push(one.elapsed());
        // Closed with a reset, so that no port waits.
        nix::sys::socket::setsockopt(
            &stream,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            },
        )?;
    }
    let mean = begun.elapsed() / CONNECTIONS;
    each.sort_unstable();
    Ok((mean, each[each.len() / 2]))
}
