// SPDX-License-Identifier: Apache-2.0
//! From a packet to the packet that answers it. What the zone and the cache know is said at once;
//! the rest waits for others.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use cni::cidr::Cidr;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::Name;

use super::answer::{self, Answer, Outcome, Turn};
use super::forward::Forwarder;
use super::message::{self, Refused, Request, TCP_MAX};
use super::metrics::{Asked, Metrics, Source, Transport};
use super::stored::Stored;
use super::zone::Zone;

/// The shortest record, an address whose name is said elsewhere: how many fit follows from it.
const RECORD_MIN: u16 = 16;

/// For whom others are asked. A server that asks for everybody can be turned against third parties;
/// names of the cluster are told to whoever can send to the address.
#[derive(Debug)]
pub(crate) struct Access {
    /// Addresses of pods; empty: everybody may.
    pub(crate) pods: Vec<Cidr>,
    /// This node's own.
    pub(crate) own: RwLock<Vec<IpAddr>>,
}

impl Access {
    fn allows(&self, client: IpAddr) -> bool {
        let pods = &self.pods;
        let own = || {
            let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
            own.contains(&client)
        };
        client.is_loopback()
            || pods.is_empty()
            || pods.iter().any(|range| range.contains(client))
            || own()
    }
}

/// Everything that answers.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) zone: Arc<RwLock<Zone>>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access: Access,
    pub(crate) turn: AtomicUsize,
}

/// What becomes of a packet.
#[derive(Debug)]
pub(crate) enum Handled {
    /// Nothing is sent.
    Nothing,
    /// This is.
    Reply(Vec<u8>),
    /// Others have to be asked.
    Later(Box<Pending>),
}

/// A question that others have to be asked for.
#[derive(Debug)]
pub(crate) struct Pending {
    request: Request,
    client: IpAddr,
    limit: u16,
    begun: Instant,
    /// The records that lead to another name.
    after: Option<(Answer, Name)>,
}

impl Server {
    /// Take a packet. Does no I/O.
    pub(crate) fn handle(&self, packet: &[u8], peer: SocketAddr, transport: Transport) -> Handled {
        let begun = Instant::now();
        let request = match message::parse(packet) {
            Ok(request) => request,
            Err(refused) => {
                self.metrics.refused();
                return match refused {
                    Refused::Drop => Handled::Nothing,
                    Refused::Reply(reply) => Handled::Reply(reply),
                };
            }
        };
        let limit = match transport {
            Transport::Udp => request.udp_limit(),
            Transport::Tcp => TCP_MAX,
        };
        let turn = Turn {
            offset: self.turn.fetch_add(1, Ordering::Relaxed),
            room: usize::from(limit / RECORD_MIN),
        };
        let (outcome, own) = {
            let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
            let outcome = answer::answer(&request.query, &zone, turn);
            (outcome, zone.place().domain.zone_of(request.query.name()))
        };
        self.metrics.request(Asked {
            transport,
            ipv4: peer.is_ipv4(),
            kind: request.query.query_type(),
            own,
        });
        let pending = Pending {
            request,
            client: peer.ip(),
            limit,
            begun,
            after: None,
        };
        match outcome {
            Outcome::Done(answer) => self.say(&pending, &answer, own),
            Outcome::Forward => self.forward(pending, turn.offset),
            Outcome::Follow(answer, target) => self.follow(pending, answer, target),
        }
    }

    fn say(&self, pending: &Pending, answer: &Answer, own: bool) -> Handled {
        let reply = message::encode(&pending.request, answer, pending.limit);
        let took = pending.begun.elapsed();
        self.metrics.response(own, answer.code, Source::Zone, took);
        Handled::Reply(reply)
    }

    fn forward(&self, pending: Pending, offset: usize) -> Handled {
        let request = &pending.request;
        if !request.recursion_desired || !self.access.allows(pending.client) {
            return self.say(&pending, &Answer::code(ResponseCode::Refused), false);
        }
        if self.forwarder.is_probe(&request.query) {
            return self.say(&pending, &Answer::code(ResponseCode::ServFail), false);
        }
        let Some((stored, age)) = self.forwarder.cached(request) else {
            return Handled::Later(Box::new(pending));
        };
        let reply = stored.render(request, age, pending.limit, offset);
        let took = pending.begun.elapsed();
        self.metrics
            .response(false, stored.code(), Source::Cache, took);
        Handled::Reply(reply)
    }

    fn follow(&self, mut pending: Pending, answer: Answer, target: Name) -> Handled {
        // The name that it stands for is an answer too, for who wants no more.
        if !pending.request.recursion_desired || !self.access.allows(pending.client) {
            return self.say(&pending, &answer, true);
        }
        pending.after = Some((answer, target));
        Handled::Later(Box::new(pending))
    }

    /// Ask others. Takes as long as a question may take, at most.
    pub(crate) async fn finish(&self, pending: Pending) -> Vec<u8> {
        let Pending {
            request,
            client,
            limit,
            begun,
            after,
        } = pending;
        let own = after.is_some();
        let (reply, code) = match after {
            None => self.ask(client, &request, limit).await,
            Some((answer, target)) => {
                let answer = self.lead(client, &request, answer, target).await;
                (message::encode(&request, &answer, limit), answer.code)
            }
        };
        self.metrics
            .response(own, code, Source::Forward, begun.elapsed());
        reply
    }

    async fn ask(&self, client: IpAddr, request: &Request, limit: u16) -> (Vec<u8>, ResponseCode) {
        match self
            .forwarder
            .resolve(client, &request.query, request)
            .await
        {
            Ok(stored) => {
                let offset = self.turn.fetch_add(1, Ordering::Relaxed);
                (stored.render(request, 0, limit, offset), stored.code())
            }
            Err(_) => {
                let code = ResponseCode::ServFail;
                (message::refusal(request, code), code)
            }
        }
    }

    /// Add what the target of an alias has.
    async fn lead(
        &self,
        client: IpAddr,
        request: &Request,
        mut answer: Answer,
        target: Name,
    ) -> Answer {
        let query = Query::query(target, request.query.query_type());
        let asked = Request {
            query,
            ..request.clone()
        };
        let found: Option<(Arc<Stored>, u32)> = match self.forwarder.cached(&asked) {
            Some(found) => Some(found),
            None => {
                let reply = self.forwarder.resolve(client, &asked.query, &asked).await;
                reply.ok().map(|stored| (stored, 0))
            }
        };
        let message = found.and_then(|(stored, age)| Some((stored.message()?, stored.code(), age)));
        let Some((mut message, code, age)) = message else {
            return Answer::code(ResponseCode::ServFail);
        };
        let records = message.answers.iter_mut().chain(&mut message.authorities);
        records.for_each(|record| {
            record.decrement_ttl(age);
        });
        answer.answers.append(&mut message.answers);
        answer.authorities = message.authorities;
        answer.code = code;
        answer
    }
}
