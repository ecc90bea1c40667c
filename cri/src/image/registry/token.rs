// SPDX-License-Identifier: Apache-2.0
//! Answers to a registry's challenge: a password, or a token that its realm gives for one (the
//! distribution project's token specification, `token.md` and `oauth.md`).

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{RequestBuilder, Url};

use super::super::error::{ErrorKind, ImageError};
use super::super::types::Auth;
use super::challenge::{Challenge, TokenAnswer};
use super::server::Server;

const CLIENT_ID: &str = "podwright";

impl Server {
    /// The header that answers a challenge, or `None` when there is nothing to answer it with.
    pub(super) async fn authorize(
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
        let realm = Url::parse(realm)
            .map_err(|_| unauthorized(format!("the token realm {realm:?} is not a URL")))?;
        // A registry that is reached safely must not make us send a password in the clear.
        if realm.scheme() != "https" && self.endpoint.base.scheme() == "https" {
            return Err(unauthorized(format!(
                "the token realm {realm} is not https"
            )));
        }
        let request = self.token_request(&realm, service, scope);
        let work = async {
            let response = request
                .send()
                .await
                .map_err(|error| self.unreachable(&realm, error))?;
            let response = self.successful(&realm, response).await;
            let response = response.map_err(|error| match error.kind() {
                ErrorKind::RegistryUnavailable | ErrorKind::Unauthorized => error,
                // It is a token that is not there, and not an image.
                _ => unauthorized(format!("no token from {realm}: {}", error.message())),
            })?;
            let bytes = self.bounded(&realm, response).await?;
            serde_json::from_slice::<TokenAnswer>(&bytes)
                .ok()
                .and_then(TokenAnswer::token)
                .ok_or_else(|| unauthorized("the token server's answer has no token".to_owned()))
        };
        self.within(&realm, work).await
    }

    /// An OAuth2 refresh for an identity token; otherwise a GET, with the password if there is one.
    fn token_request(&self, realm: &Url, service: Option<String>, scope: String) -> RequestBuilder {
        let mut realm = realm.clone();
        if let Auth::IdentityToken(refresh) = &self.auth {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", refresh)
                .append_pair("client_id", CLIENT_ID)
                .append_pair("scope", &scope);
            if let Some(service) = &service {
                form.append_pair("service", service);
            }
            return self
                .client
                .post(realm)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.finish());
        }
        realm.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = &service {
            realm.query_pairs_mut().append_pair("service", service);
        }
        let request = self.client.get(realm);
        match &self.auth {
            Auth::Basic { username, password } => request.basic_auth(username, Some(password)),
            _ => request,
        }
    }
}

fn basic(username: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = format!("{username}:{password}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    format!("Basic {encoded}")
}
