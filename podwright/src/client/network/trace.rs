// SPDX-License-Identifier: Apache-2.0
//! `network trace`: connect from a pod, and show what its first packet meets.
//!
//! The rule that has the kernel tell is in a table that this process owns: the table goes with the
//! process, however that ends.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cni::nft::{
    ChainKind, CmpOp, Command, Event, Expr, Family, Flow, Hook, Register, Socket, Step, Tracer,
    Transaction, match_prefix,
};
use cni::{Attachment, cidr::Cidr, link, netns};
use k8s_openapi::api::core::v1::Service;
use kube::Api;

use super::super::connection::Server;
use super::super::failure::{Outcome, answer, say};
use super::way::{Rules, ended};
use super::{Place, pod};

/// Before everything else, connection tracking included.
const FIRST: i32 = -500;
const CONNECTING: Duration = Duration::from_secs(3);
/// The kernel tells at once; this is for a machine that is busy.
const LATE: Duration = Duration::from_millis(300);

#[derive(clap::Args)]
pub(super) struct TraceArgs {
    /// A pod of this node
    pod: String,
    /// Where to: an address, a Service or SERVICE.NAMESPACE, with a port's number or name
    #[arg(value_name = "HOST:PORT")]
    to: String,
    /// Send a UDP datagram instead of connecting by TCP
    #[arg(long)]
    udp: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) async fn run(args: TraceArgs) -> Outcome {
    let (server, node) = args.place.find().await?;
    let attached = pod::attached(&server, &node, &args.pod).await?;
    let to = destination(&server, &args.to).await?;
    let result = attached.result.unwrap_or_default();
    let own = result.ips.iter().map(|ip| ip.address.addr);
    let from = own
        .into_iter()
        .find(|ip| ip.is_ipv4() == to.is_ipv4())
        .with_context(|| format!("pod {} has no address of the family of {to}", args.pod))?;
    let table = format!("{}-trace", node.nft_table);
    // It must outlive the attempt: closing it removes the table.
    let mut socket = Socket::open().context("opening a netlink socket")?;
    let marking = marking(&table, from, to, args.udp);
    socket.apply(&marking).with_context(|| {
        format!("making table {table}; another trace may be running, and the kernel must be 5.12 or later")
    })?;
    let tracer = Tracer::open().context("listening for traces")?;
    let protocol = if args.udp { "UDP" } else { "TCP" };
    say(format!(
        "Pod {}/{} ({from}) to {to}/{protocol}",
        server.namespace, args.pod
    ))?;
    let (steps, outcome) = follow(&tracer, &attached.attachment, to, args.udp)?;
    print(&steps, &table)?;
    say(outcome)?;
    Ok(())
}

async fn destination(server: &Server, text: &str) -> anyhow::Result<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text
        .rsplit_once(':')
        .with_context(|| format!("{text:?} is not HOST:PORT"))?;
    if let (Ok(addr), Ok(port)) = (host.parse::<IpAddr>(), port.parse()) {
        return Ok(SocketAddr::new(addr, port));
    }
    let mut labels = host.split('.');
    let name = labels.next().unwrap_or_default();
    let namespace = labels.next().unwrap_or(&server.namespace);
    let api: Api<Service> = Api::namespaced(server.client.clone(), namespace);
    let found = answer(api.get(name)).await;
    let service = found.with_context(|| format!("{host} is neither an address nor a Service"))?;
    let spec = service.spec.unwrap_or_default();
    let Some(addr) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok()) else {
        bail!("Service {host} has no cluster IP; give the address of one of its pods");
    };
    let mut ports = spec.ports.into_iter().flatten();
    let number = match port.parse() {
        Ok(number) => number,
        Err(_) => {
            let named = ports.find(|p| p.name.as_deref() == Some(port));
            let named = named.with_context(|| format!("Service {host} has no port {port}"))?;
            u16::try_from(named.port)?
        }
    };
    Ok(SocketAddr::new(addr, number))
}

/// A table that marks what the pod sends there, before any other rule sees it.
fn marking(table: &str, from: IpAddr, to: SocketAddr, udp: bool) -> Transaction {
    let mut t = Transaction::new(Family::Inet, table);
    t.commands.push(Command::AddOwnedTable);
    t.base_chain("prerouting", ChainKind::Filter, Hook::Prerouting, FIRST);
    let ipv4 = from.is_ipv4();
    let mut rule = Expr::family(ipv4).to_vec();
    rule.push(Expr::saddr(ipv4, Register(0)));
    rule.extend(match_prefix(CmpOp::Eq, Cidr::host(from)));
    rule.push(Expr::daddr(ipv4, Register(0)));
    rule.extend(match_prefix(CmpOp::Eq, Cidr::host(to.ip())));
    let equals = |data: Vec<u8>| Expr::Cmp {
        op: CmpOp::Eq,
        sreg: Register(0),
        data,
    };
    let protocol = proxy::service::Protocol::parse(Some(if udp { "UDP" } else { "TCP" }));
    let number = protocol.map_or(0, proxy::service::Protocol::number);
    rule.extend([Expr::l4proto(Register(0)), equals(vec![number])]);
    let port = to.port().to_be_bytes().to_vec();
    rule.extend([Expr::dport(Register(0)), equals(port), Expr::Trace]);
    t.rule("prerouting", rule);
    t
}

