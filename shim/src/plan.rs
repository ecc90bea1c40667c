// SPDX-License-Identifier: Apache-2.0
//! The launch plan: everything that is needed to start one container or one process in it.
//!
//! A plan is plain data. It holds no decisions: whoever makes one (`cri::oci::compile`) has already
//! parsed, checked and resolved. It travels to the shim, which may be of an older build, so the order
//! of fields and variants is the wire format. New fields and variants go to the end, and the zero
//! value of a new field means: as before (see [`crate::format`]).

use serde::{Deserialize, Serialize};

/// A container to start: its namespaces, root filesystem, mounts and first process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchPlan {
    /// Which namespaces are new, joined or the host's.
    pub namespaces: Namespaces,
    /// The cgroups that the process is in before it does anything else.
    pub cgroup: CgroupJoin,
    /// Where the root filesystem comes from.
    pub rootfs: RootFs,
    /// Shows the root filesystem (all layers of an overlay) with other ids than it has on disk.
    pub rootfs_idmap: Option<IdMappings>,
    /// Makes the root read-only once all mount points exist.
    pub rootfs_readonly: bool,
    /// Propagation of the container's root mount. It is also what binds without a propagation of
    /// their own start from; none means: what the host mounts arrives in binds, nothing goes back.
    pub rootfs_propagation: Option<PropagationChange>,
    /// SELinux label of the root and of new filesystems (`context=` of mount(8)).
    pub mount_label: Option<String>,
    /// Moves the root over the old one and enters it by chroot, instead of pivot_root(2).
    pub no_pivot: bool,
    /// Mounts in the order in which they are made.
    pub mounts: Vec<Mount>,
    /// Device nodes to make, by path in the container.
    pub devices: Vec<Device>,
    /// Symbolic links to make: (path in the container, target).
    pub symlinks: Vec<(String, String)>,
    /// Paths hidden from the container: files by /dev/null, directories by an empty tmpfs.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// Host name to set; needs a new UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name to set; needs a new UTS namespace.
    pub domainname: Option<String>,
    /// Kernel parameters: (path below /proc/sys, value).
    pub sysctls: Vec<(String, String)>,
    /// The first process.
    pub process: ProcessPlan,
    pub hooks: Hooks,
    /// Another runtime makes the container. Of this plan it has the root filesystem, the mounts, the
    /// cgroup and the pid namespace; the rest is in its bundle.
    pub external: Option<External>,
}

/// An OCI runtime that is spoken to by runc's command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// The absolute path of its program, and its global flags.
    pub command: Vec<String>,
    /// The directory with the container's config.json. The root filesystem is shown to the runtime
    /// at `rootfs` in it, and destinations of mounts are paths in it, unless there is a `place`.
    pub bundle: String,
    /// The container's name for the runtime.
    pub id: String,
    /// The file that its errors are written to, as one of the flags says.
    pub log: String,
    /// The directory that root and mounts are shown in instead: one that the ids of the container's
    /// user namespace may pass through. With it the root and binds may be id-mapped, and layers merged.
    pub place: Option<String>,
}

/// Programs to run at fixed points of the container's life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// The container's state as a JSON object that is not empty, without `status` and `pid`.
    pub state: String,
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// One hook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute: of the host, for `start_container` in the container.
    pub path: String,
    /// With the program's name; the path alone when there are none.
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// It is killed after this time; without, it may take as long as it likes.
    pub timeout_secs: Option<u32>,
}

/// The namespaces of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Owns the new ones among the others. The ids of `process.user` are ids in it.
    pub user: UserNamespace,
    pub pid: Namespace,
    pub net: Namespace,
    pub ipc: Namespace,
    pub uts: Namespace,
    pub cgroup: Namespace,
    pub time: Namespace,
    /// Of the clocks of a new time namespace.
    pub time_offsets: Vec<TimeOffset>,
    /// The mount namespace that becomes the container's, by path; none means a new one. The root (a
    /// directory) and the sources of binds are then what is at these paths there.
    pub mount: Option<String>,
}

