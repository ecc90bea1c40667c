// SPDX-License-Identifier: Apache-2.0
//! `healthCheckNodePort`: where a load balancer asks each node whether it has endpoints of a Service.

use serde_json::Value;

use super::field::FieldErrors;
use crate::apiserver::json::{self, int, text};

pub(crate) const HEALTH_CHECK: &str = "/spec/healthCheckNodePort";

/// Only a balancer that sends to nodes with endpoints alone needs to know which they are.
pub(crate) fn needs_health_check(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer"
        && text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn number(service: &Value) -> i64 {
    int(service, HEALTH_CHECK).unwrap_or(0)
}

/// On update the port stays for as long as it is needed, and then goes.
pub(super) fn keep(new: &mut Value, old: &Value) {
    let stored = old.pointer(HEALTH_CHECK).cloned();
    match (needs_health_check(new), needs_health_check(old)) {
        (true, true) if number(new) == 0 => {
            json::put(&mut new["spec"], "healthCheckNodePort", stored);
        }
        (false, true) if number(new) == number(old) => {
            json::remove(&mut new["spec"], "healthCheckNodePort");
        }
        _ => {}
    }
}

pub(super) fn validate(service: &Value, errors: &mut FieldErrors) {
    if number(service) != 0 && !needs_health_check(service) {
        errors.invalid(
            "spec.healthCheckNodePort",
            number(service),
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
}

pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    // What an earlier version did not give may still come.
    if needs_health_check(new) && needs_health_check(old) && number(old) != 0 {
        let path = "spec.healthCheckNodePort";
        errors.immutable(path, new.pointer(HEALTH_CHECK), old.pointer(HEALTH_CHECK));
    }
}
