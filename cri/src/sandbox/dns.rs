// SPDX-License-Identifier: Apache-2.0
//! The text of a pod's `resolv.conf`, from the pod's DNS configuration.

use crate::fault::{Fault, Result};
use crate::v1;

/// The file's text, or `None` when the pod says nothing and the host's file is to be copied.
///
/// # Errors
/// When a value holds white space or a control character: it could smuggle in another line.
pub(crate) fn resolv_conf(dns: Option<&v1::DnsConfig>) -> Result<Option<String>> {
    let Some(dns) = dns else { return Ok(None) };
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return Ok(None);
    }
    for (field, values) in [
        ("servers", &dns.servers),
        ("searches", &dns.searches),
        ("options", &dns.options),
    ] {
        let bad =
            |v: &&String| v.is_empty() || v.chars().any(|c| c.is_whitespace() || c.is_control());
        if let Some(value) = values.iter().find(bad) {
            return Err(Fault::invalid(format!(
                "dns_config.{field}: {value:?} is not one word"
            )));
        }
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_written_in_the_usual_order() {
        let dns = v1::DnsConfig {
            servers: vec!["10.43.0.10".into()],
            searches: vec![
                "default.svc.cluster.local".into(),
                "svc.cluster.local".into(),
            ],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(Some(&dns)).unwrap().unwrap(),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(None).unwrap(), None);
        assert_eq!(resolv_conf(Some(&v1::DnsConfig::default())).unwrap(), None);
    }

    #[test]
    fn a_value_cannot_add_a_line() {
        let dns = v1::DnsConfig {
            options: vec!["a\nnameserver 1.2.3.4".into()],
            ..Default::default()
        };
        assert!(resolv_conf(Some(&dns)).is_err());
    }
}