/// Connect from the pod's namespace, and collect what is told meanwhile.
fn follow(
    tracer: &Tracer,
    pod: &Attachment,
    to: SocketAddr,
    udp: bool,
) -> anyhow::Result<(Vec<Step>, String)> {
    std::thread::scope(|scope| {
        let attempt = scope.spawn(|| netns::run(&pod.netns, || connect(to, udp)));
        let (mut steps, mut quiet) = (Vec::new(), Instant::now());
        while !attempt.is_finished() || quiet.elapsed() < LATE {
            let more = tracer.next(LATE / 3).context("reading traces")?;
            if !more.is_empty() || !attempt.is_finished() {
                quiet = Instant::now();
            }
            steps.extend(more);
        }
        let outcome = match attempt.join() {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok((steps, outcome))
    })
}

fn connect(to: SocketAddr, udp: bool) -> String {
    let begun = Instant::now();
    let outcome = if udp {
        let any: IpAddr = if to.is_ipv4() {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        UdpSocket::bind((any, 0))
            .and_then(|socket| socket.send_to(b"", to))
            .map(drop)
    } else {
        TcpStream::connect_timeout(&to, CONNECTING).map(drop)
    };
    let took = begun.elapsed();
    match outcome {
        Ok(()) if udp => "The datagram was sent.".to_owned(),
        Ok(()) => format!("Connected after {:.1} ms.", took.as_secs_f64() * 1e3),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            format!("NO ANSWER within {CONNECTING:?}.")
        }
        Err(error) => format!("NOT connected: {error}."),
    }
}

/// The way of the first packet.
fn print(steps: &[Step], own: &str) -> Outcome {
    let way = first_packet(steps, own);
    if way.is_empty() {
        say("  no packet of the pod came to the node's rules")?;
    }
    let names = link_names()?;
    let mut rules = Rules::default();
    let mut shown: Option<Flow> = None;
    for step in way {
        if let Some(flow) = step.flow
            && shown != Some(flow)
        {
            say(format!("  {}{}", arrow(&flow), links(step, &names)))?;
            shown = Some(flow);
        }
        if step.table != own
            && let Some(line) = line(step, &mut rules)
        {
            say(format!("    {line}"))?;
        }
    }
    Ok(())
}

/// Steps of the first packet, from the rule that marks it to the one that marks the next. The kernel's
/// numbers of packets don't tell: one packet may have two, and two packets the same.
fn first_packet<'a>(steps: &'a [Step], own: &str) -> &'a [Step] {
    let begins = |step: &Step| step.table == own && matches!(step.event, Event::Rule { .. });
    let Some(first) = steps.iter().position(begins) else {
        return &[];
    };
    let next = steps[first + 1..].iter().position(begins);
    &steps[first..next.map_or(steps.len(), |next| first + 1 + next)]
}

fn line(step: &Step, rules: &mut Rules) -> Option<String> {
    let place = format!("{} {}", step.table, step.chain);
    match &step.event {
        Event::Rule { handle, ended: how } => {
            let words = rules.words(step.family, &step.table, *handle);
            let end = ended(how);
            let end = if end.is_empty() {
                end
            } else {
                format!("   -> {end}")
            };
            Some(format!("{place}: {words}{end}"))
        }
        Event::Policy(how) => Some(format!("{place}: end of the chain   -> {}", ended(how))),
        Event::Return => None,
    }
}

fn arrow(flow: &Flow) -> String {
    let end = |addr, port| match port {
        0 => IpAddr::to_string(&addr),
        port => SocketAddr::new(addr, port).to_string(),
    };
    format!(
        "{} to {}",
        end(flow.source, flow.ports.0),
        end(flow.destination, flow.ports.1)
    )
}

fn links(step: &Step, names: &HashMap<u32, String>) -> String {
    let name = |index: u32| {
        names
            .get(&index)
            .cloned()
            .unwrap_or_else(|| index.to_string())
    };
    match (step.iif, step.oif) {
        (0, 0) => String::new(),
        (iif, 0) => format!(", in by {}", name(iif)),
        (0, oif) => format!(", out by {}", name(oif)),
        (iif, oif) => format!(", in by {}, out by {}", name(iif), name(oif)),
    }
}

fn link_names() -> anyhow::Result<HashMap<u32, String>> {
    let mut route = link::Route::open().context("opening a netlink socket")?;
    let links = route.links()?;
    Ok(links
        .into_iter()
        .map(|link| (link.index, link.name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(table: &str, rule: bool) -> Step {
        let ended = cni::nft::Ended::Continue;
        Step {
            packet: 7,
            family: None,
            table: table.into(),
            chain: "c".into(),
            event: if rule {
                Event::Rule { handle: 1, ended }
            } else {
                Event::Policy(ended)
            },
            flow: None,
            iif: 0,
            oif: 0,
        }
    }

    #[test]
    fn the_first_packet_ends_where_the_next_is_marked() {
        let steps = [
            step("other", true),
            step("own", true),
            step("own", false),
            step("t", true),
            step("own", true),
            step("t", true),
        ];
        let tables = |steps: &[Step]| -> Vec<String> {
            let way = first_packet(steps, "own").iter();
            way.map(|step| step.table.clone()).collect()
        };
        assert_eq!(tables(&steps), ["own", "own", "t"]);
        assert_eq!(tables(&steps[..4]), ["own", "own", "t"]);
        assert!(tables(&steps[..1]).is_empty());
    }
}
