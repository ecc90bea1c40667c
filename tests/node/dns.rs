// SPDX-License-Identifier: Apache-2.0
//! Names, as pods find them.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{TestHost, TestNet, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

const CLUSTER: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: db }
spec: { clusterIP: None, selector: { app: db }, ports: [{ name: sql, port: 5432 }] }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: db }, ports: [{ name: http, port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: out }
spec: { type: ExternalName, externalName: www.outside.example }
---
apiVersion: v1
kind: Pod
metadata: { name: db-0, labels: { app: db } }
spec:
  hostname: db-0
  subdomain: db
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: localhost/busybox:1, command: [sleep, "100000"] }]
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: localhost/busybox:1, command: [sleep, "100000"] }]
---
apiVersion: v1
kind: Pod
metadata: { name: on-host }
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: localhost/busybox:1, command: [sleep, "100000"] }]
"#;

/// The host's resolver: every name has the address 192.0.2.77. It ends with the test's process.
fn outside(host: &TestHost) -> Result<()> {
    host.sh(
        "echo 'nameserver 127.0.1.1' > resolv.conf; mount --bind resolv.conf /etc/resolv.conf",
    )?;
    let socket = cni::netns::run(&host.netns(), || UdpSocket::bind("127.0.1.1:53"))??;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some(reply) = reply(&buffer[..length]) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    Ok(())
}

/// An address for a question of type A; for another, that there is none.
fn reply(asked: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    while *asked.get(end)? > 0 {
        end += 1 + usize::from(asked[end]);
    }
    let question = asked.get(..end + 5)?;
    let kind = question[end + 2];
    let mut reply = question.to_vec();
    let count = u8::from(kind == 1);
    reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    if kind == 1 {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
    }
    Some(reply)
}

fn inside(host: &TestHost, pod: &str, script: &str) -> Result<String> {
    host.kubectl_ok(&["exec", pod, "--", "sh", "-c", script])
}

fn resolves(host: &TestHost, pod: &str, name: &str, address: &str) -> Result<()> {
    let script = format!("busybox nslookup -type=a {name}");
    wait_for(&format!("{pod} finds {name}"), PATIENCE, || {
        match inside(host, pod, &script) {
            Ok(page) if page.contains(address) => Ok(()),
            Ok(page) => Err(page),
            Err(error) => Err(format!("{error:#}")),
        }
    })
}

fn pod_ip(host: &TestHost, name: &str) -> Result<String> {
    let pod = host.pod(name)?;
    let ip = pod["status"]["podIP"].as_str();
    Ok(ip.context("an address")?.to_owned())
}

fn dns_service(host: &TestHost) -> Option<Value> {
    host.get(&["service", "-n", "kube-system", "kube-dns"]).ok()
}

fn has_address(host: &TestHost) -> bool {
    host.sh("ip -o addr show dev lo")
        .is_ok_and(|list| list.contains("10.43.0.10/32"))
}

