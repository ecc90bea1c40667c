// SPDX-License-Identifier: Apache-2.0
//! From a Deployment and its ReplicaSets to what must be written.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

use super::super::machinery::owner;
use super::budget::{Budget, BudgetError};
use super::scale::{self, size};
use super::{progress, revision, status, template};

/// One write.
#[derive(Debug)]
pub(crate) enum Step {
    Create(ReplicaSet),
    /// The set as it should be, and its size before.
    Update(ReplicaSet, i32),
    Delete(ReplicaSet),
    /// The Deployment's own revision annotation.
    Revision(i64),
}

/// All writes of one pass, in order; the status comes last.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) status: DeploymentStatus,
    pub(crate) again: Option<Duration>,
}

/// What the planner looks at. The sets are those that the Deployment controls.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) deployment: &'a Deployment,
    pub(crate) sets: Vec<ReplicaSet>,
    /// Pods of sets of older templates that have not finished.
    pub(crate) old_pods_running: bool,
}

struct Work<'a> {
    deployment: &'a Deployment,
    budget: Budget,
    before: Vec<ReplicaSet>,
    sets: Vec<ReplicaSet>,
    new: Option<usize>,
    created: bool,
    revision: Option<i64>,
    now: Timestamp,
}

/// Decides. Applying the plan and planning again from the result changes nothing more until pods
/// change.
pub(crate) fn plan(seen: Seen<'_>, now: Timestamp) -> Result<Plan, BudgetError> {
    let budget = Budget::of(seen.deployment)?;
    let mut sets = seen.sets;
    sets.sort_by_key(|set| {
        let created = set.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (created, set.metadata.name.clone())
    });
    let template = template::of(seen.deployment);
    let new = sets
        .iter()
        .position(|set| template::is_from(set, &template));
    let mut work = Work {
        deployment: seen.deployment,
        budget,
        before: sets.clone(),
        sets,
        new,
        created: false,
        revision: None,
        now,
    };
    Ok(work.decide(seen.old_pods_running))
}

