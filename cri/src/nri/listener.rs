// SPDX-License-Identifier: Apache-2.0
//! How plugins come and go: the socket, registration, configuration, synchronization, the end.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::api;
use super::connection::{Asked, CODE_INVALID, CODE_UNIMPLEMENTED, CODE_UNKNOWN, Connection};
use super::launched::{self, Program};
use super::plugin::{Identity, Plugin};
use crate::blocking;
use crate::fault::{Fault, Result};
use crate::runtime::Runtime;

/// The release of containerd/nri whose interface this is: plugins leave out what older ones lack.
const NRI_VERSION: &str = "v0.12.2";
/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 128;
/// Between two connections when accepting fails, for lack of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A plugin may use this long to put its things in order when the runtime stops.
const SHUTDOWN_DEADLINE: Duration = Duration::from_millis(500);

/// Starts pre-installed plugins and takes in those that connect, until the runtime stops. NRI that
/// cannot be had is logged: pods do not need it.
pub(crate) async fn start(runtime: &Arc<Runtime>) {
    let config = runtime.config.settings.get().nri.clone();
    if !config.enable {
        return;
    }
    super::lifecycle::serve_aftermath(runtime);
    let path = config.socket_in(&runtime.config.run_dir);
    let connections = !config.disable_connections;
    let found = blocking::run("looking for plugins", move || launched::find(&config)).await;
    for program in found.unwrap_or_default() {
        let runtime_ = runtime.clone();
        runtime.tasks.spawn(async move {
            launch(&runtime_, program).await;
        });
    }
    if !connections {
        return;
    }
    match bind(&path) {
        Ok(listener) => {
            tracing::info!(socket = %path.display(), "nri: plugins may connect");
            let runtime_ = runtime.clone();
            runtime.tasks.spawn(async move {
                accept(&runtime_, listener).await;
                // Of this runtime alone; another would have been found when it was bound.
                let _ = std::fs::remove_file(path);
            });
        }
        Err(fault) => {
            tracing::error!(error = %fault.chain(), "nri: no plugin can connect");
        }
    }
}

/// Binds the socket for root alone. A file that nobody listens on is replaced.
fn bind(path: &PathBuf) -> Result<UnixListener> {
    let failed = |e| Fault::internal(format!("listening on {}", path.display()), e);
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        crate::server::sandbox_run::make_private_dir(dir)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Fault::invalid(format!(
            "another runtime listens on {}; give this one a socket of its own (cri.nri.socket-path)",
            path.display()
        )));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(Path::new(path), mode).map_err(failed)?;
    Ok(listener)
}

