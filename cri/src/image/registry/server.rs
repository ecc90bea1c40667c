// SPDX-License-Identifier: Apache-2.0
//! Requests to one endpoint: authentication, bounds, deadlines, and errors that say what to do.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use tokio::sync::Mutex;

use super::super::digest::Digest;
use super::super::error::{ErrorKind, ImageError};
use super::super::manifest::{ACCEPT as MANIFEST_TYPES, MAX_DOCUMENT};
use super::super::reference::Reference;
use super::super::types::Auth;
use super::challenge::{self, Challenge, TokenAnswer};
use super::dns::SystemResolver;
use super::hosts::Endpoint;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A transfer in which nothing arrives for so long has failed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Manifests, configurations and tokens are small: all of one within this.
const DOCUMENT_DEADLINE: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// Of an error body, so much is shown.
const MAX_REASON: usize = 300;

/// One endpoint, for one repository and one set of credentials.
pub(crate) struct Server {
    endpoint: Endpoint,
    client: Client,
    repository: String,
    auth: Auth,
    /// The header that worked last; made when the registry first asks for one.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Server {
    pub(crate) fn new(
        endpoint: Endpoint,
        reference: &Reference,
        auth: Auth,
    ) -> Result<Server, ImageError> {
        let client = client(&endpoint)?;
        Ok(Server {
            endpoint,
            client,
            repository: reference.path().to_owned(),
            auth,
            authorization: Mutex::new(None),
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A manifest or index by tag or digest. The caller verifies the digest.
    pub(crate) async fn manifest(&self, target: &str) -> Result<Vec<u8>, ImageError> {
        self.document(
            &format!("manifests/{target}"),
            Some(MANIFEST_TYPES.join(", ")),
        )
        .await
    }

    /// A small blob, such as a configuration, read into memory.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        self.document(&format!("blobs/{digest}"), None).await
    }

    /// The response to a request for a blob from byte `offset` on; its status tells (200 or 206)
    /// whether the offset was honoured. Chunks of the body have the idle timeout built in.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Response, ImageError> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let response = self.get(&url, None, offset).await?;
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

    async fn document(&self, path: &str, accept: Option<String>) -> Result<Vec<u8>, ImageError> {
        let url = self.url(path)?;
        let work = async {
            let response = self.get(&url, accept, 0).await?;
            let response = self.successful(&url, response).await?;
            self.bounded(&url, response).await
        };
        self.within(&url, work).await
    }

    async fn within<T>(
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

    async fn bounded(&self, url: &Url, mut response: Response) -> Result<Vec<u8>, ImageError> {
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

    /// One GET; when the registry asks for authentication, once more with it.
    async fn get(
        &self,
        url: &Url,
        accept: Option<String>,
        offset: u64,
    ) -> Result<Response, ImageError> {
        let known = self.authorization.lock().await.clone();
        let response = self.send(url, &accept, offset, known).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
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
        self.send(url, &accept, offset, Some(header)).await
    }

    async fn send(
        &self,
        url: &Url,
        accept: &Option<String>,
        offset: u64,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, ImageError> {
        let mut request = self.client.get(url.clone());
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        request
            .send()
            .await
            .map_err(|error| self.unreachable(url, error))
    }

    fn unreachable(&self, url: &Url, error: reqwest::Error) -> ImageError {
        let reason = if error.is_connect() {
            "cannot connect"
        } else if error.is_timeout() {
            "no answer in time"
        } else {
            "the request failed"
        };
        self.failed(url, ErrorKind::RegistryUnavailable, reason, Some(error))
    }

    /// The header that answers a challenge, or `None` when there is nothing to answer it with.
    async fn authorize(
        &self,
        url: &Url,
        challenge: Challenge,
    ) -> Result<Option<HeaderValue>, ImageError> {
        let text = match (challenge, &self.auth) {
            (_, Auth::RegistryToken(token)) => format!("Bearer {token}"),
            (Challenge::Basic, Auth::Basic { username, password }) => basic(username, password),
            (Challenge::Basic, _) => return Ok(None),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                _,
            ) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                let token = self.token(url, &realm, service, scope).await?;
                format!("Bearer {token}")
            }
        };
        match HeaderValue::from_str(&text) {
            Ok(mut value) => {
                value.set_sensitive(true);
                Ok(Some(value))
            }
            Err(_) => Err(self.failed(
                url,
                ErrorKind::Unauthorized,
                "the credentials cannot stand in a header",
                None,
            )),
        }
    }

    async fn token(
        &self,
        url: &Url,
        realm: &str,
        service: Option<String>,
        scope: String,
    ) -> Result<String, ImageError> {
        let unauthorized = |reason: String| self.failed(url, ErrorKind::Unauthorized, reason, None);
        let mut realm = Url::parse(realm)
            .map_err(|_| unauthorized(format!("the token realm {realm:?} is not a URL")))?;
        // A registry that is reached safely must not make us send a password in the clear.
        if realm.scheme() != "https" && self.endpoint.base.scheme() == "https" {
            return Err(unauthorized(format!(
                "the token realm {realm} is not https"
            )));
        }
        let client_id = "podwright";
        let request = match &self.auth {
            Auth::IdentityToken(refresh) => {
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                form.append_pair("grant_type", "refresh_token")
                    .append_pair("refresh_token", refresh)
                    .append_pair("client_id", client_id)
                    .append_pair("scope", &scope);
                if let Some(service) = &service {
                    form.append_pair("service", service);
                }
                self.client
                    .post(realm.clone())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.finish())
            }
            auth => {
                realm.query_pairs_mut().append_pair("scope", &scope);
                if let Some(service) = &service {
                    realm.query_pairs_mut().append_pair("service", service);
                }
                let request = self.client.get(realm.clone());
                match auth {
                    Auth::Basic { username, password } => {
                        request.basic_auth(username, Some(password))
                    }
                    _ => request,
                }
            }
        };
        let work = async {
            let response = request
                .send()
                .await
                .map_err(|error| self.unreachable(&realm, error))?;
            let response = self.successful(&realm, response).await?;
            let bytes = self.bounded(&realm, response).await?;
            serde_json::from_slice::<TokenAnswer>(&bytes)
                .ok()
                .and_then(TokenAnswer::token)
                .ok_or_else(|| unauthorized("the token server's answer has no token".to_owned()))
        };
        self.within(&realm, work).await
    }

    /// Turns a status that is not success into an error, with the registry's own words.
    async fn successful(&self, url: &Url, mut response: Response) -> Result<Response, ImageError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let kind = match status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Unauthorized,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                ErrorKind::RegistryUnavailable
            }
            status if status.is_server_error() => ErrorKind::RegistryUnavailable,
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
        Err(self.failed(url, kind, reason, None))
    }
}

