// SPDX-License-Identifier: Apache-2.0
//! `create` and `run`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use shim::launch::{self, Gate, LaunchError, Launched, Stdio};
use shim::plan::{Hooks, RootFs};
use shim::sys;

use super::args::Create;
use super::store::{self, Store};
use super::{Attempt, Failure, Outcome, manage, supervise};
use crate::cgroup::{self, CgroupPath, Manager};
use crate::oci::{self, CompileContext, spec};

pub(super) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

pub(super) fn create(store: &Store, options: &Create) -> Outcome {
    if options.detach {
        return Err(Failure::new("--detach belongs to run"));
    }
    let fifo = |id: &str| make_fifo(&store.fifo(id)).map(Gate::Fifo);
    make(store, options, fifo).map(|_| ExitCode::SUCCESS)
}

pub(super) fn run(store: &Store, options: &Create) -> Outcome {
    let mut launched = make(store, options, |_| Ok(Gate::Open))?;
    if let Err(error) = launched.executed() {
        launched.abandon();
        manage::delete(store, &options.id, true)?;
        return Err(not_started(&error));
    }
    if options.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let code = supervise::until_exit(&launched)?;
    manage::delete(store, &options.id, true)?;
    Ok(ExitCode::from(code))
}

/// Makes the container; on failure nothing of it is left.
fn make(
    store: &Store,
    options: &Create,
    gate: impl Fn(&str) -> Outcome<Gate>,
) -> Outcome<Launched> {
    if options.preserve_fds != 0 {
        return Err(Failure::new("--preserve-fds is not supported"));
    }
    let bundle = options
        .bundle
        .canonicalize()
        .attempt(format_args!("opening bundle {}", options.bundle.display()))?;
    let (spec, text) = store::read_spec(&bundle.join("config.json"))?;
    check_terminal(&spec, options)?;
    let manager = cgroup::detect(Path::new(CGROUP_ROOT)).attempt("looking for cgroups")?;
    let cgroup = cgroup_path(&spec, &options.id)?;
    store.reserve(&options.id)?;
    let job = Job {
        store,
        options,
        spec: &spec,
        bundle,
        manager,
        cgroup,
    };
    let mut hooks = Hooks::default();
    let made = store
        .save_config(&options.id, &text)
        .and_then(|()| gate(&options.id))
        .and_then(|gate| job.launch(gate, &mut hooks));
    if made.is_err() {
        // The first failure is the one to report.
        let _ = job.manager.kill(&job.cgroup);
        let _ = job.manager.remove(&job.cgroup);
        let _ = store.remove(&options.id);
        manage::poststop(&hooks);
    }
    made
}

pub(super) fn not_started(error: &LaunchError) -> Failure {
    Failure::new(format!("unable to start container process: {error}"))
}

fn check_terminal(spec: &Spec, options: &Create) -> Outcome<()> {
    let wanted = spec.process().as_ref().and_then(|p| p.terminal()) == Some(true);
    match (wanted, &options.console_socket) {
        (true, None) => Err(Failure::new(
            "cannot allocate tty without --console-socket (process.terminal is true)",
        )),
        (false, Some(_)) => Err(Failure::new(
            "cannot use console socket if the container has no terminal (process.terminal)",
        )),
        _ => Ok(()),
    }
}

/// `linux.cgroupsPath`, or the id.
fn cgroup_path(spec: &Spec, id: &str) -> Outcome<CgroupPath> {
    let given = spec
        .linux()
        .as_ref()
        .and_then(|l| l.cgroups_path().as_ref());
    let path = given.map_or_else(|| id.to_owned(), |path| path.to_string_lossy().into_owned());
    CgroupPath::new(&path).attempt("linux.cgroupsPath")
}

struct Job<'a> {
    store: &'a Store,
    options: &'a Create,
    spec: &'a Spec,
    bundle: PathBuf,
    manager: Arc<dyn Manager>,
    cgroup: CgroupPath,
}

