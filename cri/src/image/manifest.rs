// SPDX-License-Identifier: Apache-2.0
//! Manifests, indexes and the choice of a platform: from bytes to checked descriptors. No I/O.
//!
//! OCI image specification 1.1 (`manifest.md`, `image-index.md`) and Docker's schema 2, which has
//! the same shape.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::digest::Digest;
use super::error::ImageError;
use super::platform::Platform;
use super::records::LayerOf;

/// Bound on a manifest, index or configuration: they are read into memory.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;
/// Docker's own bound on layers; overlay itself takes 500.
const MAX_LAYERS: usize = 127;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Entries of one index, and indexes within indexes: more is a mistake or an attack.
const MAX_ENTRIES: usize = 1000;
const MAX_DEPTH: usize = 4;
/// Documents read until the image is found.
const MAX_DOCUMENTS: usize = 16;

/// What we ask a registry for.
pub(crate) const ACCEPT: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// A reference to content, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn of(digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            digest,
            size,
            annotations: BTreeMap::new(),
        }
    }
}

/// A manifest of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Bottom first.
    pub(crate) layers: Vec<Descriptor>,
}

/// One entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) descriptor: Descriptor,
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Variant>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: String,
    digest: String,
    size: i64,
    platform: Option<Platform>,
    annotations: Option<BTreeMap<String, String>>,
}

/// Parses a manifest or an index. A document that could be read as both is refused: two tools would
/// see two images under one digest (GHSA-77vh-xpmg-72qh).
pub(crate) fn parse(data: &[u8]) -> Result<Document, ImageError> {
    let wire: Wire = serde_json::from_slice(data).map_err(|source| ImageError::Malformed {
        what: "the manifest is not valid".to_owned(),
        source: Some(source.into()),
    })?;
    match wire.schema_version {
        2 => {}
        1 => {
            return Err(ImageError::Unsupported(
                "the image has a Docker schema 1 manifest, which is not supported: push it again with a current tool".to_owned(),
            ));
        }
        other => {
            return Err(ImageError::Unsupported(format!(
                "manifest schema version {other} is not supported"
            )));
        }
    }
    let media_type = wire.media_type.as_deref();
    match (wire.config, wire.layers, wire.manifests) {
        (None, None, Some(manifests))
            if !matches!(media_type, Some(OCI_MANIFEST | DOCKER_MANIFEST)) =>
        {
            if manifests.len() > MAX_ENTRIES {
                return Err(ImageError::Unsupported(format!(
                    "the index has {} entries, the limit is {MAX_ENTRIES}",
                    manifests.len()
                )));
            }
            manifests
                .into_iter()
                .filter(|entry| ACCEPT.contains(&entry.media_type.as_str()))
                .map(variant)
                .collect::<Result<_, _>>()
                .map(Document::Index)
        }
        (Some(config), Some(layers), None)
            if !matches!(media_type, Some(OCI_INDEX | DOCKER_LIST)) =>
        {
            manifest(config, layers).map(Document::Manifest)
        }
        _ => Err(ImageError::malformed(
            "the manifest must have either config and layers, or manifests, as its media type says",
        )),
    }
}

fn manifest(config: WireDescriptor, layers: Vec<WireDescriptor>) -> Result<Manifest, ImageError> {
    if config.media_type != OCI_CONFIG && config.media_type != DOCKER_CONFIG {
        return Err(ImageError::Unsupported(format!(
            "this is an artifact and not a container image: its config has media type {:?}",
            config.media_type
        )));
    }
    if layers.len() > MAX_LAYERS {
        return Err(ImageError::Unsupported(format!(
            "the image has {} layers, the limit is {MAX_LAYERS}",
            layers.len()
        )));
    }
    let layers = layers.into_iter().map(layer).collect::<Result<_, _>>()?;
    Ok(Manifest {
        config: descriptor(config)?,
        layers,
    })
}

