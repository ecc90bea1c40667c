// SPDX-License-Identifier: Apache-2.0
//! The configuration of `tuning`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::super::input::{argument, fields, mac};
use super::sysctls;
use crate::exec::Call;
use crate::fields::FieldError;
use crate::link::{Change, parse_mac};
use crate::types::PluginError;

/// What the plugin's configuration says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::builtin) struct Conf {
    /// Names as they are written, with values.
    pub(super) sysctls: BTreeMap<String, String>,
    pub(super) change: Change,
    pub(super) data_dir: Option<PathBuf>,
}

impl Conf {
    pub(in crate::builtin) fn parse(path: &str, conf: Value) -> Result<Conf, FieldError> {
        let mut f = fields(path, conf)?;
        let mac: Option<String> = f.take("mac")?.filter(|mac: &String| !mac.is_empty());
        let mac = mac
            .map(|text| {
                let wrong = || {
                    let text = format!("{text:?} is not a hardware address");
                    FieldError::new(f.path_of("mac"), text)
                };
                parse_mac(&text).ok_or_else(wrong)
            })
            .transpose()?;
        let sysctls: BTreeMap<String, String> = f.take("sysctl")?.unwrap_or_default();
        for key in sysctls.keys() {
            sysctls::path(key, "IFNAME").map_err(|e| FieldError::new(f.path_of("sysctl"), e))?;
        }
        let conf = Conf {
            sysctls,
            change: Change {
                mac,
                mtu: f.take("mtu")?.filter(|mtu| *mtu != 0),
                promisc: f.take("promisc")?.filter(|on| *on),
                allmulti: f.take("allmulti")?,
                queue: f.take("txQLen")?,
            },
            data_dir: f
                .take("dataDir")?
                .filter(|d: &PathBuf| !d.as_os_str().is_empty()),
        };
        f.finish()?;
        Ok(conf)
    }

    /// With what the user (`args`) and the runtime ask for.
    pub(super) fn of(call: &Call) -> Result<Conf, PluginError> {
        let mut conf = Conf::parse("", call.conf.clone())?;
        let more: Option<BTreeMap<String, String>> = argument(call, "sysctl")?;
        for (key, value) in more.into_iter().flatten() {
            sysctls::path(&key, "IFNAME").map_err(|e| FieldError::new("args.cni.sysctl", e))?;
            conf.sysctls.insert(key, value);
        }
        let change = &mut conf.change;
        change.mac = mac(call)?.or(change.mac);
        change.mtu = argument(call, "mtu")?
            .filter(|mtu| *mtu != 0)
            .or(change.mtu);
        change.promisc =
            argument(call, "promisc")?.map_or(change.promisc, |on: bool| on.then_some(true));
        change.allmulti = argument(call, "allmulti")?.or(change.allmulti);
        change.queue = argument(call, "txQLen")?.or(change.queue);
        Ok(conf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn users_and_runtimes_may_change_what_is_configured() {
        let mut call = Call::of_test(
            Path::new("/"),
            "ADD",
            json!({"name": "n", "mac": "02:00:00:00:00:01", "mtu": 1400, "promisc": true,
                "sysctl": {"net.core.somaxconn": "500"}}),
        );
        let conf = Conf::of(&call).expect("valid");
        assert_eq!(conf.change.mac, Some([2, 0, 0, 0, 0, 1]));
        call.conf["args"] = json!({"cni": {"mtu": 1300, "promisc": false, "txQLen": 7,
            "sysctl": {"net/ipv4/conf/IFNAME/proxy_arp": "1"}}});
        call.conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:02"});
        let conf = Conf::of(&call).expect("valid");
        assert_eq!(
            conf.change,
            Change {
                mac: Some([2, 0, 0, 0, 0, 2]),
                mtu: Some(1300),
                promisc: None,
                allmulti: None,
                queue: Some(7),
            }
        );
        assert_eq!(conf.sysctls.len(), 2);
        for (conf, problem) in [
            (
                json!({"mac": "x"}),
                "field mac: \"x\" is not a hardware address",
            ),
            (
                json!({"sysctl": {"kernel.domainname": "x"}}),
                "field sysctl: invalid net sysctl key: \"kernel.domainname\"",
            ),
            (json!({"mtu": "big"}), "field mtu: invalid type"),
        ] {
            let text = Conf::parse("", conf).expect_err("wrong").to_string();
            assert!(text.starts_with(problem), "{text}");
        }
    }
}
