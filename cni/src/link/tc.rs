// SPDX-License-Identifier: Apache-2.0
//! Traffic control: token buckets, and the way of incoming packets through an `ifb` link, whose
//! queue then holds them back (tc-tbf(8), tc-mirred(8)).

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::{LinkError, Route};

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_OPTIONS: u16 = 2;
/// `struct tc_ratespec` with the rate in its last four bytes.
const RATESPEC_BYTES: usize = 12;
/// One tick of the kernel's packet scheduler (`PSCHED_SHIFT` is 6 since Linux 2.6.31).
const NANOSECONDS_PER_TICK: u64 = 64;
/// How long a packet may wait at most; the reference plugin's figure.
const LATENCY_MILLISECONDS: u64 = 25;

/// A token bucket, in the kernel's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Bytes a second.
    pub(crate) rate: u64,
    /// Bytes that may wait.
    limit: u32,
    /// Ticks that the bucket takes to fill.
    buffer: u32,
}

impl Bucket {
    /// By bits a second, and bits that may go at once. Neither may be 0.
    pub(crate) fn new(rate_bits: u64, burst_bits: u64) -> Bucket {
        // Less than a byte a second is no rate that the kernel has.
        let rate = (rate_bits / 8).max(1);
        let burst = burst_bits / 8;
        let nanoseconds = u128::from(burst) * 1_000_000_000 / u128::from(rate);
        let buffer = nanoseconds / u128::from(NANOSECONDS_PER_TICK);
        let waiting = rate.saturating_mul(LATENCY_MILLISECONDS) / 1000;
        Bucket {
            rate,
            limit: u32::try_from(waiting.saturating_add(burst)).unwrap_or(u32::MAX),
            // A bucket that takes longer than 274 s to fill holds what fills it in that time.
            buffer: u32::try_from(buffer).unwrap_or(u32::MAX),
        }
    }

    fn options(self) -> Vec<TcOption> {
        let short = u32::try_from(self.rate).unwrap_or(u32::MAX);
        let mut parms = vec![0; RATESPEC_BYTES - 4];
        parms.extend(short.to_ne_bytes());
        parms.extend([0; RATESPEC_BYTES]); // no peak rate
        parms.extend(self.limit.to_ne_bytes());
        parms.extend(self.buffer.to_ne_bytes());
        parms.extend([0; 4]); // the link's own MTU
        let mut options = vec![TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parms))];
        if self.rate > u64::from(u32::MAX) {
            let rate = self.rate.to_ne_bytes().to_vec();
            options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, rate)));
        }
        options
    }

    /// Out of the options of a listed qdisc.
    fn parse(options: &[u8]) -> Option<Bucket> {
        let attributes: Vec<_> = crate::netlink::Attributes(options).collect();
        let parms = attributes.iter().find(|a| a.0 == TCA_TBF_PARMS)?.1;
        let number = |at: usize| {
            let bytes = parms.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_ne_bytes(bytes))
        };
        let long = attributes.iter().find(|a| a.0 == TCA_TBF_RATE64);
        let long = long
            .and_then(|a| a.1.try_into().ok())
            .map(u64::from_ne_bytes);
        Some(Bucket {
            rate: long.map_or_else(|| number(RATESPEC_BYTES - 4).map(u64::from), Some)?,
            limit: number(2 * RATESPEC_BYTES)?,
            buffer: number(2 * RATESPEC_BYTES + 4)?,
        })
    }
}

impl Route {
    /// Let what leaves by a link pass a token bucket.
    pub(crate) fn limit(&mut self, index: u32, bucket: Bucket) -> Result<(), LinkError> {
        let mut message = message(index, TcHandle::ROOT, "tbf");
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message
            .attributes
            .push(TcAttribute::Options(bucket.options()));
        self.request(
            || format!("limiting link {index} to {} bytes/s", bucket.rate),
            vec![(
                NLM_F_CREATE | NLM_F_EXCL,
                RouteNetlinkMessage::NewQueueDiscipline(message),
            )],
        )
        .map(drop)
    }

