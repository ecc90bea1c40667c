// SPDX-License-Identifier: Apache-2.0
//! Layers of every kind, honest and hostile, unpacked into a directory. Needs root: device nodes,
//! owners and `trusted.*` attributes are what it is about.

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use super::*;

/// Entry type, name, link target, content.
type Line<'a> = (u8, &'a str, &'a str, &'a str);

/// A header with any name at all; the tar crate's own builder refuses the interesting ones.
fn header(kind: u8, name: &str, link: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(kind));
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_size(size);
    header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000);
    header.set_cksum();
    header
}

fn body(tar: &mut Vec<u8>, content: &[u8]) {
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn archive(lines: &[Line<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (kind, name, link, content) in lines {
        tar.extend_from_slice(header(*kind, name, link, content.len() as u64).as_bytes());
        body(&mut tar, content.as_bytes());
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn pax(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in pairs {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    data
}

fn with_pax(pairs: &[(&str, &[u8])], line: Line<'_>) -> Vec<u8> {
    let data = pax(pairs);
    let mut tar = header(b'x', "pax", "", data.len() as u64)
        .as_bytes()
        .to_vec();
    body(&mut tar, &data);
    tar.extend(archive(&[line]));
    tar
}

fn try_unpack_with(tar: &[u8], dest: &Path, limits: Limits) -> Result<Unpacked, ContentError> {
    let mut blob = tempfile::tempfile().unwrap();
    blob.write_all(tar).unwrap();
    blob.rewind().unwrap();
    unpack(io::BufReader::new(blob), dest, limits, Algorithm::Sha256)
}

fn unpack_ok(tar: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let unpacked = try_unpack_with(tar, dir.path(), Limits::default()).unwrap();
    assert_eq!(unpacked.diff_id, Digest::of(tar));
    dir
}

/// The error, and the proof that nothing appeared beside the layer.
#[track_caller]
fn refused_with(tar: &[u8], limits: Limits) -> String {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("victim"), "untouched").unwrap();
    let dest = outer.path().join("layer");
    std::fs::create_dir(&dest).unwrap();
    let error = try_unpack_with(tar, &dest, limits).expect_err("must be refused");
    let names: Vec<_> = std::fs::read_dir(outer.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let victim = std::fs::read_to_string(outer.path().join("victim")).unwrap();
    assert_eq!(victim, "untouched");
    super::super::error::chain(&error)
}

#[track_caller]
fn refused(lines: &[Line<'_>], reason: &str) {
    let text = refused_with(&archive(lines), Limits::default());
    assert!(text.contains(reason), "{text}");
}

#[test]
fn files_directories_and_links_arrive_with_mode_owner_and_time() {
    let mut tar = Vec::new();
    let mut set_id = header(b'0', "bin/su", "", 2);
    set_id.set_mode(0o4755);
    set_id.set_uid(12);
    set_id.set_gid(34);
    set_id.set_cksum();
    tar.extend_from_slice(set_id.as_bytes());
    body(&mut tar, b"su");
    tar.extend(archive(&[
        (b'5', "./", "", ""),
        (b'5', "empty/", "", ""),
        (b'1', "bin/hard", "bin/su", ""),
        (b'2', "bin/soft", "/bin/su", ""),
        (b'6', "pipe", "", ""),
    ]));
    let dir = unpack_ok(&tar);
    let su = dir.path().join("bin/su").metadata().unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid()), (0o4755, 12, 34));
    assert_eq!((su.mtime(), su.nlink()), (1_000_000, 2));
    assert_eq!(
        dir.path().join("empty").metadata().unwrap().mtime(),
        1_000_000
    );
    assert_eq!(dir.path().metadata().unwrap().mode() & 0o7777, 0o755);
    let soft = std::fs::read_link(dir.path().join("bin/soft")).unwrap();
    assert_eq!(soft, Path::new("/bin/su"));
    let pipe = dir.path().join("pipe").metadata().unwrap();
    assert!(pipe.file_type().is_fifo());
}

#[test]
fn directories_that_no_entry_lists_are_told() {
    let tar = archive(&[
        (b'0', "a/b/x", "", ""),
        (b'0', "listed/x", "", ""),
        (b'5', "listed", "", ""),
        (b'0', "gone/x", "", ""),
        (b'2', "gone", "a", ""),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let unpacked = try_unpack_with(&tar, dir.path(), Limits::default()).unwrap();
    assert_eq!(unpacked.implied, ["a", "a/b"]);
}

#[test]
fn a_layer_may_be_gzip_zstd_or_plain() {
    let tar = archive(&[(b'0', "a", "", "content")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    for blob in [
        gzip.finish().unwrap(),
        zstd::encode_all(&tar[..], 1).unwrap(),
        tar.clone(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let unpacked = try_unpack_with(&blob, dir.path(), Limits::default()).unwrap();
        assert_eq!(unpacked.diff_id, Digest::of(&tar));
        let content = std::fs::read(dir.path().join("a")).unwrap();
        assert_eq!(content, b"content");
    }
}

#[test]
fn long_names_and_attributes_come_from_extended_headers() {
    let long = format!("{}/file", "d".repeat(200));
    let tar = with_pax(
        &[
            ("path", long.as_bytes()),
            ("SCHILY.xattr.user.color", b"blue\0\n="),
            ("mtime", b"1234.5"),
            ("uid", b"70000"),
        ],
        (b'0', "short", "", "x"),
    );
    let dir = unpack_ok(&tar);
    let path = dir.path().join(&long);
    let metadata = path.metadata().unwrap();
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1234, 500_000_000)
    );
    assert_eq!(metadata.uid(), 70000);
    let value = xattr::get(&path, "user.color").unwrap();
    assert_eq!(value.as_deref(), Some(&b"blue\0\n="[..]));
    // GNU's way.
    let mut tar = header(b'L', "././@LongLink", "", long.len() as u64 + 1)
        .as_bytes()
        .to_vec();
    body(&mut tar, format!("{long}\0").as_bytes());
    tar.extend(archive(&[(b'0', "short", "", "x")]));
    assert!(unpack_ok(&tar).path().join(&long).is_file());
}

#[test]
fn whiteouts_take_overlays_form_and_spare_this_layers_own_files() {
    let dir = unpack_ok(&archive(&[
        (b'0', "a/.wh.gone", "", ""),
        (b'0', "b/.wh..wh..opq", "", ""),
        (b'0', "b/new", "", "x"),
        (b'0', "c/kept", "", "x"),
        (b'0', "c/.wh.kept", "", ""),
        (b'0', "d/.wh.sub", "", ""),
        (b'5', "d/sub/", "", ""),
        (b'5', "e/sub/", "", ""),
        (b'0', "e/.wh.sub", "", ""),
        (b'0', "f/.wh.x", "", ""),
        (b'0', "f/x", "", "back"),
        (b'0', ".wh..wh.plnk", "", ""),
    ]));
    let opaque = |name: &str| {
        let value = xattr::get(dir.path().join(name), "trusted.overlay.opaque").unwrap();
        value.as_deref() == Some(b"y")
    };
    let gone = dir.path().join("a/gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(opaque("b") && dir.path().join("b/new").is_file());
    assert!(dir.path().join("c/kept").is_file());
    assert!(opaque("d/sub") && opaque("e/sub") && !opaque("a"));
    assert!(dir.path().join("f/x").is_file());
    assert!(!dir.path().join(".wh..wh.plnk").exists());
    assert!(!dir.path().join("plnk").exists());
}

#[test]
fn later_entries_replace_earlier_ones() {
    let dir = unpack_ok(&archive(&[
        (b'0', "a", "", "old"),
        (b'0', "a", "", "new"),
        (b'5', "tree/deep/", "", ""),
        (b'0', "tree/deep/f", "", "x"),
        (b'0', "tree", "", "file now"),
        (b'2', "link", "a", ""),
        (b'5', "link/", "", ""),
    ]));
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(
        (read("a").as_str(), read("tree").as_str()),
        ("new", "file now")
    );
    let link = dir.path().join("link").symlink_metadata().unwrap();
    assert!(link.is_dir());
}

#[test]
fn paths_that_leave_the_layer_are_refused() {
    refused(&[(b'0', "../victim", "", "x")], "leaves the layer");
    refused(&[(b'0', "a/../../victim", "", "x")], "leaves the layer");
    refused(&[(b'5', "..", "", "")], "leaves the layer");
    refused(&[(b'0', "a/.wh...", "", "")], "names no file");
    refused(&[(b'0', ".wh..", "", "")], "names no file");
    refused(&[(b'0', ".wh.", "", "")], "names no file");
    refused(&[(b'2', ".", "/", "")], "root must be a directory");
    refused(&[(b'1', "hard", "../victim", "")], "leaves the layer");
    refused(&[(b'1', "hard", "/etc/passwd", "")], "not in this layer");
    refused(&[(b'1', "hard", "./", "")], "is the root");
}

#[test]
fn links_lead_to_places_within_the_layer_only() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("victim"), "untouched").unwrap();
    let dest = outer.path().join("layer");
    std::fs::create_dir(&dest).unwrap();
    let absolute = outer.path().to_str().unwrap();
    let tar = archive(&[
        (b'2', "up", "..", ""),
        (b'0', "up/victim", "", "mine"),
        (b'5', "a/b/", "", ""),
        (b'2', "a/b/c", "../../../../..", ""),
        (b'2', "chain", "a/b/c", ""),
        (b'0', "chain/two", "", "mine"),
        (b'2', "root", "/", ""),
        (b'0', "root/three", "", "mine"),
        (b'1', "hard", "chain/two", ""),
        (b'2', "victim2", absolute, ""),
        (b'2', "victim2", "/victim", ""),
        (b'0', "victim2", "", "replaced, not followed"),
    ]);
    try_unpack_with(&tar, &dest, Limits::default()).unwrap();
    for name in ["victim", "two", "three", "hard"] {
        let content = std::fs::read_to_string(dest.join(name)).unwrap();
        assert_eq!(content, "mine", "{name}");
    }
    assert!(dest.join("victim2").symlink_metadata().unwrap().is_file());
    let victim = std::fs::read_to_string(outer.path().join("victim")).unwrap();
    assert_eq!(victim, "untouched");
}

#[test]
fn links_out_of_the_layer_resolve_to_nothing_outside() {
    let outer = tempfile::tempdir().unwrap();
    let outside = outer.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let link = outside.to_str().unwrap();
    refused(
        &[(b'2', "x", link, ""), (b'0', "x/file", "", "mine")],
        "x/file",
    );
    refused(
        &[(b'2', "x", link, ""), (b'1', "hard", "x/file", "")],
        "not in this layer",
    );
    refused(
        &[(b'2', "l", "l", ""), (b'0', "l/f", "", "x")],
        "too many symbolic links",
    );
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    // A link planted in the destination itself would be as harmless.
    let dest = tempfile::tempdir().unwrap();
    symlink(&outside, dest.path().join("planted")).unwrap();
    let tar = archive(&[(b'0', "planted/file", "", "x")]);
    assert!(try_unpack_with(&tar, dest.path(), Limits::default()).is_err());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn sizes_and_counts_have_bounds() {
    let limits = Limits {
        entries: 4,
        bytes: 100_000,
        extension: 1000,
    };
    let text = |tar: &[u8]| refused_with(tar, limits);
    // A size that only the header claims.
    let mut huge = header(b'0', "huge", "", 0);
    huge.as_old_mut().size = [b'7'; 12];
    huge.as_old_mut().size[11] = b' ';
    huge.set_cksum();
    assert!(text(huge.as_bytes()).contains("larger than the limit"));
    let pax_size = with_pax(&[("size", b"18446744073709551615")], (b'0', "h", "", ""));
    assert!(text(&pax_size).contains("larger than the limit"));
    // A small blob that grows.
    let zeros = "0".repeat(200_000);
    let bomb = zstd::encode_all(&archive(&[(b'0', "zeros", "", &zeros)])[..], 1).unwrap();
    assert!(bomb.len() < 1000);
    assert!(text(&bomb).contains("larger than the limit of 100000 bytes"));
    // Padding after the end of the archive counts as well.
    let mut padded = archive(&[]);
    padded.resize(200_000, 0);
    assert!(text(&padded).contains("larger than the limit"));
    let many = archive(&[(b'0', "a/b/c/d/e/f", "", "")]);
    assert!(text(&many).contains("4 entries"));
    let many: Vec<_> = (0..9).map(|_| (b'0', "same", "", "")).collect();
    assert!(text(&archive(&many)).contains("4 entries"));
    let name = "n".repeat(2000);
    let long = with_pax(&[("path", name.as_bytes())], (b'0', "s", "", ""));
    assert!(text(&long).contains("extended header"));
}

#[test]
fn broken_archives_and_refused_features_are_named() {
    let tar = archive(&[(b'0', "file", "", "some content")]);
    for cut in [1, 100, 513, 600] {
        let text = refused_with(&tar[..cut], Limits::default());
        assert!(text.contains("reading it"), "{cut}: {text}");
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let text = refused_with(&gzip[..gzip.len() - 12], Limits::default());
    assert!(text.contains("reading it"), "{text}");
    let text = refused_with(&[b'x'; 512], Limits::default());
    assert!(text.contains("not a tar header"), "{text}");
    refused(&[(b'V', "volume", "", "")], "entry type 'V'");
    let sparse = with_pax(&[("GNU.sparse.major", b"1")], (b'0', "s", "", ""));
    assert!(refused_with(&sparse, Limits::default()).contains("sparse"));
    let redirect = [("SCHILY.xattr.trusted.overlay.redirect", &b"/etc"[..])];
    let text = refused_with(
        &with_pax(&redirect, (b'5', "d/", "", "")),
        Limits::default(),
    );
    assert!(text.contains("not for layers to set"), "{text}");
}

/// Content and times that GNU tar itself wrote.
#[test]
fn sparse_files_of_every_form_keep_their_holes() {
    let dir = tempfile::tempdir().unwrap();
    let source = std::fs::File::create(dir.path().join("sparse")).unwrap();
    let pieces: Vec<u64> = (0..40).map(|n| n * (1 << 20) + 4096 * (n % 3)).collect();
    for at in &pieces {
        let text = at.to_string().repeat(1000);
        std::os::unix::fs::FileExt::write_all_at(&source, text.as_bytes(), *at).unwrap();
    }
    source.set_len(64 << 20).unwrap();
    std::fs::write(dir.path().join("after"), "still in step").unwrap();
    let wanted = std::fs::read(dir.path().join("sparse")).unwrap();
    for form in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar = std::process::Command::new("tar")
            .args(["--create", "--sparse", "--directory"])
            .arg(dir.path())
            .args(form)
            .args(["sparse", "after"])
            .output()
            .unwrap();
        assert!(tar.status.success(), "{form:?}");
        let tar = tar.stdout;
        assert!(tar.len() < 4 << 20, "{form:?}");
        let unpacked = unpack_ok(&tar);
        let path = unpacked.path().join("sparse");
        assert!(std::fs::read(&path).unwrap() == wanted, "{form:?}");
        assert!(
            path.metadata().unwrap().blocks() * 512 < 4 << 20,
            "{form:?}"
        );
        let after = std::fs::read_to_string(unpacked.path().join("after")).unwrap();
        assert_eq!(after, "still in step", "{form:?}");
    }
}

#[test]
fn hostile_maps_of_sparse_files_are_refused() {
    for pairs in [
        &[("GNU.sparse.map", &b"0,5"[..])][..],
        &[("GNU.sparse.size", b"3"), ("GNU.sparse.map", b"0,5")],
        &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,5,2")],
        &[("GNU.sparse.size", b"9"), ("GNU.sparse.numbytes", b"5")],
        &[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"5")],
        &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"5"),
        ],
        // Holes cost nothing on the disk, but much for whoever copies the file.
        &[
            ("GNU.sparse.size", b"99999999999999"),
            ("GNU.sparse.map", b"0,5"),
        ],
    ] {
        let tar = with_pax(pairs, (b'0', "s", "", "12345"));
        refused_with(&tar, Limits::default());
    }
    let old = refused_with(&archive(&[(b'S', "s", "", "12345")]), Limits::default());
    assert!(old.contains("sparse"), "{old}");
}

#[test]
fn compressed_layers_are_told_by_their_first_bytes() {
    let tar = archive(&[(b'0', "f", "", "content")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    for blob in [&gzip, &zstd, &tar] {
        let dir = tempfile::tempdir().unwrap();
        let unpacked = try_unpack_with(blob, dir.path(), Limits::default()).unwrap();
        assert_eq!(unpacked.diff_id, Digest::of(&tar));
        // A compressed stream that is cut is an error, and so is a tar that is.
        let dir = tempfile::tempdir().unwrap();
        let cut = &blob[..blob.len().min(700) / 2];
        try_unpack_with(cut, dir.path(), Limits::default()).unwrap_err();
    }
}
