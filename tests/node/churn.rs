// SPDX-License-Identifier: Apache-2.0
//! Pods come and go at random through the API, with traffic of every kind, while the server is killed
//! with -9 at random. Afterwards the host is as it was before the first of them: no link, address,
//! route, neighbour, lease, record, rule, element or tracked connection is left.
//!
//! `PODWRIGHT_CHURN_PODS` says how many pods; the seed is printed, and `PODWRIGHT_CHURN_SEED` gives the
//! same order of steps again (how far the node gets between them differs).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tests::{Server, TestHost, host::HOST_IP, wait_for};

/// Few enough for a short test.
const PODS: usize = 24;
/// Pods at one time.
const LIVING: usize = 14;
/// Pods that come in one step.
const AT_ONCE: usize = 6;
/// Node ports and host ports of pods.
const NODE_PORT: u16 = 30080;
const FIRST_HOST_PORT: usize = 20_000;
/// How long the last remains may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Services with every kind of rule, and policies that select servers and clients.
const AROUND: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  type: NodePort
  selector: { app: web }
  ports:
  - { name: http, port: 80, targetPort: 8080, nodePort: 30080 }
  - { name: names, port: 53, targetPort: 5353, protocol: UDP, nodePort: 30053 }
---
apiVersion: v1
kind: Service
metadata: { name: sticky }
spec:
  sessionAffinity: ClientIP
  selector: { app: web }
  ports: [{ port: 80, targetPort: 8080 }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: servers }
spec:
  podSelector: { matchLabels: { guarded: "yes" } }
  ingress:
  - from: [{ podSelector: { matchLabels: { app: client } } }, { ipBlock: { cidr: 192.0.2.0/24 } }]
    ports: [{ port: web }, { port: 5353, protocol: UDP }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: clients }
spec:
  podSelector: { matchLabels: { app: client, guarded: "yes" } }
  policyTypes: [Egress]
  egress: [{ to: [{ podSelector: { matchLabels: { app: web } } }] }]
"#;

/// A web server that also hears UDP datagrams refused.
const SERVE: &str = "mkdir -p /www; echo served > /www/index.html; exec httpd -f -p 8080 -h /www";
/// Asks by TCP, UDP and ICMP, again and again.
const ASK: &str = r#"while :; do
  wget -qO- -T 1 http://$WEB_SERVICE_HOST/ >/dev/null 2>&1
  wget -qO- -T 1 http://$STICKY_SERVICE_HOST/ >/dev/null 2>&1
  timeout 1 nslookup some.name $WEB_SERVICE_HOST >/dev/null 2>&1
  ping -c1 -W1 10.42.0.$((RANDOM % 254 + 1)) >/dev/null 2>&1
  sleep 0.3
done"#;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn host_port(index: usize) -> usize {
    FIRST_HOST_PORT + index % 10_000
}

/// What kinds of pods there are, by chance.
fn pod(index: usize, dice: &mut StdRng) -> Value {
    let server = dice.random_bool(0.5);
    let command = if server { SERVE } else { ASK };
    let mut ports = vec![json!({"name": "web", "containerPort": 8080})];
    if server && dice.random_bool(0.6) {
        let number = host_port(index);
        ports = vec![
            json!({"name": "web", "containerPort": 8080, "hostPort": number}),
            json!({"name": "names", "containerPort": 5353, "hostPort": number, "protocol": "UDP"}),
        ];
    }
    let mut annotations = json!({});
    if dice.random_bool(0.2) {
        annotations = json!({
            "kubernetes.io/ingress-bandwidth": "100M",
            "kubernetes.io/egress-bandwidth": "100M",
        });
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("pod-{index}"),
            "labels": {
                "app": if server { "web" } else { "client" },
                "churn": "yes",
                "guarded": if dice.random_bool(0.4) { "yes" } else { "no" },
            },
            "annotations": annotations,
        },
        "spec": {
            // 0: the API forgets it at once, and the node has to find out.
            "terminationGracePeriodSeconds": i32::from(dice.random_bool(0.7)),
            "containers": [{
                "name": "main",
                "image": "localhost/busybox:1",
                "command": ["sh", "-c", command],
                "ports": ports,
            }],
        },
    })
}

/// Asks pods from the host, by host ports and the node port, until it is told to stop.
struct Callers {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Callers {
    fn start(host: &TestHost, pods: usize) -> Callers {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, netns) = (stop.clone(), host.netns());
        let thread = std::thread::spawn(move || {
            let call = move || call_until(&stopped, pods);
            cni::netns::run(&netns, call).expect("the host's namespace")
        });
        Callers { stop, thread }
    }

    /// How many answers there were.
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the callers")
    }
}

