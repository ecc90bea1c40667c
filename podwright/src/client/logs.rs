// SPDX-License-Identifier: Apache-2.0
//! `logs`: what a container has written.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt as _};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;
use kube::api::{ListParams, LogParams};

use super::connection::{ConnectionArgs, Server};
use super::failure::{Outcome, answer, warn};

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// POD, pod/NAME, deployment/NAME or replicaset/NAME
    #[arg(required_unless_present = "selector")]
    pod: Option<String>,
    /// Container, if the pod has several
    container_name: Option<String>,
    /// Container, if the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// All containers of the pod, one after the other
    #[arg(long, conflicts_with_all = ["container", "container_name"])]
    all_containers: bool,
    /// All pods with these labels
    #[arg(short = 'l', long, conflicts_with = "pod")]
    selector: Option<String>,
    /// Go on printing what is written
    #[arg(short, long)]
    follow: bool,
    /// The container before the last restart
    #[arg(short, long)]
    previous: bool,
    /// Only the last so many lines; -1 prints all
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    tail: i64,
    /// Only what is newer than this, such as 5s, 2m or 3h
    #[arg(long, value_parser = duration)]
    since: Option<Duration>,
    /// Only what is newer than this time, such as 2026-01-02T15:04:05Z
    #[arg(long, conflicts_with = "since")]
    since_time: Option<jiff::Timestamp>,
    /// At most so many bytes
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<i64>,
    /// Put the time before each line
    #[arg(long)]
    timestamps: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Parses Go's durations (`1h30m`, `90s`, `1.5s`, `100ms`) and plain seconds.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn duration(text: &str) -> anyhow::Result<Duration> {
    let invalid = || anyhow::anyhow!("{text:?} is not a duration such as 5s, 2m or 3h");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let factor = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(invalid()),
        };
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let part = Duration::try_from_secs_f64(number * factor).map_err(|_| invalid())?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = tail;
    }
    if text.is_empty() {
        Err(invalid())
    } else {
        Ok(total)
    }
}

pub(crate) async fn run(args: LogsArgs, data_dir: &Path) -> Outcome {
    let server = args.connection.connect(data_dir).await?;
    let pods = pods(&args, &server).await?;
    let api: Api<Pod> = Api::namespaced(server.client.clone(), &server.namespace);
    for pod in &pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        for container in containers(&args, pod)? {
            let stream = api.log_stream(name, &args.params(container)).await?;
            copy(std::pin::pin!(stream)).await?;
        }
    }
    Ok(())
}

impl LogsArgs {
    fn params(&self, container: String) -> LogParams {
        // Up to a second is asked for as one: the API counts in whole seconds.
        let since = self.since.map(|since| since.as_secs_f64().ceil() as i64);
        LogParams {
            container: Some(container),
            follow: self.follow,
            previous: self.previous,
            tail_lines: (self.tail >= 0).then_some(self.tail),
            since_seconds: since,
            since_time: self.since_time,
            limit_bytes: self.limit_bytes,
            timestamps: self.timestamps,
            ..LogParams::default()
        }
    }
}

async fn pods(args: &LogsArgs, server: &Server) -> anyhow::Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(server.client.clone(), &server.namespace);
    if let Some(selector) = &args.selector {
        let list = answer(api.list(&ListParams::default().labels(selector))).await?;
        anyhow::ensure!(
            !args.follow || list.items.len() <= 1,
            "following several pods at once is not supported, name one"
        );
        if list.items.is_empty() {
            warn(format!(
                "No resources found in {} namespace.",
                server.namespace
            ));
        }
        return Ok(list.items);
    }
    let word = args.pod.as_deref().unwrap_or_default();
    Ok(vec![one_pod(server, word).await?])
}

