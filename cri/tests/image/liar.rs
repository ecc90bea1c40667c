// SPDX-License-Identifier: Apache-2.0
//! A server that does not keep its promises: wrong digests and sizes, broken transfers, endless
//! bodies, tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cri::image::digest::Algorithm;
use cri::image::{Auth, Digest, ErrorKind, ImageError, no_progress};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::images::Bench;

#[derive(Clone, Default)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Close the connection after so many bytes of the body, once.
    cut: Option<usize>,
    /// Send the body again and again, without a length.
    endless: bool,
    /// Wants this header.
    authorization: Option<String>,
    /// Says so many times that it is busy, before it answers.
    busy: u32,
}

impl Answer {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Answer {
        Answer {
            status: 200,
            body: body.into(),
            ..Answer::default()
        }
    }
}

pub(crate) struct Liar {
    pub(crate) host: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Liar {
    pub(crate) async fn start() -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let answers: Arc<Mutex<HashMap<String, Answer>>> = Arc::default();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (known, log) = (answers.clone(), requests.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, known.clone(), log.clone()));
            }
        });
        Liar {
            host,
            answers,
            requests,
            task,
        }
    }

    pub(crate) fn set(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    pub(crate) fn edit(&self, path: &str, change: impl FnOnce(&mut Answer)) {
        change(self.answers.lock().unwrap().get_mut(path).unwrap());
    }

    /// An honest image of one layer under `app:v1`; the paths of manifest, config and layer.
    pub(crate) fn image(&self) -> (String, String, String) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(100_000);
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", &[7u8; 100_000][..])
            .unwrap();
        let layer = tar.into_inner().unwrap();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]},
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": Digest::of(&layer), "size": layer.len()}],
        });
        let paths = (
            "/v2/app/manifests/v1".to_owned(),
            format!("/v2/app/blobs/{}", Digest::of(&config)),
            format!("/v2/app/blobs/{}", Digest::of(&layer)),
        );
        self.set(&paths.0, Answer::ok(manifest.to_string()));
        self.set(&paths.1, Answer::ok(config));
        self.set(&paths.2, Answer::ok(layer));
        paths
    }

    async fn pull(&self, bench: &Bench, auth: Auth) -> Result<cri::image::Image, ImageError> {
        let name = format!("{}/app:v1", self.host);
        bench.store.pull(&name, auth, no_progress()).await
    }

    /// A pull that must fail, and leave nothing behind.
    #[track_caller]
    fn refused(&self, kind: ErrorKind, part: &str) -> impl Future<Output = ()> {
        let part = part.to_owned();
        async move {
            let bench = Bench::new();
            let error = self.pull(&bench, Auth::Anonymous).await.unwrap_err();
            let text = error.message();
            assert_eq!(error.kind(), kind, "{text}");
            assert!(text.contains(&part) && text.contains("app:v1"), "{text}");
            assert_eq!(bench.content(), Vec::<std::path::PathBuf>::new());
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    log: Arc<Mutex<Vec<String>>>,
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    log.lock().unwrap().push(request.clone());
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    // A proxy is asked with the whole URL.
    let target = target.trim_start_matches("http://registry.example.invalid");
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let (answer, cut) = {
        let mut answers = answers.lock().unwrap();
        match answers.get_mut(&path) {
            Some(answer) if answer.busy > 0 => {
                answer.busy -= 1;
                let retry = ("retry-after".to_owned(), "0".to_owned());
                let busy = Answer {
                    status: 429,
                    headers: vec![retry],
                    ..Answer::default()
                };
                (busy, None)
            }
            Some(answer) => (answer.clone(), answer.cut.take()),
            None => (
                Answer {
                    status: 404,
                    ..Answer::default()
                },
                None,
            ),
        }
    };
    drop(respond(&mut stream, &request, &answer, cut).await);
}

async fn respond(
    stream: &mut TcpStream,
    request: &str,
    answer: &Answer,
    cut: Option<usize>,
) -> std::io::Result<()> {
    let header = |name: &str| {
        request.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    if let Some(wanted) = &answer.authorization
        && header("authorization").as_ref() != Some(wanted)
    {
        let host = header("host").unwrap_or_default();
        let head = format!(
            "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\nwww-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:app:pull\"\r\n\r\n"
        );
        return stream.write_all(head.as_bytes()).await;
    }
    let offset = header("range")
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        })
        .unwrap_or(0usize);
    let body = &answer.body[offset.min(answer.body.len())..];
    let status = if offset > 0 { 206 } else { answer.status };
    let mut head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n");
    if !answer.endless {
        head += &format!("content-length: {}\r\n", body.len());
    }
    for (key, value) in &answer.headers {
        head += &format!("{key}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    if answer.endless {
        loop {
            stream.write_all(&answer.body).await?;
        }
    }
    stream.write_all(&body[..cut.unwrap_or(body.len())]).await?;
    stream.shutdown().await
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let liar = Liar::start().await;
    let (manifest, _, layer) = liar.image();
    for path in [&manifest, &layer] {
        liar.edit(path, |answer| answer.busy = 2);
    }
    let bench = Bench::new();
    liar.pull(&bench, Auth::Anonymous).await.unwrap();
    liar.edit(&manifest, |answer| answer.busy = 50);
    let text = {
        let bench = Bench::new();
        let error = liar.pull(&bench, Auth::Anonymous).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RegistryUnavailable);
        error.message()
    };
    assert!(text.contains("429"), "{text}");
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let (liar, store) = (Liar::start().await, Liar::start().await);
    let (_, _, layer) = liar.image();
    let paths = store.image();
    liar.set("/token", Answer::ok(r#"{"token":"t0ken"}"#));
    let wanted = Some("Bearer t0ken".to_owned());
    for path in [&paths.0, &paths.1] {
        liar.edit(path, |answer| answer.authorization = wanted.clone());
    }
    let elsewhere = format!("http://{}{layer}?signed=yes", store.host);
    liar.set(
        &layer,
        Answer {
            status: 307,
            headers: vec![("location".to_owned(), elsewhere)],
            authorization: wanted,
            ..Answer::default()
        },
    );
    let bench = Bench::new();
    let hosts = bench.path("registries").join(&liar.host);
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!(
        "[host.\"http://{}\".header]\nX-Key = \"secret\"\n",
        liar.host
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let auth = Auth::Basic {
        username: "ada".into(),
        password: "p".into(),
    };
    liar.pull(&bench, auth.clone()).await.unwrap();
    let mut asked = liar.requests.lock().unwrap().clone();
    // The realm is another service: configured headers are for the registry.
    asked.retain(|request| !request.contains(" /token"));
    assert!(
        asked.iter().all(|r| r.contains("x-key: secret")),
        "{asked:?}"
    );
    let seen = store.requests.lock().unwrap().join("").to_lowercase();
    assert!(seen.contains("signed=yes"), "{seen}");
    assert!(
        !seen.contains("authorization") && !seen.contains("x-key"),
        "{seen}"
    );
    // And a blob store that asks for a password does not get one.
    store.edit(&layer, |answer| answer.authorization = Some("x".into()));
    let bench = Bench::new();
    let error = liar.pull(&bench, auth).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.message());
    let seen = store.requests.lock().unwrap().join("").to_lowercase();
    assert!(
        !seen.contains("authorization") && !seen.contains("/token"),
        "{seen}"
    );
}

#[tokio::test]
async fn redirects_have_an_end_and_lead_to_the_web_only() {
    let liar = Liar::start().await;
    let (_, _, layer) = liar.image();
    for (to, part) in [
        (
            format!("http://{}{layer}", liar.host),
            "redirected more than",
        ),
        ("file:///etc/passwd".to_owned(), "not a web address"),
    ] {
        liar.set(
            &layer,
            Answer {
                status: 302,
                headers: vec![("location".to_owned(), to)],
                ..Answer::default()
            },
        );
        liar.refused(ErrorKind::RegistryUnavailable, part).await;
    }
}

#[tokio::test]
async fn an_image_of_sha512_digests_is_taken() {
    let liar = Liar::start().await;
    let (manifest, config, layer) = liar.image();
    let body = |path: &str| liar.answers.lock().unwrap()[path].body.clone();
    let long = |bytes: &[u8]| Digest::with(Algorithm::Sha512, bytes);
    let (layer, old) = (body(&layer), body(&config));
    let mut config: serde_json::Value = serde_json::from_slice(&old).unwrap();
    config["rootfs"]["diff_ids"] = json!([long(&layer)]);
    let config = config.to_string().into_bytes();
    let mut value: serde_json::Value = serde_json::from_slice(&body(&manifest)).unwrap();
    value["config"]["digest"] = json!(long(&config));
    value["config"]["size"] = json!(config.len());
    value["layers"][0]["digest"] = json!(long(&layer));
    let value = value.to_string();
    let name = long(value.as_bytes());
    liar.set(&format!("/v2/app/manifests/{name}"), Answer::ok(value));
    for blob in [config, layer] {
        liar.set(&format!("/v2/app/blobs/{}", long(&blob)), Answer::ok(blob));
    }
    let bench = Bench::new();
    let reference = format!("{}/app@{name}", liar.host);
    let pull = || bench.store.pull(&reference, Auth::Anonymous, no_progress());
    let image = pull().await.unwrap();
    assert!(image.layers[0].join("file").is_file());
    assert_eq!(image.repo_digests, std::slice::from_ref(&reference));
    assert_eq!(pull().await.unwrap().id, image.id);
    bench.store.remove(&reference).await.unwrap();
    assert_eq!(bench.content(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn what_is_known_is_not_fetched_again() {
    let liar = Liar::start().await;
    let (manifest, _, _) = liar.image();
    let digest = Digest::of(&liar.answers.lock().unwrap()[&manifest].body);
    let header = ("docker-content-digest".to_owned(), digest.to_string());
    liar.edit(&manifest, |answer| answer.headers = vec![header]);
    let bench = Bench::new();
    let image = liar.pull(&bench, Auth::Anonymous).await.unwrap();
    liar.requests.lock().unwrap().clear();
    let again = liar.pull(&bench, Auth::Anonymous).await.unwrap();
    assert_eq!(image.id, again.id);
    let requests = liar.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].starts_with("HEAD "), "{requests:?}");
    // Who is no longer let in is told so, though all of it is here.
    liar.edit(&manifest, |answer| answer.authorization = Some("x".into()));
    let error = liar.pull(&bench, Auth::Anonymous).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.message());
    assert!(
        error.message().contains("no token from"),
        "{}",
        error.message()
    );
}

#[tokio::test]
async fn an_honest_image_is_taken() {
    let liar = Liar::start().await;
    liar.image();
    let bench = Bench::new();
    let image = liar.pull(&bench, Auth::Anonymous).await.unwrap();
    assert!(image.layers[0].join("file").is_file());
}

#[tokio::test]
async fn content_of_another_digest_is_refused() {
    let liar = Liar::start().await;
    let (_, config, layer) = liar.image();
    liar.edit(&layer, |answer| answer.body[50_000] ^= 1);
    liar.refused(ErrorKind::BadContent, "its digest is").await;
    liar.image();
    liar.edit(&config, |answer| {
        answer.body = String::from_utf8_lossy(&answer.body)
            .replace("{}", "[]")
            .into_bytes();
    });
    liar.refused(ErrorKind::BadContent, "its digest is").await;
}

#[tokio::test]
async fn a_manifest_pinned_by_digest_is_verified() {
    let liar = Liar::start().await;
    let (manifest, _, _) = liar.image();
    let wanted = Digest::of(b"something else");
    let body = liar.answers.lock().unwrap()[&manifest].clone();
    liar.set(&format!("/v2/app/manifests/{wanted}"), body);
    let bench = Bench::new();
    let name = format!("{}/app@{wanted}", liar.host);
    let pull = bench.store.pull(&name, Auth::Anonymous, no_progress());
    let error = pull.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadContent);
    assert!(error.message().contains(&wanted.to_string()));
}

#[tokio::test]
async fn content_of_another_size_is_refused() {
    let liar = Liar::start().await;
    let (_, _, layer) = liar.image();
    liar.edit(&layer, |answer| answer.body.truncate(90_000));
    liar.refused(ErrorKind::BadContent, "it has 90000 bytes instead of")
        .await;
    liar.image();
    liar.edit(&layer, |answer| answer.body.extend_from_slice(b"more"));
    liar.refused(ErrorKind::BadContent, "bytes instead of")
        .await;
    liar.image();
    liar.edit(&layer, |answer| answer.endless = true);
    liar.refused(ErrorKind::BadContent, "bytes instead of")
        .await;
}

#[tokio::test]
async fn endless_documents_are_not_read_to_their_end() {
    let liar = Liar::start().await;
    let (manifest, _, _) = liar.image();
    liar.edit(&manifest, |answer| answer.endless = true);
    liar.refused(ErrorKind::BadContent, "larger than the limit")
        .await;
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_stopped() {
    let liar = Liar::start().await;
    let (_, _, layer) = liar.image();
    liar.edit(&layer, |answer| answer.cut = Some(60_000));
    let bench = Bench::new();
    let image = liar.pull(&bench, Auth::Anonymous).await.unwrap();
    let size = image.layers[0].join("file").metadata().unwrap().len();
    assert_eq!(size, 100_000);
    let requests = liar.requests.lock().unwrap().clone();
    let ranged = |request: &&String| request.to_ascii_lowercase().contains("range: bytes=");
    assert_eq!(requests.iter().filter(ranged).count(), 1, "{requests:?}");
}

#[tokio::test]
async fn a_failing_registry_is_unavailable_and_its_words_are_shown() {
    let liar = Liar::start().await;
    let (manifest, _, _) = liar.image();
    liar.edit(&manifest, |answer| {
        answer.status = 503;
        answer.body = br#"{"errors":[{"code":"DOWN","message":"back at nine"}]}"#.to_vec();
    });
    liar.refused(ErrorKind::RegistryUnavailable, "back at nine")
        .await;
    liar.edit(&manifest, |answer| answer.status = 403);
    liar.refused(ErrorKind::Unauthorized, "pull access denied")
        .await;
}

#[tokio::test]
async fn manifests_that_are_none_are_refused() {
    let liar = Liar::start().await;
    let (manifest, _, _) = liar.image();
    for (body, part) in [
        ("<html>", "manifest is not valid"),
        (r#"{"schemaVersion":1}"#, "schema 1"),
        (r#"{"schemaVersion":2}"#, "config and layers"),
    ] {
        liar.set(&manifest, Answer::ok(body));
        let bench = Bench::new();
        let error = liar.pull(&bench, Auth::Anonymous).await.unwrap_err();
        assert!(error.message().contains(part), "{}", error.message());
    }
}

#[tokio::test]
async fn tokens_are_fetched_with_the_credentials_given() {
    let liar = Liar::start().await;
    let paths = liar.image();
    for path in [&paths.0, &paths.1, &paths.2] {
        liar.edit(path, |answer| {
            answer.authorization = Some("Bearer t0ken".into())
        });
    }
    liar.set("/token", Answer::ok(r#"{"token":"t0ken"}"#));
    let basic = Auth::Basic {
        username: "ada".into(),
        password: "p".into(),
    };
    for (auth, sent) in [
        (
            Auth::Anonymous,
            "GET /token?scope=repository%3Aapp%3Apull&service=s",
        ),
        (basic, "authorization: Basic YWRhOnA="),
        (Auth::IdentityToken("refresh".into()), "POST /token"),
    ] {
        let bench = Bench::new();
        liar.requests.lock().unwrap().clear();
        liar.pull(&bench, auth).await.unwrap();
        let requests = liar.requests.lock().unwrap().clone();
        let tokens: Vec<_> = requests.iter().filter(|r| r.contains("/token")).collect();
        assert_eq!(
            tokens.len(),
            1,
            "one token serves the whole pull: {requests:?}"
        );
        assert!(tokens[0].contains(sent), "{tokens:?}");
    }
    let bench = Bench::new();
    let ready = Auth::RegistryToken("t0ken".into());
    liar.pull(&bench, ready).await.unwrap();
    // A token that would add a header of its own.
    liar.set("/token", Answer::ok(r#"{"token":"a\r\nX: y"}"#));
    let bench = Bench::new();
    let error = liar.pull(&bench, Auth::Anonymous).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.message());
}
