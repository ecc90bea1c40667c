// SPDX-License-Identifier: Apache-2.0
//! Cluster DNS: questions a second on one core, and how long each waits, for names of the cluster
//! and for names in the cache. In a network namespace of its own; dnsmasq beside it where there is one.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::api::{Api, SERVICES, SLICES};
use super::place::in_own_host;
use super::report::Report;

/// Set in a copy of this program that is to be the server: its kubeconfig.
const CHILD: &str = "PODWRIGHT_BENCH_DNS";
const SERVER: &str = "10.43.0.10:53";
const PEER: &str = "127.0.2.1:53";
/// The node's resolver.
const RESOLVER: &str = "127.0.1.1:53";
const SERVICES_COUNT: u32 = 10_000;
/// Questions that are under way at a time: as many pods that ask at once.
const CLIENTS: usize = 16;
/// How long one measurement takes.
const SAMPLE: Duration = Duration::from_secs(1);

/// Be the server, if that is what this process is for.
pub(crate) fn child() -> Option<Result<()>> {
    let kubeconfig = std::path::PathBuf::from(std::env::var_os(CHILD)?);
    let dir = kubeconfig.parent()?.to_owned();
    let config = proxy::dns::Config {
        kubeconfig,
        addresses: vec!["10.43.0.10".parse().ok()?],
        domain: "cluster.local".into(),
        cluster_cidr: "10.42.0.0/16".into(),
        service_cidr: "10.43.0.0/16".into(),
        resolv_conf: dir.join("resolv.conf"),
        state_file: dir.join("dns-addresses"),
    };
    let run = || {
        one_core(0)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (ready, _) = tokio::sync::oneshot::channel();
        let stop = tokio_util::sync::CancellationToken::new();
        Ok(runtime.block_on(proxy::dns::run(config, ready, stop))?)
    };
    Some(run())
}

/// This thread and those that it starts run on one core.
fn one_core(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

pub(crate) fn measure(runs: usize, report: &mut Report) -> Result<()> {
    in_own_host(|| {
        resolver()?;
        ours(runs.min(10), report)?;
        peer(runs.min(10), report)
    })
}

/// Every name has one address. It ends with the process.
fn resolver() -> Result<()> {
    let socket = UdpSocket::bind(RESOLVER)?;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let end = question_end(&buffer[..length]);
            let mut reply = buffer[..end].to_vec();
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, 1]);
            let _ = socket.send_to(&reply, from);
        }
    });
    Ok(())
}

fn question_end(packet: &[u8]) -> usize {
    let mut end = 12;
    while packet[end] > 0 {
        end += 1 + usize::from(packet[end]);
    }
    end + 5
}

fn service(index: u32) -> Value {
    let [_, _, high, low] = index.to_be_bytes();
    let meta = json!({"name": format!("s{index}"), "namespace": "d", "uid": index.to_string()});
    let port = json!({"name": "http", "port": 80});
    json!({"metadata": meta, "spec": {"clusterIP": format!("10.43.{high}.{low}"), "ports": [port]}})
}

/// A process that ends with this.
struct Server(Child);

impl Server {
    /// The processor time of all its threads (proc_pid_schedstat: nanoseconds).
    fn cpu(&self) -> Result<Duration> {
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split(' ').next().unwrap_or_default();
            nanos += first.parse::<u64>().context("schedstat")?;
        }
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ours(runs: usize, report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("resolv.conf"), "nameserver 127.0.1.1\n")?;
    let api = Api::default();
    api.fill(SERVICES, (20..20 + SERVICES_COUNT).map(service).collect());
    api.fill(SLICES, Vec::new());
    let namespace = json!({"metadata": {"name": "d", "uid": "d"}});
    api.fill("/api/v1/namespaces", vec![namespace]);
    let kubeconfig = runtime.block_on(api.serve(dir.path()));
    let mut command = Command::new(std::env::current_exe()?);
    let server = Server(
        command
            .env(CHILD, kubeconfig)
            .stdin(Stdio::null())
            .spawn()?,
    );
    let who = "podwright";
    let last = format!("s{}.d.svc.cluster.local", 19 + SERVICES_COUNT);
    ready(SERVER, &last)?;
    for (what, name) in [
        ("DNS, a Service of 10,000", "s77.d.svc.cluster.local"),
        ("DNS, no such Service", "x.d.svc.cluster.local"),
        ("DNS, a cached name", "www.example.com"),
    ] {
        load(what, who, (&server, SERVER), name, runs, report)?;
    }
    Ok(())
}

