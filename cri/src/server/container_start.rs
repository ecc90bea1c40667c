// SPDX-License-Identifier: Apache-2.0
//! StartContainer: cgroup, launch plan, then the shim makes and runs the process.
//!
//! A container that cannot be started becomes Exited with reason StartError and the cause as its
//! message, which is what the kubelet shows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;
use shim::plan::{LaunchPlan, RootFs};

use super::container_create::{linux_resources, load_spec};
use super::sandbox_run::make_private_dir;
use crate::cgroup::Limits;
use crate::container::{ContainerRecord, Exit, State, resources};
use crate::fault::{Fault, Result};
use crate::lifecycle::{first_process, remove_dir, shim_fault};
use crate::nri::api::Event;
use crate::runtime::{Container, Runtime, Sandbox, cgroup_path, now};
use crate::sandbox::{Phase, SandboxRecord, cgroup, security};
use crate::shim_client::{ContainerIo, Shim};
use crate::{blocking, external, oci, v1};

/// For each of making and starting: milliseconds, unless the machine is in trouble.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(60);

/// Starts a created container.
///
/// # Errors
/// Not found; wrong state; or why it could not be launched.
pub(crate) async fn start(
    runtime: &Arc<Runtime>,
    request: v1::StartContainerRequest,
) -> Result<v1::StartContainerResponse> {
    let container = runtime.container(&request.container_id)?;
    let runtime_ = runtime.clone();
    runtime
        .detached(async move {
            let _ops = container.ops.lock().await;
            let record = container.record.get();
            record.state.check_startable(&record.id)?;
            let sandbox = runtime_.sandbox(&record.sandbox_id)?;
            let _sandbox_ops = sandbox.ops.read().await;
            if sandbox.record.get().phase != Phase::Ready {
                return Err(Fault::precondition(format!(
                    "sandbox {:?} is not running",
                    record.sandbox_id
                )));
            }
            let _hold = runtime_.nri.hold().await;
            launch_or_record(&runtime_, &sandbox, &container, &record).await
        })
        .await?;
    Ok(v1::StartContainerResponse {})
}

async fn launch_or_record(
    runtime: &Arc<Runtime>,
    sandbox: &Sandbox,
    container: &Container,
    record: &ContainerRecord,
) -> Result<()> {
    let shim = sandbox
        .shim()
        .ok_or_else(|| Fault::precondition("the sandbox's shim is gone"))?;
    let launched = launch(runtime, &shim, container, record).await;
    match launched {
        Ok(()) => {
            runtime.tell_container(v1::ContainerEventType::ContainerStartedEvent, container);
            runtime.nri_done(Event::PostStartContainer, container).await;
            Ok(())
        }
        Err(fault) => {
            let _ = shim
                .signal(&first_process(&record.id), libc::SIGKILL, true)
                .await;
            let message = fault.chain();
            runtime
                .container_exited(container, Exit::start_error(message, now()))
                .await;
            Err(fault.within(format!("failed to start container {:?}", record.id)))
        }
    }
}

async fn launch(
    runtime: &Arc<Runtime>,
    shim: &Shim,
    container: &Container,
    record: &ContainerRecord,
) -> Result<()> {
    runtime
        .nri_container(Event::StartContainer, container)
        .await
        .map_err(|fault| fault.within("NRI container start failed"))?;
    let plan = plan(runtime, container, record).await?;
    if let Some(dir) = record.log_path.as_deref().and_then(Path::parent) {
        let dir = dir.to_owned();
        blocking::run("making the log directory", move || {
            std::fs::create_dir_all(&dir)
                .map_err(|e| Fault::internal(format!("creating {}", dir.display()), e))
        })
        .await??;
    }
    let io = ContainerIo {
        log_path: record.log_path.as_ref().map(|p| p.display().to_string()),
        stdin: record.config.0.stdin,
        stdin_once: record.config.0.stdin_once,
    };
    let started = tokio::time::timeout(LAUNCH_DEADLINE, shim.create(&record.id, plan, io)).await;
    runtime.settle_cgroup(&cgroup_path(&record.cgroup)?).await?;
    let started = started
        .map_err(|_| Fault::deadline("creating the container's process"))?
        .map_err(|e| shim_fault("failed to create task".to_owned(), e))?;
    for note in &started.notes {
        tracing::info!(container.id = %record.id, note, "container process");
    }
    let started_at = now();
    tokio::time::timeout(LAUNCH_DEADLINE, shim.start(&record.id))
        .await
        .map_err(|_| Fault::deadline("starting the container's process"))?
        .map_err(|e| shim_fault("failed to start task".to_owned(), e))?;
    // It may have ended already, and the watcher may have said so: an exit stays.
    container
        .record
        .update_regardless(|r| {
            let created = matches!(r.state, State::Created);
            if created {
                r.state = State::Running {
                    pid: started.pid,
                    started_at,
                };
            }
            created
        })
        .await;
    Ok(())
}

