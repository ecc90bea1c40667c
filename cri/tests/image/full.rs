// SPDX-License-Identifier: Apache-2.0
//! A disk that is full in the middle of a pull: a small tmpfs in a mount namespace of the test's own.

use cri::image::{Auth, ErrorKind, ImageStore, no_progress};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::images::Bench;

#[test]
fn a_full_disk_fails_the_pull_and_the_next_one_works() {
    // A namespace belongs to a thread, and to the threads that it starts.
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).unwrap();
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(scenario());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn scenario() {
    let (registry, _) = Bench::pushed(3 << 20).await;
    let name = format!("{}/big:v1", registry.host);
    let dir = tempfile::tempdir().unwrap();
    let tmpfs = |options: &str, flags| {
        mount(Some("t"), dir.path(), Some("tmpfs"), flags, Some(options)).unwrap();
    };
    tmpfs("size=64m", MsFlags::empty());
    let store = ImageStore::open(dir.path().join("store"), dir.path().join("r")).unwrap();
    // Too small for the blob, too small for what it unpacks to besides, and too few inodes.
    for options in ["size=2m", "size=5m", "size=64m,nr_inodes=60"] {
        tmpfs(options, MsFlags::MS_REMOUNT);
        let pull = store.pull(&name, Auth::Anonymous, no_progress());
        let error = pull.await.unwrap_err();
        let text = error.message();
        assert_eq!(error.kind(), ErrorKind::Storage, "{options}: {text}");
        assert!(
            text.contains("big:v1") && text.contains("No space left"),
            "{text}"
        );
        assert!(store.list().await.unwrap().is_empty());
        let left = store.fs_info().await.unwrap();
        assert_eq!((left.used_bytes, left.inodes_used), (0, 0), "{options}");
    }
    tmpfs("size=64m,nr_inodes=10000", MsFlags::MS_REMOUNT);
    let image = store.pull(&name, Auth::Anonymous, no_progress()).await;
    assert!(image.unwrap().layers[0].join("49").is_file());
    nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}
