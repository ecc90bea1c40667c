// SPDX-License-Identifier: Apache-2.0
//! One layer from the registry to its [`Intake`]: going on after broken transfers, on the next server
//! when one fails for good, and from the beginning when what came is wrong.

use std::sync::Arc;

use reqwest::{Response, StatusCode};

use super::error::{ErrorKind, ImageError};
use super::intake::{Intake, Wanted};
use super::registry::Server;
use super::types::{Progress, ProgressFn, pause};

/// Attempts in a row that bring nothing worth mentioning, before a server is given up.
const ATTEMPTS: u32 = 4;
/// What is worth mentioning: attempts are bounded by the size of the blob divided by this.
const WORTHWHILE: u64 = 1 << 20;

pub(crate) fn nobody_pulls() -> ImageError {
    ImageError::malformed("no host configured for the registry may pull")
}

/// Takes a layer in. Dropping this stops it; what came so far is kept for another attempt.
pub(crate) async fn download(
    servers: &[Arc<Server>],
    wanted: &Wanted,
    progress: &ProgressFn,
) -> Result<(), ImageError> {
    let mut last = None;
    for server in servers {
        match from(server, wanted, progress).await {
            Ok(()) => return Ok(()),
            // This machine's disk is no better with another server.
            Err(error) if error.kind() == ErrorKind::Storage => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(nobody_pulls))
}

/// From one server. When what an earlier attempt left turns out to be wrong, once more without it.
async fn from(server: &Server, wanted: &Wanted, progress: &ProgressFn) -> Result<(), ImageError> {
    let begun = Intake::begin(wanted.clone(), false).await?;
    let resumed = begun.begun > 0;
    let result = fill(begun, server, wanted, progress).await;
    match result {
        Err(error) if resumed && error.kind() == ErrorKind::BadContent => {
            let anew = Intake::begin(wanted.clone(), true).await?;
            fill(anew, server, wanted, progress).await
        }
        result => result,
    }
}

async fn fill(
    intake: Intake,
    server: &Server,
    wanted: &Wanted,
    progress: &ProgressFn,
) -> Result<(), ImageError> {
    let mut transfer = Transfer {
        done: intake.begun,
        intake,
        wanted,
        progress,
    };
    match transfer.run(server).await {
        Ok(()) => {
            progress(Progress::Unpacking {
                layer: wanted.blob.digest.clone(),
            });
            transfer.intake.finish().await
        }
        Err(error) => {
            transfer.intake.stop().await;
            Err(error)
        }
    }
}

struct Transfer<'a> {
    intake: Intake,
    /// Bytes taken in so far.
    done: u64,
    wanted: &'a Wanted,
    progress: &'a ProgressFn,
}

impl Transfer<'_> {
    async fn run(&mut self, server: &Server) -> Result<(), ImageError> {
        let (mut failures, mut mark) = (0, self.done);
        loop {
            let error = match self.attempt(server).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if self.done >= mark.saturating_add(WORTHWHILE) {
                (failures, mark) = (0, self.done);
            }
            failures += 1;
            if failures >= ATTEMPTS || error.kind() != ErrorKind::RegistryUnavailable {
                return Err(error);
            }
            let layer = &self.wanted.blob.digest;
            tracing::debug!(%layer, done = self.done, error = %error.message(), "transfer broke off");
            tokio::time::sleep(pause(failures)).await;
        }
    }

    /// Reads until the end of the blob, or until the transfer breaks off.
    async fn attempt(&mut self, server: &Server) -> Result<(), ImageError> {
        let wanted = &self.wanted.blob;
        if self.done >= wanted.size && self.done > 0 {
            return Ok(());
        }
        let mut response = server.blob(&wanted.digest, self.done).await?;
        let mut known = match response.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            // The server sends all of it again: what is here already is passed over.
            _ => self.done,
        };
        while let Some(mut chunk) = self.chunk(server, &mut response).await? {
            let skip = known.min(chunk.len() as u64);
            known -= skip;
            drop(chunk.split_to(usize::try_from(skip).unwrap_or(usize::MAX)));
            if chunk.is_empty() {
                continue;
            }
            self.done = self.done.saturating_add(chunk.len() as u64);
            // When it is too long there is no use in reading on; and when the work has failed, it
            // says why when it is finished.
            if !self.intake.chunk(chunk).await || self.done > wanted.size {
                return Ok(());
            }
            (self.progress)(Progress::Downloading {
                layer: wanted.digest.clone(),
                done: self.done,
                total: wanted.size,
            });
        }
        Ok(())
    }

    async fn chunk(
        &self,
        server: &Server,
        response: &mut Response,
    ) -> Result<Option<bytes::Bytes>, ImageError> {
        let wanted = &self.wanted.blob;
        match response.chunk().await {
            Ok(chunk) => Ok(chunk),
            Err(error) => Err(server.failed(
                &server.url(&format!("blobs/{}", wanted.digest))?,
                ErrorKind::RegistryUnavailable,
                format!(
                    "the transfer broke off after {} of {} bytes",
                    self.done, wanted.size
                ),
                Some(error),
            )),
        }
    }
}