async fn plan(
    runtime: &Arc<Runtime>,
    container: &Container,
    record: &ContainerRecord,
) -> Result<LaunchPlan> {
    let dir = container.record.dir().to_owned();
    let layers = match container.take_layers() {
        Some(layers) => layers,
        None => layers(runtime, &record.image_id).await?,
    };
    let sandbox = runtime.sandbox(&record.sandbox_id)?.record.get();
    let host_ipc = sandbox.namespaces().ipc() == v1::NamespaceMode::Node;
    let handler = runtime.handler_of(&sandbox)?;
    runtime.forget_external(&sandbox, &record.id).await;
    let manager = runtime.cgroups.clone();
    let record = record.clone();
    let text = |path: &Path| path.display().to_string();
    let rootfs = RootFs::Overlay {
        lower: layers.iter().map(|l| text(l)).collect(),
        upper: text(&dir.join("upper")),
        work: text(&dir.join("work")),
    };
    blocking::run("preparing a container's launch", move || {
        fresh_work_dir(&dir.join("work"))?;
        let spec = load_spec(&dir)?;
        let cgroup = cgroup_path(&record.cgroup)?;
        let failed = |e| Fault::internal("preparing the container's cgroup", e);
        // One that a start left which was cut short: it may have been killed, and into a cgroup that
        // was ever killed (cgroup.kill), Linux 6.18 starts nothing that lives.
        manager.destroy(&cgroup).map_err(failed)?;
        let own_shm = spec.mounts().iter().flatten().any(|m| {
            m.destination() == Path::new("/dev/shm") && m.typ().as_deref() == Some("bind")
        });
        let shares_shm = !host_ipc && !own_shm;
        if let Some(handler) = handler {
            let launch = External {
                handler: &handler,
                sandbox: &sandbox,
                record: &record,
                spec: &spec,
                dir: &dir,
            };
            return external_plan(&launch, (rootfs, manager.join(&cgroup)), shares_shm);
        }
        manager.create(&cgroup).map_err(failed)?;
        manager
            .apply(&cgroup, &limits(&record, &spec)?)
            .map_err(failed)?;
        let shm = ("/dev/shm".to_owned(), "/dev/shm".to_owned());
        let context = oci::CompileContext {
            id: record.id.clone(),
            bundle: dir.to_string_lossy().into_owned(),
            rootfs,
            idmapped_rootfs: ids_of(&spec),
            cgroup: manager.join(&cgroup),
            cgroup_v2: manager.is_v2(),
            seccomp: plugins_seccomp(&spec)?,
            sandbox_binds: shares_shm.then_some(shm).into_iter().collect(),
            does_the_rest: false,
        };
        let mut plan = oci::compile(&spec, &context).map_err(|e| Fault::invalid(e.to_string()))?;
        plan.process.seccomp = seccomp(&record, &spec, plan.process.capabilities.bounding)?;
        oci::write_bundle(&dir, &spec, &dir.join("upper"), &plan.hooks)
            .map_err(|e| Fault::internal("writing config.json for hooks", e))?;
        oci::introduce(&spec, &mut plan.process, &context.id, &context.bundle);
        plan.process.session_keyring = Some(oci::session_keyring(&record.id));
        Ok(plan)
    })
    .await?
}

async fn layers(runtime: &Runtime, image: &str) -> Result<Vec<PathBuf>> {
    let found = runtime.images.get(image).await;
    let found = found.map_err(|e| super::image::fault(image, &e))?;
    found
        .map(|image| image.layers)
        .ok_or_else(|| Fault::not_found("image", image))
}

/// A container that another runtime makes.
struct External<'a> {
    handler: &'a external::Handler,
    sandbox: &'a SandboxRecord,
    record: &'a ContainerRecord,
    spec: &'a Spec,
    dir: &'a Path,
}

fn external_plan(
    launch: &External<'_>,
    (rootfs, joins): (RootFs, shim::plan::CgroupJoin),
    shares_shm: bool,
) -> Result<LaunchPlan> {
    let External {
        handler,
        sandbox,
        record,
        spec,
        dir,
    } = launch;
    let target = external::bundle::Target {
        handler,
        id: &record.id,
        bundle: dir,
        rootfs,
        joins,
    };
    target.prepare(external::bundle::Input {
        limits: &linux_resources(&record.config.0),
        seccomp: external_seccomp(record, spec)?,
        cgroup: &cgroup::in_oci(&record.cgroup),
        shares_shm,
        client_annotations: &record.config.0.annotations,
        annotations: external::bundle::annotations(sandbox, Some(record)),
        ..external::bundle::Input::of(spec)
    })
}

