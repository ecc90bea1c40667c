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

/// What we ask a registry for.
pub(crate) const ACCEPT: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// A reference to content, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) annotations: BTreeMap<String, String>,
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

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
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
            manifests
                .into_iter()
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
            "the manifest is not of a container image, its config has media type {:?}",
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
    Err(ImageError::Unsupported(format!(
        "layer {} has media type {media_type:?}, which is not supported",
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

/// This machine's architecture in the words of Go, which the specifications use.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The entry for this machine. Among several, the one without a CPU variant, or the lowest one:
/// a higher one may use instructions that this processor doesn't have.
pub(crate) fn choose(variants: &[Variant]) -> Option<&Variant> {
    if let [only] = variants
        && only.platform.is_none()
    {
        return Some(only);
    }
    variants
        .iter()
        .filter(|v| {
            v.platform
                .as_ref()
                .is_some_and(|p| p.os == "linux" && p.architecture == architecture())
        })
        .min_by_key(|v| v.platform.as_ref().and_then(|p| p.variant.clone()))
}

/// For an error: what the index offers.
pub(crate) fn offered(variants: &[Variant]) -> String {
    let mut names: Vec<String> = variants
        .iter()
        .filter_map(|v| v.platform.as_ref())
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    names.sort();
    names.dedup();
    names.join(", ")
}

/// Pairs a manifest's layers with the configuration's diff ids, and checks that the image is for
/// this machine.
pub(crate) fn layers(
    manifest: &Manifest,
    config: &ImageConfiguration,
) -> Result<Vec<LayerOf>, ImageError> {
    let (os, arch) = (config.os().to_string(), config.architecture().to_string());
    let fits = |value: &str, wanted: &str| value.is_empty() || value == wanted;
    if !fits(&os, "linux") || !fits(&arch, architecture()) {
        return Err(ImageError::Unsupported(format!(
            "the image is for {os}/{arch}, this node is linux/{}",
            architecture()
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

    fn entry(platform: Option<(&str, &str, Option<&str>)>, content: &str) -> Variant {
        Variant {
            descriptor: Descriptor {
                digest: Digest::of(content.as_bytes()),
                size: 1,
                annotations: BTreeMap::new(),
            },
            platform: platform.map(|(os, architecture, variant)| Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.map(Into::into),
            }),
        }
    }

    #[test]
    fn the_platform_of_this_machine_is_chosen() {
        let us = architecture();
        let index = [
            entry(Some(("windows", us, None)), "w"),
            entry(Some(("linux", "s390x", None)), "z"),
            entry(Some(("linux", us, Some("v3"))), "3"),
            entry(Some(("linux", us, None)), "yes"),
            entry(Some(("unknown", "unknown", None)), "attestation"),
        ];
        assert_eq!(choose(&index), Some(&index[3]));
        assert_eq!(choose(&index[..2]), None);
        let lone = [entry(None, "lone")];
        assert_eq!(choose(&lone), Some(&lone[0]));
        assert_eq!(offered(&index[..2]), format!("linux/s390x, windows/{us}"));
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
