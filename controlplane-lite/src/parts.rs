// SPDX-License-Identifier: Apache-2.0
//! The scheduler and the controllers: clients of the API that are started again when they fail.

use std::{future::Future, path::PathBuf, time::Duration};

use kube::config::{KubeConfigOptions, Kubeconfig};
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{CONTROLLERS, Config, SCHEDULER, controllers, pki::ComponentFiles, scheduler};

/// First and longest pause before a part is started again.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A part that ran this long starts with the first pause again.
const STABLE: Duration = Duration::from_secs(60);
/// Time for a part to end after it was asked to.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the parts until `stop` is cancelled and they have ended.
pub(crate) async fn run(config: &Config, files: &ComponentFiles, stop: &CancellationToken) {
    let mut for_controllers = controllers::Config::new(config.cluster_cidr.clone());
    for_controllers.disable.clone_from(&config.disable);
    for_controllers.node_prefixes = config.node_prefixes;
    let scheduler = async {
        let run = |client, stop| scheduler::run(client, scheduler::Config::default(), stop);
        supervise(SCHEDULER, config, &files.scheduler, stop, run).await;
    };
    let controllers = async {
        let run = |client, stop| controllers::run(client, for_controllers.clone(), stop);
        supervise(CONTROLLERS, config, &files.controller_manager, stop, run).await;
    };
    tokio::join!(scheduler, controllers);
}

async fn supervise<F, E>(
    name: &'static str,
    config: &Config,
    kubeconfig: &PathBuf,
    stop: &CancellationToken,
    part: impl Fn(kube::Client, CancellationToken) -> F,
) where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
{
    if config.disable.contains(name) {
        tracing::info!(part = name, "disabled");
        return;
    }
    let mut pause = PAUSE_FIRST;
    while !stop.is_cancelled() {
        let started = Instant::now();
        match client(kubeconfig).await {
            Ok(client) => one_run(name, part(client, stop.clone()), stop).await,
            Err(error) => tracing::error!(part = name, %error, "making its client"),
        }
        if stop.is_cancelled() {
            return;
        }
        if started.elapsed() > STABLE {
            pause = PAUSE_FIRST;
        }
        let jitter = rand::rng().random_range(0.8..1.2);
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One life of a part, in a task of its own so that a panic ends only the part.
async fn one_run<E: std::error::Error + Send + 'static>(
    name: &'static str,
    part: impl Future<Output = Result<(), E>> + Send + 'static,
    stop: &CancellationToken,
) {
    let mut task = tokio::spawn(part);
    let ended = tokio::select! {
        ended = &mut task => Some(ended),
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => match tokio::time::timeout(END_DEADLINE, &mut task).await {
            Ok(ended) => ended,
            Err(_) => {
                tracing::warn!(part = name, "did not end in time, dropping it");
                task.abort();
                return;
            }
        },
    };
    match ended {
        Ok(Ok(())) if stop.is_cancelled() => tracing::info!(part = name, "ended"),
        Ok(Ok(())) => tracing::warn!(part = name, "ended by itself, starting it again"),
        Ok(Err(error)) => tracing::error!(
            part = name,
            error = chain(&error),
            "failed, starting it again"
        ),
        Err(error) => tracing::error!(part = name, %error, "crashed, starting it again"),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(found) = cause {
        text.push_str(": ");
        text.push_str(&found.to_string());
        cause = found.source();
    }
    text
}

async fn client(path: &PathBuf) -> Result<kube::Client, Box<dyn std::error::Error + Send + Sync>> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    Ok(kube::Client::try_from(config)?)
}
