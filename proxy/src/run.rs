// SPDX-License-Identifier: Apache-2.0
//! The proxy's task: events in, rules out.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as ApiNode, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::apply::{self, ApplyError, Kernel};
use crate::health::Health;
use crate::health_ports::{Failed, HealthPorts};
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::parse::{self, NodeInfo};
use crate::service::{Masquerade, Node, Refuse, ServiceRules};
use crate::state::{ServiceKey, State};
use crate::upkeep::Upkeep;
use crate::{Config, Error, config, servers};

/// How many events are taken in before the kernel hears of them.
const EVENTS_PER_SYNC: usize = 10_000;
/// Health check ports that could not be had and whose events wait to be written.
const FAILURES: usize = 64;

/// Run until `stop`. `ready` is sent when the rules of every Service are in place for the first
/// time. While the API server cannot be reached, rules stay as they are and the watch is retried.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    config::cidrs(&config.cluster_cidr).map_err(Error::ClusterCidr)?;
    let client = client(&config.kubeconfig).await?;
    let settings = watcher::Config::default;
    let services = watcher(Api::<Service>::all(client.clone()), settings()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), settings()).default_backoff();
    let own = settings().fields(&format!("metadata.name={}", config.node_name));
    let nodes = watcher(Api::<ApiNode>::all(client.clone()), own).default_backoff();
    let (failed, failures) = mpsc::channel(FAILURES);
    let mut proxy = Proxy::new(config, failed)?;
    let mut helpers = servers::start(&proxy.config, &proxy.health, &proxy.metrics, &stop);
    let name = proxy.config.node_name.clone();
    helpers.spawn(servers::report_failures(client, name, failures));
    let mut ready = Some(ready);
    let (mut services, mut slices, mut nodes) = (pin!(services), pin!(slices), pin!(nodes));
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = services.next() => proxy.service(event)?,
            event = slices.next() => proxy.slice(event)?,
            event = nodes.next() => proxy.node_event(event)?,
            () = proxy.upkeep.foreign_change() => proxy.damaged(),
            () = proxy.upkeep.waited() => {}
        }
        proxy.drain(services.as_mut(), slices.as_mut())?;
        if proxy.is_due() {
            proxy.sync().await?;
            if proxy.upkeep.is_settled()
                && let Some(ready) = ready.take()
            {
                // Nobody may be waiting; that is no reason to stop.
                let _ = ready.send(());
            }
        }
    }
}

/// A client of the API, by a kubeconfig.
pub(crate) async fn client(path: &PathBuf) -> Result<Client, Error> {
    let failed = |source| Error::Kubeconfig {
        path: path.clone(),
        source: Box::new(source),
    };
    let file = Kubeconfig::read_from(path).map_err(failed)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(failed)?;
    Client::try_from(config).map_err(|source| Error::Client {
        path: path.clone(),
        source: Box::new(source),
    })
}

pub(crate) type Watched<K> = Option<Result<watcher::Event<K>, watcher::Error>>;

/// What leaves for a thread while rules are applied.
struct Tools {
    state: State,
    kernel: Kernel,
}

struct Proxy {
    config: Config,
    node: Node,
    node_info: NodeInfo,
    /// Has the Node been listed, or can't it be? Its zone and pods' addresses decide about rules.
    node_known: bool,
    objects: Objects,
    tools: Option<Tools>,
    upkeep: Upkeep,
    problems: HashMap<ServiceKey, Vec<String>>,
    /// Services with ports whose `Local` policy finds nobody: by family, internal and external.
    no_local: HashMap<ServiceKey, [[u64; 2]; 2]>,
    health: Arc<Health>,
    health_ports: HealthPorts,
    metrics: Arc<Metrics>,
}

