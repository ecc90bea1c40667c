// SPDX-License-Identifier: Apache-2.0
//! Which pods are attached with which addresses, as it happens: for who must know a pod's address
//! before its first packet.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::network::Error;
use crate::record::{self, RESULTS, Record, Records};

/// A pod's connection to the network, as far as it has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Its name.
    pub pod_name: String,
    /// Its uid.
    pub pod_uid: String,
    /// Its addresses; none before a plugin has given it one.
    pub ips: Vec<IpAddr>,
}

impl Attached {
    fn of(record: Record) -> Attached {
        let ips = record.result.into_iter().flat_map(|result| result.ips);
        Attached {
            ips: ips.map(|ip| ip.address.addr).collect(),
            pod_namespace: record.attachment.pod_namespace,
            pod_name: record.attachment.pod_name,
            pod_uid: record.attachment.pod_uid,
        }
    }
}

/// What has changed.
#[derive(Debug)]
pub enum Changes {
    /// These attachments, by a name of their own; `None`: detached.
    Some(Vec<(String, Option<Attached>)>),
    /// Nobody knows what: look at all ([`Watch::all`]).
    Lost,
}

/// Tells of pods that are attached and detached. It never blocks on anything but the disk; wait
/// until its descriptor is readable, then ask [`Watch::changes`].
#[derive(Debug)]
pub struct Watch {
    dir: PathBuf,
    inotify: Inotify,
}

impl Watch {
    /// Begin to listen. `state_dir` is that of [`crate::Network::load`]; it is made if need be.
    pub fn open(state_dir: &Path) -> io::Result<Watch> {
        let dir = state_dir.join(RESULTS);
        std::fs::create_dir_all(&dir)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let which = AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&dir, which)?;
        Ok(Watch { dir, inotify })
    }

    /// Every attachment there is, by name.
    pub fn all(&self) -> Result<HashMap<String, Attached>, Error> {
        let named = Records::new(&self.dir).named()?;
        let attached = named.into_iter().map(|(name, r)| (name, Attached::of(r)));
        Ok(attached.collect())
    }

    /// What has changed since the last call. A record that cannot be read is an attachment that is
    /// not there.
    pub fn changes(&self) -> io::Result<Changes> {
        let mut found = Vec::new();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for event in events {
                let gone = AddWatchFlags::IN_Q_OVERFLOW | AddWatchFlags::IN_IGNORED;
                if event.mask.intersects(gone) {
                    return Ok(Changes::Lost);
                }
                let name = event.name.as_deref().and_then(OsStr::to_str);
                if let Some(name) = name.and_then(record::name) {
                    found.push((name.to_owned(), self.one(name)));
                }
            }
        }
        Ok(Changes::Some(found))
    }

    fn one(&self, name: &str) -> Option<Attached> {
        match Records::new(&self.dir).by_name(name) {
            Ok(record) => record.map(Attached::of),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an attachment");
                None
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "loopback"}]}"#;

    fn written(dir: &Path, ips: Option<&str>) {
        let attachment = crate::Attachment {
            container_id: "c".into(),
            netns: "/n".into(),
            ifname: "eth0".into(),
            pod_name: "p".into(),
            pod_namespace: "ns".into(),
            pod_uid: "u".into(),
            capabilities: crate::Capabilities::default(),
        };
        let list = crate::conf::parse(serde_json::from_str(LIST).expect("JSON")).expect("a list");
        let mut record = Record::new(&attachment, &list);
        let records = Records::new(dir);
        let Some(ip) = ips else {
            return records.begin(&record).expect("written");
        };
        let result = serde_json::json!({"ips": [{"address": ip}]});
        record.result = Some(serde_json::from_value(result).expect("a result"));
        records.add_result(&record).expect("written");
    }

    fn changes(watch: &Watch) -> Vec<(String, Option<Vec<IpAddr>>)> {
        let Changes::Some(found) = watch.changes().expect("events") else {
            panic!("lost");
        };
        let ips = |attached: Attached| attached.ips;
        found.into_iter().map(|(n, a)| (n, a.map(ips))).collect()
    }

    #[test]
    fn an_attachment_is_told_of_from_its_first_address_to_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let watch = Watch::open(dir.path()).expect("a watch");
        let results = dir.path().join(RESULTS);
        written(&results, None);
        let ip: IpAddr = "10.0.0.2".parse().expect("an address");
        assert_eq!(changes(&watch), [("c-eth0".to_owned(), Some(vec![]))]);
        written(&results, Some("10.0.0.2/24"));
        assert_eq!(changes(&watch), [("c-eth0".to_owned(), Some(vec![ip]))]);
        assert_eq!(watch.all().expect("records")["c-eth0"].pod_name, "p");
        std::fs::write(results.join("c-eth0.json"), "{").expect("written in place");
        assert_eq!(changes(&watch), [("c-eth0".to_owned(), None)], "unreadable");
        std::fs::remove_file(results.join("c-eth0.json")).expect("removed");
        assert_eq!(changes(&watch), [("c-eth0".to_owned(), None)]);
        assert!(changes(&watch).is_empty());
        assert!(watch.all().expect("records").is_empty());
    }
}
