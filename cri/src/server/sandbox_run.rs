// SPDX-License-Identifier: Apache-2.0
//! RunPodSandbox: network beside shim and cgroups, then pause, then the record says Ready.
//!
//! The record is on disk before anything is made, so a crash at any step leaves a sandbox in phase
//! Creating that the next start takes apart. Nobody was told its id.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::container::resources;
use crate::durable::Durable;
use crate::fault::{Fault, Result};
use crate::lifecycle::NETWORK_DEADLINE;
use crate::nri::{Hold, api::Event};
use crate::record::Wire;
use crate::runtime::{Runtime, Sandbox, cgroup_path, now};
use crate::sandbox::{Phase, SandboxRecord, cgroup, dns, network, security, sysctl, userns};
use crate::settings::CgroupDriver;
use crate::shim_client::{Shim, SpawnOptions};
use crate::{blocking, external, ids, oci, sandbox, v1, watcher};

/// The size of a pod's `/dev/shm`, as docker and the kubelet have it.
const SHM_BYTES: u64 = 64 << 20;
/// The sandbox process is the last that the kernel should choose when memory is short.
const PAUSE_OOM_SCORE_ADJ: i32 = -998;
/// Network policies know a pod milliseconds after its network is there, unless the API is slow.
const KNOWN_WITHIN: Duration = Duration::from_secs(1);
/// Making a shim, its process and cgroups takes milliseconds; a machine in trouble gets this long.
const SHIM_DEADLINE: Duration = Duration::from_secs(60);

