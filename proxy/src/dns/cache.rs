// SPDX-License-Identifier: Apache-2.0
//! Answers of others, for as long as they count, within a bound. Pure: the time is told.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::Query;

use super::message;
use super::stored::{Kind, Stored};

/// Answers that are kept, as CoreDNS counts them: 9984 of each kind.
const ENTRIES: usize = 20_000;
/// Of all together, in bytes.
const BYTES: usize = 8 << 20;
/// Longer ones are not kept.
const ENTRY_BYTES: usize = 8 << 10;

/// A name in lower case, a type, and what else makes answers differ.
pub type Key = Arc<[u8]>;

/// What is asked for. `dnssec_ok` and `checking_disabled` get other answers.
pub fn key(query: &Query, dnssec_ok: bool, checking_disabled: bool) -> Key {
    let mut bytes = message::wire(query.name());
    // Lengths of labels are below the letters.
    bytes.make_ascii_lowercase();
    bytes.extend(u16::from(query.query_type()).to_be_bytes());
    bytes.push(u8::from(dnssec_ok) | u8::from(checking_disabled) << 1);
    bytes.into()
}

#[derive(Debug)]
struct Entry {
    stored: Arc<Stored>,
    since: Instant,
    until: Instant,
    number: u64,
}

/// The cache.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Key, Entry>,
    /// In the order in which they came; some have been replaced since.
    order: VecDeque<(u64, Key)>,
    bytes: usize,
    next: u64,
}

impl Cache {
    /// An answer that still counts, and its age in seconds.
    pub fn get(&self, key: &[u8], now: Instant) -> Option<(Arc<Stored>, u32)> {
        let entry = self.entries.get(key).filter(|entry| entry.until > now)?;
        let age = now.saturating_duration_since(entry.since).as_secs();
        Some((entry.stored.clone(), u32::try_from(age).unwrap_or(u32::MAX)))
    }

    /// Keep an answer, if it may be kept. Those that came first make room.
    pub fn put(&mut self, key: Key, stored: Arc<Stored>, now: Instant) {
        let Some(keep) = stored.keep() else { return };
        let size = cost(&key, &stored);
        if size > ENTRY_BYTES {
            return;
        }
        self.remove(&key);
        self.next += 1;
        self.bytes += size;
        self.order.push_back((self.next, key.clone()));
        let entry = Entry {
            stored,
            since: now,
            until: now + keep,
            number: self.next,
        };
        self.entries.insert(key, entry);
        self.shrink(now);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(old) = self.entries.remove(key) {
            self.bytes -= cost(key, &old.stored);
        }
    }

    fn shrink(&mut self, now: Instant) {
        while let Some((number, key)) = self.order.front() {
            let entry = self.entries.get(key).filter(|e| e.number == *number);
            let over = self.entries.len() > ENTRIES
                || self.bytes > BYTES
                || self.order.len() > 2 * ENTRIES;
            if entry.is_some_and(|entry| entry.until > now) && !over {
                return;
            }
            let current = entry.is_some();
            let Some((_, key)) = self.order.pop_front() else {
                return;
            };
            if current {
                self.remove(&key);
            }
        }
    }

    /// Forget everything: others are asked from now on.
    pub fn clear(&mut self) {
        *self = Cache {
            next: self.next,
            ..Cache::default()
        };
    }

    /// How many answers there are: with records, and without.
    pub fn counts(&self) -> [usize; 2] {
        let kinds = self.entries.values();
        let success = kinds.filter(|e| e.stored.kind() == Kind::Success).count();
        [success, self.entries.len() - success]
    }
}

fn cost(key: &Key, stored: &Stored) -> usize {
    2 * (key.len() + size_of::<Key>()) + size_of::<Entry>() + stored.size()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hickory_proto::op::{Message, OpCode};
    use hickory_proto::rr::rdata::{A, TXT};
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    use super::*;

    fn query(text: &str) -> Query {
        Query::query(Name::from_ascii(text).expect("a name"), RecordType::A)
    }

    fn answer(query: &Query, ttl: u32, text: usize) -> Arc<Stored> {
        let mut reply = Message::response(1, OpCode::Query);
        reply.add_query(query.clone());
        let data = RData::A(A::new(1, 1, 1, 1));
        reply.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
        for _ in 0..text {
            let data = RData::TXT(TXT::new(vec!["x".repeat(200)]));
            reply.add_additional(Record::from_rdata(query.name().clone(), ttl, data));
        }
        Arc::new(Stored::new(query, reply).expect("it can be written"))
    }

    #[test]
    fn an_answer_counts_until_its_time_is_up() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let asked = query("a.example.");
        let at = key(&asked, false, false);
        cache.put(at.clone(), answer(&asked, 60, 0), now);
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(cache.get(&at, later(59)).map(|hit| hit.1), Some(59));
        assert!(cache.get(&at, later(60)).is_none());
        assert!(
            cache
                .get(&key(&query("A.eXample."), false, false), now)
                .is_some()
        );
        assert!(cache.get(&key(&asked, true, false), now).is_none());
        assert!(cache.get(&key(&asked, false, true), now).is_none());
        cache.clear();
        assert!(cache.get(&at, now).is_none());
    }

    #[test]
    fn the_bounds_hold() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for n in 0..ENTRIES + 10 {
            let asked = query(&format!("n{n}.example."));
            cache.put(key(&asked, false, false), answer(&asked, 60, 0), now);
        }
        assert!(cache.entries.len() <= ENTRIES && cache.bytes <= BYTES);
        assert!(
            cache
                .get(&key(&query("n0.example."), false, false), now)
                .is_none()
        );
        let big = query("big.example.");
        cache.put(key(&big, false, false), answer(&big, 60, 50), now);
        assert!(cache.get(&key(&big, false, false), now).is_none());
        for n in 0..5000 {
            let asked = query(&format!("m{n}.example."));
            cache.put(key(&asked, false, false), answer(&asked, 60, 20), now);
            assert!(cache.bytes <= BYTES);
        }
        // The same name again and again leaves no trail.
        let asked = query("same.example.");
        for _ in 0..3 * ENTRIES {
            cache.put(key(&asked, false, false), answer(&asked, 60, 0), now);
        }
        assert!(cache.order.len() <= 2 * ENTRIES);
        let much_later = now + Duration::from_secs(1000);
        cache.put(key(&asked, false, false), answer(&asked, 60, 0), much_later);
        assert_eq!((cache.entries.len(), cache.order.len()), (1, 1));
    }
}
