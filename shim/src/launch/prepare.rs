// SPDX-License-Identifier: Apache-2.0
//! The parent's half: a plan becomes C strings and descriptors, so that the child need not allocate.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::report::LaunchError;
use crate::plan::{
    Capabilities, CgroupJoin, Executable, LaunchPlan, Mount, MountAttrs, MountKind, Namespace,
    ProcessPlan, Propagation, RootFs,
};
use crate::sys::{self, PointerArray, mounts};

/// Longest option string that mount(2) takes, less its terminator.
const MOUNT_OPTIONS_MAX: usize = 4095;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that the child needs, in the kernel's own terms.
pub(super) struct Prepared {
    pub clone_flags: u64,
    pub unified: Option<OwnedFd>,
    pub v1: Vec<OwnedFd>,
    /// Namespaces that the child joins, with their kinds (one descriptor may stand for several).
    pub namespaces: Vec<(OwnedFd, i32)>,
    /// Joined by the parent around the clone.
    pub pid_namespace: Option<OwnedFd>,
    /// After the cgroups are joined, so that its root is the container's own cgroup.
    pub new_cgroup_namespace: bool,
    pub hostname: Option<CString>,
    pub domainname: Option<CString>,
    pub sysctls: Vec<(CString, CString)>,
    pub root: Option<Root>,
    pub process: Process,
}

pub(super) struct Root {
    pub source: RootSource,
    pub readonly: bool,
    pub propagation: u64,
    pub mounts: Vec<PreparedMount>,
    pub devices: Vec<PreparedDevice>,
    pub symlinks: Vec<(Target, CString)>,
    pub masked: Vec<CString>,
    pub readonly_paths: Vec<CString>,
    pub cwd: Target,
    pub console: Option<Target>,
}

pub(super) enum RootSource {
    /// A detached mount.
    Detached(OwnedFd),
    /// An overlay to mount over `target`, with mount(2) options. The descriptors keep the layers
    /// that the options name by number.
    Overlay {
        target: CString,
        options: CString,
        _layers: Vec<OwnedFd>,
    },
}

/// A path in the container: whole, and step by step for making what is missing.
pub(super) struct Target {
    pub full: CString,
    /// (path so far, last part of it).
    pub parts: Vec<(CString, CString)>,
    pub directory: bool,
}

pub(super) struct PreparedMount {
    pub target: Target,
    pub source: MountSource,
    /// Made read-only after all mounts, so that mount points can be made in it.
    pub late_readonly: bool,
    /// proc and sysfs must be mounted on a real directory: what later steps read there has to be
    /// the kernel's.
    pub no_symlinks: bool,
}

pub(super) enum MountSource {
    Detached(OwnedFd),
    New {
        fstype: CString,
        options: Vec<(CString, Option<CString>)>,
        attributes: u64,
        propagation: u64,
    },
}

pub(super) struct PreparedDevice {
    pub parent: Target,
    pub name: CString,
    pub mode: u32,
    pub number: u64,
    pub uid: u32,
    pub gid: u32,
}

pub(super) struct Process {
    pub executable: Option<OwnedFd>,
    pub candidates: Vec<CString>,
    _args: Vec<CString>,
    _env: Vec<CString>,
    pub args: PointerArray,
    pub env: PointerArray,
    pub needs_home: bool,
    pub cwd: CString,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    pub capabilities: Capabilities,
    pub last_capability: u32,
    pub rlimits: Vec<(u32, u64, u64)>,
    pub no_new_privileges: bool,
    pub seccomp: Option<Vec<u8>>,
    pub oom_score_adj: Option<CString>,
    pub console_size: Option<(u16, u16)>,
}

type Prepare<T> = Result<T, LaunchError>;

fn text(value: &str) -> Prepare<CString> {
    CString::new(value)
        .map_err(|_| LaunchError::prepare(format!("{value:?} has a null byte"), libc::EINVAL))
}

fn texts(values: &[String]) -> Prepare<Vec<CString>> {
    values.iter().map(|value| text(value)).collect()
}

fn open(path: &str, flags: i32) -> Prepare<OwnedFd> {
    mounts::openat(mounts::cwd(), text(path)?.as_c_str(), flags, 0)
        .map_err(|errno| LaunchError::prepare(format!("opening {path:?}"), errno))
}

