// SPDX-License-Identifier: Apache-2.0
//! Seccomp profiles to BPF programs, with libseccomp, cached by the profile's digest.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};
use sha2::{Digest, Sha256};

use super::spec::SeccompError;

/// A profile in our own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub default: Verdict,
    pub rules: Vec<Rule>,
    /// Also covers the 32 bit and x32 calls of this machine.
    pub other_architectures: bool,
    pub log: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub calls: Vec<String>,
    pub verdict: Verdict,
    /// All of them must hold.
    pub comparisons: Vec<Comparison>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    Errno(u16),
    KillThread,
    KillProcess,
    Trap,
    Log,
    Trace(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Comparison {
    argument: u32,
    operator: ScmpCompareOp,
    value: u64,
}

impl Comparison {
    pub(super) fn equal(argument: u32, value: u64) -> Comparison {
        Comparison {
            argument,
            operator: ScmpCompareOp::Equal,
            value,
        }
    }

    pub(super) fn not_equal(argument: u32, value: u64) -> Comparison {
        Comparison {
            argument,
            operator: ScmpCompareOp::NotEqual,
            value,
        }
    }

    pub(super) fn masked_equal(argument: u32, mask: u64, value: u64) -> Comparison {
        Comparison {
            argument,
            operator: ScmpCompareOp::MaskedEqual(mask),
            value,
        }
    }
}

/// Enough for every profile of a node; emptied when full rather than grown.
const CACHE_MAX: usize = 128;

/// Compiled programs by digest of the profile.
fn cache() -> &'static Mutex<HashMap<[u8; 32], Vec<u8>>> {
    static CACHE: OnceLock<Mutex<HashMap<[u8; 32], Vec<u8>>>> = OnceLock::new();
    CACHE.get_or_init(Mutex::default)
}

/// Compiles, or finds what was compiled before.
pub(super) fn compile(profile: &Profile) -> Result<Vec<u8>, SeccompError> {
    let digest: [u8; 32] = Sha256::digest(format!("{profile:?}")).into();
    let lock = || cache().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = lock().get(&digest) {
        return Ok(program.clone());
    }
    let program = build(profile)?;
    let mut cache = lock();
    if cache.len() >= CACHE_MAX {
        cache.clear();
    }
    cache.insert(digest, program.clone());
    Ok(program)
}

fn build(profile: &Profile) -> Result<Vec<u8>, SeccompError> {
    let failed = |error| SeccompError::Compile(Box::new(error));
    let mut filter = ScmpFilterContext::new(action(profile.default)).map_err(failed)?;
    if profile.other_architectures {
        for arch in [ScmpArch::X86, ScmpArch::X32] {
            filter.add_arch(arch).map_err(failed)?;
        }
    }
    // The loader decides about no_new_privs, not the filter.
    filter.set_ctl_nnp(false).map_err(failed)?;
    for rule in &profile.rules {
        let verdict = action(rule.verdict);
        // libseccomp refuses a rule that says what the default says.
        if rule.verdict == profile.default {
            continue;
        }
        let comparisons: Vec<_> = rule
            .comparisons
            .iter()
            .map(|c| ScmpArgCompare::new(c.argument, c.operator, c.value))
            .collect();
        for call in &rule.calls {
            // As runc does: a call that libseccomp does not know cannot be named in a filter.
            let Ok(call) = ScmpSyscall::from_name(call) else {
                continue;
            };
            filter
                .add_rule_conditional(verdict, call, &comparisons)
                .map_err(failed)?;
        }
    }
    let mut program = export(&filter)?;
    if let Verdict::Errno(_) = profile.default {
        program = unknown_calls_first(program);
    }
    Ok(program)
}

fn action(verdict: Verdict) -> ScmpAction {
    match verdict {
        Verdict::Allow => ScmpAction::Allow,
        Verdict::Errno(errno) => ScmpAction::Errno(i32::from(errno)),
        Verdict::KillThread => ScmpAction::KillThread,
        Verdict::KillProcess => ScmpAction::KillProcess,
        Verdict::Trap => ScmpAction::Trap,
        Verdict::Log => ScmpAction::Log,
        Verdict::Trace(message) => ScmpAction::Trace(message),
    }
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, SeccompError> {
    let io = |error: std::io::Error| SeccompError::Compile(Box::new(error));
    let raw = |errno| io(std::io::Error::from_raw_os_error(errno));
    let file = shim::sys::socket::memory_file(&[]).map_err(raw)?;
    filter
        .export_bpf(file.as_fd())
        .map_err(|error| SeccompError::Compile(Box::new(error)))?;
    let mut file = std::fs::File::from(file);
    let mut program = Vec::new();
    std::io::Seek::rewind(&mut file).map_err(io)?;
    std::io::Read::read_to_end(&mut file, &mut program).map_err(io)?;
    Ok(program)
}

/// The newest x86_64 call that libseccomp 2.5.4 knows (set_mempolicy_home_node, Linux 5.17).
const NEWEST_KNOWN_CALL: u32 = 450;

/// Puts a prologue in front: calls newer than the tables give ENOSYS, not the default's errno,
/// because C libraries fall back on ENOSYS only. Jumps in BPF are relative, so nothing shifts.
fn unknown_calls_first(program: Vec<u8>) -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ARCH_X86_64: u32 = 0xc000_003e;
    const X32_BIT: u32 = 0x4000_0000;
    const ERRNO_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
    let prologue = [
        (LOAD, 0, 0, 4),
        (JUMP_EQUAL, 0, 4, ARCH_X86_64),
        (LOAD, 0, 0, 0),
        (JUMP_GREATER_OR_EQUAL, 2, 0, X32_BIT),
        (JUMP_GREATER, 0, 1, NEWEST_KNOWN_CALL),
        (RETURN, 0, 0, ERRNO_ENOSYS),
    ];
    let mut whole = Vec::with_capacity(program.len() + prologue.len() * 8);
    for (code, when_true, when_false, value) in prologue {
        whole.extend_from_slice(&code.to_ne_bytes());
        whole.extend_from_slice(&[when_true, when_false]);
        whole.extend_from_slice(&value.to_ne_bytes());
    }
    whole.extend_from_slice(&program);
    whole
}

