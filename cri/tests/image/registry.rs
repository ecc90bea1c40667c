// SPDX-License-Identifier: Apache-2.0
//! Debian's docker-registry as a child on a loopback port, and a way to push to it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use cri::image::Digest;
use serde_json::{Value, json};

pub(crate) struct Registry {
    child: Child,
    dir: Arc<tempfile::TempDir>,
    /// `127.0.0.1:PORT`
    pub(crate) host: String,
}

impl Registry {
    /// Starts one; `htpasswd` is a line for basic authentication.
    pub(crate) fn start(htpasswd: Option<&str>) -> Registry {
        Registry::start_with(Arc::new(tempfile::tempdir().unwrap()), htpasswd, None)
    }

    /// Starts one that speaks HTTPS as 127.0.0.1 with this certificate and key (PEM).
    pub(crate) fn start_tls(certificate: &str, key: &str) -> Registry {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Registry::start_with(dir, None, Some((certificate, key)))
    }

    /// Starts one more with the same content, which speaks HTTPS and asks for a password.
    pub(crate) fn secured(&self, htpasswd: &str, certificate: &str, key: &str) -> Registry {
        Registry::start_with(self.dir.clone(), Some(htpasswd), Some((certificate, key)))
    }

    fn start_with(
        dir: Arc<tempfile::TempDir>,
        htpasswd: Option<&str>,
        tls: Option<(&str, &str)>,
    ) -> Registry {
        let data = dir.path().join("data");
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: '127.0.0.1:0'\n",
            data.display()
        );
        if let Some((certificate, key)) = tls {
            let (cert_path, key_path) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
            std::fs::write(&cert_path, certificate).unwrap();
            std::fs::write(&key_path, key).unwrap();
            config += &format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                cert_path.display(),
                key_path.display()
            );
        }
        if let Some(line) = htpasswd {
            let path = dir.path().join("htpasswd");
            std::fs::write(&path, line).unwrap();
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path.display()
            );
        }
        let file = dir.path().join(format!("config-{}.yml", tls.is_some()));
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the package docker-registry is installed");
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (send, receive) = mpsc::channel();
        // Reads on until the child ends, so that its log never blocks it.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let end = rest.find([',', '"', ' ']).unwrap_or(rest.len());
                    drop(send.send(rest[..end].to_owned()));
                }
            }
        });
        let host = receive
            .recv_timeout(Duration::from_secs(20))
            .expect("docker-registry says where it listens");
        Registry { child, dir, host }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.host)
    }

    pub(crate) async fn push_blob(&self, repository: &str, data: Vec<u8>) -> Digest {
        let digest = Digest::of(&data);
        let client = reqwest::Client::new();
        let started = client
            .post(self.url(&format!("{repository}/blobs/uploads/")))
            .send()
            .await
            .unwrap();
        let location = started.headers()["location"].to_str().unwrap().to_owned();
        let url = format!("{location}&digest={digest}");
        let done = client.put(url).body(data).send().await.unwrap();
        assert_eq!(done.status(), 201);
        digest
    }

    pub(crate) async fn push_manifest(
        &self,
        repository: &str,
        tag: &str,
        manifest: &Value,
    ) -> Digest {
        let body = manifest.to_string();
        let done = reqwest::Client::new()
            .put(self.url(&format!("{repository}/manifests/{tag}")))
            .header("content-type", manifest["mediaType"].as_str().unwrap())
            .body(body.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(done.status(), 201, "{}", done.text().await.unwrap());
        Digest::of(body.as_bytes())
    }

    /// Pushes an OCI archive's single image. With `docker`, under Docker's media types.
    pub(crate) async fn push_archive(
        &self,
        archive: &Path,
        repository: &str,
        tag: &str,
        docker: bool,
    ) -> (Digest, usize) {
        let mut manifest = None;
        let mut blobs = Vec::new();
        let mut tar = tar::Archive::new(std::fs::File::open(archive).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
            if !entry.path().unwrap().starts_with("blobs") {
                continue;
            }
            match serde_json::from_slice::<Value>(&data) {
                Ok(value) if value.get("layers").is_some() => manifest = Some(value),
                _ => blobs.push(data),
            }
        }
        let mut manifest = manifest.unwrap();
        for blob in blobs {
            self.push_blob(repository, blob).await;
        }
        if docker {
            manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
            manifest["config"]["mediaType"] =
                json!("application/vnd.docker.container.image.v1+json");
            for layer in manifest["layers"].as_array_mut().unwrap() {
                layer["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
            }
        }
        let digest = self.push_manifest(repository, tag, &manifest).await;
        (digest, manifest.to_string().len())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
