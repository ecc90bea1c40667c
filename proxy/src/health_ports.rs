// SPDX-License-Identifier: Apache-2.0
//! One small server for each `healthCheckNodePort`: a load balancer asks it whether this node has
//! endpoints of the Service.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::health::Health;
use crate::http;
use crate::service::{HealthCheck, ServiceRules};
use crate::state::ServiceKey;

/// A port that could not be had, in words for the Service's owner.
#[derive(Debug)]
pub struct Failed {
    /// Whose.
    pub service: ServiceKey,
    /// What happened.
    pub message: String,
}

struct Server {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    /// Ends its tasks.
    _stop: DropGuard,
}

/// All servers. They end when this is dropped.
pub struct HealthPorts {
    addresses: Vec<IpAddr>,
    node_name: String,
    health: Arc<Health>,
    failed: mpsc::Sender<Failed>,
    servers: HashMap<ServiceKey, Server>,
}

impl HealthPorts {
    /// None yet; they will listen on `addresses`.
    pub fn new(
        addresses: Vec<IpAddr>,
        node_name: &str,
        health: Arc<Health>,
        failed: mpsc::Sender<Failed>,
    ) -> HealthPorts {
        HealthPorts {
            addresses,
            node_name: node_name.to_owned(),
            health,
            failed,
            servers: HashMap::new(),
        }
    }

    /// A Service has new rules, or is gone. Must be called in a tokio runtime.
    pub fn set(&mut self, service: &ServiceKey, rules: Option<&ServiceRules>) {
        let Some(check) = rules.and_then(|r| r.health) else {
            self.servers.remove(service);
            return;
        };
        match self.servers.get(service) {
            Some(server) if server.port == check.port => {
                server.endpoints.store(check.endpoints, Ordering::Relaxed);
            }
            _ => {
                let server = self.start(service, check);
                self.servers.insert(service.clone(), server);
            }
        }
    }

    fn start(&self, service: &ServiceKey, check: HealthCheck) -> Server {
        let stop = CancellationToken::new();
        let endpoints = Arc::new(AtomicUsize::new(check.endpoints));
        for ip in &self.addresses {
            let (health, service, count) =
                (self.health.clone(), service.clone(), endpoints.clone());
            let whose = service.clone();
            let answer: http::Answer =
                Arc::new(move |_| health.service_answer(&service, count.load(Ordering::Relaxed)));
            let (failed, node) = (self.failed.clone(), self.node_name.clone());
            let (port, stop) = (check.port, stop.clone());
            let address = SocketAddr::new(*ip, port);
            tokio::spawn(async move {
                let tell = |error| {
                    let message = format!(
                        "node {node} failed to start healthcheck \"{}/{}\" on port {port}: {error}",
                        whose.0, whose.1
                    );
                    // Nobody listens when the proxy ends; and a flood says nothing new.
                    let _ = failed.try_send(Failed {
                        service: whose.clone(),
                        message,
                    });
                };
                http::serve(address, answer, tell, stop).await;
            });
        }
        Server {
            port: check.port,
            endpoints,
            _stop: stop.drop_guard(),
        }
    }
}
