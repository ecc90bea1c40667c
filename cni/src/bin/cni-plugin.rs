// SPDX-License-Identifier: Apache-2.0
//! The built-in plugins as a small executable of their own: it answers by the name it is called by,
//! as the podwright binary does. `cni-plugin add|del CONF_DIR STATE_DIR ID NETNS [HOST_PORT]` attaches
//! or detaches a pod by a configuration list, to try one out, or to be killed in the middle by a test.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, verb, conf, state, id, netns, port @ ..] = args.as_slice()
        && matches!(verb.as_str(), "add" | "del")
    {
        let port = port.first().and_then(|port| port.parse().ok());
        let network = cni::Network::load(Path::new(conf), Path::new("/nowhere"), Path::new(state));
        return run(&network, verb, &attachment(id, netns, port.unwrap_or(8080)));
    }
    let name = Path::new(&args[0])
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    cni::plugin_main(name)
}

fn attachment(id: &str, netns: &str, host_port: u16) -> cni::Attachment {
    let port = |protocol| cni::PortMapping {
        host_port,
        container_port: 80,
        protocol,
        host_ip: None,
    };
    cni::Attachment {
        container_id: id.to_owned(),
        netns: netns.into(),
        ifname: "eth0".to_owned(),
        pod_name: "p".to_owned(),
        pod_namespace: "d".to_owned(),
        pod_uid: "u".to_owned(),
        capabilities: cni::Capabilities {
            port_mappings: vec![port(cni::Protocol::Tcp), port(cni::Protocol::Udp)],
            ..Default::default()
        },
    }
}

fn run(network: &cni::Network, verb: &str, attachment: &cni::Attachment) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let outcome = runtime.block_on(async {
        match verb {
            "add" => network.add(attachment).await.map(drop),
            _ => network.del(attachment).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}
