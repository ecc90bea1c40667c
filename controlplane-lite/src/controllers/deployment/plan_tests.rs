// SPDX-License-Identifier: Apache-2.0
//! The plan against a small world in which ReplicaSets do what they are told.

use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::super::machinery::testing::{at, labels, meta};
use super::*;

/// A Deployment with its sets. `settle` lets pods become ready.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    clock: i64,
}

impl World {
    fn new(replicas: i32) -> Self {
        let mut world = Self {
            deployment: Deployment {
                metadata: meta("ns", "web"),
                spec: DeploymentSpec {
                    replicas: Some(replicas),
                    progress_deadline_seconds: Some(600),
                    selector: LabelSelector {
                        match_labels: Some(labels(&[("app", "web")])),
                        ..LabelSelector::default()
                    },
                    ..DeploymentSpec::default()
                },
                status: None,
            },
            sets: Vec::new(),
            clock: 0,
        };
        world.template("v1");
        world
    }

    fn spec(&mut self) -> &mut DeploymentSpec {
        let generation = &mut self.deployment.metadata.generation;
        *generation = Some(generation.unwrap_or(0) + 1);
        &mut self.deployment.spec
    }

    fn template(&mut self, version: &str) {
        let new = labels(&[("app", "web"), ("version", version)]);
        self.spec().template.metadata.get_or_insert_default().labels = Some(new);
    }

    /// One pass; true if it wrote something other than the status.
    fn pass(&mut self) -> bool {
        self.clock += 1;
        let old_pods = self.old_pods();
        let seen = Seen {
            deployment: &self.deployment,
            sets: self.sets.clone(),
            old_pods_running: old_pods,
        };
        let plan = plan(seen, at(self.clock)).expect("the budget is valid");
        let changed = !plan.steps.is_empty();
        for step in plan.steps {
            self.apply(step);
        }
        self.deployment.status = Some(plan.status);
        changed
    }

    fn old_pods(&self) -> bool {
        let template = template::of(&self.deployment);
        self.sets.iter().any(|s| {
            !template::is_from(s, &template) && s.status.as_ref().is_some_and(|s| s.replicas > 0)
        })
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Create(mut set) => {
                set.metadata.uid = set.metadata.name.clone();
                set.metadata.generation = Some(1);
                set.metadata.creation_timestamp = Some(Time(at(self.clock)));
                self.sets.push(set);
            }
            Step::Update(set, _) => {
                let slot = self
                    .sets
                    .iter_mut()
                    .find(|s| s.metadata.name == set.metadata.name);
                *slot.expect("an update names a set that exists") = set;
            }
            Step::Delete(set) => self.sets.retain(|s| s.metadata.name != set.metadata.name),
            Step::Revision(number) => {
                let own = self.deployment.metadata.annotations.get_or_insert_default();
                own.insert(revision::REVISION.into(), number.to_string());
            }
        }
    }

    /// Pods follow the sizes, ready if `ready`.
    fn kubelet(&mut self, ready: bool) {
        for set in &mut self.sets {
            let size = size(set);
            let before = set
                .status
                .as_ref()
                .and_then(|s| s.available_replicas)
                .unwrap_or(0);
            let up = if ready { size } else { before.min(size) };
            set.status = Some(ReplicaSetStatus {
                replicas: size,
                ready_replicas: Some(up),
                available_replicas: Some(up),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            });
        }
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            let changed = self.pass();
            self.kubelet(true);
            if !changed {
                self.pass();
                return;
            }
        }
        panic!("the rollout does not come to rest: {:?}", self.sizes());
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(size).collect()
    }

    fn reason(&self, type_: &str) -> String {
        let status = self.deployment.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let found = conditions
            .iter()
            .find(|c| c.type_.as_deref() == Some(type_));
        found.and_then(|c| c.reason.clone()).unwrap_or_default()
    }

    fn own_revision(&self) -> i64 {
        revision::revision(&self.deployment.metadata)
    }
}

