// SPDX-License-Identifier: Apache-2.0
//! `host-local`: addresses out of ranges, with one file per lease.
//!
//! A lease is the file `<dataDir>/<network>/<address>` with the container id and the interface name
//! in it (`id\r\nifname`), the layout of the reference plugin. Leases are handed out in turn, after
//! the one that was handed out last, so that an address rests as long as possible before it is used
//! again. All of it happens under a lock on the file `lock`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use super::{fields, network_name, previous, unknown_verb, valid_attachments, version};
use crate::cidr::{Cidr, from_bits, to_bits};
use crate::exec::Call;
use crate::fields::{FieldError, Fields};
use crate::types::{AddResult, IpConfig, PluginError, Route, code};

/// Others hold the lock for milliseconds.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);

/// The `ipam` object of a plugin's configuration.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conf {
    /// One address is taken from each set; a set is a choice of ranges.
    sets: Vec<Vec<Range>>,
    routes: Vec<Route>,
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq)]
struct Range {
    subnet: Cidr,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

impl Conf {
    pub(super) fn parse(mut ipam: Fields) -> Result<Conf, FieldError> {
        ipam.ignore(&["type"]);
        let mut sets = Vec::new();
        if let Some(range) = Range::parse(&mut ipam, false)? {
            sets.push(vec![range]);
        }
        let path = ipam.path_of("ranges");
        let listed: Vec<Vec<Value>> = ipam.take("ranges")?.unwrap_or_default();
        for (i, set) in listed.into_iter().enumerate() {
            let mut ranges = Vec::new();
            for (j, range) in set.into_iter().enumerate() {
                let mut range = Fields::new(format!("{path}[{i}][{j}]"), range)?;
                ranges.extend(Range::parse(&mut range, true)?);
                range.finish()?;
            }
            if ranges.is_empty() {
                return Err(FieldError::new(
                    format!("{path}[{i}]"),
                    "must have at least one range",
                ));
            }
            sets.push(ranges);
        }
        if sets.is_empty() {
            return Err(FieldError::new(
                path,
                "no range is given, here or as subnet",
            ));
        }
        let conf = Conf {
            sets,
            routes: ipam.take("routes")?.unwrap_or_default(),
            data_dir: ipam.take("dataDir")?,
        };
        ipam.finish()?;
        Ok(conf)
    }

    fn dir(&self, call: &Call) -> Result<PathBuf, PluginError> {
        let data_dir = self.data_dir.as_deref().unwrap_or(&call.lease_dir);
        Ok(data_dir.join(network_name(call)?))
    }
}

impl Range {
    fn parse(from: &mut Fields, required: bool) -> Result<Option<Range>, FieldError> {
        let path = from.path_of("subnet");
        let subnet: Option<Cidr> = if required {
            Some(from.require("subnet")?)
        } else {
            from.take("subnet")?
        };
        let start: Option<IpAddr> = from.take("rangeStart")?;
        let end: Option<IpAddr> = from.take("rangeEnd")?;
        let gateway: Option<IpAddr> = from.take("gateway")?;
        let Some(subnet) = subnet else {
            if start.is_some() || end.is_some() || gateway.is_some() {
                return Err(FieldError::new(path, "is missing"));
            }
            return Ok(None);
        };
        let subnet = subnet.network();
        let width = if subnet.is_ipv4() { 32 } else { 128 };
        if subnet.prefix > width - 2 {
            return Err(FieldError::new(
                path,
                format!("{subnet} is too small to allocate from"),
            ));
        }
        let first = from_bits(to_bits(subnet.addr) + 1, subnet.is_ipv4());
        let last = match subnet.last() {
            IpAddr::V4(broadcast) => from_bits(u128::from(broadcast.to_bits()) - 1, true),
            v6 => v6,
        };
        let range = Range {
            subnet,
            start: start.unwrap_or(first),
            end: end.unwrap_or(last),
            gateway: gateway.unwrap_or(first),
        };
        for (name, addr) in [("rangeStart", range.start), ("rangeEnd", range.end)] {
            if !subnet.contains(addr) {
                return Err(FieldError::new(
                    from.path_of(name),
                    format!("{addr} is not in {subnet}"),
                ));
            }
        }
        if to_bits(range.start) > to_bits(range.end) {
            let text = format!("{} comes after rangeEnd {}", range.start, range.end);
            return Err(FieldError::new(from.path_of("rangeStart"), text));
        }
        Ok(Some(range))
    }

    fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.subnet.is_ipv4()
            && (to_bits(self.start)..=to_bits(self.end)).contains(&to_bits(addr))
    }
}

/// Every address of a set that may be leased, in turn, beginning after `last`. The gateways never.
fn candidates(set: &[Range], last: Option<IpAddr>) -> impl Iterator<Item = &Range> + Clone {
    let begin = last
        .and_then(|last| set.iter().position(|r| r.contains(last)))
        .unwrap_or(0);
    // The range of `last` comes twice: what is after it first, what is before it at the end.
    (0..=set.len()).map(move |i| &set[(begin + i) % set.len()])
}

