// SPDX-License-Identifier: Apache-2.0
//! The first file system of the guest: busybox, modules, and a script that goes on to the disk.
//!
//! Written in the `newc` format of cpio, which is what the kernel unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs;
use std::path::Path;

use crate::modules;
use crate::{Error, Kernel};

const BUSYBOX: &str = "/bin/busybox";

/// Loads the modules and continues with /init on the disk. `pivot_root` is not possible on the
/// kernel's first file system, so containers could not be started there.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /disk
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
case \"$(/bin/busybox cat /proc/cmdline)\" in *podwright.probe*)
  echo 'podwright: the probe guest runs' >/dev/console
  /bin/busybox poweroff -f ;;
esac
for module in $(/bin/busybox cat /modules/order); do
  /bin/busybox insmod /modules/$module || echo \"not loaded: $module\"
done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do /bin/busybox sleep 0.05; tries=$((tries + 1)); done
/bin/busybox mount -t ext4 /dev/vda /disk || { echo 'no disk'; /bin/busybox poweroff -f; }
/bin/busybox mount --move /dev /disk/dev
/bin/busybox umount /sys /proc
exec /bin/busybox switch_root /disk /init
";

/// On the kernel's command line: say that user space runs, and power off.
pub(crate) const PROBE: &str = "podwright.probe";
/// What the guest says then.
pub(crate) const PROBED: &str = "podwright: the probe guest runs";

/// The archive, as bytes.
pub(crate) fn build(kernel: &Kernel) -> Result<Vec<u8>, Error> {
    let mut archive = Archive::default();
    for dir in ["bin", "modules"] {
        archive.directory(dir);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    let busybox = fs::read(BUSYBOX).map_err(|_| Error::Missing {
        program: "busybox",
        package: "busybox-static",
    })?;
    archive.file("bin/busybox", 0o755, &busybox);
    let mut order = String::new();
    for path in modules::load_order(&kernel.modules)? {
        let name = path.replace('/', "-");
        let bytes = read_module(&kernel.modules.join(&path))?;
        let name = name.trim_end_matches(".xz");
        archive.file(&format!("modules/{name}"), 0o644, &bytes);
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// busybox's insmod takes no compressed module.
fn read_module(path: &Path) -> Result<Vec<u8>, Error> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let plain = path.with_extension("");
        if !plain.exists() {
            crate::host_program("xz", "xz-utils", |c| c.args(["-dkq"]).arg(path))?;
        }
        return fs::read(&plain).map_err(Error::io("reading", &plain));
    }
    fs::read(path).map_err(Error::io("reading", path))
}

/// A cpio archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, REGULAR | mode, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a file of the guest is below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a name is short");
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Headers and contents start at multiples of four.
    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_start_at_multiples_of_four_and_the_trailer_is_last() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let second = bytes[6..].windows(6).position(|window| window == b"070701");
        assert_eq!(second.map(|at| (at + 6) % 4), Some(0));
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
