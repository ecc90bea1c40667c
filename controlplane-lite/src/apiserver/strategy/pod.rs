// SPDX-License-Identifier: Apache-2.0
//! Pods: defaults and validation of their specification, which templates share.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    container::{self, Place},
    field::FieldErrors,
    names, pod_update, quantity,
};
use crate::apiserver::{
    json::{self, int, list, text, truth},
    resource::{NameRule, Strategy},
};

/// Seconds that a pod stays on a node that is not ready or cannot be reached.
const TOLERATION_SECS: i64 = 300;
/// Lists of containers in a pod's specification.
const CONTAINERS: &[&str] = &["containers", "initContainers"];

/// Pods.
pub(crate) const POD: Strategy = Strategy {
    default: |pod| {
        json::object(pod, "spec");
        default_spec(&mut pod["spec"]);
        admit(&mut pod["spec"]);
    },
    prepare_create: |pod| {
        let class = qos_class(&pod["spec"]);
        pod["status"] = json!({"phase": "Pending", "qosClass": class});
    },
    prepare_update: |_, _| {},
    validate: |pod, errors| {
        validate_spec(&pod["spec"], "spec", errors);
        // Only a real pod has these; a template must not.
        if text(pod, "/spec/dnsPolicy") == "None"
            && list(pod, "/spec/dnsConfig/nameservers").is_empty()
        {
            errors.required(
                "spec.dnsConfig.nameservers",
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    },
    validate_update: pod_update::validate,
};

/// The quality of service class of a pod.
fn qos_class(spec: &Value) -> &'static str {
    let all = CONTAINERS
        .iter()
        .flat_map(|field| list(spec, &format!("/{field}")));
    container::qos_class(all)
}

/// Fills in the defaults of a pod's specification, in a pod or a template.
pub(super) fn default_spec(spec: &mut Value) {
    json::default_text(spec, "restartPolicy", "Always");
    json::default_text(spec, "dnsPolicy", "ClusterFirst");
    json::default_text(spec, "schedulerName", "default-scheduler");
    json::default(spec, "terminationGracePeriodSeconds", 30);
    json::default(spec, "securityContext", json!({}));
    let old = json::remove(spec, "serviceAccount");
    let account = old
        .as_ref()
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned();
    if !account.is_empty() {
        json::default_text(spec, "serviceAccountName", &account);
    }
    let account = text(spec, "/serviceAccountName").to_owned();
    if !account.is_empty() {
        spec["serviceAccount"] = account.into();
    }
    let host_network = truth(spec, "/hostNetwork");
    for field in CONTAINERS {
        for one in json::items(spec, field) {
            container::default(one, host_network);
        }
    }
    for volume in json::items(spec, "volumes") {
        default_volume(volume);
    }
}

/// What upstream's admission adds to real pods only.
fn admit(spec: &mut Value) {
    json::default(spec, "enableServiceLinks", true);
    json::default_text(spec, "serviceAccountName", "default");
    let account = spec["serviceAccountName"].clone();
    spec["serviceAccount"] = account;
    json::default(spec, "priority", 0);
    json::default(spec, "preemptionPolicy", "PreemptLowerPriority");
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = list(spec, "/tolerations").iter().any(|t| {
            let effect = text(t, "/effect");
            (text(t, "/key") == key
                || (text(t, "/key").is_empty() && text(t, "/operator") == "Exists"))
                && (effect == "NoExecute" || effect.is_empty())
        });
        if tolerated {
            continue;
        }
        let toleration = json!({
            "key": key,
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": TOLERATION_SECS,
        });
        match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
            Some(tolerations) => tolerations.push(toleration),
            None => spec["tolerations"] = json!([toleration]),
        }
    }
}

fn default_volume(volume: &mut Value) {
    if volume
        .as_object()
        .is_some_and(|v| v.keys().all(|k| k == "name"))
    {
        volume["emptyDir"] = json!({});
    }
    for field in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(field).filter(|s| s.is_object()) {
            json::default(source, "defaultMode", 0o644);
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        json::default(path, "type", "");
    }
    for pointer in ["/downwardAPI/items", "/projected/sources"] {
        for item in volume
            .pointer_mut(pointer)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(field) = item.get_mut("fieldRef") {
                json::default_text(field, "apiVersion", "v1");
            }
            let nested = item
                .pointer_mut("/downwardAPI/items")
                .and_then(Value::as_array_mut);
            for item in nested.into_iter().flatten() {
                if let Some(field) = item.get_mut("fieldRef") {
                    json::default_text(field, "apiVersion", "v1");
                }
            }
            if let Some(token) = item.get_mut("serviceAccountToken") {
                json::default(token, "expirationSeconds", 3600);
            }
        }
    }
}