/// Runs the request in its own task.
///
/// # Errors
/// `AlreadyExists` with the holder's id when the pod's name is taken; what the node refused otherwise.
pub(crate) async fn run(
    runtime: &Arc<Runtime>,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse> {
    let config = request
        .config
        .ok_or_else(|| Fault::invalid("sandbox config is missing"))?;
    let id = ids::fresh();
    if userns::Ids::of(&sandbox::namespaces(&config))?.is_some() {
        let settings = runtime.config.settings.get();
        external::check_users(&settings, &request.runtime_handler).await?;
    }
    let plan = decide(runtime, &id, config, request.runtime_handler)?;
    runtime.names.reserve(&plan.record.name, &id)?;
    let runtime_ = runtime.clone();
    let made = runtime
        .detached(async move {
            let made = make(&runtime_, plan).await;
            if made.is_err() {
                runtime_.names.release(&id);
            }
            made
        })
        .await?;
    Ok(v1::RunPodSandboxResponse {
        pod_sandbox_id: made,
    })
}

/// Everything that is decided before anything is made.
struct Plan {
    record: SandboxRecord,
    resolv_conf: Option<String>,
    input: oci::SandboxInput,
    limits: Option<crate::cgroup::Limits>,
    attachment: Option<cni::Attachment>,
    ids: Option<userns::Ids>,
}

fn decide(
    runtime: &Runtime,
    id: &str,
    config: v1::PodSandboxConfig,
    handler: String,
) -> Result<Plan> {
    external::check(&runtime.config.settings.get(), &handler)?;
    if config.windows.is_some() {
        return Err(Fault::invalid("windows sandboxes are not supported"));
    }
    let name = ids::sandbox_name(&config)?;
    let linux = config.linux.clone().unwrap_or_default();
    let context = sandbox::security_context(&config);
    let namespaces = sandbox::namespaces(&config);
    check_security(&context, &namespaces)?;
    let ids = userns::Ids::of(&namespaces)?;
    if let Some(ids) = &ids {
        ids.check_sandbox(&namespaces)?;
    }
    let host = |mode: v1::NamespaceMode| mode == v1::NamespaceMode::Node;
    let (host_network, host_ipc) = (host(namespaces.network()), host(namespaces.ipc()));
    let sysctls = sysctl::resolve(&linux.sysctls, host_network, host_ipc, ids.is_some())?;
    let hostname = hostname(&config, host_network)?;
    let netns = (!host_network).then(|| runtime.paths.netns(id));
    let attachment = netns
        .as_deref()
        .map(|netns| network::attachment(id, netns, &config))
        .transpose()?;
    Ok(Plan {
        resolv_conf: dns::resolv_conf(config.dns_config.as_ref())?,
        input: oci::SandboxInput {
            pause: runtime.programs.pause.clone(),
            netns: netns.clone(),
            hostname,
            host_ipc,
            share_pid: namespaces.pid() == v1::NamespaceMode::Pod,
            sysctls: sysctls.into_iter().collect(),
            shm_bytes: SHM_BYTES,
            oom_score_adj: PAUSE_OOM_SCORE_ADJ,
            ..Default::default()
        },
        limits: resources::pod_limits(&linux)?,
        attachment,
        ids,
        record: SandboxRecord {
            id: id.to_owned(),
            name,
            phase: Phase::Creating,
            created_at: now(),
            cgroup: cgroup::pod(
                runtime.config.settings.get().cgroup_driver,
                &linux.cgroup_parent,
                &runtime.config.cgroup_parent,
                id,
            )?,
            config: Wire(config),
            runtime_handler: handler,
            cgroup_is_ours: false,
            netns,
            ips: Vec::new(),
            pid: None,
            network_released: false,
        },
    })
}

fn check_security(
    context: &v1::LinuxSandboxSecurityContext,
    namespaces: &v1::NamespaceOption,
) -> Result<()> {
    security::selinux(context.selinux_options.as_ref(), super::selinux_enabled())?;
    // Pause runs no code of the pod: the profiles are only checked here, containers carry their own.
    security::sandbox_seccomp(context)?;
    security::apparmor(
        context.apparmor.as_ref(),
        "",
        super::apparmor_enabled(),
        None,
    )?;
    if namespaces.pid() == v1::NamespaceMode::Target {
        return Err(Fault::invalid(
            "namespace_options.pid TARGET: only a container can have a target",
        ));
    }
    for (mode, field) in [(namespaces.network(), "network"), (namespaces.ipc(), "ipc")] {
        if !matches!(mode, v1::NamespaceMode::Pod | v1::NamespaceMode::Node) {
            return Err(Fault::invalid(format!(
                "namespace_options.{field} {}: a sandbox knows POD and NODE only",
                mode.as_str_name()
            )));
        }
    }
    Ok(())
}

/// The pod's host name; the machine's own when it is empty and the pod uses the host's network.
fn hostname(config: &v1::PodSandboxConfig, host_network: bool) -> Result<String> {
    let wanted = &config.hostname;
    let bad = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if wanted.len() > 64 || wanted.contains(bad) {
        return Err(Fault::invalid(format!(
            "hostname {wanted:?} is longer than 64 bytes or has strange characters"
        )));
    }
    if wanted.is_empty() && host_network {
        return super::own_hostname();
    }
    Ok(wanted.clone())
}

async fn make(runtime: &Arc<Runtime>, plan: Plan) -> Result<String> {
    let record = plan.record.clone();
    let dir = runtime.paths.sandbox(&record.id);
    let durable = match prepare(runtime, &plan, dir).await {
        Ok(durable) => durable,
        Err(fault) => {
            undo(runtime, &record).await;
            return Err(fault);
        }
    };
    match assemble(runtime, &plan, &durable).await {
        Ok((shim, _hold)) => Ok(enter(runtime, durable, shim)),
        Err(fault) => {
            undo(runtime, &record).await;
            Err(fault.within(format!("creating sandbox {:?}", record.id)))
        }
    }
}

async fn undo(runtime: &Arc<Runtime>, record: &SandboxRecord) {
    if let Err(fault) = runtime.destroy_sandbox(record).await {
        // Its record stays, so the next start tries again.
        tracing::warn!(sandbox.id = %record.id, error = %fault.chain(), "a failed sandbox was not removed completely");
    }
}

/// The directories, the record, and the files that containers will mount.
async fn prepare(runtime: &Runtime, plan: &Plan, dir: PathBuf) -> Result<Durable<SandboxRecord>> {
    let shim_dir = runtime.paths.shim(&plan.record.id);
    let made = dir.clone();
    blocking::run("creating a sandbox directory", move || {
        make_private_dir(&made)?;
        make_private_dir(&shim_dir)
    })
    .await??;
    let durable = Durable::create(dir.clone(), plan.record.clone()).await?;
    let (resolv_conf, hostname) = (plan.resolv_conf.clone(), plan.input.hostname.clone());
    blocking::run("writing a sandbox's files", move || {
        write_files(&dir, resolv_conf, &hostname)
    })
    .await??;
    Ok(durable)
}

/// Makes a directory that only root may enter (CVE-2024-25621), and its parents.
///
/// # Errors
/// Names the directory.
pub(crate) fn make_private_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Fault::internal(format!("creating {}", dir.display()), e))
}

