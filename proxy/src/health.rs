// SPDX-License-Identifier: Apache-2.0
//! Is the proxy well, and what it answers to those that ask: `/healthz`, `/livez`, and load
//! balancers at a Service's `healthCheckNodePort`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::{Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::json;

use crate::state::ServiceKey;

/// A change that waits longer than this makes the proxy unhealthy: twice kube-proxy's sync period.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Inner {
    last_updated: Option<Timestamp>,
    /// Since when a change waits.
    waiting: Option<Instant>,
    eligible: bool,
}

/// The proxy's state as others see it.
#[derive(Debug)]
pub struct Health {
    inner: Mutex<Inner>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            inner: Mutex::new(Inner {
                last_updated: None,
                waiting: None,
                eligible: true,
            }),
        }
    }
}

impl Health {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Three words that are right after any panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change waits to be written.
    pub fn queued(&self) {
        let mut inner = self.inner();
        inner.waiting.get_or_insert_with(Instant::now);
    }

    /// All that waited is written.
    pub fn updated(&self) {
        let mut inner = self.inner();
        inner.waiting = None;
        inner.last_updated = Some(Timestamp::now());
    }

    /// Is the node going to stay?
    pub fn set_eligible(&self, eligible: bool) {
        self.inner().eligible = eligible;
    }

    /// Is what the API server says written in time? True while it has not said anything.
    pub fn is_healthy(&self) -> bool {
        let waiting = self.inner().waiting;
        waiting.is_none_or(|since| since.elapsed() < TIMEOUT)
    }

    /// The answer to `/healthz` (which load balancers ask, so a node that goes is not healthy) or,
    /// with `live`, to `/livez`.
    pub fn answer(&self, live: bool) -> Response<String> {
        let (last, eligible) = {
            let inner = self.inner();
            (inner.last_updated, inner.eligible)
        };
        let now = Timestamp::now();
        let healthy = self.is_healthy() && (live || eligible);
        // What is up to date was so just now, whenever it was last written.
        let last = if healthy { Some(now) } else { last };
        let last = last.map_or_else(|| "0001-01-01 00:00:00 +0000 UTC".to_owned(), go_time);
        let now = go_time(now);
        let text = if live {
            format!(r#"{{"lastUpdated": "{last}","currentTime": "{now}"}}"#)
        } else {
            format!(
                r#"{{"lastUpdated": "{last}","currentTime": "{now}", "nodeEligible": {eligible}}}"#
            )
        };
        json_answer(healthy, text)
    }

    /// The answer to a load balancer: does this node have endpoints of the Service?
    pub fn service_answer(&self, service: &ServiceKey, endpoints: usize) -> Response<String> {
        let healthy = self.is_healthy();
        let quoted = |text: &str| json!(text).to_string();
        let text = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
            quoted(&service.0),
            quoted(&service.1),
        );
        let mut answer = json_answer(healthy && endpoints > 0, text);
        answer
            .headers_mut()
            .insert("x-load-balancing-endpoint-weight", endpoints.into());
        answer
    }
}

/// As Go prints a time, which is what kube-proxy answers with.
fn go_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string()
}

fn json_answer(healthy: bool, text: String) -> Response<String> {
    let mut answer = Response::new(text);
    if !healthy {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = answer.headers_mut();
    let json = header::HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let nosniff = header::HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_goes_is_alive_but_not_healthy() {
        let health = Health::default();
        assert_eq!(health.answer(false).status(), 200);
        health.set_eligible(false);
        assert_eq!(health.answer(false).status(), 503);
        assert!(
            health
                .answer(false)
                .body()
                .contains("\"nodeEligible\": false")
        );
        assert_eq!(health.answer(true).status(), 200);
        serde_json::from_str::<serde_json::Value>(health.answer(true).body()).expect("JSON");
    }

    #[test]
    fn a_balancer_is_told_how_many_endpoints_there_are() {
        let health = Health::default();
        let service = ("ns".to_owned(), "web".to_owned());
        let none = health.service_answer(&service, 0);
        assert_eq!(none.status(), 503);
        let two = health.service_answer(&service, 2);
        assert_eq!(two.status(), 200);
        assert_eq!(
            two.body(),
            "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
        assert_eq!(two.headers()["x-load-balancing-endpoint-weight"], "2");
    }
}
