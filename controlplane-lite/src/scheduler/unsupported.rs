// SPDX-License-Identifier: Apache-2.0
//! Constraints that this scheduler does not know. To ignore one would place a pod where it must not
//! be, so the pod stays Pending and the field is named.

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// The path of the first field that is not supported.
pub(crate) fn field(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    affinity(spec)
        .or_else(|| spreading(spec))
        .or_else(|| volumes(spec))
        .or_else(|| {
            let claims = spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty());
            claims.then(|| "spec.resourceClaims".into())
        })
        .or_else(|| {
            spec.scheduling_group
                .as_ref()
                .map(|_| "spec.schedulingGroup".into())
        })
}

fn affinity(spec: &PodSpec) -> Option<String> {
    let affinity = spec.affinity.as_ref()?;
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let with = affinity.pod_affinity.as_ref();
    let with = with.and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    if with.is_some_and(|terms| !terms.is_empty()) {
        return Some(format!("spec.affinity.podAffinity.{required}"));
    }
    let against = affinity.pod_anti_affinity.as_ref();
    let against = against.and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    against
        .is_some_and(|terms| !terms.is_empty())
        .then(|| format!("spec.affinity.podAntiAffinity.{required}"))
}

fn spreading(spec: &PodSpec) -> Option<String> {
    let constraints = spec.topology_spread_constraints.iter().flatten();
    constraints
        .enumerate()
        .find(|(_, c)| c.when_unsatisfiable != "ScheduleAnyway")
        .map(|(index, _)| {
            format!("spec.topologySpreadConstraints[{index}].whenUnsatisfiable: DoNotSchedule")
        })
}

fn volumes(spec: &PodSpec) -> Option<String> {
    let volumes = spec.volumes.iter().flatten().enumerate();
    volumes
        .filter(|(_, v)| v.persistent_volume_claim.is_some() || v.ephemeral.is_some())
        .map(|(index, v)| {
            let kind = if v.ephemeral.is_some() {
                "ephemeral"
            } else {
                "persistentVolumeClaim"
            };
            format!("spec.volumes[{index}].{kind}")
        })
        .next()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::TopologySpreadConstraint;

    use super::*;

    #[test]
    fn hard_spreading_is_named_and_soft_spreading_is_not() {
        let pod = |when: &str| Pod {
            spec: Some(PodSpec {
                topology_spread_constraints: Some(vec![TopologySpreadConstraint {
                    when_unsatisfiable: when.into(),
                    ..TopologySpreadConstraint::default()
                }]),
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        assert_eq!(
            field(&pod("DoNotSchedule")).as_deref(),
            Some("spec.topologySpreadConstraints[0].whenUnsatisfiable: DoNotSchedule")
        );
        assert_eq!(field(&pod("ScheduleAnyway")), None);
    }
}