/// The filter of a container in the form in which other runtimes read it.
fn external_seccomp(
    record: &ContainerRecord,
    spec: &Spec,
) -> Result<Option<oci_spec::runtime::LinuxSeccomp>> {
    let of_plugins = spec.linux().as_ref().and_then(|l| l.seccomp().clone());
    if of_plugins.is_some() {
        return Ok(of_plugins);
    }
    let process = spec.process().as_ref();
    let sets = process.and_then(|p| p.capabilities().as_ref());
    let bounding = sets.and_then(|sets| sets.bounding().as_ref());
    let names: Vec<String> = bounding
        .into_iter()
        .flatten()
        .map(|c| c.to_string())
        .collect();
    let capabilities = oci::spec::capability_mask(&names).unwrap_or_default();
    oci::spec::seccomp_in_oci(&profile(record)?, capabilities)
        .map_err(|e| Fault::internal("preparing the seccomp profile", e))
}

/// Whether the container has ids of its own.
fn ids_of(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    linux.is_some_and(|linux| linux.uid_mappings().is_some())
}

/// A launch that was cut short leaves its mark in the overlay's work directory (the mount is
/// `volatile`), and the kernel refuses to mount over it. Nothing of the container ran, so it may go.
fn fresh_work_dir(work: &Path) -> Result<()> {
    if work.join("work").exists() {
        remove_dir(work)?;
    }
    // Also when a daemon was killed between removing and making it.
    make_private_dir(work)
}

/// All limits of a container: what CRI asks for, and what CRI has no words for, which is in the spec
/// (device rules, and what NRI plugins set).
fn limits(record: &ContainerRecord, spec: &Spec) -> Result<Limits> {
    let of_spec = spec
        .linux()
        .as_ref()
        .and_then(|l| l.resources().as_ref())
        .map(oci::limits)
        .transpose()
        .map_err(|e| Fault::invalid(e.to_string()))?
        .unwrap_or_default();
    Ok(over(
        of_spec,
        resources::limits(&linux_resources(&record.config.0))?,
    ))
}

/// One set of limits, with what another says in place of it.
fn over(mut all: Limits, said: Limits) -> Limits {
    fn put<T>(into: &mut Option<T>, said: Option<T>) {
        if said.is_some() {
            *into = said;
        }
    }
    put(&mut all.memory.limit, said.memory.limit);
    put(&mut all.memory.swap, said.memory.swap);
    put(&mut all.cpu.shares, said.cpu.shares);
    put(&mut all.cpu.quota, said.cpu.quota);
    put(&mut all.cpu.period, said.cpu.period);
    put(&mut all.cpu.cpus, said.cpu.cpus);
    put(&mut all.cpu.mems, said.cpu.mems);
    all.hugepages = said.hugepages;
    all.unified = said.unified;
    all
}

/// The compiled system call filter of a container; the same for its execs. Blocks on the profile's file.
///
/// # Errors
/// When the profile cannot be read or compiled.
pub(crate) fn seccomp(
    record: &ContainerRecord,
    spec: &Spec,
    capabilities: u64,
) -> Result<Option<shim::plan::Seccomp>> {
    let of_plugins = plugins_seccomp(spec)?;
    if of_plugins.is_some() {
        return Ok(of_plugins);
    }
    let profile = profile(record)?;
    oci::spec::seccomp(&profile, capabilities)
        .map_err(|e| Fault::internal("preparing the seccomp profile", e))
}

/// The profile that the client asks for. Blocks on its file.
fn profile(record: &ContainerRecord) -> Result<oci::spec::SeccompProfile> {
    let context = record
        .config
        .0
        .linux
        .as_ref()
        .and_then(|l| l.security_context.clone())
        .unwrap_or_default();
    Ok(match security::container_seccomp(&context)? {
        security::Seccomp::Unconfined => oci::spec::SeccompProfile::Unconfined,
        security::Seccomp::RuntimeDefault => oci::spec::SeccompProfile::RuntimeDefault,
        security::Seccomp::Localhost(path) => {
            oci::spec::SeccompProfile::Localhost(std::fs::read_to_string(&path).map_err(|e| {
                Fault::internal(
                    format!(
                        "cannot load seccomp profile {:?}",
                        path.display().to_string()
                    ),
                    e,
                )
            })?)
        }
    })
}

/// The filter that an NRI plugin has put into the spec, in place of the client's.
fn plugins_seccomp(spec: &Spec) -> Result<Option<shim::plan::Seccomp>> {
    let profile = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    profile
        .map(oci::spec::oci_seccomp)
        .transpose()
        .map_err(|e| Fault::internal("preparing the seccomp profile of an NRI plugin", e))
}