/// Pick the address after `last` that nobody has.
fn pick(set: &[Range], last: Option<IpAddr>, taken: impl Fn(IpAddr) -> bool) -> Option<IpConfig> {
    let is_gateway = |addr| set.iter().any(|r| r.gateway == addr);
    for (round, range) in candidates(set, last).enumerate() {
        let after = last.filter(|last| round == 0 && range.contains(*last));
        let mut bits = after.map_or(to_bits(range.start), |last| to_bits(last) + 1);
        while bits <= to_bits(range.end) {
            let addr = from_bits(bits, range.subnet.is_ipv4());
            if !is_gateway(addr) && !taken(addr) {
                let address = Cidr::new(addr, range.subnet.prefix).expect("of the same family");
                return Some(IpConfig {
                    address,
                    gateway: Some(range.gateway),
                    interface: None,
                });
            }
            bits += 1;
        }
    }
    None
}

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    let mut outer = fields("", call.conf.clone())?;
    let Some(ipam) = outer.object("ipam")? else {
        return Err(FieldError::new("ipam", "is missing").into());
    };
    let conf = Conf::parse(ipam)?;
    let dir = conf.dir(call)?;
    match call.verb {
        "ADD" => add(&conf, &dir, call).map(|r| Some(r.to_json(version(call)))),
        "DEL" => release(&dir, call).map(|()| None),
        "CHECK" => check(&dir, call).map(|()| None),
        "GC" => {
            let valid = valid_attachments(call)?;
            let stale = |id: &str, ifname: &str| !valid.iter().any(|(i, n)| i == id && n == ifname);
            delete(&dir, stale).map(|()| None)
        }
        "STATUS" => fs::create_dir_all(&dir)
            .map_err(|e| io_error("creating", &dir, &e))
            .map(|()| None),
        _ => Err(unknown_verb(call)),
    }
}

fn io_error(what: &str, path: &Path, error: &io::Error) -> PluginError {
    PluginError::new(code::IO, format!("{what} {}: {error}", path.display()))
}

fn lock(dir: &Path) -> Result<Flock<File>, PluginError> {
    let path = dir.join("lock");
    let failed = |e: io::Error| io_error("locking", &path, &e);
    fs::create_dir_all(dir).map_err(failed)?;
    let deadline = Instant::now() + LOCK_DEADLINE;
    let mut options = OpenOptions::new();
    let mut file = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, nix::Error::EAGAIN)) if Instant::now() < deadline => file = again,
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Lease {
    path: PathBuf,
    id: String,
    ifname: String,
}

impl Lease {
    /// The lease that a file holds; nothing when it was released meanwhile.
    fn read(path: PathBuf) -> Result<Option<Lease>, PluginError> {
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| io_error("reading", &path, &e))?,
        };
        let (id, ifname) = text.trim().split_once("\r\n").unwrap_or((text.trim(), ""));
        Ok(Some(Lease {
            id: id.to_owned(),
            ifname: ifname.to_owned(),
            path,
        }))
    }

    fn is_of(&self, call: &Call) -> bool {
        self.id == call.container_id && self.ifname == call.ifname
    }
}

/// All leases of a network. Other files in the directory are none. Without the lock, what comes and
/// goes meanwhile may be in it or not.
fn leases(dir: &Path) -> Result<Vec<Lease>, PluginError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| io_error("reading", dir, &e))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| io_error("reading", dir, &e))?.path();
        let is_lease = path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.parse::<IpAddr>().is_ok());
        if !is_lease {
            continue;
        }
        found.extend(Lease::read(path)?);
    }
    Ok(found)
}

/// Where the leases of the network are that `call` is for.
fn lease_dir(call: &Call) -> Result<Option<PathBuf>, PluginError> {
    let ipam = fields("", call.conf.clone())?.object("ipam")?;
    ipam.map(|ipam| Conf::parse(ipam)?.dir(call)).transpose()
}

/// Those of `addresses` that nobody but `call`'s attachment has a lease of.
pub(super) fn without_others(
    call: &Call,
    mut addresses: Vec<IpAddr>,
) -> Result<Vec<IpAddr>, PluginError> {
    if let Some(dir) = lease_dir(call)? {
        let mut others = Vec::new();
        for address in &addresses {
            let lease = Lease::read(dir.join(address.to_string()))?;
            others.extend(lease.filter(|l| !l.is_of(call)).map(|_| *address));
        }
        addresses.retain(|address| !others.contains(address));
    }
    Ok(addresses)
}

