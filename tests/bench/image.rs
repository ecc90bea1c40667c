// SPDX-License-Identifier: Apache-2.0
//! Pulling and unpacking an image from a registry on loopback, beside what any runtime has to do for
//! it: hash the bytes and write them.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use rand::{RngCore as _, SeedableRng as _};
use serde_json::json;
use tests::{TestHost, wait_until};

use crate::installed;
use crate::report::Report;
use tests::containerd::Containerd;

const LAYERS: usize = 8;
const FILES: usize = 200;
/// 8 layers of 200 files: 200 MiB.
const FILE: usize = 128 << 10;
/// What is pulled takes seconds, so it is not done as often as calls are.
const MOST_RUNS: usize = 10;

pub(crate) fn measure(runs: usize, report: &mut Report) -> Result<()> {
    if !installed("docker-registry") {
        eprintln!("docker-registry is not installed: images are not measured");
        return Ok(());
    }
    let runs = runs.min(MOST_RUNS);
    let host = TestHost::new()?;
    let data = host.path().join("registry");
    // One outside of the host takes the images in, one inside of it gives them out.
    let outside = Registry::start(Command::new("docker-registry"), &data)?;
    let registry = Registry::start(host.command("docker-registry"), &data)?;
    for (form, compress) in [("gzip", true), ("tar", false)] {
        let layers = layers(compress)?;
        outside.push(form, &layers)?;
        let name = format!("{}/bench:{form}", registry.address);
        let what = format!("pull and unpack 200 MiB, 8 layers, {form}");
        let floor = times(runs, || floor(&host.path().join("floor"), &layers))?;
        report.times(&what, "hash and write", &floor);
        let pull = || {
            let start = Instant::now();
            run(host.podwright(&["image", "pull", &name]))?;
            let took = start.elapsed();
            run(host.podwright(&["image", "rm", &name]))?;
            Ok(took)
        };
        report.times(&what, "podwright", &times(runs, pull)?);
        if installed("containerd") {
            let containerd = Containerd::start(&host)?;
            let socket = containerd.socket.to_string_lossy().into_owned();
            let ctr = |arguments: &[&str]| {
                let mut command = host.command("ctr");
                command.args(["-a", &socket, "-n", "bench", "image"]);
                command.args(arguments);
                run(command)
            };
            let pull = || {
                let start = Instant::now();
                ctr(&["pull", "--plain-http", &name])?;
                let took = start.elapsed();
                ctr(&["rm", "--sync", &name])?;
                Ok(took)
            };
            report.times(&what, "containerd", &times(runs, pull)?);
        }
    }
    drop((outside, registry));
    host.down()
}

/// One run to warm up, then those that count. Each begins with nothing left to write out.
fn times(runs: usize, mut work: impl FnMut() -> Result<Duration>) -> Result<Vec<Duration>> {
    let mut samples = Vec::new();
    for _ in 0..=runs {
        nix::unistd::sync();
        samples.push(work()?);
    }
    Ok(samples.split_off(1))
}

fn run(mut command: Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(())
}

struct Layer {
    blob: Vec<u8>,
    tar: Vec<u8>,
}

/// Files that compress to about half, as programs do.
fn layers(compress: bool) -> Result<Vec<Layer>> {
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let mut layers = Vec::new();
    for layer in 0..LAYERS {
        let mut archive = tar::Builder::new(Vec::new());
        for file in 0..FILES {
            let mut content = vec![0; FILE];
            for piece in content.chunks_mut(64) {
                random.fill_bytes(&mut piece[..30]);
            }
            let mut header = tar::Header::new_ustar();
            header.set_size(FILE as u64);
            header.set_mode(0o644);
            let name = format!("usr/lib/layer{layer}/part{}/file{file}", file % 10);
            archive.append_data(&mut header, name, content.as_slice())?;
        }
        let tar = archive.into_inner()?;
        let blob = match compress {
            false => tar.clone(),
            true => {
                let level = flate2::Compression::default();
                let mut to = flate2::write::GzEncoder::new(Vec::new(), level);
                to.write_all(&tar)?;
                to.finish()?
            }
        };
        layers.push(Layer { blob, tar });
    }
    Ok(layers)
}

