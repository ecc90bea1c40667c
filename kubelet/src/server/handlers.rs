// SPDX-License-Identifier: Apache-2.0
//! One function per thing that the node API does.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::logs::{self, Alive, LogOptions, OptionsError};
use super::reply::{self, Body, Problem, Reply};
use super::route::{self, NoRoute, Route, Target};
use super::runtime::Runtime;
use super::stats::{self, NodeSample};
use super::{PodLookup, auth, splice};
use crate::cri_v1 as cri;
use crate::node::Room;

/// Pieces of a log on their way to a slow reader.
const LOG_PIECES: usize = 4;

/// What every request shares.
pub(super) struct Service {
    pub(super) node_name: String,
    pub(super) data_dir: PathBuf,
    pub(super) pods: Arc<dyn PodLookup>,
    pub(super) runtime: Runtime,
    /// Streams and logs that outlive their request.
    pub(super) tracker: TaskTracker,
    pub(super) stop: CancellationToken,
    /// The last sample of the node's CPU time, for its rate.
    pub(super) cpu: Mutex<Option<(Instant, u64)>>,
}

impl Service {
    /// Answers one request of `identity`.
    pub(super) async fn handle(
        self: Arc<Self>,
        identity: Option<Arc<auth::Identity>>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match auth::authorize(identity.as_deref(), &method, &path) {
            Ok(()) => {}
            Err(auth::Refusal::Unauthorized) => {
                return reply::text(StatusCode::UNAUTHORIZED, "Unauthorized");
            }
            Err(auth::Refusal::Forbidden(text)) => return reply::text(StatusCode::FORBIDDEN, text),
        }
        let route = match route::route(&method, &path) {
            Ok(route) => route,
            Err(NoRoute::NotFound) => {
                return reply::text(StatusCode::NOT_FOUND, "404: Page Not Found");
            }
            Err(NoRoute::MethodNotAllowed) => {
                return reply::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
            }
        };
        let reply = self.dispatch(route, request).await;
        reply.unwrap_or_else(Problem::response)
    }

    async fn dispatch(&self, route: Route, request: Request<Incoming>) -> Reply {
        let query = route::query(request.uri().query());
        match route {
            Route::Healthz => Ok(reply::text(StatusCode::OK, "ok")),
            Route::Pods => self.pod_list(),
            Route::RunningPods => self.running_pods().await,
            Route::Logs(target) => self.logs(&target, &query).await,
            Route::Run(target) => self.run(&target, &query).await,
            Route::Exec(target) => self.exec(&target, &query, request).await,
            Route::Attach(target) => self.attach(&target, &query, request).await,
            Route::PortForward(target) => self.port_forward(&target, &query, request).await,
            Route::StatsSummary => self.summary(&query).await,
            Route::Metrics => self.metrics().await,
            Route::MetricsResource => self.resource_metrics().await,
        }
    }

    fn pod_list(&self) -> Reply {
        pod_list(&self.pods.pods())
    }

