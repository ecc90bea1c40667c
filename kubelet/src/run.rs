// SPDX-License-Identifier: Apache-2.0
//! The wiring: configuration to adapters, adapters to the manager, one supervisor for all tasks.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::adapters::cri_client::{CriClient, EndpointError};
use crate::adapters::event_recorder::{self, Recorder};
use crate::adapters::mirror::{self, Mirrors};
use crate::adapters::status_writer::{NoApi, StatusWriter};
use crate::adapters::{apiserver, manifests, relist};
use crate::config::Config;
use crate::cri_v1::RuntimeHandlerFeatures;
use crate::env::{ApiObjects, NoObjects, Objects};
use crate::manager::{self, Manager, Source};
use crate::node::{self, NodeError, NodeFacts, NodeOptions};
use crate::pod::admit::Rules;
use crate::pod::deps::{Deps, PodTable, Settings};
use crate::ports::{Allocatable, Clock, Events, Runtime, RuntimeError, StatusSink, SystemClock};
use crate::server::{self, PodLookup, ServerError, ServerOptions};
use crate::userns::{UserNamespaces, UsernsError};
use crate::volumes::{VolumeDirs, Volumes};

/// The runtime may be starting beside us.
const RUNTIME_WAIT: Duration = Duration::from_secs(60);
const RUNTIME_RETRY: Duration = Duration::from_millis(200);
/// Tasks get this long to end after `stop`.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// Upstream's `nodeStatusReportFrequency`.
const STATUS_REPORT: Duration = Duration::from_secs(300);

/// Why the kubelet could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime's endpoint is not usable.
    #[error("container runtime")]
    Endpoint(#[source] EndpointError),
    /// The runtime does not answer.
    #[error("container runtime at {endpoint} does not answer")]
    Runtime {
        /// The socket.
        endpoint: String,
        /// What happened last.
        #[source]
        source: RuntimeError,
    },
    /// The kubeconfig is not usable.
    #[error("kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The machine could not be measured, or the node part ended.
    #[error("node")]
    Node(#[source] NodeError),
    /// There are no ids for pods with user namespaces.
    #[error("user namespaces")]
    UserNamespaces(#[source] UsernsError),
    /// The node API could not be served.
    #[error("node api")]
    Server(#[source] ServerError),
    /// A part ended that should run for as long as the kubelet does.
    #[error("the {0} part of the kubelet ended")]
    Ended(&'static str),
}

/// A running kubelet.
#[derive(Debug)]
pub struct Handle {
    table: Arc<PodTable>,
    stop: CancellationToken,
    tasks: Tasks,
    /// The port that the node API listens on; 0 without one.
    pub port: u16,
}

impl Handle {
    /// Every pod with its newest status.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.table.all()
    }

    /// Changes whenever a pod comes, goes, or changes its status.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.table.watch()
    }

    /// The table behind [`Handle::pods`], to be kept beyond the handle.
    pub fn table(&self) -> Arc<PodTable> {
        Arc::clone(&self.table)
    }

    /// Waits until the kubelet has ended, by its token or by a failure. Dropping the future is safe.
    ///
    /// # Errors
    /// A part that failed.
    pub async fn wait(mut self) -> Result<(), Error> {
        self.tasks.wait(&self.stop).await
    }
}

/// Runs a kubelet until `stop`; `ready` is sent when it serves. Containers keep running after it.
///
/// # Errors
/// See [`Error`].
pub async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let handle = start(config, stop).await?;
    // Nobody waiting for readiness is fine.
    let _ = ready.send(());
    handle.wait().await
}

/// The parts of a running kubelet, by name.
#[derive(Debug, Default)]
struct Tasks {
    set: JoinSet<(&'static str, Result<(), Error>)>,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            work.await;
            (name, Ok(()))
        });
    }

    fn spawn_fallible(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, work.await) });
    }

    /// The first part that ends before `stop` ends the whole; then all are joined, with a deadline.
    async fn wait(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let early = tokio::select! {
            () = stop.cancelled() => None,
            ended = self.set.join_next() => ended,
        };
        let result = match early {
            _ if stop.is_cancelled() => Ok(()),
            None => Err(Error::Ended("whole")),
            Some(Ok((name, Ok(())))) => Err(Error::Ended(name)),
            Some(Ok((_, Err(error)))) => Err(error),
            Some(Err(defect)) => {
                tracing::error!(error = %defect, "a part of the kubelet panicked");
                Err(Error::Ended("panicking"))
            }
        };
        stop.cancel();
        tracing::info!("kubelet: stopping its parts");
        let joined = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN, joined).await.is_err() {
            tracing::warn!("kubelet: some parts did not end in time and are given up");
            self.set.shutdown().await;
        }
        tracing::info!("kubelet: stopped, containers keep running");
        result
    }
}

