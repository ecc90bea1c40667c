// SPDX-License-Identifier: Apache-2.0
//! Keys on disk, with a stand-in for the kernel's arithmetic.

use super::*;

/// Not the kernel's answer, but a different one for each key.
fn derive(key: &PrivateKey) -> Result<PublicKey, OverlayError> {
    let mut public = *key.bytes();
    public.reverse();
    Ok(PublicKey(public))
}

fn settings(dir: &Path, rotation: Option<Duration>) -> WireGuard {
    WireGuard {
        rotation,
        ..WireGuard::usual(dir.join("keys"))
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_key_outlives_a_restart_and_nobody_else_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), None);
    let first = Keys::open(&settings, derive).unwrap().public();
    let path = settings.key_dir.join(CURRENT);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&settings.key_dir)), (0o600, 0o700));
    assert_eq!(Keys::open(&settings, derive).unwrap().public(), first);

    // One that others may have read, and one that is none, are replaced.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let second = Keys::open(&settings, derive).unwrap().public();
    assert_ne!(second, first);
    for rubbish in [&b""[..], b"rubbish", &[0xff; 50], &[b'A'; 500]] {
        fs::write(&path, rubbish).unwrap();
        assert_ne!(Keys::open(&settings, derive).unwrap().public(), second);
    }
    assert_eq!(mode(&path), 0o600);
    remove(&settings.key_dir).unwrap();
    remove(&settings.key_dir).unwrap();
    assert!(!settings.key_dir.exists());
}

#[test]
fn a_new_key_is_announced_before_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), Some(Duration::from_millis(20)));
    let mut keys = Keys::open(&settings, derive).unwrap();
    let first = keys.public();
    let until = |keys: &mut Keys, announced: bool| {
        let begun = Instant::now();
        loop {
            if let Some(done) = keys.rotate(announced).unwrap() {
                return done;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing happens");
        }
    };
    let said = until(&mut keys, true);
    let next = keys.public().next.expect("a next key");
    assert_eq!(keys.public().current, first.current);
    assert!(said.contains(&next.to_string()), "{said}");
    assert_eq!(names(&settings.key_dir), [CURRENT, NEXT]);

    // Nobody knows it, and a restart does not change that.
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(keys.rotate(false).unwrap(), None);
    let mut keys = Keys::open(&settings, derive).unwrap();
    assert_eq!(keys.public().next, Some(next));
    assert_eq!(keys.rotate(true).unwrap(), None, "not at once");
    until(&mut keys, true);
    assert_eq!(
        keys.public(),
        PublicKeys {
            current: next,
            next: None
        }
    );
    assert!(keys.private(next).is_some() && keys.private(first.current).is_none());
    assert_eq!(names(&settings.key_dir), [CURRENT]);
    let again = Keys::open(&settings, derive).unwrap().public();
    assert_eq!(again.current, next);
}

#[test]
fn a_key_is_replaced_when_it_is_old_and_never_without_a_period() {
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    for (rotation, age, next, announced, expected) in [
        (None, Some(hour), false, Some(hour), Turn::Nothing),
        (Some(hour), Some(minute), false, None, Turn::Nothing),
        (Some(hour), Some(hour), false, None, Turn::MakeNext),
        // From the future: the clock was wrong, then or now.
        (Some(hour), None, false, None, Turn::MakeNext),
        (Some(hour), Some(hour), true, None, Turn::Nothing),
        (
            Some(hour),
            Some(hour),
            true,
            Some(Duration::ZERO),
            Turn::Nothing,
        ),
        (Some(hour), Some(minute), true, Some(NOTICE), Turn::Switch),
        // What was announced is used.
        (None, Some(minute), true, Some(NOTICE), Turn::Switch),
    ] {
        assert_eq!(turn(rotation, age, next, announced), expected, "{age:?}");
    }
}
