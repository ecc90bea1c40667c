// SPDX-License-Identifier: Apache-2.0
//! Who a container runs as, looked up in the image's `/etc/passwd` and `/etc/group`.
//!
//! The layers are searched as overlay would merge them, without mounting. Files are read with a bound.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::merged::{self, Found};

/// Bound on a passwd or group file; runc has 2 MiB or so through its line scanner, glibc none.
const MAX_FILE: u64 = 4 << 20;

/// The answer of [`resolve`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// Groups that list the user as a member in `/etc/group`, sorted, without `gid`.
    pub additional_gids: Vec<u32>,
    /// The user's name, when it is known.
    pub name: Option<String>,
    /// The user's home directory, when it is known.
    pub home: Option<String>,
    /// Whether the user was given as a number. With `runAsNonRoot`, a name is not proof enough.
    pub numeric: bool,
}

/// Why a user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("{0:?} is not of the form user[:group]")]
    Form(String),
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("reading {path} of the image")]
    Read {
        path: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid`… or nothing (root) against the image's layers,
/// top first. A number need not be in the files; its group is then 0, as in runc and containerd.
/// Reads files: call it on the blocking pool.
pub fn resolve(lowers: &[PathBuf], spec: &str) -> Result<ResolvedUser, UserError> {
    let read = |path: &'static str| {
        merged_file(lowers, Path::new(path)).map_err(|source| UserError::Read { path, source })
    };
    decide(spec, &read("/etc/passwd")?, &read("/etc/group")?)
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn decide(spec: &str, passwd: &str, group: &str) -> Result<ResolvedUser, UserError> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let well_formed = wanted_group.is_none_or(|group| !group.is_empty() && !group.contains(':'));
    if !well_formed || (user.is_empty() && wanted_group.is_some()) {
        return Err(UserError::Form(spec.to_owned()));
    }
    let user = if user.is_empty() { "0" } else { user };
    // A name wins over a number that looks like it, as in runc.
    let entry = passwd
        .lines()
        .filter_map(passwd_line)
        .find(|entry| entry.name == user || user.parse() == Ok(entry.uid));
    let numeric = user.parse::<u32>().is_ok();
    let (uid, primary) = match (&entry, user.parse::<u32>()) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Ok(uid)) => (uid, 0),
        (None, Err(_)) => return Err(UserError::NoUser(user.to_owned())),
    };
    let gid = match wanted_group {
        Some(name) => find_group(group, name)?,
        None => primary,
    };
    let mut additional: BTreeSet<u32> = match (&entry, wanted_group) {
        // With a group given, memberships don't count (runc's GetExecUser).
        (Some(entry), None) => memberships(group, entry.name).collect(),
        _ => BTreeSet::new(),
    };
    additional.remove(&gid);
    Ok(ResolvedUser {
        uid,
        gid,
        additional_gids: additional.into_iter().collect(),
        name: entry.as_ref().map(|entry| entry.name.to_owned()),
        home: entry
            .as_ref()
            .filter(|entry| !entry.home.is_empty())
            .map(|entry| entry.home.to_owned()),
        numeric,
    })
}

fn passwd_line(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let (_, uid, gid) = (fields.next()?, fields.next()?, fields.next()?);
    let (_, home) = (fields.next(), fields.next());
    Some(Passwd {
        name,
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: home.unwrap_or_default(),
    })
}

/// Name, gid and members of the lines of a group file.
fn groups(file: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.parse().ok()?, fields.next().unwrap_or_default()))
    })
}

fn find_group(file: &str, wanted: &str) -> Result<u32, UserError> {
    groups(file)
        .find(|(name, gid, _)| *name == wanted || wanted.parse() == Ok(*gid))
        .map(|(_, gid, _)| gid)
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

fn memberships<'a>(file: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    groups(file)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
}

/// Content of a file of the merged tree; empty when there is none.
fn merged_file(lowers: &[PathBuf], path: &Path) -> io::Result<String> {
    let path = match merged::find(lowers, path)? {
        None => return Ok(String::new()),
        Some(Found::Directory(_)) => PathBuf::new(),
        Some(Found::Other(path)) => path,
    };
    // `find` checked each component with lstat, and layers don't change once unpacked.
    if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let data = super::rooted::read_bounded(fs::File::open(&path)?, MAX_FILE)?;
    Ok(String::from_utf8_lossy(&data).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33:w:/var/www:/bin/false\n1000:x:5:6::/five:\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:web\nlog:x:4:web,root\nssl:x:9:web\n";

    #[track_caller]
    fn check(spec: &str, uid: u32, gid: u32, additional: &[u32]) {
        let user = decide(spec, PASSWD, GROUP).unwrap();
        assert_eq!(
            (user.uid, user.gid, user.additional_gids.as_slice()),
            (uid, gid, additional),
            "{spec}"
        );
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        check("", 0, 0, &[4]);
        check("root", 0, 0, &[4]);
        check("web", 33, 33, &[4, 9]);
        check("33", 33, 33, &[4, 9]);
        check("web:log", 33, 4, &[]);
        check("web:77", 33, 77, &[]);
        check("4711", 4711, 0, &[]);
        check("4711:log", 4711, 4, &[]);
        check("1000", 5, 6, &[]);
        assert!(!decide("web", PASSWD, GROUP).unwrap().numeric);
        assert!(decide("33", PASSWD, GROUP).unwrap().numeric);
        assert_eq!(
            decide("web", PASSWD, GROUP).unwrap().home.as_deref(),
            Some("/var/www")
        );
    }

    #[test]
    fn unknown_and_malformed_users_are_named() {
        let error = |spec| decide(spec, PASSWD, GROUP).unwrap_err().to_string();
        assert!(error("nobody").contains("unable to find user nobody"));
        assert!(error("web:none").contains("unable to find group none"));
        for spec in ["web:", ":33", ":", "a:b:c", "-1", "4294967296"] {
            assert!(decide(spec, PASSWD, GROUP).is_err(), "{spec}");
        }
    }

    #[test]
    fn files_are_found_as_overlay_would_show_them() {
        let dir = tempfile::tempdir().unwrap();
        let lower = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.join("etc")).unwrap();
            path
        };
        let (top, middle, base) = (lower("2"), lower("1"), lower("0"));
        let lowers = [top.clone(), middle.clone(), base.clone()];
        fs::write(base.join("etc/passwd"), "base:x:1:1::/:").unwrap();
        assert_eq!(resolve(&lowers, "base").unwrap().uid, 1);
        fs::write(middle.join("etc/passwd"), "mid:x:2:2::/:").unwrap();
        assert!(resolve(&lowers, "base").is_err());
        assert_eq!(resolve(&lowers, "mid").unwrap().uid, 2);
        // A link of the top layer into a lower one, absolute.
        fs::create_dir(base.join("real")).unwrap();
        fs::write(base.join("real/users"), "linked:x:3:3::/:").unwrap();
        std::os::unix::fs::symlink("/real/users", top.join("etc/passwd")).unwrap();
        assert_eq!(resolve(&lowers, "linked").unwrap().uid, 3);
        // A link that never ends, and one that tries to leave.
        fs::remove_file(top.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("passwd", top.join("etc/passwd")).unwrap();
        assert!(resolve(&lowers, "0").is_err());
        fs::remove_file(top.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd2", top.join("etc/passwd")).unwrap();
        assert_eq!(resolve(&lowers, "0").unwrap().name, None);
    }
}
