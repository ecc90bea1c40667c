// SPDX-License-Identifier: Apache-2.0
//! One actor per pod: the manager makes them from what the sources say, tells them what is new, and
//! buries them. It alone knows which pods the node has, so admission is decided here, and runtime
//! pods that no source knows are found here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::adapters::mirror::Mirrors;
use crate::pod::actor::{Actor, Beginning, Ears, Wanted};
use crate::pod::admit::{self, Rules};
use crate::pod::deps::Deps;
use crate::pod::spec;
use crate::ports::RuntimePod;

/// Inputs that wait; a sender waits when the manager is behind.
const QUEUE: usize = 256;
/// Leftovers on disk are looked for this often.
const RECONCILE: Duration = Duration::from_secs(300);

/// Where pods come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The API server.
    Api,
    /// Manifests on this node.
    File,
}

#[derive(Debug)]
enum Input {
    Set(Source, Vec<Pod>),
    Upsert(Box<Pod>),
    Removed(Box<Pod>),
    Changed(String),
    Listing(Vec<RuntimePod>),
}

/// The manager's entrance; cheap to clone.
#[derive(Debug, Clone)]
pub struct Inbox(mpsc::Sender<Input>);

/// What [`Inbox`] fills.
#[derive(Debug)]
pub struct Inputs(mpsc::Receiver<Input>);

/// Both ends.
pub fn channel() -> (Inbox, Inputs) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Inbox(sender), Inputs(receiver))
}

impl Inbox {
    /// All pods of a source; the source counts as synced from now on. False: the manager has gone.
    pub async fn set(&self, source: Source, pods: Vec<Pod>) -> bool {
        self.0.send(Input::Set(source, pods)).await.is_ok()
    }

    /// A new or changed pod of the API.
    pub async fn upsert(&self, pod: Pod) -> bool {
        self.0.send(Input::Upsert(Box::new(pod))).await.is_ok()
    }

    /// A pod that is gone from the API.
    pub async fn removed(&self, pod: Pod) -> bool {
        self.0.send(Input::Removed(Box::new(pod))).await.is_ok()
    }

    /// Something happened in the runtime to the pod with this uid.
    pub async fn changed(&self, uid: String) -> bool {
        self.0.send(Input::Changed(uid)).await.is_ok()
    }

    /// Everything that the runtime knows.
    pub async fn listing(&self, pods: Vec<RuntimePod>) -> bool {
        self.0.send(Input::Listing(pods)).await.is_ok()
    }
}

struct Worker {
    wanted: watch::Sender<Wanted>,
    look: Arc<Notify>,
    source: Option<Source>,
}

impl Worker {
    fn pod(&self) -> Arc<Pod> {
        Arc::clone(&self.wanted.borrow().pod)
    }

    fn delete(&self) {
        self.wanted.send_modify(|wanted| wanted.delete = true);
    }
}

type Name = (String, String);

fn name_of(pod: &Pod) -> Name {
    (spec::namespace(pod).to_owned(), spec::name(pod).to_owned())
}

/// The manager. [`Manager::run`] is its life.
pub struct Manager {
    deps: Arc<Deps>,
    rules: Rules,
    sources: BTreeSet<Source>,
    mirrors: Arc<Mirrors>,
    workers: BTreeMap<String, Worker>,
    tasks: JoinSet<()>,
    ids: HashMap<Id, String>,
    /// Static pods that wait until their predecessor of the same name is gone.
    waiting: BTreeMap<Name, Pod>,
    synced: BTreeSet<Source>,
    listing: BTreeMap<String, RuntimePod>,
    listed: bool,
}

impl Manager {
    /// `sources` are those to wait for before anything in the runtime counts as an orphan.
    pub fn new(
        deps: Arc<Deps>,
        rules: Rules,
        sources: BTreeSet<Source>,
        mirrors: Arc<Mirrors>,
    ) -> Manager {
        Manager {
            deps,
            rules,
            sources,
            mirrors,
            workers: BTreeMap::new(),
            tasks: JoinSet::new(),
            ids: HashMap::new(),
            waiting: BTreeMap::new(),
            synced: BTreeSet::new(),
            listing: BTreeMap::new(),
            listed: false,
        }
    }

