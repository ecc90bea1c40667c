// SPDX-License-Identifier: Apache-2.0
//! Is this host fit to be a node? Each finding is tried on the kernel where it can be, in throw-away
//! namespaces, rather than guessed from a version number.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;
use cni::link::{Route, VethSpec};
use cni::nft::{
    self, ChainKind, Command, DataType, Expr, Family, Hook, MapData, Register, Reject, SetSpec,
    Transaction,
};
use cni::overlay::{Backend, OverlayError};
use nix::sched::{CloneFlags, unshare};

/// How a finding turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    /// Works, with less than the whole.
    Warn,
    /// podwright cannot run pods until this is mended.
    Fail,
}

/// One line of the report.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) seen: String,
    /// What to do about it; empty when there is nothing to do.
    pub(crate) advice: &'static str,
}

/// Looks at everything, in the order in which a node needs it.
pub(crate) fn findings(cgroup_root: &Path) -> Vec<Finding> {
    vec![
        root(),
        kernel(),
        cgroups(cgroup_root),
        namespaces(),
        overlay(),
        network(),
        nftables(),
        wireguard(),
        seccomp(),
        oom_score(),
        open_files(),
        user_namespaces(),
    ]
}

fn finding(
    name: &'static str,
    outcome: Result<String, (Verdict, String)>,
    advice: &'static str,
) -> Finding {
    match outcome {
        Ok(seen) => Finding {
            name,
            verdict: Verdict::Ok,
            seen,
            advice: "",
        },
        Err((verdict, seen)) => Finding {
            name,
            verdict,
            seen,
            advice,
        },
    }
}

fn root() -> Finding {
    let uid = nix::unistd::geteuid();
    finding(
        "root",
        if uid.is_root() {
            Ok("running as root".into())
        } else {
            Err((Verdict::Fail, format!("running as user {uid}")))
        },
        "run podwright as root; rootless nodes are not supported yet",
    )
}

fn kernel() -> Finding {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    finding(
        "kernel",
        if version_of(&release) >= (5, 13) {
            Ok(release)
        } else {
            Err((Verdict::Fail, release))
        },
        "Linux 5.13 or newer is needed (clone3, openat2, mount_setattr, pidfd, nftables)",
    )
}

/// The first two numbers of a kernel release.
fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

fn cgroups(root: &Path) -> Finding {
    let advice = "mount cgroup2 on /sys/fs/cgroup, or the v1 controllers cpu, memory, pids and devices below it";
    let unified = fs::read_to_string(root.join("cgroup.controllers"));
    let outcome = match unified {
        Ok(controllers) => {
            let has = |name: &&&str| !controllers.split_whitespace().any(|c| c == **name);
            let missing: Vec<_> = V2_CONTROLLERS.iter().filter(has).copied().collect();
            if missing.is_empty() {
                Ok("version 2 (unified)".to_owned())
            } else {
                Err((
                    Verdict::Fail,
                    format!("version 2 without {}", missing.join(", ")),
                ))
            }
        }
        Err(_) => {
            let wanted = ["cpu", "memory", "pids", "devices"];
            let missing: Vec<_> = wanted
                .into_iter()
                .filter(|name| !root.join(name).join("cgroup.procs").exists())
                .collect();
            if missing.is_empty() {
                Ok("version 1 (hybrid)".to_owned())
            } else {
                Err((
                    Verdict::Fail,
                    format!("version 1 without {}", missing.join(", ")),
                ))
            }
        }
    };
    finding("cgroups", outcome, advice)
}

fn namespaces() -> Finding {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    finding(
        "namespaces",
        in_throw_away_thread(move || {
            unshare(flags).map_err(|errno| errno.to_string())?;
            Ok("mount, network, uts, ipc, cgroup, pid".into())
        })
        .map_err(|error| (Verdict::Fail, error)),
        "podwright needs CAP_SYS_ADMIN; a container or sandbox around it must allow namespaces",
    )
}

fn overlay() -> Finding {
    let listed = fs::read_to_string("/proc/filesystems")
        .unwrap_or_default()
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"));
    finding(
        "overlay filesystem",
        if listed {
            Ok("available".into())
        } else {
            Err((Verdict::Fail, "not in /proc/filesystems".into()))
        },
        "modprobe overlay, and name it in /etc/modules-load.d",
    )
}

fn network() -> Finding {
    finding(
        "bridge and veth",
        in_throw_away_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
            make_bridge_and_veth().map_err(|error| format!("{error:#}"))?;
            Ok("can be made".into())
        })
        .map_err(|error| (Verdict::Fail, error)),
        "modprobe bridge veth, and name them in /etc/modules-load.d",
    )
}

/// Locally administered, unicast.
const PROBE_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 1];

/// As for a pod, in the calling thread's network namespace, which ends with the thread.
fn make_bridge_and_veth() -> anyhow::Result<()> {
    let netns = File::open("/proc/thread-self/ns/net")?;
    let mut route = Route::open()?;
    route.add_bridge("pwcheck", PROBE_MAC, None)?;
    let bridge = route
        .link("pwcheck")?
        .context("the bridge just made is not there")?;
    let veth = VethSpec {
        host_name: "pwcheck0",
        master: bridge.index,
        pod_name: "pwcheck1",
        pod_mac: None,
        mtu: None,
    };
    Ok(route.add_veth(&veth, netns.as_fd())?)
}

