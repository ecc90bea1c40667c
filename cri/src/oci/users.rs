// SPDX-License-Identifier: Apache-2.0
//! The user namespace of a container, and its ids.

use oci_spec::runtime::Linux;
use shim::plan::{IdMapping, Namespace, User, UserNamespace};

use super::compile::{CompileError, invalid};
use super::mounts;

/// What the kernel takes in one map (user_namespaces(7)).
const RANGES_MAX: usize = 340;

pub(super) fn users(
    linux: &Linux,
    namespace: Option<Namespace>,
) -> Result<UserNamespace, CompileError> {
    let (uid, gid) = (linux.uid_mappings(), linux.gid_mappings());
    let ids = mounts::id_mappings(uid.as_deref(), gid.as_deref());
    check("linux.uidMappings", &ids.uid)?;
    check("linux.gidMappings", &ids.gid)?;
    let maps = [
        ("linux.uidMappings", &ids.uid),
        ("linux.gidMappings", &ids.gid),
    ];
    match namespace {
        Some(Namespace::New) => {
            for (field, map) in maps {
                // It makes what belongs to the container's root.
                if IdMapping::host_id(map, 0).is_none() {
                    let reason = "a new user namespace needs a mapping of container id 0";
                    return Err(invalid(field, reason));
                }
            }
            Ok(UserNamespace::New(ids))
        }
        Some(Namespace::Join(path)) => Ok(UserNamespace::Join { path, ids }),
        Some(Namespace::Host) | None => {
            for (field, map) in maps {
                if !map.is_empty() {
                    return Err(invalid(field, "there is no user namespace to map ids in"));
                }
            }
            Ok(UserNamespace::Host)
        }
    }
}

/// Finds what the kernel would refuse without saying what.
fn check(field: &str, ranges: &[IdMapping]) -> Result<(), CompileError> {
    if ranges.len() > RANGES_MAX {
        let count = ranges.len();
        let reason = format!("it has {count} ranges, and {RANGES_MAX} is the most");
        return Err(invalid(field, reason));
    }
    for (index, range) in ranges.iter().enumerate() {
        let field = || format!("{field}[{index}]");
        if range.size == 0 {
            return Err(invalid(field(), "its size is zero"));
        }
        for start in [range.container, range.host] {
            // The last id means "none" to the kernel.
            if u64::from(start) + u64::from(range.size) > u64::from(u32::MAX) {
                return Err(invalid(field(), "it goes beyond the largest id"));
            }
        }
        let others = ranges.iter().take(index);
        for (other, before) in others.enumerate() {
            let overlap = |a: u32, b: u32| {
                u64::from(a) < u64::from(b) + u64::from(before.size)
                    && u64::from(b) < u64::from(a) + u64::from(range.size)
            };
            if overlap(range.container, before.container) || overlap(range.host, before.host) {
                return Err(invalid(field(), format!("it overlaps range {other}")));
            }
        }
    }
    Ok(())
}

/// Makes sure that the ids of a process exist, as far as the mappings are known.
pub(super) fn check_user(users: &UserNamespace, user: &User) -> Result<(), CompileError> {
    let (UserNamespace::New(ids) | UserNamespace::Join { ids, .. }) = users else {
        return Ok(());
    };
    let mapped = |field: &str, list: &[IdMapping], id: u32| {
        if list.is_empty() || IdMapping::host_id(list, id).is_some() {
            return Ok(());
        }
        let reason = format!("{id} is not mapped in the container's user namespace");
        Err(invalid(field, reason))
    };
    mapped("process.user.uid", &ids.uid, user.uid)?;
    mapped("process.user.gid", &ids.gid, user.gid)?;
    user.additional_gids
        .iter()
        .try_for_each(|gid| mapped("process.user.additionalGids", &ids.gid, *gid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxIdMapping;
    use serde_json::{Value, json};

    fn ranges(list: Value) -> Result<(), String> {
        let list: Vec<LinuxIdMapping> = serde_json::from_value(list).expect("mappings");
        let ids = mounts::id_mappings(Some(&list), None);
        check("linux.uidMappings", &ids.uid).map_err(|error| error.to_string())
    }

    fn range(container: u32, host: u32, size: u32) -> Value {
        json!({"containerID": container, "hostID": host, "size": size})
    }

    #[test]
    fn ranges_that_the_kernel_would_refuse_are_named() {
        assert!(ranges(json!([range(0, 1000, 1), range(1, 100_000, 65535)])).is_ok());
        for (list, expected) in [
            (json!([range(0, 1, 0)]), "[0] is invalid: its size is zero"),
            (
                json!([range(0, 5, 10), range(9, 100, 1)]),
                "[1] is invalid: it overlaps range 0",
            ),
            (
                json!([range(0, 5, 10), range(20, 14, 1)]),
                "[1] is invalid: it overlaps range 0",
            ),
            (
                json!([range(0, u32::MAX - 1, 5)]),
                "[0] is invalid: it goes beyond",
            ),
        ] {
            let error = ranges(list).expect_err("refused");
            assert!(
                error.starts_with(&format!("linux.uidMappings{expected}")),
                "{error}"
            );
        }
        let many: Vec<Value> = (0..341).map(|n| range(n, n, 1)).collect();
        let error = ranges(json!(many)).expect_err("refused");
        assert!(error.contains("341 ranges"), "{error}");
    }

    #[test]
    fn a_new_user_namespace_needs_its_root_and_mappings_need_a_namespace() {
        let linux = |value: Value| serde_json::from_value::<Linux>(value).expect("a linux part");
        let none = linux(json!({}));
        let error = users(&none, Some(Namespace::New))
            .expect_err("refused")
            .to_string();
        assert!(error.contains("mapping of container id 0"), "{error}");
        let some = linux(json!({"uidMappings": [range(0, 1000, 10)]}));
        let error = users(&some, None).expect_err("refused").to_string();
        assert!(error.starts_with("linux.uidMappings is invalid"), "{error}");
        let both = linux(json!({"uidMappings": [range(0, 1000, 10)],
            "gidMappings": [range(0, 1000, 10)]}));
        let made = users(&both, Some(Namespace::New)).expect("compiles");
        let user = User {
            uid: 10,
            ..User::default()
        };
        let error = check_user(&made, &user).expect_err("refused").to_string();
        assert_eq!(
            error,
            "process.user.uid is invalid: 10 is not mapped in the container's user namespace"
        );
    }
}
