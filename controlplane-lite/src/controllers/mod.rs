// SPDX-License-Identifier: Apache-2.0
//! The controllers, as clients of the API.

use tokio_util::sync::CancellationToken;

/// Why the controllers ended by themselves.
#[derive(Debug, thiserror::Error)]
#[error("the controllers are not implemented yet")]
pub struct Error;

/// Runs until `stop` is cancelled.
///
/// # Errors
/// Always, in this build.
pub async fn run(
    _client: kube::Client,
    _config: crate::Config,
    _stop: CancellationToken,
) -> Result<(), Error> {
    Err(Error)
}