pub(super) fn container(
    plan: &LaunchPlan,
    sandbox: Option<BorrowedFd<'_>>,
) -> Prepare<(Prepared, Vec<String>)> {
    let (process, notes) = process(&plan.process)?;
    let (unified, v1) = cgroups(&plan.cgroup)?;
    let spaces = &plan.namespaces;
    let mut prepared = Prepared {
        clone_flags: libc::CLONE_NEWNS as u64,
        unified,
        v1,
        namespaces: Vec::new(),
        pid_namespace: None,
        new_cgroup_namespace: spaces.cgroup == Namespace::New,
        hostname: plan.hostname.as_deref().map(text).transpose()?,
        domainname: plan.domainname.as_deref().map(text).transpose()?,
        sysctls: sysctls(&plan.sysctls)?,
        root: Some(root(plan, sandbox)?),
        process,
    };
    for (space, kind) in [
        (&spaces.net, libc::CLONE_NEWNET),
        (&spaces.ipc, libc::CLONE_NEWIPC),
        (&spaces.uts, libc::CLONE_NEWUTS),
    ] {
        match space {
            Namespace::Host => {}
            Namespace::New => prepared.clone_flags |= kind as u64,
            Namespace::Join(path) => prepared
                .namespaces
                .push((open(path, libc::O_RDONLY)?, kind)),
        }
    }
    match &spaces.pid {
        Namespace::Host => {}
        Namespace::New => prepared.clone_flags |= libc::CLONE_NEWPID as u64,
        Namespace::Join(path) => prepared.pid_namespace = Some(open(path, libc::O_RDONLY)?),
    }
    if let Namespace::Join(path) = &spaces.cgroup {
        let file = open(path, libc::O_RDONLY)?;
        prepared.namespaces.push((file, libc::CLONE_NEWCGROUP));
    }
    Ok((prepared, notes))
}

pub(super) fn exec(
    target: BorrowedFd<'_>,
    cgroup: &CgroupJoin,
    plan: &ProcessPlan,
) -> Prepare<(Prepared, Vec<String>)> {
    let (process, notes) = process(plan)?;
    let (unified, v1) = cgroups(cgroup)?;
    let copy = || {
        sys::dup_above_stdio(target)
            .map_err(|errno| LaunchError::prepare("copying the container's descriptor", errno))
    };
    let all = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let prepared = Prepared {
        clone_flags: 0,
        unified,
        v1,
        namespaces: vec![(copy()?, all)],
        pid_namespace: Some(copy()?),
        new_cgroup_namespace: false,
        hostname: None,
        domainname: None,
        sysctls: Vec::new(),
        root: None,
        process,
    };
    Ok((prepared, notes))
}

fn cgroups(join: &CgroupJoin) -> Prepare<(Option<OwnedFd>, Vec<OwnedFd>)> {
    let unified = join
        .unified
        .as_deref()
        .map(|dir| open(dir, libc::O_DIRECTORY | libc::O_RDONLY))
        .transpose()?;
    let v1 = join
        .v1
        .iter()
        .map(|dir| open(&format!("{dir}/cgroup.procs"), libc::O_WRONLY))
        .collect::<Prepare<_>>()?;
    Ok((unified, v1))
}

fn sysctls(list: &[(String, String)]) -> Prepare<Vec<(CString, CString)>> {
    list.iter()
        .map(|(path, value)| Ok((text(&format!("/proc/sys/{path}"))?, text(value)?)))
        .collect()
}

fn root(plan: &LaunchPlan, sandbox: Option<BorrowedFd<'_>>) -> Prepare<Root> {
    let mounts = plan
        .mounts
        .iter()
        .map(|mount| prepare_mount(mount, sandbox))
        .collect::<Prepare<_>>()?;
    let devices = plan.devices.iter().map(device).collect::<Prepare<_>>()?;
    let link = |(path, to): &(String, String)| Ok((target(path, false)?, text(to)?));
    Ok(Root {
        source: root_source(&plan.rootfs)?,
        readonly: plan.rootfs_readonly || plan.rootfs == RootFs::Empty,
        propagation: plan.rootfs_propagation.map_or(0, propagation_flag),
        mounts,
        devices,
        symlinks: plan.symlinks.iter().map(link).collect::<Prepare<_>>()?,
        masked: texts(&plan.masked_paths)?,
        readonly_paths: texts(&plan.readonly_paths)?,
        cwd: target(&plan.process.cwd, true)?,
        console: plan
            .process
            .terminal
            .then(|| target("/dev/console", false))
            .transpose()?,
    })
}

