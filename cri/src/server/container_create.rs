// SPDX-License-Identifier: Apache-2.0
//! CreateContainer: everything about a container is checked and decided here, nothing runs yet.
//!
//! What it leaves is a directory with the OCI spec, the record and empty writable layers, and a
//! lease on the image. A directory without a record is a leftover.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::container::mounts::{self, BindMount};
use crate::container::{
    ContainerRecord, State, capability, command, devices, resources, spec, user,
};
use crate::durable::Durable;
use crate::fault::{Fault, Result};
use crate::image::Image;
use crate::nri::api::Event;
use crate::record::Wire;
use crate::runtime::{Container, Runtime, now};
use crate::sandbox::{Phase, SandboxRecord, cgroup, security, userns};
use crate::{blocking, cdi, ids, sandbox, signal, v1};

/// The spec's file name in the container's directory.
pub(crate) const SPEC_FILE: &str = "spec.json";

/// Creates a container in a ready sandbox.
///
/// # Errors
/// Not found (sandbox, image), `AlreadyExists`, or what of the configuration cannot be done, by name.
pub(crate) async fn create(
    runtime: &Arc<Runtime>,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse> {
    let config = request
        .config
        .ok_or_else(|| Fault::invalid("container config is missing"))?;
    let sandbox = runtime.sandbox(&request.pod_sandbox_id)?;
    let runtime_ = runtime.clone();
    let id = runtime
        .detached(async move {
            let _ops = sandbox.ops.read().await;
            let record = sandbox.record.get();
            if record.phase != Phase::Ready {
                return Err(Fault::precondition(format!(
                    "sandbox {:?} is not running",
                    record.id
                )));
            }
            let id = ids::fresh();
            let name = ids::container_name(&config, &record.config.0, &record.id)?;
            runtime_.names.reserve(&name, &id)?;
            let made = make(&runtime_, &record, id.clone(), name, config).await;
            if made.is_err() {
                runtime_.names.release(&id);
                if let Err(fault) = runtime_.remove_container_files(&id).await {
                    tracing::warn!(container.id = %id, error = %fault.chain(), "leftover of a failed creation");
                }
            }
            made.map(|()| id)
        })
        .await?;
    Ok(v1::CreateContainerResponse { container_id: id })
}

async fn make(
    runtime: &Arc<Runtime>,
    sandbox: &SandboxRecord,
    id: String,
    name: String,
    mut config: v1::ContainerConfig,
) -> Result<()> {
    check(&config)?;
    // Whoever called us ends the lease when the rest fails.
    let image = super::image::lease(runtime, &id, config.image.as_ref()).await?;
    let volumes = lease_volumes(runtime, &id, &mut config.mounts).await?;
    let Decided {
        mut spec,
        user,
        stop_signal,
    } = decide(runtime, sandbox, &id, &config, &image, &volumes).await?;
    let mut record = ContainerRecord {
        id: id.clone(),
        sandbox_id: sandbox.id.clone(),
        name,
        created_at: now(),
        state: State::Created,
        image_id: image.id.to_string(),
        image_ref: super::image::reference(&image),
        cgroup: cgroup::member(&sandbox.cgroup, &id),
        log_path: log_path(&sandbox.config.0, &config)?,
        user,
        stop_signal,
        config: Wire(config),
    };
    inject(runtime, &mut spec, cdi::wanted(&record.config.0)?).await?;
    // From before plugins are asked until the container can be found: see `nri::Hold`.
    let _hold = runtime.nri.hold().await;
    let before = (record.clone(), spec.clone());
    let made = match adjust(runtime, sandbox, &mut record, &mut spec).await {
        Ok(()) => lay_down(runtime, record, &spec, image.layers).await,
        Err(fault) => Err(fault),
    };
    match made {
        Ok(container) => {
            runtime
                .nri_done(Event::PostCreateContainer, &container)
                .await;
            Ok(())
        }
        Err(fault) => {
            runtime
                .nri_create_undone(sandbox, &before.0, &before.1)
                .await;
            Err(fault)
        }
    }
}

/// What plugins change about the container, and what devices that they add need.
async fn adjust(
    runtime: &Runtime,
    sandbox: &SandboxRecord,
    record: &mut ContainerRecord,
    spec: &mut oci_spec::runtime::Spec,
) -> Result<()> {
    let given = cdi::wanted(&record.config.0)?;
    let added = runtime
        .nri_create(sandbox, record, spec)
        .await
        .map_err(|fault| fault.within("failed to get NRI adjustment for container"))?;
    let added = added.into_iter().filter(|device| !given.contains(device));
    inject(runtime, spec, added.collect()).await?;
    resources::limits(&linux_resources(&record.config.0))?;
    crate::runtime::cgroup_path(&record.cgroup).map(drop)
}

/// Gives the container CDI devices.
async fn inject(
    runtime: &Runtime,
    spec: &mut oci_spec::runtime::Spec,
    devices: Vec<String>,
) -> Result<()> {
    if !devices.is_empty() {
        let dirs = runtime.config.settings.get().cdi.spec_dirs.clone();
        *spec = cdi::inject(dirs, spec, devices).await?;
    }
    Ok(())
}

/// Writes the container down: from now on it can be found.
async fn lay_down(
    runtime: &Arc<Runtime>,
    record: ContainerRecord,
    spec: &oci_spec::runtime::Spec,
    layers: Vec<PathBuf>,
) -> Result<Arc<Container>> {
    let id = record.id.clone();
    let dir = runtime.paths.container(&id);
    let (made, spec) = (dir.clone(), spec.clone());
    blocking::run("creating a container's directory", move || {
        lay_out(&made, &spec)
    })
    .await??;
    let durable = Durable::create(dir, record).await?;
    let container = Arc::new(Container::new(durable, None));
    container.keep_layers(layers);
    runtime.containers.insert(id, container.clone());
    runtime.tell_container(v1::ContainerEventType::ContainerCreatedEvent, &container);
    Ok(container)
}

/// The image of each mount that is one, kept for the container. Its id goes into the mount's `image_ref`, for the status.
async fn lease_volumes(runtime: &Runtime, id: &str, mounts: &mut [v1::Mount]) -> Result<Volumes> {
    let mut found = Vec::with_capacity(mounts.len());
    for mount in mounts {
        found.push(match &mut mount.image {
            Some(spec) => {
                let image = super::image::lease_also(runtime, id, spec).await?;
                spec.image_ref = image.id.to_string();
                Some(image)
            }
            None => None,
        });
    }
    Ok(found)
}

fn check(config: &v1::ContainerConfig) -> Result<()> {
    if config.windows.is_some() {
        return Err(Fault::invalid("windows containers are not supported"));
    }
    cdi::wanted(config)?;
    for mount in &config.mounts {
        mounts::check(mount)?;
    }
    // Limits are checked now and applied at start, so that a wrong one fails the creation.
    resources::limits(&linux_resources(config)).map(drop)
}

/// The resources that a container asks for; all unsaid when there are none.
pub(crate) fn linux_resources(config: &v1::ContainerConfig) -> v1::LinuxContainerResources {
    config
        .linux
        .as_ref()
        .and_then(|l| l.resources.clone())
        .unwrap_or_default()
}

/// For each mount of a container, the image that it shows.
type Volumes = Vec<Option<Image>>;

struct Decided {
    spec: oci_spec::runtime::Spec,
    user: user::User,
    stop_signal: i32,
}

async fn decide(
    runtime: &Runtime,
    sandbox: &SandboxRecord,
    id: &str,
    config: &v1::ContainerConfig,
    image: &Image,
    volumes: &Volumes,
) -> Result<Decided> {
    let defaults = super::image::defaults(image);
    let context = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.clone())
        .unwrap_or_default();
    let options = context.namespace_options.clone().unwrap_or_default();
    let ids = userns::Ids::of(&options)?;
    userns::Ids::check_same(
        userns::Ids::of(&sandbox.namespaces())?.as_ref(),
        ids.as_ref(),
    )?;
    security::selinux(context.selinux_options.as_ref(), super::selinux_enabled())?;
    let enabled = super::apparmor_enabled();
    let default = crate::sandbox::apparmor::default_profile(enabled).await;
    let apparmor = security::container_apparmor(&context, enabled, default)?;
    // Only checked here: the profile is read and compiled when the container starts.
    security::container_seccomp(&context)?;
    check_privileges(&context, sandbox)?;
    let hostname = match sandbox.config.0.hostname.as_str() {
        "" => super::own_hostname()?,
        name => name.to_owned(),
    };
    let user = resolve_user(&context, &defaults.user, image).await?;
    let pause = sandbox
        .pid
        .ok_or_else(|| Fault::precondition("the sandbox has no process"))?;
    let target = target_pid(runtime, sandbox, &options)?;
    let layers = |image: &Option<Image>| image.as_ref().map(|image| image.layers.clone());
    let lookup = Lookup {
        mounts: config.mounts.clone(),
        layers: volumes.iter().map(layers).collect(),
        devices: config.devices.clone(),
        sandbox_dir: runtime.paths.sandbox(&sandbox.id),
        readonly: context.readonly_rootfs,
        host_ipc: sandbox.namespaces().ipc() == v1::NamespaceMode::Node,
        ids: ids.clone(),
    };
    let (binds, devices) = blocking::run("looking up mounts", move || lookup.run()).await??;
    // In a user namespace of its own a process can have every capability over what belongs to it.
    let grantable = match ids {
        Some(_) => capability::ALL.into(),
        None => capability::held()?,
    };
    let spec = spec::build(spec::Input {
        security: &context,
        namespaces: spec::joined(&options, &sandbox.namespaces(), pause, target)?,
        ids,
        args: command::arguments(&config.command, &config.args, &defaults)?,
        env: command::environment(&config.envs, &defaults, &hostname, config.tty)?,
        cwd: command::working_dir(&config.working_dir, &defaults)?,
        tty: config.tty,
        user: &user,
        capabilities: capability::resolve(context.capabilities.as_ref(), &grantable)?,
        mounts: binds,
        devices,
        apparmor,
        oom_score_adj: linux_resources(config).oom_score_adj,
        cgroup: &cgroup::member(&sandbox.cgroup, id),
        annotations: &config.annotations,
    })?;
    Ok(Decided {
        spec,
        user,
        stop_signal: signal::stop_signal(config.stop_signal(), &defaults.stop_signal)?,
    })
}

