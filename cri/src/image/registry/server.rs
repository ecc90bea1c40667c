// SPDX-License-Identifier: Apache-2.0
//! Requests to one endpoint: authentication, redirects, bounds, deadlines, retries, and errors that
//! say what to do.

use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::super::digest::Digest;
use super::super::error::{ErrorKind, ImageError};
use super::super::manifest::{ACCEPT as MANIFEST_TYPES, MAX_DOCUMENT};
use super::super::reference::Reference;
use super::super::types::{Auth, pause};
use super::challenge;
use super::client::{client, host_of};
use super::hosts::Endpoint;

/// Manifests, configurations and tokens are small: all of one within this.
const DOCUMENT_DEADLINE: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// A request that the registry is too busy for is made so often, and not later than this.
const ATTEMPTS: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Of an error body, so much is shown.
const MAX_REASON: usize = 300;

/// One endpoint, for one repository and one set of credentials.
pub(crate) struct Server {
    pub(super) endpoint: Endpoint,
    pub(super) client: Client,
    /// As it is called here.
    pub(super) repository: String,
    pub(super) auth: Auth,
    /// The header that worked last; made when the registry first asks for one.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Server {
    /// `idle`: a transfer in which nothing arrives for so long has failed.
    pub(crate) fn new(
        endpoint: Endpoint,
        reference: &Reference,
        auth: Auth,
        idle: Duration,
    ) -> Result<Server, ImageError> {
        Ok(Server {
            client: client(&endpoint, idle)?,
            repository: endpoint.repository(reference.path()),
            endpoint,
            auth,
            authorization: Mutex::new(None),
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The digest that the registry has for a tag or digest, if it says so; asks for no content, so
    /// it counts towards no limit on pulls.
    pub(crate) async fn head(&self, target: &str) -> Result<Option<Digest>, ImageError> {
        let url = self.url(&format!("manifests/{target}"))?;
        let headers = accepting_manifests();
        let work = async {
            let response = self.ask(Method::HEAD, &url, &headers).await?;
            self.successful(&url, response).await
        };
        let response = self.within(&url, work).await?;
        let named = response.headers().get("docker-content-digest");
        Ok(named.and_then(|value| value.to_str().ok()?.parse().ok()))
    }

    /// A manifest or index by tag or digest. The caller verifies the digest.
    pub(crate) async fn manifest(&self, target: &str) -> Result<Vec<u8>, ImageError> {
        let headers = accepting_manifests();
        self.document(&format!("manifests/{target}"), &headers)
            .await
    }

    /// A small blob, such as a configuration, read into memory.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        self.document(&format!("blobs/{digest}"), &HeaderMap::new())
            .await
    }

    /// The response to a request for a blob from byte `offset` on; its status tells (200 or 206)
    /// whether the offset was honoured. Chunks of the body have the idle timeout built in.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Response, ImageError> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = format!("bytes={offset}-");
            headers.insert(RANGE, HeaderValue::from_str(&range).expect("digits"));
        }
        let response = self.ask(Method::GET, &url, &headers).await?;
        self.successful(&url, response).await
    }

    /// An error about this endpoint.
    pub(crate) fn failed(
        &self,
        url: &Url,
        kind: ErrorKind,
        reason: impl Into<String>,
        source: Option<reqwest::Error>,
    ) -> ImageError {
        ImageError::Registry {
            registry: host_of(&self.endpoint.base),
            url: url.path().to_owned(),
            kind,
            reason: reason.into(),
            retry_after: None,
            // The URL is in the text already, and may carry a signature.
            source: source.map(|error| error.without_url().into()),
        }
    }