/// Where the user namespace comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserNamespace {
    /// The one that the shim runs in.
    #[default]
    Host,
    /// A new one with these ids. Id 0 of the container must be among them.
    New(IdMappings),
    /// The one behind this file, for example `/proc/<pid>/ns/user` of the pod's sandbox process.
    /// Its ids must be these, where any are given.
    Join { path: String, ids: IdMappings },
}

/// How far a clock of a time namespace is ahead of the host's (time_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    pub clock: Clock,
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Clock {
    Monotonic,
    Boottime,
}

/// Where one namespace comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// The one that the shim runs in.
    #[default]
    Host,
    /// A new one.
    New,
    /// The one behind this file, for example `/proc/<pid>/ns/ipc` or a bound netns file.
    Join(String),
}

/// The cgroup directories to join. Made by `cri::cgroup`, which also knows the limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupJoin {
    /// Absolute directory in the cgroup v2 tree (also used in hybrid mode), joined by clone3.
    pub unified: Option<String>,
    /// Absolute directories in cgroup v1 trees, joined by writing `tasks`; or in the unified tree,
    /// joined by writing `cgroup.procs`.
    pub v1: Vec<String>,
    /// The file that counts OOM kills in a line `oom_kill N`: memory.events or memory.oom_control.
    pub oom_file: Option<String>,
}

/// Where the root filesystem comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootFs {
    /// An empty read-only tmpfs: what a pause process needs.
    #[default]
    Empty,
    /// A directory, bound recursively.
    Dir(String),
    /// An overlay, mounted in the container's mount namespace only. `lower` is topmost first.
    Overlay {
        lower: Vec<String>,
        upper: String,
        work: String,
    },
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container; resolved beneath its root, made when missing.
    pub destination: String,
    pub kind: MountKind,
    pub attrs: MountAttrs,
    /// Applied after `attrs`, to the whole tree of a bind (`rro`, `rnosuid`).
    pub recursive_attrs: MountAttrs,
    /// Changed in this order.
    pub propagation: Vec<PropagationChange>,
    /// Shows a bind's files with other ids than they have on disk.
    pub idmap: Option<MountIdmap>,
}

/// One line of a uid_map or gid_map (user_namespaces(7)): `size` ids from `container` on are the
/// ids from `host` on. For an id-mapped mount, the ids on disk take the container's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdMapping {
    pub container: u32,
    pub host: u32,
    pub size: u32,
}

impl IdMapping {
    /// The host's id for an id of the container.
    #[must_use]
    pub fn host_id(mappings: &[IdMapping], id: u32) -> Option<u32> {
        mappings.iter().find_map(|range| {
            let offset = id.checked_sub(range.container)?;
            (offset < range.size).then(|| range.host.checked_add(offset))?
        })
    }
}

/// Both maps of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    pub uid: Vec<IdMapping>,
    pub gid: Vec<IdMapping>,
}

/// How a bind mount is id-mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountIdmap {
    /// None at all: those of the container's user namespace.
    pub mappings: IdMappings,
    /// Maps the mounts below as well.
    pub recursive: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of the host.
    Bind { source: String, recursive: bool },
    /// A file or directory of the container's own root, with the mounts made before this one.
    OwnBind { source: String, recursive: bool },
    /// A directory in the mount namespace of the pod's sandbox process, for example `/dev/shm`.
    SandboxBind { source: String },
    /// A new filesystem: proc, sysfs, tmpfs, devpts, mqueue, cgroup2, overlay and so on.
    Filesystem {
        fstype: String,
        source: String,
        /// Filesystem options: `key=value`, or a key alone for a flag.
        options: Vec<String>,
        /// Copies what is at the destination into the new filesystem (`tmpcopyup`).
        copy_up: bool,
        /// A directory to bind when the kernel refuses the filesystem (cgroup2 in a user namespace
        /// whose cgroup namespace is another's).
        fallback: Option<String>,
    },
    /// Only the attributes and propagation of the mount that is at the destination.
    Remount,
    /// Directories of the host merged by overlay, topmost first, without a place to write: two at
    /// least. The mount's idmap goes for each of them.
    Layers { lower: Vec<String> },
}

/// A change of mount attributes: bits of mount_setattr(2), `sys::mounts::ATTR_*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAttrs {
    pub set: u64,
    pub clear: u64,
}

