// SPDX-License-Identifier: Apache-2.0
//! Namespaces and nodes.

use serde_json::{Value, json};

use crate::apiserver::{
    json::{self, text},
    resource::Strategy,
};

/// Namespaces: a finalizer holds them until their content is gone.
pub(crate) const NAMESPACE: Strategy = Strategy {
    default: |namespace| {
        // Selectors by name rely on this label.
        let name = text(namespace, "/metadata/name").to_owned();
        if !name.is_empty() {
            let labels = json::object(json::object(namespace, "metadata"), "labels");
            labels["kubernetes.io/metadata.name"] = name.into();
        }
    },
    prepare_create: |namespace| {
        namespace["spec"] = json!({"finalizers": ["kubernetes"]});
        namespace["status"] = json!({"phase": "Active"});
        let name = text(namespace, "/metadata/name").to_owned();
        let labels = json::object(json::object(namespace, "metadata"), "labels");
        labels["kubernetes.io/metadata.name"] = name.into();
    },
    // Only the finalize subresource changes the finalizers.
    prepare_update: |new, old| json::put(new, "spec", old.get("spec").cloned()),
    ..Strategy::NONE
};

/// Nodes.
pub(crate) const NODE: Strategy = Strategy {
    default: |node: &mut Value| {
        json::object(node, "spec");
    },
    validate: |node, errors| {
        for (at, taint) in json::list(node, "/spec/taints").iter().enumerate() {
            let path = format!("spec.taints[{at}]");
            if text(taint, "/key").is_empty() {
                errors.required(format!("{path}.key"), "");
            }
            let effect = text(taint, "/effect");
            if effect.is_empty() {
                errors.required(format!("{path}.effect"), "");
            }
            errors.one_of(
                format!("{path}.effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            );
        }
    },
    validate_update: |new, old, errors| {
        let was = old.pointer("/spec/podCIDR");
        if was.is_some_and(|cidr| cidr != "") && new.pointer("/spec/podCIDR") != was {
            errors.forbidden(
                "spec.podCIDR",
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
        let was = json::list(old, "/spec/podCIDRs");
        if !was.is_empty() && json::list(new, "/spec/podCIDRs") != was {
            errors.forbidden(
                "spec.podCIDRs",
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
        let was = text(old, "/spec/providerID");
        if !was.is_empty() && text(new, "/spec/providerID") != was {
            errors.forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            );
        }
    },
    ..Strategy::NONE
};
