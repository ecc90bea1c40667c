// SPDX-License-Identifier: Apache-2.0
//! Cluster DNS in the namespaces of a test, beside an API.

use std::path::PathBuf;

use proxy::dns::{self, Config};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, SERVICES, SLICES};
use crate::dns::client::ask;
use crate::place::Dir;
use crate::whole::within;

const NAMESPACES: &str = "/api/v1/namespaces";

pub(crate) struct Dns {
    pub(crate) api: Api,
    pub(crate) dir: Dir,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking());
    }
}

pub(crate) fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "d", "uid": name})
}

pub(crate) fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": meta(name), "spec": spec})
}

/// A slice of a Service, with an endpoint for each hostname and address.
pub(crate) fn slice(service: &str, endpoints: &[(&str, &str)]) -> Value {
    let mut meta = meta(&format!("{service}-1"));
    meta["labels"] = json!({"kubernetes.io/service-name": service});
    let endpoint = |(hostname, ip): &(&str, &str)| json!({"addresses": [ip], "hostname": hostname});
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let port = json!({"name": "http", "port": 8080, "protocol": "TCP"});
    json!({"metadata": meta, "addressType": "IPv4", "ports": [port], "endpoints": endpoints})
}

impl Dns {
    /// Where what is kept between runs is.
    pub(crate) fn state_file(&self) -> PathBuf {
        self.dir.path().join("run/dns-addresses")
    }

    pub(crate) fn resolv_conf(&self, text: &str) {
        std::fs::write(self.dir.path().join("resolv.conf"), text).expect("write");
    }

    /// Start, and wait until it says so. It may have failed to bind.
    pub(crate) fn start(resolv_conf: &str) -> Dns {
        let api = Api::default();
        let port = json!({"name": "http", "port": 80, "protocol": "TCP"});
        let many: Vec<(String, String)> = (1..=200)
            .map(|n| (format!("p{n}"), format!("10.42.9.{n}")))
            .collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(h, ip)| (&**h, &**ip)).collect();
        api.fill(
            SERVICES,
            vec![
                service("web", json!({"clusterIP": "10.43.0.5", "ports": [port]})),
                service("db", json!({"clusterIP": "None", "ports": [port]})),
                service("many", json!({"clusterIP": "None", "ports": [port]})),
                service(
                    "out",
                    json!({"type": "ExternalName", "externalName": "www.example"}),
                ),
            ],
        );
        let slices = vec![
            slice("db", &[("db-0", "10.42.0.2"), ("db-1", "10.42.0.3")]),
            slice("many", &many),
        ];
        api.fill(SLICES, slices);
        api.fill(
            NAMESPACES,
            vec![json!({"metadata": {"name": "d", "uid": "d"}})],
        );
        let dir = Dir::new();
        let mut dns = Dns {
            api,
            dir,
            stop: CancellationToken::new(),
            thread: None,
        };
        dns.resolv_conf(resolv_conf);
        dns.run();
        dns
    }

    /// Run it, again after [`Dns::end`].
    pub(crate) fn run(&mut self) {
        let config = {
            let (dir, state_file) = (self.dir.path().to_owned(), self.state_file());
            move |kubeconfig| Config {
                kubeconfig,
                addresses: vec!["10.43.0.10".parse().expect("an address")],
                domain: "cluster.local".into(),
                cluster_cidr: "10.42.0.0/16".into(),
                service_cidr: "10.43.0.0/16".into(),
                resolv_conf: dir.join("resolv.conf"),
                state_file,
            }
        };
        let (ready, is_ready) = oneshot::channel();
        self.stop = CancellationToken::new();
        let (path, api) = (self.dir.path().to_owned(), self.api.clone());
        let stop = self.stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async {
                let kubeconfig = api.serve(&path).await;
                dns::run(config(kubeconfig), ready, stop)
                    .await
                    .expect("it runs");
            });
        });
        is_ready.blocking_recv().expect("it says that it is ready");
        self.thread = Some(thread);
    }

    /// Wait until it knows the cluster.
    pub(crate) fn wait_for_names(&self) {
        within("the cluster's names", || {
            ask("web.d.svc.cluster.local. A") == "NoError 10.43.0.5"
                && ask("none.d.svc.cluster.local. A") == "NXDomain"
        });
    }

    pub(crate) fn end(&mut self) {
        self.stop.cancel();
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("it ended");
    }
}