    pub(crate) fn url(&self, path: &str) -> Result<Url, ImageError> {
        let text = format!("{}/{}/{path}", self.endpoint.base, self.repository);
        let mut url = Url::parse(&text)
            .map_err(|_| ImageError::malformed(format!("{text:?} is not a URL")))?;
        if let Some(namespace) = &self.endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    async fn document(&self, path: &str, headers: &HeaderMap) -> Result<Vec<u8>, ImageError> {
        let url = self.url(path)?;
        let work = async {
            let response = self.ask(Method::GET, &url, headers).await?;
            let response = self.successful(&url, response).await?;
            self.bounded(&url, response).await
        };
        self.within(&url, work).await
    }

    pub(super) async fn within<T>(
        &self,
        url: &Url,
        work: impl Future<Output = Result<T, ImageError>>,
    ) -> Result<T, ImageError> {
        match tokio::time::timeout(DOCUMENT_DEADLINE, work).await {
            Ok(result) => result,
            Err(_) => {
                let reason = format!("no answer within {DOCUMENT_DEADLINE:?}");
                Err(self.failed(url, ErrorKind::RegistryUnavailable, reason, None))
            }
        }
    }

    pub(super) async fn bounded(
        &self,
        url: &Url,
        mut response: Response,
    ) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        loop {
            let chunk = response.chunk().await.map_err(|error| {
                self.failed(
                    url,
                    ErrorKind::RegistryUnavailable,
                    "the transfer broke off",
                    Some(error),
                )
            })?;
            match chunk {
                None => return Ok(bytes),
                Some(chunk) => bytes.extend_from_slice(&chunk),
            }
            if bytes.len() as u64 > MAX_DOCUMENT {
                let reason = format!("larger than the limit of {MAX_DOCUMENT} bytes");
                return Err(self.failed(url, ErrorKind::BadContent, reason, None));
            }
        }
    }

