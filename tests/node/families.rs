// SPDX-License-Identifier: Apache-2.0
//! Services of both families, over real connections: by address, by name, at the nodes' addresses. The
//! second family goes and comes back.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::host::stdout_of;
use tests::{TestHost, wait_for};

use crate::overlay::{ask, pod_ips};

const PATIENCE: Duration = Duration::from_secs(60);

/// Ranges of Services of both families, for `server` and `agent`.
pub(crate) const SERVICES: [&str; 2] = ["--service-cidr", "10.43.0.0/16,fd43::/108"];

const NAME: &str = "both";
/// Of the nodes, by the load balancer.
const PORT: u16 = 8070;

/// The addresses of a Service that has both families.
pub(crate) fn both_ips(server: &TestHost, service: &str) -> Result<[String; 2]> {
    match ips(server, service)?.as_slice() {
        [v4, v6] if v4.starts_with("10.43.") && v6.starts_with("fd43:") => {
            Ok([v4.clone(), v6.clone()])
        }
        other => bail!("{service} has {other:?}"),
    }
}

fn ips(server: &TestHost, service: &str) -> Result<Vec<String>> {
    texts(&server.get(&["service", service])?["spec"]["clusterIPs"])
}

fn texts(list: &Value) -> Result<Vec<String>> {
    let list = list.as_array().context("a list")?.iter();
    let list = list.map(|ip| ip.as_str().map(str::to_owned).context("a text"));
    list.collect()
}

/// What DNS says to a pod, in the order of the addresses.
fn resolved(server: &TestHost, pod: &str, kind: &str, name: &str) -> Result<Vec<String>> {
    let script = format!("nslookup -type={kind} {name}.default.svc.cluster.local || true");
    let said = server.kubectl_ok(&["exec", pod, "--", "sh", "-c", &script])?;
    let (_, answer) = said.split_once("\n\n").unwrap_or_default();
    let found = answer
        .lines()
        .filter_map(|line| line.strip_prefix("Address: "));
    let mut found: Vec<String> = found.map(|ip| ip.trim().to_owned()).collect();
    found.sort();
    Ok(found)
}

fn has_names(server: &TestHost, pod: &str, name: &str, v4: &[&str], v6: &[&str]) -> Result<()> {
    wait_for(&format!("{pod} resolves {name}"), PATIENCE, || {
        let of = |kind| resolved(server, pod, kind, name).map_err(|e| format!("{e:#}"));
        match (of("a")?, of("aaaa")?) {
            (a, aaaa) if a == v4 && aaaa == v6 => Ok(()),
            other => Err(format!("{other:?}, wanted {v4:?} and {v6:?}")),
        }
    })
}

/// Families that the Service's endpoints are told in.
fn slices(server: &TestHost) -> Result<Vec<String>> {
    let of_it = format!("kubernetes.io/service-name={NAME}");
    let slices = server.get(&["endpointslices", "-l", &of_it])?;
    let slices = slices["items"].as_array().cloned().unwrap_or_default();
    let types = slices.iter().map(|slice| slice["addressType"].as_str());
    let mut types: Vec<String> = types.flatten().map(str::to_owned).collect();
    types.sort();
    Ok(types)
}

/// Of the nodes, at the load balancer.
fn given(server: &TestHost) -> Result<Vec<String>> {
    let service = server.get(&["service", NAME])?;
    let ingress = service["status"]["loadBalancer"]["ingress"]
        .as_array()
        .cloned();
    let ips = ingress.unwrap_or_default();
    Ok(ips
        .iter()
        .filter_map(|i| i["ip"].as_str().map(str::to_owned))
        .collect())
}

fn answers(server: &TestHost, pod: &str, at: &str, port: u16) -> Result<String> {
    wait_for(&format!("{at} port {port} answers {pod}"), PATIENCE, || {
        ask(server, pod, at, port).map_err(|error| format!("{error:#}"))
    })
}

