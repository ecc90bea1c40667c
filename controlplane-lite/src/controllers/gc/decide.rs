// SPDX-License-Identifier: Apache-2.0
//! What to do with one object, given what the server says about its owners
//! (`attemptToDeleteItem` of kube-controller-manager's garbage collector).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::graph::{FOREGROUND, ORPHAN, has_finalizer};

/// What the server says about one owner reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It exists and stays.
    Solid,
    /// There is no object of that kind, name and uid.
    Dangling,
    /// It is being deleted and waits for its dependents to go first.
    Waiting,
}

/// How the dependents of a deleted object are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// Remove the owner references with these uids.
    Unlink(Vec<String>),
    Delete(Policy),
}

/// `owners` are the references of the object, with what the server says.
pub(crate) fn decide(
    meta: &ObjectMeta,
    owners: &[(String, Owner)],
    has_dependents: bool,
) -> Action {
    if owners.is_empty() || meta.deletion_timestamp.is_some() {
        return Action::Nothing;
    }
    let has = |state: Owner| owners.iter().any(|(_, s)| *s == state);
    if has(Owner::Solid) {
        let gone: Vec<_> = owners
            .iter()
            .filter(|(_, state)| *state != Owner::Solid)
            .map(|(uid, _)| uid.clone())
            .collect();
        return if gone.is_empty() {
            Action::Nothing
        } else {
            Action::Unlink(gone)
        };
    }
    if has(Owner::Waiting) && has_dependents {
        return Action::Delete(Policy::Foreground);
    }
    // A finalizer that somebody put there says how it should go.
    Action::Delete(if has_finalizer(meta, ORPHAN) {
        Policy::Orphan
    } else if has_finalizer(meta, FOREGROUND) {
        Policy::Foreground
    } else {
        Policy::Background
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::machinery::testing::meta;
    use super::*;

    fn check(states: &[Owner], has_dependents: bool) -> Action {
        let owners: Vec<_> = states
            .iter()
            .enumerate()
            .map(|(i, s)| (format!("u{i}"), *s))
            .collect();
        decide(&meta("ns", "a"), &owners, has_dependents)
    }

    #[test]
    fn one_solid_owner_keeps_an_object() {
        assert_eq!(check(&[Owner::Solid], false), Action::Nothing);
        assert_eq!(
            check(&[Owner::Solid, Owner::Dangling, Owner::Waiting], false),
            Action::Unlink(vec!["u1".into(), "u2".into()])
        );
    }

    #[test]
    fn without_one_it_is_deleted() {
        assert_eq!(
            check(&[Owner::Dangling], true),
            Action::Delete(Policy::Background)
        );
        assert_eq!(
            check(&[Owner::Waiting], false),
            Action::Delete(Policy::Background)
        );
        assert_eq!(
            check(&[Owner::Waiting], true),
            Action::Delete(Policy::Foreground)
        );
    }

    #[test]
    fn objects_without_owners_are_left_alone() {
        assert_eq!(check(&[], true), Action::Nothing);
    }

    #[test]
    fn an_orphan_finalizer_decides_how() {
        let mut object = meta("ns", "a");
        object.finalizers = Some(vec![ORPHAN.into()]);
        let owners = [("u".to_owned(), Owner::Dangling)];
        assert_eq!(
            decide(&object, &owners, true),
            Action::Delete(Policy::Orphan)
        );
    }
}
