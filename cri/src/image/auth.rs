// SPDX-License-Identifier: Apache-2.0
//! From the CRI's `AuthConfig` to [`Auth`], with containerd's precedence.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::types::Auth;
use crate::v1;

/// Why credentials cannot be used. Never shows them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("registry credentials: field auth is not base64")]
    Base64,
    #[error("registry credentials: field auth does not hold user:password")]
    NoColon,
    #[error(
        "registry credentials: none of username, identity_token, registry_token or auth is set"
    )]
    Empty,
}

impl Auth {
    /// Credentials of a `PullImageRequest` for a registry host. As in containerd: credentials whose
    /// `server_address` names another host are left out; then username, identity token, registry
    /// token and `auth` (base64 of `user:password`) are looked at in this order.
    pub fn from_cri(config: Option<&v1::AuthConfig>, host: &str) -> Result<Auth, AuthError> {
        let Some(config) = config else {
            return Ok(Auth::Anonymous);
        };
        if *config == v1::AuthConfig::default() || !address_matches(&config.server_address, host) {
            return Ok(Auth::Anonymous);
        }
        if !config.username.is_empty() {
            return Ok(Auth::Basic {
                username: config.username.clone(),
                password: config.password.clone(),
            });
        }
        if !config.identity_token.is_empty() {
            return Ok(Auth::IdentityToken(config.identity_token.clone()));
        }
        if !config.registry_token.is_empty() {
            return Ok(Auth::RegistryToken(config.registry_token.clone()));
        }
        if config.auth.is_empty() {
            return Err(AuthError::Empty);
        }
        let decoded = STANDARD
            .decode(config.auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or(AuthError::Base64)?;
        let (username, password) = decoded.split_once(':').ok_or(AuthError::NoColon)?;
        Ok(Auth::Basic {
            username: username.to_owned(),
            // Docker pads the value with NUL bytes in some versions.
            password: password.trim_matches('\0').to_owned(),
        })
    }
}

fn address_matches(address: &str, host: &str) -> bool {
    if address.is_empty() {
        return true;
    }
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let address = address.split('/').next().unwrap_or_default();
    let hub = |name: &str| {
        matches!(
            name,
            "docker.io" | "index.docker.io" | "registry-1.docker.io"
        )
    };
    address == host || (hub(address) && hub(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_in_containerds_order() {
        let basic = |username: &str, password: &str| Auth::Basic {
            username: username.into(),
            password: password.into(),
        };
        let mut config = v1::AuthConfig {
            auth: STANDARD.encode("ada:secret:with:colons"),
            ..Default::default()
        };
        let host = "example.com";
        assert_eq!(
            Auth::from_cri(Some(&config), host),
            Ok(basic("ada", "secret:with:colons"))
        );
        config.identity_token = "t".into();
        assert_eq!(
            Auth::from_cri(Some(&config), host),
            Ok(Auth::IdentityToken("t".into()))
        );
        config.username = "bob".into();
        config.password = "p".into();
        assert_eq!(Auth::from_cri(Some(&config), host), Ok(basic("bob", "p")));
        config.server_address = "https://other.example/v1/".into();
        assert_eq!(Auth::from_cri(Some(&config), host), Ok(Auth::Anonymous));
        config.server_address = "https://example.com/v2/".into();
        assert_eq!(Auth::from_cri(Some(&config), host), Ok(basic("bob", "p")));
        assert_eq!(Auth::from_cri(None, host), Ok(Auth::Anonymous));
    }

    #[test]
    fn a_secret_is_never_printed() {
        let auth = Auth::RegistryToken("hunter2".into());
        assert!(!format!("{auth:?}").contains("hunter2"));
    }
}
