// SPDX-License-Identifier: Apache-2.0
//! Guests, from boot to power-off.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::qemu::{self, Qemu};
use crate::wire::{self, Place};
use crate::{Accel, Error, Kernel, disk, initramfs};

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Where the kernel is kept between runs.
    pub cache: PathBuf,
    /// Its host name, and what errors call it.
    pub name: String,
    /// Files on the guest's disk: path here, path there. Modes are kept.
    pub files: Vec<(PathBuf, String)>,
    pub memory_mib: u32,
    pub cpus: u32,
    pub disk_mib: u32,
    /// Where `console`, `output` and `qemu` are kept when the guest has ended, however it ended.
    pub logs: Option<PathBuf>,
}

impl GuestConfig {
    /// A guest called `guest` with two processors, 2 GiB of memory, and a sparse disk of 4 GiB.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            name: "guest".into(),
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
    /// The script's exit code; none if the guest ended, or was ended, before the script did.
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
    let guest = Guest::start(config, script, None)?;
    let [outcome] = run_all([guest], deadline)?;
    Ok(outcome)
}

/// The same with two guests side by side, which reach each other over a wire of their own. They have
/// the places of [`Place::PAIR`], in this order.
///
/// Returns when both have powered off. When one fails (its script's exit code is not 0, or there is
/// none), the other is ended at once and has no exit code.
///
/// # Errors
/// As [`run`]; both guests are ended then.
pub fn run_pair(
    guests: [(&GuestConfig, &str); 2],
    deadline: Duration,
) -> Result<[Outcome; 2], Error> {
    let [one_end, other_end] = wire::pair()?;
    let [(one, script), (other, other_script)] = guests;
    let one = Guest::start(one, script, Some((Place::PAIR[0], one_end.into())))?;
    let other_place = (Place::PAIR[1], other_end.into());
    let other = Guest::start(other, other_script, Some(other_place))?;
    run_all([one, other], deadline)
}

/// Boots a guest with a shell on this terminal, and returns when it has powered off: leave the shell,
/// or press Ctrl-a x. The person at the terminal is the deadline.
///
/// # Errors
/// As [`run`].
pub fn shell(config: &GuestConfig) -> Result<(), Error> {
    // The serial port is not the scenario's output, so the shell is moved there.
    let script = "exec setsid cttyhack sh -il </dev/ttyS0 >/dev/ttyS0 2>&1";
    let (dir, mut command, _accel) = prepare(config, script, None)?;
    command.args(["-serial", "mon:stdio"]);
    Qemu::on_terminal(&mut command, dir.path())
}

/// A guest that runs.
struct Guest {
    name: String,
    logs: Option<PathBuf>,
    accel: Accel,
    qemu: Qemu,
    // After the process that uses it.
    dir: tempfile::TempDir,
}

impl Guest {
    fn start(
        config: &GuestConfig,
        script: &str,
        wire: Option<(Place, Stdio)>,
    ) -> Result<Self, Error> {
        let (place, stdin) = wire.unzip();
        let (dir, mut command, accel) = prepare(config, script, place)?;
        qemu::console_to_file(&mut command, dir.path());
        let stdin = stdin.unwrap_or_else(Stdio::null);
        Ok(Self {
            name: config.name.clone(),
            logs: config.logs.clone(),
            accel,
            qemu: Qemu::start(&mut command, stdin, dir.path())?,
            dir,
        })
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.dir.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn exit_code(&self) -> Option<i32> {
        self.read("exit").trim().parse().ok()
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            exit_code: self.exit_code(),
            output: self.read("output"),
            console: self.read("console"),
            accel: self.accel,
        }
    }

    fn keep_logs(&self) -> Result<(), Error> {
        let Some(logs) = &self.logs else {
            return Ok(());
        };
        std::fs::create_dir_all(logs).map_err(Error::io("creating", logs))?;
        for name in ["console", "output", "qemu"] {
            let from = self.dir.path().join(name);
            if from.exists() {
                std::fs::copy(&from, logs.join(name)).map_err(Error::io("copying", from))?;
            }
        }
        Ok(())
    }

    /// What a person wants to see of a guest that was ended.
    fn so_far(&self) -> String {
        let said = self.outcome();
        format!(
            "{}: console ends with:\n{}\noutput so far:\n{}",
            self.name,
            tail(&said.console),
            said.output
        )
    }
}

/// Waits for guests to end. Those that run when one has failed, or at the deadline, are ended.
fn run_all<const N: usize>(
    mut guests: [Guest; N],
    deadline: Duration,
) -> Result<[Outcome; N], Error> {
    let ended = qemu::wait(deadline, || all_ended(&mut guests));
    guests.iter().try_for_each(Guest::keep_logs)?;
    if !ended? {
        let said: Vec<_> = guests.iter().map(Guest::so_far).collect();
        return Err(Error::Deadline(deadline, said.join("\n")));
    }
    Ok(guests.map(|guest| guest.outcome()))
}

/// True, too, when one ended that did not succeed.
fn all_ended(guests: &mut [Guest]) -> Result<bool, Error> {
    let mut all = true;
    for guest in guests {
        if !guest.qemu.ended()? {
            all = false;
        } else if guest.exit_code() != Some(0) {
            return Ok(true);
        }
    }
    Ok(all)
}

/// All of a guest but where its serial port leads.
fn prepare(
    config: &GuestConfig,
    script: &str,
    place: Option<Place>,
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
    disk::build(&at("disk"), config, script, place)?;
    let mut command = qemu::command();
    accel.arguments(&mut command);
    qemu::machine(&mut command, config, &kernel, dir.path());
    if let Some(place) = place {
        place.arguments(&mut command);
    }
    Ok((dir, command, accel))
}

/// The last lines of a console.
fn tail(console: &str) -> String {
    let lines: Vec<_> = console.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_prints() {
        let linked = "\tlinux-vdso.so.1 (0x00007f0004f31000)
\tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f0004ee9000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f0004f33000)\n";
        let found: Vec<_> = libraries(linked).collect();
        assert_eq!(
            found,
            [
                "/lib/x86_64-linux-gnu/libmnl.so.0",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert_eq!(libraries("\tstatically linked\n").count(), 0);
    }
}
