// SPDX-License-Identifier: Apache-2.0
//! Containers on disk: `<root>/<id>/state.json`, a copy of its config.json, and the FIFO that its
//! process waits at until start.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};
use shim::plan::{Hooks, Seccomp};
use shim::{protocol, sys};

use super::config::{self, CONFIG};
use super::{Attempt, Failure, Outcome};

pub(super) const DEFAULT_ROOT: &str = "/run/podwright/oci";
const STATE: &str = "state.json";
const FIFO: &str = "exec.fifo";
const SECCOMP: &str = "seccomp";
const GROUPS: &str = "intel-rdt.json";
/// Is there when systemd makes the cgroup. The record says so too, but a `create` that was killed
/// has none.
const SYSTEMD: &str = "systemd";
const VERSION: u32 = 1;

/// What is kept of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// Of this file's form.
    pub version: u32,
    pub oci_version: String,
    pub id: String,
    pub pid: u32,
    /// Clock ticks since boot (proc_pid_stat(5) field 22): tells a reused pid.
    pub start_time: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: String,
    pub cgroup: String,
    /// Whether systemd made the cgroup.
    #[serde(default)]
    pub systemd: bool,
    /// Whether its processes end with the first one, because the pid namespace is its own.
    #[serde(default)]
    pub own_pids: bool,
    /// Name of its session keyring; none when it has its creator's.
    #[serde(default)]
    pub keyring: Option<String>,
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "no_hooks")]
    pub hooks: Hooks,
}

fn no_hooks(hooks: &Hooks) -> bool {
    *hooks == Hooks::default()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    /// Whether the caller named the root: then it has to exist for `list`.
    named: bool,
}

impl Store {
    pub(super) fn new(root: Option<PathBuf>) -> Outcome<Store> {
        let Some(given) = root else {
            return Ok(Store {
                root: PathBuf::from(DEFAULT_ROOT),
                named: false,
            });
        };
        let root = match given.as_os_str().is_empty() {
            true => PathBuf::from("/"),
            false => clean(&std::path::absolute(&given).attempt("--root")?),
        };
        if root == Path::new("/") {
            return Err(Failure::new("--root must not be /"));
        }
        Ok(Store { root, named: true })
    }

    pub(super) fn dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    pub(super) fn fifo(&self, id: &str) -> PathBuf {
        self.dir(id).join(FIFO)
    }

    /// # Errors
    /// In runc's words, when the id has a container.
    pub(super) fn check_free(&self, id: &str) -> Outcome<()> {
        check_id(id)?;
        match self.dir(id).exists() {
            true => Err(taken()),
            false => Ok(()),
        }
    }

    /// Reserves an id.
    pub(super) fn reserve(&self, id: &str) -> Outcome<()> {
        check_id(id)?;
        make_private(&self.root, true).attempt(format_args!("creating {}", self.root.display()))?;
        match make_private(&self.dir(id), false) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(taken()),
            other => other.attempt(format_args!("creating {}", self.dir(id).display())),
        }
    }

    /// Written whole or not at all: `state` may look at any moment.
    pub(super) fn save(&self, record: &Record) -> Outcome<()> {
        let path = self.dir(&record.id).join(STATE);
        let temporary = self.dir(&record.id).join(".state.new");
        let text = serde_json::to_vec(record).attempt("encoding the state")?;
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .attempt(format_args!("writing {}", path.display()))
    }

    pub(super) fn mark_systemd(&self, id: &str) -> Outcome<()> {
        let path = self.dir(id).join(SYSTEMD);
        std::fs::write(&path, "").attempt(format_args!("writing {}", path.display()))
    }

    pub(super) fn is_systemd(&self, id: &str) -> bool {
        self.dir(id).join(SYSTEMD).exists()
    }

    pub(super) fn save_config(&self, id: &str, text: &[u8]) -> Outcome<()> {
        let path = self.dir(id).join(CONFIG);
        std::fs::write(&path, text).attempt(format_args!("writing {}", path.display()))
    }

    pub(super) fn spec(&self, id: &str) -> Outcome<Spec> {
        // What there is to note about it was noted when the container was made.
        config::read_spec(&self.dir(id).join(CONFIG), &mut Vec::new()).map(|(spec, _)| spec)
    }

    /// The compiled filter is kept for exec: compiling it again takes longer than all the rest.
    pub(super) fn save_seccomp(&self, id: &str, filter: &Seccomp) -> Outcome<()> {
        let path = self.dir(id).join(SECCOMP);
        let bytes = protocol::encode(filter).attempt("encoding the seccomp filter")?;
        std::fs::write(&path, bytes).attempt(format_args!("writing {}", path.display()))
    }

    pub(super) fn seccomp(&self, id: &str) -> Outcome<Option<Seccomp>> {
        let path = self.dir(id).join(SECCOMP);
        let attempt = || format!("reading {}", path.display());
        match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => {
                let bytes = other.attempt(attempt())?;
                protocol::decode(&bytes).map(Some).attempt(attempt())
            }
        }
    }

    /// Intel RDT groups to remove with the container.
    pub(super) fn save_groups(&self, id: &str, groups: &[PathBuf]) -> Outcome<()> {
        let path = self.dir(id).join(GROUPS);
        let text = serde_json::to_vec(groups).attempt("encoding the groups")?;
        std::fs::write(&path, text).attempt(format_args!("writing {}", path.display()))
    }

    pub(super) fn groups(&self, id: &str) -> Outcome<Vec<PathBuf>> {
        let path = self.dir(id).join(GROUPS);
        let attempt = || format!("reading {}", path.display());
        match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            other => serde_json::from_slice(&other.attempt(attempt())?).attempt(attempt()),
        }
    }

    /// The record of a container; `None` when there is none (or it is just being made).
    pub(super) fn find(&self, id: &str) -> Outcome<Option<Record>> {
        check_id(id)?;
        let path = self.dir(id).join(STATE);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.attempt(format_args!("reading {}", path.display()))?,
        };
        let record: Record =
            serde_json::from_slice(&text).attempt(format_args!("reading {}", path.display()))?;
        match record.version {
            VERSION => Ok(Some(record)),
            other => Err(Failure::new(format!(
                "{}: form {other} is of another build",
                path.display()
            ))),
        }
    }

    pub(super) fn load(&self, id: &str) -> Outcome<Record> {
        self.find(id)?.ok_or_else(no_such_container)
    }

    /// The owner of a container's directory.
    pub(super) fn owner(&self, id: &str) -> Option<u32> {
        use std::os::unix::fs::MetadataExt;
        let stat = std::fs::metadata(self.dir(id)).ok()?;
        Some(stat.uid())
    }

    pub(super) fn remove(&self, id: &str) -> Outcome<()> {
        match std::fs::remove_dir_all(self.dir(id)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).attempt(format_args!("removing {}", self.dir(id).display()))
            }
            _ => Ok(()),
        }
    }

    /// Names of all containers; one may be gone before it is looked at.
    pub(super) fn ids(&self) -> Outcome<Vec<String>> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound && !self.named => {
                return Ok(Vec::new());
            }
            other => other.attempt(format_args!("listing {}", self.root.display()))?,
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| check_id(name).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Of the process alone: it does not know about pausing.
    pub(super) fn status(&self, record: &Record) -> Status {
        match start_time(record.pid) {
            Some(time) if time == record.start_time => match self.fifo(&record.id).exists() {
                true => Status::Created,
                false => Status::Running,
            },
            _ => Status::Stopped,
        }
    }
}

