// SPDX-License-Identifier: Apache-2.0
//! Containers: defaults and validation (upstream: `pkg/apis/core/v1/defaults.go` and
//! `pkg/apis/core/validation`).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{field::FieldErrors, names, quantity};
use crate::apiserver::{
    json::{self, int, list, text},
    resource::NameRule,
};

const PROBES: &[&str] = &["livenessProbe", "readinessProbe", "startupProbe"];

/// Fills in a container's defaults.
pub(super) fn default(container: &mut Value, host_network: bool) {
    let image = text(container, "/image").to_owned();
    json::default_text(container, "imagePullPolicy", pull_policy(&image));
    json::default_text(container, "terminationMessagePath", "/dev/termination-log");
    json::default_text(container, "terminationMessagePolicy", "File");
    json::object(container, "resources");
    default_requests(&mut container["resources"]);
    for port in json::items(container, "ports") {
        json::default_text(port, "protocol", "TCP");
        if host_network && int(port, "/hostPort").unwrap_or(0) == 0 {
            let number = port.get("containerPort").cloned();
            json::put(port, "hostPort", number);
        }
    }
    for probe in PROBES {
        if container.get(*probe).is_some_and(Value::is_object) {
            default_probe(&mut container[*probe]);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(get) = container.pointer_mut(&format!("/lifecycle/{hook}/httpGet")) {
            default_http_get(get);
        }
    }
    for variable in json::items(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            json::default_text(field, "apiVersion", "v1");
        }
    }
}

/// An image without a tag, or with `latest`, is pulled always.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.rsplit_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

/// What is limited and not requested is requested as far as it is limited.
fn default_requests(resources: &mut Value) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    for (name, limit) in limits {
        let requests = json::object(resources, "requests");
        json::default(requests, &name, limit);
    }
}

fn default_probe(probe: &mut Value) {
    let set = |probe: &mut Value, field: &str, to: i64| {
        if int(probe, &format!("/{field}")).unwrap_or(0) == 0 {
            probe[field] = to.into();
        }
    };
    set(probe, "timeoutSeconds", 1);
    set(probe, "periodSeconds", 10);
    set(probe, "successThreshold", 1);
    set(probe, "failureThreshold", 3);
    if let Some(get) = probe.get_mut("httpGet") {
        default_http_get(get);
    }
    if let Some(grpc) = probe.get_mut("grpc") {
        json::default(grpc, "service", "");
    }
}

fn default_http_get(get: &mut Value) {
    json::default_text(get, "path", "/");
    json::default_text(get, "scheme", "HTTP");
}

/// What a container's place allows.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) init: bool,
    pub(super) volumes: &'a BTreeSet<&'a str>,
}

