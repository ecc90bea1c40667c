// SPDX-License-Identifier: Apache-2.0
//! Host devices that a container asks for. A directory means every device below it.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use crate::fault::{Fault, Result};
use crate::v1;

/// How many devices one wish may bring: a bound on what a directory can do.
const DEVICES_MAX: usize = 1024;

/// Looks the device up on the host. Blocks on the filesystem.
///
/// # Errors
/// When it is absent, no device, or the permissions are not of `rwm`.
pub(crate) fn resolve(wish: &v1::Device) -> Result<Vec<(LinuxDevice, LinuxDeviceCgroup)>> {
    let access = if wish.permissions.is_empty() {
        "rwm"
    } else {
        wish.permissions.as_str()
    };
    if access.chars().any(|c| !"rwm".contains(c)) {
        return Err(Fault::invalid(format!(
            "device {:?}: permissions {access:?} are not of \"rwm\"",
            wish.host_path
        )));
    }
    let inside = if wish.container_path.is_empty() {
        &wish.host_path
    } else {
        &wish.container_path
    };
    let mut found = Vec::new();
    collect(Path::new(&wish.host_path), Path::new(inside), &mut found)?;
    if found.is_empty() {
        return Err(Fault::invalid(format!(
            "device {:?} is not a device node",
            wish.host_path
        )));
    }
    let with_rule = |device: LinuxDevice| {
        let mut rule = LinuxDeviceCgroup::from(&device);
        rule.set_access(Some(access.to_owned()));
        (device, rule)
    };
    Ok(found.into_iter().map(with_rule).collect())
}

fn collect(host: &Path, inside: &Path, found: &mut Vec<LinuxDevice>) -> Result<()> {
    let failed = |source| Fault::internal(format!("looking at device {}", host.display()), source);
    let metadata = fs::metadata(host).map_err(failed)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(host).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            // Links inside a directory may lead anywhere, and are not followed.
            if kind.is_dir() || kind.is_char_device() || kind.is_block_device() {
                collect(&entry.path(), &inside.join(entry.file_name()), found)?;
            }
        }
        return Ok(());
    }
    let kind = match metadata.file_type() {
        t if t.is_char_device() => LinuxDeviceType::C,
        t if t.is_block_device() => LinuxDeviceType::B,
        _ => return Ok(()),
    };
    if found.len() == DEVICES_MAX {
        return Err(Fault::invalid(format!(
            "device {}: more than {DEVICES_MAX} devices",
            host.display()
        )));
    }
    found.push(node(inside.to_owned(), kind, &metadata));
    Ok(())
}

fn node(path: PathBuf, kind: LinuxDeviceType, metadata: &fs::Metadata) -> LinuxDevice {
    let number = metadata.rdev();
    let mut device = LinuxDevice::default();
    device
        .set_path(path)
        .set_typ(kind)
        .set_major(i64::from(libc::major(number)))
        .set_minor(i64::from(libc::minor(number)))
        .set_file_mode(Some(metadata.mode() & 0o7777))
        .set_uid(Some(metadata.uid()))
        .set_gid(Some(metadata.gid()));
    device
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(host: &str, permissions: &str) -> v1::Device {
        v1::Device {
            container_path: "/dev/x".into(),
            host_path: host.into(),
            permissions: permissions.into(),
        }
    }

    #[test]
    fn a_device_is_found_with_its_numbers() {
        let found = resolve(&wish("/dev/null", "rw")).unwrap();
        let (device, rule) = &found[0];
        assert_eq!((device.major(), device.minor()), (1, 3));
        assert_eq!(device.path(), Path::new("/dev/x"));
        assert_eq!(rule.access().as_deref(), Some("rw"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        assert!(resolve(&wish("/etc/passwd", "r")).is_err());
        assert!(resolve(&wish("/dev/absent-device", "r")).is_err());
        assert!(resolve(&wish("/dev/null", "x")).is_err());
    }
}
