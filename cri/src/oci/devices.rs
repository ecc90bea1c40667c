// SPDX-License-Identifier: Apache-2.0
//! Device nodes and links of a container's /dev.

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType};
use shim::plan::{Device, DeviceKind, path_in_root};

use super::compile::{CompileError, invalid};

/// The devices that the OCI specification wants in every container, as (name, major, minor).
pub(super) const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// The nodes to make. A container that brings its own /dev gets none, as with runc: they would be
/// made in somebody else's directory.
pub(super) fn devices(linux: &Linux, own_dev: bool) -> Result<Vec<Device>, CompileError> {
    let given = linux.devices().iter().flatten();
    let mut devices = given.map(device).collect::<Result<Vec<_>, _>>()?;
    // Always a link into the container's own devpts.
    devices.retain(|device| own_dev && device.path != "/dev/ptmx");
    for (name, major, minor) in DEFAULT_DEVICES {
        let path = format!("/dev/{name}");
        if own_dev && !devices.iter().any(|device| device.path == path) {
            devices.push(Device {
                path,
                kind: DeviceKind::Char,
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
            });
        }
    }
    Ok(devices)
}

fn device(device: &LinuxDevice) -> Result<Device, CompileError> {
    let given = device.path().to_string_lossy();
    let field = format!("linux.devices[{given}]");
    if !given.starts_with('/') || given.contains('\0') {
        return Err(invalid(field, "its path is not absolute"));
    }
    let path = path_in_root(&given);
    if path == "/" || path == "/proc" || path.starts_with("/proc/") {
        return Err(invalid(field, "no device can be made there"));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return Err(invalid(field, "its type is no device type")),
    };
    let number = |value: i64| u32::try_from(value).map_err(|_| invalid(&field, "number"));
    Ok(Device {
        kind,
        major: number(device.major())?,
        minor: number(device.minor())?,
        mode: device.file_mode().unwrap_or(0o666),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        path,
    })
}

pub(super) fn symlinks() -> Vec<(String, String)> {
    [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/core", "/proc/kcore"),
        ("/dev/ptmx", "pts/ptmx"),
    ]
    .map(|(link, to)| (link.to_owned(), to.to_owned()))
    .into()
}
