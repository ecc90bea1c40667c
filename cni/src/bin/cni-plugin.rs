// SPDX-License-Identifier: Apache-2.0
//! The built-in plugins as a small executable of their own: it answers by the name it is called by,
//! as the podwright binary does. `cni-plugin add CONF_DIR STATE_DIR ID NETNS` attaches a pod (with
//! host port 8080) by a configuration list, to try one out, or to be killed in the middle by a test.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, verb, conf, state, id, netns] = args.as_slice()
        && verb == "add"
    {
        return add(Path::new(conf), Path::new(state), id, Path::new(netns));
    }
    let name = Path::new(&args[0])
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    cni::plugin_main(name)
}

fn add(conf: &Path, state: &Path, id: &str, netns: &Path) -> ExitCode {
    let network = cni::Network::load(conf, Path::new("/nowhere"), state);
    let port = cni::PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: cni::Protocol::Tcp,
        host_ip: None,
    };
    let attachment = cni::Attachment {
        container_id: id.to_owned(),
        netns: netns.to_owned(),
        ifname: "eth0".to_owned(),
        pod_name: "p".to_owned(),
        pod_namespace: "d".to_owned(),
        pod_uid: "u".to_owned(),
        capabilities: cni::Capabilities {
            port_mappings: vec![port],
            ..Default::default()
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    match runtime.block_on(network.add(&attachment)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}
