// SPDX-License-Identifier: Apache-2.0
//! Names that are not the cluster's: from the cache, or from the node's own resolvers.
//!
//! Clients that ask the same thing at the same time wait for one question. That also bounds what a
//! loop between servers can do; and that there is one is found by a question of our own that comes
//! back to us.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::sync::watch;

use super::cache::{Cache, Key, key};
use super::message::Request;
use super::metrics::Metrics;
use super::resolv::Upstreams;
use super::stored::Stored;
use super::upstream::{self, AskError, Asked};

/// Until a client has its answer; it asks again, or gives up, after five seconds (resolv.conf(5)).
const DEADLINE: Duration = Duration::from_millis(4500);
/// For one server.
const TRY: Duration = Duration::from_secs(2);
/// Questions under way at a time, each with a socket.
const FLIGHTS: usize = 256;
/// Clients that wait, together and from one address, so that no pod takes all places.
const WAITING: usize = 4096;
const WAITING_EACH: usize = 256;
/// How long a loop is believed in before it is looked for again.
const LOOP_RECHECK: Duration = Duration::from_secs(30);

/// Why there is no answer. The client gets SERVFAIL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Too many wait already.
    Busy,
    /// resolv.conf names none, or they ask us.
    NoServer,
    /// Those that could be asked did not say.
    NoAnswer,
}

type Reply = Result<Arc<Stored>, Failure>;

#[derive(Debug)]
struct Inner {
    cache: Cache,
    upstreams: Upstreams,
    flights: HashMap<Key, watch::Receiver<Option<Reply>>>,
    waiting: HashMap<IpAddr, usize>,
    waiting_total: usize,
    /// The question that finds loops.
    probe: Option<Name>,
    looping: Option<Instant>,
}