    /// What runs, as the runtime sees it.
    async fn running_pods(&self) -> Reply {
        let sandboxes = self.runtime.sandboxes(None).await;
        let sandboxes = sandboxes.map_err(|status| Problem::runtime(&status))?;
        let containers = self.runtime.containers(None).await;
        let containers = containers.map_err(|status| Problem::runtime(&status))?;
        let pods = sandboxes.iter().map(|sandbox| {
            let of = |c: &&cri::Container| {
                c.pod_sandbox_id == sandbox.id && c.state() == cri::ContainerState::ContainerRunning
            };
            let containers: Vec<_> = containers
                .iter()
                .filter(of)
                .map(runtime_container)
                .collect();
            let metadata = sandbox.metadata.clone().unwrap_or_default();
            json!({"metadata": {"name": metadata.name, "namespace": metadata.namespace,
                "uid": metadata.uid}, "spec": {"containers": containers}, "status": {}})
        });
        let pods: Vec<_> = pods.collect();
        reply::json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}))
    }

    async fn logs(&self, target: &Target, query: &[(String, String)]) -> Reply {
        let options = LogOptions::parse(query, Timestamp::now()).map_err(|error| {
            let status = match error {
                OptionsError::Undecodable => StatusCode::BAD_REQUEST,
                OptionsError::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            };
            Problem::new(status, error.to_string())
        })?;
        let (name, container) = (&target.pod, &target.container);
        let pod = self.pods.pod(&target.namespace, name);
        let pod = pod.ok_or_else(|| Problem::not_found(format!("pod {name:?} does not exist")))?;
        if !logs::has_container(&pod, container) {
            let text = format!("container {container:?} not found in pod {name:?}");
            return Err(Problem::not_found(text));
        }
        let id =
            logs::container_id(&pod, container, options.previous).map_err(Problem::bad_request)?;
        let status = self.runtime.status(&id).await;
        let status = status.map_err(|status| Problem::runtime(&status))?;
        let path = status.map(|status| status.log_path).unwrap_or_default();
        if path.is_empty() {
            let text = format!(
                "unable to retrieve container logs for {container:?}: the runtime has no log of it"
            );
            return Err(Problem::bad_request(text));
        }
        self.send_log(PathBuf::from(path), options, id).await
    }

    /// Looks whether the file is there, so that a lost log is an error and not an empty log.
    async fn send_log(&self, path: PathBuf, options: LogOptions, id: String) -> Reply {
        let (sender, receiver) = mpsc::channel(LOG_PIECES);
        let alive = self.alive(id);
        let stop = self.stop.clone();
        let opened = path.clone();
        if let Err(error) = tokio::fs::metadata(&path).await {
            let text = format!("failed to open log file {:?}: {error}", path.display());
            return Err(Problem::bad_request(text));
        }
        self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                ended = logs::read(path, options, alive, sender) => {
                    if let Err(error) = ended {
                        tracing::warn!(path = %opened.display(), %error, "a log was cut short");
                    }
                }
            }
        });
        Ok(reply::stream(receiver))
    }

    /// Whether a container may still write: anything but "no" counts as yes.
    fn alive(&self, id: String) -> Alive {
        let runtime = self.runtime.clone();
        Box::new(move || {
            let (runtime, id) = (runtime.clone(), id.clone());
            Box::pin(async move {
                match runtime.status(&id).await {
                    Ok(Some(status)) => status.state() == cri::ContainerState::ContainerRunning,
                    Ok(None) => false,
                    // The runtime is restarting, say; the container goes on without it.
                    Err(_) => true,
                }
            })
        })
    }

    async fn run(&self, target: &Target, query: &[(String, String)]) -> Reply {
        let id = self.find_running(target).await?;
        let mut command = values(query, "cmd");
        if let [line] = command.as_slice() {
            command = line.split(' ').map(str::to_owned).collect();
        }
        let ran = self.runtime.run(id, command).await;
        let (output, code) = ran.map_err(|status| Problem::runtime(&status))?;
        if code == 0 {
            return Ok(reply::text(StatusCode::OK, output));
        }
        let text = format!("command terminated with exit code {code}\n");
        let body = [output, text.into_bytes()].concat();
        Ok(reply::text(StatusCode::INTERNAL_SERVER_ERROR, body))
    }

    async fn exec(
        &self,
        target: &Target,
        query: &[(String, String)],
        request: Request<Incoming>,
    ) -> Reply {
        let streams = Streams::parse(query)?;
        let id = self.find_running(target).await?;
        let url = self.runtime.exec_url(cri::ExecRequest {
            container_id: id,
            cmd: values(query, "command"),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        });
        let url = url.await.map_err(|status| Problem::runtime(&status))?;
        splice::proxy(request, &url, &self.tracker, &self.stop).await
    }

    async fn attach(
        &self,
        target: &Target,
        query: &[(String, String)],
        request: Request<Incoming>,
    ) -> Reply {
        let mut streams = Streams::parse(query)?;
        let id = self.find_running(target).await?;
        // Whether there is a terminal was decided when the container was made.
        let pod = self.pods.pod(&target.namespace, &target.pod);
        streams.tty = pod.is_some_and(|pod| has_tty(&pod, &target.container));
        let url = self.runtime.attach_url(cri::AttachRequest {
            container_id: id,
            stdin: streams.stdin,
            tty: streams.tty,
            stdout: streams.stdout,
            stderr: streams.stderr && !streams.tty,
        });
        let url = url.await.map_err(|status| Problem::runtime(&status))?;
        splice::proxy(request, &url, &self.tracker, &self.stop).await
    }

    async fn port_forward(
        &self,
        target: &Target,
        query: &[(String, String)],
        request: Request<Incoming>,
    ) -> Reply {
        let port = ports(query)?;
        let uid = self.uid_of(target)?;
        let sandboxes = self.runtime.sandboxes(Some(&uid)).await;
        let sandboxes = sandboxes.map_err(|status| Problem::runtime(&status))?;
        let Some(sandbox) = sandboxes.into_iter().next() else {
            let text = format!("failed to find sandbox for pod {:?}", target.pod);
            return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, text));
        };
        let url = self.runtime.port_forward_url(cri::PortForwardRequest {
            pod_sandbox_id: sandbox.id,
            port,
        });
        let url = url.await.map_err(|status| Problem::runtime(&status))?;
        splice::proxy(request, &url, &self.tracker, &self.stop).await
    }

    fn uid_of(&self, target: &Target) -> Result<String, Problem> {
        let gone = || Problem::not_found("pod does not exist");
        let pod = self
            .pods
            .pod(&target.namespace, &target.pod)
            .ok_or_else(gone)?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        match &target.uid {
            Some(wanted) if *wanted != uid => Err(gone()),
            _ => Ok(uid),
        }
    }

    async fn find_running(&self, target: &Target) -> Result<String, Problem> {
        let uid = self.uid_of(target)?;
        let found = self.runtime.running(&uid, &target.container).await;
        found
            .map_err(|status| Problem::runtime(&status))?
            .ok_or_else(|| {
                let text = format!("container not found ({:?})", target.container);
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, text)
            })
    }

    async fn summary(&self, query: &[(String, String)]) -> Reply {
        let short = query
            .iter()
            .any(|(name, value)| name == "only_cpu_and_memory" && value == "true");
        let pods = self.runtime.stats().await;
        let pods = pods.map_err(|status| Problem::runtime(&status))?;
        let sample = self.sample().await?;
        reply::json(&stats::summary(&self.node_name, &sample, &pods, short))
    }

    async fn metrics(&self) -> Reply {
        let sandboxes = self.runtime.sandboxes(None).await;
        let sandboxes = sandboxes.map_err(|status| Problem::runtime(&status))?;
        let states = self.runtime.states().await;
        let states = states.map_err(|status| Problem::runtime(&status))?;
        let text = stats::kubelet_metrics(&self.node_name, sandboxes.len(), &states);
        Ok(reply::metrics(text))
    }

    async fn resource_metrics(&self) -> Reply {
        let pods = self.runtime.stats().await;
        let pods = pods.map_err(|status| Problem::runtime(&status))?;
        let sample = self.sample().await?;
        Ok(reply::metrics(stats::resource_metrics(&sample, &pods)))
    }

    async fn sample(&self) -> Result<NodeSample, Problem> {
        let broken = |error: &dyn std::fmt::Display| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("measuring the node: {error}"),
            )
        };
        let images = self.runtime.image_dir().await.map(PathBuf::from);
        let root = Path::new("/");
        let room = Room::measure(root, &self.data_dir, images.as_deref());
        let room = room.map_err(|error| broken(&error))?;
        let cpu_nanos = stats::node_cpu(root).map_err(|error| broken(&error))?;
        let boot = stats::boot_time(root).map_err(|error| broken(&error))?;
        let now = Instant::now();
        let mut last = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        let nano_cores = last
            .replace((now, cpu_nanos))
            .and_then(|(at, before)| stats::nano_cores(before, cpu_nanos, now - at));
        Ok(NodeSample {
            room,
            cpu_nanos,
            nano_cores,
            boot,
            now: Timestamp::now(),
        })
    }
}

