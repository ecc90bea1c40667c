// SPDX-License-Identifier: Apache-2.0
//! Who a container runs as: the pod's wish, the image's USER, and the image's passwd and group files.
//!
//! Numbers are numbers: text of digits only is never looked up as a name (a passwd line named
//! `1000` with uid 0 would otherwise slip past runAsNonRoot), and nothing above `i32::MAX` is
//! accepted (it would wrap to root somewhere).

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Result};
use crate::image::user::ResolvedUser;
use crate::v1;

/// The largest id that is accepted, as in containerd and runc.
const ID_MAX: i64 = i32::MAX as i64;

/// Resolved identity of a container's processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one among them, sorted.
    pub(crate) groups: Vec<u32>,
    /// Home directory from passwd, `/` when unknown.
    pub(crate) home: String,
}

/// The user part of an image's `USER`, for a kubelet that checks runAsNonRoot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ImageUser {
    Uid(i64),
    Name(String),
}

/// Splits an image's `USER`; empty means uid 0.
pub(crate) fn image_user(user: &str) -> ImageUser {
    let name = user.split(':').next().unwrap_or_default();
    match number(name) {
        _ if name.is_empty() => ImageUser::Uid(0),
        Some(uid) => ImageUser::Uid(uid),
        None => ImageUser::Name(name.to_owned()),
    }
}

/// What to look up in the image, `user[:group]`: as the pod or the image wants it, `0` when nobody
/// says anything.
///
/// # Errors
/// When a group is given without a user, or a number is out of range.
pub(crate) fn wanted(
    context: &v1::LinuxContainerSecurityContext,
    image_user: &str,
) -> Result<String> {
    let spec = unchecked(context, image_user)?;
    for (part, what) in spec.splitn(2, ':').zip(["user", "group"]) {
        if let Some(id) = number_or_negative(part) {
            checked(id, what)?;
        }
    }
    Ok(spec)
}

/// The identity, once the image's files were asked: groups from the image unless the policy is
/// Strict, then the pod's supplemental ones.
///
/// # Errors
/// When a supplemental group is out of range.
pub(crate) fn combine(
    context: &v1::LinuxContainerSecurityContext,
    found: ResolvedUser,
) -> Result<User> {
    let mut groups = vec![found.gid];
    if context.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Merge {
        groups.extend(found.additional_gids);
    }
    for id in &context.supplemental_groups {
        groups.push(checked(*id, "supplemental group")?);
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(User {
        uid: found.uid,
        gid: found.gid,
        groups,
        home: found
            .home
            .filter(|h| h.starts_with('/'))
            .unwrap_or_else(|| "/".to_owned()),
    })
}

fn unchecked(context: &v1::LinuxContainerSecurityContext, image_user: &str) -> Result<String> {
    let user = if !context.run_as_username.is_empty() {
        if context.run_as_username.contains(':') {
            return Err(Fault::invalid(format!(
                "run_as_username {:?} holds a colon",
                context.run_as_username
            )));
        }
        Some(context.run_as_username.clone())
    } else {
        context.run_as_user.map(|u| u.value.to_string())
    };
    match (user, context.run_as_group) {
        (Some(user), Some(group)) => Ok(format!("{user}:{}", group.value)),
        (Some(user), None) => Ok(user),
        (None, Some(group)) => Err(Fault::invalid(format!(
            "run_as_group {} is set without run_as_user or run_as_username",
            group.value
        ))),
        (None, None) if image_user.is_empty() => Ok("0".to_owned()),
        (None, None) => Ok(image_user.to_owned()),
    }
}

fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // Digits too many for i64 are still a number, and out of range.
    digits.then(|| text.parse().unwrap_or(i64::MAX))
}

fn number_or_negative(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(rest) => number(rest).map(|n| -n),
        None => number(text),
    }
}

fn checked(id: i64, what: &str) -> Result<u32> {
    if !(0..=ID_MAX).contains(&id) {
        return Err(Fault::invalid(format!(
            "{what} id {id} is outside 0..={ID_MAX}"
        )));
    }
    u32::try_from(id).map_err(|e| Fault::internal("converting an id", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(context: &v1::LinuxContainerSecurityContext, image: &str) -> String {
        wanted(context, image).unwrap()
    }

    fn web() -> ResolvedUser {
        ResolvedUser {
            uid: 101,
            gid: 102,
            additional_gids: vec![63],
            name: Some("web".into()),
            home: Some("/srv/web".into()),
            numeric: false,
        }
    }

    #[test]
    fn the_image_user_counts_when_the_pod_says_nothing() {
        let mut wish = v1::LinuxContainerSecurityContext::default();
        assert_eq!(check(&wish, ""), "0");
        assert_eq!(check(&wish, "web:audio"), "web:audio");
        wish.run_as_user = Some(v1::Int64Value { value: 101 });
        assert_eq!(check(&wish, "web:audio"), "101");
        wish.run_as_group = Some(v1::Int64Value { value: 9 });
        assert_eq!(check(&wish, "web"), "101:9");
        wish.run_as_username = "app".into();
        assert_eq!(check(&wish, "web"), "app:9");
    }

    #[test]
    fn strict_leaves_the_image_groups_out() {
        let mut wish = v1::LinuxContainerSecurityContext {
            supplemental_groups: vec![7],
            ..Default::default()
        };
        assert_eq!(combine(&wish, web()).unwrap().groups, vec![7, 63, 102]);
        wish.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict as i32;
        assert_eq!(combine(&wish, web()).unwrap().groups, vec![7, 102]);
        wish.supplemental_groups = vec![-1];
        assert!(combine(&wish, web()).is_err());
    }

    #[test]
    fn digits_are_never_a_name_and_ranges_are_checked() {
        let wish = v1::LinuxContainerSecurityContext::default();
        assert_eq!(image_user("1000:5"), ImageUser::Uid(1000));
        assert_eq!(image_user("web:5"), ImageUser::Name("web".into()));
        assert_eq!(image_user(""), ImageUser::Uid(0));
        for bad in [
            "4294967296",
            "2147483648",
            "-1",
            "99999999999999999999",
            "0:2147483648",
        ] {
            assert!(wanted(&wish, bad).is_err(), "{bad}");
        }
        let group_only = v1::LinuxContainerSecurityContext {
            run_as_group: Some(v1::Int64Value { value: 9 }),
            ..Default::default()
        };
        assert!(wanted(&group_only, "").is_err());
    }
}