fn root_source(rootfs: &RootFs) -> Prepare<RootSource> {
    match rootfs {
        RootFs::Empty => new_tmpfs().map(RootSource::Detached),
        RootFs::Dir(path) => clone_mount(path, true, MountAttrs::default(), Propagation::Private)
            .map(RootSource::Detached),
        RootFs::Overlay { lower, upper, work } => overlay(lower, upper, work),
    }
}

fn new_tmpfs() -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare("creating an empty root", errno);
    let context = mounts::fsopen(c"tmpfs").map_err(attempt)?;
    for (key, value) in [(c"mode", c"755"), (c"size", c"64k"), (c"nr_inodes", c"64")] {
        mounts::fsconfig(context.as_fd(), key, Some(value)).map_err(attempt)?;
    }
    let attributes = mounts::ATTR_NOSUID | mounts::ATTR_NODEV;
    mounts::fsmount(context.as_fd(), attributes).map_err(attempt)
}

/// The options of an overlay. Layers are named by path, or by descriptor when paths are too long
/// for mount(2). `volatile` (kernel 5.10) spares syncing a layer that no one reads after a crash.
fn overlay(lower: &[String], upper: &str, work: &str) -> Prepare<RootSource> {
    for path in lower.iter().map(String::as_str).chain([upper, work]) {
        if path.contains([',', ':', '\\']) {
            let what = format!("overlay directory {path:?} has a character of the option syntax");
            return Err(LaunchError::prepare(what, libc::EINVAL));
        }
    }
    let options =
        |layers: &str| format!("lowerdir={layers},upperdir={upper},workdir={work},volatile");
    let mut words = options(&lower.join(":"));
    let mut layers = Vec::new();
    if words.len() > MOUNT_OPTIONS_MAX {
        for path in lower {
            layers.push(open(path, libc::O_PATH | libc::O_DIRECTORY)?);
        }
        let names: Vec<String> = layers.iter().map(descriptor_path).collect();
        words = options(&names.join(":"));
    }
    if words.len() > MOUNT_OPTIONS_MAX {
        let what = format!("an overlay of {} layers", lower.len());
        return Err(LaunchError::prepare(what, libc::E2BIG));
    }
    Ok(RootSource::Overlay {
        target: text(upper)?,
        options: text(&words)?,
        _layers: layers,
    })
}

fn descriptor_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A detached copy of a host mount, with its attributes and propagation set.
fn clone_mount(
    path: &str,
    recursive: bool,
    attrs: MountAttrs,
    propagation: Propagation,
) -> Prepare<OwnedFd> {
    let tree = mounts::open_tree(mounts::cwd(), text(path)?.as_c_str(), recursive)
        .map_err(|errno| LaunchError::prepare(format!("binding {path:?}"), errno))?;
    set_up(&tree, recursive, attrs, propagation)
        .map_err(|errno| LaunchError::prepare(format!("setting attributes of {path:?}"), errno))?;
    Ok(tree)
}

fn set_up(
    tree: &OwnedFd,
    recursive: bool,
    attrs: MountAttrs,
    propagation: Propagation,
) -> sys::Sys<()> {
    let flag = propagation_flag(propagation);
    mounts::set_attributes(tree.as_fd(), 0, 0, flag, recursive)?;
    let set = attributes(attrs);
    if set != 0 {
        mounts::set_attributes(tree.as_fd(), set, atime_mask(attrs), 0, false)?;
    }
    if attrs.recursive_readonly {
        mounts::set_attributes(tree.as_fd(), mounts::ATTR_RDONLY, 0, 0, true)?;
    }
    Ok(())
}

