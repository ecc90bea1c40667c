// SPDX-License-Identifier: Apache-2.0
//! What a volume in a manifest asks for; types that are not supported are refused by name.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeSource, EmptyDirVolumeSource, HostPathVolumeSource,
    Pod, ProjectedVolumeSource, SecretVolumeSource, Volume,
};

use super::SetUpError;
use crate::node::NodeFacts;
use crate::quantity::Quantity;

/// A volume type that is served.
#[derive(Debug)]
pub(super) enum Source<'a> {
    EmptyDir(EmptyDir),
    HostPath(&'a HostPathVolumeSource),
    ConfigMap(&'a ConfigMapVolumeSource),
    Secret(&'a SecretVolumeSource),
    DownwardApi(&'a DownwardAPIVolumeSource),
    Projected(&'a ProjectedVolumeSource),
}

/// An emptyDir, ready to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EmptyDir {
    /// A tmpfs of this many bytes (0: no bound), or a directory on disk.
    pub(super) memory_bytes: Option<i64>,
    /// `sizeLimit` on disk: known, and not enforced.
    pub(super) unenforced_limit: Option<String>,
    pub(super) mode: u32,
}

impl Source<'_> {
    /// The plugin's directory name.
    pub(super) fn plugin(&self) -> &'static str {
        match self {
            Self::EmptyDir(_) => "empty-dir",
            Self::HostPath(_) => "host-path",
            Self::ConfigMap(_) => "configmap",
            Self::Secret(_) => "secret",
            Self::DownwardApi(_) => "downward-api",
            Self::Projected(_) => "projected",
        }
    }

    /// True for content that is written by the kubelet and refreshed.
    pub(super) fn is_payload(&self) -> bool {
        !matches!(self, Self::EmptyDir(_) | Self::HostPath(_))
    }

    /// What may hold a secret never reaches a disk.
    pub(super) fn on_tmpfs(&self) -> bool {
        matches!(
            self,
            Self::Secret(_) | Self::DownwardApi(_) | Self::Projected(_)
        )
    }
}

/// Reads a volume's type. A volume without any is an emptyDir, as the API's defaulting has it.
pub(super) fn source<'a>(
    pod: &Pod,
    volume: &'a Volume,
    node: &NodeFacts,
) -> Result<Source<'a>, SetUpError> {
    if let Some(unknown) = unsupported_type(volume) {
        return Err(SetUpError::Refused(format!(
            "volume type {unknown:?} is not supported"
        )));
    }
    Ok(if let Some(source) = &volume.host_path {
        Source::HostPath(source)
    } else if let Some(source) = &volume.config_map {
        Source::ConfigMap(source)
    } else if let Some(source) = &volume.secret {
        Source::Secret(source)
    } else if let Some(source) = &volume.downward_api {
        Source::DownwardApi(source)
    } else if let Some(source) = &volume.projected {
        Source::Projected(source)
    } else {
        let default = EmptyDirVolumeSource::default();
        let source = volume.empty_dir.as_ref().unwrap_or(&default);
        Source::EmptyDir(empty_dir(pod, source, node)?)
    })
}

const SUPPORTED: [&str; 7] = [
    "name",
    "emptyDir",
    "hostPath",
    "configMap",
    "secret",
    "downwardAPI",
    "projected",
];

/// The manifest's own name of a type that is not served. Reading the names off the serialised
/// form covers every type of the API, those of the next version included.
fn unsupported_type(volume: &Volume) -> Option<String> {
    let value = serde_json::to_value(volume).ok()?;
    let mut keys = value.as_object()?.keys();
    keys.find(|key| !SUPPORTED.contains(&key.as_str())).cloned()
}

fn empty_dir(
    pod: &Pod,
    source: &EmptyDirVolumeSource,
    node: &NodeFacts,
) -> Result<EmptyDir, SetUpError> {
    let limit = source.size_limit.as_ref().map(Quantity::from_api);
    let limit = limit
        .transpose()
        .map_err(|error| SetUpError::Refused(format!("sizeLimit: {error}")))?
        .map(Quantity::value)
        .filter(|bytes| *bytes > 0);
    let mode = source.mode.map_or(Ok(0o777), u32::try_from);
    let mode = mode
        .ok()
        .filter(|mode| *mode <= 0o1777)
        .ok_or_else(|| SetUpError::Refused("mode must be between 0000 and 01777".to_owned()))?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(EmptyDir {
            memory_bytes: None,
            unenforced_limit: limit
                .and(source.size_limit.as_ref())
                .map(|limit| limit.0.clone()),
            mode,
        }),
        "Memory" => {
            let bounds = [
                limit,
                pod_memory_limit(pod),
                Some(node.allocatable_memory_bytes).filter(|bytes| *bytes > 0),
            ];
            Ok(EmptyDir {
                memory_bytes: Some(bounds.into_iter().flatten().min().unwrap_or(0)),
                unenforced_limit: None,
                mode,
            })
        }
        other => Err(SetUpError::Refused(format!(
            "emptyDir medium {other:?} is not supported"
        ))),
    }
}

