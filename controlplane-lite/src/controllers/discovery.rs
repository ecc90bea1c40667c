// SPDX-License-Identifier: Apache-2.0
//! Which kinds the server has, for the controllers that must reach all of them.

use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;

/// One kind that the server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    verbs: Vec<String>,
}

impl Served {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// `apiVersion` and `kind`, as owner references name it.
    pub(crate) fn id(&self) -> (String, String) {
        (
            self.resource.api_version.clone(),
            self.resource.kind.clone(),
        )
    }

    /// A client of one namespace, or of the whole cluster for kinds without.
    pub(crate) fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced && !namespace.is_empty() {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}

/// Asks the server for all kinds of all preferred versions.
///
/// # Errors
/// Any group that cannot be read fails the whole: to act on part of the kinds would leave objects
/// behind.
pub(crate) async fn discover(client: &Client) -> Result<Vec<Served>, kube::Error> {
    let mut found = Vec::new();
    for version in client.list_core_api_versions().await?.versions {
        let list = client.list_core_api_resources(&version).await?;
        add(&mut found, "", &version, list.resources);
    }
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.clone();
        let Some(version) = preferred.or_else(|| group.versions.first().cloned()) else {
            continue;
        };
        let list = client
            .list_api_group_resources(&version.group_version)
            .await?;
        add(&mut found, &group.name, &version.version, list.resources);
    }
    Ok(found)
}

fn add(
    found: &mut Vec<Served>,
    group: &str,
    version: &str,
    resources: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource>,
) {
    // A slash marks a subresource.
    for entry in resources
        .into_iter()
        .filter(|entry| !entry.name.contains('/'))
    {
        let api_version = if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        };
        found.push(Served {
            resource: ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version,
                kind: entry.kind,
                plural: entry.name,
            },
            namespaced: entry.namespaced,
            verbs: entry.verbs,
        });
    }
}
