// SPDX-License-Identifier: Apache-2.0
//! The v1 device controller: a default and a list of exceptions, changed line by line.
//!
//! The rules of a spec are evaluated in order, the last match wins; the kernel has no order. So the
//! rules are first brought to what they amount to, and then only the difference to what the kernel
//! has is written: new access before access that goes, so that no device is away in between.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::cgroup::files;
use crate::cgroup::{CgroupError, DeviceRule};

/// What an exception is about; a number that is `None` stands for all.
pub(in crate::cgroup) type Device = (char, Option<u32>, Option<u32>);

const READ: u8 = 1;
const WRITE: u8 = 2;
const MKNOD: u8 = 4;

/// A default, and the access that is otherwise.
#[derive(Debug, Default, PartialEq, Eq)]
struct Policy {
    allow: bool,
    exceptions: BTreeMap<Device, u8>,
}

pub(super) fn apply(dir: &Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    let wanted = policy(rules)?;
    let now = current(&files::read(&dir.join("devices.list"))?);
    let mut sinks = Sinks {
        dir,
        open: [None, None],
    };
    for (allow, line) in changes(&now, &wanted) {
        sinks.write(allow, &line)?;
    }
    Ok(())
}

/// What rules amount to: the default, and the devices with the access (`rwm`) that is otherwise.
///
/// # Errors
/// When they make a hole in a wildcard.
pub(in crate::cgroup) fn list(
    rules: &[DeviceRule],
) -> Result<(bool, Vec<(Device, String)>), CgroupError> {
    let policy = policy(rules)?;
    let exceptions = policy.exceptions.into_iter();
    let named = exceptions.map(|(device, access)| (device, letters(access)));
    Ok((policy.allow, named.collect()))
}

/// The two files, each opened once.
struct Sinks<'a> {
    dir: &'a Path,
    open: [Option<File>; 2],
}

impl Sinks<'_> {
    fn write(&mut self, allow: bool, line: &str) -> Result<(), CgroupError> {
        let names = ["devices.deny", "devices.allow"];
        let path = self.dir.join(names[usize::from(allow)]);
        let failed = |source| CgroupError::Write {
            path: path.clone(),
            value: line.to_owned(),
            source,
        };
        let slot = &mut self.open[usize::from(allow)];
        let file = match slot {
            Some(file) => file,
            None => {
                let open = std::fs::OpenOptions::new().write(true).open(&path);
                slot.insert(open.map_err(failed)?)
            }
        };
        // One write is one rule.
        file.write_all(line.as_bytes()).map_err(failed)
    }
}

fn policy(rules: &[DeviceRule]) -> Result<Policy, CgroupError> {
    let mut policy = Policy::default();
    for rule in rules {
        if rule.kind == 'a' {
            policy = Policy {
                allow: rule.allow,
                ..Policy::default()
            };
            continue;
        }
        let device = (rule.kind, rule.major, rule.minor);
        let mut access = 0;
        for (wanted, bit) in [(rule.read, READ), (rule.write, WRITE), (rule.mknod, MKNOD)] {
            access |= if wanted { bit } else { 0 };
        }
        if rule.allow == policy.allow {
            policy.take_back(device, access)?;
        } else {
            *policy.exceptions.entry(device).or_default() |= access;
        }
    }
    Ok(policy)
}

impl Policy {
    /// Back to the default for this device. What it takes from a wider or a narrower exception the
    /// kernel's list could not say.
    fn take_back(&mut self, device: Device, access: u8) -> Result<(), CgroupError> {
        let partly = |other: &Device, has: u8| {
            other.0 == device.0 && *other != device && has & access != 0 && overlap(*other, device)
        };
        self.exceptions.retain(|other, has| {
            let within = partly(other, *has) && covers(device, *other);
            if within {
                *has &= !access;
            }
            *has != 0
        });
        if let Some((wider, _)) = self.exceptions.iter().find(|(o, has)| partly(o, **has)) {
            return Err(CgroupError::Unsupported {
                field: "linux.resources.devices".to_owned(),
                reason: format!(
                    "cgroup v1 cannot take {} out of {}",
                    line(device, access),
                    line(*wider, access)
                ),
            });
        }
        if let Some(has) = self.exceptions.get_mut(&device) {
            *has &= !access;
        }
        self.exceptions.retain(|_, has| *has != 0);
        Ok(())
    }
}

fn covers(wide: Device, narrow: Device) -> bool {
    let number = |wide: Option<u32>, narrow: Option<u32>| wide.is_none() || wide == narrow;
    number(wide.1, narrow.1) && number(wide.2, narrow.2)
}

fn overlap(a: Device, b: Device) -> bool {
    let number = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
    number(a.1, b.1) && number(a.2, b.2)
}

