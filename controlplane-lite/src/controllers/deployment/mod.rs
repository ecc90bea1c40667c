// SPDX-License-Identifier: Apache-2.0
//! Deployments: ReplicaSets, one per version of the pod template, scaled so that a change rolls out
//! within the bounds of the strategy.
//!
//! Follows `pkg/controller/deployment` of Kubernetes in every visible number, name and text.
//! `plan` decides; it works on copies of the ReplicaSets and returns what differs, and the API
//! server's resourceVersion check turns a plan made from a stale cache into a conflict.

mod budget;
mod controller;
mod plan;
mod progress;
mod revision;
mod scale;
mod status;
mod template;

pub(crate) use controller::Controller;