impl Proxy {
    fn new(config: Config, failed: mpsc::Sender<Failed>) -> Result<Proxy, Error> {
        let node_info = NodeInfo {
            eligible: true,
            ..NodeInfo::default()
        };
        let settings = config.settings(&node_info).map_err(Error::ClusterCidr)?;
        let health = Arc::new(Health::default());
        let has = |ipv4: bool| config.node_ips.iter().any(|ip| ip.is_ipv4() == ipv4);
        let metrics = Metrics::new([has(true) || !has(false), has(false)]);
        let addresses = config.health_addresses();
        Ok(Proxy {
            node: Node::named(&config.node_name, &config.node_ips),
            node_info,
            node_known: false,
            objects: Objects::new(&config.node_name),
            tools: Some(Tools {
                state: State::new(&config.nft_table, settings),
                kernel: Kernel::default(),
            }),
            upkeep: Upkeep::new(&config.nft_table),
            problems: HashMap::new(),
            no_local: HashMap::new(),
            health_ports: HealthPorts::new(addresses, &config.node_name, health.clone(), failed),
            health,
            metrics: Arc::new(metrics),
            config,
        })
    }

    fn service(&mut self, event: Watched<Service>) -> Result<(), Error> {
        match event {
            None => return Err(Error::WatchEnded("Services")),
            Some(Ok(event)) => self.objects.service_event(event),
            Some(Err(error)) => tracing::warn!(%error, "watching Services"),
        }
        Ok(())
    }

    fn slice(&mut self, event: Watched<EndpointSlice>) -> Result<(), Error> {
        match event {
            None => return Err(Error::WatchEnded("EndpointSlices")),
            Some(Ok(event)) => self.objects.slice_event(event),
            Some(Err(error)) => tracing::warn!(%error, "watching EndpointSlices"),
        }
        Ok(())
    }

    fn node_event(&mut self, event: Watched<ApiNode>) -> Result<(), Error> {
        match event {
            None => return Err(Error::WatchEnded("Nodes")),
            Some(Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                self.learn(parse::node(&node));
            }
            Some(Ok(watcher::Event::Delete(_))) => self.health.set_eligible(false),
            Some(Ok(watcher::Event::Init)) => {}
            Some(Ok(watcher::Event::InitDone)) => self.node_known = true,
            Some(Err(error)) => {
                tracing::warn!(%error, "watching the Node");
                self.node_known = true;
            }
        }
        Ok(())
    }

    /// The Node says something else about itself.
    fn learn(&mut self, info: NodeInfo) {
        self.health.set_eligible(info.eligible);
        if info.zone != self.node.zone {
            self.node.zone.clone_from(&info.zone);
            self.objects.all_dirty();
        }
        self.node_info = info;
        let Some(tools) = &mut self.tools else { return };
        // The text was read when the proxy began.
        if let Ok(settings) = self.config.settings(&self.node_info)
            && settings != *tools.state.settings()
        {
            *tools.state.settings_mut() = settings;
            self.upkeep.replace();
        }
    }

    fn damaged(&mut self) {
        self.metrics.repaired();
        self.upkeep.damaged();
    }

    /// Take in what has come already, so that a burst is one transaction.
    fn drain(
        &mut self,
        mut services: Pin<&mut impl Stream<Item = Result<watcher::Event<Service>, watcher::Error>>>,
        mut slices: Pin<
            &mut impl Stream<Item = Result<watcher::Event<EndpointSlice>, watcher::Error>>,
        >,
    ) -> Result<(), Error> {
        for _ in 0..EVENTS_PER_SYNC {
            let service = services.next().now_or_never();
            let slice = slices.next().now_or_never();
            if service.is_none() && slice.is_none() {
                break;
            }
            service.map_or(Ok(()), |event| self.service(event))?;
            slice.map_or(Ok(()), |event| self.slice(event))?;
        }
        Ok(())
    }

    /// Is there something to write, and may it be written?
    fn is_due(&mut self) -> bool {
        let known = self.objects.complete() && self.node_known;
        let wanted = self.upkeep.needs_full() || self.objects.is_dirty();
        if wanted && known {
            self.health.queued();
        }
        known && wanted && self.upkeep.may_write()
    }