fn host_of(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

fn basic(username: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = format!("{username}:{password}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    format!("Basic {encoded}")
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

fn client(endpoint: &Endpoint) -> Result<Client, ImageError> {
    let plain = endpoint.base.scheme() == "http";
    let mut builder = Client::builder()
        .user_agent(concat!("podwright/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(IDLE_TIMEOUT)
        .dns_resolver(std::sync::Arc::new(SystemResolver::default()))
        .danger_accept_invalid_certs(endpoint.skip_verify)
        .redirect(redirect::Policy::custom(follow));
    if plain {
        // A machine without any CA certificates can still use a plain registry.
        builder = builder.tls_certs_only([]);
    }
    for path in &endpoint.ca {
        let pem = std::fs::read(path)
            .map_err(|source| ImageError::storage("reading CA certificates from", path, source))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|source| {
            ImageError::Malformed {
                what: format!("CA certificates in {} are not valid", path.display()),
                source: Some(source.into()),
            }
        })?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|source| ImageError::Malformed {
        what: format!(
            "cannot set up TLS for {} (is the package ca-certificates installed?)",
            host_of(&endpoint.base)
        ),
        source: Some(source.into()),
    })
}

/// Follows redirects, but never from https to http: content is verified, tokens in URLs are not.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let downgrade = attempt.url().scheme() != "https"
        && attempt
            .previous()
            .last()
            .is_some_and(|url| url.scheme() == "https");
    if downgrade {
        return attempt.error("redirected from https to http");
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("redirected too often");
    }
    attempt.follow()
}