fn pod_list(pods: &[Arc<Pod>]) -> Reply {
    let pods: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
    reply::json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}))
}

fn runtime_container(container: &cri::Container) -> serde_json::Value {
    let metadata = container.metadata.clone().unwrap_or_default();
    let image = container.image.clone().unwrap_or_default();
    json!({"name": metadata.name, "image": image.image, "resources": {}})
}

fn has_tty(pod: &Pod, container: &str) -> bool {
    let containers = pod.spec.as_ref().map(|spec| {
        let inits = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(inits)
    });
    let mut containers = containers.into_iter().flatten();
    containers.any(|c| c.name == container && c.tty == Some(true))
}

fn values(query: &[(String, String)], name: &str) -> Vec<String> {
    let matching = query.iter().filter(|(key, _)| key == name);
    matching.map(|(_, value)| value.clone()).collect()
}

/// Which streams an exec or attach has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Streams {
    /// The kubelet's own names (`input=1`), and those of the API (`stdin=true`).
    fn parse(query: &[(String, String)]) -> Result<Self, Problem> {
        let mut streams = Self::default();
        for (name, value) in query {
            let on = matches!(value.as_str(), "1" | "true");
            match name.as_str() {
                "input" | "stdin" => streams.stdin |= on,
                "output" | "stdout" => streams.stdout |= on,
                "error" | "stderr" => streams.stderr |= on,
                "tty" => streams.tty |= on,
                _ => {}
            }
        }
        // A terminal has one output.
        streams.stderr &= !streams.tty;
        if streams.stdin || streams.stdout || streams.stderr {
            return Ok(streams);
        }
        Err(Problem::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ))
    }
}