/// podman and containerd look for these words.
fn taken() -> Failure {
    Failure::new("container with given ID already exists")
}

/// containerd looks for these words.
pub(super) fn no_such_container() -> Failure {
    Failure::new("container does not exist")
}

/// The first process, if it has not ended. The descriptor was opened before the process was
/// recognised, so it cannot be another's.
pub(super) fn first_process(record: &Record) -> Option<OwnedFd> {
    let process = sys::pidfd_open(record.pid).ok()?;
    (start_time(record.pid)? == record.start_time).then_some(process)
}

pub(super) fn new_record(id: &str, pid: u32, spec: &Spec) -> Record {
    Record {
        version: VERSION,
        oci_version: spec.version().clone(),
        id: id.to_owned(),
        pid,
        start_time: start_time(pid).unwrap_or(0),
        bundle: PathBuf::new(),
        rootfs: PathBuf::new(),
        created: jiff::Timestamp::now().to_string(),
        cgroup: String::new(),
        systemd: false,
        own_pids: own_pids(spec),
        keyring: None,
        hooks: Hooks::default(),
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    }
}

/// When a process started; `None` when it is gone or a zombie.
fn start_time(pid: u32) -> Option<u64> {
    use std::io::Read;
    // More than the file's 52 numbers take: one read gets it all.
    let mut buffer = [0; 2048];
    let mut file = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read(&mut buffer).ok()?;
    let text = String::from_utf8_lossy(buffer.get(..length)?);
    // The name, in parentheses, may contain anything.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    const AFTER_STATE: usize = 18;
    let time = fields.nth(AFTER_STATE)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(time)
}

fn own_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    let own = |space: &oci_spec::runtime::LinuxNamespace| {
        space.typ() == LinuxNamespaceType::Pid && space.path().is_none()
    };
    namespaces.is_some_and(|spaces| spaces.iter().any(own))
}

/// Takes `.` and `..` out of an absolute path, without asking the file system.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

fn make_private(dir: &Path, recursive: bool) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o711).recursive(recursive).create(dir)
}

/// runc's rule for ids, which also keeps them within the root.
pub(super) fn check_id(id: &str) -> Outcome<()> {
    if id.is_empty() {
        return Err(Failure::new("container id cannot be empty"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    match id.starts_with('.') || !id.chars().all(plain) || id.len() > 1024 {
        true => Err(Failure::new("invalid container ID format")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_within_the_root() {
        assert!(check_id("a-b_c.d+1").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "../x"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn roots_are_absolute_and_not_the_systems() {
        let root = |text: &str| Store::new(Some(PathBuf::from(text))).map(|store| store.root);
        assert_eq!(root("/a/./b/../c").expect("fine"), Path::new("/a/c"));
        assert!(root("x").expect("fine").is_absolute());
        for bad in ["", "/", "/a/../..", "/."] {
            assert!(root(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn this_process_has_a_start_time_and_pid_zero_has_none() {
        assert!(start_time(std::process::id()).is_some());
        assert_eq!(start_time(0), None);
    }
}
