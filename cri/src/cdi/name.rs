// SPDX-License-Identifier: Apache-2.0
//! Names of CDI devices: `vendor/class=device`. Pure.

use std::collections::HashMap;

/// Annotations of a container that name devices begin so.
const ANNOTATION: &str = "cdi.k8s.io/";

/// Takes `vendor/class=device` apart.
///
/// # Errors
/// Says which part is none.
pub fn parse(qualified: &str) -> Result<(&str, &str), String> {
    let wrong = |why: String| format!("invalid CDI device name {qualified:?}: {why}");
    let (kind, device) = qualified
        .split_once('=')
        .ok_or_else(|| wrong("it is vendor/class=name".to_owned()))?;
    let (vendor, class) = kind
        .split_once('/')
        .ok_or_else(|| wrong("it is vendor/class=name".to_owned()))?;
    check_vendor(vendor).map_err(wrong)?;
    check_class(class).map_err(wrong)?;
    check_device(device).map_err(wrong)?;
    Ok((kind, device))
}

pub(super) fn check_vendor(vendor: &str) -> Result<(), String> {
    check("vendor", vendor, "_-.", false)
}

pub(super) fn check_class(class: &str) -> Result<(), String> {
    check("class", class, "_-.", false)
}

pub(super) fn check_device(name: &str) -> Result<(), String> {
    check("device name", name, "_-.:", true)
}

/// Letters and digits at both ends (at the beginning letters only, unless `digits`), and these
/// characters too in between.
fn check(what: &str, name: &str, inside: &str, digits: bool) -> Result<(), String> {
    let first = name.chars().next();
    let begins = first.is_some_and(|c| c.is_ascii_alphabetic() || digits && c.is_ascii_digit());
    let ends = name.ends_with(|c: char| c.is_ascii_alphanumeric());
    let plain = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || inside.contains(c));
    match begins && ends && plain {
        true => Ok(()),
        false => Err(format!("invalid {what} {name:?}")),
    }
}

/// The devices that a container's annotations name, in the order of the annotations' names.
///
/// # Errors
/// The first name that is none.
pub(crate) fn annotated(annotations: &HashMap<String, String>) -> Result<Vec<String>, String> {
    let mut entries: Vec<_> = annotations
        .iter()
        .filter(|(name, _)| name.starts_with(ANNOTATION))
        .collect();
    entries.sort();
    let mut all = Vec::new();
    for (_, value) in entries {
        for name in value.split(',') {
            parse(name)?;
            all.push(name.to_owned());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_three_parts() {
        assert_eq!(parse("v.com/gpu=0:1").unwrap(), ("v.com/gpu", "0:1"));
        for bad in [
            "", "gpu", "v/gpu", "v=0", "/gpu=0", "v/=0", "v/g=", "1v/g=0", "v/g=-0", "v/g h=0",
            "v/g=0\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn annotations_name_devices() {
        let annotations = [
            ("cdi.k8s.io/b", "v/c=2"),
            ("cdi.k8s.io/a", "v/c=0,v/c=1"),
            ("other", "x"),
        ];
        let annotations = annotations
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        assert_eq!(
            annotated(&annotations).unwrap(),
            ["v/c=0", "v/c=1", "v/c=2"]
        );
        let bad = [("cdi.k8s.io/a".to_owned(), "x".to_owned())].into();
        assert!(annotated(&bad).is_err());
    }
}
