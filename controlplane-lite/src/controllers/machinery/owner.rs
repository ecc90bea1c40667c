// SPDX-License-Identifier: Apache-2.0
//! Owner references: who controls an object, and which objects a controller may claim.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use super::selector::Selector;

/// The reference with `controller: true`. There is at most one; the API server checks that.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .as_ref()?
        .iter()
        .find(|owner| owner.controller == Some(true))
}

/// A reference that makes `owner` the controller and keeps a foreground deletion of it waiting.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What a controller may do with an object that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is ours.
    Own,
    /// Nobody's, and the selector matches: take it.
    Adopt,
    /// Ours, but the selector does not match any more: let it go.
    Release,
    /// None of our business.
    Leave,
}

/// Decides by controller reference and selector, as upstream's ControllerRefManager does: an owner
/// that is being deleted neither adopts nor releases, and nothing that is being deleted is adopted.
pub(crate) fn claim(owner: &ObjectMeta, selector: &Selector, object: &ObjectMeta) -> Claim {
    let empty = std::collections::BTreeMap::new();
    let matches = selector.matches(object.labels.as_ref().unwrap_or(&empty));
    let owner_going = owner.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(reference) if Some(&reference.uid) != owner.uid.as_ref() => Claim::Leave,
        Some(_) if matches => Claim::Own,
        Some(_) if owner_going => Claim::Leave,
        Some(_) => Claim::Release,
        None if owner_going || !matches || object.deletion_timestamp.is_some() => Claim::Leave,
        None => Claim::Adopt,
    }
}

/// The merge patch that makes `reference` the controller of an object that has `existing` owners.
/// The uid in it makes the server refuse if the name belongs to another object by now.
pub(crate) fn adopt_patch(meta: &ObjectMeta, reference: &OwnerReference) -> serde_json::Value {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.push(reference.clone());
    owners_patch(meta, &owners)
}

/// The merge patch that removes the owners with the uids `gone`.
pub(crate) fn release_patch(meta: &ObjectMeta, gone: &[&str]) -> serde_json::Value {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| !gone.contains(&owner.uid.as_str()));
    owners_patch(meta, &owners)
}

fn owners_patch(meta: &ObjectMeta, owners: &[OwnerReference]) -> serde_json::Value {
    // The resourceVersion turns a stale cache into a conflict: the list replaces the whole field.
    serde_json::json!({"metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "ownerReferences": owners,
    }})
}

#[cfg(test)]
mod tests {
    use super::super::testing::{labels, meta};
    use super::*;

    fn selector() -> Selector {
        Selector::from_labels(&labels(&[("app", "x")]))
    }

    fn owned(uid: &str, app: &str) -> ObjectMeta {
        let mut object = meta("ns", "pod");
        object.labels = Some(labels(&[("app", app)]));
        if !uid.is_empty() {
            object.owner_references = Some(vec![OwnerReference {
                uid: uid.into(),
                controller: Some(true),
                ..OwnerReference::default()
            }]);
        }
        object
    }

    #[test]
    fn claims_follow_controller_and_selector() {
        let owner = meta("ns", "rs");
        let uid = owner.uid.clone().unwrap_or_default();
        let check = |object: &ObjectMeta| claim(&owner, &selector(), object);
        assert_eq!(check(&owned(&uid, "x")), Claim::Own);
        assert_eq!(check(&owned(&uid, "y")), Claim::Release);
        assert_eq!(check(&owned("", "x")), Claim::Adopt);
        assert_eq!(check(&owned("", "y")), Claim::Leave);
        assert_eq!(check(&owned("other", "x")), Claim::Leave);
    }

    #[test]
    fn an_owner_that_goes_neither_adopts_nor_releases() {
        let mut owner = meta("ns", "rs");
        let uid = owner.uid.clone().unwrap_or_default();
        owner.deletion_timestamp = owner.creation_timestamp.clone();
        assert_eq!(claim(&owner, &selector(), &owned("", "x")), Claim::Leave);
        assert_eq!(claim(&owner, &selector(), &owned(&uid, "y")), Claim::Leave);
    }
}
