// SPDX-License-Identifier: Apache-2.0
//! Platforms: what an image is made for, and what a machine runs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::text::shown;

/// Operating system and processor, such as `linux/arm64/v8`, in the words of OCI.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Architecture of the processor: `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// Variant of the architecture, such as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no platform; write `linux/amd64` or `linux/arm64`")]
pub struct PlatformError(String);

impl Platform {
    /// Makes the platform of Linux on an architecture.
    pub fn linux(architecture: &str) -> Self {
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Returns the platform of this machine.
    pub fn of_this_machine() -> Self {
        Self::linux(usual(std::env::consts::ARCH))
    }

    /// Returns how new a variant an image for this platform needs, `None` if it does not run on a machine.
    pub(crate) fn suits(&self, machine: &Self) -> Option<u32> {
        let same = self.os == machine.os && usual(&self.architecture) == usual(&machine.architecture);
        let (needed, most) = (self.level()?, machine.level()?);
        (same && needed <= most).then_some(needed)
    }

    /// Returns the number of the variant: machines of a higher one run images of a lower one.
    fn level(&self) -> Option<u32> {
        match self.variant.as_deref().unwrap_or_default() {
            "" if usual(&self.architecture) == "arm64" => Some(8),
            "" => Some(1),
            variant => variant.trim_start_matches('v').split('.').next()?.parse().ok(),
        }
    }
}

/// Returns the usual name of an architecture that has several.
fn usual(architecture: &str) -> &str {
    match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |text: &str| if text.is_empty() { "unknown".to_owned() } else { shown(text.as_bytes()) };
        write!(f, "{}/{}", told(&self.os), told(&self.architecture))?;
        match &self.variant {
            Some(variant) => write!(f, "/{}", shown(variant.as_bytes())),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let plain = |part: &&str| !part.is_empty() && part.bytes().all(usual);
        match parts[..] {
            [os, architecture] | [os, architecture, _] if parts.iter().all(plain) => Ok(Self {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: parts.get(2).map(|&variant| variant.to_owned()),
            }),
            _ => Err(PlatformError(shown(text.as_bytes()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_runs_its_architecture_up_to_its_variant() {
        let suits = [
            ("linux/amd64", "linux/amd64", Some(1)),
            ("linux/x86_64", "linux/amd64", Some(1)),
            ("linux/amd64/v2", "linux/amd64", None),
            ("linux/amd64/v2", "linux/amd64/v3", Some(2)),
            ("linux/arm64", "linux/arm64", Some(8)),
            ("linux/arm64/v8", "linux/arm64", Some(8)),
            ("linux/arm64/v9", "linux/arm64", None),
            ("linux/arm/v7", "linux/arm64", None),
            ("windows/amd64", "linux/amd64", None),
            ("linux/arm64", "linux/amd64", None),
        ];
        for (image, machine, expected) in suits {
            let [image, machine] = [image, machine].map(|text| text.parse::<Platform>().unwrap());
            assert_eq!(image.suits(&machine), expected, "{image} on {machine}");
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "linux/amd64/v1/x", "linux/a b"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        assert_eq!("linux/arm64/v8".parse::<Platform>().unwrap().to_string(), "linux/arm64/v8");
    }
}
