// SPDX-License-Identifier: Apache-2.0
//! One guest, from boot to power-off.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Accel, Error, Kernel, disk, initramfs};

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Where the kernel is kept between runs.
    pub cache: PathBuf,
    /// Files on the guest's disk: path here, path there. Modes are kept.
    pub files: Vec<(PathBuf, String)>,
    pub memory_mib: u32,
    pub cpus: u32,
    pub disk_mib: u32,
    /// Where `console`, `output` and `qemu` are kept when the guest has ended, however it ended.
    pub logs: Option<PathBuf>,
}

impl GuestConfig {
    /// Two processors, 2 GiB of memory, and a sparse disk of 4 GiB.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            files: Vec::new(),
            memory_mib: 2048,
            cpus: 2,
            disk_mib: 4096,
            logs: None,
        }
    }

    /// Adds a file to the guest's disk.
    #[must_use]
    pub fn file(mut self, here: impl Into<PathBuf>, there: impl Into<String>) -> Self {
        self.files.push((here.into(), there.into()));
        self
    }

    /// Adds a program of this host and the libraries that it is linked with, as `/usr/local/bin/NAME`:
    /// it comes before busybox's of the same name.
    ///
    /// # Errors
    /// [`Error::Failed`] when `ldd` does not understand the file.
    pub fn program(mut self, path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let linked = crate::host_program("ldd", "libc-bin", |c| c.arg(path))?;
        for library in libraries(&linked) {
            self = self.file(library, library);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let there = format!("usr/local/bin/{name}");
        Ok(self.file(path, there))
    }
}

/// The paths in what ldd(1) says: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
fn libraries(linked: &str) -> impl Iterator<Item = &str> {
    let words = linked.lines().flat_map(str::split_whitespace);
    words.filter(|word| word.starts_with('/'))
}

/// How a scenario ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The script's exit code; none if the guest ended before the script did.
    pub exit_code: Option<i32>,
    /// What the script printed on standard output and standard error.
    pub output: String,
    /// Kernel messages.
    pub console: String,
    /// How the guest's processor was made.
    pub accel: Accel,
}

/// Boots a guest, runs `script` in it with busybox's shell, and returns when it has powered off.
///
/// # Errors
/// Missing programs, a kernel package that cannot be had, or a guest that is not done by `deadline`.
pub fn run(config: &GuestConfig, script: &str, deadline: Duration) -> Result<Outcome, Error> {
    let (dir, mut command, accel) = prepare(config, script)?;
    console_to_file(&mut command, dir.path());
    let ended = wait(&mut command, deadline, dir.path());
    if let Some(logs) = &config.logs {
        keep(dir.path(), logs)?;
    }
    let ended = ended?;
    let (console, output) = (read(dir.path(), "console"), read(dir.path(), "output"));
    if !ended {
        let said = format!("{}\noutput so far:\n{output}", tail(&console));
        return Err(Error::Deadline(deadline, said));
    }
    Ok(Outcome {
        exit_code: read(dir.path(), "exit").trim().parse().ok(),
        output,
        console,
        accel,
    })
}

/// Boots a guest with a shell on this terminal, and returns when it has powered off: leave the shell,
/// or press Ctrl-a x. The person at the terminal is the deadline.
///
/// # Errors
/// As [`run`].
pub fn shell(config: &GuestConfig) -> Result<(), Error> {
    // The serial port is not the scenario's output, so the shell is moved there.
    let script = "exec setsid cttyhack sh -il </dev/ttyS0 >/dev/ttyS0 2>&1";
    let (_dir, mut command, _accel) = prepare(config, script)?;
    command.args(["-serial", "mon:stdio"]);
    let child = spawn(&mut command)?;
    let status = Qemu(child).0.wait();
    let status = status.map_err(Error::io("waiting for", QEMU))?;
    if status.success() {
        return Ok(());
    }
    let stderr = String::from("see above");
    Err(Error::Qemu { status, stderr })
}

const QEMU: &str = "qemu-system-x86_64";

/// All of a guest but where its serial port leads.
fn prepare(
    config: &GuestConfig,
    script: &str,
) -> Result<(tempfile::TempDir, Command, Accel), Error> {
    let kernel = Kernel::fetch(&config.cache)?;
    let accel = Accel::probe(&kernel)?;
    let dir = tempfile::Builder::new()
        .prefix("podwright-vm-")
        .tempdir()
        .map_err(Error::io("creating", std::env::temp_dir()))?;
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("initrd"), initramfs::build(&kernel)?)
        .map_err(Error::io("writing", at("initrd")))?;
    disk::build(&at("disk"), config.disk_mib, &config.files, script)?;
    let mut command = Command::new(QEMU);
    accel.arguments(&mut command);
    machine(&mut command, config, &kernel, dir.path());
    Ok((dir, command, accel))
}

fn read(dir: &Path, name: &str) -> String {
    let bytes = std::fs::read(dir.join(name)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn keep(dir: &Path, logs: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(logs).map_err(Error::io("creating", logs))?;
    for name in ["console", "output", "qemu"] {
        let from = dir.join(name);
        if from.exists() {
            std::fs::copy(&from, logs.join(name)).map_err(Error::io("copying", from))?;
        }
    }
    Ok(())
}

fn console_to_file(command: &mut Command, dir: &Path) {
    let path = dir.join("console");
    command
        .arg("-serial")
        .arg(format!("file:{}", path.display()));
}

fn machine(command: &mut Command, config: &GuestConfig, kernel: &Kernel, dir: &Path) {
    let chardev = |id: &str| format!("file,id={id},path={}", dir.join(id).display());
    command
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
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
        .arg("-drive")
        .arg(format!(
            "file={},if=virtio,format=raw,cache=unsafe",
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

/// Ends its process when dropped, whatever happened in between.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // A process that has ended already needs nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(command: &mut Command) -> Result<Child, Error> {
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::Missing {
            program: QEMU,
            package: "qemu-system-x86",
        },
        _ => Error::io("starting", QEMU)(error),
    })
}

/// Runs QEMU until it ends (true) or the deadline passes (false; it is killed then). What it says
/// goes to the file `qemu` in `dir`.
pub(crate) fn wait(command: &mut Command, deadline: Duration, dir: &Path) -> Result<bool, Error> {
    let said = dir.join("qemu");
    let stderr = std::fs::File::create(&said).map_err(Error::io("creating", &said))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let mut qemu = Qemu(spawn(command)?);
    let start = Instant::now();
    loop {
        if let Some(status) = qemu.0.try_wait().map_err(Error::io("waiting for", QEMU))? {
            if status.success() {
                return Ok(true);
            }
            let stderr = read(dir, "qemu").trim().to_owned();
            return Err(Error::Qemu { status, stderr });
        }
        if start.elapsed() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The last lines of a console.
fn tail(console: &str) -> String {
    let lines: Vec<_> = console.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
