// SPDX-License-Identifier: Apache-2.0
//! The component's task: events in, rules out.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use cni::Known;
use cni::attached::{Attached, Changes, Watch};
use cni::nft::Transaction;
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use super::parse::{self, PodInfo, PolicyInfo};
use super::rules;
use super::selector::Labels;
use super::state::{Settings, State};
use super::world::{Change, Key};
use crate::apply::{ApplyError, Kernel};
use crate::objects::Store;
use crate::run::{Watched, client};
use crate::upkeep::Upkeep;
use crate::{Error, sys};

/// How many events are taken in before the kernel hears of them.
const EVENTS_PER_SYNC: usize = 10_000;

/// What the component must know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server: it reads Pods, Namespaces and NetworkPolicies.
    pub kubeconfig: PathBuf,
    /// Name of this node.
    pub node_name: String,
    /// Name of the node's nftables table; this component owns the one with `-policy` after it.
    pub nft_table: String,
    /// Bridge of this node's pods.
    pub bridge: String,
    /// Where the pod network keeps its state, which says who has which address before the Pod's
    /// status does. `None`: another runtime attaches pods, and their status is what counts.
    pub network_state: Option<PathBuf>,
    /// Is told which pods of this node the rules know.
    pub known: Known,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl Config {
    /// The table that the component owns.
    pub fn table(&self) -> String {
        format!("{}-policy", self.nft_table)
    }
}

/// Run until `stop`. `ready` is sent when every policy is in place for the first time. Until then
/// the rules of an earlier run stay; without them no pod may send or be sent anything. While the API
/// server cannot be reached, rules stay as they are and the watch is retried.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let client = client(&config.kubeconfig).await?;
    let mut attachments = Attachments::open(config.network_state.as_deref())?;
    let settings = watcher::Config::default;
    let pods = watcher(Api::<Pod>::all(client.clone()), settings()).default_backoff();
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), settings()).default_backoff();
    let policies = watcher(Api::<NetworkPolicy>::all(client), settings()).default_backoff();
    let mut task = Task::new(&config);
    task.pending.extend(attachments.all()?);
    task.close().await?;
    let mut ready = Some(ready);
    let (mut pods, mut namespaces) = (pin!(pods), pin!(namespaces));
    let mut policies = pin!(policies);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = pods.next() => task.pod(event)?,
            event = namespaces.next() => task.namespace(event)?,
            event = policies.next() => task.policy(event)?,
            changes = attachments.next() => task.pending.extend(changes?),
            () = task.upkeep.foreign_change() => task.damaged(),
            () = task.upkeep.waited() => {}
        }
        task.drain(pods.as_mut(), namespaces.as_mut(), policies.as_mut())?;
        if !task.pending.is_empty() {
            task.heard.get_or_insert_with(Instant::now);
        }
        if task.is_due() {
            task.sync().await?;
            if task.upkeep.is_settled()
                && let Some(ready) = ready.take()
            {
                // Nobody may be waiting; that is no reason to stop.
                let _ = ready.send(());
            }
        }
    }
}

/// What leaves for a thread while rules are applied.
struct Tools {
    state: State,
    kernel: Kernel,
}

struct Task {
    pods: Store<PodInfo>,
    namespaces: Store<Labels>,
    policies: Store<PolicyInfo>,
    pending: Vec<Change>,
    /// When the first of the pending changes was.
    heard: Option<Instant>,
    tools: Option<Tools>,
    upkeep: Upkeep,
    table: String,
    known: Known,
    metrics: Arc<Metrics>,
}

impl Drop for Task {
    /// Rules stay as they are, and nobody tells what they know.
    fn drop(&mut self) {
        self.known.nobody_tells();
    }
}

impl Task {
    fn new(config: &Config) -> Task {
        let settings = Settings {
            node: config.node_name.clone(),
            bridge: config.bridge.clone(),
            attachments: config.network_state.is_some(),
        };
        let table = config.table();
        Task {
            pods: Store::new(),
            namespaces: Store::new(),
            policies: Store::new(),
            pending: Vec::new(),
            heard: None,
            tools: Some(Tools {
                state: State::new(&table, &settings),
                kernel: Kernel::default(),
            }),
            upkeep: Upkeep::new(&table),
            table,
            known: config.known.clone(),
            metrics: config.metrics.clone(),
        }
    }

