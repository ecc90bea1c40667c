// SPDX-License-Identifier: Apache-2.0
//! Platforms: which of an index's images fits a machine. No I/O.
//!
//! Names and their order of preference are those of containerd's `platforms` package; besides, an
//! amd64 image for a higher level of the processor (`v2` to `v4`, the psABI's microarchitecture
//! levels) is preferred where this processor has that level.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// `os/architecture[/variant]` in Go's words, normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// Why a text names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform of the form os/architecture[/variant]")]
pub struct PlatformError(String);

impl Platform {
    /// What this machine runs, with the level of its processor.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: host_variant().map(str::to_owned),
        }
        .normalized()
    }

    /// Other spellings of the same, and variants that are the default anyway.
    fn normalized(mut self) -> Platform {
        self.os.make_ascii_lowercase();
        self.architecture.make_ascii_lowercase();
        let variant = self.variant.take().filter(|variant| !variant.is_empty());
        let variant = variant.map(|variant| match variant.as_bytes()[0] {
            b'0'..=b'9' => format!("v{}", variant.to_ascii_lowercase()),
            _ => variant.to_ascii_lowercase(),
        });
        let (architecture, variant) = match (self.architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", Some("v1") | None) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", Some(_)) => ("amd64", variant),
            ("i386" | "i686", _) => ("386", None),
            ("aarch64" | "arm64", Some("v8" | "v8.0") | None) => ("arm64", None),
            ("aarch64" | "arm64", Some(_)) => ("arm64", variant),
            ("armhf", _) => ("arm", Some("v7".to_owned())),
            ("armel", _) => ("arm", Some("v6".to_owned())),
            ("arm", None) => ("arm", Some("v7".to_owned())),
            (other, _) => (other, variant),
        };
        Platform {
            os: self.os,
            architecture: architecture.to_owned(),
            variant,
        }
    }

    /// What runs on this platform, the best first.
    fn runs(&self) -> Vec<(&'static str, Option<String>)> {
        let arm = |from: u32| {
            (5..=from)
                .rev()
                .map(|level| ("arm", Some(format!("v{level}"))))
        };
        match self.architecture.as_str() {
            "amd64" => {
                let mut all: Vec<_> = (2..=level(&self.variant).unwrap_or(1).min(4))
                    .rev()
                    .map(|level| ("amd64", Some(format!("v{level}"))))
                    .collect();
                all.extend([("amd64", None), ("386", None)]);
                all
            }
            "arm64" => {
                let mut all = Vec::new();
                if self.variant.is_some() {
                    all.push(("arm64", self.variant.clone()));
                }
                all.push(("arm64", None));
                all.extend(arm(8));
                all
            }
            "arm" => arm(level(&self.variant).unwrap_or(7).min(8)).collect(),
            _ => Vec::new(),
        }
    }

    /// How well an image for `offered` fits: the lower the better, `None` if it does not run here.
    pub(crate) fn rank(&self, offered: &Platform) -> Option<usize> {
        let offered = offered.clone().normalized();
        if offered.os != self.os {
            return None;
        }
        let runs = self.runs();
        if runs.is_empty() {
            return (offered == *self).then_some(0);
        }
        runs.iter().position(|(architecture, variant)| {
            offered.architecture == *architecture && offered.variant == *variant
        })
    }

    /// Whether an image whose configuration says this may run. What is not said is not held against it.
    pub(crate) fn takes(&self, os: &str, architecture: &str) -> bool {
        let named = Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
        .normalized();
        let known = self.runs();
        (os.is_empty() || named.os == self.os)
            && (architecture.is_empty()
                || named.architecture == self.architecture
                || known.iter().any(|(other, _)| named.architecture == *other))
    }
}

fn level(variant: &Option<String>) -> Option<u32> {
    variant.as_deref()?.strip_prefix('v')?.parse().ok()
}

#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    let v2 = is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("cmpxchg16b");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => Some("v4"),
        (_, true, _) => Some("v3"),
        (true, ..) => Some("v2"),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<&'static str> {
    None
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let bad = || PlatformError(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(word) {
            return Err(bad());
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(bad()),
        };
        Ok(Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        }
        .normalized())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(wanted: &str, offered: &str) -> Option<usize> {
        let wanted: Platform = wanted.parse().unwrap();
        wanted.rank(&offered.parse().unwrap())
    }

    #[test]
    fn the_highest_level_that_the_processor_has_comes_first() {
        assert_eq!(rank("linux/amd64/v3", "linux/amd64/v3"), Some(0));
        assert_eq!(rank("linux/amd64/v3", "linux/amd64/v2"), Some(1));
        assert_eq!(rank("linux/amd64/v3", "linux/x86_64"), Some(2));
        assert_eq!(rank("linux/amd64/v3", "linux/386"), Some(3));
        assert_eq!(rank("linux/amd64/v3", "linux/amd64/v4"), None);
        assert_eq!(rank("linux/amd64", "linux/amd64/v2"), None);
        assert_eq!(rank("linux/amd64", "linux/amd64/v1"), Some(0));
    }

    #[test]
    fn a_normal_form_is_its_own() {
        for text in ["linux/ARM/7A", "Linux/X86_64/1", "linux/other/9Xy"] {
            let platform: Platform = text.parse().unwrap();
            assert_eq!(platform.to_string().parse(), Ok(platform), "{text}");
        }
    }

    #[test]
    fn arm_runs_what_is_older() {
        assert_eq!(rank("linux/arm64", "linux/arm64/v8"), Some(0));
        assert!(rank("linux/arm64", "linux/arm/v7") > rank("linux/arm64", "linux/arm/v8"));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(rank("linux/arm/7", "linux/armhf"), Some(0));
        assert_eq!(rank("linux/s390x", "linux/s390x"), Some(0));
        assert_eq!(rank("linux/s390x", "linux/amd64"), None);
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
    }

    #[test]
    fn platforms_are_read_and_written() {
        for (text, is) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/AArch64/v8", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), is);
        }
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/am d64", "/amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert!(Platform::host().rank(&Platform::host()).is_some());
        assert!(Platform::host().takes("linux", ""));
    }
}
