// SPDX-License-Identifier: Apache-2.0
//! Which handler of the runtime makes a pod, by its RuntimeClass (KEP-585), and what the handler can do.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::deps::Deps;
use super::spec;
use crate::cri_v1::RuntimeHandlerFeatures;
use crate::env::{ObjectError, Objects};
use crate::ports::RuntimeResult;

/// The handler of the pod's class; empty, which is the default one, without a class.
///
/// # Errors
/// The class is not there, or cannot be read.
pub async fn handler(objects: &dyn Objects, pod: &Pod) -> Result<String, ObjectError> {
    match spec::runtime_class(pod) {
        None => Ok(String::new()),
        Some(class) => Ok(objects.runtime_class(class).await?.handler.clone()),
    }
}

/// What a handler can do; `None` when the runtime does not have it. The default handler was asked
/// at the start of the kubelet. Others may come and go with the runtime's configuration.
///
/// # Errors
/// The runtime does not answer.
pub async fn features(deps: &Deps, handler: &str) -> RuntimeResult<Option<RuntimeHandlerFeatures>> {
    if handler.is_empty() {
        return Ok(Some(deps.settings.default_handler));
    }
    let all = deps.runtime.handlers().await?;
    let found = all.into_iter().find(|one| one.name == handler);
    Ok(found.map(|one| one.features.unwrap_or_default()))
}

/// Whether the container's mounts may be read-only recursively. That is only asked where one wants
/// it. A class that is gone can do nothing, as upstream has it: its pods still restart.
pub async fn recursive_read_only_mounts(deps: &Deps, pod: &Pod, container: &Container) -> bool {
    let mut mounts = container.volume_mounts.iter().flatten();
    if !mounts.any(|mount| mount.recursive_read_only.is_some()) {
        return false;
    }
    let Ok(handler) = handler(deps.objects.as_ref(), pod).await else {
        return false;
    };
    let features = features(deps, &handler).await.ok().flatten();
    features.is_some_and(|features| features.recursive_read_only_mounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::NoObjects;
    use crate::pod::testing::pod;

    #[tokio::test]
    async fn a_class_is_read_only_where_one_is_named() {
        let plain = pod("containers: [{name: a, image: x}]");
        let none = handler(&NoObjects, &plain).await.expect("no class");
        assert_eq!(none, "");
        let named = pod("runtimeClassName: c\ncontainers: [{name: a, image: x}]");
        let error = handler(&NoObjects, &named).await.expect_err("no API");
        assert_eq!(
            error.to_string(),
            "runtimeclass.node.k8s.io \"c\" cannot be read: this kubelet has no API server"
        );
    }
}
