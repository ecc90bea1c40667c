// SPDX-License-Identifier: Apache-2.0
//! `create` and `run`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use oci_spec::runtime::Spec;
use shim::launch::{self, Gate, LaunchError, Launched, Step};
use shim::plan::{LaunchPlan, RootFs};
use shim::sys;

use super::args::{Create, Run};
use super::cgroups::Cgroup;
use super::config::{self, CONFIG};
use super::launcher::Launcher;
use super::notify::{self, Notify};
use super::outside::{self, Outside};
use super::store::{self, Record};
use super::supervise::{self, Signals};
use super::terminal::Relay;
use super::{Attempt, Context, Failure, Outcome, io, manage};
use crate::cgroup::Limits;
use crate::oci::{self, CompileContext, spec};

pub(super) fn create(context: &Context, options: &Create) -> Outcome {
    let (launcher, inherited) = Launcher::start_for(options.preserve_fds, true)?;
    let job = Job::prepare(context, options, inherited, true)?;
    let made = job.make(launcher, || {
        make_fifo(&context.store.fifo(&options.id)).map(Gate::Fifo)
    })?;
    let written = io::write_pid(options.pid_file.as_deref(), made.pid);
    job.or_undo(&made, written)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run(context: &Context, options: &Run) -> Outcome {
    let (launcher, inherited) = Launcher::start_for(options.create.preserve_fds, true)?;
    let signals = match options.detach {
        true => None,
        // Before there is a container that they would be meant for.
        false => Some(Signals::block()?),
    };
    if !options.no_subreaper
        && let Err(errno) = sys::become_subreaper()
    {
        let reason = launch::reason(errno);
        context.log.warn(&format!("becoming a subreaper: {reason}"));
    }
    let job = Job::prepare(context, &options.create, inherited, options.detach)?;
    let mut made = job.make(launcher, || Ok(Gate::Parent))?;
    let relay = Relay::of(&mut made);
    let relay = job.or_undo(&made, relay)?;
    let started = job.start(&mut made);
    let notify = job.or_undo(&made, started)?;
    let Some(signals) = signals else {
        return Ok(ExitCode::SUCCESS);
    };
    let ended = supervise::until_exit(&made, signals, relay, notify);
    if !options.keep {
        manage::delete(context, &options.create.id, true)?;
    }
    ended.map(ExitCode::from)
}

/// A container that can be made, as far as that is known without making anything.
struct Job<'a> {
    context: &'a Context,
    options: &'a Create,
    bundle: PathBuf,
    rootfs: PathBuf,
    spec: Spec,
    /// config.json as it is.
    text: Vec<u8>,
    cgroup: Cgroup,
    plan: LaunchPlan,
    outside: Outside,
    limits: Limits,
    notify: Option<Notify>,
    detached: bool,
}

