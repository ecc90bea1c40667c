// SPDX-License-Identifier: Apache-2.0
//! The daemon: puts the parts together, repairs, serves, and ends in named phases.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::events::Events;
use crate::fault::Fault;
use crate::image::ImageStore;
use crate::nri::Nri;
use crate::paths::Paths;
use crate::runtime::{Runtime, cgroup_path};
use crate::server::{Server, sandbox_run::make_private_dir};
use crate::settings::CgroupDriver;
use crate::shim_client::Programs;
use crate::streaming::{self, Tokens};
use crate::table::Table;
use crate::v1::image_service_server::ImageServiceServer;
use crate::v1::runtime_service_server::RuntimeServiceServer;
use crate::{Config, Error, blocking, cgroup, nri, recover, sweep, trim};

/// How long requests may go on after the daemon was asked to stop.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// What containerd and kubelet allow for one CRI message.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Where the kernel's cgroup filesystems are mounted.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// See [`crate::run`].
pub(crate) async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let _lock = lock(&config).await?;
    let listen = config.listen.clone();
    let streams = streaming::Listener::bind(&config.settings.get().streaming)
        .await
        .map_err(Error::Streaming)?;
    let address = streams.address;
    let tokens = Tokens::new(address, streams.is_tls());
    let runtime = assemble(config, tokens).await?;
    recover::recover(&runtime).await.map_err(Error::Repair)?;
    nri::start(&runtime).await;
    let socket = bind(&listen)?;
    tracing::info!(socket = %listen.display(), streaming = %address, "cri: serving");
    runtime.tasks.spawn(sweep::forever(runtime.clone()));
    runtime.tasks.spawn(sweep::keep_network(runtime.clone()));
    runtime.tasks.spawn(trim::at_rest(runtime.clone()));
    let streaming = tokio::spawn(streaming::serve(runtime.clone(), streams));
    let serving = tokio::spawn(serve(runtime.clone(), socket));
    // A receiver that is gone does not care; a failed start never gets here.
    let _ = ready.send(());
    let early = tokio::select! {
        () = stop.cancelled() => None,
        ended = serving => Some(ended),
    };
    tracing::info!("cri: stop accepting");
    runtime.stopping.cancel();
    runtime.tasks.close();
    tracing::info!("cri: draining, {DRAIN_DEADLINE:?} at most");
    if tokio::time::timeout(DRAIN_DEADLINE, runtime.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            tasks = runtime.tasks.len(),
            "cri: requests were cut short; the next start repairs"
        );
    }
    streaming.abort();
    remove_socket(&listen)?;
    tracing::info!("cri: stopped; containers keep running");
    match early {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(source))) => Err(Error::Serve(source)),
        Some(Err(_)) => Err(Error::Died),
    }
}

/// Takes the directories for this process, until the lock is dropped or the process ends.
///
/// # Errors
/// When another process has them.
pub(crate) async fn lock(config: &Config) -> Result<Flock<File>, Error> {
    let path = Paths::new(config).lock();
    let attempt = path.clone();
    let locked = tokio::task::spawn_blocking(move || {
        if let Some(dir) = path.parent() {
            make_private_dir(dir).map_err(Error::Repair)?;
        }
        let file = File::create(&path).map_err(|source| Error::Io {
            attempt: "creating",
            path: path.clone(),
            source,
        })?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| Error::Locked {
            path,
            source: errno.into(),
        })
    });
    locked.await.map_err(|e| Error::Io {
        attempt: "locking",
        path: attempt,
        source: std::io::Error::other(e),
    })?
}

/// Opens the parts. Nothing runs yet.
///
/// # Errors
/// When a directory, the image store, the embedded executables or cgroups cannot be had.
pub(crate) async fn assemble(config: Config, tokens: Tokens) -> Result<Arc<Runtime>, Error> {
    blocking::run("opening the runtime", move || open(config, tokens))
        .await
        .and_then(|opened| opened)
        .map_err(Error::Repair)
}

fn open(config: Config, tokens: Tokens) -> crate::fault::Result<Arc<Runtime>> {
    let paths = Paths::new(&config);
    for dir in [
        paths.data().clone(),
        paths.sandboxes(),
        paths.containers(),
        paths.run().clone(),
        paths.shims(),
        paths.netns_dir(),
    ] {
        make_private_dir(&dir)?;
    }
    // Whoever made them first, an image store of its own or an older build, may have left them open.
    for dir in [paths.data(), paths.run()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .map_err(|e| Fault::internal(format!("closing {}", dir.display()), e))?;
    }
    let images = ImageStore::open(ImageStore::dir_in(&config.data_dir), &config.registries_dir)
        .map_err(|e| Fault::internal("opening the image store", e))?;
    let root = Path::new(CGROUP_ROOT);
    let cgroups = match config.settings.get().cgroup_driver {
        CgroupDriver::Cgroupfs => cgroup::detect(root),
        CgroupDriver::Systemd => cgroup::systemd(root, Vec::new()),
    };
    let cgroups = cgroups.map_err(|e| Fault::internal("looking for cgroups", e))?;
    let shims = cgroup_path(&format!("{}/shims", config.cgroup_parent))?;
    cgroups
        .create(&shims)
        .map_err(|e| Fault::internal("making the cgroup of shims", e))?;
    let programs = Programs::install(&paths.programs())
        .map_err(|e| Fault::internal("installing the shim", e))?;
    Ok(Arc::new(Runtime {
        network: config.network(),
        shim_cgroup: shims,
        sandboxes: Table::new("sandbox"),
        containers: Table::new("container"),
        names: Default::default(),
        events: Events::new(config.settings.get().limits.event_queue),
        nri: Nri::new(config.settings.clone()),
        tokens,
        tasks: TaskTracker::new(),
        pulse: Default::default(),
        disk_usage: Default::default(),
        stopping: CancellationToken::new(),
        config,
        paths,
        images,
        cgroups,
        programs,
    }))
}

/// Binds the socket for root alone. A socket file that is in the way is of a dead daemon: a living
/// one would hold the lock.
fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Listen {
        address: path.display().to_string(),
        source,
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    remove_socket(path)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

fn remove_socket(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
            attempt: "removing",
            path: PathBuf::from(path),
            source,
        }),
        _ => Ok(()),
    }
}

/// Serves both services. Not by tonic's own server: that answers `Cancelled` when a client's deadline
/// passes, where gRPC says `DeadlineExceeded`. Here the client keeps its own time, and the request is
/// dropped when it goes away.
async fn serve(runtime: Arc<Runtime>, listener: UnixListener) -> std::io::Result<()> {
    let stopping = runtime.stopping.clone();
    let server = Server { runtime };
    let routes = Routes::new(
        RuntimeServiceServer::new(server.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
    )
    .add_service(
        ImageServiceServer::new(server)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
    );
    axum::serve(listener, routes.into_axum_router())
        .with_graceful_shutdown(stopping.cancelled_owned())
        .await
}