/// A privileged container needs a privileged sandbox, as in containerd; namespaces follow the pod.
fn check_privileges(
    context: &v1::LinuxContainerSecurityContext,
    record: &SandboxRecord,
) -> Result<()> {
    if context.privileged && !sandbox::security_context(&record.config.0).privileged {
        return Err(Fault::invalid(
            "no privileged container allowed in an unprivileged sandbox",
        ));
    }
    Ok(())
}

async fn resolve_user(
    context: &v1::LinuxContainerSecurityContext,
    image_user: &str,
    image: &Image,
) -> Result<user::User> {
    let wanted = user::wanted(context, image_user)?;
    let layers = image.layers.clone();
    let found = blocking::run("looking up a user", move || {
        crate::image::user::resolve(&layers, &wanted)
    })
    .await?
    .map_err(|e| Fault::invalid(crate::fault::chain(&e)))?;
    user::combine(context, found)
}

fn target_pid(
    runtime: &Runtime,
    sandbox: &SandboxRecord,
    options: &v1::NamespaceOption,
) -> Result<Option<u32>> {
    if options.pid() != v1::NamespaceMode::Target {
        return Ok(None);
    }
    let target = runtime.container(&options.target_id)?.record.get();
    Ok(match target.state {
        State::Running { pid, .. } if target.sandbox_id == sandbox.id => Some(pid),
        _ => None,
    })
}