    /// Where no rules are, nothing passes until policies are known.
    async fn close(&mut self) -> Result<(), Error> {
        let probe = rules::probe(&self.table);
        let closed = move |tools: &mut Tools| {
            if tools.kernel.apply(&probe).is_ok() {
                return Ok(());
            }
            let closed = tools.state.full();
            tools.kernel.apply(&closed)
        };
        let (outcome, _) = self.in_thread(closed).await?;
        if let Err(error) = outcome {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "pods are open until policies are known"
            );
        }
        Ok(())
    }

    async fn in_thread<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Tools) -> T + Send + 'static,
    ) -> Result<(T, Option<u32>), Error> {
        let Some(mut tools) = self.tools.take() else {
            return Err(Error::Died);
        };
        let done = tokio::task::spawn_blocking(move || {
            let outcome = work(&mut tools);
            (tools, outcome)
        });
        let (tools, outcome) = done.await.map_err(|_| Error::Died)?;
        let port = tools.kernel.port();
        self.tools = Some(tools);
        Ok((outcome, port))
    }

    fn pod(&mut self, event: Watched<Pod>) -> Result<(), Error> {
        let pending = &mut self.pending;
        let note = |key: &Key, _: Option<&PodInfo>, new: Option<&PodInfo>| {
            pending.push(Change::Pod(key.clone(), new.cloned()));
        };
        match event {
            None => return Err(Error::WatchEnded("Pods")),
            Some(Ok(event)) => self.pods.take(event, |p| &p.metadata, parse::pod, note),
            Some(Err(error)) => tracing::warn!(%error, "watching Pods"),
        }
        Ok(())
    }

    fn namespace(&mut self, event: Watched<Namespace>) -> Result<(), Error> {
        let pending = &mut self.pending;
        let note = |key: &Key, _: Option<&Labels>, new: Option<&Labels>| {
            pending.push(Change::Namespace(key.1.clone(), new.cloned()));
        };
        let parse = |namespace: &Namespace| Some(parse::namespace(namespace));
        match event {
            None => return Err(Error::WatchEnded("Namespaces")),
            Some(Ok(event)) => self.namespaces.take(event, |n| &n.metadata, parse, note),
            Some(Err(error)) => tracing::warn!(%error, "watching Namespaces"),
        }
        Ok(())
    }

    fn policy(&mut self, event: Watched<NetworkPolicy>) -> Result<(), Error> {
        let pending = &mut self.pending;
        let note = |key: &Key, old: Option<&PolicyInfo>, new: Option<&PolicyInfo>| {
            let problems =
                |info: Option<&PolicyInfo>| info.map(|i| i.problems.clone()).unwrap_or_default();
            if problems(old) != problems(new) {
                let policy = format!("{}/{}", key.0, key.1);
                for problem in problems(new) {
                    tracing::warn!(policy, "{problem}");
                }
            }
            pending.push(Change::Policy(key.clone(), new.cloned()));
        };
        match event {
            None => return Err(Error::WatchEnded("NetworkPolicies")),
            Some(Ok(event)) => self
                .policies
                .take(event, |p| &p.metadata, parse::policy, note),
            Some(Err(error)) => tracing::warn!(%error, "watching NetworkPolicies"),
        }
        Ok(())
    }

    /// Take in what has come already, so that a burst is one transaction.
    fn drain(
        &mut self,
        mut pods: Pin<&mut impl Stream<Item = Result<watcher::Event<Pod>, watcher::Error>>>,
        mut namespaces: Pin<
            &mut impl Stream<Item = Result<watcher::Event<Namespace>, watcher::Error>>,
        >,
        mut policies: Pin<
            &mut impl Stream<Item = Result<watcher::Event<NetworkPolicy>, watcher::Error>>,
        >,
    ) -> Result<(), Error> {
        for _ in 0..EVENTS_PER_SYNC {
            let pod = pods.next().now_or_never();
            let namespace = namespaces.next().now_or_never();
            let policy = policies.next().now_or_never();
            if pod.is_none() && namespace.is_none() && policy.is_none() {
                break;
            }
            pod.map_or(Ok(()), |event| self.pod(event))?;
            namespace.map_or(Ok(()), |event| self.namespace(event))?;
            policy.map_or(Ok(()), |event| self.policy(event))?;
        }
        Ok(())
    }

    fn damaged(&mut self) {
        self.metrics.repaired();
        self.upkeep.damaged();
    }

    /// Is there something to write, and may it be written?
    fn is_due(&self) -> bool {
        let known = self.pods.complete && self.namespaces.complete && self.policies.complete;
        let wanted = self.upkeep.needs_full() || !self.pending.is_empty();
        known && wanted && self.upkeep.may_write()
    }

    async fn sync(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        let full = self.upkeep.needs_full();
        let changes = std::mem::take(&mut self.pending);
        let count = changes.len();
        let apply = move |tools: &mut Tools| -> Result<(), ApplyError> {
            let mut step: Transaction = tools.state.update(changes);
            if full {
                step = tools.state.full();
            }
            tools.kernel.apply(&step)
        };
        let (outcome, port) = self.in_thread(apply).await?;
        if outcome.is_err() {
            self.metrics.failed();
        }
        self.upkeep.settle(outcome);
        if self.upkeep.is_settled() {
            self.upkeep.listen(port);
            // What the first list waited for is no latency.
            let waited = self.heard.take().filter(|_| !full);
            if let Some(Tools { state, .. }) = &self.tools {
                self.known.tell(state.local());
                let waited = waited.map(|heard| heard.elapsed());
                self.metrics.synced(begun.elapsed(), waited, state.sizes());
            }
            tracing::debug!(took = ?begun.elapsed(), full, changes = count, "policies are in place");
        }
        Ok(())
    }
}

