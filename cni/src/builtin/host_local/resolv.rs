// SPDX-License-Identifier: Apache-2.0
//! Name resolution out of a file in the form of resolv.conf(5).

use std::path::Path;

use super::store::io_error;
use crate::types::{Dns, PluginError};

/// A real one has a few lines.
const LONGEST_BYTES: u64 = 64 << 10;

pub(super) fn read(path: &Path) -> Result<Dns, PluginError> {
    use std::io::Read;
    let failed = |e: std::io::Error| io_error("reading", path, &e);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(LONGEST_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_resolver_file_says() {
        let text = "# comment\n; another\nnameserver 10.0.0.1 \nnameserver fd00::1\n\
            domain example.test\nsearch a.test b.test\noptions ndots:5 edns0\nrubbish\nnameserver";
        let dns = parse(text);
        assert_eq!(dns.nameservers, ["10.0.0.1", "fd00::1"]);
        assert_eq!(dns.domain, "example.test");
        assert_eq!(dns.search, ["a.test", "b.test"]);
        assert_eq!(dns.options, ["ndots:5", "edns0"]);
    }
}
