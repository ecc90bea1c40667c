// SPDX-License-Identifier: Apache-2.0
//! Start and stop of the control plane.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    Config, PkiError, ServeError, StoreError,
    apiserver::{Ranges, Server, ServerParts},
    parts,
    pki::ServerFiles,
    store::{Change, CommitError, Embedded, Expect, Store},
};

/// How long replaced versions are kept for watches and paged lists (upstream: 5 minutes).
const HISTORY: Duration = Duration::from_secs(300);
/// How long an event is kept after it last happened (upstream: `--event-ttl`).
const EVENT_LIFE: Duration = Duration::from_secs(3600);

/// Why the control plane could not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificates or kubeconfigs could not be made.
    #[error("preparing certificates")]
    Pki(#[source] PkiError),
    /// The store could not be opened.
    #[error("opening the store")]
    Store(#[source] StoreError),
    /// The API server could not start.
    #[error("starting the API server")]
    Serve(#[source] ServeError),
    /// A configuration value cannot be used.
    #[error("{field}: expected {expected}, got {found:?}")]
    Config {
        /// The field.
        field: &'static str,
        /// What would be right.
        expected: &'static str,
        /// What was there.
        found: String,
    },
}

/// Runs the control plane until `stop` is cancelled.
///
/// `ready` is sent when the API server answers `/readyz` with ok; the admin kubeconfig is there
/// by then. Stopping goes in phases: the scheduler and the controllers first, then the API server
/// with a deadline for open connections, then the store.
///
/// # Errors
/// When the server cannot start: a bad configuration, a port in use, a store that is in use or
/// damaged, certificates that cannot be read.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let service_ranges = ranges(&config)?;
    let files =
        ServerFiles::ensure(&config, service_ranges.primary().nth(0)).map_err(Error::Pki)?;
    let folder = config.server_dir().join("store");
    let store = tokio::task::spawn_blocking(move || Embedded::open(&folder));
    let store = store
        .await
        .expect("opening a store does not panic")
        .map_err(Error::Store)?;
    let store = Arc::new(store);

    // The server outlives the parts that use it, so it has a token of its own.
    let stop_server = CancellationToken::new();
    let parts = ServerParts {
        store: store.clone(),
        files: files.clone(),
        listen: SocketAddr::new(config.bind_address, config.https_listen_port),
        advertise: SocketAddr::new(config.advertise_address, config.https_listen_port),
        service_ranges,
        server_version: config.server_version.clone(),
    };
    let server = Server::bind(parts, stop_server.clone())
        .await
        .map_err(Error::Serve)?;
    let port = server.port();
    let components = files.write_kubeconfigs(&config, port).map_err(Error::Pki)?;
    server
        .bootstrap(&config.cluster_dns)
        .await
        .map_err(Error::Serve)?;
    let serving = tokio::spawn(server.run());
    tracing::info!(port, "API server is ready");
    let _ = ready.send(());

    let keeping = tokio::spawn(keep_house(store.clone(), stop_server.clone()));
    parts::run(&config, &components, &stop).await;
    stop.cancelled().await;

    tracing::info!("control plane: stopping the API server");
    stop_server.cancel();
    for task in [serving, keeping] {
        if let Err(error) = task.await {
            tracing::error!(%error, "a task of the control plane failed");
        }
    }
    tracing::info!("control plane: closing the store");
    if let Some(store) = Arc::into_inner(store) {
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }
    Ok(())
}

fn ranges(config: &Config) -> Result<Ranges, Error> {
    Ranges::parse(&config.service_cidr).ok_or_else(|| Error::Config {
        field: "service_cidr",
        expected: "an address range such as 10.43.0.0/16, or one of each family",
        found: config.service_cidr.clone(),
    })
}

/// Forgets history that is older than [`HISTORY`] and events that are older than [`EVENT_LIFE`].
async fn keep_house(store: Arc<Embedded>, stop: CancellationToken) {
    let mut seen = store.revision();
    loop {
        tokio::select! {
            () = tokio::time::sleep(HISTORY) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = store.compact(seen).await {
            tracing::warn!(%error, "compacting the store");
        }
        expire_events(&store).await;
        seen = store.revision();
    }
}

async fn expire_events(store: &Embedded) {
    let Ok(snapshot) = store.range("events/", None) else {
        return;
    };
    let oldest = jiff::Timestamp::now() - EVENT_LIFE;
    for event in snapshot.objects {
        let header = event.header();
        let changed = header.changed.parse::<jiff::Timestamp>();
        if changed.is_ok_and(|at| at > oldest) {
            continue;
        }
        let removed = store.commit(Change {
            key: event.key().to_owned(),
            expect: Expect::Revision(event.revision()),
            guards: Vec::new(),
            put: None,
        });
        match removed.await {
            // Somebody counted it up or removed it in between.
            Ok(_) | Err(CommitError::Conflict(_)) => {}
            Err(error) => {
                tracing::warn!(%error, "removing old events");
                return;
            }
        }
    }
}
