// SPDX-License-Identifier: Apache-2.0
//! Paths that are not resources: health, version, discovery, OpenAPI.

use http::Response;
use serde_json::json;

use super::{api::Api, body::Body, discovery, error::ApiError, openapi, present};

/// Kubernetes version whose API is served.
const MAJOR: &str = "1";
const MINOR: &str = "37";

/// What anybody may ask: health and version.
pub(crate) fn public(api: &Api, path: &str) -> Option<Response<Body>> {
    match path {
        "/healthz" | "/healthz/ping" | "/livez" | "/livez/ping" => {
            Some(present::typed(200, "text/plain; charset=utf-8", "ok"))
        }
        "/readyz" if api.is_ready() && !api.stop.is_cancelled() => {
            Some(present::typed(200, "text/plain; charset=utf-8", "ok"))
        }
        "/readyz" => Some(present::typed(
            500,
            "text/plain; charset=utf-8",
            "[-]server is starting or stopping\nreadyz check failed\n",
        )),
        "/version" | "/version/" => Some(version(api)),
        _ => None,
    }
}

fn version(api: &Api) -> Response<Body> {
    present::value(
        200,
        &json!({
            "major": MAJOR,
            "minor": MINOR,
            "gitVersion": format!("v{MAJOR}.{MINOR}.0+podwright-{}", api.server_version),
            "gitCommit": "",
            "gitTreeState": "",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "none",
            "compiler": "rustc",
            "platform": format!("linux/{}", platform()),
        }),
    )
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Everything else that is not a resource.
pub(crate) fn answer(_api: &Api, path: &str, accept: &str) -> Result<Response<Body>, ApiError> {
    let parts: Vec<_> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        [] => Ok(discovery::root()),
        ["api"] => Ok(discovery::core(accept)),
        ["apis"] => Ok(discovery::groups(accept)),
        ["apis", group] => discovery::group(group),
        ["api", version] => discovery::resources("", version),
        ["apis", group, version] => discovery::resources(group, version),
        ["openapi", "v2"] => Ok(openapi::version_2(accept)),
        ["openapi", "v3"] => Ok(openapi::index()),
        ["openapi", "v3", "api", version] => openapi::document("", version),
        ["openapi", "v3", "apis", group, version] => openapi::document(group, version),
        _ => Err(ApiError::no_such_path()),
    }
}