/// Parses devices.list. With the default to allow it says `a *:* rwm` and shows no exception.
fn current(list: &str) -> Policy {
    let mut policy = Policy::default();
    for entry in list.lines() {
        let mut words = entry.split_whitespace();
        let (Some(kind), Some(numbers), Some(access)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if kind == "a" {
            policy.allow = true;
            continue;
        }
        let (major, minor) = numbers.split_once(':').unwrap_or((numbers, "*"));
        let mut bits = 0;
        for (letter, bit) in [('r', READ), ('w', WRITE), ('m', MKNOD)] {
            bits |= if access.contains(letter) { bit } else { 0 };
        }
        let kind = if kind == "b" { 'b' } else { 'c' };
        let device = (kind, major.parse().ok(), minor.parse().ok());
        *policy.exceptions.entry(device).or_default() |= bits;
    }
    policy
}

/// The lines to write: (to devices.allow, line).
fn changes(now: &Policy, wanted: &Policy) -> Vec<(bool, String)> {
    let mut lines = Vec::new();
    let nothing = BTreeMap::new();
    // With the default to allow, the kernel does not tell its exceptions: start afresh.
    let fresh = now.allow != wanted.allow || wanted.allow;
    if fresh {
        lines.push((wanted.allow, "a".to_owned()));
    }
    let before = if fresh { &nothing } else { &now.exceptions };
    let missing = |from: &BTreeMap<Device, u8>, other: &BTreeMap<Device, u8>, to: bool| {
        let lines = from.iter().filter_map(|(device, access)| {
            let access = access & !other.get(device).copied().unwrap_or(0);
            (access != 0).then(|| (to, line(*device, access)))
        });
        lines.collect::<Vec<_>>()
    };
    lines.extend(missing(&wanted.exceptions, before, !wanted.allow));
    lines.extend(missing(before, &wanted.exceptions, wanted.allow));
    lines
}

/// `c 1:3 rwm`
fn line((kind, major, minor): Device, access: u8) -> String {
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
    let letters = letters(access);
    format!("{kind} {}:{} {letters}", number(major), number(minor))
}

fn letters(access: u8) -> String {
    let all = [('r', READ), ('w', WRITE), ('m', MKNOD)];
    let has = all.into_iter().filter(|(_, bit)| access & bit != 0);
    has.map(|(letter, _)| letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(
        allow: bool,
        kind: char,
        major: Option<u32>,
        minor: Option<u32>,
        access: &str,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major,
            minor,
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        }
    }

    fn lines(now: &str, rules: &[DeviceRule]) -> Vec<(bool, String)> {
        changes(&current(now), &policy(rules).expect("a policy"))
    }

    #[test]
    fn a_new_cgroup_is_closed_and_then_opened() {
        let rules = [
            rule(false, 'a', None, None, "rwm"),
            rule(true, 'c', None, None, "m"),
            rule(true, 'c', Some(1), Some(3), "rw"),
            rule(true, 'c', Some(1), Some(3), "m"),
        ];
        let wanted = [
            (false, "a".to_owned()),
            (true, "c *:* m".to_owned()),
            (true, "c 1:3 rwm".to_owned()),
        ];
        assert_eq!(lines("a *:* rwm\n", &rules), wanted);
    }

    #[test]
    fn only_the_difference_is_written_and_access_goes_last() {
        let rules = [
            rule(true, 'c', Some(1), Some(3), "rwm"),
            rule(true, 'c', Some(1), Some(8), "r"),
        ];
        let now = "c 1:3 rwm\nc 1:5 rwm\nc 1:8 rw\n";
        let wanted = [
            (false, "c 1:5 rwm".to_owned()),
            (false, "c 1:8 w".to_owned()),
        ];
        assert_eq!(lines(now, &rules), wanted);
        assert_eq!(lines("c 1:3 rwm\nc 1:8 r\n", &rules), []);
        let first = lines("b 8:0 r\n", &rules);
        assert_eq!(first.last(), Some(&(false, "b 8:0 r".to_owned())));
    }

    #[test]
    fn all_is_one_line() {
        let all = [rule(true, 'a', None, None, "rwm")];
        assert_eq!(lines("c 1:3 rwm\n", &all), [(true, "a".to_owned())]);
    }

    #[test]
    fn a_hole_in_a_wildcard_cannot_be_said() {
        let rules = [
            rule(true, 'c', Some(1), None, "rw"),
            rule(false, 'c', Some(1), Some(3), "w"),
        ];
        let error = policy(&rules).expect_err("refused").to_string();
        assert!(error.contains("c 1:3 w"), "{error}");
        let narrower_first = [
            rule(true, 'c', Some(1), Some(3), "rw"),
            rule(false, 'c', Some(1), None, "rw"),
        ];
        assert_eq!(
            policy(&narrower_first).expect("a policy"),
            Policy::default()
        );
    }
}