fn attributes(attrs: MountAttrs) -> u64 {
    [
        (attrs.readonly, mounts::ATTR_RDONLY),
        (attrs.nosuid, mounts::ATTR_NOSUID),
        (attrs.nodev, mounts::ATTR_NODEV),
        (attrs.noexec, mounts::ATTR_NOEXEC),
        (attrs.nosymfollow, mounts::ATTR_NOSYMFOLLOW),
        (attrs.noatime, mounts::ATTR_NOATIME),
        (attrs.strictatime, mounts::ATTR_STRICTATIME),
        (attrs.nodiratime, mounts::ATTR_NODIRATIME),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(0, |all, (_, bit)| all | bit)
}

/// mount_setattr(2) wants the whole access-time field cleared before one of its values is set.
fn atime_mask(attrs: MountAttrs) -> u64 {
    if attrs.noatime || attrs.strictatime {
        mounts::ATTR_ATIME
    } else {
        0
    }
}

fn propagation_flag(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    }
}

fn prepare_mount(mount: &Mount, sandbox: Option<BorrowedFd<'_>>) -> Prepare<PreparedMount> {
    let propagation = mount.propagation.unwrap_or(Propagation::Private);
    let bound = |tree: OwnedFd| -> Prepare<PreparedMount> {
        let stat = mounts::fstat(tree.as_fd())
            .map_err(|errno| LaunchError::prepare("looking at a bind source", errno))?;
        Ok(PreparedMount {
            target: target(
                &mount.destination,
                stat.st_mode & libc::S_IFMT == libc::S_IFDIR,
            )?,
            source: MountSource::Detached(tree),
            late_readonly: false,
            no_symlinks: false,
        })
    };
    match &mount.kind {
        MountKind::Bind { source, recursive } => {
            clone_mount(source, *recursive, mount.attrs, propagation)
                .map_err(|error| at_destination(error, mount))
                .and_then(bound)
        }
        MountKind::SandboxBind { source } => {
            bound(sandbox_mount(source, mount.attrs, propagation, sandbox)?)
        }
        MountKind::Filesystem {
            fstype,
            source,
            options,
        } => new_filesystem(mount, (fstype, source), options, propagation),
    }
}

fn at_destination(error: LaunchError, mount: &Mount) -> LaunchError {
    LaunchError {
        message: format!(
            "error mounting to rootfs at {:?}: {}",
            mount.destination, error.message
        ),
        ..error
    }
}

fn new_filesystem(
    mount: &Mount,
    (fstype, source): (&str, &str),
    options: &[String],
    propagation: Propagation,
) -> Prepare<PreparedMount> {
    let late_readonly = fstype == "tmpfs" && mount.attrs.readonly;
    let attrs = MountAttrs {
        readonly: mount.attrs.readonly && !late_readonly,
        ..mount.attrs
    };
    let source = format!("source={source}");
    let options = [source]
        .iter()
        .chain(options)
        .map(|option| match option.split_once('=') {
            Some((key, value)) => Ok((text(key)?, Some(text(value)?))),
            None => Ok((text(option)?, None)),
        })
        .collect::<Prepare<_>>()?;
    Ok(PreparedMount {
        target: target(&mount.destination, true)?,
        source: MountSource::New {
            fstype: text(fstype)?,
            options,
            attributes: attributes(attrs),
            propagation: propagation_flag(propagation),
        },
        late_readonly,
        no_symlinks: matches!(fstype, "proc" | "sysfs"),
    })
}

/// A mount of the sandbox process's namespace. Only a member of a namespace may copy its mounts, so
/// this process goes there and comes back; it has one thread, and restores its root and directory.
fn sandbox_mount(
    source: &str,
    attrs: MountAttrs,
    propagation: Propagation,
    sandbox: Option<BorrowedFd<'_>>,
) -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare(format!("binding the sandbox's {source:?}"), errno);
    let sandbox = sandbox.ok_or_else(|| attempt(libc::ESRCH))?;
    let path = text(source)?;
    let own = open("/proc/self/ns/mnt", libc::O_RDONLY)?;
    let root = open("/", libc::O_PATH | libc::O_DIRECTORY)?;
    let here = open(".", libc::O_PATH | libc::O_DIRECTORY)?;
    sys::setns(sandbox, libc::CLONE_NEWNS).map_err(attempt)?;
    let tree = mounts::open_tree(mounts::cwd(), &path, true);
    let back = sys::setns(own.as_fd(), libc::CLONE_NEWNS)
        .and_then(|()| mounts::fchdir(root.as_fd()))
        .and_then(|()| mounts::chroot(c"."))
        .and_then(|()| mounts::fchdir(here.as_fd()));
    back.map_err(|errno| LaunchError::prepare("returning to the own mount namespace", errno))?;
    let tree = tree.map_err(attempt)?;
    set_up(&tree, true, attrs, propagation).map_err(attempt)?;
    Ok(tree)
}

