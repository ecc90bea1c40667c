// SPDX-License-Identifier: Apache-2.0
//! Security profiles of sandboxes and containers: what is asked for, and what this node can give.
//!
//! What cannot be given is refused by name; running with less confinement than was asked for
//! would be a silent lie.

use std::path::PathBuf;

use crate::fault::{Fault, Result};
use crate::v1;
use crate::v1::security_profile::ProfileType;

/// Which system call filter a process gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seccomp {
    Unconfined,
    RuntimeDefault,
    /// A profile in OCI JSON.
    Localhost(PathBuf),
}

/// Chooses the filter. The deprecated path counts only when the profile is absent; a privileged
/// container is never filtered; nothing said means unconfined, as in containerd (the kubelet always says).
///
/// # Errors
/// When a Localhost profile has no absolute path, or the deprecated path has an unknown form.
pub(crate) fn seccomp(
    profile: Option<&v1::SecurityProfile>,
    deprecated: &str,
    privileged: bool,
) -> Result<Seccomp> {
    if privileged {
        return Ok(Seccomp::Unconfined);
    }
    let Some(profile) = profile else {
        return match deprecated {
            "" | "unconfined" => Ok(Seccomp::Unconfined),
            "runtime/default" | "docker/default" => Ok(Seccomp::RuntimeDefault),
            path => match path.strip_prefix("localhost/") {
                Some(path) => localhost(path),
                None => Err(Fault::invalid(format!("invalid seccomp profile {path:?}"))),
            },
        };
    };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(Seccomp::Unconfined),
        ProfileType::RuntimeDefault => Ok(Seccomp::RuntimeDefault),
        ProfileType::Localhost => localhost(
            profile
                .localhost_ref
                .strip_prefix("localhost/")
                .unwrap_or(&profile.localhost_ref),
        ),
    }
}

// An empty reference once meant "unconfined" to kubelets (CVE-2023-2431); here it is an error.
fn localhost(path: &str) -> Result<Seccomp> {
    if !path.starts_with('/') {
        return Err(Fault::invalid(format!(
            "seccomp localhost profile {path:?} is not an absolute path"
        )));
    }
    Ok(Seccomp::Localhost(PathBuf::from(path)))
}

/// The filter of a container; its execs have the same.
///
/// # Errors
/// As [`seccomp`].
#[expect(deprecated, reason = "old clients fill the old field only")]
pub(crate) fn container_seccomp(context: &v1::LinuxContainerSecurityContext) -> Result<Seccomp> {
    seccomp(
        context.seccomp.as_ref(),
        &context.seccomp_profile_path,
        context.privileged,
    )
}

/// The filter that a sandbox asks for. Pause runs no code of the pod; only its form is checked.
///
/// # Errors
/// As [`seccomp`].
#[expect(deprecated, reason = "old clients fill the old field only")]
pub(crate) fn sandbox_seccomp(context: &v1::LinuxSandboxSecurityContext) -> Result<Seccomp> {
    seccomp(
        context.seccomp.as_ref(),
        &context.seccomp_profile_path,
        context.privileged,
    )
}

/// The AppArmor profile of a container.
///
/// # Errors
/// As [`apparmor`].
#[expect(deprecated, reason = "old clients fill the old field only")]
pub(crate) fn container_apparmor(
    context: &v1::LinuxContainerSecurityContext,
    kernel_has_it: bool,
    default: Option<String>,
) -> Result<Option<String>> {
    apparmor(
        context.apparmor.as_ref(),
        &context.apparmor_profile,
        kernel_has_it,
        default.filter(|_| !context.privileged),
    )
}

/// Checks an AppArmor wish against the kernel and returns the profile to change to, if any.
///
/// `default` is the profile of who asks for RuntimeDefault or, as with containerd, for nothing. It is
/// none where there is no such profile (see [`super::apparmor`]), and for privileged containers.
///
/// # Errors
/// When a profile of the host is asked for and the kernel has no AppArmor.
pub(crate) fn apparmor(
    profile: Option<&v1::SecurityProfile>,
    deprecated: &str,
    kernel_has_it: bool,
    default: Option<String>,
) -> Result<Option<String>> {
    let name = match profile {
        Some(profile) => match profile.profile_type() {
            ProfileType::Unconfined => return Ok(None),
            ProfileType::RuntimeDefault => return Ok(default),
            ProfileType::Localhost => profile.localhost_ref.as_str(),
        },
        None if deprecated == "unconfined" => return Ok(None),
        None if matches!(deprecated, "" | "runtime/default") => return Ok(default),
        None => deprecated,
    };
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    if name.is_empty() {
        return Err(Fault::invalid("apparmor localhost profile has no name"));
    }
    if !kernel_has_it {
        return Err(Fault::invalid(format!(
            "apparmor profile {name:?} cannot be applied: apparmor is not supported by this kernel"
        )));
    }
    Ok(Some(name.to_owned()))
}