impl Job<'_> {
    /// `hooks` are those that are due, whether it succeeds or not.
    fn launch(&self, gate: Gate, hooks: &mut Hooks) -> Outcome<Launched> {
        let rootfs = self.rootfs()?;
        let context = CompileContext {
            id: self.options.id.clone(),
            bundle: self.bundle.to_string_lossy().into_owned(),
            rootfs: RootFs::Dir(rootfs.to_string_lossy().into_owned()),
            idmapped_rootfs: false,
            cgroup: self.manager.join(&self.cgroup),
            cgroup_v2: self.manager.is_v2(),
            seccomp: seccomp(self.spec)?,
            sandbox_binds: Vec::new(),
        };
        let plan = oci::compile(self.spec, &context).attempt("config.json")?;
        let resources = self
            .spec
            .linux()
            .as_ref()
            .and_then(|l| l.resources().clone());
        let limits = oci::limits(&resources.unwrap_or_default()).attempt("config.json")?;
        self.manager
            .create(&self.cgroup)
            .attempt("creating cgroups")?;
        self.manager
            .apply(&self.cgroup, &limits)
            .attempt("setting limits")?;
        let stdio = stdio(plan.process.terminal)?;
        hooks.clone_from(&plan.hooks);
        let mut launched =
            launch::launch(&plan, stdio, gate, None).map_err(|error| not_started(&error))?;
        let kept = self.keep(&mut launched, rootfs, plan.hooks);
        if kept.is_err() {
            launched.abandon();
        }
        kept.map(|()| launched)
    }

    fn rootfs(&self) -> Outcome<PathBuf> {
        let root = self.spec.root().as_ref();
        let path = root.map(|root| self.bundle.join(root.path()));
        let path = path.ok_or_else(|| Failure::new("config.json: root is missing"))?;
        path.canonicalize().attempt(format_args!(
            "opening the root filesystem {}",
            path.display()
        ))
    }

    /// Everything that others find the container by.
    fn keep(&self, launched: &mut Launched, rootfs: PathBuf, hooks: Hooks) -> Outcome<()> {
        if let (Some(master), Some(socket)) =
            (launched.terminal.take(), &self.options.console_socket)
        {
            send_terminal(socket, &master)?;
        }
        for note in &launched.notes {
            eprintln!("podwright oci: {note}");
        }
        let mut record = store::new_record(&self.options.id, launched.pid, self.spec);
        record.bundle = self.bundle.clone();
        record.rootfs = rootfs;
        record.hooks = hooks;
        record.cgroup = self.cgroup.as_str().to_owned();
        self.store.save(&record)?;
        match &self.options.pid_file {
            Some(path) => write_pid(path, launched.pid),
            None => Ok(()),
        }
    }
}

pub(super) fn seccomp(spec: &Spec) -> Outcome<Option<Vec<u8>>> {
    let profile = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let program = profile.map(spec::oci_seccomp).transpose();
    program.attempt("linux.seccomp")
}

/// Our own streams, or a terminal.
pub(super) fn stdio(terminal: bool) -> Outcome<Stdio> {
    if terminal {
        return Ok(Stdio::Terminal);
    }
    let copy = |number| {
        let copied = sys::dup_above_stdio(sys::stdio(number));
        copied
            .map_err(std::io::Error::from_raw_os_error)
            .attempt("copying standard streams")
    };
    Ok(Stdio::Streams([copy(0)?, copy(1)?, copy(2)?]))
}

/// Written whole: whoever waits for the file must not read half a number.
pub(super) fn write_pid(path: &Path, pid: u32) -> Outcome<()> {
    let temporary = path.with_extension(format!("{pid}.new"));
    std::fs::write(&temporary, pid.to_string())
        .and_then(|()| std::fs::rename(&temporary, path))
        .attempt(format_args!("writing {}", path.display()))
}

pub(super) fn send_terminal(socket: &Path, master: &OwnedFd) -> Outcome<()> {
    let attempt = || format!("sending the terminal to {}", socket.display());
    let stream = std::os::unix::net::UnixStream::connect(socket).attempt(attempt())?;
    sys::socket::send(stream.as_fd(), b"/dev/ptmx", &[master.as_fd()])
        .map_err(std::io::Error::from_raw_os_error)
        .attempt(attempt())
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