/// What has to be looked up on the host's filesystem.
struct Lookup {
    mounts: Vec<v1::Mount>,
    /// For each mount, the layers of the image that it shows.
    layers: Vec<Option<Vec<PathBuf>>>,
    devices: Vec<v1::Device>,
    sandbox_dir: PathBuf,
    readonly: bool,
    host_ipc: bool,
    ids: Option<userns::Ids>,
}

type Found = (
    Vec<BindMount>,
    Vec<(
        oci_spec::runtime::LinuxDevice,
        oci_spec::runtime::LinuxDeviceCgroup,
    )>,
);

impl Lookup {
    fn run(self) -> Result<Found> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Fault::internal("reading /proc/self/mountinfo", e))?;
        let mut binds = Vec::new();
        for (mount, layers) in self.mounts.iter().zip(&self.layers) {
            if let Some(layers) = layers {
                binds.push(mounts::of_image(&self.with_own_ids(mount), layers)?);
                continue;
            }
            let source = source(Path::new(&mount.host_path))?;
            mounts::check_propagation(mount.propagation(), &source, &mountinfo)?;
            binds.push(mounts::bind(mount, source));
        }
        self.add_sandbox_files(&mut binds);
        mounts::sort(&mut binds);
        let mut devices = Vec::new();
        for device in &self.devices {
            devices.extend(devices::resolve(device)?);
        }
        Ok((binds, devices))
    }

    /// In a pod with ids of its own, what this runtime brings is shown with them.
    fn with_own_ids(&self, mount: &v1::Mount) -> v1::Mount {
        let mut mount = mount.clone();
        if let (Some(ids), true) = (&self.ids, mount.uid_mappings.is_empty()) {
            (mount.uid_mappings, mount.gid_mappings) = ids.mappings();
        }
        mount
    }

    /// The pod's own files, unless the client mounts something else there.
    fn add_sandbox_files(&self, binds: &mut Vec<BindMount>) {
        let mut own: Vec<(PathBuf, &str, bool)> = ["hostname", "hosts", "resolv.conf"]
            .map(|name| (self.sandbox_dir.join(name), name, self.readonly))
            .to_vec();
        if self.host_ipc {
            own.push((PathBuf::from("/dev/shm"), "", false));
        }
        for (path, name, readonly) in own {
            let container_path = match name {
                "" => "/dev/shm".to_owned(),
                name => format!("/etc/{name}"),
            };
            if binds.iter().any(|b| b.destination == container_path) {
                continue;
            }
            let wish = v1::Mount {
                container_path,
                readonly,
                ..Default::default()
            };
            binds.push(mounts::bind(&self.with_own_ids(&wish), path));
        }
    }
}