    /// One request, made again when the registry says that it is busy.
    async fn ask(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response, ImageError> {
        for attempt in 1.. {
            let response = self.ask_once(&method, url, headers).await?;
            let wait = retry_after(response.headers()).unwrap_or_else(|| pause(attempt));
            if attempt == ATTEMPTS || !is_busy(response.status()) || wait > LONGEST_PAUSE {
                return Ok(response);
            }
            tracing::debug!(%url, status = %response.status(), ?wait, "the registry is busy");
            tokio::time::sleep(wait).await;
        }
        unreachable!("the last attempt returns")
    }

    /// When the registry asks for authentication, once more with it.
    async fn ask_once(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response, ImageError> {
        let known = self.authorization.lock().await.clone();
        let (response, ours) = self.follow(method, url, headers, known).await?;
        // Only the registry itself is told credentials, not whom it redirects to.
        if response.status() != StatusCode::UNAUTHORIZED || !ours {
            return Ok(response);
        }
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenge::parse(challenges.iter().filter_map(|v| v.to_str().ok()));
        let Some(challenge) = challenge else {
            return Ok(response);
        };
        let Some(header) = self.authorize(url, challenge).await? else {
            return Ok(response);
        };
        *self.authorization.lock().await = Some(header.clone());
        let (response, _) = self.follow(method, url, headers, Some(header)).await?;
        Ok(response)
    }

    /// Sends a request and follows redirects. Credentials and configured headers go to this endpoint
    /// only: blob stores elsewhere get the bare request. True when this endpoint itself answered.
    async fn follow(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> Result<(Response, bool), ImageError> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let ours = at.origin() == self.endpoint.base.origin();
            let mut request = self.client.request(method.clone(), at.clone());
            if ours {
                request = request.headers(self.endpoint.headers.clone());
                if let Some(value) = &authorization {
                    request = request.header(AUTHORIZATION, value.clone());
                }
            }
            let sent = request.headers(headers.clone()).send().await;
            let response = sent.map_err(|error| self.unreachable(url, error))?;
            match response.headers().get(LOCATION) {
                Some(location) if response.status().is_redirection() => {
                    at = self.redirected(url, &at, location)?;
                }
                _ => return Ok((response, ours)),
            }
        }
        let reason = format!("redirected more than {MAX_REDIRECTS} times");
        Err(self.failed(url, ErrorKind::RegistryUnavailable, reason, None))
    }

    /// Never from https to http: content is verified, tokens in URLs are not.
    fn redirected(&self, url: &Url, from: &Url, location: &HeaderValue) -> Result<Url, ImageError> {
        let next = location.to_str().ok().and_then(|to| from.join(to).ok());
        let refused = |reason| Err(self.failed(url, ErrorKind::RegistryUnavailable, reason, None));
        match next {
            Some(next) if !matches!(next.scheme(), "http" | "https") => {
                refused("redirected to what is not a web address")
            }
            Some(next) if from.scheme() == "https" && next.scheme() != "https" => {
                refused("redirected from https to http")
            }
            Some(next) => Ok(next),
            None => refused("redirected to what is not a URL"),
        }
    }

    pub(super) fn unreachable(&self, url: &Url, error: reqwest::Error) -> ImageError {
        let reason = if error.is_connect() {
            "cannot connect"
        } else if error.is_timeout() {
            "no answer in time"
        } else {
            "the request failed"
        };
        self.failed(url, ErrorKind::RegistryUnavailable, reason, Some(error))
    }

    /// Turns a status that is not success into an error, with the registry's own words.
    pub(super) async fn successful(
        &self,
        url: &Url,
        mut response: Response,
    ) -> Result<Response, ImageError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait = retry_after(response.headers());
        let kind = match status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Unauthorized,
            status if is_busy(status) || status.is_server_error() => ErrorKind::RegistryUnavailable,
            _ => ErrorKind::BadContent,
        };
        let said = match response.chunk().await {
            Ok(Some(chunk)) => words(&chunk),
            _ => None,
        };
        let reason = match (kind, said) {
            (ErrorKind::NotFound, None) => "not found".to_owned(),
            (ErrorKind::NotFound, Some(said)) => format!("not found ({said})"),
            (ErrorKind::Unauthorized, said) => format!(
                "pull access denied, the repository does not exist or needs other credentials ({})",
                said.unwrap_or_else(|| status.to_string())
            ),
            (_, said) => match said {
                Some(said) => format!("{status} ({said})"),
                None => status.to_string(),
            },
        };
        let reason = match wait {
            Some(wait) => format!("{reason}, to be tried again in {} s", wait.as_secs()),
            None => reason,
        };
        let mut error = self.failed(url, kind, reason, None);
        if let ImageError::Registry { retry_after, .. } = &mut error {
            *retry_after = wait;
        }
        Err(error)
    }
}

fn accepting_manifests() -> HeaderMap {
    let types = MANIFEST_TYPES.join(", ");
    let value = HeaderValue::from_str(&types).expect("media types are ASCII");
    HeaderMap::from_iter([(ACCEPT, value)] as [(HeaderName, HeaderValue); 1])
}

/// Statuses that another attempt may change, as containerd sees them.
fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::INTERNAL_SERVER_ERROR
    )
}

/// `Retry-After` (RFC 9110, section 10.2.3), in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(at.duration_since(jiff::Timestamp::now())).ok()
}

/// The message of an error body (`{"errors":[{"code":…,"message":…}]}`), made safe to print.
fn words(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        code: Option<String>,
        message: Option<String>,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let first = errors.errors.into_iter().next()?;
    let text = first.message.filter(|m| !m.is_empty()).or(first.code)?;
    let printable = |c: &char| !c.is_control();
    Some(text.chars().filter(printable).take(MAX_REASON).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_or_date() {
        let of = |text: &str| {
            let value = HeaderValue::from_str(text).unwrap();
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]))
        };
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        assert_eq!(of("soon"), None);
        let past = "Fri, 31 Dec 1999 23:59:59 GMT";
        assert_eq!(of(past), None);
        let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(100);
        let text = later.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let wait = of(&text).unwrap();
        assert!(wait > Duration::from_secs(90) && wait <= Duration::from_secs(100));
    }
}