async fn client(path: &PathBuf) -> Result<kube::Client, Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Kubeconfig {
        path: path.clone(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| failed(error.into()))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| failed(error.into()))?;
    kube::Client::try_from(config).map_err(|error| failed(error.into()))
}

async fn connect(config: &Config) -> Result<CriClient, Error> {
    let endpoint = &config.container_runtime_endpoint;
    let cri = CriClient::new(endpoint, config.periods.runtime_request_timeout)
        .map_err(Error::Endpoint)?;
    let deadline = tokio::time::Instant::now() + RUNTIME_WAIT;
    loop {
        match cri.version().await {
            Ok(version) => {
                tracing::info!(
                    name = version.runtime_name,
                    version = version.runtime_version,
                    "container runtime"
                );
                return Ok(cri);
            }
            Err(source) if tokio::time::Instant::now() >= deadline => {
                return Err(Error::Runtime {
                    endpoint: endpoint.clone(),
                    source,
                });
            }
            Err(_) => tokio::time::sleep(RUNTIME_RETRY).await,
        }
    }
}

fn node_options(config: &Config, port: u16) -> NodeOptions {
    NodeOptions {
        name: config.node_name.clone(),
        ips: config.node_ips.clone(),
        labels: config.node_labels.clone(),
        taints: config.register_with_taints.clone(),
        max_pods: config.max_pods,
        port,
        data_dir: config.data_dir.clone(),
        status_update_frequency: config.periods.node_status_update_frequency,
        status_report_frequency: STATUS_REPORT,
        lease_duration: config.periods.node_lease_duration,
        eviction_hard: config.eviction_hard,
    }
}

fn settings(config: &Config, default_handler: RuntimeHandlerFeatures) -> Settings {
    Settings {
        node_name: config.node_name.clone(),
        node_ips: config.node_ips.clone(),
        pod_logs_dir: config.pod_logs_dir.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        resolv_conf: config.resolv_conf.clone(),
        default_handler,
        sync_frequency: config.periods.sync_frequency,
    }
}

fn rules(config: &Config, facts: &NodeFacts) -> Rules {
    Rules {
        allocatable: Allocatable {
            cpu_millis: facts.allocatable_cpu_millis,
            memory_bytes: facts.allocatable_memory_bytes,
            ephemeral_storage_bytes: facts.allocatable_storage_bytes,
            pods: config.max_pods,
        },
        allowed_unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
        runtime_classes: config.kubeconfig.is_some(),
    }
}

/// What the default runtime handler can do. A runtime that does not say can do nothing of it.
async fn default_handler(cri: &CriClient) -> RuntimeHandlerFeatures {
    let handlers = cri.handlers().await.unwrap_or_default();
    let default = handlers.into_iter().find(|handler| handler.name.is_empty());
    default
        .and_then(|handler| handler.features)
        .unwrap_or_default()
}

fn user_namespaces(config: &Config) -> Result<Arc<UserNamespaces>, Error> {
    let settings = &config.user_namespaces;
    UserNamespaces::open(&config.root_dir(), settings, config.max_pods)
        .map(Arc::new)
        .map_err(Error::UserNamespaces)
}

/// Starts a kubelet and answers when it serves.
///
/// # Errors
/// See [`Error`]. Nothing is left running then.
pub async fn start(config: Config, stop: CancellationToken) -> Result<Handle, Error> {
    // Several parts speak TLS; whoever comes first sets the provider for all.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let stop = stop.child_token();
    let cri = connect(&config).await?;
    let client = match &config.kubeconfig {
        Some(path) => Some(client(path).await?),
        None => None,
    };
    let facts = Arc::new(node::facts(&node_options(&config, config.port)).map_err(Error::Node)?);
    let handler = default_handler(&cri).await;
    let userns = user_namespaces(&config)?;
    let mut tasks = Tasks::default();
    let (recorder, writer) = event_recorder::recorder(client.clone(), config.node_name.clone());
    tasks.spawn("events", writer.run(stop.clone()));
    let mirrors = Arc::new(Mirrors::default());
    let deps = deps(
        &config,
        &cri,
        client.clone(),
        &recorder,
        &mirrors,
        &facts,
        userns,
        handler,
        &mut tasks,
        &stop,
    );
    let table = Arc::clone(&deps.table);
    let port = match serve(&config, &cri, &table, &mut tasks, &stop).await {
        Ok(port) => port,
        Err(error) => {
            stop.cancel();
            return Err(error);
        }
    };
    sources(
        &config,
        &cri,
        client.clone(),
        deps,
        rules(&config, &facts),
        mirrors,
        &mut tasks,
        &stop,
    );
    if let Some(client) = client.filter(|_| config.register_node) {
        let (options, stop) = (node_options(&config, port), stop.clone());
        let events: Arc<dyn Events> = Arc::new(recorder);
        let (runtime, images) = (cri.runtime(), cri.images());
        tasks.spawn_fallible("node", async move {
            node::run(options, client, runtime, images, events, stop)
                .await
                .map_err(Error::Node)
        });
    }
    Ok(Handle {
        table,
        stop,
        tasks,
        port,
    })
}

