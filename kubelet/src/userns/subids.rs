// SPDX-License-Identifier: Apache-2.0
//! The node's configuration of subordinate ids, subuid(5) and subgid(5), as getsubids(1) reads it. Pure.

use super::pool::Range;

/// Whose ids pods get.
pub(super) const USER: &str = "kubelet";

/// The numeric id of the user, out of the text of passwd(5).
pub(super) fn uid_of_user(passwd: &str) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(USER)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The one range that both files give to the user; none when neither names it.
///
/// # Errors
/// In upstream's words, when there are several ranges, or the files differ.
pub(super) fn range(subuid: &str, subgid: &str, uid: Option<u32>) -> Result<Option<Range>, String> {
    let (uids, gids) = (owned(subuid, uid)?, owned(subgid, uid)?);
    if uids != gids {
        return Err(format!(
            "mismatched subuids and subgids for user \"{USER}\""
        ));
    }
    match uids.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => Err(format!(
            "subordinate ids of user \"{USER}\": {} ranges are given, it must contain only one line",
            several.len()
        )),
    }
}

/// `owner:first:count`, where the owner is a name or a number. Lines of others are not looked at.
fn owned(text: &str, uid: Option<u32>) -> Result<Vec<Range>, String> {
    let uid = uid.map(|uid| uid.to_string());
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.trim().split(':');
        let owner = fields.next();
        if owner != Some(USER) && (uid.is_none() || owner != uid.as_deref()) {
            continue;
        }
        let mut number = || fields.next()?.trim().parse().ok();
        match (number(), number()) {
            (Some(first), Some(length)) => found.push(Range { first, length }),
            _ => return Err(format!("invalid line {line:?}")),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "root:1:2\nkubelet:65536:7208960\n# nothing\n";

    #[test]
    fn the_users_line_is_found_by_name_and_by_number() {
        let expected = Some(Range {
            first: 65536,
            length: 7_208_960,
        });
        assert_eq!(range(LINE, LINE, None), Ok(expected));
        let passwd = "root:x:0:0::/:/bin/sh\nkubelet:x:998:998::/:/bin/false\n";
        let uid = uid_of_user(passwd);
        assert_eq!(uid, Some(998));
        let numbered = "998:65536:7208960\n";
        assert_eq!(range(numbered, LINE, uid), Ok(expected));
        assert_eq!(range("", "", uid), Ok(None));
        assert_eq!(range("other:1:1", "", None), Ok(None));
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let twice = format!("{LINE}kubelet:1:1\n");
        assert!(range(&twice, &twice, None).is_err_and(|why| why.contains("only one line")));
        assert!(range(LINE, "", None).is_err_and(|why| why.contains("mismatched")));
        let bad = "kubelet:many:1";
        assert_eq!(
            range(bad, bad, None),
            Err("invalid line \"kubelet:many:1\"".to_owned())
        );
    }
}