/// What cannot be spared: every byte of blobs and files hashed and written, one after the other by one
/// thread, and all of it on the disk at the end. Nothing is fetched, decompressed or parsed.
fn floor(dir: &Path, layers: &[Layer]) -> Result<Duration> {
    let start = Instant::now();
    for (n, layer) in layers.iter().enumerate() {
        let dir = dir.join(n.to_string());
        fs::create_dir_all(&dir)?;
        std::hint::black_box(digest(&SHA256, &layer.blob));
        fs::write(dir.join("blob"), &layer.blob)?;
        std::hint::black_box(digest(&SHA256, &layer.tar));
        for (file, content) in layer.tar.chunks(FILE).enumerate() {
            fs::write(dir.join(file.to_string()), content)?;
        }
    }
    nix::unistd::syncfs(File::open(dir)?)?;
    let took = start.elapsed();
    fs::remove_dir_all(dir)?;
    Ok(took)
}

/// Debian's docker-registry on the host's loopback; ended when dropped.
struct Registry {
    child: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // One that has ended already needs nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn start(mut command: Command, data: &Path) -> Result<Self> {
        fs::create_dir_all(data)?;
        let config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: true}}, level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
            data.display()
        );
        let path = data.join("config.yml");
        fs::write(&path, config)?;
        let log = tempfile::NamedTempFile::new_in(data)?;
        let child = command
            .arg("serve")
            .arg(path)
            .stdout(Stdio::null())
            .stderr(log.reopen()?)
            .spawn()
            .context("starting docker-registry")?;
        let mut registry = Self {
            child,
            address: String::new(),
        };
        wait_until("docker-registry listens", Duration::from_secs(30), || {
            let text = fs::read_to_string(log.path()).unwrap_or_default();
            if let Some((_, rest)) = text.split_once("listening on ") {
                let end = rest.find(['"', ',', ' ']).unwrap_or(0);
                registry.address = rest[..end].to_owned();
            }
            !registry.address.is_empty()
        })?;
        Ok(registry)
    }

    fn push(&self, tag: &str, layers: &[Layer]) -> Result<()> {
        let diff_ids: Vec<String> = layers.iter().map(|layer| name_of(&layer.tar)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes();
        let described = |media: &str, bytes: &[u8]| {
            json!({"mediaType": format!("application/vnd.oci.image.{media}"),
                "digest": name_of(bytes), "size": bytes.len()})
        };
        let kind = match tag {
            "gzip" => "layer.v1.tar+gzip",
            _ => "layer.v1.tar",
        };
        let all: Vec<_> = layers.iter().map(|l| described(kind, &l.blob)).collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": described("config.v1+json", &config), "layers": all,
        })
        .to_string();
        for layer in layers {
            self.push_blob(&layer.blob)?;
        }
        self.push_blob(&config)?;
        let target = format!("/v2/bench/manifests/{tag}");
        self.request("PUT", &target, kind, manifest.as_bytes())
            .map(drop)
    }

    fn push_blob(&self, blob: &[u8]) -> Result<()> {
        let kind = "application/octet-stream";
        let location = self.request("POST", "/v2/bench/blobs/uploads/", kind, &[])?;
        let target = location
            .split_once(&self.address)
            .map_or(location.as_str(), |(_, path)| path);
        let target = format!("{target}&digest={}", name_of(blob));
        self.request("PUT", &target, kind, blob).map(drop)
    }

    /// A request of its own connection; the `Location` of the answer.
    fn request(&self, method: &str, target: &str, kind: &str, body: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = BufReader::new(stream);
        let (mut status, mut location) = (String::new(), String::new());
        answer.read_line(&mut status)?;
        let mut line = String::new();
        while answer.read_line(&mut line)? > 2 {
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("location")
            {
                location = value.trim().to_owned();
            }
            line.clear();
        }
        io::copy(&mut answer.take(1 << 20), &mut io::sink())?;
        ensure!(status.contains(" 20"), "{method} {target}: {status}");
        Ok(location)
    }
}

fn name_of(bytes: &[u8]) -> String {
    let hash = digest(&SHA256, bytes);
    let hex: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}