fn write_files(dir: &Path, resolv_conf: Option<String>, hostname: &str) -> Result<()> {
    let host_file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let resolv_conf = resolv_conf.unwrap_or_else(|| host_file("/etc/resolv.conf"));
    for (name, text) in [
        ("resolv.conf", resolv_conf),
        ("hostname", format!("{hostname}\n")),
        ("hosts", host_file("/etc/hosts")),
    ] {
        let path = dir.join(name);
        std::fs::write(&path, text)
            .map_err(|e| Fault::internal(format!("writing {}", path.display()), e))?;
    }
    Ok(())
}

/// Makes namespaces, cgroups, network and pause. What does not depend on each other runs side by side.
async fn assemble(
    runtime: &Arc<Runtime>,
    plan: &Plan,
    durable: &Durable<SandboxRecord>,
) -> Result<(Shim, Hold)> {
    let record = &plan.record;
    let (users, shim, member) = tokio::join!(
        make_namespaces(record.netns.clone(), plan.ids.clone()),
        spawn_shim(runtime, &record.id),
        make_cgroups(runtime, record, plan.limits.clone()),
    );
    let (shim, (member, cgroup_is_ours)) = (shim?, member?);
    // Held until pause is in it.
    let users = users?;
    let mut input = plan.input.clone();
    input.users = users.as_ref().map(userns::Made::join).unwrap_or_default();
    input.cgroup = runtime.cgroups.join(&member);
    let sandbox_plan = pause_plan(runtime, record, input, &member).await?;
    let (ips, started) = tokio::join!(
        attach(runtime, record, plan.attachment.as_ref()),
        tokio::time::timeout(SHIM_DEADLINE, shim.start_sandbox(sandbox_plan)),
    );
    runtime.settle_cgroup(&member).await?;
    let started = started
        .map_err(|_| Fault::deadline("starting the sandbox process"))?
        .map_err(|e| Fault::internal("starting the sandbox process", e))?;
    let ips = ips?;
    for note in &started.notes {
        tracing::info!(sandbox.id = %record.id, note, "sandbox process");
    }
    let mut ready = record.clone();
    ready.phase = Phase::Ready;
    ready.cgroup_is_ours = cgroup_is_ours;
    ready.ips = ips;
    ready.pid = Some(started.pid);
    let hold = introduce(runtime, durable, ready).await?;
    Ok((shim, hold))
}

/// Tells plugins of the pod, and then writes down that it is ready. Until the hold is dropped no
/// plugin joins: by then the pod must be found by those that do.
async fn introduce(
    runtime: &Runtime,
    durable: &Durable<SandboxRecord>,
    ready: SandboxRecord,
) -> Result<Hold> {
    let hold = runtime.nri.hold().await;
    let told = runtime.nri_pod(Event::RunPodSandbox, &ready).await;
    let written = match told {
        Ok(()) => durable
            .update(|r| {
                r.clone_from(&ready);
                true
            })
            .await
            .map(drop),
        Err(fault) => Err(fault.within("NRI RunPodSandbox failed")),
    };
    if let Err(fault) = written {
        runtime.nri_pod_undone(&ready).await;
        return Err(fault);
    }
    Ok(hold)
}

/// How the sandbox process is made: by us, or by the pod's runtime.
async fn pause_plan(
    runtime: &Runtime,
    record: &SandboxRecord,
    input: oci::SandboxInput,
    member: &crate::cgroup::CgroupPath,
) -> Result<shim::plan::LaunchPlan> {
    // Also for an external runtime: it names sysctls that cannot be.
    let own = oci::sandbox_plan(&input).map_err(|e| Fault::invalid(e.to_string()))?;
    let Some(handler) = runtime.handler_of(record)? else {
        return Ok(own);
    };
    let (id, cgroup) = (record.id.clone(), cgroup::in_oci(member.as_str()));
    let annotations = external::bundle::annotations(record, None);
    blocking::run("writing the sandbox's bundle", move || {
        external::bundle::pause(&handler, &id, &input, &cgroup, annotations)
    })
    .await?
}

/// The pod's network namespace, in a user namespace of the pod's where it has ids of its own.
async fn make_namespaces(
    path: Option<PathBuf>,
    ids: Option<userns::Ids>,
) -> Result<Option<userns::Made>> {
    let Some(path) = path else { return Ok(None) };
    blocking::run("making the pod's namespaces", move || match ids {
        Some(ids) => userns::Made::new(ids, &path).map(Some),
        None => cni::netns::create(&path)
            .map(|()| None)
            .map_err(|e| Fault::internal("making the pod's network namespace", e)),
    })
    .await?
}

