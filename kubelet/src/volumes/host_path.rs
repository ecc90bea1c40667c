// SPDX-License-Identifier: Apache-2.0
//! hostPath: a path of the node, checked for the type that the manifest names.

use std::fs::{self, FileType, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::{SetUpError, at};

/// Checks, or makes, the path. Nothing is ever removed again.
pub(super) fn set_up(source: &HostPathVolumeSource) -> Result<PathBuf, SetUpError> {
    let path = PathBuf::from(&source.path);
    if source.path.split('/').any(|part| part == "..") {
        return Err(SetUpError::Refused(format!(
            "invalid HostPath `{}`: must not contain '..'",
            source.path
        )));
    }
    if !path.is_absolute() {
        return Err(SetUpError::Refused(format!(
            "invalid HostPath `{}`: must be an absolute path",
            source.path
        )));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    let found = fs::metadata(&path).ok().map(|meta| meta.file_type());
    match (kind, found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", None) => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&path)
            .map_err(at("creating", &path)),
        ("FileOrCreate", None) => OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .map(drop)
            .map_err(at("creating", &path)),
        ("DirectoryOrCreate" | "Directory", found) => {
            expect(&path, found, "a directory", FileType::is_dir)
        }
        ("FileOrCreate" | "File", found) => expect(&path, found, "a file", FileType::is_file),
        ("Socket", found) => expect(&path, found, "a socket file", FileType::is_socket),
        ("CharDevice", found) => {
            expect(&path, found, "a character device", FileType::is_char_device)
        }
        ("BlockDevice", found) => expect(&path, found, "a block device", FileType::is_block_device),
        (other, _) => Err(SetUpError::Refused(format!(
            "{other} is an invalid volume type"
        ))),
    }?;
    Ok(path)
}

fn expect(
    path: &Path,
    found: Option<FileType>,
    what: &str,
    is: impl Fn(&FileType) -> bool,
) -> Result<(), SetUpError> {
    if found.as_ref().is_some_and(is) {
        return Ok(());
    }
    Err(SetUpError::Refused(format!(
        "hostPath type check failed: {} is not {what}",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &Path, kind: &str) -> Result<(), String> {
        let source = HostPathVolumeSource {
            path: path.to_string_lossy().into_owned(),
            type_: Some(kind.to_owned()),
        };
        set_up(&source).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn every_type_is_checked_with_the_text_of_upstream() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("writes");
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("binds");
        let gone = dir.path().join("gone");
        let null = Path::new("/dev/null");
        let not = |path: &Path, what: &str| {
            Err(format!(
                "hostPath type check failed: {} is not {what}",
                path.display()
            ))
        };
        for (path, kind, want) in [
            (gone.as_path(), "", Ok(())),
            (dir.path(), "Directory", Ok(())),
            (&file, "Directory", not(&file, "a directory")),
            (&gone, "Directory", not(&gone, "a directory")),
            (&file, "File", Ok(())),
            (dir.path(), "File", not(dir.path(), "a file")),
            (&socket, "Socket", Ok(())),
            (&file, "Socket", not(&file, "a socket file")),
            (null, "CharDevice", Ok(())),
            (&file, "CharDevice", not(&file, "a character device")),
            (null, "BlockDevice", not(null, "a block device")),
            (&file, "DirectoryOrCreate", not(&file, "a directory")),
            (dir.path(), "FileOrCreate", not(dir.path(), "a file")),
            (
                &file,
                "Pipe",
                Err("Pipe is an invalid volume type".to_owned()),
            ),
        ] {
            assert_eq!(check(path, kind), want, "{} as {kind}", path.display());
        }
    }

    #[test]
    fn or_create_makes_what_is_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = dir.path().join("a/b");
        assert_eq!(check(&made, "DirectoryOrCreate"), Ok(()));
        assert!(made.is_dir());
        let file = made.join("f");
        assert_eq!(check(&file, "FileOrCreate"), Ok(()));
        assert!(file.is_file());
    }

    #[test]
    fn paths_with_backsteps_or_without_a_root_are_refused() {
        assert!(check(Path::new("/a/../b"), "").is_err());
        assert!(check(Path::new("a/b"), "").is_err());
        assert_eq!(check(Path::new("/a/..b"), ""), Ok(()));
    }
}
