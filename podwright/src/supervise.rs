// SPDX-License-Identifier: Apache-2.0
//! The owner of the process's long-running components: starts each, waits until it serves, restarts
//! one that fails later on, and joins all of them at the end.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// A component that does not serve by then has failed to start.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long the components together may take to end once asked.
const STOP_WITHIN: Duration = Duration::from_secs(20);
const RESTART_MIN: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A component that has served this long starts over with the shortest wait.
const SETTLED_AFTER: Duration = Duration::from_secs(120);

/// Owns components; see [`Supervisor::start`].
pub(crate) struct Supervisor {
    stop: CancellationToken,
    tasks: JoinSet<&'static str>,
}

impl Supervisor {
    /// One that stops on SIGTERM or SIGINT; a second signal ends the process at once.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let mut term = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        let stopping = stop.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                () = stopping.cancelled() => return "signals",
            }
            info!("stopping; a second signal ends this at once");
            stopping.cancel();
            tokio::spawn(async move {
                tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
                std::process::exit(130);
            });
            "signals"
        });
        Ok(Self { stop, tasks })
    }

    /// Runs `work`, which may block, at each SIGHUP.
    ///
    /// # Errors
    /// When the signal cannot be waited for.
    pub(crate) fn on_hangup(
        &mut self,
        work: impl Fn() + Send + Sync + 'static,
    ) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    _ = hangup.recv() => tokio::task::block_in_place(&work),
                    () = stop.cancelled() => return "reload",
                }
            }
        });
        Ok(())
    }

    /// The token that tells every component to end.
    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a component and returns once it serves. If it ends later without having been asked,
    /// it is started again, with a growing wait between attempts.
    ///
    /// # Errors
    /// What the component says when it ends before it serves, or that it took too long.
    pub(crate) async fn start<R, F, E>(&mut self, name: &'static str, run: R) -> anyhow::Result<()>
    where
        R: Fn(oneshot::Sender<()>, CancellationToken) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<anyhow::Error> + Send + 'static,
    {
        let (first_ready, ready) = oneshot::channel();
        let (failed, failure) = oneshot::channel();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let start = Instant::now();
            match run(first_ready, stop.clone()).await {
                Ok(()) if stop.is_cancelled() => return name,
                // The receiver is gone once the component has served; then it is restarted below.
                Ok(()) => drop(failed.send(anyhow!("it ended without having been asked"))),
                Err(cause) => {
                    if let Err(cause) = failed.send(cause.into()) {
                        error!(component = name, "failed, starting it again: {cause:#}");
                    }
                }
            }
            keep_running(name, &run, &stop, start).await;
            name
        });
        let served = async {
            tokio::select! {
                Ok(()) = ready => Ok(()),
                Ok(cause) = failure => Err(cause),
                else => bail!("it ended before it served"),
            }
        };
        tokio::select! {
            outcome = tokio::time::timeout(READY_WITHIN, served) => match outcome {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow!("it did not serve within {READY_WITHIN:?}")),
            },
            () = self.stop.cancelled() => Err(anyhow!("stopped while starting")),
        }
        .with_context(|| format!("starting {name}"))?;
        info!(component = name, "serving");
        Ok(())
    }

    /// Starts components by `start`, and waits until told to stop and for all of them to end. A signal
    /// while they start is no failure. When one cannot be started, those that serve end in order.
    ///
    /// # Errors
    /// What `start` says, or as [`Supervisor::run_until_stopped`].
    pub(crate) async fn run(
        mut self,
        start: impl AsyncFnOnce(&mut Supervisor) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let started = start(&mut self).await;
        let told = self.stop.is_cancelled();
        if started.is_err() {
            self.stop.cancel();
        }
        let ended = self.run_until_stopped().await;
        match started {
            Err(cause) if told => info!("{cause:#}"),
            other => other?,
        }
        ended
    }

    /// Waits until told to stop, then for every component to end. A component that panics ends the
    /// process: what it was doing is unknown, and a new process repairs it at start.
    ///
    /// # Errors
    /// Components that did not end in time, or a panic.
    pub(crate) async fn run_until_stopped(mut self) -> anyhow::Result<()> {
        let mut panicked = false;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(Err(cause)) = self.tasks.join_next() => {
                    error!("a component panicked, so the process ends: {cause}");
                    panicked = true;
                    self.stop.cancel();
                }
            }
        }
        let ended = tokio::time::timeout(STOP_WITHIN, async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended {
                    Ok(name) => info!(component = name, "ended"),
                    Err(cause) => error!("a component panicked: {cause}"),
                }
            }
        });
        if ended.await.is_err() {
            bail!(
                "{} components did not end within {STOP_WITHIN:?}",
                self.tasks.len()
            );
        }
        ensure!(!panicked, "a component panicked");
        Ok(())
    }
}

async fn keep_running<R, F, E>(
    name: &'static str,
    run: &R,
    stop: &CancellationToken,
    mut started: Instant,
) where
    R: Fn(oneshot::Sender<()>, CancellationToken) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<anyhow::Error>,
{
    let mut wait = RESTART_MIN;
    while !stop.is_cancelled() {
        if started.elapsed() > SETTLED_AFTER {
            wait = RESTART_MIN;
        }
        let jitter = Duration::from_millis(u64::from(std::process::id() % 200));
        tokio::select! {
            () = tokio::time::sleep(wait + jitter) => {}
            () = stop.cancelled() => return,
        }
        wait = (wait * 2).min(RESTART_MAX);
        started = Instant::now();
        let (ready, _) = oneshot::channel();
        match run(ready, stop.clone()).await {
            Ok(()) => {}
            Err(cause) => {
                error!(
                    component = name,
                    "failed, starting it again: {:#}",
                    cause.into()
                );
            }
        }
    }
}