fn layer(wire: WireDescriptor) -> Result<Descriptor, ImageError> {
    let media_type = wire.media_type.as_str();
    let known = [OCI_LAYER, "application/vnd.docker.image.rootfs.diff.tar"];
    let plain = known.iter().any(|known| {
        media_type
            .strip_prefix(known)
            .is_some_and(|rest| matches!(rest, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
    });
    if plain {
        return descriptor(wire);
    }
    let why = if media_type.contains("nondistributable") || media_type.contains("foreign") {
        ": a foreign layer, which is not served with the image"
    } else if media_type.contains("+encrypted") {
        ": an encrypted layer"
    } else {
        ""
    };
    Err(ImageError::Unsupported(format!(
        "layer {} has media type {media_type:?}, which is not supported{why}",
        wire.digest
    )))
}

fn variant(wire: WireDescriptor) -> Result<Variant, ImageError> {
    let platform = wire.platform.clone();
    Ok(Variant {
        descriptor: descriptor(wire)?,
        platform,
    })
}

fn descriptor(wire: WireDescriptor) -> Result<Descriptor, ImageError> {
    let digest = wire
        .digest
        .parse()
        .map_err(|source| ImageError::Malformed {
            what: "the manifest refers to content by a bad digest".to_owned(),
            source: Some(Box::new(source)),
        })?;
    let size = u64::try_from(wire.size).map_err(|_| {
        ImageError::malformed(format!("size {} of {digest} is negative", wire.size))
    })?;
    Ok(Descriptor {
        digest,
        size,
        annotations: wire.annotations.unwrap_or_default(),
    })
}

/// The way from what a name stands for to the manifest of one platform, through indexes within
/// indexes. Whoever uses it reads what it asks for and hands the bytes in.
#[derive(Debug)]
pub(crate) struct Choice {
    wanted: Platform,
    /// Still to try, the next one last, with its depth.
    pending: Vec<(Variant, usize)>,
    depth: usize,
    read: usize,
    offered: Vec<String>,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read this document, verify it, and hand it in.
    Read(Descriptor),
    Found(Manifest),
}

impl Choice {
    pub(crate) fn new(wanted: &Platform) -> Choice {
        Choice {
            wanted: wanted.clone(),
            pending: Vec::new(),
            depth: 0,
            read: 0,
            offered: Vec::new(),
        }
    }

    /// Takes the document that was named or asked for.
    pub(crate) fn document(&mut self, bytes: &[u8]) -> Result<Step, ImageError> {
        self.read += 1;
        match parse(bytes)? {
            Document::Manifest(manifest) => return Ok(Step::Found(manifest)),
            Document::Index(_) if self.depth >= MAX_DEPTH => {
                return Err(ImageError::Unsupported(format!(
                    "the index has more than {MAX_DEPTH} indexes within one another"
                )));
            }
            Document::Index(entries) => self.index(&entries),
        }
        match self.pending.pop() {
            Some((next, depth)) if self.read < MAX_DOCUMENTS => {
                self.depth = depth;
                Ok(Step::Read(next.descriptor))
            }
            _ => Err(self.nothing()),
        }
    }

    /// The best entry of this platform first; those that name no platform (indexes, mostly) last.
    fn index(&mut self, entries: &[Variant]) {
        let mut fitting: Vec<(usize, &Variant)> = entries
            .iter()
            .filter_map(|entry| match &entry.platform {
                None => Some((usize::MAX, entry)),
                Some(platform) => self.wanted.rank(platform).map(|rank| (rank, entry)),
            })
            .collect();
        fitting.sort_by_key(|(rank, _)| *rank);
        let depth = self.depth + 1;
        let next = fitting.into_iter().rev();
        self.pending
            .extend(next.map(|(_, entry)| (entry.clone(), depth)));
        let names = entries.iter().filter_map(|entry| entry.platform.as_ref());
        self.offered.extend(names.map(Platform::to_string));
    }

    fn nothing(&self) -> ImageError {
        let mut offered = self.offered.clone();
        offered.sort();
        offered.dedup();
        offered.truncate(50);
        ImageError::Unsupported(format!(
            "no image for {} in the index, which offers {}",
            self.wanted,
            match offered.is_empty() {
                true => "none".to_owned(),
                false => offered.join(", "),
            }
        ))
    }
}

/// Pairs a manifest's layers with the configuration's diff ids, and checks that the image is for
/// the platform that was asked for.
pub(crate) fn layers(
    manifest: &Manifest,
    config: &ImageConfiguration,
    wanted: &Platform,
) -> Result<Vec<LayerOf>, ImageError> {
    let (os, arch) = (config.os().to_string(), config.architecture().to_string());
    if !wanted.takes(&os, &arch) {
        return Err(ImageError::Unsupported(format!(
            "the image is for {os}/{arch}, wanted is {wanted}"
        )));
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers.len() {
        return Err(ImageError::malformed(format!(
            "the manifest has {} layers and the configuration {} diff ids",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    manifest
        .layers
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| {
            Ok(LayerOf {
                blob: layer.digest.clone(),
                size: Some(layer.size),
                diff_id: diff_id.parse().map_err(|source| ImageError::Malformed {
                    what: "the configuration has a bad diff id".to_owned(),
                    source: Some(Box::new(source)),
                })?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(content: &str) -> serde_json::Value {
        let digest = Digest::of(content.as_bytes());
        serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": content.len()})
    }

    fn index(entries: &[serde_json::Value]) -> Vec<u8> {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": entries});
        index.to_string().into_bytes()
    }

    fn entry(platform: &str, content: &str) -> serde_json::Value {
        let mut entry = descriptor(content);
        let platform: Platform = platform.parse().unwrap();
        entry["platform"] = serde_json::json!({"os": platform.os,
            "architecture": platform.architecture, "variant": platform.variant});
        entry
    }

    fn read(step: Step) -> Digest {
        match step {
            Step::Read(descriptor) => descriptor.digest,
            Step::Found(_) => panic!("found at once"),
        }
    }

    #[test]
    fn the_platform_is_found_through_indexes_and_past_what_is_no_image() {
        let mut nested = descriptor("nested");
        nested["mediaType"] = OCI_INDEX.into();
        let mut foreign = entry("linux/amd64", "signature");
        foreign["mediaType"] = "application/vnd.example+json".into();
        let outer = index(&[
            foreign,
            nested,
            entry("unknown/unknown", "attestation"),
            entry("linux/s390x", "z"),
        ]);
        let wanted: Platform = "linux/amd64/v2".parse().unwrap();
        let mut choice = Choice::new(&wanted);
        let step = choice.document(&outer).unwrap();
        assert_eq!(read(step), Digest::of(b"nested"));
        let inner = index(&[
            entry("linux/amd64", "base"),
            entry("linux/amd64/v3", "v3"),
            entry("linux/amd64/v2", "v2"),
        ]);
        let step = choice.document(&inner).unwrap();
        assert_eq!(read(step), Digest::of(b"v2"));
        let config =
            serde_json::json!({"mediaType": OCI_CONFIG, "digest": Digest::of(b""), "size": 0});
        let image = serde_json::json!({"schemaVersion": 2, "config": config, "layers": []});
        let step = choice.document(image.to_string().as_bytes()).unwrap();
        assert!(matches!(step, Step::Found(_)));
    }

    #[test]
    fn what_fits_nowhere_names_what_is_offered_and_depth_has_an_end() {
        let wanted: Platform = "linux/amd64".parse().unwrap();
        let foreign = index(&[entry("linux/s390x", "z"), entry("windows/amd64", "w")]);
        let error = Choice::new(&wanted).document(&foreign).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("offers linux/s390x, windows/amd64")
        );
        let mut deeper = descriptor("again");
        deeper["mediaType"] = OCI_INDEX.into();
        let (bytes, mut choice) = (index(&[deeper]), Choice::new(&wanted));
        let ends = (0..10).find_map(|_| choice.document(&bytes).err());
        assert!(ends.unwrap().to_string().contains("within one another"));
    }

    #[test]
    fn documents_of_two_meanings_and_foreign_ones_are_refused() {
        let d = r#"{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}"#;
        let good = format!(r#"{{"schemaVersion":2,"config":{d},"layers":[]}}"#);
        assert!(matches!(parse(good.as_bytes()), Ok(Document::Manifest(_))));
        for bad in [
            format!(r#"{{"schemaVersion":2,"config":{d},"layers":[],"manifests":[]}}"#),
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{d},"layers":[]}}"#),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            r#"{"schemaVersion":2}"#.to_owned(),
            "[]".to_owned(),
            good.replace("image.config.v1+json", "wasm.config"),
            good.replace(r#""size":0"#, r#""size":-1"#),
            good.replace("sha256:e3", "sha256:../e3"),
            good.replace("\"layers\":[]", &format!("\"layers\":[{d}]")),
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