/// Splits a path of the container. `.` and empty parts vanish, `..` goes up but never above `/`.
pub(super) fn target(path: &str, directory: bool) -> Prepare<Target> {
    let mut names: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let mut so_far = String::new();
    let mut parts = Vec::with_capacity(names.len());
    for name in names {
        so_far.push('/');
        so_far.push_str(name);
        parts.push((text(&so_far)?, text(name)?));
    }
    let full = if so_far.is_empty() { "/" } else { &so_far };
    Ok(Target {
        full: text(full)?,
        parts,
        directory,
    })
}

fn device(device: &crate::plan::Device) -> Prepare<PreparedDevice> {
    use crate::plan::DeviceKind;
    let (parent, name) = device.path.rsplit_once('/').unwrap_or(("", &device.path));
    let kind = match device.kind {
        DeviceKind::Char => libc::S_IFCHR,
        DeviceKind::Block => libc::S_IFBLK,
        DeviceKind::Fifo => libc::S_IFIFO,
    };
    Ok(PreparedDevice {
        parent: target(parent, true)?,
        name: text(name)?,
        mode: kind | (device.mode & 0o7777),
        number: libc::makedev(device.major, device.minor),
        uid: device.uid,
        gid: device.gid,
    })
}

fn process(plan: &ProcessPlan) -> Prepare<(Process, Vec<String>)> {
    let mut notes = Vec::new();
    let (args, env) = (texts(&plan.args)?, texts(&plan.env)?);
    let executable = match &plan.executable {
        Executable::Args => None,
        Executable::HostFile(path) => Some(readonly_file(path)?),
    };
    let own = sys::permitted_capabilities()
        .map_err(|errno| LaunchError::prepare("reading own capabilities", errno))?;
    let process = Process {
        executable,
        candidates: candidates(plan)?,
        args: PointerArray::new(&args, 0),
        env: PointerArray::new(&env, 1),
        _args: args,
        _env: env,
        needs_home: !plan.env.iter().any(|entry| entry.starts_with("HOME=")),
        cwd: text(&plan.cwd)?,
        uid: plan.user.uid,
        gid: plan.user.gid,
        groups: plan.user.additional_gids.clone(),
        umask: plan.user.umask.unwrap_or(0o022),
        capabilities: clamp_capabilities(plan.capabilities, own, &mut notes),
        last_capability: last_capability(),
        rlimits: clamp_rlimits(plan, own, &mut notes)?,
        no_new_privileges: plan.no_new_privileges,
        seccomp: plan.seccomp.clone(),
        oom_score_adj: clamp_oom_score(plan.oom_score_adj, own, &mut notes)?,
        console_size: plan.console_size,
    };
    Ok((process, notes))
}

/// Where `args[0]` may be, in the order of PATH.
fn candidates(plan: &ProcessPlan) -> Prepare<Vec<CString>> {
    let name = plan
        .args
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| LaunchError::prepare("process has no arguments", libc::EINVAL))?;
    if name.contains('/') {
        return Ok(vec![text(name)?]);
    }
    let path = plan.env.iter().rev().find_map(|e| e.strip_prefix("PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        .filter(|dir| dir.starts_with('/'))
        .map(|dir| text(&format!("{}/{name}", dir.trim_end_matches('/'))))
        .collect()
}

const CAP_SYS_RESOURCE: u64 = 1 << 24;

fn last_capability() -> u32 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(40)
}

/// Grants no more than we hold ourselves; the kernel would refuse the whole set.
fn clamp_capabilities(mut wanted: Capabilities, own: u64, notes: &mut Vec<String>) -> Capabilities {
    let beyond = (wanted.bounding | wanted.permitted) & !own;
    if beyond != 0 {
        notes.push(format!(
            "capabilities {beyond:#x} are not ours to grant and were left out"
        ));
    }
    for set in [
        &mut wanted.bounding,
        &mut wanted.effective,
        &mut wanted.permitted,
        &mut wanted.inheritable,
        &mut wanted.ambient,
    ] {
        *set &= own;
    }
    wanted
}

