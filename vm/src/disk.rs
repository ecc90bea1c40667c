// SPDX-License-Identifier: Apache-2.0
//! The guest's disk: an ext4 file system filled from a folder, without mounting anything here.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::wire::{self, Place};
use crate::{Error, GuestConfig, host_program};

/// What the guest does on its disk: everything a Linux machine has before a node starts, then the
/// scenario, whose output and exit code go to ports of their own.
const INIT: &str = "#!/bin/sh
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
# The first memory cgroup has the kernel rewrite an instruction of its allocator. An emulated processor
# that runs it at that moment may never get past it. So it happens here, while nothing else does.
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/first
rmdir /sys/fs/cgroup/first
echo -memory >/sys/fs/cgroup/cgroup.subtree_control
mount --make-rshared /
hostname $(cat /etc/hostname)
ip link set lo up
. /uplink.sh
cd /root
output=$(ls /dev/vport*p1) exit=$(ls /dev/vport*p2)
sh /scenario.sh >$output 2>&1 </dev/null
echo $? >$exit
sync
poweroff -f
";

const DIRECTORIES: &[&str] = &[
    "bin",
    "dev",
    "etc",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr/bin",
    "usr/sbin",
    "usr/local/bin",
    "var/lib",
    "var/log",
];

/// Makes the disk image at `image` with the guest's files, its place on the wire and the scenario.
pub(crate) fn build(
    image: &Path,
    config: &GuestConfig,
    script: &str,
    place: Option<Place>,
) -> Result<(), Error> {
    let staging = tempfile::Builder::new()
        .prefix("podwright-disk-")
        .tempdir()
        .map_err(Error::io("creating a temporary folder for", image))?;
    let root = staging.path();
    for dir in DIRECTORIES {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).map_err(Error::io("creating", dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))
        .map_err(Error::io("opening to all", root.join("tmp")))?;
    busybox(root)?;
    write(&root.join("init"), INIT, 0o755)?;
    write(&root.join("uplink.sh"), &wire::script(place), 0o644)?;
    write(&root.join("scenario.sh"), script, 0o755)?;
    write(
        &root.join("etc/hostname"),
        &format!("{}\n", config.name),
        0o644,
    )?;
    write(
        &root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\n",
        0o644,
    )?;
    write(&root.join("etc/group"), "root:x:0:\n", 0o644)?;
    let hosts = format!(
        "127.0.0.1 localhost\n{} {}\n",
        wire::ipv4(place),
        config.name
    );
    write(&root.join("etc/hosts"), &hosts, 0o644)?;
    write(
        &root.join("etc/resolv.conf"),
        "nameserver 192.0.2.1\n",
        0o644,
    )?;
    for (from, to) in &config.files {
        let to = root.join(to.trim_start_matches('/'));
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
        }
        fs::copy(from, &to).map_err(Error::io("copying", from))?;
    }
    host_program("mkfs.ext4", "e2fsprogs", |c| {
        c.args(["-q", "-F", "-O", "^has_journal", "-d"])
            .arg(root)
            .arg(image)
            .arg(format!("{}M", config.disk_mib))
    })?;
    Ok(())
}

fn busybox(root: &Path) -> Result<(), Error> {
    fs::copy("/bin/busybox", root.join("bin/busybox")).map_err(|_| Error::Missing {
        program: "busybox",
        package: "busybox-static",
    })?;
    let applets = host_program("busybox", "busybox-static", |c| c.arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        let link = root.join("bin").join(applet);
        symlink("busybox", &link).map_err(Error::io("linking", link))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io("writing", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(Error::io("setting the mode of", path))
}
