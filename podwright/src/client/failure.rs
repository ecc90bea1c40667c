// SPDX-License-Identifier: Apache-2.0
//! Errors as kubectl prints them, and the exit code that goes with them.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

/// Requests that are not meant to stay open end after this long.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// How a command ends.
pub(crate) type Outcome = anyhow::Result<()>;

/// The remote process ended with this code; there is nothing more to say.
#[derive(Debug)]
pub(crate) struct ExitWith(pub(crate) u8);

impl fmt::Display for ExitWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command terminated with exit code {}", self.0)
    }
}

impl std::error::Error for ExitWith {}

/// Problems that are complete lines already.
#[derive(Debug)]
pub(crate) struct Lines(pub(crate) String);

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lines {}

/// Prints the failure, if it is one, and gives the exit code: 1, or that of the remote process.
pub(crate) fn exit_code(result: Outcome) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    // Whoever read our output has seen enough.
    if error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    {
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "{}", text(&error));
    match error.downcast_ref::<ExitWith>() {
        Some(ExitWith(code)) => ExitCode::from(*code),
        None => ExitCode::FAILURE,
    }
}

/// The line for an error.
pub(crate) fn text(error: &anyhow::Error) -> String {
    if let Some(kube::Error::Api(status)) = error.downcast_ref::<kube::Error>() {
        if status.reason.is_empty() {
            return format!("Error from server: {}", status.message);
        }
        return format!("Error from server ({}): {}", status.reason, status.message);
    }
    if error.is::<Lines>() || error.is::<ExitWith>() {
        return error.to_string();
    }
    // Every level that adds something; some layers repeat the text of their cause.
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Bounds a request that answers at once.
///
/// # Errors
/// Those of the request, or that the server did not answer in time.
pub(crate) async fn answer<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(result) => Ok(result?),
        Err(_) => anyhow::bail!("the server did not answer within {REQUEST_DEADLINE:?}"),
    }
}

/// Writes a line to stdout.
///
/// # Errors
/// When nobody reads any more.
pub(crate) fn say(line: impl fmt::Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// Writes a line to stderr. There is nobody to tell if that fails.
pub(crate) fn warn(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// True for "there is no such object".
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    has_code(error, 404)
}

/// True for an answer with this HTTP status.
pub(crate) fn has_code(error: &anyhow::Error, code: u16) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == code)
}
