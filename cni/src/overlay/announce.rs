// SPDX-License-Identifier: Apache-2.0
//! What a node tells the others about itself, as text that any store can carry.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::model::{Backend, Mac, Own, Settings};

/// Longest text that is read: other nodes write it.
const LONGEST: usize = 4096;
/// Most addresses of one node that are looked at.
const ADDRESSES: usize = 8;

/// A node's part of the overlay. Unknown fields are passed over, so that newer nodes can say more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// Name of its back end.
    pub backend: String,
    /// Its addresses, in its order.
    pub addresses: Vec<IpAddr>,
    /// VXLAN: hardware address of its link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// VXLAN: network identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// VXLAN and WireGuard: UDP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// WireGuard: its key, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// WireGuard: the key that it will use soon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_public_key: Option<String>,
}

impl Announcement {
    /// What this node has to say. `None` when it takes no part, or has no key for it yet.
    pub fn of(settings: &Settings, own: &Own) -> Option<Announcement> {
        let plain = Announcement {
            backend: settings.backend.name().to_owned(),
            addresses: own.addresses.clone(),
            mac: None,
            vni: None,
            port: None,
            public_key: None,
            next_public_key: None,
        };
        match settings.backend {
            Backend::None => None,
            Backend::HostGw => Some(plain),
            Backend::Vxlan => Some(Announcement {
                mac: Some(mac_of(&own.name).to_string()),
                vni: Some(settings.vni),
                port: Some(settings.port),
                ..plain
            }),
            Backend::WireGuard => own.keys.map(|keys| Announcement {
                port: Some(settings.wireguard.port),
                public_key: Some(keys.current.to_string()),
                next_public_key: keys.next.map(|key| key.to_string()),
                ..plain
            }),
        }
    }

    /// Read what another node said.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Announcement, String> {
        if text.len() > LONGEST {
            return Err(format!("is longer than {LONGEST} bytes"));
        }
        let read: Announcement = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if read.addresses.len() > ADDRESSES {
            return Err(format!("names more than {ADDRESSES} addresses"));
        }
        Ok(read)
    }

    /// As one line of JSON.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and addresses are JSON")
    }

    /// The first address of a family.
    pub fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv4() == ipv4)
    }
}

/// The hardware address of a node's link. It follows from the node's name, so a link that is made
/// anew has the one that the other nodes know. Locally administered, and of one station.
pub fn mac_of(name: &str) -> Mac {
    let [_, _, a, b, c, d, e, f] = crate::hash::fnv64(name.as_bytes()).to_be_bytes();
    Mac([(a & 0xfc) | 2, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::super::wireguard::{PublicKey, PublicKeys, WireGuard};
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let settings = Settings {
            backend: Backend::Vxlan,
            link: Settings::LINK.into(),
            vni: 1,
            port: 8472,
            wireguard: WireGuard::usual("/nonexistent"),
            cluster: Vec::new(),
            bridge: "pw0".into(),
            nft_table: "podwright".into(),
        };
        let own = Own {
            name: "a".into(),
            addresses: vec!["192.0.2.1".parse().expect("an address")],
            pod_cidrs: Vec::new(),
            keys: None,
        };
        let said = Announcement::of(&settings, &own).expect("a part");
        assert_eq!(Announcement::parse(&said.text()), Ok(said.clone()));
        assert_eq!(said.mac.as_deref().map(str::parse), Some(Ok(mac_of("a"))));
        let newer = said.text().replace("\"vni\"", "\"new\":[1],\"vni\"");
        assert_eq!(Announcement::parse(&newer), Ok(said));
        let encrypted = Settings {
            backend: Backend::WireGuard,
            ..settings
        };
        assert_eq!(Announcement::of(&encrypted, &own), None, "no key yet");
        let key = PublicKey([7; 32]);
        let keys = |next| Own {
            keys: Some(PublicKeys { current: key, next }),
            ..own.clone()
        };
        let said = Announcement::of(&encrypted, &keys(None)).expect("a part");
        assert_eq!(Announcement::parse(&said.text()), Ok(said.clone()));
        assert!(!said.text().contains("next"), "{}", said.text());
        assert_eq!(
            (said.public_key, said.port),
            (Some(key.to_string()), Some(51820))
        );
        let said = Announcement::of(&encrypted, &keys(Some(PublicKey([8; 32])))).expect("a part");
        assert!(said.text().contains(&PublicKey([8; 32]).to_string()));
    }

    #[test]
    fn rubbish_is_refused() {
        let many = format!(
            r#"{{"backend":"vxlan","addresses":[{}]}}"#,
            ["\"10.0.0.1\""; 9].join(",")
        );
        for text in [
            "",
            "{}",
            "[]",
            r#"{"backend":"vxlan","addresses":["x"]}"#,
            &"x".repeat(5000),
            &many,
        ] {
            assert!(Announcement::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hardware_addresses_are_local_and_differ() {
        let (a, b) = (mac_of("node-a"), mac_of("node-b"));
        assert_ne!(a, b);
        assert_eq!((a.0[0] & 3, b.0[0] & 3), (2, 2));
        for wrong in [
            "",
            "02:00",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "02:00:00:00:00:1g",
            "2:0:0:0:0:1",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