/// Two nodes with both families; a pod called `client` on the server's, one called `target` on the
/// other.
pub(crate) fn come_and_go(server: &TestHost, client: &str, target: &str) -> Result<()> {
    let balancer = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {
            "type": "LoadBalancer",
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": target},
            "ports": [{"port": PORT, "targetPort": 7000}],
        },
    });
    server.apply(&balancer.to_string())?;
    let headless = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "pods"},
        "spec": {"clusterIP": "None", "ipFamilyPolicy": "PreferDualStack", "selector": {"app": target}},
    });
    server.apply(&headless.to_string())?;
    let pods = pod_ips(server, target)?;
    has_names(server, client, "pods", &[&pods[0]], &[&pods[1]])?;
    let both = both_ips(server, NAME)?;
    reached_over_both(server, client, &both)?;
    shown(server, &both)?;

    let policy = |policy: &str| {
        let patch = json!({"spec": {"ipFamilyPolicy": policy}}).to_string();
        server.kubectl_ok(&["patch", "service", NAME, "-p", &patch])
    };
    policy("SingleStack")?;
    let [v4, v6] = &both;
    ensure!(ips(server, NAME)?.as_slice() == std::slice::from_ref(v4));
    has_names(server, client, NAME, &[v4], &[])?;
    wait_for("only one family is left", PATIENCE, || {
        let now = (slices(server), given(server));
        match now {
            (Ok(slices), Ok(given)) if slices == ["IPv4"] && given.len() == 2 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    wait_for("the second address is nobody's", PATIENCE, || {
        let nodes = "2001:db8::12";
        match (
            ask(server, client, v6, PORT),
            ask(server, client, nodes, PORT),
        ) {
            (Err(_), Err(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    answers(server, client, v4, PORT)?;
    answers(server, client, "192.0.2.12", PORT)?;

    policy("RequireDualStack")?;
    let again = both_ips(server, NAME)?;
    ensure!(again[0] == *v4, "the first address stays: {again:?}");
    reached_over_both(server, client, &again)?;
    server.kubectl_ok(&["delete", "service", NAME, "pods"])?;
    Ok(())
}

/// By address and name, at the nodes' own addresses and their node ports.
fn reached_over_both(server: &TestHost, client: &str, both: &[String; 2]) -> Result<()> {
    has_names(server, client, NAME, &[&both[0]], &[&both[1]])?;
    let own = pod_ips(server, client)?;
    for (ip, own) in both.iter().zip(&own) {
        let seen = answers(server, client, ip, PORT)?;
        ensure!(seen == *own, "{ip} saw {seen} instead of {own}");
        let script = format!("nslookup {ip}");
        let name = server.kubectl_ok(&["exec", client, "--", "sh", "-c", &script])?;
        ensure!(name.contains("both.default.svc.cluster.local"), "{name}");
    }
    answers(server, client, NAME, PORT)?;
    let nodes = ["192.0.2.11", "192.0.2.12", "2001:db8::11", "2001:db8::12"];
    wait_for("the nodes' addresses", PATIENCE, || match given(server) {
        Ok(ips) if ips == nodes => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(slices(server)? == ["IPv4", "IPv6"]);
    let service = server.get(&["service", NAME])?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64();
    let port = u16::try_from(port.context("a node port")?)?;
    for node in nodes {
        answers(server, client, node, PORT)?;
        answers(server, client, node, port)?;
    }
    Ok(())
}

/// What a person sees.
fn shown(server: &TestHost, both: &[String; 2]) -> Result<()> {
    let row = server.kubectl_ok(&["get", "service", NAME])?;
    ensure!(row.contains(&both[0]), "{row}");
    let page = server.kubectl_ok(&["describe", "service", NAME])?;
    let plain: Vec<_> = page.split_whitespace().collect();
    let plain = plain.join(" ");
    for line in [
        "IP Family Policy: RequireDualStack",
        "IP Families: IPv4,IPv6",
        &format!("IPs: {},{}", both[0], both[1]),
    ] {
        ensure!(plain.contains(line), "{line}: {page}");
    }
    let told = stdout_of(&mut server.podwright(&["network", "service", NAME]))?;
    ensure!(both.iter().all(|ip| told.contains(ip)), "{told}");
    ensure!(!told.contains("MISSING"), "{told}");
    Ok(())
}