/// Checks one container.
pub(super) fn validate(container: &Value, path: &str, place: Place<'_>, errors: &mut FieldErrors) {
    let name = text(container, "/name");
    if name.is_empty() {
        errors.required(format!("{path}.name"), "");
    } else if let Some(why) = names::broken(NameRule::Label, name) {
        errors.invalid(format!("{path}.name"), name, why);
    }
    let image = text(container, "/image");
    if image.is_empty() {
        errors.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        errors.invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        );
    }
    errors.one_of(
        format!("{path}.imagePullPolicy"),
        text(container, "/imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    errors.one_of(
        format!("{path}.terminationMessagePolicy"),
        text(container, "/terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    ports(container, path, errors);
    env(container, path, errors);
    mounts(container, path, place.volumes, errors);
    resources(container, path, errors);
    restart(container, path, place, errors);
    for probe in PROBES {
        if let Some(found) = container.get(*probe) {
            if place.init && text(container, "/restartPolicy") != "Always" {
                errors.forbidden(
                    format!("{path}.{probe}"),
                    "may not be set for init containers without restartPolicy=Always",
                );
            } else {
                check_probe(
                    found,
                    &format!("{path}.{probe}"),
                    *probe != "readinessProbe",
                    errors,
                );
            }
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(found) = container.pointer(&format!("/lifecycle/{hook}")) {
            let path = format!("{path}.lifecycle.{hook}");
            handler(
                found,
                &path,
                &["exec", "httpGet", "tcpSocket", "sleep"],
                errors,
            );
        }
    }
}

fn restart(container: &Value, path: &str, place: Place<'_>, errors: &mut FieldErrors) {
    let policy = text(container, "/restartPolicy");
    if policy.is_empty() {
        return;
    }
    if place.init {
        errors.one_of(format!("{path}.restartPolicy"), policy, &["Always"]);
    } else {
        errors.forbidden(
            format!("{path}.restartPolicy"),
            "may not be set for non-init containers",
        );
    }
}

fn ports(container: &Value, path: &str, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (at, port) in list(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{at}]");
        match int(port, "/containerPort").unwrap_or(0) {
            0 => errors.required(format!("{path}.containerPort"), ""),
            number => port_number(number, &format!("{path}.containerPort"), errors),
        }
        if let Some(number) = int(port, "/hostPort").filter(|n| *n != 0) {
            port_number(number, &format!("{path}.hostPort"), errors);
        }
        let name = text(port, "/name");
        if !name.is_empty() {
            if !is_port_name(name) {
                errors.invalid(format!("{path}.name"), name, "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), at least one letter, at most 15 characters");
            } else if !seen.insert(name) {
                errors.duplicate(format!("{path}.name"), name);
            }
        }
        errors.one_of(
            format!("{path}.protocol"),
            text(port, "/protocol"),
            &["SCTP", "TCP", "UDP"],
        );
    }
}

/// IANA service name: what a port may be called.
pub(super) fn is_port_name(name: &str) -> bool {
    names::broken_port_name(name).is_empty()
}

/// A port is 1 to 65535.
pub(super) fn port_number(number: i64, path: &str, errors: &mut FieldErrors) {
    if !(1..=65_535).contains(&number) {
        errors.invalid(path, number, "must be between 1 and 65535, inclusive");
    }
}

fn env(container: &Value, path: &str, errors: &mut FieldErrors) {
    for (at, variable) in list(container, "/env").iter().enumerate() {
        let path = format!("{path}.env[{at}]");
        let name = text(variable, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else if name.contains('=') || !name.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
            errors.invalid(format!("{path}.name"), name, "a valid environment variable name must consist only of printable ASCII characters other than '='");
        }
        let Some(from) = variable.get("valueFrom").filter(|f| f.is_object()) else {
            continue;
        };
        let sources = [
            "fieldRef",
            "resourceFieldRef",
            "configMapKeyRef",
            "secretKeyRef",
            "fileKeyRef",
        ];
        let given = sources.iter().filter(|s| from.get(**s).is_some()).count();
        if given != 1 {
            let why = if given == 0 {
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
            } else {
                "may not have more than one field specified at a time"
            };
            errors.invalid(format!("{path}.valueFrom"), "", why);
        }
        if !text(variable, "/value").is_empty() {
            errors.invalid(
                format!("{path}.valueFrom"),
                "",
                "may not be specified when `value` is not empty",
            );
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = from.get(source) {
                if text(reference, "/key").is_empty() {
                    errors.required(format!("{path}.valueFrom.{source}.key"), "");
                }
                if text(reference, "/name").is_empty() {
                    errors.required(format!("{path}.valueFrom.{source}.name"), "");
                }
            }
        }
    }
}

fn mounts(container: &Value, path: &str, volumes: &BTreeSet<&str>, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (at, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        let name = text(mount, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else if !volumes.contains(name) {
            errors.not_found(format!("{path}.name"), name);
        }
        let target = text(mount, "/mountPath");
        if target.is_empty() {
            errors.required(format!("{path}.mountPath"), "");
        } else if !seen.insert(target) {
            errors.invalid(format!("{path}.mountPath"), target, "must be unique");
        }
        let sub = text(mount, "/subPath");
        if sub.starts_with('/') {
            errors.invalid(format!("{path}.subPath"), sub, "must be a relative path");
        }
        if sub.split('/').any(|part| part == "..") {
            errors.invalid(format!("{path}.subPath"), sub, "must not contain '..'");
        }
        let expression = text(mount, "/subPathExpr");
        if !sub.is_empty() && !expression.is_empty() {
            errors.invalid(
                format!("{path}.subPathExpr"),
                expression,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
    }
}

fn resources(container: &Value, path: &str, errors: &mut FieldErrors) {
    let amounts = |kind: &str| {
        let found = container
            .pointer(&format!("/resources/{kind}"))
            .and_then(Value::as_object);
        found.cloned().unwrap_or_default()
    };
    let limits = amounts("limits");
    for (kind, map) in [("limits", &limits), ("requests", &amounts("requests"))] {
        for (name, amount) in map {
            let path = format!("{path}.resources.{kind}");
            let amount = amount.as_str().unwrap_or("");
            let Some(value) = quantity::check(amount, &format!("{path}[{name}]"), errors) else {
                continue;
            };
            let limit = limits.get(name).and_then(Value::as_str);
            if let Some(limit) = limit.filter(|l| quantity::milli(l).is_some_and(|l| value > l)) {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.invalid(path, amount, why);
            }
        }
    }
}

fn check_probe(probe: &Value, path: &str, one_success: bool, errors: &mut FieldErrors) {
    handler(
        probe,
        path,
        &["exec", "httpGet", "tcpSocket", "grpc"],
        errors,
    );
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        if let Some(value) = int(probe, &format!("/{field}")).filter(|v| *v < 0) {
            errors.invalid(
                format!("{path}.{field}"),
                value,
                "must be greater than or equal to 0",
            );
        }
    }
    let successes = int(probe, "/successThreshold").unwrap_or(1);
    if one_success && successes != 1 {
        errors.invalid(format!("{path}.successThreshold"), successes, "must be 1");
    }
}

fn handler(handler: &Value, path: &str, known: &[&str], errors: &mut FieldErrors) {
    let given: Vec<_> = known
        .iter()
        .filter(|k| handler.get(**k).is_some())
        .collect();
    match given.as_slice() {
        [] => errors.required(path, "must specify a handler type"),
        [_] => {}
        [_, second, ..] => errors.forbidden(
            format!("{path}.{second}"),
            "may not specify more than 1 handler type",
        ),
    }
    if handler.get("exec").is_some() && list(handler, "/exec/command").is_empty() {
        errors.required(format!("{path}.exec.command"), "");
    }
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        let Some(found) = handler.get(kind) else {
            continue;
        };
        let port = format!("{path}.{kind}.port");
        match found.get("port") {
            Some(Value::Number(number)) => port_number(number.as_i64().unwrap_or(0), &port, errors),
            Some(Value::String(name)) if is_port_name(name) => {}
            Some(Value::String(name)) => {
                errors.invalid(port, name.as_str(), "must be a port number or a port name")
            }
            _ => errors.required(port, ""),
        }
        if kind == "httpGet" {
            errors.one_of(
                format!("{path}.httpGet.scheme"),
                text(found, "/scheme"),
                &["HTTP", "HTTPS"],
            );
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort` (upstream: `pkg/apis/core/helper/qos`).
pub(super) fn qos_class<'a>(containers: impl Iterator<Item = &'a Value>) -> &'static str {
    let zero = json!("0");
    let mut any = false;
    let mut guaranteed = true;
    for container in containers {
        for name in ["cpu", "memory"] {
            let amount = |kind: &str| {
                let found = container.pointer(&format!("/resources/{kind}/{name}"));
                found
                    .unwrap_or(&zero)
                    .as_str()
                    .and_then(quantity::milli)
                    .unwrap_or(0)
            };
            let (limit, request) = (amount("limits"), amount("requests"));
            any |= limit > 0 || request > 0;
            guaranteed &= limit > 0 && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
