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
use serde_json::json;
use sha2::{Digest, Sha256};
use shim::plan::{Seccomp, SeccompListener};

use super::spec::SeccompError;

/// A profile in our own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub default: Verdict,
    pub rules: Vec<Rule>,
    /// Also covers these calls of this machine; all others of a foreign kind end the thread.
    pub architectures: Vec<Foreign>,
}

/// Other kinds of calls than x86_64's that an x86_64 kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foreign {
    X86,
    X32,
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
    Notify,
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

impl Profile {
    /// In the words of the OCI specification.
    pub(super) fn in_oci(&self) -> serde_json::Value {
        let architectures: Vec<&str> = std::iter::once("SCMP_ARCH_X86_64")
            .chain(self.architectures.iter().map(|foreign| match foreign {
                Foreign::X86 => "SCMP_ARCH_X86",
                Foreign::X32 => "SCMP_ARCH_X32",
            }))
            .collect();
        let (default, errno) = self.default.in_oci();
        let rules: Vec<_> = self.rules.iter().map(Rule::in_oci).collect();
        json!({
            "defaultAction": default, "defaultErrnoRet": errno, "architectures": architectures,
            "syscalls": rules,
        })
    }
}

impl Rule {
    fn in_oci(&self) -> serde_json::Value {
        let (action, errno) = self.verdict.in_oci();
        let args: Vec<_> = self.comparisons.iter().map(Comparison::in_oci).collect();
        let mut rule = json!({"names": self.calls, "action": action, "args": args});
        if let Some(errno) = errno {
            rule["errnoRet"] = errno.into();
        }
        rule
    }
}

impl Verdict {
    fn in_oci(self) -> (&'static str, Option<u16>) {
        match self {
            Verdict::Allow => ("SCMP_ACT_ALLOW", None),
            Verdict::Errno(errno) => ("SCMP_ACT_ERRNO", Some(errno)),
            Verdict::KillThread => ("SCMP_ACT_KILL_THREAD", None),
            Verdict::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
            Verdict::Trap => ("SCMP_ACT_TRAP", None),
            Verdict::Log => ("SCMP_ACT_LOG", None),
            Verdict::Trace(number) => ("SCMP_ACT_TRACE", Some(number)),
            Verdict::Notify => ("SCMP_ACT_NOTIFY", None),
        }
    }
}

impl Comparison {
    fn in_oci(&self) -> serde_json::Value {
        let (operator, value, second) = match self.operator {
            ScmpCompareOp::NotEqual => ("SCMP_CMP_NE", self.value, 0),
            ScmpCompareOp::Less => ("SCMP_CMP_LT", self.value, 0),
            ScmpCompareOp::LessOrEqual => ("SCMP_CMP_LE", self.value, 0),
            ScmpCompareOp::GreaterEqual => ("SCMP_CMP_GE", self.value, 0),
            ScmpCompareOp::Greater => ("SCMP_CMP_GT", self.value, 0),
            ScmpCompareOp::MaskedEqual(mask) => ("SCMP_CMP_MASKED_EQ", mask, self.value),
            _ => ("SCMP_CMP_EQ", self.value, 0),
        };
        json!({"index": self.argument, "op": operator, "value": value, "valueTwo": second})
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
    for arch in &profile.architectures {
        let arch = match arch {
            Foreign::X86 => ScmpArch::X86,
            Foreign::X32 => ScmpArch::X32,
        };
        filter.add_arch(arch).map_err(failed)?;
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
            for comparisons in alternatives(&comparisons, rule) {
                filter
                    .add_rule_conditional(verdict, call, comparisons)
                    .map_err(failed)?;
            }
        }
    }
    let mut program = export(&filter)?;
    if let Verdict::Errno(_) = profile.default {
        program = unknown_calls_first(program);
    }
    Ok(program)
}

/// All comparisons of a rule at once. Where two are about the same argument, which libseccomp does
/// not take, any of them is enough, as in runc.
fn alternatives<'a>(comparisons: &'a [ScmpArgCompare], rule: &Rule) -> Vec<&'a [ScmpArgCompare]> {
    let mut seen = [false; 6];
    let again = rule.comparisons.iter().any(|comparison| {
        let slot = seen.get_mut(comparison.argument as usize);
        slot.is_some_and(|slot| std::mem::replace(slot, true))
    });
    match again {
        true => comparisons.chunks(1).collect(),
        false => vec![comparisons],
    }
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
        Verdict::Notify => ScmpAction::Notify,
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

/// How a filter is loaded when its profile does not say: without the mitigation of speculative
/// store bypass, which costs much and guards little (kernel 4.17), as runc does.
const DEFAULT_FLAGS: u32 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;

/// A program that is loaded with the default flags.
pub(super) fn loaded(program: Vec<u8>) -> Seccomp {
    Seccomp {
        program,
        flags: DEFAULT_FLAGS,
        listener: None,
    }
}

