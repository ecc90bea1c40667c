// SPDX-License-Identifier: Apache-2.0
//! The options of one mount: words of mount(8) and of the OCI specification, sorted by meaning.

use shim::plan::{MountAttrs, Propagation, PropagationChange};
use shim::sys::mounts::{
    ATTR_ATIME, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID,
    ATTR_NOSYMFOLLOW, ATTR_RDONLY, ATTR_STRICTATIME,
};

/// The options of one mount, sorted.
#[derive(Default)]
pub(super) struct Words {
    pub attrs: MountAttrs,
    pub recursive_attrs: MountAttrs,
    pub propagation: Vec<PropagationChange>,
    /// `bind`, or (true) `rbind`.
    pub bind: Option<bool>,
    /// `idmap`, or (true) `ridmap`.
    pub idmap: Option<bool>,
    pub remount: bool,
    pub copy_up: bool,
    /// Flags of the filesystem itself, which a bind has no say in.
    pub superblock: Vec<String>,
    /// All other words: options of the type of filesystem.
    pub filesystem: Vec<String>,
}

/// # Errors
/// The word that is not done.
pub(super) fn sort(options: &[String]) -> Result<Words, String> {
    let mut words = Words::default();
    for option in options {
        let word = option.as_str();
        if let Some(change) = attribute(word) {
            words.attrs = words.attrs.then(change);
        } else if let Some(change) = word.strip_prefix('r').and_then(attribute) {
            words.recursive_attrs = words.recursive_attrs.then(change);
        } else if let Some(change) = propagation(word) {
            words.propagation.push(change);
        } else {
            words.other(word)?;
        }
    }
    Ok(words)
}

impl Words {
    fn other(&mut self, word: &str) -> Result<(), String> {
        match word {
            "bind" => self.bind = self.bind.or(Some(false)),
            "rbind" => self.bind = Some(true),
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            // What the kernel does anyway.
            "" | "defaults" | "async" | "nomand" | "nolazytime" | "noiversion" | "silent"
            | "loud" => {}
            "sync" | "dirsync" | "mand" | "lazytime" => self.superblock.push(word.to_owned()),
            "iversion" => return Err(word.to_owned()),
            _ => self.filesystem.extend(split(word)),
        }
        Ok(())
    }
}

/// Several options in one string, as tools for fstab write them. A comma that is quoted or escaped
/// belongs to a value.
fn split(word: &str) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let (mut quoted, mut escaped) = (false, false);
    for letter in word.chars() {
        match letter {
            ',' if !quoted && !escaped => parts.push(std::mem::take(&mut part)),
            '"' => quoted = !quoted,
            _ => part.push(letter),
        }
        escaped = letter == '\\' && !escaped;
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    parts
}

fn attribute(word: &str) -> Option<MountAttrs> {
    let change = match word {
        "ro" => set(ATTR_RDONLY),
        "rw" => clear(ATTR_RDONLY),
        "nosuid" => set(ATTR_NOSUID),
        "suid" => clear(ATTR_NOSUID),
        "nodev" => set(ATTR_NODEV),
        "dev" => clear(ATTR_NODEV),
        "noexec" => set(ATTR_NOEXEC),
        "exec" => clear(ATTR_NOEXEC),
        "nosymfollow" => set(ATTR_NOSYMFOLLOW),
        "symfollow" => clear(ATTR_NOSYMFOLLOW),
        "nodiratime" => set(ATTR_NODIRATIME),
        "diratime" => clear(ATTR_NODIRATIME),
        "noatime" => access_time(ATTR_NOATIME),
        "strictatime" => access_time(ATTR_STRICTATIME),
        // Relative times are the kernel's default, which is what clearing the others leads to.
        "relatime" | "norelatime" | "atime" | "nostrictatime" => access_time(0),
        _ => return None,
    };
    Some(change)
}

const fn set(bits: u64) -> MountAttrs {
    MountAttrs::setting(bits)
}

const fn clear(bits: u64) -> MountAttrs {
    MountAttrs {
        set: 0,
        clear: bits,
    }
}

/// One field of several bits: all are cleared before one value is set, as mount_setattr(2) wants.
const fn access_time(value: u64) -> MountAttrs {
    MountAttrs {
        set: value,
        clear: ATTR_ATIME,
    }
}

pub(in crate::oci) fn propagation(word: &str) -> Option<PropagationChange> {
    let (name, recursive) = match word.strip_prefix('r') {
        Some(name) => (name, true),
        None => (word, false),
    };
    let to = match name {
        "private" => Propagation::Private,
        "slave" => Propagation::Slave,
        "shared" => Propagation::Shared,
        "unbindable" => Propagation::Unbindable,
        _ => return None,
    };
    Some(PropagationChange { to, recursive })
}

/// Every mount option that means something to this runtime; others are the filesystem's own.
pub const KNOWN: [&str; 61] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn words(options: &[&str]) -> Words {
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        sort(&options).unwrap_or_else(|word| panic!("{word} is known"))
    }

    #[test]
    fn the_last_word_wins_and_clearing_is_a_wish_too() {
        let both = words(&["ro", "nosuid", "rw", "noatime", "strictatime"]);
        assert_eq!(both.attrs.set, ATTR_NOSUID | ATTR_STRICTATIME);
        assert_eq!(both.attrs.clear, ATTR_RDONLY | ATTR_ATIME);
        let back = words(&["noatime", "atime"]).attrs;
        assert_eq!((back.set, back.clear), (0, ATTR_ATIME));
    }

    #[test]
    fn recursive_words_are_kept_apart() {
        let words = words(&[
            "rro", "rnosuid", "rsuid", "rnoatime", "nodev", "relatime", "rw",
        ]);
        assert_eq!(words.recursive_attrs.set, ATTR_RDONLY | ATTR_NOATIME);
        assert_eq!(words.recursive_attrs.clear, ATTR_NOSUID | ATTR_ATIME);
        assert_eq!(words.attrs.set, ATTR_NODEV);
    }

    #[test]
    fn every_known_word_is_sorted_and_none_falls_through() {
        for word in KNOWN {
            assert!(words(&[word]).filesystem.is_empty(), "{word}");
        }
    }

    #[test]
    fn options_in_one_string_are_taken_apart() {
        let words = words(&[
            "size=1m,mode=755",
            "lowerdir=/a\\,b:/c",
            "context=\"a:b,c\"",
        ]);
        let expected = ["size=1m", "mode=755", "lowerdir=/a\\,b:/c", "context=a:b,c"];
        assert_eq!(words.filesystem, expected);
    }
}