fn nftables() -> Finding {
    finding(
        "nftables",
        in_throw_away_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
            make_rules().map_err(|error| format!("{error:#}"))?;
            Ok("tables, maps and NAT can be made".into())
        })
        .map_err(|error| (Verdict::Fail, error)),
        "modprobe nf_tables nft_chain_nat nft_masq nft_nat nft_ct nft_numgen nft_reject_inet nft_fib_inet",
    )
}

/// One of each kind that Services and the pod network are made of, in the calling thread's network
/// namespace, which ends with the thread.
fn make_rules() -> anyhow::Result<()> {
    let mut rules = Transaction::new(Family::Inet, "podwright-check");
    rules.commands.push(Command::AddTable);
    rules.base_chain("nat", ChainKind::Nat, Hook::Postrouting, 100);
    rules.base_chain("filter", ChainKind::Filter, Hook::Forward, 0);
    rules.commands.push(Command::AddSet(SetSpec {
        name: "services".into(),
        key: vec![
            DataType::Ipv4Addr,
            DataType::InetProto,
            DataType::InetService,
        ],
        data: Some(MapData::Verdict),
    }));
    let number = Register(8);
    let random = Expr::Random {
        modulus: 2,
        dreg: number,
    };
    rules.rule("nat", vec![random, Expr::Masquerade]);
    let local = Expr::FibDaddrType { dreg: number };
    rules.rule("filter", vec![local, Expr::Reject(Reject::TcpReset)]);
    let mut socket = nft::Socket::open()?;
    socket.apply(&rules)?;
    Ok(socket.delete_table(Family::Inet, "podwright-check")?)
}

/// Only one of the back ends needs it.
fn wireguard() -> Finding {
    finding(
        "wireguard",
        match cni::overlay::supported(Backend::WireGuard) {
            Ok(()) => Ok("links can be made".into()),
            Err(OverlayError::NoWireGuard) => Err((Verdict::Warn, "not in this kernel".into())),
            Err(error) => Err((Verdict::Warn, format!("{:#}", anyhow::Error::from(error)))),
        },
        "--network-backend wireguard needs it: modprobe wireguard, or a kernel with CONFIG_WIREGUARD",
    )
}

fn seccomp() -> Finding {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    finding(
        "seccomp",
        actions
            .map(|actions| actions.trim().to_owned())
            .map_err(|error| (Verdict::Fail, error.to_string())),
        "the kernel needs CONFIG_SECCOMP_FILTER",
    )
}

/// CAP_SYS_RESOURCE, by its number in capabilities(7).
const CAP_SYS_RESOURCE: u32 = 24;

fn oom_score() -> Finding {
    let effective = fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    finding(
        "CAP_SYS_RESOURCE",
        if effective >> CAP_SYS_RESOURCE & 1 == 1 {
            Ok("held".into())
        } else {
            Err((
                Verdict::Warn,
                "not held: oom_score_adj can't be lowered, limits can't be raised".into(),
            ))
        },
        "values are clamped to what is allowed; grant the capability to have them as asked",
    )
}

fn open_files() -> Finding {
    use nix::sys::resource::{Resource, getrlimit};
    const ENOUGH: u64 = 4096;
    let outcome = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= ENOUGH => Ok(format!("up to {hard}")),
        Ok((_, hard)) => Err((Verdict::Warn, format!("up to {hard}"))),
        Err(errno) => Err((Verdict::Warn, errno.to_string())),
    };
    finding(
        "open files",
        outcome,
        "raise the hard limit (ulimit -Hn, or LimitNOFILE in the unit) to 4096 or more",
    )
}

fn user_namespaces() -> Finding {
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(0);
    finding(
        "user namespaces",
        if limit > 0 {
            Ok(format!("up to {limit}"))
        } else {
            Err((Verdict::Warn, "switched off".into()))
        },
        "sysctl user.max_user_namespaces=65536, for pods with hostUsers: false",
    )
}

/// Namespaces belong to threads, so a probe that enters one gets a thread that ends afterwards.
fn in_throw_away_thread(
    probe: impl FnOnce() -> Result<String, String> + Send + 'static,
) -> Result<String, String> {
    match std::thread::spawn(probe).join() {
        Ok(outcome) => outcome,
        Err(_) => Err("the probe panicked".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_gives_its_first_two_numbers() {
        assert_eq!(version_of("6.1.0-37-cloud-amd64"), (6, 1));
        assert_eq!(version_of("5.13"), (5, 13));
        assert_eq!(version_of("rubbish"), (0, 0));
    }

    #[test]
    fn a_cgroup_tree_without_controllers_is_named() {
        let root = std::env::temp_dir().join("podwright-check-no-such-tree");
        let finding = cgroups(&root);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.seen.contains("memory"), "{}", finding.seen);
    }
}
