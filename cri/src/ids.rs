// SPDX-License-Identifier: Apache-2.0
//! Identifiers: 64 hex digits, made at random, and looked up by any unambiguous prefix.

use crate::fault::{Fault, Result};
use crate::v1;

/// A fresh identifier. Random, so it needs neither a clock nor a counter that survives a crash.
pub(crate) fn fresh() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether `text` can be an identifier or its prefix. What is not cannot name a file either.
pub(crate) fn is_prefix(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Finds the one identifier that `given` names, in full or by prefix.
///
/// # Errors
/// Not found (with `given`, as callers search the text for it), or ambiguous.
pub(crate) fn resolve<'a>(
    what: &str,
    known: impl Iterator<Item = &'a String>,
    given: &str,
) -> Result<&'a String> {
    if given.is_empty() {
        return Err(Fault::invalid(format!("{what} id must not be empty")));
    }
    let candidates: Vec<&'a String> = known.filter(|id| id.starts_with(given)).collect();
    if let Some(exact) = candidates.iter().find(|id| **id == given) {
        return Ok(exact);
    }
    match candidates.as_slice() {
        [] => Err(Fault::not_found(what, given)),
        [one] => Ok(one),
        _ => Err(Fault::invalid(format!(
            "{what} id {given:?} is ambiguous: more than one begins with it"
        ))),
    }
}

/// The reserved name of a sandbox: `name_namespace_uid_attempt`, as containerd builds it.
///
/// # Errors
/// When the metadata lacks name, namespace or uid.
pub(crate) fn sandbox_name(config: &v1::PodSandboxConfig) -> Result<String> {
    let metadata = config
        .metadata
        .as_ref()
        .ok_or_else(|| Fault::invalid("sandbox config has no metadata"))?;
    for (field, value) in [
        ("name", &metadata.name),
        ("namespace", &metadata.namespace),
        ("uid", &metadata.uid),
    ] {
        if value.is_empty() {
            return Err(Fault::invalid(format!(
                "sandbox config metadata has no {field}"
            )));
        }
    }
    Ok(format!(
        "{}_{}_{}_{}",
        metadata.name, metadata.namespace, metadata.uid, metadata.attempt
    ))
}

/// The reserved name of a container: `name_<sandbox name without attempt>_attempt`, as containerd builds it.
///
/// # Errors
/// When the metadata is absent or has no name.
pub(crate) fn container_name(
    config: &v1::ContainerConfig,
    sandbox: &v1::PodSandboxConfig,
    sandbox_id: &str,
) -> Result<String> {
    let metadata = config
        .metadata
        .as_ref()
        .filter(|m| !m.name.is_empty())
        .ok_or_else(|| Fault::invalid("container config metadata has no name"))?;
    let pod = sandbox.metadata.clone().unwrap_or_default();
    // The sandbox id is part of it, because a pod's second sandbox starts its containers at attempt 0 too.
    Ok(format!(
        "{}_{}_{}_{}_{}_{}",
        metadata.name, pod.name, pod.namespace, pod.uid, metadata.attempt, sandbox_id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Vec<String> {
        vec!["abc1".into(), "abc2".into(), "ab".into(), "f00".into()]
    }

    #[test]
    fn a_prefix_finds_its_only_owner_and_an_exact_match_wins() {
        let known = ids();
        assert_eq!(resolve("container", known.iter(), "f").unwrap(), "f00");
        assert_eq!(resolve("container", known.iter(), "ab").unwrap(), "ab");
        let error = resolve("container", known.iter(), "abc").unwrap_err();
        assert!(error.to_string().contains("ambiguous"));
        assert!(resolve("container", known.iter(), "zz").is_err());
        assert!(resolve("container", known.iter(), "").is_err());
    }

    #[test]
    fn fresh_ids_are_long_and_differ() {
        let (a, b) = (fresh(), fresh());
        assert_eq!(a.len(), 64);
        assert_ne!(a, b);
        assert!(is_prefix(&a));
        assert!(!is_prefix("../etc"));
    }

    #[test]
    fn names_follow_the_metadata() {
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                uid: "u".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            ..Default::default()
        };
        assert_eq!(sandbox_name(&config).unwrap(), "web_default_u_2");
        assert!(sandbox_name(&v1::PodSandboxConfig::default()).is_err());
    }
}