/// The source of a mount without symbolic links; made as a directory when it is absent, as containerd does.
fn source(path: &Path) -> Result<PathBuf> {
    match path.canonicalize() {
        Ok(found) => Ok(found),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path)
                .map_err(|e| Fault::internal(format!("failed to mkdir {path:?}"), e))?;
            path.canonicalize()
                .map_err(|e| Fault::internal(format!("failed to resolve {path:?}"), e))
        }
        Err(error) => Err(Fault::internal(format!("failed to stat {path:?}"), error)),
    }
}

/// The log file: beneath the pod's log directory, or none when either part is empty.
fn log_path(
    sandbox: &v1::PodSandboxConfig,
    config: &v1::ContainerConfig,
) -> Result<Option<PathBuf>> {
    if sandbox.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(None);
    }
    let relative = Path::new(&config.log_path);
    let plain = relative.components().all(|c| {
        matches!(
            c,
            std::path::Component::Normal(_) | std::path::Component::CurDir
        )
    });
    // A path out of the directory would let a pod's author write any file (CVE-2025-0750).
    if !plain {
        return Err(Fault::invalid(format!(
            "log_path {:?} leads out of the pod's log directory",
            config.log_path
        )));
    }
    Ok(Some(Path::new(&sandbox.log_directory).join(relative)))
}

fn lay_out(dir: &Path, spec: &oci_spec::runtime::Spec) -> Result<()> {
    super::sandbox_run::make_private_dir(dir)?;
    super::sandbox_run::make_private_dir(&dir.join("work"))?;
    let upper = dir.join("upper");
    // The upper directory is the container's `/`: it needs the mode of one.
    std::fs::create_dir_all(&upper)
        .and_then(|()| {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(0o755))
        })
        .map_err(|e| Fault::internal(format!("creating {}", upper.display()), e))?;
    save_spec(dir, spec)
}

/// Replaces the spec's file.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn save_spec(dir: &Path, spec: &oci_spec::runtime::Spec) -> Result<()> {
    let path = dir.join(SPEC_FILE);
    let text =
        serde_json::to_vec_pretty(spec).map_err(|e| Fault::internal("encoding an OCI spec", e))?;
    std::fs::write(&path, text)
        .map_err(|e| Fault::internal(format!("writing {}", path.display()), e))
}

/// Reads the spec's file.
///
/// # Errors
/// When it is absent or damaged.
pub(crate) fn load_spec(dir: &Path) -> Result<oci_spec::runtime::Spec> {
    let path = dir.join(SPEC_FILE);
    let text = std::fs::read(&path)
        .map_err(|e| Fault::internal(format!("reading {}", path.display()), e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Fault::internal(format!("parsing {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_stay_in_the_pods_directory() {
        let sandbox = v1::PodSandboxConfig {
            log_directory: "/var/log/pods/x".into(),
            ..Default::default()
        };
        let check = |path: &str| {
            let config = v1::ContainerConfig {
                log_path: path.into(),
                ..Default::default()
            };
            log_path(&sandbox, &config)
        };
        assert_eq!(
            check("c/0.log").unwrap(),
            Some("/var/log/pods/x/c/0.log".into())
        );
        assert_eq!(check("").unwrap(), None);
        assert!(check("../../etc/cron.d/x").is_err());
        assert!(check("/etc/x").is_err());
    }
}