/// Refuses SELinux labels. On a kernel without SELinux a label means nothing, and workloads that name
/// one run there all the same, as with containerd.
///
/// # Errors
/// When any part of a label is given, and the kernel has SELinux.
pub(crate) fn selinux(options: Option<&v1::SeLinuxOption>, kernel_has_it: bool) -> Result<()> {
    let Some(options) = options.filter(|_| kernel_has_it) else {
        return Ok(());
    };
    let fields = [
        ("user", &options.user),
        ("role", &options.role),
        ("type", &options.r#type),
        ("level", &options.level),
    ];
    match fields.iter().find(|(_, value)| !value.is_empty()) {
        None => Ok(()),
        Some((field, value)) => Err(Fault::invalid(format!(
            "selinux_options.{field} {value:?} cannot be applied: podwright does not label processes yet"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(kind: ProfileType, path: &str) -> v1::SecurityProfile {
        v1::SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: path.into(),
        }
    }

    #[test]
    fn the_profile_wins_over_the_deprecated_path() {
        let default = profile(ProfileType::RuntimeDefault, "");
        assert_eq!(
            seccomp(Some(&default), "unconfined", false).unwrap(),
            Seccomp::RuntimeDefault
        );
        assert_eq!(
            seccomp(Some(&default), "", true).unwrap(),
            Seccomp::Unconfined
        );
        assert_eq!(seccomp(None, "", false).unwrap(), Seccomp::Unconfined);
        assert_eq!(
            seccomp(None, "runtime/default", false).unwrap(),
            Seccomp::RuntimeDefault
        );
        let local = profile(ProfileType::Localhost, "/p.json");
        assert_eq!(
            seccomp(Some(&local), "", false).unwrap(),
            Seccomp::Localhost("/p.json".into())
        );
        assert!(seccomp(Some(&profile(ProfileType::Localhost, "")), "", false).is_err());
        assert!(seccomp(None, "what", false).is_err());
    }

    #[test]
    fn the_default_profile_is_for_all_but_those_who_ask_for_another() {
        let default = || Some("podwright-default".to_owned());
        let wish = |kind| apparmor(Some(&profile(kind, "web")), "", true, default()).unwrap();
        assert_eq!(wish(ProfileType::RuntimeDefault), default());
        assert_eq!(wish(ProfileType::Unconfined), None);
        assert_eq!(wish(ProfileType::Localhost).as_deref(), Some("web"));
        for (path, expected) in [
            ("", default()),
            ("runtime/default", default()),
            ("unconfined", None),
        ] {
            assert_eq!(apparmor(None, path, true, default()).unwrap(), expected);
        }
        let privileged = v1::LinuxContainerSecurityContext {
            privileged: true,
            ..Default::default()
        };
        assert_eq!(
            container_apparmor(&privileged, true, default()).unwrap(),
            None
        );
    }

    #[test]
    fn what_the_kernel_lacks_is_refused_by_name() {
        let local = profile(ProfileType::Localhost, "web");
        let error = apparmor(Some(&local), "", false, None).unwrap_err();
        assert!(error.to_string().contains("\"web\""));
        assert_eq!(
            apparmor(Some(&local), "", true, None).unwrap().as_deref(),
            Some("web")
        );
        let wished = profile(ProfileType::RuntimeDefault, "");
        assert_eq!(apparmor(Some(&wished), "", false, None).unwrap(), None);
        let label = v1::SeLinuxOption {
            level: "s0".into(),
            ..Default::default()
        };
        assert!(
            selinux(Some(&label), true)
                .unwrap_err()
                .to_string()
                .contains("selinux_options.level")
        );
        assert!(selinux(Some(&v1::SeLinuxOption::default()), true).is_ok());
        assert!(selinux(Some(&label), false).is_ok());
    }
}
