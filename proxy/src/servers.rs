// SPDX-License-Identifier: Apache-2.0
//! What the proxy serves beside its rules, and the events it writes.

use std::sync::Arc;

use hyper::{Response, StatusCode};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::health::Health;
use crate::health_ports::Failed;
use crate::http::{self, Answer};
use crate::metrics::Metrics;
use crate::policy;

/// Start the servers that the configuration asks for. They end with `stop`, or with the set.
pub(crate) fn start(
    config: &Config,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let mut servers = JoinSet::new();
    let answers: [(_, Answer); 2] = [
        (config.options.healthz, probes(health, metrics)),
        (
            config.options.metrics,
            counters(health, metrics, config.policies.clone()),
        ),
    ];
    for (address, answer) in answers {
        let Some(address) = address else { continue };
        let failed = move |error| tracing::warn!(%address, %error, "listening; it is tried again");
        servers.spawn(http::serve(address, answer, failed, stop.clone()));
    }
    servers
}

fn probe(health: &Health, metrics: &Metrics, live: bool) -> Response<String> {
    let answer = health.answer(live);
    let what = if live { "livez" } else { "healthz" };
    metrics.probed(what, answer.status().as_u16());
    answer
}

fn probes(health: &Arc<Health>, metrics: &Arc<Metrics>) -> Answer {
    let (health, metrics) = (health.clone(), metrics.clone());
    Arc::new(move |path| match path {
        "/healthz" => probe(&health, &metrics, false),
        "/livez" => probe(&health, &metrics, true),
        _ => http::status(StatusCode::NOT_FOUND),
    })
}

fn counters(
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
    policies: Option<Arc<policy::Metrics>>,
) -> Answer {
    let (health, metrics) = (health.clone(), metrics.clone());
    let policies = move || policies.as_ref().map(|metrics| metrics.render());
    Arc::new(move |path| match path {
        "/metrics" => page(metrics.render() + &policies().unwrap_or_default()),
        "/proxyMode" => page("nftables".to_owned()),
        "/healthz" if health.is_healthy() => page("ok".to_owned()),
        "/healthz" => http::status(StatusCode::SERVICE_UNAVAILABLE),
        _ => http::status(StatusCode::NOT_FOUND),
    })
}

pub(crate) fn page(text: String) -> Response<String> {
    let mut response = Response::new(text);
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let headers = response.headers_mut();
    headers.insert(hyper::header::CONTENT_TYPE, kind);
    response
}

/// Write an event for each health check port that cannot be had, until nobody tells of any.
pub(crate) async fn report_failures(
    client: Client,
    node_name: String,
    mut failures: mpsc::Receiver<Failed>,
) {
    let reporter = Reporter {
        controller: "kube-proxy".to_owned(),
        instance: Some(node_name),
    };
    let recorder = Recorder::new(client, reporter);
    while let Some(failed) = failures.recv().await {
        tracing::warn!("{}", failed.message);
        let (namespace, name) = failed.service;
        let service = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            uid: Some(format!("{namespace}/{name}")),
            namespace: Some(namespace),
            name: Some(name),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: "FailedToStartServiceHealthcheck".to_owned(),
            note: Some(failed.message),
            action: "Listen".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &service).await {
            tracing::warn!(%error, "writing an event");
        }
    }
}
