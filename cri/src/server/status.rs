// SPDX-License-Identifier: Apache-2.0
//! Version, Status, RuntimeConfig, UpdateRuntimeConfig.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::external::features;
use crate::fault::{Fault, Result, chain};
use crate::runtime::Runtime;
use crate::sandbox::userns;
use crate::settings::{CgroupDriver, Settings};
use crate::{cdi, v1};

/// The name that other tools know this runtime by.
pub(crate) const RUNTIME_NAME: &str = "podwright";
/// CRI's own protocol version of the Version call; the kubelet refuses any other.
const KUBE_API_VERSION: &str = "0.1.0";
/// Plugins may be asked for their status; the kubelet asks us every few seconds.
const NETWORK_STATUS_DEADLINE: Duration = Duration::from_secs(10);

/// Who serves.
pub(crate) fn version() -> v1::VersionResponse {
    v1::VersionResponse {
        version: KUBE_API_VERSION.to_owned(),
        runtime_name: RUNTIME_NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// Readiness of the runtime and of its network.
///
/// # Errors
/// When the verbose information cannot be encoded.
pub(crate) async fn status(
    runtime: &Arc<Runtime>,
    request: &v1::StatusRequest,
) -> Result<v1::StatusResponse> {
    let network = network_condition(runtime).await;
    let mut info = HashMap::new();
    if request.verbose {
        let text = serde_json::to_string(&serde_json::json!({
            "dataDir": runtime.config.data_dir,
            "runDir": runtime.config.run_dir,
            "cgroupParent": runtime.config.cgroup_parent,
            "cgroupV2": runtime.cgroups.is_v2(),
            "cniConfDir": runtime.config.cni_conf_dir,
            "cniBinDir": runtime.config.cni_bin_dir,
            "sandboxes": runtime.sandboxes.all().len(),
            "containers": runtime.containers.all().len(),
            "registriesDir": runtime.config.registries_dir,
            "settings": *runtime.config.settings.get(),
        }))
        .map_err(|e| Fault::internal("encoding status info", e))?;
        info.insert("config".to_owned(), text);
        let dirs = runtime.config.settings.get().cdi.spec_dirs.clone();
        info.insert("cdi".to_owned(), cdi::report(dirs).await?.to_string());
    }
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus {
            conditions: vec![
                v1::RuntimeCondition {
                    r#type: "RuntimeReady".to_owned(),
                    status: true,
                    ..Default::default()
                },
                network,
            ],
        }),
        info,
        runtime_handlers: handlers(runtime).await,
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    })
}

/// All handlers, with what they can do.
async fn handlers(runtime: &Runtime) -> Vec<v1::RuntimeHandler> {
    let mut all = ["", RUNTIME_NAME].map(handler).to_vec();
    for (name, external) in &runtime.config.settings.get().runtimes {
        all.push(v1::RuntimeHandler {
            name: name.clone(),
            features: Some(features::of(&external.path).await),
        });
    }
    all
}

fn handler(name: &str) -> v1::RuntimeHandler {
    v1::RuntimeHandler {
        name: name.to_owned(),
        features: Some(v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: userns::supported(),
        }),
    }
}

async fn network_condition(runtime: &Runtime) -> v1::RuntimeCondition {
    let asked = tokio::time::timeout(NETWORK_STATUS_DEADLINE, runtime.network.status()).await;
    let problem = match asked {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(chain(&error)),
        Err(_) => Some(format!("no answer within {NETWORK_STATUS_DEADLINE:?}")),
    };
    v1::RuntimeCondition {
        r#type: "NetworkReady".to_owned(),
        status: problem.is_none(),
        reason: problem
            .as_ref()
            .map(|_| "NetworkPluginNotReady".to_owned())
            .unwrap_or_default(),
        message: problem
            .map(|p| format!("Network plugin returns error: {p}"))
            .unwrap_or_default(),
    }
}

/// Who makes cgroups: a kubelet that asks does as we do.
pub(crate) fn runtime_config(settings: &Settings) -> v1::RuntimeConfigResponse {
    let driver = match settings.cgroup_driver {
        CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
    };
    v1::RuntimeConfigResponse {
        linux: Some(v1::LinuxRuntimeConfiguration {
            cgroup_driver: driver as i32,
        }),
    }
}

/// The kubelet tells the pod CIDR. podwright's network has its own in the CNI configuration, so a
/// different one is only noted.
pub(crate) fn update_runtime_config(
    request: &v1::UpdateRuntimeConfigRequest,
) -> v1::UpdateRuntimeConfigResponse {
    if let Some(network) = request
        .runtime_config
        .as_ref()
        .and_then(|c| c.network_config.as_ref())
    {
        tracing::info!(pod_cidr = %network.pod_cidr, "the kubelet's pod CIDR; the CNI configuration decides");
    }
    v1::UpdateRuntimeConfigResponse {}
}
