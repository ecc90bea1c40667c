// SPDX-License-Identifier: Apache-2.0
//! A Service as a person can follow it: what its addresses should lead to, and what the kernel has.
//!
//! Reads the kernel's maps key by key. Nothing that works depends on it.

use std::net::IpAddr;

use cni::nft::{Family, NftError, Socket, Verdict};

use crate::rules::{LocalDetect, Map, SPLIT, SetName, backend_of, frontend_key, slot_key};
use crate::service::{Backend, Frontend, Masquerade, Refuse, Target};

/// What the kernel has of a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The chain that packets go to; empty: none, because there is no endpoint.
    pub chain: String,
    /// Endpoints that it leads to; with `outside`, for pods and for the node itself.
    pub endpoints: Vec<Backend>,
    /// Endpoints for those from outside (`externalTrafficPolicy: Local`).
    pub outside: Option<Vec<Backend>>,
    /// The chain that lets sources pass.
    pub sources: Option<String>,
}

/// Look a frontend up in the table of Services. `None`: the kernel does not have it.
///
/// # Errors
/// When the kernel refuses a look-up; a table that is not there is no error.
pub fn find(
    socket: &mut Socket,
    table: &str,
    frontend: &Frontend,
) -> Result<Option<Found>, NftError> {
    let mut kernel = Reader { socket, table };
    let ipv4 = frontend.is_ipv4();
    let key = frontend_key(frontend);
    let Some([count, entry, _]) = kernel.numbers(Map::Services.of(ipv4), &key)? else {
        return Ok(None);
    };
    let split = SPLIT.iter().any(|(.., number)| *number == entry);
    let outside = match kernel.numbers(Map::Split.of(ipv4), &key)? {
        Some([count, ..]) if split => {
            Some(kernel.backends(Map::LocalEndpoints.of(ipv4), &key, count)?)
        }
        _ => None,
    };
    let sources = match kernel.numbers(Map::Firewall.of(ipv4), &key)? {
        Some([_, list, _]) => kernel.chain(Map::SourceLists.alone(), list)?,
        None => None,
    };
    Ok(Some(Found {
        chain: kernel
            .chain(Map::Entries.alone(), entry)?
            .unwrap_or_default(),
        endpoints: kernel.backends(Map::Endpoints.of(ipv4), &key, count)?,
        outside,
        sources,
    }))
}

struct Reader<'a> {
    socket: &'a mut Socket,
    table: &'a str,
}

impl Reader<'_> {
    fn data(&mut self, set: SetName, key: &[u8]) -> Result<Option<Vec<u8>>, NftError> {
        let name = set.to_string();
        self.socket.element(Family::Inet, self.table, &name, key)
    }

    fn numbers(&mut self, map: SetName, key: &[u8]) -> Result<Option<[u32; 3]>, NftError> {
        let data = self.data(map, key)?;
        Ok(data.and_then(|bytes| {
            let (words, _) = bytes.as_chunks::<4>();
            let words: [[u8; 4]; 3] = words.try_into().ok()?;
            Some(words.map(u32::from_ne_bytes))
        }))
    }

    fn backends(&mut self, map: SetName, key: &[u8], count: u32) -> Result<Vec<Backend>, NftError> {
        let mut found = Vec::new();
        for slot in 0..count {
            let data = self.data(map, &slot_key(key, slot))?;
            found.extend(data.and_then(|bytes| backend_of(&bytes)));
        }
        Ok(found)
    }

    fn chain(&mut self, map: SetName, number: u32) -> Result<Option<String>, NftError> {
        let (name, key) = (map.to_string(), number.to_ne_bytes());
        let verdict = self.socket.verdict(Family::Inet, self.table, &name, &key)?;
        Ok(verdict.and_then(|verdict| match verdict {
            Verdict::Goto(chain) | Verdict::Jump(chain) => Some(chain),
            Verdict::Accept | Verdict::Drop | Verdict::Return => None,
        }))
    }
}

/// A frontend in words, one line each: where it leads, whose address is replaced, and how the kernel
/// differs from that. `name` says who an endpoint is.
pub fn words(
    frontend: &Frontend,
    target: &Target,
    found: Option<&Found>,
    local: &LocalDetect,
    name: impl Fn(&Backend) -> String,
) -> Vec<String> {
    let mut lines = vec![heading(frontend, found)];
    let mut pool = |title: &str, wanted: &[Backend], has: &[Backend]| {
        if !title.is_empty() && !wanted.is_empty() {
            lines.push(format!("  {title}"));
        }
        for backend in wanted {
            let missing = if has.contains(backend) {
                ""
            } else {
                "   MISSING in the kernel"
            };
            lines.push(format!("  -> {}{missing}", name(backend)));
        }
        for backend in has.iter().filter(|b| !wanted.contains(b)) {
            lines.push(format!("  -> {}   only in the kernel", name(backend)));
        }
    };
    let endpoints = found.map(|f| &*f.endpoints).unwrap_or_default();
    match &target.local {
        None => pool("", &target.cluster, endpoints),
        Some(outside) => {
            pool("for pods and this node:", &target.cluster, endpoints);
            let has = found.and_then(|f| f.outside.as_deref()).unwrap_or_default();
            pool("for clients from outside, on this node only:", outside, has);
        }
    }
    if let Some(refuse) = target.refuse {
        lines.push(format!("  {}", refused(refuse)));
    }
    if let Some(seconds) = target.affinity {
        lines.push(format!("  a client keeps its endpoint for {seconds} s"));
    }
    if let Some(sources) = &target.sources {
        let list: Vec<String> = sources.iter().map(ToString::to_string).collect();
        lines.push(format!("  only for clients in {}", list.join(", ")));
    }
    lines.push(format!("  {}", replaced(target.masquerade, local)));
    lines
}

fn heading(frontend: &Frontend, found: Option<&Found>) -> String {
    let protocol = frontend.protocol;
    let place = match frontend.addr {
        _ if frontend.is_node_port() => {
            let family = if frontend.is_ipv4() { "IPv4" } else { "IPv6" };
            format!("node port {} ({family})", frontend.port)
        }
        IpAddr::V4(addr) => format!("{addr}:{}", frontend.port),
        IpAddr::V6(addr) => format!("[{addr}]:{}", frontend.port),
    };
    let kernel = match found {
        None => "NOT in the kernel".to_owned(),
        Some(found) if found.chain.is_empty() => "no endpoint, no chain".to_owned(),
        Some(found) => format!("chain {}", found.chain),
    };
    format!("{place}/{protocol}   {kernel}")
}

fn refused(refuse: Refuse) -> &'static str {
    match refuse {
        Refuse::Reject => "no endpoint serves: clients are refused",
        Refuse::Drop => {
            "no endpoint on this node, and the traffic policy wants one: packets are dropped"
        }
    }
}

fn replaced(masquerade: Masquerade, local: &LocalDetect) -> String {
    match masquerade {
        Masquerade::All => "every client's address is replaced by the node's".to_owned(),
        Masquerade::Host => "clients keep their address, but for programs of this node".to_owned(),
        Masquerade::Outside => {
            let pods = match local {
                LocalDetect::Cidrs(cidrs) if cidrs.is_empty() => {
                    return "clients keep their address".to_owned();
                }
                LocalDetect::Cidrs(cidrs) => {
                    let list: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
                    format!("in {}", list.join(", "))
                }
                LocalDetect::Interface(link) => format!("who come by {link}"),
                LocalDetect::InterfacePrefix(prefix) => format!("who come by {prefix}*"),
            };
            format!("clients {pods} keep their address; others get the node's")
        }
    }
}