    /// Runs until `stop`. Containers keep running afterwards: the next start finds them.
    pub async fn run(mut self, mut inputs: Inputs, stop: CancellationToken) {
        let mut reconcile = tokio::time::interval(RECONCILE);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                input = inputs.0.recv() => match input {
                    Some(input) => self.take(input),
                    None => break,
                },
                Some(ended) = self.tasks.join_next_with_id() => self.bury(ended),
                _ = reconcile.tick() => self.reconcile(),
            }
        }
        // Dropping the senders ends the actors; those in the middle of a runtime call are given up.
        self.workers.clear();
        self.tasks.shutdown().await;
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Set(source, pods) => self.set(source, pods),
            Input::Upsert(pod) => self.upsert(Source::Api, *pod),
            Input::Removed(pod) => self.removed(&pod),
            Input::Changed(uid) => {
                if let Some(worker) = self.workers.get(&uid) {
                    worker.look.notify_one();
                }
            }
            Input::Listing(pods) => self.listed(pods),
        }
    }

    fn set(&mut self, source: Source, mut pods: Vec<Pod>) {
        // Older pods first, as upstream admits them: an agent restart must not change who fits.
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let keep: BTreeSet<String> = pods.iter().map(|pod| spec::uid(pod).to_owned()).collect();
        if source == Source::File {
            self.waiting.retain(|_, pod| keep.contains(spec::uid(pod)));
            self.mirrors.set_statics(pods.clone());
        } else {
            self.mirrors.set_mirrors(
                pods.iter()
                    .filter(|pod| spec::is_mirror(pod))
                    .cloned()
                    .collect(),
            );
        }
        for (uid, worker) in &self.workers {
            if worker.source == Some(source) && !keep.contains(uid) {
                worker.delete();
            }
        }
        for pod in pods {
            self.upsert(source, pod);
        }
        if self.synced.insert(source) && self.synced == self.sources {
            self.find_orphans();
            self.reconcile();
        }
    }

    fn upsert(&mut self, source: Source, pod: Pod) {
        if source == Source::Api && spec::is_mirror(&pod) {
            self.mirrors.put_mirror(pod);
            return;
        }
        let uid = spec::uid(&pod).to_owned();
        if uid.is_empty() {
            tracing::error!(
                pod = spec::display(&pod),
                "a pod without a uid cannot be run"
            );
            return;
        }
        if let Some(worker) = self.workers.get(&uid) {
            // The uid of a static pod is its content: nothing can be new.
            if source == Source::Api {
                worker
                    .wanted
                    .send_modify(|wanted| wanted.pod = Arc::new(pod));
            }
            return;
        }
        if source == Source::File {
            let name = name_of(&pod);
            if self
                .workers
                .values()
                .any(|worker| name_of(&worker.pod()) == name)
            {
                self.waiting.insert(name, pod);
                return;
            }
        }
        self.hire(Some(source), pod, false);
    }

    fn removed(&mut self, pod: &Pod) {
        if spec::is_mirror(pod) {
            self.mirrors.remove_mirror(pod);
            return;
        }
        if let Some(worker) = self.workers.get(spec::uid(pod)) {
            worker.wanted.send_modify(|wanted| {
                // The last object says how much grace the deletion gave.
                wanted.pod = Arc::new(pod.clone());
                wanted.delete = true;
            });
        }
    }

    /// Admission. A pod that was accepted before (it has a start time) is not judged again.
    fn admit(&self, pod: &Pod) -> Option<crate::pod::memory::Rejection> {
        let started = pod
            .status
            .as_ref()
            .is_some_and(|status| status.start_time.is_some());
        if started || spec::is_deleting(pod) || spec::is_terminal(pod) {
            return None;
        }
        let all: Vec<Arc<Pod>> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.source.is_some())
            .map(|(uid, worker)| self.deps.table.get(uid).unwrap_or_else(|| worker.pod()))
            .filter(|pod| !spec::is_terminal(pod))
            .collect();
        let others: Vec<&Pod> = all.iter().map(Arc::as_ref).collect();
        admit::admit(pod, &others, &self.rules).err()
    }

    fn hire(&mut self, source: Option<Source>, pod: Pod, orphan: bool) {
        let uid = spec::uid(&pod).to_owned();
        let beginning = Beginning {
            rejected: if orphan { None } else { self.admit(&pod) },
            orphan,
        };
        let look = Arc::new(Notify::new());
        let (wanted, heard) = watch::channel(Wanted {
            pod: Arc::new(pod.clone()),
            delete: false,
        });
        let ears = Ears {
            wanted: heard,
            look: Arc::clone(&look),
        };
        if !orphan {
            self.deps.table.put(Arc::new(pod.clone()));
        }
        let actor = Actor::new(Arc::clone(&self.deps), pod, beginning, ears);
        let task = self.tasks.spawn(actor.run());
        self.ids.insert(task.id(), uid.clone());
        self.workers.insert(
            uid,
            Worker {
                wanted,
                look,
                source,
            },
        );
    }

    /// An actor has ended: with its pod, or by a defect of ours; then another one takes over.
    fn bury(&mut self, ended: Result<(Id, ()), JoinError>) {
        let (id, defect) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error)),
        };
        let Some(uid) = self.ids.remove(&id) else {
            return;
        };
        let Some(worker) = self.workers.remove(&uid) else {
            return;
        };
        if let Some(error) = defect {
            tracing::error!(uid, %error, "a pod's actor ended abnormally, starting another");
            let wanted = worker.wanted.borrow().clone();
            let table = self.deps.table.get(&uid);
            let pod = table.map_or_else(|| Pod::clone(&wanted.pod), |pod| Pod::clone(&pod));
            self.hire(worker.source, pod, worker.source.is_none());
            if let Some(again) = self.workers.get(&uid).filter(|_| wanted.delete) {
                again.delete();
            }
            return;
        }
        self.listing.remove(&uid);
        self.deps.table.remove(&uid);
        if let Some(next) = self.waiting.remove(&name_of(&worker.pod())) {
            self.upsert(Source::File, next);
        }
    }

    fn listed(&mut self, pods: Vec<RuntimePod>) {
        let pods: BTreeMap<String, RuntimePod> =
            pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        for (uid, worker) in &self.workers {
            let (before, now) = (self.listing.get(uid), pods.get(uid));
            let print = |pod: Option<&RuntimePod>| pod.map(|pod| pod.fingerprint.clone());
            if print(before) != print(now) {
                worker.look.notify_one();
            }
        }
        self.listing = pods;
        let first = !std::mem::replace(&mut self.listed, true);
        if self.synced == self.sources {
            self.find_orphans();
            if first {
                self.reconcile();
            }
        }
    }

    /// Runtime pods that no source knows get an actor whose only wish is their end.
    fn find_orphans(&mut self) {
        let unknown: Vec<RuntimePod> = self
            .listing
            .values()
            .filter(|pod| !self.workers.contains_key(&pod.uid))
            .cloned()
            .collect();
        for orphan in unknown {
            tracing::info!(
                namespace = orphan.namespace,
                name = orphan.name,
                uid = orphan.uid,
                "no source knows this pod, ending it"
            );
            let mut pod = Pod {
                spec: Some(k8s_openapi::api::core::v1::PodSpec {
                    termination_grace_period_seconds: orphan.grace_secs,
                    ..Default::default()
                }),
                ..Default::default()
            };
            pod.metadata.name = Some(orphan.name);
            pod.metadata.namespace = Some(orphan.namespace);
            pod.metadata.uid = Some(orphan.uid);
            self.hire(None, pod, true);
        }
    }

    /// Removes what pods have left on disk that nobody knows any more.
    fn reconcile(&mut self) {
        // Until the runtime has been listed, a directory without a pod may belong to an orphan.
        if self.synced != self.sources || !self.listed {
            return;
        }
        let known: BTreeSet<String> = self
            .workers
            .keys()
            .cloned()
            .chain(self.waiting.values().map(|pod| spec::uid(pod).to_owned()))
            .chain(self.listing.keys().cloned())
            .collect();
        let deps = Arc::clone(&self.deps);
        // Not awaited here: it may touch slow disks. It is joined with the actors' tasks.
        self.tasks.spawn(async move {
            match deps.volumes.reconcile(&known).await {
                Ok(removed) => removed.iter().for_each(|uid| deps.userns.release(uid)),
                Err(error) => tracing::warn!(%error, "cannot look for left-over volumes"),
            }
            remove_old_logs(&deps, &known).await;
        });
    }
}

/// Log directories end in `_<uid>`; those of unknown pods go.
async fn remove_old_logs(deps: &Deps, known: &BTreeSet<String>) {
    let Ok(mut entries) = tokio::fs::read_dir(&deps.settings.pod_logs_dir).await else {
        return;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            continue;
        };
        let parts: Vec<&str> = name.split('_').collect();
        let [_, _, uid] = parts.as_slice() else {
            continue;
        };
        if known.contains(*uid) {
            continue;
        }
        if let Err(error) = tokio::fs::remove_dir_all(entry.path()).await {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove old logs");
        }
    }
}
