// SPDX-License-Identifier: Apache-2.0
//! Capability names and numbers (capabilities(7), linux/capability.h).

/// Names by number, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability that this runtime knows.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// The bit of a capability; accepts `CAP_CHOWN`, `CHOWN` and lower case.
pub fn bit(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    let number = NAMES.iter().position(|known| *known == name)?;
    Some(1 << number)
}

/// The names in a set, with `CAP_`.
pub fn names(set: u64) -> Vec<String> {
    let held = |(number, _): &(usize, &&str)| set & (1 << number) != 0;
    let named = NAMES.iter().enumerate().filter(held);
    named.map(|(_, name)| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits_agree_with_the_kernel() {
        assert_eq!(bit("CAP_SYS_ADMIN"), Some(1 << 21));
        assert_eq!(bit("checkpoint_restore"), Some(1 << 40));
        assert_eq!(bit("CAP_NOSUCH"), None);
        assert_eq!(names(0b101), ["CAP_CHOWN", "CAP_DAC_READ_SEARCH"]);
    }
}
