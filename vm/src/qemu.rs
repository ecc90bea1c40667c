// SPDX-License-Identifier: Apache-2.0
//! The QEMU process of a guest: what it is called with, and that it ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{Error, GuestConfig, Kernel};

const QEMU: &str = "qemu-system-x86_64";

/// How often it is looked whether a guest has ended.
const POLL: Duration = Duration::from_millis(50);

/// A QEMU that has not been told anything yet.
pub(crate) fn command() -> Command {
    let mut command = Command::new(QEMU);
    command.args(["-nodefaults", "-no-reboot", "-display", "none"]);
    command
}

/// Processors, memory, kernel, disk and the ports of a guest whose files are in `dir`.
pub(crate) fn machine(command: &mut Command, config: &GuestConfig, kernel: &Kernel, dir: &Path) {
    let chardev = |id: &str| format!("file,id={id},path={}", dir.join(id).display());
    command
        .args([
            "-m",
            &config.memory_mib.to_string(),
            "-smp",
            &config.cpus.to_string(),
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(dir.join("initrd"))
        .args([
            "-append",
            "console=ttyS0 panic=-1 systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
        ])
        // A full disk here is an error there: by itself QEMU would stop the guest without a word.
        .arg("-drive")
        .arg(format!(
            "file={},if=virtio,format=raw,cache=unsafe,werror=report,rerror=report",
            dir.join("disk").display()
        ))
        .args(["-device", "virtio-rng-pci"])
        .args(["-device", "virtio-serial-pci"])
        .args([
            "-chardev",
            &chardev("output"),
            "-device",
            "virtserialport,chardev=output,nr=1",
        ])
        .args([
            "-chardev",
            &chardev("exit"),
            "-device",
            "virtserialport,chardev=exit,nr=2",
        ]);
}

/// Kernel messages go to the file `console` in `dir`.
pub(crate) fn console_to_file(command: &mut Command, dir: &Path) {
    let path = dir.join("console");
    command
        .arg("-serial")
        .arg(format!("file:{}", path.display()));
}

/// A running QEMU. It ends when dropped, whatever happened in between.
pub(crate) struct Qemu {
    child: Child,
    dir: PathBuf,
}

impl Qemu {
    /// Starts it. What it says goes to the file `qemu` in `dir`.
    pub(crate) fn start(command: &mut Command, stdin: Stdio, dir: &Path) -> Result<Self, Error> {
        let said = dir.join("qemu");
        let stderr = std::fs::File::create(&said).map_err(Error::io("creating", &said))?;
        command.stdin(stdin).stdout(Stdio::null()).stderr(stderr);
        Self::spawn(command, dir)
    }

    /// Starts it on this terminal and waits until it ends.
    pub(crate) fn on_terminal(command: &mut Command, dir: &Path) -> Result<(), Error> {
        let status = Self::spawn(command, dir)?.child.wait();
        let status = status.map_err(Error::io("waiting for", QEMU))?;
        if status.success() {
            return Ok(());
        }
        let stderr = String::from("see above");
        Err(Error::Qemu { status, stderr })
    }

    fn spawn(command: &mut Command, dir: &Path) -> Result<Self, Error> {
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::Missing {
                program: QEMU,
                package: "qemu-system-x86",
            },
            _ => Error::io("starting", QEMU)(error),
        })?;
        let dir = dir.to_owned();
        Ok(Self { child, dir })
    }

    /// Whether it has ended. An error if it gave up.
    pub(crate) fn ended(&mut self) -> Result<bool, Error> {
        match self
            .child
            .try_wait()
            .map_err(Error::io("waiting for", QEMU))?
        {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => {
                let stderr = std::fs::read(self.dir.join("qemu")).unwrap_or_default();
                let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
                Err(Error::Qemu { status, stderr })
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // A process that has ended already needs nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until `done` says true, and says so; false when the deadline passes first.
pub(crate) fn wait(
    deadline: Duration,
    mut done: impl FnMut() -> Result<bool, Error>,
) -> Result<bool, Error> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > deadline {
            return Ok(false);
        }
        sleep(POLL);
    }
    Ok(true)
}