impl MountAttrs {
    /// Only sets.
    #[must_use]
    pub const fn setting(bits: u64) -> MountAttrs {
        MountAttrs {
            set: bits,
            clear: 0,
        }
    }

    /// Both changes, `later` second.
    #[must_use]
    pub const fn then(self, later: MountAttrs) -> MountAttrs {
        MountAttrs {
            set: self.set & !later.clear | later.set,
            clear: (self.clear & !later.set) | later.clear,
        }
    }
}

/// One change of propagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PropagationChange {
    pub to: Propagation,
    /// Of all mounts below as well.
    pub recursive: bool,
}

/// Mount propagation (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
    Unbindable,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub path: String,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    /// Permission bits only.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    Char,
    Block,
    Fifo,
}

/// One process: the first of a container, or one that is executed in it later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    pub executable: Executable,
    pub args: Vec<String>,
    /// `KEY=value`. HOME is added from the container's /etc/passwd when it is missing.
    pub env: Vec<String>,
    /// Absolute path in the container; made when missing (for a first process only).
    pub cwd: String,
    pub user: User,
    pub capabilities: Capabilities,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub seccomp: Option<Seccomp>,
    pub oom_score_adj: Option<i32>,
    /// Gives the process a pseudo terminal as controlling terminal and stdio.
    pub terminal: bool,
    /// Initial (columns, rows).
    pub console_size: Option<(u16, u16)>,
    /// Name of a session keyring of its own, joined when it exists; none keeps the caller's.
    pub session_keyring: Option<String>,
    /// How many descriptors after the three streams stay open. Never on the wire: a shim's own
    /// descriptors have these numbers.
    #[serde(skip)]
    pub preserved_fds: u32,
    /// The AppArmor profile that the program runs under.
    pub apparmor_profile: Option<String>,
    /// The SELinux label that the program, and its session keyring, get.
    pub selinux_label: Option<String>,
    pub scheduler: Option<Scheduler>,
    /// The class in the upper three bits, the level in the lower thirteen (ioprio_set(2)).
    pub io_priority: Option<u16>,
    /// Processors to run on; only for a process that is executed in a container.
    pub exec_affinity: ExecAffinity,
    /// The execution domain (personality(2)).
    pub personality: Option<u32>,
    pub memory_policy: Option<MemoryPolicy>,
    /// A command of another runtime (its program's absolute path first) that does all of this; of
    /// the plan it leaves the terminal.
    pub external: Option<Vec<String>>,
}

/// A filter of system calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    /// A compiled BPF program: an array of `struct sock_filter` in host byte order.
    pub program: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_* of seccomp(2).
    pub flags: u32,
    /// Who decides about the calls that the filter leaves open.
    pub listener: Option<SeccompListener>,
}

/// The agent that gets a filter's notify descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompListener {
    /// Its socket.
    pub path: String,
    /// What it is told of the process (ContainerProcessState of the OCI specification), as a JSON
    /// object that is not empty, without `pid` and `state`.
    pub process: String,
    /// The container's state, as a JSON object that is not empty, without `status` and `pid`.
    pub state: String,
}

/// A scheduling policy (sched_setattr(2)); what a policy does not use is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// Nanoseconds.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Processors before and after the container's cgroup is joined; bit n is processor n. An empty
/// mask changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecAffinity {
    pub before: Vec<u64>,
    pub after: Vec<u64>,
}

/// From which memory nodes memory comes (set_mempolicy(2)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// Mode and mode flags.
    pub mode: u32,
    /// Bit n is node n.
    pub nodes: Vec<u64>,
}

/// Which file is executed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Executable {
    /// `args[0]`, looked up in the PATH of `env` inside the container.
    #[default]
    Args,
    /// A file of the host, opened by the shim through a read-only mount, so that no process that
    /// finds it under /proc/<pid>/exe can write to it.
    HostFile(String),
}

/// Who the process is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// 0022 when none is given.
    pub umask: Option<u32>,
}

/// The five capability sets, one bit per capability number (capabilities(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// One resource limit; `resource` is the RLIMIT_ number of getrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// A path of a container from its root on, without asking the file system: `.` and empty parts
/// vanish, `..` goes up but never above `/`.
pub fn path_in_root(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}