#[test]
fn pods_find_services_each_other_and_the_world() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    outside(&host)?;
    let server = host.server()?;
    host.apply(CLUSTER)?;
    for pod in ["db-0", "client", "on-host"] {
        host.wait_pod_ready(pod)?;
    }
    let resolv = inside(&host, "client", "cat /etc/resolv.conf")?;
    assert_eq!(
        resolv.split_whitespace().collect::<Vec<_>>().join(" "),
        "search default.svc.cluster.local svc.cluster.local cluster.local \
         nameserver 10.43.0.10 options ndots:5",
        "{resolv}"
    );
    let db = pod_ip(&host, "db-0")?;
    let web = host.get(&["service", "web"])?;
    let web = web["spec"]["clusterIP"].as_str().context("an address")?;
    for pod in ["client", "on-host"] {
        resolves(&host, pod, "web.default.svc.cluster.local", web)?;
        resolves(&host, pod, "db-0.db.default.svc.cluster.local", &db)?;
        resolves(&host, pod, "db.default.svc.cluster.local", &db)?;
        resolves(
            &host,
            pod,
            "kubernetes.default.svc.cluster.local",
            "10.43.0.1",
        )?;
        resolves(
            &host,
            pod,
            "kube-dns.kube-system.svc.cluster.local",
            "10.43.0.10",
        )?;
        resolves(&host, pod, "www.outside.example", "192.0.2.77")?;
        resolves(&host, pod, "out.default.svc.cluster.local", "192.0.2.77")?;
    }
    // By the search list and the C library's rules.
    let pinged = inside(&host, "client", "ping -c1 -W1 db-0.db | head -1")?;
    assert!(pinged.contains(&db), "{pinged}");
    let own = inside(&host, "db-0", "hostname -f")?;
    assert_eq!(own.trim(), "db-0.db.default.svc.cluster.local");
    // A port of the address that nobody serves refuses, as that of any Service.
    let closed = inside(&host, "client", "nc -w 5 10.43.0.10 80 </dev/null; echo $?")?;
    assert_eq!(closed.trim(), "1");
    let service = dns_service(&host).context("the Service kube-dns")?;
    assert_eq!(service["spec"]["clusterIP"], "10.43.0.10");
    assert_eq!(service["metadata"]["labels"]["k8s-app"], "kube-dns");

    server.kill()?;
    let server = host.server()?;
    resolves(&host, "client", "web.default.svc.cluster.local", web)?;
    host.kubectl_ok(&["delete", "service", "web"])?;
    wait_until("the name is gone", PATIENCE, || {
        inside(
            &host,
            "client",
            "busybox nslookup -type=a web.default.svc.cluster.local",
        )
        .is_err_and(|error| format!("{error:#}").contains("NXDOMAIN"))
    })?;
    server.stop()?;
    assert!(has_address(&host));
    host.sh("umount /etc/resolv.conf")?;
    let mut purge = host.podwright(&["purge", "--keep-data"]);
    tests::host::stdout_of(&mut purge)?;
    assert!(!has_address(&host), "purge takes the address away");
    host.down()
}

#[test]
fn the_address_can_be_left_to_another_dns() -> Result<()> {
    let host = TestHost::new()?;
    let server = host.server()?;
    wait_until("the address", PATIENCE, || has_address(&host))?;
    assert!(dns_service(&host).is_some());
    server.stop()?;
    let server = host.server_with(&["--disable", "dns"])?;
    wait_until("address and Service are given up", PATIENCE, || {
        !has_address(&host) && dns_service(&host).is_none()
    })?;
    // What CoreDNS's manifest brings can be made.
    host.apply(
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"kube-dns","namespace":"kube-system"},
        "spec":{"clusterIP":"10.43.0.10","selector":{"k8s-app":"kube-dns"},
        "ports":[{"name":"dns","port":53,"protocol":"UDP"}]}}"#,
    )?;
    server.stop()?;
    // With ours again, somebody else's Service is left as it is.
    let server = host.server()?;
    let service = dns_service(&host).context("the Service kube-dns")?;
    assert_eq!(service["spec"]["selector"]["k8s-app"], "kube-dns");
    server.stop()?;
    host.down()
}

#[test]
fn names_are_answered_over_both_families() -> Result<()> {
    let net = TestNet::new()?;
    let mut host = net.host(11, true)?;
    let flags = ["--cluster-cidr", "10.42.0.0/16,fd42::/48"];
    host.flags = flags.map(str::to_owned).to_vec();
    // Cluster DNS is the tenth of each.
    let flags = ["--service-cidr", "10.43.0.0/16,fd53::/108"];
    host.cluster_flags = flags.map(str::to_owned).to_vec();
    host.busybox_image()?;
    let server = host.server()?;
    host.apply(CLUSTER)?;
    host.wait_pod_ready("client")?;
    let resolv = inside(&host, "client", "cat /etc/resolv.conf")?;
    for line in ["nameserver 10.43.0.10", "nameserver fd53::a"] {
        assert!(resolv.lines().any(|l| l == line), "{resolv}");
    }
    let web = host.get(&["service", "web"])?;
    let web = web["spec"]["clusterIP"].as_str().context("an address")?;
    for server in ["10.43.0.10", "fd53::a"] {
        let name = format!("web.default.svc.cluster.local {server}");
        resolves(&host, "client", &name, web)?;
    }
    let service = dns_service(&host).context("the Service kube-dns")?;
    let ips = &service["spec"]["clusterIPs"];
    assert_eq!(ips, &serde_json::json!(["10.43.0.10", "fd53::a"]));
    server.stop()?;
    let mut purge = host.podwright(&["purge", "--keep-data"]);
    tests::host::stdout_of(&mut purge)?;
    let left = host.sh("ip -o addr show dev lo")?;
    assert!(
        !left.contains("10.43.0.10") && !left.contains("fd53::a"),
        "{left}"
    );
    host.down()
}
