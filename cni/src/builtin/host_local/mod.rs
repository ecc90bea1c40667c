// SPDX-License-Identifier: Apache-2.0
//! `host-local`: addresses out of ranges, with one file per lease.
//!
//! Leases are handed out in turn, after the one that was handed out last, so that an address rests as
//! long as possible before it is used again.

mod index;
mod range;
mod resolv;
mod store;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde_json::Value;

use self::range::{Range, RangeSet};
use self::store::{Lease, Locked, Store};
use super::input::{
    argument, environment, fields, network_name, previous, valid_attachments, version, wish,
};
use super::{unknown_verb, wrong};
use crate::cidr::Cidr;
use crate::exec::Call;
use crate::fields::{FieldError, Fields};
use crate::types::{AddResult, IpConfig, PluginError, Route, code};

/// The `ipam` object of a plugin's configuration.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conf {
    /// One address is taken from each set.
    sets: Vec<RangeSet>,
    routes: Vec<Route>,
    data_dir: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
}

impl Conf {
    /// `whole` is the configuration around the object: its runtime may bring the ranges.
    pub(super) fn parse(mut ipam: Fields, whole: &Value) -> Result<Conf, FieldError> {
        ipam.ignore(&["type"]);
        let mut sets = Vec::new();
        sets.extend(Range::parse(&mut ipam, false)?.map(RangeSet::of));
        let path = ipam.path_of("ranges");
        let listed: Option<Vec<Vec<Value>>> = ipam.take("ranges")?;
        sets.extend(RangeSet::parse(&path, listed.unwrap_or_default())?);
        let later = ["/capabilities/ipRanges", "/runtimeConfig/ipRanges"];
        if sets.is_empty() && !later.iter().any(|place| whole.pointer(place).is_some()) {
            let text = "no range is given, here or as subnet";
            return Err(FieldError::new(path, text));
        }
        RangeSet::check_disjoint(&path, &sets)?;
        let empty = |path: &PathBuf| path.as_os_str().is_empty();
        let conf = Conf {
            sets,
            routes: ipam.take("routes")?.unwrap_or_default(),
            data_dir: ipam.take("dataDir")?.filter(|path| !empty(path)),
            resolv_conf: ipam.take("resolvConf")?.filter(|path| !empty(path)),
        };
        ipam.finish()?;
        Ok(conf)
    }

    /// The leases of the network that `call` is about.
    pub(super) fn store(&self, call: &Call) -> Result<Store, PluginError> {
        let data_dir = self.data_dir.as_deref().unwrap_or(&call.dirs.leases);
        Ok(Store::new(data_dir.join(network_name(call)?)))
    }

    /// Could a pod have this address?
    pub(super) fn can_lease(&self, address: IpAddr) -> bool {
        let could = |set: &RangeSet| set.contains(address) && !set.is_gateway(address);
        self.sets.iter().any(could)
    }

    /// Ranges that the runtime brings come first.
    fn sets(&self, call: &Call) -> Result<Vec<RangeSet>, PluginError> {
        const WISH: &str = "runtimeConfig.ipRanges";
        let wished: Option<Vec<Vec<Value>>> = wish(call, "ipRanges")?;
        let mut sets = RangeSet::parse(WISH, wished.unwrap_or_default())?;
        sets.extend(self.sets.iter().cloned());
        if sets.is_empty() {
            return Err(FieldError::new(
                "ipam.ranges",
                "no range is given, here or by the runtime",
            )
            .into());
        }
        RangeSet::check_disjoint(WISH, &sets)?;
        Ok(sets)
    }
}

/// An address, with or without a prefix length.
#[derive(Clone, Copy)]
struct Address(IpAddr);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let alone = text.parse().ok();
        let with_prefix = || text.parse::<Cidr>().ok().map(|cidr| cidr.addr);
        let wrong = || format!("{text:?} is not an address");
        alone.or_else(with_prefix).map(Address).ok_or_else(wrong)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Addresses that somebody wants: by `CNI_ARGS`, by `args`, by the runtime.
fn requested(call: &Call) -> Result<Vec<IpAddr>, PluginError> {
    let mut wanted: Vec<Address> = Vec::new();
    if let Some(text) = environment(call, "IP")? {
        wanted.push(text.parse().map_err(|problem| {
            let text = format!("environment variable CNI_ARGS: IP: {problem}");
            PluginError::new(code::INVALID_ENVIRONMENT, text)
        })?);
    }
    let argued: Option<Vec<Address>> = argument(call, "ips")?;
    let wished: Option<Vec<Address>> = wish(call, "ips")?;
    wanted.extend(argued.into_iter().chain(wished).flatten());
    let mut wanted: Vec<IpAddr> = wanted.into_iter().map(|address| address.0).collect();
    wanted.sort();
    wanted.dedup();
    Ok(wanted)
}

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    let Some(ipam) = fields("", call.conf.clone())?.object("ipam")? else {
        return Err(FieldError::new("ipam", "is missing").into());
    };
    answer(&Conf::parse(ipam, &call.conf)?, call)
}