const SYSTEMDS_HIERARCHY: &str = "/sys/fs/cgroup/systemd/";

/// On v1, systemd removes empty directories of controllers that it has no use for, whosever they
/// are: there a shim is in its own hierarchy only.
async fn spawn_shim(runtime: &Runtime, id: &str) -> Result<Shim> {
    let path = runtime.shim_cgroup.clone();
    let mut cgroup = runtime.cgroups.join(&path);
    if runtime.config.settings.get().cgroup_driver == CgroupDriver::Systemd {
        cgroup.v1.retain(|dir| dir.starts_with(SYSTEMDS_HIERARCHY));
        let make = "making the cgroup of shims";
        runtime
            .with_cgroups(make, move |manager| manager.create(&path))
            .await?;
    }
    let options = SpawnOptions {
        dir: runtime.paths.shim(id),
        cgroup,
    };
    tokio::time::timeout(SHIM_DEADLINE, Shim::spawn(&runtime.programs, options))
        .await
        .map_err(|_| Fault::deadline("starting the pod's shim"))?
        .map_err(|e| Fault::internal("starting the pod's shim", e))
}

/// The pod's cgroup and, in it, that of pause. Limits are set only on a pod cgroup that this call
/// makes: one that is there already has an owner (a kubelet) who keeps its limits. Returns the
/// cgroup of pause, and whether this call made the pod's.
async fn make_cgroups(
    runtime: &Runtime,
    record: &SandboxRecord,
    limits: Option<crate::cgroup::Limits>,
) -> Result<(crate::cgroup::CgroupPath, bool)> {
    let pod = cgroup_path(&record.cgroup)?;
    let member = cgroup_path(&cgroup::member(&record.cgroup, &record.id))?;
    let made = member.clone();
    // An external runtime makes its scopes itself.
    let theirs =
        cgroup::is_systemds(&record.cgroup) && !external::is_built_in(&record.runtime_handler);
    let fresh = runtime
        .with_cgroups("making the pod's cgroups", move |manager| {
            let fresh = !manager.exists(&pod);
            manager.create(&pod)?;
            if let (true, Some(limits)) = (fresh, &limits) {
                manager.apply(&pod, limits)?;
            }
            if !theirs {
                manager.create(&member)?;
            }
            Ok(fresh)
        })
        .await?;
    Ok((made, fresh))
}

async fn attach(
    runtime: &Runtime,
    record: &SandboxRecord,
    attachment: Option<&cni::Attachment>,
) -> Result<Vec<String>> {
    let Some(attachment) = attachment else {
        return Ok(Vec::new());
    };
    let result = tokio::time::timeout(NETWORK_DEADLINE, runtime.network.add(attachment))
        .await
        .map_err(|_| Fault::deadline("setting up the pod's network"))?
        .map_err(|e| Fault::internal("setting up the pod's network", e))?;
    let ips = network::addresses(&result);
    if ips.is_empty() {
        return Err(Fault::new(
            crate::fault::Kind::Internal,
            format!(
                "setting up the pod's network: CNI gave {} no address",
                network::INTERFACE
            ),
        ));
    }
    let all: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr).collect();
    let known = &runtime.config.known;
    if record.is_of_the_api() && !known.wait(&all, KNOWN_WITHIN).await {
        tracing::warn!(
            sandbox.id = %record.id,
            pod = %record.name,
            "network policies do not know the pod yet; its first packets may be lost"
        );
    }
    Ok(ips)
}

/// The sandbox is complete: from now on it can be found.
fn enter(runtime: &Arc<Runtime>, durable: Durable<SandboxRecord>, shim: Shim) -> String {
    let record = durable.get();
    let sandbox = Arc::new(Sandbox::new(durable, Some(shim.clone()), None));
    runtime.sandboxes.insert(record.id.clone(), sandbox.clone());
    watcher::watch(runtime, &sandbox, shim);
    runtime.tell_sandbox(v1::ContainerEventType::ContainerStartedEvent, &sandbox);
    tracing::info!(sandbox.id = %record.id, pod = %record.name, ips = ?record.ips, "sandbox is ready");
    record.id.clone()
}
