// SPDX-License-Identifier: Apache-2.0
//! `linux.intelRdt`: a share of the processor's cache and memory bandwidth, through the resctrl
//! filesystem (Documentation/filesystems/resctrl.rst).
//!
//! A group is a directory with a `tasks` file, to which the process is written, and a `schemata`
//! file, which says what the group may use. A group below `mon_groups` is only for counting.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIntelRdt};
use shim::launch::plain;

use super::compile::{CompileError, invalid, unsupported};

/// What a spec asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rdt {
    /// The class of service; none: one of the container's own.
    pub clos: Option<String>,
    pub l3_cache: bool,
    pub memory_bandwidth: bool,
    /// The lines for `schemata`.
    pub schemata: Vec<String>,
    pub monitoring: bool,
}

/// The groups of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    root: PathBuf,
    group: PathBuf,
    monitor: Option<PathBuf>,
    schemata: String,
    /// Whether the group, when we make it, is the container's alone.
    own: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("linux.intelRdt: {action} {path}{status}")]
pub struct RdtError {
    action: &'static str,
    path: PathBuf,
    /// What the filesystem itself says about it.
    status: String,
    #[source]
    source: std::io::Error,
}

/// Checks what a spec asks for, without looking at the host.
///
/// # Errors
/// A class that is no plain name, or a line that is no schema.
pub fn intel_rdt(linux: &Linux) -> Result<Option<Rdt>, CompileError> {
    linux.intel_rdt().as_ref().map(checked).transpose()
}

fn checked(spec: &LinuxIntelRdt) -> Result<Rdt, CompileError> {
    let clos = spec.clos_id().clone().filter(|clos| !clos.is_empty());
    if let Some(clos) = &clos {
        check_name(clos)?;
    }
    let (l3, bandwidth) = (given(spec.l3_cache_schema()), given(spec.mem_bw_schema()));
    let mut schemata = Vec::new();
    for (field, lines) in [("l3CacheSchema", l3), ("memBwSchema", bandwidth)] {
        schemata.extend(lines.map(|line| (field.to_owned(), line)));
    }
    let whole = spec.schemata().iter().flatten().enumerate();
    schemata.extend(whole.map(|(at, line)| (format!("schemata[{at}]"), &**line)));
    for (field, line) in &schemata {
        if !is_schema(line) {
            let reason = format!("{line:?} has not the form NAME:ID=VALUE");
            return Err(invalid(format!("linux.intelRdt.{field}"), reason));
        }
    }
    Ok(Rdt {
        l3_cache: l3.is_some(),
        memory_bandwidth: bandwidth.is_some(),
        schemata: schemata.into_iter().map(|(_, line)| line.into()).collect(),
        monitoring: spec.enable_monitoring().unwrap_or(false),
        clos,
    })
}

fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// A single slash is the class that everyone is in. Other names are those of one directory, and
/// none that resctrl has already.
fn check_name(clos: &str) -> Result<(), CompileError> {
    const TAKEN: [&str; 5] = [".", "..", "info", "mon_groups", "mon_data"];
    let plain = |c: char| c != '/' && !c.is_control();
    match clos == "/" || (!TAKEN.contains(&clos) && clos.chars().all(plain)) {
        true => Ok(()),
        false => Err(invalid("linux.intelRdt.closID", format!("{clos:?}"))),
    }
}

/// The kernel has the last word. This tells what cannot be a schema before anything is made.
fn is_schema(lines: &str) -> bool {
    lines.lines().all(|line| {
        let parts = line.split_once(':');
        parts.is_some_and(|(name, values)| !name.trim().is_empty() && values.contains('='))
    })
}

/// Where resctrl is mounted, by a table of mounts (proc_pid_mountinfo(5)).
pub fn mounted(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let kind = kind.split_ascii_whitespace().next()?;
        let path = mount.split_ascii_whitespace().nth(4)?;
        (kind == "resctrl").then(|| PathBuf::from(path))
    })
}