impl Work<'_> {
    fn decide(&mut self, old_pods_running: bool) -> Plan {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            let status = self.status();
            return self.finish(status, Vec::new());
        }
        if progress::is_paused(self.deployment) {
            return self.only_scale(true);
        }
        if scale::was_resized(&self.sets, self.budget) {
            return self.only_scale(false);
        }
        if self.budget.recreate {
            self.recreate(old_pods_running);
        } else {
            self.ensure_new();
            if let (Some(new), false) = (self.new, self.created) {
                scale::roll(&mut self.sets, new, self.budget);
            }
        }
        let mut status = self.status();
        progress::pause(self.deployment, &mut status, self.now);
        let new_set = self.new.map(|index| &self.sets[index]);
        progress::roll_out(self.deployment, new_set, &mut status, self.budget, self.now);
        progress::failures(
            &self.before,
            self.new.filter(|_| !self.created),
            &mut status,
        );
        if self.created {
            self.note_created(&mut status);
        }
        let deletions = if progress::is_complete(self.deployment, &status, self.budget) {
            self.history()
        } else {
            Vec::new()
        };
        self.finish(status, deletions)
    }

    /// A paused or freshly resized Deployment is scaled and nothing else.
    fn only_scale(&mut self, paused: bool) -> Plan {
        self.refresh_new();
        let replicas = self
            .deployment
            .status
            .as_ref()
            .and_then(|s| s.replicas)
            .unwrap_or(0);
        scale::scale(&mut self.sets, self.new, self.budget, replicas);
        for set in &mut self.sets {
            if size(set) > 0 {
                revision::annotate_size(set, self.budget);
            }
        }
        let mut status = self.status();
        progress::pause(self.deployment, &mut status, self.now);
        let deletions = if paused { self.history() } else { Vec::new() };
        self.finish(status, deletions)
    }

    fn recreate(&mut self, old_pods_running: bool) {
        self.refresh_new();
        if scale::stop_old(&mut self.sets, self.new) || old_pods_running {
            return;
        }
        self.ensure_new();
        if let (Some(new), false) = (self.new, self.created) {
            let spec = &mut self.sets[new].spec;
            spec.replicas = Some(self.budget.replicas);
        }
    }

    /// Annotations and revision of a new set that exists.
    fn refresh_new(&mut self) {
        let Some(new) = self.new else { return };
        let wanted = self.next_revision();
        let set = &mut self.sets[new];
        revision::annotate_new(set, self.deployment, wanted);
        let min_ready = self.deployment.spec.min_ready_seconds;
        let spec = &mut set.spec;
        if spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0) {
            spec.min_ready_seconds = min_ready;
        }
        self.revision = Some(revision::revision(&set.metadata));
    }

    fn next_revision(&self) -> i64 {
        let old = self
            .sets
            .iter()
            .enumerate()
            .filter(|(index, _)| Some(*index) != self.new);
        old.map(|(_, set)| revision::revision(&set.metadata))
            .max()
            .unwrap_or(0)
            + 1
    }

    fn ensure_new(&mut self) {
        if self.new.is_some() {
            self.refresh_new();
            return;
        }
        let wanted = self.next_revision();
        let mut set = new_set(self.deployment);
        set.spec.replicas = Some(scale::new_size(&self.sets, None, self.budget));
        revision::annotate_new(&mut set, self.deployment, wanted);
        revision::annotate_size(&mut set, self.budget);
        self.revision = Some(wanted);
        self.new = Some(self.sets.len());
        self.sets.push(set);
        self.created = true;
    }

    fn note_created(&self, status: &mut DeploymentStatus) {
        if progress::deadline(self.deployment).is_none() {
            return;
        }
        let name = self
            .new
            .and_then(|i| self.sets[i].metadata.name.clone())
            .unwrap_or_default();
        let text = format!("Created new replica set {name:?}");
        let new = status::condition(
            progress::PROGRESSING,
            "True",
            "NewReplicaSetCreated",
            text,
            self.now,
        );
        status::set_condition(status.conditions.get_or_insert_default(), new);
    }

    /// Counts come from the sets as they are, not as they will be.
    fn status(&self) -> DeploymentStatus {
        let new = self.new.filter(|_| !self.created);
        let mut status =
            status::calculate(self.deployment, &self.before, new, self.budget, self.now);
        self.note_found(&mut status);
        status
    }

    /// A Deployment that adopted a set of its template says so, once.
    fn note_found(&self, status: &mut DeploymentStatus) {
        let conditions = status.conditions.get_or_insert_default();
        let has = conditions
            .iter()
            .any(|c| status::is(c, progress::PROGRESSING));
        let (Some(new), false, false) = (self.new, has, self.created) else {
            return;
        };
        if progress::deadline(self.deployment).is_some() {
            let name = self.sets[new].metadata.name.clone().unwrap_or_default();
            let text = format!("Found new replica set {name:?}");
            let found = status::condition(
                progress::PROGRESSING,
                "True",
                "FoundNewReplicaSet",
                text,
                self.now,
            );
            conditions.push(found);
        }
    }

    /// Sets beyond `revisionHistoryLimit` that nothing uses, the oldest first.
    fn history(&self) -> Vec<ReplicaSet> {
        let limit = self.deployment.spec.revision_history_limit;
        let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
        let mut old: Vec<_> = self
            .before
            .iter()
            .enumerate()
            .filter(|(index, set)| {
                Some(*index) != self.new && set.metadata.deletion_timestamp.is_none()
            })
            .map(|(_, set)| set)
            .collect();
        old.sort_by_key(|set| revision::revision(&set.metadata));
        let surplus = old.len().saturating_sub(limit);
        old.into_iter()
            .take(surplus)
            .filter(|set| is_unused(set))
            .cloned()
            .collect()
    }

    fn finish(&mut self, status: DeploymentStatus, deletions: Vec<ReplicaSet>) -> Plan {
        let mut steps = Vec::new();
        for (index, set) in self.sets.iter_mut().enumerate() {
            match self.before.get(index) {
                None => steps.push(Step::Create(set.clone())),
                Some(before) => {
                    if size(set) != size(before) {
                        revision::annotate_size(set, self.budget);
                    }
                    if set != before {
                        steps.push(Step::Update(set.clone(), size(before)));
                    }
                }
            }
        }
        let own = revision::revision(&self.deployment.metadata);
        if let Some(revision) = self.revision.filter(|revision| *revision != own) {
            steps.push(Step::Revision(revision));
        }
        steps.extend(deletions.into_iter().map(Step::Delete));
        let again = progress::check_after(self.deployment, &status, self.budget, self.now);
        Plan {
            steps,
            status,
            again,
        }
    }
}

fn is_unused(set: &ReplicaSet) -> bool {
    let status = set.status.as_ref();
    size(set) == 0
        && status.map_or(0, |s| s.replicas) == 0
        && status.and_then(|s| s.observed_generation) >= set.metadata.generation
}

/// The set of the current template, without size and annotations.
fn new_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = template::hash(&spec.template, collisions.unwrap_or(0));
    let template = template::with_hash(&spec.template, &hash);
    let mut match_labels = spec.selector.match_labels.unwrap_or_default();
    match_labels.insert(template::HASH_LABEL.into(), hash.clone());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
            owner_references: Some(vec![owner::controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: None,
            selector: LabelSelector {
                match_labels: Some(match_labels),
                match_expressions: spec.selector.match_expressions,
            },
            template: Some(template),
        },
        status: None,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
