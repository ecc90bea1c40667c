// SPDX-License-Identifier: Apache-2.0
//! Bytes of a fuzzer as decisions: numbers, pieces, and changes to a JSON document.

use serde_json::{Value, json};

/// Reads decisions from the front. What is missing at the end is zero.
pub struct Input<'a>(pub &'a [u8]);

/// Strings that a parser or a path resolver may stumble over.
const WORDS: [&str; 40] = [
    "",
    "/",
    "..",
    "../../etc",
    "/proc/self/exe",
    "/proc/self/fd/7",
    "/proc/self/cwd",
    "/dev/console",
    "/dev/../proc/sys",
    "a\0b",
    "a\nb",
    "\u{1b}[2J",
    "é\u{202e}x",
    "CAP_SYS_ADMIN",
    "CAP_NOSUCH",
    "all",
    "kernel.core_pattern",
    "kernel.shm_rmid_forced=1+kernel.core_pattern",
    "net.ipv4.conf.eth0/100.forwarding",
    "net/../kernel/core_pattern",
    "net.",
    "fs.mqueue.",
    "bind",
    "rbind",
    "rro",
    "ro",
    "rshared",
    "mode=1777",
    "size=-1",
    "idmap=uids=0-0-4294967295",
    "tmpcopyup",
    "cgroup",
    "proc",
    "sysfs",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_NOTIFY",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_ARCH_X32",
    "clone",
    "18446744073709551616",
];

const NUMBERS: [i64; 12] = [
    0,
    1,
    -1,
    2,
    5,
    6,
    63,
    64,
    65536,
    u32::MAX as i64,
    i64::MAX,
    i64::MIN,
];

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        let number = usize::from(self.byte()) << 8 | usize::from(self.byte());
        number % limit.max(1)
    }

    pub fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        for (slot, byte) in bytes.iter_mut().zip(self.take(8)) {
            *slot = *byte;
        }
        u64::from_le_bytes(bytes)
    }

    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        head
    }

    pub fn text(&mut self) -> String {
        let length = usize::from(self.byte() % 32);
        String::from_utf8_lossy(self.take(length)).into_owned()
    }

    /// A name for a process or a file.
    pub fn word(&mut self) -> String {
        match self.byte() % 4 {
            0 => self.text(),
            _ => WORDS[self.below(WORDS.len())].to_owned(),
        }
    }

    fn value(&mut self) -> Value {
        match self.byte() % 10 {
            0 => Value::Null,
            1 => json!(self.byte().is_multiple_of(2)),
            2 => json!(NUMBERS[self.below(NUMBERS.len())]),
            3 => json!(self.number()),
            4 => json!(self.text()),
            5 => json!([]),
            6 => json!({}),
            7 => json!([self.word()]),
            8 => json!({self.word(): self.word()}),
            _ => json!(self.word()),
        }
    }

    /// Changes a document until the input ends: values replaced, removed, doubled, exchanged.
    pub fn change(&mut self, document: &mut Value) {
        while !self.is_empty() {
            let mut pointers = Vec::new();
            collect(document, String::new(), &mut pointers);
            let pointer = pointers[self.below(pointers.len())].clone();
            let operation = self.byte() % 5;
            let value = match operation {
                0 => {
                    let other = &pointers[self.below(pointers.len())];
                    document.pointer(other).cloned().unwrap_or_default()
                }
                _ => self.value(),
            };
            let Some(place) = document.pointer_mut(&pointer) else {
                continue;
            };
            match (operation, place) {
                (1, Value::Array(list)) if list.len() < 64 => list.push(value),
                (1, Value::Object(map)) => drop(map.insert(self.word(), value)),
                (2, Value::Array(list)) if !list.is_empty() => {
                    let index = self.below(list.len());
                    list.remove(index);
                }
                (2, Value::Object(map)) if !map.is_empty() => {
                    let index = self.below(map.len());
                    let key = map.keys().nth(index).cloned().unwrap_or_default();
                    map.remove(&key);
                }
                (_, place) => *place = value,
            }
            // Copies into copies would grow without end.
            if pointers.len() > 4000 {
                return;
            }
        }
    }
}

/// The JSON pointers of all values within.
fn collect(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                collect(value, format!("{at}/{index}"), out);
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect(value, format!("{at}/{key}"), out);
            }
        }
        _ => {}
    }
    out.push(at);
}