fn clamp_rlimits(
    plan: &ProcessPlan,
    own: u64,
    notes: &mut Vec<String>,
) -> Prepare<Vec<(u32, u64, u64)>> {
    let mut limits = Vec::with_capacity(plan.rlimits.len());
    for limit in &plan.rlimits {
        let (mut soft, mut hard) = (limit.soft, limit.hard);
        let (_, ours) = sys::rlimit(limit.resource)
            .map_err(|errno| LaunchError::prepare("reading own resource limits", errno))?;
        if hard > ours && own & CAP_SYS_RESOURCE == 0 {
            notes.push(format!(
                "resource limit {} was lowered from {hard} to {ours}: CAP_SYS_RESOURCE is missing",
                limit.resource
            ));
            hard = ours;
            soft = soft.min(ours);
        }
        limits.push((limit.resource, soft, hard));
    }
    Ok(limits)
}

/// Without CAP_SYS_RESOURCE the score can only be raised.
fn clamp_oom_score(
    wanted: Option<i32>,
    own: u64,
    notes: &mut Vec<String>,
) -> Prepare<Option<CString>> {
    let Some(mut score) = wanted else {
        return Ok(None);
    };
    if own & CAP_SYS_RESOURCE == 0 {
        let floor = std::fs::read_to_string("/proc/self/oom_score_adj")
            .ok()
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0);
        if score < floor {
            notes.push(format!(
                "oom_score_adj was raised from {score} to {floor}: CAP_SYS_RESOURCE is missing"
            ));
            score = floor;
        }
    }
    text(&score.to_string()).map(Some)
}

/// Opens an executable of the host through a detached read-only mount of its directory.
///
/// Whoever finds the file under /proc/<pid>/exe gets it on that mount, so it cannot be opened for
/// writing again, and the mount is in nobody's namespace, so it cannot be remounted.
///
/// # Errors
/// When the file cannot be opened.
pub fn readonly_file(path: &str) -> Result<OwnedFd, LaunchError> {
    let attempt = |errno| LaunchError::prepare(format!("opening {path:?} read-only"), errno);
    let (dir, name) = path.rsplit_once('/').ok_or_else(|| attempt(libc::EINVAL))?;
    let dir = text(if dir.is_empty() { "/" } else { dir })?;
    let tree = mounts::open_tree(mounts::cwd(), &dir, false).map_err(attempt)?;
    mounts::set_attributes(
        tree.as_fd(),
        mounts::ATTR_RDONLY,
        0,
        libc::MS_PRIVATE,
        false,
    )
    .map_err(attempt)?;
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW;
    mounts::openat(tree.as_fd(), text(name)?.as_c_str(), flags, 0).map_err(attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> Vec<String> {
        let target = target(path, true).expect("no null byte");
        let mut all = vec![target.full.into_string().expect("utf-8")];
        all.extend(
            target
                .parts
                .into_iter()
                .map(|(_, name)| name.into_string().expect("utf-8")),
        );
        all
    }

    #[test]
    fn targets_are_cleaned_and_stay_beneath_the_root() {
        assert_eq!(parts("/a//b/./c"), ["/a/b/c", "a", "b", "c"]);
        assert_eq!(parts("/../../etc/../x"), ["/x", "x"]);
        assert_eq!(parts("/"), ["/"]);
    }

    #[test]
    fn candidates_follow_path_and_skip_relative_directories() {
        let plan = ProcessPlan {
            args: vec!["sh".into()],
            env: vec!["PATH=/bin:.:/usr/bin/".into()],
            ..ProcessPlan::default()
        };
        let found = candidates(&plan).expect("has arguments");
        assert_eq!(found, [c"/bin/sh".to_owned(), c"/usr/bin/sh".to_owned()]);
    }

    #[test]
    fn capabilities_that_we_lack_are_left_out_and_noted() {
        let mut notes = Vec::new();
        let wanted = Capabilities {
            bounding: 0b111,
            ..Capabilities::default()
        };
        assert_eq!(
            clamp_capabilities(wanted, 0b101, &mut notes).bounding,
            0b101
        );
        assert_eq!(notes.len(), 1);
    }
}