/// Asks others.
#[derive(Debug)]
pub(crate) struct Forwarder {
    inner: Mutex<Inner>,
    /// Which server answered last.
    preferred: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Upstreams, metrics: Arc<Metrics>) -> Forwarder {
        Forwarder {
            inner: Mutex::new(Inner {
                cache: Cache::default(),
                upstreams,
                flights: HashMap::new(),
                waiting: HashMap::new(),
                waiting_total: 0,
                probe: None,
                looping: None,
            }),
            preferred: AtomicUsize::new(0),
            metrics,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing in there is half done when it is let go.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, if it is there.
    pub(crate) fn cached(&self, request: &Request) -> Option<(Arc<Stored>, u32)> {
        let key = key_of(&request.query, request);
        let found = self.inner().cache.get(&key, Instant::now());
        self.metrics
            .cache_asked(found.as_ref().map(|(stored, _)| stored.kind()));
        found
    }

    /// How many answers are kept: with records, and without.
    pub(crate) fn cached_counts(&self) -> [usize; 2] {
        self.inner().cache.counts()
    }

    /// Is this our own question, come back? Then those we ask ask us.
    pub(crate) fn is_probe(&self, query: &Query) -> bool {
        if query.query_type() != RecordType::HINFO {
            return false;
        }
        let mut inner = self.inner();
        if inner.probe.as_ref() != Some(query.name()) {
            return false;
        }
        if inner.looping.replace(Instant::now()).is_none() {
            let servers = inner.upstreams.servers();
            tracing::error!(
                ?servers,
                "the node's resolvers send what they are asked back to the cluster's DNS server; \
                 names outside the cluster are not served until its resolv.conf names others"
            );
        }
        true
    }

    /// Ask for a name, on behalf of a client. Dropping the future leaves the question under way, for
    /// others and for the cache; it ends by itself.
    pub(crate) async fn resolve(
        self: &Arc<Self>,
        client: IpAddr,
        query: &Query,
        request: &Request,
    ) -> Reply {
        let key = key_of(query, request);
        let (mut flight, _place) = match self.board(client, key, query, request)? {
            Boarding::Known(stored) => return Ok(stored),
            Boarding::Wait(flight, place) => (flight, place),
        };
        match flight.wait_for(Option::is_some).await {
            Ok(reply) => reply.clone().unwrap_or(Err(Failure::NoAnswer)),
            Err(_) => Err(Failure::NoAnswer),
        }
    }

    /// Join those who wait for the same, or set out.
    fn board(
        self: &Arc<Self>,
        client: IpAddr,
        key: Key,
        query: &Query,
        request: &Request,
    ) -> Result<Boarding, Failure> {
        let now = Instant::now();
        let mut inner = self.inner();
        self.look_at_servers(&mut inner, now);
        // The answer may have come since the cache was asked.
        if let Some((stored, _)) = inner.cache.get(&key, now) {
            return Ok(Boarding::Known(stored));
        }
        if inner.looping.is_some() {
            return Err(Failure::NoServer);
        }
        let each = inner.waiting.get(&client).copied().unwrap_or_default();
        let full = inner.flights.len() >= FLIGHTS && !inner.flights.contains_key(&key);
        if full || inner.waiting_total >= WAITING || each >= WAITING_EACH {
            drop(inner);
            self.metrics.rejected();
            return Err(Failure::Busy);
        }
        let flight = match inner.flights.get(&key) {
            Some(flight) => flight.clone(),
            None => {
                let servers = inner.upstreams.servers();
                if servers.is_empty() {
                    return Err(Failure::NoServer);
                }
                let asked = Asked {
                    query: query.clone(),
                    dnssec_ok: request.dnssec_ok(),
                    checking_disabled: request.checking_disabled,
                };
                let (sender, receiver) = watch::channel(None);
                inner.flights.insert(key.clone(), receiver.clone());
                tokio::spawn(self.clone().fly(key, asked, servers, sender));
                receiver
            }
        };
        *inner.waiting.entry(client).or_default() += 1;
        inner.waiting_total += 1;
        drop(inner);
        let place = Waiting {
            forwarder: self.clone(),
            client,
        };
        Ok(Boarding::Wait(flight, place))
    }

    /// Other servers than before: what the old ones said is forgotten, and loops are looked for.
    fn look_at_servers(self: &Arc<Self>, inner: &mut Inner, now: Instant) {
        let changed = inner.upstreams.refresh(now);
        let again = |since: Instant| now.saturating_duration_since(since) > LOOP_RECHECK;
        if !changed && !inner.looping.is_some_and(again) {
            return;
        }
        if changed {
            inner.cache.clear();
            self.preferred.store(0, Ordering::Relaxed);
        }
        inner.looping = None;
        let labels = [rand::random::<u64>(), rand::random::<u64>()].map(|n| n.to_string());
        inner.probe = Name::from_labels(labels.iter().map(|l| l.as_bytes())).ok();
        if let Some(name) = inner.probe.clone() {
            tokio::spawn(probe(name, inner.upstreams.servers()));
        }
    }

    async fn fly(
        self: Arc<Self>,
        key: Key,
        asked: Asked,
        servers: Arc<[SocketAddr]>,
        sender: watch::Sender<Option<Reply>>,
    ) {
        let reply = self.ask_all(&asked, &servers).await;
        let stored = match reply {
            Some(reply) => Stored::new(&asked.query, reply),
            None => Stored::failure(&asked.query),
        };
        let stored = stored.map(Arc::new);
        let mut inner = self.inner();
        inner.flights.remove(&key);
        // Servers that have been replaced meanwhile have no say any more.
        if let Some(stored) = &stored
            && Arc::ptr_eq(&servers, &inner.upstreams.servers())
        {
            inner.cache.put(key, stored.clone(), Instant::now());
        }
        drop(inner);
        sender.send_replace(Some(stored.ok_or(Failure::NoAnswer)));
    }

    /// Ask one after the other, twice at most, beginning with the one that answered last.
    async fn ask_all(&self, asked: &Asked, servers: &[SocketAddr]) -> Option<Message> {
        let begun = Instant::now();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = None;
        for attempt in 0..2 * servers.len() {
            let left = DEADLINE.saturating_sub(begun.elapsed());
            if left.is_zero() || (last.is_some() && attempt >= servers.len()) {
                break;
            }
            let index = (first + attempt) % servers.len();
            match self.ask_one(servers[index], asked, left.min(TRY)).await {
                Some(reply) if settles(&reply) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Some(reply);
                }
                Some(reply) => last = Some(reply),
                None => {}
            }
        }
        last
    }

    async fn ask_one(&self, server: SocketAddr, asked: &Asked, wait: Duration) -> Option<Message> {
        let begun = Instant::now();
        let both = async {
            let reply = upstream::ask(server, asked, true).await?;
            // Servers that do not know OPT say so like this (RFC 6891, 7).
            match reply.metadata.response_code {
                ResponseCode::FormErr | ResponseCode::NotImp => {
                    upstream::ask(server, asked, false).await
                }
                _ => Ok::<_, AskError>(reply),
            }
        };
        let reply = match tokio::time::timeout(wait, both).await {
            Ok(Ok(reply)) => Some(reply),
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(%server, error, "asking a resolver");
                None
            }
            Err(_) => None,
        };
        let code = reply.as_ref().map(|reply| reply.metadata.response_code);
        self.metrics.asked(server, code, begun.elapsed());
        reply
    }
}

fn key_of(query: &Query, request: &Request) -> Key {
    key(query, request.dnssec_ok(), request.checking_disabled)
}

/// Is it worth asking somebody else?
fn settles(reply: &Message) -> bool {
    matches!(
        reply.metadata.response_code,
        ResponseCode::NoError | ResponseCode::NXDomain
    )
}

/// Ask for a name that nobody else asks for. What is answered does not matter.
async fn probe(name: Name, servers: Arc<[SocketAddr]>) {
    let asked = Asked {
        query: Query::query(name, RecordType::HINFO),
        dnssec_ok: false,
        checking_disabled: false,
    };
    for server in servers.iter() {
        let _ = tokio::time::timeout(TRY, upstream::ask(*server, &asked, true)).await;
    }
}

/// What a client that asks has to do.
enum Boarding {
    /// Nothing: the answer is here.
    Known(Arc<Stored>),
    /// Wait for it.
    Wait(watch::Receiver<Option<Reply>>, Waiting),
}

/// A client's place among those who wait.
#[derive(Debug)]
struct Waiting {
    forwarder: Arc<Forwarder>,
    client: IpAddr,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.forwarder.inner();
        inner.waiting_total -= 1;
        if let Some(count) = inner.waiting.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                inner.waiting.remove(&self.client);
            }
        }
    }
}
