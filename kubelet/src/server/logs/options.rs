// SPDX-License-Identifier: Apache-2.0
//! What a reader of logs asks for: the fields of PodLogOptions, out of a query.

use jiff::{SignedDuration, Timestamp};

/// Which stream of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum StreamFilter {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// Checked options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::server) struct LogOptions {
    pub(in crate::server) follow: bool,
    pub(in crate::server) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail_lines: Option<u64>,
    pub(super) limit_bytes: Option<u64>,
    pub(super) since: Option<Timestamp>,
    pub(super) stream: StreamFilter,
}

/// Upstream's two answers to a bad query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum OptionsError {
    /// 400.
    #[error("{{\"message\": \"Unable to decode query.\"}}")]
    Undecodable,
    /// 422.
    #[error("{{\"message\": \"Invalid request.\"}}")]
    Invalid,
}

impl LogOptions {
    /// Reads a query. Unknown names are ignored, as the API does.
    pub(in crate::server) fn parse(
        query: &[(String, String)],
        now: Timestamp,
    ) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        let mut sinces = 0;
        for (name, value) in query {
            match name.as_str() {
                "follow" => options.follow = boolean(value),
                "previous" => options.previous = boolean(value),
                "timestamps" => options.timestamps = boolean(value),
                "tailLines" => options.tail_lines = Some(at_least(value, 0)?),
                "limitBytes" => options.limit_bytes = Some(at_least(value, 1)?),
                "sinceSeconds" => {
                    let seconds = i64::try_from(at_least(value, 1)?).unwrap_or(i64::MAX);
                    let back = SignedDuration::from_secs(seconds);
                    options.since = Some(now.checked_sub(back).unwrap_or(Timestamp::MIN));
                    sinces += 1;
                }
                "sinceTime" if value.is_empty() => {}
                "sinceTime" => {
                    let time = value.parse().map_err(|_| OptionsError::Undecodable)?;
                    options.since = Some(time);
                    sinces += 1;
                }
                "stream" => options.stream = stream(value)?,
                _ => {}
            }
        }
        // Upstream can't tell which of the lines at the end belong to one stream either.
        let split = options.stream != StreamFilter::All && options.tail_lines.is_some();
        if sinces > 1 || split {
            return Err(OptionsError::Invalid);
        }
        Ok(options)
    }
}

/// The API's rule for flags in a query: present means true, unless it says `false` or `0`.
fn boolean(value: &str) -> bool {
    !matches!(value, "false" | "0")
}

fn at_least(value: &str, least: i64) -> Result<u64, OptionsError> {
    let number: i64 = value.parse().map_err(|_| OptionsError::Undecodable)?;
    if number < least {
        return Err(OptionsError::Invalid);
    }
    u64::try_from(number).map_err(|_| OptionsError::Invalid)
}

fn stream(value: &str) -> Result<StreamFilter, OptionsError> {
    match value {
        "" | "All" => Ok(StreamFilter::All),
        "Stdout" => Ok(StreamFilter::Stdout),
        "Stderr" => Ok(StreamFilter::Stderr),
        _ => Err(OptionsError::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &[(&str, &str)]) -> Result<LogOptions, OptionsError> {
        let query: Vec<_> = query
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        LogOptions::parse(&query, Timestamp::from_second(1000).expect("a time"))
    }

    #[test]
    fn every_option_is_read() {
        let at = |second| Timestamp::from_second(second).ok();
        let options = parse(&[
            ("follow", "true"),
            ("previous", ""),
            ("timestamps", "false"),
            ("tailLines", "0"),
            ("limitBytes", "10"),
            ("sinceSeconds", "60"),
            ("insecureSkipTLSVerifyBackend", "true"),
        ])
        .expect("valid");
        assert!(options.follow && options.previous && !options.timestamps);
        assert_eq!(
            (options.tail_lines, options.limit_bytes),
            (Some(0), Some(10))
        );
        assert_eq!(options.since, at(940));
        let options = parse(&[("sinceTime", "1970-01-01T00:01:00Z")]).expect("valid");
        assert_eq!(options.since, at(60));
    }

    #[test]
    fn bad_values_are_refused_as_upstream_does() {
        use OptionsError::{Invalid, Undecodable};
        for (query, want) in [
            (vec![("tailLines", "x")], Undecodable),
            (vec![("tailLines", "-1")], Invalid),
            (vec![("limitBytes", "0")], Invalid),
            (vec![("sinceSeconds", "0")], Invalid),
            (vec![("sinceTime", "yesterday")], Undecodable),
            (
                vec![("sinceSeconds", "1"), ("sinceTime", "1970-01-01T00:01:00Z")],
                Invalid,
            ),
            (vec![("stream", "Both")], Invalid),
            (vec![("stream", "Stdout"), ("tailLines", "1")], Invalid),
        ] {
            assert_eq!(parse(&query), Err(want), "{query:?}");
        }
        assert_eq!(Invalid.to_string(), r#"{"message": "Invalid request."}"#);
    }
}