fn call_until(stop: &AtomicBool, pods: usize) -> usize {
    let mut dice = StdRng::seed_from_u64(7);
    let mut answers = 0;
    let socket = UdpSocket::bind((HOST_IP, 0)).expect("a socket");
    while !stop.load(Ordering::Relaxed) {
        let port = match dice.random_range(0..3) {
            0 => NODE_PORT,
            _ => u16::try_from(host_port(dice.random_range(0..pods))).expect("a port"),
        };
        let to: SocketAddr = format!("{HOST_IP}:{port}").parse().expect("an address");
        answers += usize::from(asked(to).is_ok_and(|page| page.contains("served")));
        // Nobody answers; it is tracked all the same.
        let _ = socket.send_to(b"?", to);
        std::thread::sleep(Duration::from_millis(5));
    }
    answers
}

fn asked(to: SocketAddr) -> std::io::Result<String> {
    let patience = Duration::from_millis(300);
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// Everything, once a server has written its tables anew.
const RULES: &str = "nft list ruleset";
/// All but the chains that Services share, one for each number of endpoints that there has been, and
/// which clients had which endpoint: both stay until then.
const ELEMENTS: &str = "nft list table inet podwright-cni; nft list table inet podwright-policy
    nft list table inet podwright |
    awk '/^\t(map|set) /{k = $2 !~ /^(entries|picks|learned)/} k; /^\t}/{k=0}'";

/// Everything on a host that pods leave traces in, as text that two looks can be compared by.
fn traces(host: &TestHost, rules: &str) -> Result<String> {
    let mut all = String::new();
    let scripts = [
        (
            "links",
            "ip -o link | awk '{print $2, $NF}' | sed 's/@.*//' | sort",
        ),
        (
            "addresses",
            "ip -o addr | grep -v fe80 | awk '{print $2, $3, $4}' | sort",
        ),
        (
            "routes",
            "(ip route show table all; ip -6 route show table all) | grep -v fe80 | sed 's/ linkdown//' | sort",
        ),
        ("neighbours", "ip neigh | grep -v uplink0 | sort"),
        ("forwarding", "bridge fdb | grep -v permanent | sort"),
        (
            "leases, records",
            "cd data; find . -path '*/networks/*' -type f -o -path '*/results/*' -type f | grep -v -e last_reserved -e lock -e /unfinished -e /.whole | sort",
        ),
        ("namespaces", "ls run/cri/netns"),
        ("rules", rules),
    ];
    for (what, script) in scripts {
        let text = host.sh(&format!("{script} || true"))?;
        writeln!(all, "== {what}\n{text}")?;
    }
    writeln!(all, "== connections")?;
    for flow in flows(host)? {
        writeln!(all, "{flow}")?;
    }
    Ok(all)
}

/// An address of the node's range that is not the gateway's, nor everybody's.
fn is_of_pod(address: IpAddr) -> bool {
    let IpAddr::V4(v4) = address else {
        return false;
    };
    let [a, b, c, last] = v4.octets();
    [a, b, c] == [10, 42, 0] && !matches!(last, 0 | 1 | 255)
}

/// Do traces name anything that is a pod's?
fn name_a_pod(traces: &str) -> bool {
    let mut words = traces.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    words.any(|word| {
        let is_id = |id: &str| id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit());
        ["pw", "pwb"]
            .iter()
            .any(|kind| word.strip_prefix(kind).is_some_and(is_id))
            || word == "eth0.json"
            || word.parse().is_ok_and(is_of_pod)
    })
}

/// Tracked connections that name an address of a pod.
fn flows(host: &TestHost) -> Result<BTreeSet<String>> {
    let found = cni::netns::run(&host.netns(), || {
        let found = RefCell::new(BTreeSet::new());
        cni::conntrack::delete(|flow| {
            let named = [flow.original.src, flow.original.dst, flow.reply.src];
            if named.into_iter().any(is_of_pod) {
                found.borrow_mut().insert(format!("{flow:?}"));
            }
            false
        })
        .map(|_| found.into_inner())
    });
    found?.context("listing tracked connections")
}

/// What differs, line by line.
fn difference(before: &str, after: &str) -> String {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) =
        (before.lines().collect(), after.lines().collect());
    let gone = old.difference(&new).map(|line| format!("- {line}"));
    let come = new.difference(&old).map(|line| format!("+ {line}"));
    gone.chain(come).collect::<Vec<_>>().join("\n")
}

struct Churn<'a> {
    host: &'a TestHost,
    server: Option<Server<'a>>,
    dice: StdRng,
    made: usize,
    living: Vec<String>,
    kills: usize,
    /// The most connections that named pods at one look.
    flows: usize,
}

impl<'a> Churn<'a> {
    fn begin(&mut self, count: usize) -> Result<()> {
        let pods: Vec<Value> = (self.made..self.made + count)
            .map(|index| pod(index, &mut self.dice))
            .collect();
        let names = pods.iter().filter_map(|p| p["metadata"]["name"].as_str());
        self.living.extend(names.map(str::to_owned));
        let manifests: Vec<String> = pods.iter().map(Value::to_string).collect();
        let file = self.host.write("pods.json", &manifests.join("\n"))?;
        self.host.kubectl_ok(&["create", "-f", &file])?;
        self.made += count;
        Ok(())
    }