/// The addresses leased to attachments that `wanted` picks, of the network that `call` is for.
pub(super) fn leased(
    call: &Call,
    wanted: impl Fn(&str, &str) -> bool,
) -> Result<Vec<IpAddr>, PluginError> {
    let Some(dir) = lease_dir(call)? else {
        return Ok(Vec::new());
    };
    let leases = leases(&dir)?
        .into_iter()
        .filter(|l| wanted(&l.id, &l.ifname));
    Ok(leases
        .filter_map(|l| l.path.file_name()?.to_str()?.parse().ok())
        .collect())
}

fn add(conf: &Conf, dir: &Path, call: &Call) -> Result<AddResult, PluginError> {
    let _lock = lock(dir)?;
    if let Some(lease) = leases(dir)?.iter().find(|l| l.is_of(call)) {
        let text = format!(
            "container {} has the lease {} already",
            call.container_id,
            lease.path.display()
        );
        return Err(PluginError::new(code::INVALID_ENVIRONMENT, text));
    }
    let mut result = AddResult {
        routes: conf.routes.clone(),
        ..AddResult::default()
    };
    for (index, set) in conf.sets.iter().enumerate() {
        match lease_one(dir, index, set, call) {
            Ok(ip) => result.ips.push(ip),
            Err(error) => {
                for ip in &result.ips {
                    // The first error counts; a lease that stays is collected by GC.
                    let _ = fs::remove_file(dir.join(ip.address.addr.to_string()));
                }
                return Err(error);
            }
        }
    }
    Ok(result)
}

fn lease_one(
    dir: &Path,
    index: usize,
    set: &[Range],
    call: &Call,
) -> Result<IpConfig, PluginError> {
    let last_path = dir.join(format!("last_reserved_ip.{index}"));
    let last = fs::read_to_string(&last_path)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let taken = |addr: IpAddr| dir.join(addr.to_string()).exists();
    let ip = pick(set, last, taken).ok_or_else(|| {
        let ranges: Vec<_> = set
            .iter()
            .map(|r| format!("{}-{}", r.start, r.end))
            .collect();
        PluginError::new(
            code::INTERNAL,
            format!("no address is left in {}", ranges.join(", ")),
        )
    })?;
    let path = dir.join(ip.address.addr.to_string());
    let failed = |e: io::Error| io_error("writing", &path, &e);
    // Whole or not at all: GC would take a lease that names nobody for one that leaked. The lock
    // keeps the name from being taken meanwhile.
    let unfinished = dir.join("unfinished");
    let text = format!("{}\r\n{}", call.container_id, call.ifname);
    fs::write(&unfinished, text).map_err(failed)?;
    fs::rename(&unfinished, &path).map_err(failed)?;
    // A hint only: when it is lost, the search begins at the start of the range.
    let _ = fs::write(&last_path, ip.address.addr.to_string());
    Ok(ip)
}

/// DEL. The leases that the result of ADD tells need not be searched for.
fn release(dir: &Path, call: &Call) -> Result<(), PluginError> {
    let known = previous(call)?.map(|result| result.ips).unwrap_or_default();
    if !known.is_empty() && dir.exists() {
        let _lock = lock(dir)?;
        for ip in known {
            let lease = Lease::read(dir.join(ip.address.addr.to_string()))?;
            if let Some(lease) = lease.filter(|l| l.is_of(call)) {
                remove(&lease)?;
            }
        }
        return Ok(());
    }
    delete(dir, |id, ifname| {
        id == call.container_id && ifname == call.ifname
    })
}

fn remove(lease: &Lease) -> Result<(), PluginError> {
    fs::remove_file(&lease.path).map_err(|e| io_error("removing", &lease.path, &e))
}

fn delete(dir: &Path, wanted: impl Fn(&str, &str) -> bool) -> Result<(), PluginError> {
    if !dir.exists() {
        return Ok(());
    }
    let _lock = lock(dir)?;
    for lease in leases(dir)?.iter().filter(|l| wanted(&l.id, &l.ifname)) {
        remove(lease)?;
    }
    Ok(())
}

fn check(dir: &Path, call: &Call) -> Result<(), PluginError> {
    if leases(dir)?.iter().any(|l| l.is_of(call)) {
        return Ok(());
    }
    let text = format!(
        "container {} has no lease in {}",
        call.container_id,
        dir.display()
    );
    Err(PluginError::new(code::INTERNAL, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(dir: &Path, verb: &'static str, id: &str, ipam: &Value) -> Call {
        Call {
            verb,
            container_id: id.to_owned(),
            netns: PathBuf::new(),
            ifname: "eth0".into(),
            args: String::new(),
            bin_dir: dir.to_owned(),
            lease_dir: dir.to_owned(),
            drops_netns: false,
            conf: json!({"cniVersion": "1.1.0", "name": "n", "ipam": ipam,
                "cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}),
        }
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
        assert_eq!(error.msg, "no address is left in 10.0.0.1-10.0.0.6");
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
}