/// Compiles a profile of the OCI specification.
pub(super) fn compile_oci(profile: &LinuxSeccomp) -> Result<Seccomp, SeccompError> {
    let rules = from_oci(profile)?;
    let listener = listener(profile, &rules)?;
    let mut flags = flags(profile);
    match listener {
        Some(_) => flags |= shim::sys::SECCOMP_NEW_LISTENER,
        // It says how notified calls wait, of which there are none.
        None => flags &= !WAIT_KILLABLE_RECV,
    }
    Ok(Seccomp {
        program: compile(&rules)?,
        flags,
        listener,
    })
}

/// Linux 5.19.
const WAIT_KILLABLE_RECV: u32 = 0x20;

fn flags(profile: &LinuxSeccomp) -> u32 {
    let Some(list) = profile.flags() else {
        return DEFAULT_FLAGS;
    };
    let number = |flag: &LinuxSeccompFilterFlag| match flag {
        // One thread loads the filter, and its children inherit it: nothing to synchronise.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => DEFAULT_FLAGS,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => WAIT_KILLABLE_RECV,
    };
    list.iter().map(number).fold(0, |all, flag| all | flag)
}

/// Who answers for the calls that are left open, if there are any.
fn listener(
    profile: &LinuxSeccomp,
    rules: &Profile,
) -> Result<Option<SeccompListener>, SeccompError> {
    let unsupported = |what: &str| Err(SeccompError::Unsupported(what.into()));
    if rules.default == Verdict::Notify {
        return unsupported("SCMP_ACT_NOTIFY cannot be used as default action");
    }
    let notified: Vec<&Rule> = rules
        .rules
        .iter()
        .filter(|rule| rule.verdict == Verdict::Notify)
        .collect();
    if notified.is_empty() {
        return Ok(None);
    }
    // By which the descriptor's number is told.
    let is_write = |call: &String| call == "write";
    if notified.iter().any(|rule| rule.calls.iter().any(is_write)) {
        return unsupported("SCMP_ACT_NOTIFY cannot be used for the write syscall");
    }
    let Some(path) = profile.listener_path() else {
        return unsupported("SCMP_ACT_NOTIFY needs a listenerPath");
    };
    let mut process = json!({"ociVersion": STATE_VERSION, "fds": ["seccompFd"]});
    if let Some(metadata) = profile.listener_metadata() {
        process["metadata"] = json!(metadata);
    }
    Ok(Some(SeccompListener {
        path: path.to_string_lossy().into_owned(),
        process: process.to_string(),
        // Completed when the container is known.
        state: json!({"ociVersion": STATE_VERSION}).to_string(),
    }))
}

/// The version of the specification that the state's form is from.
const STATE_VERSION: &str = "1.2.0";

/// The rules of a profile of the OCI specification.
fn from_oci(profile: &LinuxSeccomp) -> Result<Profile, SeccompError> {
    let mut architectures = Vec::new();
    for arch in profile.architectures().iter().flatten() {
        let foreign = match arch {
            Arch::ScmpArchX86 => Foreign::X86,
            Arch::ScmpArchX32 => Foreign::X32,
            // The native one is always covered, and profiles list those of all machines that they
            // are for.
            _ => continue,
        };
        if !architectures.contains(&foreign) {
            architectures.push(foreign);
        }
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
        architectures,
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
        LinuxSeccompAction::ScmpActNotify => Verdict::Notify,
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
    }

    #[test]
    fn calls_can_be_left_to_a_listener() {
        let parse = |text: &str| serde_json::from_str::<LinuxSeccomp>(text).expect("json");
        let profile = |rest: &str, call: &str| {
            parse(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW",{rest}
                "syscalls":[{{"names":["{call}"],"action":"SCMP_ACT_NOTIFY"}}]}}"#
            ))
        };
        let path = r#""listenerPath":"/run/agent","listenerMetadata":"a \"b\"","#;
        let filter = compile_oci(&profile(path, "mkdir")).expect("compiles");
        let listener = filter.listener.expect("is listened to");
        assert_eq!(listener.path, "/run/agent");
        assert!(listener.process.contains(r#""metadata":"a \"b\"""#));
        assert_eq!(filter.flags, 4 | 8);
        for (profile, expected) in [
            (profile("", "mkdir"), "needs a listenerPath"),
            (
                profile(path, "write"),
                "cannot be used for the write syscall",
            ),
            (
                parse(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#),
                "cannot be used as default action",
            ),
        ] {
            let error = compile_oci(&profile).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
        let quiet = parse(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent",
            "flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
        );
        let filter = compile_oci(&quiet).expect("compiles");
        assert_eq!((filter.listener, filter.flags), (None, 2));
    }
}