async fn accept(runtime: &Arc<Runtime>, listener: UnixListener) {
    let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = runtime.stopping.cancelled() => return,
        };
        match accepted {
            Ok((socket, _)) => {
                let Ok(permit) = room.clone().try_acquire_owned() else {
                    tracing::warn!(
                        "nri: {CONNECTIONS_MAX} plugins are connected; one more is refused"
                    );
                    continue;
                };
                let runtime_ = runtime.clone();
                runtime.tasks.spawn(async move {
                    attend(&runtime_, socket, None).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "nri: accepting a plugin");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn launch(runtime: &Arc<Runtime>, program: Program) {
    match program.start() {
        Ok((mut child, socket)) => {
            attend(runtime, socket, Some(program)).await;
            if let Err(error) = child.kill().await {
                tracing::debug!(%error, "nri: ending a pre-installed plugin");
            }
        }
        Err(fault) => tracing::warn!(error = %fault.chain(), "nri: a pre-installed plugin"),
    }
}

/// All of a plugin's life.
async fn attend(runtime: &Arc<Runtime>, socket: UnixStream, program: Option<Program>) {
    let (connection, mut asked) = Connection::new(socket);
    let connection = Arc::new(connection);
    let life = async {
        let entered = enter(runtime, &connection, &mut asked, program.as_ref()).await;
        if let Err(fault) = entered {
            tracing::error!(error = %fault.chain(), "nri: a plugin is not taken in");
        }
        connection.close();
    };
    tokio::join!(connection.read(), life);
}

async fn enter(
    runtime: &Arc<Runtime>,
    connection: &Arc<Connection>,
    asked: &mut mpsc::Receiver<Asked>,
    program: Option<&Program>,
) -> Result<()> {
    let patience = runtime.nri.registration_timeout();
    let registered = tokio::time::timeout(patience, register(connection, asked, program));
    let identity = tokio::select! {
        registered = registered => {
            registered.map_err(|_| Fault::deadline("plugin registration timed out"))??
        }
        () = connection.closed() => {
            return Err(Fault::precondition("failed to register plugin, connection closed"));
        }
        () = runtime.stopping.cancelled() => return Ok(()),
    };
    let name = identity.name();
    let serving = serve(runtime, connection, asked, &name);
    let living = live(runtime, connection, identity.clone(), program);
    tokio::select! {
        () = serving => Ok(()),
        lived = living => lived,
    }
}

/// Waits for the first request, which must be the registration.
async fn register(
    connection: &Connection,
    asked: &mut mpsc::Receiver<Asked>,
    program: Option<&Program>,
) -> Result<Identity> {
    loop {
        let Some(request) = asked.recv().await else {
            return Err(Fault::precondition("failed to register plugin"));
        };
        if request.method != "RegisterPlugin" {
            let refusal = (CODE_INVALID, "the plugin is not registered".to_owned());
            let answer: std::result::Result<api::Empty, _> = Err(refusal);
            connection.answer(request.stream, answer).await;
            continue;
        }
        let wanted = api::RegisterPluginRequest::decode(request.payload)
            .map_err(|e| Fault::internal("decoding a plugin's registration", e))?;
        let identity = match program {
            Some(program) => Ok(program.identity.clone()),
            None => Identity::new(&wanted.plugin_idx, &wanted.plugin_name),
        };
        let answer = match &identity {
            Ok(_) => Ok(api::Empty {}),
            Err(error) => Err((CODE_INVALID, error.to_string())),
        };
        connection.answer(request.stream, answer).await;
        let identity = identity.map_err(|e| Fault::invalid(e.to_string()))?;
        let process = connection.pid().unwrap_or_default();
        tracing::info!(plugin = %identity.name(), process, version = %shim::launch::plain(&wanted.nri_version), "nri: a plugin registers");
        return Ok(identity);
    }
}

/// Configures and synchronizes a plugin, keeps it on the list while it is there, and says goodbye.
async fn live(
    runtime: &Arc<Runtime>,
    connection: &Arc<Connection>,
    identity: Identity,
    program: Option<&Program>,
) -> Result<()> {
    let config = runtime.config.settings.get().nri.clone();
    let milliseconds = |time: Duration| time.as_millis().try_into().unwrap_or(i64::MAX);
    let request = api::ConfigureRequest {
        config: program.map(|p| p.config.clone()).unwrap_or_default(),
        runtime_name: "podwright".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        registration_timeout: milliseconds(config.plugin_registration_timeout),
        request_timeout: milliseconds(config.plugin_request_timeout),
        nri_version: NRI_VERSION.to_owned(),
    };
    let live = runtime.config.settings.clone();
    let plugin = Plugin::configure(identity, connection.clone(), &request, live).await?;
    let plugin = Arc::new(plugin);
    let updates = join(runtime, &plugin).await?;
    runtime.nri.later(updates, Vec::new());
    tokio::select! {
        () = connection.closed() => {}
        () = runtime.stopping.cancelled() => {
            let _: std::result::Result<api::Empty, _> = connection
                .call("Shutdown", &api::Empty {}, SHUTDOWN_DEADLINE)
                .await;
        }
    }
    runtime.nri.remove(&plugin);
    tracing::info!(plugin = %plugin.name(), "nri: a plugin is gone");
    Ok(())
}

/// Tells a plugin all that exists, and puts it on the list, while nothing else comes into being.
async fn join(runtime: &Arc<Runtime>, plugin: &Arc<Plugin>) -> Result<Vec<api::ContainerUpdate>> {
    let patience = runtime.nri.registration_timeout();
    let _alone = tokio::time::timeout(patience, runtime.nri.joining())
        .await
        .map_err(|_| Fault::deadline("waiting for containers that are being started"))?;
    let (pods, containers) = runtime.nri_everything().await;
    let updates = plugin.synchronize(pods, containers, patience).await?;
    runtime.nri.add(plugin.clone());
    tracing::info!(plugin = %plugin.name(), "nri: a plugin is connected and synchronized");
    Ok(updates)
}

/// Serves what a plugin asks for. Ends with the connection.
async fn serve(
    runtime: &Arc<Runtime>,
    connection: &Connection,
    asked: &mut mpsc::Receiver<Asked>,
    name: &str,
) {
    loop {
        let request = tokio::select! {
            request = asked.recv() => request,
            // Who lives with this connection says goodbye to it.
            () = connection.closed() => None,
        };
        let Some(request) = request else {
            return std::future::pending().await;
        };
        match (request.method.as_str(), request.payload) {
            ("UpdateContainers", payload) => {
                let answer = update_containers(runtime, name, payload).await;
                connection.answer(request.stream, answer).await;
            }
            (other, _) => {
                let text = format!(
                    "the runtime does not serve {:?}",
                    shim::launch::plain(other)
                );
                let answer: std::result::Result<api::Empty, _> = Err((CODE_UNIMPLEMENTED, text));
                connection.answer(request.stream, answer).await;
            }
        }
    }
}

async fn update_containers(
    runtime: &Arc<Runtime>,
    name: &str,
    payload: bytes::Bytes,
) -> std::result::Result<api::UpdateContainersResponse, (i32, String)> {
    let request = api::UpdateContainersRequest::decode(payload)
        .map_err(|e| (CODE_INVALID, format!("UpdateContainers: {e}")))?;
    tracing::info!(plugin = %name, updates = request.update.len(), evictions = request.evict.len(), "nri: a plugin asks for updates");
    let failed = runtime
        .nri_apply(request.update, request.evict)
        .await
        .map_err(|fault| (CODE_UNKNOWN, fault.chain()))?;
    Ok(api::UpdateContainersResponse { failed })
}
