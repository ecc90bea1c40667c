// SPDX-License-Identifier: Apache-2.0
//! The harness itself.

use tests::TestHost;

#[test]
fn hosts_do_not_see_each_others_links() -> anyhow::Result<()> {
    let one = TestHost::new()?;
    let two = TestHost::new()?;
    one.sh("ip link add only-in-one type bridge")?;
    assert!(one.sh("ip -o link")?.contains("only-in-one"));
    assert!(!two.sh("ip -o link")?.contains("only-in-one"));
    Ok(())
}