impl<'a> Job<'a> {
    fn prepare(
        context: &'a Context,
        options: &'a Create,
        inherited: io::Inherited,
        detached: bool,
    ) -> Outcome<Job<'a>> {
        context.store.check_free(&options.id)?;
        let bundle = options
            .bundle
            .canonicalize()
            .attempt(format_args!("opening bundle {}", options.bundle.display()))?;
        let mut notes = Vec::new();
        let (mut spec, text) = config::read_spec(&bundle.join(CONFIG), &mut notes)?;
        let notify = Notify::of_environment(&context.store.dir(&options.id));
        if let Some(notify) = &notify {
            notify.add_to(&mut spec);
        }
        let cgroup = Cgroup::of_spec(context.systemd, &spec, &options.id)?;
        let rootfs = rootfs(&spec, &bundle)?;
        let outside = Outside::of_spec(&spec, &options.id)?;
        let mut plan = compile(&spec, &options.id, &bundle, &rootfs, &cgroup)?;
        plan.no_pivot = options.no_pivot;
        oci::keep_possible_ambient(&mut plan.process, &mut notes);
        notes.iter().for_each(|note| context.log.warn(note));
        let keyring = (!options.no_new_keyring).then(|| oci::session_keyring(&options.id));
        plan.process.session_keyring = keyring;
        inherited.add_to(&mut plan.process);
        let socket = options.console_socket.is_some();
        io::check_terminal(plan.process.terminal, detached, socket)?;
        let resources = spec.linux().as_ref().and_then(|l| l.resources().clone());
        let limits = oci::limits(&resources.unwrap_or_default()).attempt(CONFIG)?;
        cgroup.check_unused()?;
        Ok(Job {
            context,
            options,
            bundle,
            rootfs,
            spec,
            text,
            cgroup,
            plan,
            outside,
            limits,
            notify,
            detached,
        })
    }

    /// Makes the container; on failure nothing of it is left.
    fn make(&self, launcher: Launcher, gate: impl Fn() -> Outcome<Gate>) -> Outcome<Launched> {
        self.context.store.reserve(&self.options.id)?;
        let ready = self.keep_config().and_then(|()| self.make_cgroup());
        let gate = ready.and_then(|()| gate()).inspect_err(|_| self.undo())?;
        let launched = self.launch(launcher, gate);
        let mut launched = launched.inspect_err(|_| self.undo_launch())?;
        let kept = self.keep(&mut launched);
        self.or_undo(&launched, kept)?;
        Ok(launched)
    }

    fn keep_config(&self) -> Outcome<()> {
        let store = &self.context.store;
        if self.context.systemd {
            store.mark_systemd(&self.options.id)?;
        }
        store.save_config(&self.options.id, &self.text)?;
        if let Some(filter) = &self.plan.process.seccomp {
            store.save_seccomp(&self.options.id, filter)?;
        }
        self.outside.keep(store, &self.options.id)?;
        match &self.notify {
            Some(notify) => notify.make_directory(),
            None => Ok(()),
        }
    }

    fn make_cgroup(&self) -> Outcome<()> {
        let Cgroup { manager, path } = &self.cgroup;
        let log = &self.context.log;
        log.debug(|| format!("creating cgroup {}", path.as_str()));
        manager.create(path).attempt("creating cgroups")?;
        manager.apply(path, &self.limits).attempt("setting limits")
    }

    fn launch(&self, launcher: Launcher, gate: Gate) -> Outcome<Launched> {
        self.context.log.launching(&self.plan.process);
        let begun = launcher.begin(&self.plan, gate);
        let launched = begun.map_err(|error| self.not_started(&error))?;
        if let Err(failure) = self.outside.give_to(launched.pid) {
            launched.abandon();
            return Err(failure);
        }
        let launched = launched.until_ready();
        let launched = launched.map_err(|error| self.not_started(&error))?;
        self.cgroup.manager.settle(&self.cgroup.path);
        Ok(launched)
    }

    /// What the process cannot know of its own failure, its limits say. In runc's words.
    fn not_started(&self, error: &LaunchError) -> Failure {
        let mut failure = not_started(error);
        let Cgroup { manager, path } = &self.cgroup;
        if manager.summary(path).is_ok_and(|now| now.oom_kills > 0) {
            failure.message += ": container init was OOM-killed (memory limit too low?)";
        }
        let pinned = self.limits.cpu.cpus.is_some() && error.errno == libc::EPERM;
        if pinned && error.step == Step::Scheduler {
            failure.message += ": process scheduler can't be used together with AllowedCPUs \
                                (linux.resources.cpu.cpus)";
        }
        failure
    }

    /// Everything that others find the container by.
    fn keep(&self, launched: &mut Launched) -> Outcome<()> {
        let pidfd_socket = self.options.pidfd_socket.as_deref();
        io::hand_over(
            launched,
            self.options.console_socket.as_deref(),
            pidfd_socket.map(|socket| (socket, "standard")),
        )?;
        for note in launched.notes.iter().chain(&self.limits.notes) {
            self.context.log.warn(note);
        }
        self.context.store.save(&self.record(launched.pid))
    }

    fn record(&self, pid: u32) -> Record {
        let mut record = store::new_record(&self.options.id, pid, &self.spec);
        record.bundle = self.bundle.clone();
        record.rootfs = self.rootfs.clone();
        record.cgroup = self.cgroup.path.as_str().to_owned();
        record.systemd = self.context.systemd;
        record.hooks = self.plan.hooks.clone();
        record.keyring = self.plan.process.session_keyring.clone();
        record
    }

    /// Lets the container of `run` go, and says so.
    fn start(&self, made: &mut Launched) -> Outcome<Option<notify::Listening>> {
        let notify = self.notify.clone().map(Notify::listen).transpose()?;
        made.start().map_err(|error| not_started(&error))?;
        io::write_pid(self.options.pid_file.as_deref(), made.pid)?;
        match (notify, self.detached) {
            (Some(notify), true) => {
                use std::os::fd::AsFd;
                notify.wait_and_forward(made.pidfd.as_fd(), made.pid)?;
                Ok(None)
            }
            (notify, _) => Ok(notify),
        }
    }

    /// Takes everything back when a later step has failed.
    fn or_undo<T>(&self, launched: &Launched, outcome: Outcome<T>) -> Outcome<T> {
        if outcome.is_err() {
            launched.abandon();
            self.undo_launch();
        }
        outcome
    }

    fn undo_launch(&self) {
        self.undo();
        manage::poststop(self.context, &self.plan.hooks);
    }

    /// The failure that led here is the one to report.
    fn undo(&self) {
        let _ = self.cgroup.destroy();
        let _ = outside::remove(&self.context.store, &self.options.id);
        let _ = self.context.store.remove(&self.options.id);
    }
}