impl Rdt {
    /// Checks that the host has what is asked for, and says where it will be. Makes nothing.
    ///
    /// # Errors
    /// Names the field and what the host lacks.
    pub fn groups(&self, root: Option<&Path>, id: &str) -> Result<Groups, CompileError> {
        let root = root.ok_or_else(|| {
            let reason = "no resctrl filesystem is mounted (usually at /sys/fs/resctrl): this \
                 processor or kernel has no Intel RDT, or nobody has mounted it";
            unsupported("linux.intelRdt", reason)
        })?;
        let info = |names: &[&str]| {
            names
                .iter()
                .any(|name| root.join("info").join(name).exists())
        };
        for (field, asked, names) in [
            ("l3CacheSchema", self.l3_cache, &["L3", "L3CODE"][..]),
            ("memBwSchema", self.memory_bandwidth, &["MB"]),
            ("enableMonitoring", self.monitoring, &["L3_MON"]),
        ] {
            if asked && !info(names) {
                let reason = format!("resctrl has no info/{} here", names[0]);
                return Err(unsupported(format!("linux.intelRdt.{field}"), reason));
            }
        }
        let group = match self.clos.as_deref() {
            Some("/") => root.to_path_buf(),
            Some(clos) => root.join(clos),
            None => root.join(id),
        };
        if self.clos.is_some() && self.schemata.is_empty() && !group.is_dir() {
            let reason = format!(
                "there is no {}, and without schemata it has to exist",
                group.display()
            );
            return Err(invalid("linux.intelRdt.closID", reason));
        }
        Ok(Groups {
            root: root.to_path_buf(),
            monitor: self.monitoring.then(|| group.join("mon_groups").join(id)),
            own: self.clos.is_none(),
            schemata: self
                .schemata
                .iter()
                .map(|line| format!("{line}\n"))
                .collect(),
            group,
        })
    }
}

impl Groups {
    /// What there will be to remove at the container's end, innermost first: to be kept before
    /// [`join`](Self::join). A class that has a name of its own outlives its containers, as in runc.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let ours = self.own && !self.group.exists();
        let monitor = self.monitor.iter().filter(|monitor| !monitor.exists());
        monitor
            .chain(ours.then_some(&self.group))
            .cloned()
            .collect()
    }

    /// Makes the groups, says what they may use, and puts a process in them.
    ///
    /// # Errors
    /// Names the file, with what resctrl says about it.
    pub fn join(&self, pid: u32) -> Result<(), RdtError> {
        self.make(&self.group)?;
        self.write_schemata(&self.schemata)?;
        for group in std::iter::once(&self.group).chain(&self.monitor) {
            self.make(group)?;
            self.write(&group.join("tasks"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Changes what the group may use; other lines stay as they are.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn write_schemata(&self, lines: &str) -> Result<(), RdtError> {
        match lines.is_empty() {
            true => Ok(()),
            false => self.write(&self.group.join("schemata"), lines),
        }
    }

    fn make(&self, dir: &Path) -> Result<(), RdtError> {
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(self.failed("creating", dir, error))
            }
            _ => Ok(()),
        }
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), RdtError> {
        std::fs::write(path, text).map_err(|error| self.failed("writing", path, error))
    }

    fn failed(&self, action: &'static str, path: &Path, source: std::io::Error) -> RdtError {
        let status = std::fs::read_to_string(self.root.join("info/last_cmd_status"));
        let status = match status.unwrap_or_default().trim() {
            "" | "ok" => String::new(),
            said => format!(" (last_cmd_status: {})", plain(said)),
        };
        RdtError {
            action,
            path: path.to_path_buf(),
            status,
            source,
        }
    }
}

/// Removes groups; the kernel moves what is still in them to their parent. One that is gone is fine.
///
/// # Errors
/// The first that cannot be removed.
pub fn remove(groups: &[PathBuf]) -> Result<(), RdtError> {
    for path in groups {
        match std::fs::remove_dir(path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(RdtError {
                    action: "removing",
                    path: path.clone(),
                    status: String::new(),
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