#[test]
fn a_deployment_comes_up_and_says_so() {
    let mut world = World::new(3);
    world.pass();
    assert_eq!(world.sizes(), [3]);
    assert_eq!(world.reason("Progressing"), "NewReplicaSetCreated");
    assert_eq!(world.reason("Available"), "MinimumReplicasUnavailable");
    world.kubelet(false);
    world.pass();
    assert_eq!(world.reason("Progressing"), "ReplicaSetUpdated");
    world.kubelet(true);
    world.pass();
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
    assert_eq!(world.reason("Available"), "MinimumReplicasAvailable");
    assert_eq!(world.own_revision(), 1);
    assert!(!world.pass());
}

#[test]
fn a_rolling_update_stays_within_its_bounds() {
    let mut world = World::new(4);
    world.settle();
    world.template("v2");
    for _ in 0..20 {
        world.pass();
        let total: i32 = world.sizes().iter().sum();
        assert!(total <= 5, "too many: {:?}", world.sizes());
        let available: i32 = world
            .sets
            .iter()
            .map(|s| scale::available(s).min(size(s)))
            .sum();
        assert!(available >= 3, "too few available: {:?}", world.sizes());
        world.kubelet(true);
    }
    assert_eq!(world.sizes(), [0, 4]);
    assert_eq!(world.own_revision(), 2);
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
}

#[test]
fn a_rollback_reuses_the_old_set_under_a_new_revision() {
    let mut world = World::new(2);
    world.settle();
    world.template("v2");
    world.settle();
    world.template("v1");
    world.settle();
    assert_eq!(world.sizes(), [2, 0]);
    assert_eq!(world.own_revision(), 3);
}

#[test]
fn recreate_waits_until_the_old_pods_are_gone() {
    let mut world = World::new(2);
    world.spec().strategy = Some(DeploymentStrategy {
        type_: Some("Recreate".into()),
        rolling_update: None,
    });
    world.settle();
    world.template("v2");
    world.pass();
    assert_eq!(world.sizes(), [0]);
    world.pass();
    assert_eq!(world.sizes(), [0], "old pods are still there");
    world.kubelet(true);
    world.pass();
    assert_eq!(world.sizes(), [0, 2]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_shared() {
    let mut world = World::new(10);
    world.settle();
    world.template("v2");
    world.pass();
    world.kubelet(false);
    world.pass();
    world.kubelet(false);
    world.spec().replicas = Some(20);
    world.pass();
    let total: i32 = world.sizes().iter().sum();
    assert_eq!(total, 25);
    assert!(world.sizes().iter().all(|size| *size > 0));
    world.settle();
    assert_eq!(world.sizes(), [0, 20]);
}

#[test]
fn scaling_to_zero_and_back_works() {
    let mut world = World::new(2);
    world.settle();
    world.spec().replicas = Some(0);
    world.settle();
    assert_eq!(world.sizes(), [0]);
    world.spec().replicas = Some(3);
    world.settle();
    assert_eq!(world.sizes(), [3]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll_out() {
    let mut world = World::new(2);
    world.settle();
    world.spec().paused = Some(true);
    world.template("v2");
    world.spec().replicas = Some(5);
    world.settle();
    assert_eq!(world.sizes(), [5]);
    assert_eq!(world.reason("Progressing"), "DeploymentPaused");
    world.spec().paused = Some(false);
    world.settle();
    assert_eq!(world.sizes(), [0, 5]);
}

#[test]
fn a_rollout_that_hangs_misses_its_deadline() {
    let mut world = World::new(1);
    world.settle();
    world.template("v2");
    world.pass();
    world.kubelet(false);
    world.pass();
    assert_eq!(world.reason("Progressing"), "ReplicaSetUpdated");
    world.clock += 1000;
    world.pass();
    assert_eq!(world.reason("Progressing"), "ProgressDeadlineExceeded");
    world.kubelet(true);
    world.settle();
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
}

#[test]
fn old_sets_beyond_the_limit_are_deleted() {
    let mut world = World::new(1);
    world.spec().revision_history_limit = Some(1);
    for version in ["v1", "v2", "v3", "v4"] {
        world.template(version);
        world.settle();
    }
    assert_eq!(world.sizes(), [0, 1]);
    assert_eq!(world.own_revision(), 4);
}