/// Checks a pod's specification, in a pod or a template.
pub(super) fn validate_spec(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let volumes = volumes(spec, path, errors);
    let mut seen = BTreeSet::new();
    for field in CONTAINERS {
        let init = *field == "initContainers";
        for (at, one) in list(spec, &format!("/{field}")).iter().enumerate() {
            let path = format!("{path}.{field}[{at}]");
            let place = Place {
                init,
                volumes: &volumes,
            };
            container::validate(one, &path, place, errors);
            let name = text(one, "/name");
            if !name.is_empty() && !seen.insert(name) {
                errors.duplicate(format!("{path}.name"), name);
            }
        }
    }
    if list(spec, "/containers").is_empty() {
        errors.required(format!("{path}.containers"), "");
    }
    errors.one_of(
        format!("{path}.restartPolicy"),
        text(spec, "/restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    errors.one_of(
        format!("{path}.dnsPolicy"),
        text(spec, "/dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    if let Some(seconds) = int(spec, "/terminationGracePeriodSeconds").filter(|s| *s < 0) {
        errors.invalid(
            format!("{path}.terminationGracePeriodSeconds"),
            seconds,
            "must be greater than or equal to 0",
        );
    }
    if let Some(seconds) = int(spec, "/activeDeadlineSeconds").filter(|s| *s < 1) {
        errors.invalid(
            format!("{path}.activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    names::labels(
        spec.get("nodeSelector"),
        &format!("{path}.nodeSelector"),
        errors,
    );
    tolerations(spec, path, errors);
    identity(spec, path, errors);
    quantity::check_overhead(spec.get("overhead"), &format!("{path}.overhead"), errors);
    host_users(spec, path, errors);
}

/// A pod with a user namespace of its own cannot be in the host's other namespaces, and only such a
/// pod may see all of /proc. The names of the fields are spelled as upstream spells them here.
fn host_users(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let own = spec.get("hostUsers").and_then(Value::as_bool) == Some(false);
    for (field, name) in [
        ("hostNetwork", "hostNetwork"),
        ("hostPID", "HostPID"),
        ("hostIPC", "HostIPC"),
    ] {
        if own && truth(spec, &format!("/{field}")) {
            errors.forbidden(format!("{path}.{name}"), "when `hostUsers` is false");
        }
    }
    for field in CONTAINERS {
        for (at, one) in list(spec, &format!("/{field}")).iter().enumerate() {
            let mount = text(one, "/securityContext/procMount");
            if mount == "Unmasked" && !own {
                errors.invalid(
                    format!("{path}.{field}[{at}].securityContext.procMount"),
                    mount,
                    "`hostUsers` must be false to use `Unmasked`",
                );
            }
        }
    }
}

fn identity(spec: &Value, path: &str, errors: &mut FieldErrors) {
    for (field, rule) in [
        ("hostname", NameRule::Label),
        ("subdomain", NameRule::Label),
        ("serviceAccountName", NameRule::Subdomain),
        ("nodeName", NameRule::Subdomain),
        ("runtimeClassName", NameRule::Subdomain),
    ] {
        let name = text(spec, &format!("/{field}"));
        if name.is_empty() {
            continue;
        }
        if let Some(why) = names::broken(rule, name) {
            errors.invalid(format!("{path}.{field}"), name, why);
        }
    }
    for (at, alias) in list(spec, "/hostAliases").iter().enumerate() {
        let ip = text(alias, "/ip");
        if ip.parse::<std::net::IpAddr>().is_err() {
            errors.invalid(
                format!("{path}.hostAliases[{at}].ip"),
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }
}

/// Checks the tolerations of a pod, or those that a RuntimeClass gives to pods.
pub(super) fn tolerations(spec: &Value, path: &str, errors: &mut FieldErrors) {
    for (at, toleration) in list(spec, "/tolerations").iter().enumerate() {
        let path = format!("{path}.tolerations[{at}]");
        let operator = text(toleration, "/operator");
        errors.one_of(
            format!("{path}.operator"),
            operator,
            &["Equal", "Exists", "Lt", "Gt"],
        );
        let effect = text(toleration, "/effect");
        errors.one_of(
            format!("{path}.effect"),
            effect,
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        );
        if text(toleration, "/key").is_empty() && operator != "Exists" {
            errors.invalid(format!("{path}.operator"), operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"");
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.invalid(
                format!("{path}.effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
    }
}

/// Checks volumes and returns their names.
fn volumes<'a>(spec: &'a Value, path: &str, errors: &mut FieldErrors) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    for (at, volume) in list(spec, "/volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{at}]");
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else if let Some(why) = names::broken(NameRule::Label, name) {
            errors.invalid(format!("{path}.name"), name, why);
        } else if !found.insert(name) {
            errors.duplicate(format!("{path}.name"), name);
        }
        let sources: Vec<_> = volume
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, _)| k)
            .filter(|k| *k != "name")
            .collect();
        match sources.as_slice() {
            [] => errors.required(&path, "must specify a volume type"),
            [_] => {}
            [_, second, ..] => errors.forbidden(
                format!("{path}.{second}"),
                "may not specify more than 1 volume type",
            ),
        }
        for (pointer, field) in [
            ("/hostPath", "path"),
            ("/configMap", "name"),
            ("/secret", "secretName"),
            ("/persistentVolumeClaim", "claimName"),
        ] {
            if let Some(source) = volume.pointer(pointer)
                && text(source, &format!("/{field}")).is_empty()
            {
                errors.required(format!("{path}.{}.{field}", &pointer[1..]), "");
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(mut pod: Value) -> Vec<String> {
        (POD.default)(&mut pod);
        let mut errors = FieldErrors::default();
        (POD.validate)(&pod, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_small_pod_gets_upstreams_defaults() {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "x",
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
            "livenessProbe": {"httpGet": {"port": 80}}, "ports": [{"containerPort": 80}]}],
            "volumes": [{"name": "v"}, {"name": "m", "configMap": {"name": "x"}}]}});
        (POD.default)(&mut pod);
        (POD.prepare_create)(&mut pod);
        let spec = &pod["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
        assert_eq!(spec["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(spec["containers"][0]["livenessProbe"]["periodSeconds"], 10);
        assert_eq!(spec["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["configMap"]["defaultMode"], 420);
        assert_eq!(pod["status"]["qosClass"], "Guaranteed");
        let once = pod.clone();
        (POD.default)(&mut pod);
        assert_eq!(pod, once, "defaults are idempotent");
    }

    #[test]
    fn a_user_namespace_excludes_the_hosts_namespaces() {
        let with = |more: Value| {
            let mut spec = json!({"containers": [{"name": "c", "image": "x"}]});
            spec.as_object_mut()
                .expect("an object")
                .extend(more.as_object().expect("an object").clone());
            errors(json!({ "spec": spec }))
        };
        assert!(with(json!({"hostUsers": false})).is_empty());
        assert!(with(json!({"hostUsers": true, "hostNetwork": true, "hostPID": true})).is_empty());
        assert_eq!(
            with(
                json!({"hostUsers": false, "hostNetwork": true, "hostPID": true, "hostIPC": true})
            ),
            [
                "spec.hostNetwork: Forbidden: when `hostUsers` is false",
                "spec.HostPID: Forbidden: when `hostUsers` is false",
                "spec.HostIPC: Forbidden: when `hostUsers` is false",
            ]
        );
        let unmasked = json!({"containers": [{"name": "c", "image": "x", "securityContext": {"procMount": "Unmasked"}}]});
        assert_eq!(
            with(unmasked.clone()),
            [
                "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`"
            ]
        );
        let mut own = unmasked;
        own["hostUsers"] = false.into();
        assert!(with(own).is_empty());
    }

    #[test]
    fn errors_name_the_field() {
        assert_eq!(
            errors(json!({"spec": {}})),
            ["spec.containers: Required value"]
        );
        let found = errors(
            json!({"spec": {"restartPolicy": "Sometimes", "containers": [
            {"name": "A", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}, {"name": "c", "image": "x"}, {"name": "c", "image": "x"}]}}),
        );
        assert!(
            found[0].starts_with(
                "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label"
            ),
            "{found:?}"
        );
        assert_eq!(found[1], "spec.containers[0].image: Required value");
        assert_eq!(
            found[2],
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\""
        );
        assert_eq!(found[3], "spec.containers[2].name: Duplicate value: \"c\"");
        assert_eq!(
            found[4],
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\""
        );
    }
}
