// SPDX-License-Identifier: Apache-2.0
//! From what people type (`po`, `deploy/web`, `pods,svc`, `deployments.apps`) to kinds and names.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;

use super::connection::Server;
use super::failure::answer;

/// A kind that the server has.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    singular: String,
    short: Vec<String>,
    categories: Vec<String>,
}

/// What a command is about: one kind, and some names or all.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) names: Vec<String>,
}

impl Kind {
    fn is_called(&self, name: &str) -> bool {
        let lower = name.to_lowercase();
        let (word, group) = lower
            .split_once('.')
            .map_or((lower.as_str(), None), |(w, g)| (w, Some(g)));
        let same_group = group.is_none_or(|group| {
            let versioned = format!("{}.{}", self.resource.version, self.resource.group);
            group == self.resource.group || group == versioned
        });
        let words = [
            self.resource.plural.clone(),
            self.singular.clone(),
            self.resource.kind.to_lowercase(),
        ];
        same_group && (words.iter().any(|w| w == word) || self.short.iter().any(|s| s == word))
    }

    /// `pod/x` or `deployment.apps/x`, as kubectl prints it.
    pub(crate) fn label(&self, name: &str) -> String {
        format!("{}/{name}", self.noun())
    }

    /// `pod` or `deployment.apps`.
    pub(crate) fn noun(&self) -> String {
        let kind = self.resource.kind.to_lowercase();
        if self.resource.group.is_empty() {
            kind
        } else {
            format!("{kind}.{}", self.resource.group)
        }
    }

    /// The collection in a namespace, or of the whole cluster.
    pub(crate) fn api(&self, server: &Server, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => {
                Api::namespaced_with(server.client.clone(), namespace, &self.resource)
            }
            None => Api::all_with(server.client.clone(), &self.resource),
        }
    }
}

/// All kinds of the server's preferred versions.
pub(crate) async fn discover(server: &Server) -> anyhow::Result<Vec<Kind>> {
    let client = &server.client;
    let mut kinds = Vec::new();
    let core = answer(client.list_core_api_resources("v1")).await?;
    add(&mut kinds, "", "v1", core.resources);
    for group in answer(client.list_api_groups()).await?.groups {
        let Some(version) = group
            .preferred_version
            .or_else(|| group.versions.first().cloned())
        else {
            continue;
        };
        let list = answer(client.list_api_group_resources(&version.group_version)).await?;
        add(&mut kinds, &group.name, &version.version, list.resources);
    }
    Ok(kinds)
}

fn add(kinds: &mut Vec<Kind>, group: &str, version: &str, resources: Vec<APIResource>) {
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
        kinds.push(Kind {
            resource: ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version,
                kind: entry.kind,
                plural: entry.name,
            },
            namespaced: entry.namespaced,
            singular: entry.singular_name,
            short: entry.short_names.unwrap_or_default(),
            categories: entry.categories.unwrap_or_default(),
        });
    }
}

/// The kind of an object in a manifest.
///
/// # Errors
/// When the server does not have it.
pub(crate) fn of_object(kinds: &[Kind], api_version: &str, kind: &str) -> anyhow::Result<Kind> {
    let found = kinds
        .iter()
        .find(|k| k.resource.api_version == api_version && k.resource.kind == kind);
    found
        .cloned()
        .ok_or_else(|| anyhow::anyhow!("no matches for kind {kind:?} in version {api_version:?}"))
}

fn find(kinds: &[Kind], word: &str) -> anyhow::Result<Kind> {
    let found = kinds.iter().find(|kind| kind.is_called(word));
    found
        .cloned()
        .ok_or_else(|| anyhow::anyhow!("the server doesn't have a resource type {word:?}"))
}

/// Parses `TYPE[,TYPE…] [NAME…]` or `TYPE/NAME…`.
///
/// # Errors
/// When a type is not known, or the two forms are mixed.
pub(crate) fn targets(kinds: &[Kind], words: &[String]) -> anyhow::Result<Vec<Target>> {
    let Some(first) = words.first() else {
        anyhow::bail!(
            "You must specify the type of resource, such as \"pods\" or \"deployment/web\""
        );
    };
    if words.iter().any(|word| word.contains('/')) {
        return words.iter().map(|word| slashed(kinds, word)).collect();
    }
    let names = words[1..].to_vec();
    let mut targets = Vec::new();
    for word in first.split(',').filter(|word| !word.is_empty()) {
        let members: Vec<_> = kinds
            .iter()
            .filter(|k| k.categories.iter().any(|c| c == word))
            .cloned()
            .collect();
        let found = if members.is_empty() {
            vec![find(kinds, word)?]
        } else {
            members
        };
        targets.extend(found.into_iter().map(|kind| Target {
            kind,
            names: names.clone(),
        }));
    }
    Ok(targets)
}

fn slashed(kinds: &[Kind], word: &str) -> anyhow::Result<Target> {
    match word.split_once('/') {
        Some((kind, name)) if !name.is_empty() && !name.contains('/') => Ok(Target {
            kind: find(kinds, kind)?,
            names: vec![name.to_owned()],
        }),
        _ => anyhow::bail!(
            "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (found {word:?})"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds() -> Vec<Kind> {
        let entry = |name: &str, kind: &str, short: &str| APIResource {
            name: name.into(),
            kind: kind.into(),
            singular_name: kind.to_lowercase(),
            namespaced: true,
            short_names: Some(vec![short.into()]),
            categories: Some(vec!["all".into()]),
            ..APIResource::default()
        };
        let mut kinds = Vec::new();
        add(
            &mut kinds,
            "",
            "v1",
            vec![entry("pods", "Pod", "po"), entry("pods/log", "Pod", "")],
        );
        add(
            &mut kinds,
            "apps",
            "v1",
            vec![entry("deployments", "Deployment", "deploy")],
        );
        kinds
    }

    fn check(words: &[&str]) -> Result<Vec<String>, String> {
        let words: Vec<_> = words.iter().map(|w| (*w).to_owned()).collect();
        let targets = targets(&kinds(), &words).map_err(|e| e.to_string())?;
        Ok(targets
            .iter()
            .map(|t| format!("{} {}", t.kind.noun(), t.names.join(",")))
            .collect())
    }

    #[test]
    fn names_short_names_and_groups_are_understood() {
        let pods = Ok(vec!["pod ".to_owned()]);
        assert_eq!(check(&["po"]), pods);
        assert_eq!(check(&["Pods"]), pods);
        assert_eq!(
            check(&["deploy/web"]),
            Ok(vec!["deployment.apps web".into()])
        );
        assert_eq!(
            check(&["deployments.apps", "a", "b"]),
            Ok(vec!["deployment.apps a,b".into()])
        );
        assert_eq!(
            check(&["deployments.v1.apps"]),
            Ok(vec!["deployment.apps ".into()])
        );
        assert_eq!(check(&["pods,deploy"]).map(|t| t.len()), Ok(2));
        assert_eq!(check(&["all"]).map(|t| t.len()), Ok(2));
    }

    #[test]
    fn nonsense_is_answered_as_kubectl_does() {
        assert_eq!(
            check(&["gadget"]),
            Err("the server doesn't have a resource type \"gadget\"".into())
        );
        assert!(check(&["pod", "pod/x"]).is_err());
        assert!(check(&[]).is_err());
    }
}
