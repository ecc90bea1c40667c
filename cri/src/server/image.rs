// SPDX-License-Identifier: Apache-2.0
//! ImageService over [`crate::image`].

use std::collections::HashMap;
use std::sync::Arc;

use crate::container::command::ImageDefaults;
use crate::container::user::{ImageUser, image_user};
use crate::fault::{Fault, Kind, Result};
use crate::image::types::no_progress;
use crate::image::{Auth, ErrorKind, Image, ImageError, PullOptions, Reference};
use crate::runtime::{Runtime, now};
use crate::v1;

/// The fault that a failed image operation is.
pub(crate) fn fault(wanted: &str, error: &ImageError) -> Fault {
    let kind = match error.kind() {
        ErrorKind::InvalidReference => Kind::Invalid,
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::Busy | ErrorKind::RegistryUnavailable => Kind::Unavailable,
        ErrorKind::Unauthorized
        | ErrorKind::BadContent
        | ErrorKind::Unsupported
        | ErrorKind::Storage => Kind::Internal,
    };
    let message = error.message();
    // Most say which image it is about. The kubelet knows an unreachable registry by the first word.
    if message.contains(&format!("{wanted:?}")) || message.starts_with("RegistryUnavailable") {
        return Fault::new(kind, message);
    }
    Fault::new(kind, format!("image {wanted:?}: {message}"))
}

/// The image that a container asks for, by reference or id, kept on disk for `owner`.
///
/// # Errors
/// Invalid when none is named; not found.
pub(crate) async fn lease(
    runtime: &Runtime,
    owner: &str,
    spec: Option<&v1::ImageSpec>,
) -> Result<Image> {
    let wanted = asked_for(spec)?;
    let leased = runtime.images.lease(owner, wanted).await;
    leased.map_err(|e| fault(wanted, &e))
}

/// As [`lease`], for one that is shown as a volume, beside what the owner holds.
///
/// # Errors
/// As [`lease`].
pub(crate) async fn lease_also(
    runtime: &Runtime,
    owner: &str,
    spec: &v1::ImageSpec,
) -> Result<Image> {
    let wanted = asked_for(Some(spec))?;
    let leased = runtime.images.lease_also(owner, wanted).await;
    leased.map_err(|e| fault(wanted, &e))
}

fn asked_for(spec: Option<&v1::ImageSpec>) -> Result<&str> {
    spec.map(|s| s.image.as_str())
        .filter(|s| !s.is_empty())
        .ok_or_else(|| Fault::invalid("container config names no image"))
}

/// What status shows as `image_ref`: a repo digest, else the id.
pub(crate) fn reference(image: &Image) -> String {
    image
        .repo_digests
        .first()
        .cloned()
        .unwrap_or_else(|| image.id.to_string())
}

/// How the image wants to be run.
pub(crate) fn defaults(image: &Image) -> ImageDefaults {
    let Some(config) = image.config.config() else {
        return ImageDefaults::default();
    };
    ImageDefaults {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
    }
}

/// `pinned` are the references that the operator wants to keep.
fn wire(image: &Image, pinned: &[String]) -> v1::Image {
    let (uid, username) = match image_user(&defaults(image).user) {
        ImageUser::Uid(value) => (Some(v1::Int64Value { value }), String::new()),
        ImageUser::Name(name) => (None, name),
    };
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(v1::ImageSpec {
            image: image.id.to_string(),
            ..Default::default()
        }),
        pinned: image.pinned || pinned.iter().any(|name| is_named(image, name)),
    }
}

/// Whether `name`, normal or not, is one of the image's names or its id. As in CRI-O, `name*` is every
/// name that begins so, and `*word*` every one that has the word.
fn is_named(image: &Image, name: &str) -> bool {
    let mut names = image.repo_tags.iter().chain(&image.repo_digests);
    if let Some(start) = name.strip_suffix('*') {
        return match start.strip_prefix('*') {
            Some(word) => names.any(|known| known.contains(word)),
            None => names.any(|known| begins(known, start)),
        };
    }
    let id = image.id.to_string();
    if id == name || id.strip_prefix("sha256:") == Some(name) {
        return true;
    }
    let Ok(full) = name.parse::<Reference>() else {
        return false;
    };
    // A tag beside a digest is dropped, and so both spellings are the same.
    names.any(|known| *known == full.to_string())
}

