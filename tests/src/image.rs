// SPDX-License-Identifier: Apache-2.0
//! A root filesystem made of the system's static busybox: the image that every scenario runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

const BUSYBOX: &str = "/bin/busybox";

/// Fills `dir` with busybox, a link for each of its applets, and the files that user lookups read.
pub fn busybox_rootfs(dir: &Path) -> Result<()> {
    for sub in ["bin", "etc", "tmp", "root", "home", "var", "www"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy(BUSYBOX, dir.join("bin/busybox"))
        .with_context(|| format!("{BUSYBOX} is missing; Debian's package busybox-static has it"))?;
    let list = Command::new(BUSYBOX).arg("--list").output()?;
    ensure!(list.status.success(), "busybox --list failed");
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        if applet != "busybox" {
            match symlink("busybox", dir.join("bin").join(applet)) {
                // A second image of the same host.
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }
    fs::write(
        dir.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    fs::write(dir.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    Ok(())
}