    async fn sync(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        let (counts, triggered) = self.objects.take_changed();
        self.metrics.queued(counts.services, counts.slices);
        let changes = self.objects.take_changes(&self.node);
        self.note(&changes);
        let Some(mut tools) = self.tools.take() else {
            return Err(Error::Died);
        };
        let full = self.upkeep.needs_full();
        let metrics = self.metrics.clone();
        let applied = tokio::task::spawn_blocking(move || {
            let outcome = tools.apply(changes, full, &metrics);
            if full {
                crate::sys::give_memory_back();
            }
            (tools, outcome)
        });
        let (tools, outcome) = applied.await.map_err(|_| Error::Died)?;
        let port = tools.kernel.port();
        self.tools = Some(tools);
        if outcome.is_err() {
            self.metrics.failed();
        }
        self.upkeep.settle(outcome);
        if self.upkeep.is_settled() {
            self.upkeep.listen(port);
            let ages: Vec<Duration> = triggered
                .into_iter()
                .filter_map(|time| Timestamp::now().duration_since(time).try_into().ok())
                .collect();
            self.metrics.synced(begun.elapsed(), full, &ages);
            self.health.updated();
        }
        Ok(())
    }

    /// Tell what a change means beside rules: problems, health checks, counters.
    fn note(&mut self, changes: &[(ServiceKey, Option<ServiceRules>)]) {
        for (service, rules) in changes {
            self.health_ports.set(service, rules.as_ref());
            let problems = rules.as_ref().map(|r| &*r.problems).unwrap_or_default();
            self.note_problems(service, problems);
            let counts = rules.as_ref().map(without_local).unwrap_or_default();
            if counts == [[0; 2]; 2] {
                self.no_local.remove(service);
            } else {
                self.no_local.insert(service.clone(), counts);
            }
        }
        let mut total = [[0; 2]; 2];
        for counts in self.no_local.values() {
            for family in 0..2 {
                for policy in 0..2 {
                    total[family][policy] += counts[family][policy];
                }
            }
        }
        self.metrics.set_no_local(total);
    }

    /// Say once what a Service asks for and does not get.
    fn note_problems(&mut self, service: &ServiceKey, problems: &[String]) {
        let known = self.problems.get(service);
        if known.map(Vec::as_slice).unwrap_or_default() == problems {
            return;
        }
        for problem in problems {
            tracing::warn!(
                service = format!("{}/{}", service.0, service.1),
                "{problem}"
            );
        }
        if problems.is_empty() {
            self.problems.remove(service);
        } else {
            self.problems.insert(service.clone(), problems.to_vec());
        }
    }
}

impl Tools {
    fn apply(
        &mut self,
        changes: Vec<(ServiceKey, Option<ServiceRules>)>,
        full: bool,
        metrics: &Metrics,
    ) -> Result<(), ApplyError> {
        let names: BTreeSet<ServiceKey> = changes.iter().map(|(key, _)| key.clone()).collect();
        let step = if full {
            self.state.adopt(changes);
            self.state.full()
        } else {
            self.state.update(changes)
        };
        for (service, frontend) in self.state.conflicts(&names) {
            let service = format!("{}/{}", service.0, service.1);
            tracing::warn!(
                service,
                ?frontend,
                "another Service has this address and port"
            );
        }
        self.kernel.apply(&step.transaction)?;
        if !step.udp.is_empty() {
            let begun = Instant::now();
            match apply::forget(&step.udp, &self.state.settings().node_ports) {
                Ok(flows) => metrics.forgot(begun.elapsed(), flows),
                // The rules are in place. The flows are looked at again at the next change.
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "UDP flows may go astray"
                ),
            }
        }
        Ok(())
    }
}

/// Ports whose policy wants an endpoint here and finds none: by family, internal and external. A
/// port with several external addresses counts once.
fn without_local(rules: &ServiceRules) -> [[u64; 2]; 2] {
    let mut ports = BTreeSet::new();
    for (frontend, target) in &rules.frontends {
        let external = target.masquerade == Masquerade::Host;
        if target.refuse == Some(Refuse::Drop) && !(external && frontend.is_node_port()) {
            ports.insert((
                frontend.addr.is_ipv6(),
                external,
                frontend.protocol,
                frontend.port,
            ));
        }
    }
    for (frontend, target) in rules.frontends.iter().filter(|(f, _)| f.is_node_port()) {
        let family = frontend.addr.is_ipv6();
        let counted = ports.iter().any(|p| p.0 == family && p.1);
        if target.refuse == Some(Refuse::Drop) && !counted {
            ports.insert((family, true, frontend.protocol, frontend.port));
        }
    }
    let mut counts = [[0; 2]; 2];
    for (ipv6, external, _, _) in ports {
        counts[usize::from(ipv6)][usize::from(external)] += 1;
    }
    counts
}