fn peer(runs: usize, report: &mut Report) -> Result<()> {
    if !super::installed("dnsmasq") {
        return Ok(());
    }
    let mut command = Command::new("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=127.0.2.1",
        "--server=127.0.1.1",
        "--cache-size=10000",
        "--dns-forward-max=1000",
        "--user=root",
        "--pid-file=",
    ]);
    let server = Server(command.stdin(Stdio::null()).spawn()?);
    let mut set = CpuSet::new();
    set.set(0)?;
    sched_setaffinity(Pid::from_raw(i32::try_from(server.0.id())?), &set)?;
    ready(PEER, "www.example.com")?;
    load(
        "DNS, a cached name",
        "dnsmasq",
        (&server, PEER),
        "www.example.com",
        runs,
        report,
    )
}

fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

fn ready(server: &str, name: &str) -> Result<()> {
    let (begun, packet) = (Instant::now(), question(name));
    loop {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut buffer = [0; 512];
        let asked = socket.connect(server).and_then(|()| socket.send(&packet));
        if asked.and_then(|_| socket.recv(&mut buffer)).is_ok() && buffer[7] > 0 {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "{server} knows {name}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Questions a second, with some always under way, and the time that each took.
fn load(
    what: &str,
    who: &str,
    (process, address): (&Server, &str),
    name: &str,
    runs: usize,
    report: &mut Report,
) -> Result<()> {
    let server: SocketAddr = address.parse()?;
    let mut rates = Vec::new();
    // What a machine that is busy with other things does not change much.
    let mut rates_of_cpu = Vec::new();
    let mut waits = Vec::new();
    for _ in 0..runs.max(1) {
        let stop = AtomicBool::new(false);
        let (begun, cpu) = (Instant::now(), process.cpu()?);
        let (count, took) = std::thread::scope(|scope| {
            let client = scope.spawn(|| clients(server, name, &stop));
            std::thread::sleep(SAMPLE);
            stop.store(true, Ordering::Relaxed);
            client.join().map_err(|_| anyhow!("the client panicked"))?
        })?;
        rates.push(count as f64 / begun.elapsed().as_secs_f64());
        let cpu = process.cpu()?.saturating_sub(cpu);
        rates_of_cpu.push(count as f64 / cpu.as_secs_f64());
        waits.extend(took);
    }
    report.per_second(&format!("{what}, questions"), who, rates);
    let of_cpu = format!("{what}, questions in a second of CPU");
    report.per_second(&of_cpu, who, rates_of_cpu);
    report.micros(
        &format!("{what}, wait with {CLIENTS} at a time"),
        who,
        &waits,
    );
    Ok(())
}

/// One thread that plays all clients: as many questions under way as there are, each with a number.
fn clients(server: SocketAddr, name: &str, stop: &AtomicBool) -> Result<(u64, Vec<Duration>)> {
    one_core(1).or_else(|_| one_core(0))?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut packet = question(name);
    let mut sent = vec![Instant::now(); CLIENTS];
    let mut ask = |number: usize, sent: &mut Vec<Instant>| {
        packet[1] = number as u8;
        sent[number] = Instant::now();
        socket.send(&packet)
    };
    for number in 0..CLIENTS {
        ask(number, &mut sent)?;
    }
    let (mut count, mut waits, mut buffer) = (0, Vec::new(), [0; 512]);
    while !stop.load(Ordering::Relaxed) {
        socket.recv(&mut buffer).context("an answer was lost")?;
        let number = usize::from(buffer[1]);
        // All samples would be the memory of a measurement that is about the server's.
        if count % 8 == 0 {
            waits.push(sent[number].elapsed());
        }
        count += 1;
        ask(number, &mut sent)?;
    }
    Ok((count, waits))
}