pub(super) fn not_started(error: &LaunchError) -> Failure {
    Failure::new(format!("unable to start container process: {error}"))
}

fn rootfs(spec: &Spec, bundle: &Path) -> Outcome<PathBuf> {
    let root = spec.root().as_ref();
    let path = root.map(|root| root.path());
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let path = path.ok_or_else(|| Failure::new(format!("{CONFIG}: root.path: it is missing")))?;
    let path = bundle.join(path);
    let found = path
        .canonicalize()
        .attempt(format_args!("{CONFIG}: root.path: {}", path.display()))?;
    match found.is_dir() {
        true => Ok(found),
        false => Err(Failure::new(format!(
            "{CONFIG}: root.path: {} is not a directory",
            path.display()
        ))),
    }
}

fn compile(
    spec: &Spec,
    id: &str,
    bundle: &Path,
    rootfs: &Path,
    cgroup: &Cgroup,
) -> Outcome<LaunchPlan> {
    let context = CompileContext {
        id: id.to_owned(),
        bundle: bundle.to_string_lossy().into_owned(),
        rootfs: RootFs::Dir(rootfs.to_string_lossy().into_owned()),
        idmapped_rootfs: false,
        cgroup: cgroup.join(),
        cgroup_v2: cgroup.manager.is_v2(),
        seccomp: seccomp(spec)?,
        sandbox_binds: Vec::new(),
        does_the_rest: true,
    };
    match with_absolute_sources(spec, bundle) {
        Some(spec) => oci::compile(&spec, &context),
        None => oci::compile(spec, &context),
    }
    .attempt(CONFIG)
}

/// Sources of binds that are relative are beneath the bundle.
fn with_absolute_sources(spec: &Spec, bundle: &Path) -> Option<Spec> {
    let relative = |mount: &oci_spec::runtime::Mount| {
        let options = mount.options().iter().flatten();
        let bind = options.into_iter().any(|o| o == "bind" || o == "rbind");
        let source = mount.source().as_ref().filter(|path| path.is_relative());
        source
            .filter(|path| !path.as_os_str().is_empty())
            .filter(|_| bind || mount.typ().as_deref() == Some("bind"))
            .map(|path| bundle.join(path))
    };
    let mounts = spec.mounts().as_ref()?;
    if !mounts.iter().any(|mount| relative(mount).is_some()) {
        return None;
    }
    let mut mounts = mounts.clone();
    for mount in &mut mounts {
        if let Some(source) = relative(mount) {
            mount.set_source(Some(source));
        }
    }
    let mut spec = spec.clone();
    spec.set_mounts(Some(mounts));
    Some(spec)
}

fn seccomp(spec: &Spec) -> Outcome<Option<shim::plan::Seccomp>> {
    let profile = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let program = profile.map(spec::oci_seccomp).transpose();
    program.attempt(format_args!("{CONFIG}: linux.seccomp"))
}

/// Opened for both directions, so that neither side ever waits for the other to open.
fn make_fifo(path: &Path) -> Outcome<OwnedFd> {
    let attempt = || format!("creating {}", path.display());
    let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
    nix::unistd::mkfifo(path, mode).attempt(attempt())?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path);
    file.map(OwnedFd::from).attempt(attempt())
}
