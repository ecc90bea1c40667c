// SPDX-License-Identifier: Apache-2.0
//! Hardware acceleration, believed only after a guest has booted with it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::qemu::{self, Qemu};
use crate::{Error, Kernel, initramfs};

/// How the guest's processor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the hardware.
    Kvm,
    /// By QEMU's translator.
    Tcg,
}

/// A guest that works reaches its first process well within this; one that hangs burns a processor.
const PROBE: Duration = Duration::from_secs(5);

impl Accel {
    /// KVM if a guest boots with it within a few seconds, TCG otherwise. Probed once per process.
    pub fn probe(kernel: &Kernel) -> Result<Self, Error> {
        static PROBED: OnceLock<Accel> = OnceLock::new();
        if let Some(accel) = PROBED.get() {
            return Ok(*accel);
        }
        let works = Path::new("/dev/kvm").exists() && boots_with_kvm(kernel)?;
        Ok(*PROBED.get_or_init(|| if works { Self::Kvm } else { Self::Tcg }))
    }

    pub(crate) fn arguments(self, command: &mut Command) {
        match self {
            Self::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
            Self::Tcg => command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
        };
    }
}

/// A guest that reaches user space, says so and powers off is all the proof that is needed.
fn boots_with_kvm(kernel: &Kernel) -> Result<bool, Error> {
    let dir = tempfile::tempdir().map_err(Error::io("creating", std::env::temp_dir()))?;
    let initrd = dir.path().join("initrd");
    std::fs::write(&initrd, initramfs::build(kernel)?).map_err(Error::io("writing", &initrd))?;
    let mut command = qemu::command();
    Accel::Kvm.arguments(&mut command);
    qemu::console_to_file(&mut command, dir.path());
    command
        .args(["-m", "256"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initrd)
        .args([
            "-append",
            &format!("console=ttyS0 panic=-1 {}", initramfs::PROBE),
        ]);
    let mut guest = Qemu::start(&mut command, Stdio::null(), dir.path())?;
    // A guest that hangs, and a QEMU that gives up, are the answers that the probe is for.
    match qemu::wait(PROBE, || guest.ended()) {
        Ok(_) | Err(Error::Qemu { .. }) => {}
        Err(error) => return Err(error),
    }
    let said = std::fs::read(dir.path().join("console")).unwrap_or_default();
    Ok(String::from_utf8_lossy(&said).contains(initramfs::PROBED))
}