pub(super) fn answer(conf: &Conf, call: &Call) -> Result<Option<Value>, PluginError> {
    let store = conf.store(call)?;
    match call.verb {
        "ADD" => add(conf, &store, call).map(|r| Some(r.to_json(version(call)))),
        "DEL" => release(&store, call).map(|()| None),
        "CHECK" => check(&store, call).map(|()| None),
        "GC" if !store.exists() => valid_attachments(call).map(|_| None),
        "GC" => {
            let valid = valid_attachments(call)?;
            // A lease of an old reference plugin does not name its interface.
            let is_valid = |id: &str, ifname: &str| {
                valid
                    .iter()
                    .any(|(i, n)| i == id && (n == ifname || ifname.is_empty()))
            };
            let stale = |id: &str, ifname: &str| !is_valid(id, ifname);
            store.lock()?.release_all(stale).map(|()| None)
        }
        // Not whether an address is left: a full pool is no reason to call the node unfit, whose
        // pods would be evicted then.
        "STATUS" => store.make().map(|()| None),
        _ => Err(unknown_verb(call)),
    }
}

fn add(conf: &Conf, store: &Store, call: &Call) -> Result<AddResult, PluginError> {
    let mut result = AddResult {
        routes: conf.routes.clone(),
        ..AddResult::default()
    };
    if let Some(path) = &conf.resolv_conf {
        result.dns = resolv::read(path)?;
    }
    let (sets, wanted) = (conf.sets(call)?, requested(call)?);
    let mut leases = store.lock()?;
    if let Some(address) = leases.of(&call.container_id, &call.ifname)?.first() {
        let text = format!(
            "{address} has been allocated to {}, duplicate allocation is not allowed",
            call.container_id
        );
        return Err(PluginError::new(code::INVALID_ENVIRONMENT, text));
    }
    let leased = lease_all(&mut leases, &sets, &wanted, call, &mut result.ips);
    if leased.is_err() {
        let taken: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr).collect();
        // The first error counts; a lease that stays is collected by GC.
        let _ = leases.release(&taken, &call.container_id, &call.ifname);
    }
    leased.map(|()| result)
}

/// One address of each set; every address that somebody wants must be among them.
fn lease_all(
    leases: &mut Locked<'_>,
    sets: &[RangeSet],
    wanted: &[IpAddr],
    call: &Call,
    ips: &mut Vec<IpConfig>,
) -> Result<(), PluginError> {
    let mut open: Vec<IpAddr> = wanted.to_vec();
    for (index, set) in sets.iter().enumerate() {
        let at = open.iter().position(|address| set.contains(*address));
        let ip = match at.map(|at| open.remove(at)) {
            Some(address) => requested_ip(leases, set, address),
            None => set
                .pick(leases.last(index), |address| leases.is_taken(address))
                .ok_or_else(|| format!("no IP addresses available in range set: {set}")),
        };
        let ip = ip.map_err(|problem| {
            let text = format!("failed to allocate for range {index}: {problem}");
            PluginError::new(code::TRY_AGAIN, text)
        })?;
        let lease = Lease {
            address: ip.address.addr,
            id: call.container_id.clone(),
            ifname: call.ifname.clone(),
        };
        leases.lease(&lease, index)?;
        ips.push(ip);
    }
    if open.is_empty() {
        return Ok(());
    }
    let left: Vec<_> = open.iter().map(IpAddr::to_string).collect();
    let text = format!("failed to allocate all requested IPs: {}", left.join(" "));
    Err(PluginError::new(code::INVALID_CONFIG, text))
}

fn requested_ip(leases: &Locked<'_>, set: &RangeSet, address: IpAddr) -> Result<IpConfig, String> {
    let ip = set
        .requested(address)
        .ok_or_else(|| format!("requested ip {address} is subnet's gateway"))?;
    if leases.is_taken(address) {
        return Err(format!(
            "requested IP address {address} is not available in range set {set}"
        ));
    }
    Ok(ip)
}