#[expect(
    clippy::too_many_arguments,
    reason = "wiring: every part is named once, here"
)]
fn deps(
    config: &Config,
    cri: &CriClient,
    client: Option<kube::Client>,
    recorder: &Recorder,
    mirrors: &Arc<Mirrors>,
    facts: &Arc<NodeFacts>,
    userns: Arc<UserNamespaces>,
    handler: RuntimeHandlerFeatures,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> Arc<Deps> {
    let (objects, sink): (Arc<dyn Objects>, Arc<dyn StatusSink>) = match client {
        None => (Arc::new(NoObjects), Arc::new(NoApi)),
        Some(client) => {
            let writer = StatusWriter::new(client.clone(), Arc::clone(mirrors));
            tasks.spawn("status", Arc::clone(&writer).run(stop.clone()));
            (Arc::new(ApiObjects::new(client)), writer)
        }
    };
    let dirs = VolumeDirs {
        kubelet_dir: config.root_dir(),
        node_hosts_file: PathBuf::from("/etc/hosts"),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    Arc::new(Deps {
        runtime: Arc::new(cri.clone()),
        sink,
        events: Arc::new(recorder.clone()),
        clock,
        volumes: Volumes::new(dirs, Arc::clone(&objects), Arc::clone(facts)),
        userns,
        objects,
        facts: Arc::clone(facts),
        table: Arc::default(),
        settings: settings(config, handler),
    })
}

/// The node API, where the configuration asks for it. Answers its port.
async fn serve(
    config: &Config,
    cri: &CriClient,
    table: &Arc<PodTable>,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> Result<u16, Error> {
    if config.tls_cert_file.is_none() && config.client_ca_file.is_none() && config.healthz_port == 0
    {
        return Ok(0);
    }
    let options = ServerOptions {
        node_name: config.node_name.clone(),
        address: config.address,
        port: config.port,
        healthz_port: config.healthz_port,
        client_ca_file: config.client_ca_file.clone(),
        tls_cert_file: config.tls_cert_file.clone(),
        tls_private_key_file: config.tls_private_key_file.clone(),
        data_dir: config.data_dir.clone(),
    };
    let (bound, port) = oneshot::channel();
    let pods: Arc<dyn PodLookup> = Arc::clone(table) as Arc<dyn PodLookup>;
    let work = server::run(
        options,
        pods,
        cri.runtime(),
        cri.images(),
        bound,
        stop.clone(),
    );
    tasks.spawn_fallible("node api", async move { work.await.map_err(Error::Server) });
    match port.await {
        Ok(port) => Ok(port),
        // It ended before it served: its own error says why.
        Err(_) => match tasks.set.join_next().await {
            Some(Ok((_, Err(error)))) => Err(error),
            _ => Err(Error::Ended("node api")),
        },
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "wiring: every part is named once, here"
)]
fn sources(
    config: &Config,
    cri: &CriClient,
    client: Option<kube::Client>,
    deps: Arc<Deps>,
    rules: Rules,
    mirrors: Arc<Mirrors>,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) {
    let (inbox, inputs) = manager::channel();
    let mut sources = BTreeSet::new();
    if let Some(path) = config.pod_manifest_path.clone() {
        sources.insert(Source::File);
        let poll = config.periods.file_check_frequency;
        let work = manifests::run(
            path,
            config.node_name.clone(),
            poll,
            inbox.clone(),
            stop.clone(),
        );
        tasks.spawn("manifests", work);
    }
    if let Some(client) = client {
        sources.insert(Source::Api);
        let work = apiserver::run(
            client.clone(),
            config.node_name.clone(),
            inbox.clone(),
            stop.clone(),
        );
        tasks.spawn("pod watch", work);
        let work = mirror::run(
            client,
            config.node_name.clone(),
            Arc::clone(&mirrors),
            stop.clone(),
        );
        tasks.spawn("mirror pods", work);
    }
    let runtime: Arc<dyn Runtime> = Arc::new(cri.clone());
    tasks.spawn(
        "relist",
        relist::run(runtime, config.periods.clone(), inbox, stop.clone()),
    );
    let manager = Manager::new(deps, rules, sources, mirrors);
    tasks.spawn("pods", manager.run(inputs, stop.clone()));
}
