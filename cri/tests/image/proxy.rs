// SPDX-License-Identifier: Apache-2.0
//! A real registry with TLS and a password, behind a proxy that cuts, stalls and corrupts what passes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::image::{Auth, ErrorKind, ImageError, Progress, ProgressFn, PullOptions, no_progress};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::images::{Bench, open};
use crate::registry::Registry;
use crate::remote::HTPASSWD;

const MIB: u64 = 1 << 20;

/// What happens to a connection's answers.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// The connection ends after so many bytes.
    Cut(u64),
    /// Nothing more comes after so many bytes, but the connection stays.
    Stall(u64),
    /// The byte at this place has a bit flipped.
    Flip(u64),
}

struct Proxy {
    host: String,
    fault: Arc<Mutex<Fault>>,
    connections: Arc<AtomicUsize>,
    /// Bytes of answers that passed.
    passed: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    async fn start(to: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let fault = Arc::new(Mutex::new(Fault::None));
        let (connections, passed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicU64>::default());
        let (to, set) = (to.to_owned(), fault.clone());
        let (count, bytes) = (connections.clone(), passed.clone());
        let task = tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let fault = *set.lock().unwrap();
                all.spawn(pass(client, to.clone(), fault, bytes.clone()));
            }
        });
        Proxy {
            host,
            fault,
            connections,
            passed,
            task,
        }
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
        self.passed.store(0, Ordering::Relaxed);
        self.connections.store(0, Ordering::Relaxed);
    }
}

async fn pass(client: TcpStream, to: String, fault: Fault, passed: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(to).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let (mut done, mut buffer) = (0u64, vec![0; 16 << 10]);
        loop {
            let n = match from_server.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => n,
            };
            match fault {
                Fault::Cut(at) if done + n as u64 > at => return,
                Fault::Stall(at) if done + n as u64 > at => std::future::pending().await,
                Fault::Flip(at) if (done..done + n as u64).contains(&at) => {
                    buffer[usize::try_from(at - done).unwrap()] ^= 1;
                }
                _ => {}
            }
            if to_client.write_all(&buffer[..n]).await.is_err() {
                return;
            }
            done += n as u64;
            passed.fetch_add(n as u64, Ordering::Relaxed);
        }
    };
    tokio::select! { _ = up => (), () = down => () }
}

/// A registry with an image of one large layer, behind a proxy, and a store that knows both.
struct Scene {
    bench: Bench,
    proxy: Proxy,
    name: String,
    _registries: (Registry, Registry),
}

impl Scene {
    async fn new(size: u64, secure: bool) -> Scene {
        let size = usize::try_from(size).unwrap();
        let (plain, _) = Bench::pushed(size).await;
        let signed = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let (pem, key) = (signed.cert.pem(), signed.signing_key.serialize_pem());
        let secured = plain.secured(HTPASSWD, &pem, &key);
        let behind = if secure { &secured.host } else { &plain.host };
        let proxy = Proxy::start(behind).await;
        let bench = Bench::new();
        let hosts = bench.path("registries").join(&proxy.host);
        std::fs::create_dir_all(&hosts).unwrap();
        if secure {
            std::fs::write(hosts.join("ca.pem"), &pem).unwrap();
            let text = format!("server = \"https://{}\"\nca = \"ca.pem\"\n", proxy.host);
            std::fs::write(hosts.join("hosts.toml"), text).unwrap();
        }
        Scene {
            name: format!("{}/big:v1", proxy.host),
            bench,
            proxy,
            _registries: (plain, secured),
        }
    }