/// Pods of this node that are attached to the network.
struct Attachments {
    watch: Option<AsyncFd<Watch>>,
    known: HashSet<String>,
}

impl Attachments {
    fn open(state: Option<&std::path::Path>) -> Result<Attachments, Error> {
        let open = |path: &std::path::Path| {
            let watch = Watch::open(path).and_then(sys::register_watch);
            watch.map_err(|source| Error::Attachments {
                path: path.to_owned(),
                source,
            })
        };
        Ok(Attachments {
            watch: state.map(open).transpose()?,
            known: HashSet::new(),
        })
    }

    /// All that there are, and all that are no more.
    fn all(&mut self) -> Result<Vec<Change>, Error> {
        let Some(watch) = &self.watch else {
            return Ok(Vec::new());
        };
        let all: HashMap<String, Attached> = watch.get_ref().all().map_err(Error::Records)?;
        let gone = self.known.iter().filter(|name| !all.contains_key(*name));
        let mut changes: Vec<Change> = gone
            .map(|name| Change::Attachment(name.clone(), None))
            .collect();
        self.known = all.keys().cloned().collect();
        changes.extend(
            all.into_iter()
                .map(|(name, a)| Change::Attachment(name, Some(a))),
        );
        Ok(changes)
    }

    /// Ends when something has changed.
    async fn next(&mut self) -> Result<Vec<Change>, Error> {
        let Some(watch) = &self.watch else {
            return std::future::pending().await;
        };
        let broken = |source| Error::Attachments {
            path: PathBuf::new(),
            source,
        };
        let mut readable = watch.readable().await.map_err(broken)?;
        let changes = readable.get_inner().changes().map_err(broken)?;
        readable.clear_ready();
        let Changes::Some(changes) = changes else {
            return self.all();
        };
        let change = |(name, attached): (String, Option<Attached>)| {
            match attached {
                Some(_) => drop(self.known.insert(name.clone())),
                None => drop(self.known.remove(&name)),
            }
            Change::Attachment(name, attached)
        };
        Ok(changes.into_iter().map(change).collect())
    }
}

/// Remove every rule of the component from this network namespace, so that pods talk freely.
/// Idempotent. Blocks for milliseconds.
pub fn cleanup(nft_table: &str) -> Result<(), Error> {
    crate::delete_table(&format!("{nft_table}-policy"))
}
