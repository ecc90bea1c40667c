// SPDX-License-Identifier: Apache-2.0
//! Kubeconfig files with everything embedded, so that one file can be copied to another machine.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{PkiError, authority::KeyFiles, files};

/// Writes a kubeconfig for `user` with the certificate of `client`, readable by its owner only.
pub(crate) fn write(
    path: &Path,
    server_url: &str,
    ca_pem: &str,
    user: &str,
    client: &KeyFiles,
) -> Result<(), PkiError> {
    let cert = STANDARD.encode(files::read(&client.cert)?);
    let key = STANDARD.encode(files::read(&client.key)?);
    let ca = STANDARD.encode(ca_pem);
    let text = format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: podwright\n\
         \x20 cluster:\n\
         \x20   server: {server_url}\n\
         \x20   certificate-authority-data: {ca}\n\
         contexts:\n\
         - name: podwright\n\
         \x20 context:\n\
         \x20   cluster: podwright\n\
         \x20   user: {user}\n\
         current-context: podwright\n\
         users:\n\
         - name: {user}\n\
         \x20 user:\n\
         \x20   client-certificate-data: {cert}\n\
         \x20   client-key-data: {key}\n"
    );
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    files::write(path, &text, 0o600)
}