/// The pod that `NAME` or `TYPE/NAME` stands for.
///
/// # Errors
/// When there is none, or the type has no pods.
pub(crate) async fn one_pod(server: &Server, word: &str) -> anyhow::Result<Pod> {
    let api: Api<Pod> = Api::namespaced(server.client.clone(), &server.namespace);
    let Some((kind, name)) = word.split_once('/') else {
        return answer(api.get(word)).await;
    };
    let (client, namespace) = (server.client.clone(), &server.namespace);
    let selector = match kind {
        "pod" | "pods" | "po" => return answer(api.get(name)).await,
        "deployment" | "deployments" | "deploy" | "deployment.apps" | "deployments.apps" => {
            let api: Api<Deployment> = Api::namespaced(client, namespace);
            answer(api.get(name)).await?.spec.selector
        }
        "replicaset" | "replicasets" | "rs" | "replicaset.apps" | "replicasets.apps" => {
            let api: Api<ReplicaSet> = Api::namespaced(client, namespace);
            answer(api.get(name)).await?.spec.selector
        }
        other => anyhow::bail!("no pods can be found from a resource of type {other:?}"),
    };
    let list = answer(api.list(&ListParams::default().labels(&labels(&selector)))).await?;
    let mut pods = list.items;
    // Running pods first, then by name, so that the choice is the same each time.
    let rank = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Running");
    pods.sort_by_key(|pod| (rank(pod), pod.metadata.name.clone()));
    let count = pods.len();
    let Some(pod) = pods.into_iter().next() else {
        anyhow::bail!("{word} has no pods");
    };
    if count > 1 {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        warn(format!("Found {count} pods, using pod/{name}"));
    }
    Ok(pod)
}

fn labels(selector: &LabelSelector) -> String {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(k, v)| format!("{k}={v}"));
    let others = selector.match_expressions.iter().flatten().map(|e| {
        let values = e.values.as_deref().unwrap_or_default().join(",");
        match e.operator.as_str() {
            "In" => format!("{} in ({values})", e.key),
            "NotIn" => format!("{} notin ({values})", e.key),
            "DoesNotExist" => format!("!{}", e.key),
            _ => e.key.clone(),
        }
    });
    equal.chain(others).collect::<Vec<_>>().join(",")
}

fn containers(args: &LogsArgs, pod: &Pod) -> anyhow::Result<Vec<String>> {
    if args.all_containers {
        return Ok(names(pod));
    }
    let wanted = args.container.as_deref().or(args.container_name.as_deref());
    Ok(vec![container(pod, wanted)?])
}

fn names(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.as_ref();
    let init = spec
        .and_then(|s| s.init_containers.as_ref())
        .into_iter()
        .flatten();
    let main = spec.into_iter().flat_map(|s| &s.containers);
    init.chain(main).map(|c| c.name.clone()).collect()
}

/// The container that is meant: the wanted one, the one of the annotation, or the first.
///
/// # Errors
/// When the pod has no container of that name.
pub(crate) fn container(pod: &Pod, wanted: Option<&str>) -> anyhow::Result<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let all = names(pod);
    if let Some(wanted) = wanted {
        anyhow::ensure!(
            all.iter().any(|c| c == wanted),
            "container {wanted} is not valid for pod {name}, it has: {}",
            all.join(", ")
        );
        return Ok(wanted.to_owned());
    }
    let annotations = pod.metadata.annotations.as_ref();
    let marked = annotations
        .and_then(|a| a.get(DEFAULT_CONTAINER))
        .filter(|c| all.contains(c));
    if let Some(marked) = marked {
        return Ok(marked.clone());
    }
    let main = pod
        .spec
        .as_ref()
        .map(|s| s.containers.as_slice())
        .unwrap_or_default();
    let Some(first) = main.first() else {
        anyhow::bail!("pod {name} has no containers");
    };
    if all.len() > 1 {
        warn(format!(
            "Defaulted container {:?} out of: {}",
            first.name,
            all.join(", ")
        ));
    }
    Ok(first.name.clone())
}

async fn copy(mut stream: impl AsyncBufRead + Unpin) -> Outcome {
    loop {
        let chunk = stream.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(chunk)?;
        stdout.flush()?;
        let used = chunk.len();
        stream.consume_unpin(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let check = |text: &str| duration(text).ok().map(|d| d.as_millis());
        assert_eq!(check("5s"), Some(5000));
        assert_eq!(check("1h30m"), Some(5_400_000));
        assert_eq!(check("1.5s"), Some(1500));
        assert_eq!(check("100ms"), Some(100));
        assert_eq!(check("10"), Some(10_000));
        assert_eq!(check("soon"), None);
        assert_eq!(check("5"), Some(5000));
        assert_eq!(check("5y"), None);
        assert_eq!(check(""), None);
    }
}