    fn end(&mut self, count: usize) -> Result<()> {
        let mut names = Vec::new();
        for _ in 0..count.min(self.living.len()) {
            let at = self.dice.random_range(0..self.living.len());
            names.push(self.living.swap_remove(at));
        }
        if names.is_empty() {
            return Ok(());
        }
        let names = names.iter().map(String::as_str);
        let delete: Vec<&str> = ["delete", "pod", "--wait=false", "--ignore-not-found"]
            .into_iter()
            .chain(names)
            .collect();
        self.host.kubectl_ok(&delete).map(drop)
    }

    /// The server dies in the middle of whatever it does now, and comes back.
    fn kill(&mut self) -> Result<()> {
        let server = self.server.take().context("a server")?;
        server.kill()?;
        self.kills += 1;
        self.server = Some(self.host.server()?);
        Ok(())
    }

    fn pause(&mut self, longest: u64) {
        let millis = self.dice.random_range(0..longest);
        std::thread::sleep(Duration::from_millis(millis));
    }

    fn step(&mut self, pods: usize) -> Result<()> {
        let count = self.dice.random_range(1..=AT_ONCE);
        self.begin(count.min(pods - self.made))?;
        self.pause(900);
        if self.dice.random_bool(0.4) {
            self.kill()?;
        }
        self.flows = self.flows.max(flows(self.host)?.len());
        let many = self.living.len().saturating_sub(LIVING);
        let some = self.dice.random_range(0..=AT_ONCE);
        self.end(many.max(some))?;
        if self.dice.random_bool(0.2) {
            self.pause(500);
            self.kill()?;
        }
        Ok(())
    }

    fn no_pods(&self) -> Result<()> {
        wait_for("all pods are gone", PATIENCE, || {
            let listed = self
                .host
                .kubectl_ok(&["get", "pods", "-l", "churn=yes", "-o", "name"]);
            match listed {
                Ok(names) if names.is_empty() => Ok(()),
                Ok(names) => Err(names),
                Err(error) => Err(format!("{error:#}")),
            }
        })
    }
}

/// One undisturbed pod, so that bridge, tables and directories are there before the first look.
fn first_pod(host: &TestHost) -> Result<()> {
    let mut dice = StdRng::seed_from_u64(1);
    host.apply(&pod(0, &mut dice).to_string())?;
    host.wait_pod_ready("pod-0")?;
    host.kubectl_ok(&["delete", "pod", "pod-0"])?;
    Ok(())
}

fn same_as_before(host: &TestHost, rules: &str, before: &str) -> Result<Duration> {
    let begun = Instant::now();
    wait_for("nothing is left of any pod", PATIENCE, || {
        let now = traces(host, rules).map_err(|error| format!("{error:#}"))?;
        match difference(before, &now) {
            same if same.is_empty() => Ok(()),
            different => Err(different),
        }
    })?;
    Ok(begun.elapsed())
}

#[test]
fn nothing_is_left_of_pods_that_come_and_go_while_the_server_is_killed() -> Result<()> {
    let pods = number("PODWRIGHT_CHURN_PODS").map_or(Ok(PODS), usize::try_from)?;
    let seed = number("PODWRIGHT_CHURN_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("PODWRIGHT_CHURN_SEED={seed}");
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    first_pod(&host)?;
    let before = wait_for("the first pod's traces are gone", PATIENCE, || {
        let now = traces(&host, RULES).map_err(|error| format!("{error:#}"))?;
        if name_a_pod(&now) { Err(now) } else { Ok(now) }
    })?;
    let elements = traces(&host, ELEMENTS)?;
    host.apply(AROUND)?;
    let callers = Callers::start(&host, pods);
    let begun = Instant::now();
    let mut churn = Churn {
        host: &host,
        server: Some(server),
        dice: StdRng::seed_from_u64(seed),
        made: 0,
        living: Vec::new(),
        kills: 0,
        flows: 0,
    };
    while churn.made < pods {
        churn.step(pods)?;
    }
    churn.end(usize::MAX)?;
    churn.pause(1000);
    churn.kill()?;
    let answers = callers.stop();
    churn.no_pods()?;
    let file = host.write("around.yaml", AROUND)?;
    host.kubectl_ok(&["delete", "-f", &file])?;
    let took = begun.elapsed();
    let settled = same_as_before(&host, ELEMENTS, &elements)?;
    println!(
        "{pods} pods and {} kills in {took:.1?}; {answers} answers from outside, {} connections of \
         pods at one time; nothing was left after {settled:.1?}",
        churn.kills, churn.flows,
    );
    ensure!(answers > 0 && churn.flows > 0, "there was no traffic");
    churn.kill()?;
    same_as_before(&host, RULES, &before)?;
    churn.server.take().context("a server")?.stop()?;
    drop(churn);
    host.down()
}
