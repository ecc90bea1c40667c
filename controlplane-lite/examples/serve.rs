// SPDX-License-Identifier: Apache-2.0
//! The control plane alone, for trying things out: `serve DIR [PORT] [DISABLED...]`.
//!
//! Listens on loopback and keeps everything in DIR. `scheduler` and `controllers` may be named to
//! keep them from running.

use std::{net::IpAddr, path::PathBuf};

use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let data_dir = PathBuf::from(
        arguments
            .next()
            .ok_or("usage: serve DIR [PORT] [DISABLED...]")?,
    );
    let https_listen_port = arguments.next().unwrap_or_default().parse().unwrap_or(0);
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let config = controlplane_lite::Config {
        data_dir,
        bind_address: loopback,
        https_listen_port,
        advertise_address: loopback,
        cluster_cidr: "10.42.0.0/16".to_owned(),
        node_prefixes: controlplane_lite::NodePrefixes::default(),
        service_cidr: "10.43.0.0/16".to_owned(),
        cluster_dns: Vec::new(),
        cluster_domain: "cluster.local".to_owned(),
        tls_san: Vec::new(),
        write_kubeconfig: None,
        disable: arguments.collect(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    println!("kubeconfig: {}", config.kubeconfig_path().display());
    let stop = CancellationToken::new();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let started = std::time::Instant::now();
    let server = tokio::spawn(controlplane_lite::run(config, ready, stop.clone()));
    if is_ready.await.is_ok() {
        println!("ready after {:?}", started.elapsed());
        tokio::signal::ctrl_c().await?;
        stop.cancel();
    }
    server.await??;
    Ok(())
}
