// SPDX-License-Identifier: Apache-2.0
//! Which modules a node needs, and the order in which they can be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::Error;

/// What the guest's disk, consoles and a node's containers and network need. One that the kernel has
/// built in needs no loading; one that it doesn't know is an error.
pub(crate) const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "crc32c_generic",
    "ext4",
    "overlay",
    "bridge",
    "br_netfilter",
    "veth",
    "dummy",
    "vxlan",
    "wireguard",
    "ifb",
    "sch_tbf",
    "sch_ingress",
    "act_mirred",
    "cls_u32",
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_ct",
    "nft_fib",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_numgen",
    "nft_hash",
    "nft_log",
    "nft_limit",
    "nft_connlimit",
    "nft_meta_bridge",
    "nft_reject_bridge",
    "nf_conntrack_bridge",
    "nft_objref",
    "sctp",
    "tun",
];

/// Paths below `modules` (`lib/modules/<release>`), each after all that it depends on.
pub(crate) fn load_order(modules: &Path) -> Result<Vec<String>, Error> {
    let read = |name: &str| {
        let path = modules.join(name);
        fs::read_to_string(&path).map_err(Error::io("reading", &path))
    };
    order(&read("modules.dep")?, &read("modules.builtin")?, WANTED)
        .map_err(|missing| Error::KernelPackage(format!("module {missing}")))
}

/// Depth first over `modules.dep` (modules.dep(5): `path: path path …`). `builtin` has a path per
/// line. The error is the name that neither of them has.
fn order<'a>(dep: &str, builtin: &str, wanted: &[&'a str]) -> Result<Vec<String>, &'a str> {
    let lines: BTreeMap<&str, Vec<&str>> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (path, needs.split_whitespace().collect()))
        .collect();
    let by_name: BTreeMap<String, &str> = lines
        .keys()
        .map(|path| (module_name(path), *path))
        .collect();
    let builtin: BTreeSet<String> = builtin.lines().map(module_name).collect();
    let mut seen = BTreeSet::new();
    let mut ordered = Vec::new();
    for name in wanted {
        match by_name.get(*name) {
            Some(path) => visit(path, &lines, &mut seen, &mut ordered),
            None if builtin.contains(*name) => {}
            None => return Err(name),
        }
    }
    Ok(ordered)
}

fn visit<'a>(
    path: &'a str,
    lines: &BTreeMap<&'a str, Vec<&'a str>>,
    seen: &mut BTreeSet<&'a str>,
    ordered: &mut Vec<String>,
) {
    if !seen.insert(path) {
        return;
    }
    for need in lines.get(path).into_iter().flatten() {
        visit(need, lines, seen, ordered);
    }
    ordered.push(path.to_owned());
}

/// `kernel/net/ipv4/nf_x.ko.xz` is called `nf_x`; the kernel takes `-` and `_` for the same.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split('.').next().unwrap_or(file);
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_all_that_it_needs_and_only_once() {
        let dep = "k/a.ko: k/b-x.ko k/c.ko\nk/b-x.ko: k/c.ko\nk/c.ko:\nk/d.ko:\n";
        let builtin = "k/in-side.ko\n";
        assert_eq!(
            order(dep, builtin, &["a", "b_x", "in_side"]),
            Ok(vec!["k/c.ko".into(), "k/b-x.ko".into(), "k/a.ko".into()])
        );
        assert_eq!(order(dep, builtin, &["a", "none"]), Err("none"));
    }
}