/// `port=80&port=81` or `port=80,81`; with SPDY they come later, in the streams.
fn ports(query: &[(String, String)]) -> Result<Vec<i32>, Problem> {
    let all = values(query, "port").join(",");
    let words = all.split(',').filter(|word| !word.is_empty());
    words
        .map(|word| match word.parse::<u16>() {
            Ok(port) if port > 0 => Ok(i32::from(port)),
            _ => Err(Problem::bad_request(format!("invalid port {word:?}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &str) -> Vec<(String, String)> {
        route::query(Some(query))
    }

    #[test]
    fn streams_are_read_in_both_spellings() {
        let streams = Streams::parse(&pairs("input=1&output=1&error=1")).expect("valid");
        assert!(streams.stdin && streams.stdout && streams.stderr && !streams.tty);
        let streams = Streams::parse(&pairs("stdout=true&stderr=true&tty=true")).expect("valid");
        assert!(streams.stdout && streams.tty && !streams.stderr);
        let nothing = Streams::parse(&pairs("stdin=false&command=sh"));
        assert_eq!(
            nothing.map_err(|problem| problem.text),
            Err("you must specify at least 1 of stdin, stdout, stderr".to_owned())
        );
    }

    #[test]
    fn ports_are_checked() {
        assert_eq!(ports(&pairs("port=80&port=81,82")), Ok(vec![80, 81, 82]));
        assert_eq!(ports(&pairs("")), Ok(vec![]));
        for bad in ["port=0", "port=65536", "port=x"] {
            assert!(ports(&pairs(bad)).is_err(), "{bad}");
        }
    }
}