/// The sum of the containers' memory limits, when every container has one.
fn pod_memory_limit(pod: &Pod) -> Option<i64> {
    let containers = &pod.spec.as_ref()?.containers;
    let mut sum = Quantity::default();
    for container in containers {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        sum = sum.saturating_add(Quantity::from_api(limits.get("memory")?).ok()?);
    }
    Some(sum.value()).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check_empty_dir(
        source: serde_json::Value,
        pod_limit: Option<&str>,
    ) -> Result<EmptyDir, String> {
        let resources = pod_limit.map_or(json!({}), |limit| json!({"limits": {"memory": limit}}));
        let pod: Pod = serde_json::from_value(
            json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}),
        )
        .expect("a pod");
        let volume: Volume =
            serde_json::from_value(json!({"name": "v", "emptyDir": source})).expect("a volume");
        let node = NodeFacts {
            allocatable_memory_bytes: 1 << 30,
            ..NodeFacts::default()
        };
        match super::source(&pod, &volume, &node) {
            Ok(Source::EmptyDir(dir)) => Ok(dir),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn memory_is_bounded_by_the_smallest_limit() {
        for (limit, pod_limit, want) in [
            (json!({"medium": "Memory"}), None, 1 << 30),
            (
                json!({"medium": "Memory", "sizeLimit": "16Mi"}),
                None,
                16 << 20,
            ),
            (
                json!({"medium": "Memory", "sizeLimit": "16Mi"}),
                Some("8Mi"),
                8 << 20,
            ),
            (
                json!({"medium": "Memory", "sizeLimit": "2Gi"}),
                None,
                1 << 30,
            ),
            (
                json!({"medium": "Memory", "sizeLimit": "0"}),
                Some("8Mi"),
                8 << 20,
            ),
        ] {
            let got = check_empty_dir(limit.clone(), pod_limit).map(|dir| dir.memory_bytes);
            assert_eq!(got, Ok(Some(want)), "{limit} {pod_limit:?}");
        }
    }

    #[test]
    fn disk_limits_are_kept_for_a_note_and_bad_values_are_refused() {
        let dir = check_empty_dir(json!({"sizeLimit": "1Gi"}), None).expect("valid");
        assert_eq!(dir.memory_bytes, None);
        assert_eq!(dir.unenforced_limit.as_deref(), Some("1Gi"));
        assert_eq!(
            check_empty_dir(json!({"medium": "HugePages"}), None),
            Err("emptyDir medium \"HugePages\" is not supported".to_owned())
        );
        assert!(check_empty_dir(json!({"sizeLimit": "1gb"}), None).is_err());
        assert!(check_empty_dir(json!({"mode": 0o2777}), None).is_err());
    }

    #[test]
    fn other_types_are_refused_by_the_name_in_the_manifest() {
        for (volume, name) in [
            (
                json!({"name": "v", "nfs": {"server": "s", "path": "/"}}),
                "nfs",
            ),
            (
                json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}),
                "persistentVolumeClaim",
            ),
            (json!({"name": "v", "image": {"reference": "r"}}), "image"),
            (json!({"name": "v", "csi": {"driver": "d"}}), "csi"),
        ] {
            let volume: Volume = serde_json::from_value(volume).expect("a volume");
            let got = super::source(&Pod::default(), &volume, &NodeFacts::default());
            assert_eq!(
                got.err().map(|e| e.to_string()),
                Some(format!("volume type {name:?} is not supported"))
            );
        }
    }

    #[test]
    fn no_type_at_all_is_an_empty_dir() {
        let volume: Volume = serde_json::from_value(json!({"name": "v"})).expect("a volume");
        assert!(matches!(
            super::source(&Pod::default(), &volume, &NodeFacts::default()),
            Ok(Source::EmptyDir(_))
        ));
    }
}
