// SPDX-License-Identifier: Apache-2.0
//! Image names and pull policies. Pure; the pulling is in `start`.

use k8s_openapi::api::core::v1::Container;

/// When to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// Only when the runtime does not have it.
    IfNotPresent,
    /// Never: it has to be there.
    Never,
}

/// `imagePullPolicy`, or what defaulting makes of the tag.
pub fn pull_policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        None => match default_policy(container.image.as_deref().unwrap_or_default()) {
            "Always" => PullPolicy::Always,
            _ => PullPolicy::IfNotPresent,
        },
    }
}

/// What the API server would default `imagePullPolicy` to.
pub fn default_policy(image: &str) -> &'static str {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let name = rest.rsplit('/').next().unwrap_or_default();
    match name.split_once(':').map(|(_, tag)| tag) {
        Some("latest") => "Always",
        Some(_) => "IfNotPresent",
        None if digest.is_some() => "IfNotPresent",
        None => "Always",
    }
}

/// The reference with `:latest` where it has neither tag nor digest.
///
/// # Errors
/// Upstream's text for InvalidImageName.
pub fn with_default_tag(image: &str) -> Result<String, String> {
    if !is_reference(image) {
        return Err(format!(
            "couldn't parse image name \"{image}\": invalid reference format"
        ));
    }
    let tagged = image.contains('@')
        || image
            .rsplit('/')
            .next()
            .is_some_and(|name| name.contains(':'));
    Ok(if tagged {
        image.to_owned()
    } else {
        format!("{image}:latest")
    })
}

/// The waiting reason and message for a failed pull. Runtimes say why by a prefix of their message
/// (kubernetes/cri-api, pkg/errors).
pub fn pull_failure(image: &str, error: &str) -> (&'static str, String) {
    let kinds = [
        ("RegistryUnavailable", "the registry is unavailable"),
        (
            "SignatureValidationFailed",
            "the signature validation failed",
        ),
    ];
    for (reason, words) in kinds {
        let detail = error.split_once(&format!("desc = {reason}"));
        if let Some((_, detail)) = detail {
            let detail = detail.trim_start_matches([':', ' ']);
            return (
                reason,
                format!("image pull failed for {image} because {words}: {detail}"),
            );
        }
    }
    ("ErrImagePull", error.to_owned())
}

/// The registry part of a reference, as in a dockerconfigjson's keys.
pub fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

/// The grammar of github.com/distribution/reference.
fn is_reference(image: &str) -> bool {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let digest_ok = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty()
                && hex.len() >= 32
                && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    });
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    let tag_ok = tag.is_none_or(|tag| {
        let first = tag.bytes().next();
        tag.len() <= 128
            && first.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && tag
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    });
    digest_ok && tag_ok && is_name(path)
}

fn is_name(path: &str) -> bool {
    if path.is_empty() || path.len() > 255 {
        return false;
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    let host = registry(path);
    if parts.len() > 1 && parts[0] == host {
        parts.remove(0);
        let (name, port) = host.rsplit_once(':').unwrap_or((host, "0"));
        let name_ok = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-[]:".contains(&byte));
        if name.is_empty() || !name_ok || port.parse::<u16>().is_err() {
            return false;
        }
    }
    parts.iter().all(|part| is_component(part))
}

fn is_component(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = part.bytes().next().is_some_and(alphanumeric)
        && part.bytes().last().is_some_and(alphanumeric);
    let inner = part
        .bytes()
        .all(|byte| alphanumeric(byte) || b"._-".contains(&byte));
    edges && inner && !part.contains("..") && !part.contains("___")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_checked_and_tagged() {
        let good = [
            ("busybox", "busybox:latest"),
            ("busybox:1.36", "busybox:1.36"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("quay.io/a/b:v1", "quay.io/a/b:v1"),
            (
                "r.io/a@sha256:0123456789abcdef0123456789abcdef",
                "r.io/a@sha256:0123456789abcdef0123456789abcdef",
            ),
        ];
        for (image, expected) in good {
            assert_eq!(with_default_tag(image).as_deref(), Ok(expected));
        }
        for bad in [
            "",
            "Busy",
            "a//b",
            "a:",
            "a b",
            "-a",
            "a@sha256:zz",
            "x:y:z",
            "a/..b",
        ] {
            assert!(with_default_tag(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_failed_pull_says_whose_fault_it_is() {
        let (reason, message) = pull_failure(
            "r/x",
            "rpc error: code = Unavailable desc = RegistryUnavailable: refused",
        );
        assert_eq!(reason, "RegistryUnavailable");
        assert_eq!(
            message,
            "image pull failed for r/x because the registry is unavailable: refused"
        );
        assert_eq!(
            pull_failure("x", "not found"),
            ("ErrImagePull", "not found".to_owned())
        );
    }

    #[test]
    fn the_policy_defaults_by_tag() {
        let cases = [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("h:5/a", "Always"),
            ("a@sha256:0", "IfNotPresent"),
        ];
        for (image, expected) in cases {
            assert_eq!(default_policy(image), expected, "{image}");
        }
    }
}