    async fn pull(&self, progress: ProgressFn) -> Result<cri::image::Image, ImageError> {
        let auth = Auth::Basic {
            username: "ada".into(),
            password: "secret".into(),
        };
        let options = PullOptions {
            progress_timeout: Duration::from_secs(2),
            ..PullOptions::default()
        };
        let store = &self.bench.store;
        store.pull_with(&self.name, auth, &options, progress).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_that_break_or_stall_go_on_where_they_stopped() {
    let scene = Scene::new(6 * MIB, true).await;
    for fault in [Fault::Cut(2 * MIB), Fault::Stall(5 * MIB / 2)] {
        scene.proxy.set(fault);
        let image = scene.pull(no_progress()).await.unwrap();
        assert!(
            scene.proxy.connections.load(Ordering::Relaxed) >= 3,
            "{fault:?}"
        );
        let passed = scene.proxy.passed.load(Ordering::Relaxed);
        assert!(passed < 8 * MIB, "{fault:?}: {passed} bytes for 6 MiB");
        scene.bench.store.remove(&scene.name).await.unwrap();
        assert!(!image.layers[0].exists());
        assert_eq!(scene.bench.content(), Vec::<std::path::PathBuf>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_always_stalls_is_given_up() {
    let scene = Scene::new(MIB, true).await;
    scene.proxy.set(Fault::Stall(1000));
    let error = scene.pull(no_progress()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable);
    let text = error.message();
    assert!(
        text.starts_with("RegistryUnavailable") && text.contains("big:v1"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_corrupted_is_refused_and_the_next_pull_works() {
    // Without TLS, which would notice by itself.
    let scene = Scene::new(2 * MIB, false).await;
    scene.proxy.set(Fault::Flip(MIB));
    let error = scene.pull(no_progress()).await.unwrap_err();
    let text = error.message();
    assert_eq!(error.kind(), ErrorKind::BadContent, "{text}");
    assert!(
        text.contains("big:v1") && text.contains("its digest is sha256:"),
        "{text}"
    );
    assert_eq!(scene.bench.content(), Vec::<std::path::PathBuf>::new());
    scene.proxy.set(Fault::None);
    scene.pull(no_progress()).await.unwrap();
    // With TLS the connection breaks, and the transfer goes on.
    let scene = Scene::new(2 * MIB, true).await;
    scene.proxy.set(Fault::Flip(MIB));
    scene.pull(no_progress()).await.unwrap();
}

/// Tells when so many bytes of a layer are here.
fn when_at(bytes: u64) -> (ProgressFn, tokio::sync::oneshot::Receiver<()>) {
    let (send, receive) = tokio::sync::oneshot::channel();
    let send = Mutex::new(Some(send));
    let progress: ProgressFn = Arc::new(move |progress| {
        if let Progress::Downloading { done, .. } = progress
            && done >= bytes
            && let Some(send) = send.lock().unwrap().take()
        {
            send.send(()).unwrap_or_default();
        }
    });
    (progress, receive)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_dropped_leaves_its_beginning_to_the_next_one() {
    let scene = Scene::new(6 * MIB, true).await;
    scene.proxy.set(Fault::Stall(4 * MIB));
    let (progress, reached) = when_at(3 * MIB);
    tokio::select! {
        result = scene.pull(progress) => panic!("{result:?}"),
        result = reached => result.unwrap(),
    }
    // A container's image is not seen, nothing but the beginning is kept.
    assert!(scene.bench.store.list().await.unwrap().is_empty());
    scene.proxy.set(Fault::None);
    let store = open(scene.bench.dir.path());
    scene.pull(no_progress()).await.unwrap();
    let passed = scene.proxy.passed.load(Ordering::Relaxed);
    assert!(passed < 5 * MIB, "{passed} bytes passed again");
    store.remove(&scene.name).await.unwrap();
    assert_eq!(scene.bench.content(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_pull_that_is_dropped_goes_on_with_it() {
    let scene = Scene::new(6 * MIB, true).await;
    scene.proxy.set(Fault::Stall(4 * MIB));
    let (progress, reached) = when_at(3 * MIB);
    let mut first = Box::pin(scene.pull(progress));
    tokio::select! {
        result = &mut first => panic!("{result:?}"),
        result = reached => result.unwrap(),
    }
    let before = scene.proxy.connections.load(Ordering::Relaxed);
    let second = scene.pull(no_progress());
    tokio::pin!(second);
    // The second one has begun when it has asked for the manifest.
    while scene.proxy.connections.load(Ordering::Relaxed) == before {
        tokio::select! {
            result = &mut second => panic!("{result:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    scene.proxy.set(Fault::None);
    drop(first);
    let image = second.await;
    assert!(image.unwrap().layers[0].is_dir());
    let passed = scene.proxy.passed.load(Ordering::Relaxed);
    assert!(passed < 5 * MIB, "{passed} bytes passed again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_collected_beside_a_pull_that_lasts() {
    let scene = Scene::new(4 * MIB, true).await;
    scene.bench.large("other", 100_000).await;
    let before = scene.bench.store.fs_info().await.unwrap().used_bytes;
    scene.proxy.set(Fault::Stall(2 * MIB));
    let (progress, reached) = when_at(MIB);
    let other = async {
        reached.await.unwrap();
        let other = open(scene.bench.dir.path());
        other.remove("other").await.unwrap();
        let blobs = scene.bench.store.dir().join("blobs/sha256");
        // The configuration and manifest of what is being pulled, which nothing else refers to.
        assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 2);
        scene.proxy.set(Fault::None);
    };
    let (image, ()) = tokio::join!(scene.pull(progress), other);
    assert!(image.unwrap().layers[0].join("0").is_file());
    assert!(before >= 200_000);
}