/// DEL. The leases that the result of ADD tells need not be searched for.
fn release(store: &Store, call: &Call) -> Result<(), PluginError> {
    if !store.exists() {
        return Ok(());
    }
    let (id, ifname) = (call.container_id.as_str(), call.ifname.as_str());
    let known = previous(call)?.map(|result| result.ips).unwrap_or_default();
    let mut leases = store.lock()?;
    let addresses = if known.is_empty() {
        leases.of(id, ifname)?
    } else {
        known.into_iter().map(|ip| ip.address.addr).collect()
    };
    leases.release(&addresses, id, ifname)
}

fn check(store: &Store, call: &Call) -> Result<(), PluginError> {
    if !store.of(&call.container_id, &call.ifname)?.is_empty() {
        return Ok(());
    }
    Err(wrong(format!(
        "container {} has no lease in {}",
        call.container_id,
        store.dir().display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::path::Path;

    fn call(dir: &Path, verb: &'static str, id: &str, ipam: &Value) -> Call {
        let conf = json!({"cniVersion": "1.1.0", "name": "n", "ipam": ipam,
            "cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]});
        let mut call = Call::of_test(dir, verb, conf);
        call.container_id = id.to_owned();
        call
    }

    fn address(dir: &Path, id: &str, ipam: &Value) -> Result<String, PluginError> {
        let result = run(&call(dir, "ADD", id, ipam))?.expect("a result");
        Ok(result["ips"][0]["address"]
            .as_str()
            .expect("text")
            .to_owned())
    }

    #[test]
    fn addresses_go_round_and_skip_the_gateway() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let ipam = json!({"type": "host-local", "subnet": "10.0.0.0/29", "routes": [{"dst": "0.0.0.0/0"}]});
        for (id, expected) in [("c1", "10.0.0.2/29"), ("c2", "10.0.0.3/29")] {
            assert_eq!(address(dir, id, &ipam).expect("an address"), expected);
        }
        assert!(address(dir, "c1", &ipam).is_err(), "it has one already");
        run(&call(dir, "DEL", "c1", &ipam)).expect("released");
        run(&call(dir, "DEL", "c1", &ipam)).expect("and again");
        for (id, expected) in [
            ("c3", "10.0.0.4/29"),
            ("c4", "10.0.0.5/29"),
            ("c5", "10.0.0.6/29"),
            ("c6", "10.0.0.2/29"),
        ] {
            assert_eq!(address(dir, id, &ipam).expect("an address"), expected);
        }
        let error = address(dir, "c7", &ipam).expect_err("full");
        assert_eq!(
            error.msg,
            "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.6"
        );
        run(&call(dir, "CHECK", "c3", &ipam)).expect("leased");
        run(&call(dir, "GC", "", &ipam)).expect("collected");
        assert!(run(&call(dir, "CHECK", "c3", &ipam)).is_err());
        run(&call(dir, "CHECK", "c2", &ipam)).expect("kept");
        assert_eq!(
            fs::read_to_string(dir.join("n/10.0.0.3")).expect("a lease"),
            "c2\r\neth0"
        );
    }

    #[test]
    fn several_ranges_of_both_families() {
        let dir = tempfile::tempdir().expect("a directory");
        let ipam = json!({"type": "host-local", "ranges": [
            [{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.9", "gateway": "10.0.0.254"},
             {"subnet": "10.0.1.0/24"}],
            [{"subnet": "fd00::/64"}]]});
        let one = run(&call(dir.path(), "ADD", "c1", &ipam))
            .expect("works")
            .expect("a result");
        assert_eq!(
            one["ips"],
            json!([{"address": "10.0.0.9/24", "gateway": "10.0.0.254"},
            {"address": "fd00::2/64", "gateway": "fd00::1"}])
        );
        assert_eq!(
            address(dir.path(), "c2", &ipam).expect("an address"),
            "10.0.1.2/24"
        );
    }

    fn refused(call: &Call) -> String {
        run(call).expect_err("refused").msg
    }

    #[test]
    fn somebody_may_ask_for_an_address() {
        let dir = tempfile::tempdir().expect("a directory");
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]});
        let mut asked = call(dir.path(), "ADD", "c1", &ipam);
        asked.conf["runtimeConfig"] = json!({"ips": ["10.0.0.77/24", "fd00::77"]});
        let result = run(&asked).expect("works").expect("a result");
        assert_eq!(result["ips"][0]["address"], "10.0.0.77/24");
        assert_eq!(result["ips"][1]["address"], "fd00::77/64");
        asked.container_id = "c2".into();
        assert_eq!(
            refused(&asked),
            "failed to allocate for range 0: requested IP address 10.0.0.77 is not available in \
             range set 10.0.0.1-10.0.0.254"
        );
        asked.conf["runtimeConfig"] = json!({});
        asked.args = "IP=10.0.0.1".into();
        assert!(refused(&asked).ends_with("requested ip 10.0.0.1 is subnet's gateway"));
        asked.args = "IP=10.9.9.9".into();
        assert_eq!(
            refused(&asked),
            "failed to allocate all requested IPs: 10.9.9.9"
        );
        asked.args = "IP=nonsense".into();
        assert!(refused(&asked).ends_with("\"nonsense\" is not an address"));
        let leases = |name: &str| dir.path().join("n").join(name).exists();
        assert!(!leases("10.0.0.2") && !leases("fd00::2"), "taken back");
        asked.args.clear();
        asked.conf["args"] = json!({"cni": {"ips": ["10.0.0.80"]}});
        let result = run(&asked).expect("works").expect("a result");
        assert_eq!(result["ips"][0]["address"], "10.0.0.80/24");
    }

    #[test]
    fn the_runtime_may_bring_ranges() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut asked = call(dir.path(), "ADD", "c1", &json!({"type": "host-local"}));
        assert!(refused(&asked).starts_with("field ipam.ranges: no range is given"));
        asked.conf["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.7.0.0/24"}]]});
        let result = run(&asked).expect("works").expect("a result");
        assert_eq!(result["ips"][0]["address"], "10.7.0.2/24");
        for (ranges, problem) in [
            (
                json!([[{"subnet": "10.7.0.9/24"}]]),
                "field runtimeConfig.ipRanges[0][0].subnet: 10.7.0.9/24 has host bits set",
            ),
            (
                json!([[{"subnet": "10.7.0.0/24"}, {"subnet": "10.7.0.0/16"}]]),
                "field runtimeConfig.ipRanges[0][1]: a range of 10.7.0.0/16 overlaps",
            ),
            (
                json!([[{"subnet": "10.7.0.0/24"}, {"subnet": "fd00::/64"}]]),
                "field runtimeConfig.ipRanges[0][1]: is of another family",
            ),
            (
                json!([[{"subnet": "10.7.0.0/24"}], [{"subnet": "10.7.0.0/24"}]]),
                "field runtimeConfig.ipRanges: a range of 10.7.0.0/24 overlaps",
            ),
        ] {
            asked.conf["runtimeConfig"] = json!({"ipRanges": ranges});
            let text = refused(&asked);
            assert!(text.starts_with(problem), "{text}\nwanted {problem}");
        }
    }

    #[test]
    fn leases_of_others_are_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let ipam = json!({"type": "host-local", "subnet": "10.0.0.0/24"});
        address(dir.path(), "c1", &ipam).expect("an address");
        // As the reference plugin writes one, and as an old one did.
        let write = |name: &str, text: &str| {
            // Another tick of the clock that directories' times are taken from.
            std::thread::sleep(std::time::Duration::from_millis(10));
            fs::write(dir.path().join("n").join(name), text).expect("written");
        };
        write("10.0.0.3", "c3\r\neth0");
        write("10.0.0.4", "c4");
        for id in ["c1", "c3", "c4"] {
            let error = address(dir.path(), id, &ipam).expect_err("has one");
            assert!(
                error.msg.ends_with("duplicate allocation is not allowed"),
                "{error}"
            );
        }
        assert_eq!(
            address(dir.path(), "c5", &ipam).expect("one"),
            "10.0.0.5/24"
        );
        for id in ["c1", "c3", "c4", "c5"] {
            run(&call(dir.path(), "DEL", id, &ipam)).expect("released");
        }
        let left = fs::read_dir(dir.path().join("n")).expect("a directory");
        let left = left.filter(|e| {
            e.as_ref()
                .is_ok_and(|e| e.file_name().to_string_lossy().contains("10."))
        });
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn an_address_costs_the_same_with_many_leases() {
        let dir = tempfile::tempdir().expect("a directory");
        let ipam = json!({"type": "host-local", "subnet": "10.0.0.0/16"});
        for i in 0..300 {
            address(dir.path(), &format!("p{i}"), &ipam).expect("an address");
        }
        let before = store::leases_read();
        address(dir.path(), "next", &ipam).expect("an address");
        address(dir.path(), "next", &ipam).expect_err("has one");
        run(&call(dir.path(), "CHECK", "next", &ipam)).expect("leased");
        run(&call(dir.path(), "DEL", "next", &ipam)).expect("released");
        let read = store::leases_read() - before;
        assert!(read < 10, "{read} of 300 leases were read");
    }
}