/// A profile of the OCI specification.
pub(super) fn from_oci(profile: &LinuxSeccomp) -> Result<Profile, SeccompError> {
    let unsupported = |what: String| SeccompError::Unsupported(what);
    if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
        return Err(unsupported("listenerPath is not supported".into()));
    }
    let mut other_architectures = false;
    for arch in profile.architectures().iter().flatten() {
        match arch {
            Arch::ScmpArchX86_64 | Arch::ScmpArchNative => {}
            Arch::ScmpArchX86 | Arch::ScmpArchX32 => other_architectures = true,
            // Profiles list the architectures of all machines that they are for.
            _ => {}
        }
    }
    let mut log = false;
    for flag in profile.flags().iter().flatten() {
        match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => log = true,
            // One thread loads the filter, and its children inherit it: nothing to synchronise.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => {}
            other => return Err(unsupported(format!("flag {other} is not supported"))),
        }
    }
    if log {
        return Err(unsupported(
            "flag SECCOMP_FILTER_FLAG_LOG is not supported".into(),
        ));
    }
    let default = verdict(profile.default_action(), profile.default_errno_ret())?;
    let mut rules = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        rules.push(Rule {
            calls: rule.names().clone(),
            verdict: verdict(rule.action(), rule.errno_ret())?,
            comparisons: rule
                .args()
                .iter()
                .flatten()
                .map(comparison)
                .collect::<Result<_, _>>()?,
        });
    }
    Ok(Profile {
        default,
        rules,
        other_architectures,
        log,
    })
}

fn verdict(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Verdict, SeccompError> {
    let number = |default: i32| {
        u16::try_from(errno.unwrap_or(default as u32))
            .map_err(|_| SeccompError::Unsupported("errnoRet is out of range".into()))
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => Verdict::Allow,
        LinuxSeccompAction::ScmpActErrno => Verdict::Errno(number(libc::EPERM)?),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            Verdict::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => Verdict::KillProcess,
        LinuxSeccompAction::ScmpActTrap => Verdict::Trap,
        LinuxSeccompAction::ScmpActLog => Verdict::Log,
        LinuxSeccompAction::ScmpActTrace => Verdict::Trace(number(libc::EPERM)?),
        LinuxSeccompAction::ScmpActNotify => {
            return Err(SeccompError::Unsupported(
                "action SCMP_ACT_NOTIFY is not supported".into(),
            ));
        }
    })
}

fn comparison(argument: &LinuxSeccompArg) -> Result<Comparison, SeccompError> {
    let index = u32::try_from(argument.index())
        .ok()
        .filter(|index| *index < 6)
        .ok_or_else(|| SeccompError::Unsupported("an argument's index is above 5".into()))?;
    let (value, second) = (argument.value(), argument.value_two().unwrap_or(0));
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), second),
    };
    Ok(Comparison {
        argument: index,
        operator,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::super::default_profile;
    use super::*;

    #[test]
    fn the_default_profile_compiles_and_is_cached() {
        let first = compile(&default_profile::profile(0)).expect("compiles");
        assert_eq!(first.len() % 8, 0);
        assert!(first.len() / 8 < 4096, "BPF_MAXINSNS");
        assert_eq!(
            compile(&default_profile::profile(0)).expect("cached"),
            first
        );
        let admin = compile(&default_profile::profile(1 << 21)).expect("compiles");
        assert_ne!(admin, first);
    }

    #[test]
    fn an_oci_profile_is_read_and_its_limits_are_named() {
        let parse = |text| serde_json::from_str::<LinuxSeccomp>(text).expect("json");
        let good = parse(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","nosuchcall"],
               "action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#,
        );
        let profile = from_oci(&good).expect("supported");
        assert_eq!(profile.rules[0].verdict, Verdict::Errno(13));
        assert!(compile(&profile).is_ok());
        let notify = parse(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#);
        let error = from_oci(&notify).expect_err("refused").to_string();
        assert!(error.contains("SCMP_ACT_NOTIFY"), "{error}");
    }
}
