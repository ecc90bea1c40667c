// SPDX-License-Identifier: Apache-2.0
//! From objects to files: what a configMap, secret, downwardAPI or projected volume contains.
//!
//! Pure. Error texts are upstream's, because they end up in `FailedMount` events.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, VolumeProjection,
};

use super::SetUpError;
use crate::env::{metadata_field, resource_field};
use crate::node::NodeFacts;

/// Upstream's default for `defaultMode`.
const DEFAULT_MODE: u32 = 0o644;
/// Linux `PATH_MAX` and `NAME_MAX`.
const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) data: Vec<u8>,
    pub(super) mode: u32,
    /// Owner, when the manifest names one.
    pub(super) user: Option<u32>,
}

/// Files by their path in the volume.
pub(super) type Payload = BTreeMap<String, File>;

/// What holds for every file that doesn't say otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    mode: u32,
    user: Option<u32>,
}

impl Defaults {
    pub(super) fn new(mode: Option<i32>, user: Option<i64>) -> Result<Self, SetUpError> {
        Ok(Self {
            mode: mode.map_or(Ok(DEFAULT_MODE), checked_mode)?,
            user: user.map(checked_user).transpose()?,
        })
    }

    fn file(self, data: Vec<u8>, mode: Option<i32>, user: Option<i64>) -> Result<File, SetUpError> {
        Ok(File {
            data,
            mode: mode.map_or(Ok(self.mode), checked_mode)?,
            user: user.map(checked_user).transpose()?.or(self.user),
        })
    }
}

/// A ConfigMap's keys as files. `None` for an optional map that is absent.
pub(super) fn config_map(
    map: Option<&ConfigMap>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    defaults: Defaults,
) -> Result<Payload, SetUpError> {
    let Some(map) = map else {
        return Ok(Payload::new());
    };
    let text = map.data.iter().flatten();
    let text = text.map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary = map.binary_data.iter().flatten();
    let binary = binary.map(|(key, value)| (key.as_str(), value.0.as_slice()));
    let data: BTreeMap<&str, &[u8]> = binary.chain(text).collect();
    keys(&data, items, optional, defaults, |key| {
        format!("configmap references non-existent config key: {key}")
    })
}

/// A Secret's keys as files. `None` for an optional secret that is absent.
pub(super) fn secret(
    secret: Option<&Secret>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    defaults: Defaults,
) -> Result<Payload, SetUpError> {
    let Some(secret) = secret else {
        return Ok(Payload::new());
    };
    let data = secret.data.iter().flatten();
    let data = data.map(|(key, value)| (key.as_str(), value.0.as_slice()));
    keys(&data.collect(), items, optional, defaults, |key| {
        format!("references non-existent secret key: {key}")
    })
}

fn keys(
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    defaults: Defaults,
    missing: impl Fn(&str) -> String,
) -> Result<Payload, SetUpError> {
    let mut payload = Payload::new();
    match items {
        None | Some([]) => {
            for (key, value) in data {
                payload.insert(
                    (*key).to_owned(),
                    defaults.file(value.to_vec(), None, None)?,
                );
            }
        }
        Some(items) => {
            for item in items {
                match data.get(item.key.as_str()) {
                    Some(value) => {
                        let file = defaults.file(value.to_vec(), item.mode, item.user)?;
                        payload.insert(item.path.clone(), file);
                    }
                    None if optional => {}
                    None => return Err(SetUpError::Refused(missing(&item.key))),
                }
            }
        }
    }
    check_paths(&payload)?;
    Ok(payload)
}

/// The pod's own fields and its containers' resources as files.
pub(super) fn downward_api(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    node: &NodeFacts,
    defaults: Defaults,
) -> Result<Payload, SetUpError> {
    let mut payload = Payload::new();
    for item in items.unwrap_or_default() {
        let value = if let Some(field) = &item.field_ref {
            metadata_field(pod, &field.field_path)
        } else if let Some(selector) = &item.resource_field_ref {
            resource_field(pod, None, selector, node)
        } else {
            let text = format!("downwardAPI item {:?} names no source", item.path);
            return Err(SetUpError::Refused(text));
        };
        let value = value.map_err(|error| SetUpError::Refused(error.to_string()))?;
        let file = defaults.file(value.into_bytes(), item.mode, item.user)?;
        payload.insert(item.path.clone(), file);
    }
    check_paths(&payload)?;
    Ok(payload)
}

/// The manifest's name of a projected source that is not served.
pub(super) fn unsupported_projection(source: &VolumeProjection) -> Option<&'static str> {
    if source.service_account_token.is_some() {
        Some("serviceAccountToken")
    } else if source.cluster_trust_bundle.is_some() {
        Some("clusterTrustBundle")
    } else if source.pod_certificate.is_some() {
        Some("podCertificate")
    } else {
        None
    }
}

fn checked_mode(mode: i32) -> Result<u32, SetUpError> {
    u32::try_from(mode)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| {
            SetUpError::Refused(format!("mode {mode} must be between 0 and 0777 (octal)"))
        })
}

