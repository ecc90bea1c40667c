// SPDX-License-Identifier: Apache-2.0
//! `slice:prefix:name` to a unit and its place in the tree.

use crate::cgroup::{CgroupError, CgroupPath};

/// Where a container's cgroup is: `cgroupsPath` in systemd's form, or by default `podwright-<id>`
/// in system.slice.
///
/// # Errors
/// When it is not of the form `slice:prefix:name`, or names no slice.
pub fn systemd_path(cgroups_path: Option<&str>, id: &str) -> Result<CgroupPath, CgroupError> {
    let default = format!("system.slice:podwright:{id}");
    let given = cgroups_path
        .filter(|path| !path.is_empty())
        .unwrap_or(&default);
    let parts: Vec<&str> = given.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        return Err(invalid(format!(
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {given:?} instead"
        )));
    };
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let unit = unit(prefix, name)?;
    let above = expand(slice)?;
    CgroupPath::new(&format!("{above}/{unit}"))
}

/// The slice that stands for a cgroup's path, as the kubelet and containerd have it: the last part
/// where that is a slice, else one that is named after all parts, in which `_` replaces `-`.
///
/// # Errors
/// When it is a path that no slice can have.
pub fn slice_path(path: &str) -> Result<CgroupPath, CgroupError> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let slice = match parts.last() {
        Some(last) if last.ends_with(".slice") => (*last).to_owned(),
        _ => format!(
            "{}.slice",
            parts.join("/").replace('-', "_").replace('/', "-")
        ),
    };
    if slice.len() > UNIT_MAX || !slice.chars().all(plain) {
        return Err(invalid(format!("{slice:?} is no unit name")));
    }
    CgroupPath::new(&expand(&slice)?)
}

/// systemd takes no longer names.
const UNIT_MAX: usize = 255;

fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || ":-_.\\@".contains(c)
}

fn invalid(reason: String) -> CgroupError {
    CgroupError::Invalid {
        field: "linux.cgroupsPath".to_owned(),
        reason,
    }
}

/// A name that is a slice stays one; everything else becomes a scope.
fn unit(prefix: &str, name: &str) -> Result<String, CgroupError> {
    let unit = match name.ends_with(".slice") {
        true => name.to_owned(),
        false if prefix.is_empty() => format!("{name}.scope"),
        false => format!("{prefix}-{name}.scope"),
    };
    match name.is_empty() || unit.len() > UNIT_MAX || !unit.chars().all(plain) {
        true => Err(invalid(format!("{unit:?} is no unit name"))),
        false => Ok(unit),
    }
}

/// A dash in a slice's name is a level: `a-b.slice` lies at `a.slice/a-b.slice`.
fn expand(slice: &str) -> Result<String, CgroupError> {
    let wrong = || invalid(format!("invalid slice name: {slice}"));
    let name = slice.strip_suffix(".slice").ok_or_else(wrong)?;
    if name == "-" {
        return Ok(String::new());
    }
    if name.split('-').any(str::is_empty) || slice.contains('/') {
        return Err(wrong());
    }
    let ends = name.match_indices('-').map(|(at, _)| at);
    let parts = ends
        .chain([name.len()])
        .map(|end| format!("{}.slice", &name[..end]));
    Ok(parts.collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(given: &str) -> Result<String, String> {
        systemd_path(Some(given), "id")
            .map(|path| path.as_str().to_owned())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn slices_nest_by_dashes() {
        assert_eq!(
            path("a-b-c.slice:crio:x").unwrap(),
            "a.slice/a-b.slice/a-b-c.slice/crio-x.scope"
        );
        assert_eq!(path(":p:x").unwrap(), "system.slice/p-x.scope");
        assert_eq!(path("-.slice::x").unwrap(), "x.scope");
        assert_eq!(path("a.slice::a-b.slice").unwrap(), "a.slice/a-b.slice");
        let default = systemd_path(None, "id").unwrap();
        assert_eq!(default.as_str(), "system.slice/podwright-id.scope");
    }

    #[test]
    fn a_path_is_a_slice() {
        let path = |given| slice_path(given).map(|path| path.as_str().to_owned());
        let kubelets = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        assert_eq!(path(kubelets).unwrap(), &kubelets[1..]);
        assert_eq!(
            path("kubepods-burstable-pod1_2.slice").unwrap(),
            &kubelets[1..]
        );
        assert_eq!(
            path("/podwright/pod1-2/").unwrap(),
            "podwright.slice/podwright-pod1_2.slice"
        );
        for bad in ["", "/", "-.slice", "/a--b.slice", "/a b", "/ä", "/a/../b c"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in [
            "/a/b",
            "a:b",
            "a.slice:b:c:d",
            "a:b:c",
            "-a.slice:b:c",
            "a--b.slice:b:c",
            "x/y.slice:b:c",
            "a.slice:b:",
            "a.slice:b:c/d",
            "a.slice:b:c d",
        ] {
            let error = path(bad).expect_err(bad);
            assert!(error.starts_with("linux.cgroupsPath is invalid"), "{error}");
        }
    }
}