/// Whether a normalised name begins like this, in full or as people write it.
fn begins(known: &str, start: &str) -> bool {
    let short = known.strip_prefix("docker.io/");
    let shorter = short.and_then(|name| name.strip_prefix("library/"));
    [Some(known), short, shorter]
        .into_iter()
        .flatten()
        .any(|name| name.starts_with(start))
}

/// Whether the image has a tag or digest of the repository that `name` is, without tag and digest:
/// `crictl images REPOSITORY` wants every one of them.
fn is_of_repository(image: &Image, name: &str) -> bool {
    let Ok(wanted) = name.parse::<Reference>() else {
        return false;
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    let names = || image.repo_tags.iter().chain(&image.repo_digests);
    let repository = |known: &String| known.parse::<Reference>().ok().map(|known| known.name());
    !last.contains([':', '@']) && names().any(|known| repository(known) == Some(wanted.name()))
}

/// All images, or those that the filter names: one, or a repository's.
///
/// # Errors
/// When the store cannot be read.
pub(crate) async fn list(
    runtime: &Runtime,
    filter: Option<&v1::ImageFilter>,
) -> Result<Vec<v1::Image>> {
    let wanted = filter
        .and_then(|f| f.image.as_ref())
        .map(|i| i.image.as_str())
        .unwrap_or_default();
    let named = match wanted {
        "" => None,
        wanted => runtime
            .images
            .get(wanted)
            .await
            .map_err(|e| fault(wanted, &e))?,
    };
    let mut images = runtime.images.list().await.map_err(|e| fault(wanted, &e))?;
    if !wanted.is_empty() {
        let named = named.map(|image| image.id);
        images.retain(|image| Some(&image.id) == named.as_ref() || is_of_repository(image, wanted));
    }
    let settings = runtime.config.settings.get();
    let pinned = &settings.images.pinned;
    Ok(images.iter().map(|image| wire(image, pinned)).collect())
}

/// One image; an absent one is an empty answer, not an error.
///
/// # Errors
/// When the reference is malformed or the store cannot be read.
pub(crate) async fn status(
    runtime: &Runtime,
    request: &v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse> {
    let wanted = named(request.image.as_ref())?;
    let found = runtime.images.get(wanted).await;
    let Some(image) = found.map_err(|e| fault(wanted, &e))? else {
        return Ok(v1::ImageStatusResponse::default());
    };
    let mut info = HashMap::new();
    if request.verbose {
        let text = serde_json::to_string(&serde_json::json!({ "imageSpec": image.config }))
            .map_err(|e| Fault::internal("encoding image info", e))?;
        info.insert("info".to_owned(), text);
    }
    Ok(v1::ImageStatusResponse {
        image: Some(wire(&image, &runtime.config.settings.get().images.pinned)),
        info,
    })
}

fn named(spec: Option<&v1::ImageSpec>) -> Result<&str> {
    spec.map(|s| s.image.as_str())
        .filter(|s| !s.is_empty())
        .ok_or_else(|| Fault::invalid("no image is named"))
}

/// Pulls. Ends when the client hangs up, as in containerd; what arrived is kept for its next try, and
/// another request for the same image goes on where this one stopped. No byte for a while fails it
/// too, but not its whole duration.
///
/// # Errors
/// As the registry or the disk has it.
pub(crate) async fn pull(
    runtime: &Arc<Runtime>,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse> {
    let wanted = named(request.image.as_ref())?;
    let reference: Reference = wanted
        .parse()
        .map_err(|e| fault(wanted, &ImageError::from(e)))?;
    let auth = Auth::from_cri(request.auth.as_ref(), reference.domain())
        .map_err(|e| Fault::invalid(e.to_string()))?;
    let stopping = || Fault::new(Kind::Unavailable, "the runtime is stopping");
    let settings = runtime.config.settings.get();
    let options = PullOptions {
        platform: None,
        progress_timeout: settings.images.progress_timeout,
        parallel_layers: settings.images.max_concurrent_downloads,
        credentials: settings.images.auth_file.clone().into_iter().collect(),
    };
    let images = &runtime.images;
    let pull = images.pull_with(wanted, auth, &options, no_progress());
    let image = tokio::select! {
        result = pull => result.map_err(|e| fault(wanted, &e))?,
        () = runtime.stopping.cancelled() => return Err(stopping()),
    };
    Ok(v1::PullImageResponse {
        image_ref: image.id.to_string(),
    })
}

/// Removes an image with all its names. Idempotent.
///
/// # Errors
/// When the store cannot be written.
pub(crate) async fn remove(
    runtime: &Arc<Runtime>,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse> {
    let wanted = named(request.image.as_ref())?.to_owned();
    let runtime_ = runtime.clone();
    runtime
        .detached(async move {
            let failed = |e: ImageError| fault(&wanted, &e);
            // CRI removes the image, not one of its names.
            if let Some(image) = runtime_.images.get(&wanted).await.map_err(failed)? {
                runtime_
                    .images
                    .remove(&image.id.to_string())
                    .await
                    .map_err(failed)?;
            }
            Ok(v1::RemoveImageResponse {})
        })
        .await
}

/// What images and writable layers occupy.
///
/// # Errors
/// When the directories cannot be read.
pub(crate) async fn fs_info(runtime: &Arc<Runtime>) -> Result<v1::ImageFsInfoResponse> {
    let info = runtime.images.fs_info().await.map_err(|e| fault("", &e))?;
    let containers = runtime.paths.containers();
    let usage = runtime.disk_usage.of(&containers).await?;
    let entry = |mountpoint: &std::path::Path, bytes: u64, inodes: u64| v1::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: mountpoint.display().to_string(),
        }),
        used_bytes: Some(v1::UInt64Value { value: bytes }),
        inodes_used: Some(v1::UInt64Value { value: inodes }),
    };
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![entry(&info.mountpoint, info.used_bytes, info.inodes_used)],
        container_filesystems: vec![entry(&containers, usage.bytes, usage.inodes)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn image() -> Image {
        Image {
            id: Digest::of(b"configuration"),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: 0,
            config: Default::default(),
            layers: Vec::new(),
            pinned: false,
        }
    }

    #[test]
    fn a_repository_has_all_of_its_images() {
        let image = Image {
            repo_tags: vec!["docker.io/library/busybox:1.36".to_owned()],
            repo_digests: vec![format!("registry.example:5000/team/app@{DIGEST}")],
            ..image()
        };
        for name in [
            "busybox",
            "docker.io/busybox",
            "registry.example:5000/team/app",
        ] {
            assert!(is_of_repository(&image, name), "{name}");
        }
        for name in [
            "busybox:latest",
            "box",
            "team/app",
            "registry.example:5000/team",
            DIGEST,
        ] {
            assert!(!is_of_repository(&image, name), "{name}");
        }
    }

    #[test]
    fn a_failure_names_the_image_once() {
        let said = fault("x:1", &ImageError::NotFound("x:1".to_owned())).chain();
        assert_eq!(said, "image \"x:1\" not found");
        let said = fault("x:1", &ImageError::Unsupported("no".to_owned())).chain();
        assert_eq!(said, "image \"x:1\": no");
    }

    #[test]
    fn what_is_pinned_is_found_however_it_is_written() {
        let named = |tags: &[&str], name: &str| {
            let image = Image {
                repo_tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
                repo_digests: vec![format!("docker.io/library/busybox@{DIGEST}")],
                ..image()
            };
            is_named(&image, name)
        };
        let tags = ["docker.io/library/busybox:latest"];
        let id = image().id.to_string();
        for name in [
            "busybox",
            "busybox:latest",
            "library/busybox",
            "docker.io/busybox",
            "index.docker.io/library/busybox:latest",
            &format!("busybox@{DIGEST}"),
            &format!("busybox:1@{DIGEST}"),
            &id,
            id.strip_prefix("sha256:").unwrap(),
            "busy*",
            "docker.io/library/busybox:*",
            "library/*",
            "*sybo*",
            "*",
        ] {
            assert!(named(&tags, name), "{name}");
        }
        for name in [
            "busybox:1",
            "example.test/busybox",
            "busybo",
            "box*",
            "*none*",
            "Not A Name",
            "",
            "sha256:",
        ] {
            assert!(!named(&tags, name), "{name}");
        }
        let tags = ["registry.k8s.io/pause:3.10"];
        assert!(named(&tags, "registry.k8s.io/pause*"));
        assert!(!named(&tags, "pause*"));
    }
}