fn checked_user(user: i64) -> Result<u32, SetUpError> {
    u32::try_from(user)
        .map_err(|_| SetUpError::Refused(format!("user {user} must be between 0 and 4294967295")))
}

fn check_paths(payload: &Payload) -> Result<(), SetUpError> {
    for path in payload.keys() {
        check_path(path).map_err(SetUpError::Refused)?;
    }
    Ok(())
}

/// A path that stays in its volume, and off the names that the atomic writer uses.
fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err(format!("invalid path: must not be empty: {path:?}"));
    }
    if path.starts_with('/') {
        return Err(format!("invalid path: must be relative path: {path}"));
    }
    if path.len() > PATH_MAX {
        return Err(format!(
            "invalid path: must be less than or equal to {PATH_MAX} characters"
        ));
    }
    if path.starts_with("..") && path.split('/').next() != Some("..") {
        return Err(format!("invalid path: must not start with '..': {path}"));
    }
    for name in path.split('/') {
        if name == ".." {
            return Err(format!("invalid path: must not contain '..': {path}"));
        }
        if name.is_empty() || name == "." || name.contains('\0') {
            return Err(format!("invalid path: must be a clean path: {path:?}"));
        }
        if name.len() > NAME_MAX {
            return Err(format!(
                "invalid path: filenames must be less than or equal to {NAME_MAX} characters"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map() -> ConfigMap {
        serde_json::from_value(
            json!({"data": {"a": "one", "b": "two"}, "binaryData": {"bin": "AAH/"}}),
        )
        .expect("a map")
    }

    fn items(value: serde_json::Value) -> Vec<KeyToPath> {
        serde_json::from_value(value).expect("items")
    }

    fn defaults() -> Defaults {
        Defaults::new(Some(0o640), None).expect("valid")
    }

    fn show(payload: &Payload) -> Vec<String> {
        payload
            .iter()
            .map(|(path, file)| format!("{path} {:o} {:?} {:?}", file.mode, file.user, file.data))
            .collect()
    }

    #[test]
    fn a_whole_map_becomes_a_file_per_key() {
        let payload = config_map(Some(&map()), None, false, defaults()).expect("valid");
        assert_eq!(
            show(&payload),
            [
                "a 640 None [111, 110, 101]",
                "b 640 None [116, 119, 111]",
                "bin 640 None [0, 1, 255]"
            ]
        );
    }

    #[test]
    fn items_choose_names_modes_and_owners() {
        let chosen = items(json!([{"key": "a", "path": "x/y", "mode": 0o400, "user": 7}]));
        let payload = config_map(Some(&map()), Some(&chosen), false, defaults()).expect("valid");
        assert_eq!(show(&payload), ["x/y 400 Some(7) [111, 110, 101]"]);
    }

    #[test]
    fn missing_keys_are_named_unless_optional() {
        let chosen = items(json!([{"key": "zz", "path": "z"}]));
        let error = config_map(Some(&map()), Some(&chosen), false, defaults());
        assert_eq!(
            error.map_err(|e| e.to_string()),
            Err("configmap references non-existent config key: zz".to_owned())
        );
        let empty = config_map(Some(&map()), Some(&chosen), true, defaults()).expect("valid");
        assert!(empty.is_empty());
        let error = secret(Some(&Secret::default()), Some(&chosen), false, defaults());
        assert_eq!(
            error.map_err(|e| e.to_string()),
            Err("references non-existent secret key: zz".to_owned())
        );
        assert_eq!(
            secret(None, None, true, defaults()).ok(),
            Some(Payload::new())
        );
    }

    #[test]
    fn paths_stay_inside_and_off_the_writers_names() {
        for (path, ok) in [
            ("a", true),
            ("a/b.c/..d", true),
            ("...", false),
            ("..data", false),
            ("..", false),
            ("../a", false),
            ("a/../b", false),
            ("/a", false),
            ("", false),
            ("a//b", false),
            ("a/./b", false),
            ("a/", false),
        ] {
            assert_eq!(check_path(path).is_ok(), ok, "{path:?}");
        }
        assert!(check_path(&"x".repeat(256)).is_err());
    }

    #[test]
    fn modes_and_owners_out_of_range_are_refused() {
        assert!(Defaults::new(Some(0o1000), None).is_err());
        assert!(Defaults::new(Some(-1), None).is_err());
        assert!(Defaults::new(None, Some(1 << 40)).is_err());
    }

    #[test]
    fn the_downward_api_gives_fields_and_resources() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"a": "1"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m"}}}]}}))
            .expect("a pod");
        let files: Vec<DownwardAPIVolumeFile> = serde_json::from_value(json!([
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]))
        .expect("items");
        let payload =
            downward_api(&pod, Some(&files), &NodeFacts::default(), defaults()).expect("valid");
        assert_eq!(payload["labels"].data, b"a=\"1\"");
        assert_eq!(payload["cpu"].data, b"500");
    }
}