    /// The token bucket that limits a link, if there is one.
    pub(crate) fn limit_of(&mut self, index: u32) -> Result<Option<Bucket>, LinkError> {
        let request = TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX));
        let answers = self.request(
            || format!("looking at the queues of link {index}"),
            vec![(NLM_F_DUMP, RouteNetlinkMessage::GetQueueDiscipline(request))],
        )?;
        let bucket = answers.into_iter().find_map(|answer| {
            let RouteNetlinkMessage::NewQueueDiscipline(queue) = answer else {
                return None;
            };
            let is_ours = u32::try_from(queue.header.index) == Ok(index)
                && queue
                    .attributes
                    .contains(&TcAttribute::Kind("tbf".to_owned()));
            if !is_ours {
                return None;
            }
            queue
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    TcAttribute::Options(options) => bucket_of(options),
                    _ => None,
                })
        });
        Ok(bucket)
    }

    /// Make an `ifb` link and set it up.
    pub(crate) fn add_ifb(&mut self, name: &str, mtu: u32) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend([
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::TxQueueLen(0),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ]);
        self.request(
            || format!("creating ifb {name}"),
            vec![(super::CREATE, RouteNetlinkMessage::NewLink(message))],
        )
        .map(drop)
    }

    /// Let everything that comes in by a link leave by another, from whose queue it comes back.
    pub(crate) fn redirect(&mut self, from: u32, to: u32) -> Result<(), LinkError> {
        const INGRESS_MAJOR: u16 = 0xffff;
        let handle = TcHandle {
            major: INGRESS_MAJOR,
            minor: 0,
        };
        let mut queue = message(from, TcHandle::INGRESS, "ingress");
        queue.header.handle = handle;
        let mut filter = message(from, handle, "u32");
        // Priority 1 in the upper half; the lower has the protocol, in network order.
        let all = u16::try_from(libc::ETH_P_ALL)
            .expect("a small number")
            .to_be();
        filter.header.info = (1 << 16) | u32::from(all);
        filter
            .attributes
            .push(TcAttribute::Options(redirection(to)));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.request(
            || format!("sending what comes in by link {from} through link {to}"),
            vec![
                (flags, RouteNetlinkMessage::NewQueueDiscipline(queue)),
                (flags, RouteNetlinkMessage::NewTrafficFilter(filter)),
            ],
        )
        .map(drop)
    }
}

fn message(index: u32, parent: TcHandle, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX));
    message.header.parent = parent;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

/// A filter that matches every packet, and what becomes of it.
fn redirection(to: u32) -> Vec<TcOption> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    let class = TcHandle { major: 1, minor: 1 };
    vec![
        TcOption::U32(TcFilterU32Option::ClassId(class)),
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]
}

/// The decoder keeps the options of a qdisc that it does not know as one attribute.
fn bucket_of(options: &[TcOption]) -> Option<Bucket> {
    use netlink_packet_core::Nla;
    options.iter().find_map(|option| {
        let mut bytes = vec![0; option.value_len()];
        option.emit_value(&mut bytes);
        let whole = option.kind() & !(1 << 15) == TCA_OPTIONS;
        whole.then(|| Bucket::parse(&bytes)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_in_the_kernels_units() {
        let bucket = Bucket::new(8_000_000, 800_000);
        // 100 ms to fill, in ticks of 64 ns; 25 ms may wait behind it.
        assert_eq!(bucket.rate, 1_000_000);
        assert_eq!(bucket.buffer, 1_562_500);
        assert_eq!(bucket.limit, 125_000);
        assert_eq!(Bucket::new(1, u64::MAX).buffer, u32::MAX);
    }

    #[test]
    fn what_was_set_is_read_back() {
        use netlink_packet_core::Emitable;
        for bucket in [
            Bucket::new(8_000_000, 800_000),
            Bucket::new(1 << 40, 1 << 30),
        ] {
            let options = bucket.options();
            let mut bytes = vec![0; options.as_slice().buffer_len()];
            options.as_slice().emit(&mut bytes);
            assert_eq!(Bucket::parse(&bytes), Some(bucket));
        }
        assert_eq!(Bucket::parse(&[1, 2, 3]), None);
    }
}
