// SPDX-License-Identifier: Apache-2.0
//! Manifest of a generation: what it was made with, and the checksums of its files.
//!
//! The file is one line of JSON and one with the XXH3 of the first, so that any changed byte is noticed. Fields
//! that are added have defaults; a format that older releases must not read has a new version.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{BuildId, Layout, MemoryError, Sums};

/// Version that is written, the newest that is read.
const FORMAT: u32 = 1;

/// Programs and processor that a snapshot was made with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// Name and version of the VMM.
    pub vmm: String,
    /// Digest of the guest kernel.
    pub kernel: String,
    /// Version of envd.
    pub envd: String,
    /// Model and features of the processor.
    pub cpu: String,
}

/// Manifest of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Identity of the generation.
    pub build: BuildId,
    /// What it is kept for, by the name that its owner gave it.
    pub label: String,
    /// Where its data has its blocks.
    pub layout: Layout,
    /// What it was made with.
    pub origin: Origin,
    /// Checksums of its files by their names.
    pub files: BTreeMap<String, Sums>,
}

impl Origin {
    /// Checks that a snapshot was made with the same as `here`.
    pub fn check(&self, build: BuildId, here: &Self) -> Result<(), MemoryError> {
        let inside =
            [("the guest kernel", &self.kernel, &here.kernel), ("the guest agent", &self.envd, &here.envd)];
        self.check_loadable(build, here)?;
        differs(build, inside)
    }

    /// Checks that the VMM and the processor of `here` can load a snapshot. Kernel and guest agent are in its memory.
    pub fn check_loadable(&self, build: BuildId, here: &Self) -> Result<(), MemoryError> {
        let outside = [("the VMM", &self.vmm, &here.vmm), ("the processor", &self.cpu, &here.cpu)];
        differs(build, outside)
    }
}

/// Fails for the first pair of values that are not the same.
fn differs<'a>(
    build: BuildId,
    pairs: impl IntoIterator<Item = (&'static str, &'a String, &'a String)>,
) -> Result<(), MemoryError> {
    match pairs.into_iter().find(|(_, made_with, here)| made_with != here) {
        None => Ok(()),
        Some((what, made_with, here)) => {
            Err(MemoryError::Mismatch { build, what, made_with: made_with.clone(), here: here.clone() })
        }
    }
}

impl Manifest {
    /// Manifest of a generation without files.
    pub fn new(build: BuildId, label: &str, layout: Layout, origin: Origin) -> Self {
        Self { format: FORMAT, build, label: label.to_owned(), layout, origin, files: BTreeMap::new() }
    }

    /// Encodes the manifest.
    pub(crate) fn encode(&self) -> serde_json::Result<String> {
        let line = serde_json::to_string(self)?;
        let sum = xxh3_64(line.as_bytes());
        Ok(format!("{line}\n{sum:016x}\n"))
    }

    /// Decodes the manifest of this generation; says what is wrong with it otherwise.
    pub(crate) fn decode(build: BuildId, text: &str) -> Result<Self, MemoryError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let damaged = || MemoryError::Damaged {
            build,
            what: "the manifest",
            damage: crate::Damage::Content { start: 0, end: text.len() as u64 },
        };
        let (line, sum) = text.split_once('\n').ok_or_else(damaged)?;
        if sum != format!("{:016x}\n", xxh3_64(line.as_bytes())) {
            return Err(damaged());
        }
        let Version { format } = serde_json::from_str(line).map_err(|_| damaged())?;
        if format > FORMAT {
            let (made_with, here) = (format.to_string(), FORMAT.to_string());
            return Err(MemoryError::Mismatch { build, what: "the format", made_with, here });
        }
        let manifest: Self = serde_json::from_str(line).map_err(|_| damaged())?;
        if manifest.build == build { Ok(manifest) } else { Err(damaged()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::tests::build;

    fn manifest() -> Manifest {
        let origin = Origin { vmm: "firecracker 1.12.1".into(), kernel: "ab".into(), ..Origin::default() };
        Manifest::new(build(3), "a template", Layout::Flat, origin)
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let text = manifest().encode().unwrap();
        assert_eq!(Manifest::decode(build(3), &text).unwrap(), manifest());
        assert!(Manifest::decode(build(4), &text).is_err(), "of another generation");
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8(changed).unwrap();
            assert!(Manifest::decode(build(3), &changed).is_err(), "byte {at}");
            assert!(Manifest::decode(build(3), &text[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_newer_format_and_another_origin_are_named() {
        let text = Manifest { format: 2, ..manifest() }.encode().unwrap();
        let error = Manifest::decode(build(3), &text).unwrap_err();
        assert!(matches!(error, MemoryError::Mismatch { what: "the format", .. }), "{error}");
        let origin = manifest().origin;
        assert!(origin.check(build(3), &origin).is_ok());
        for (field, other) in [
            ("VMM", Origin { vmm: "firecracker 1.16.1".into(), ..origin.clone() }),
            ("kernel", Origin { kernel: "cd".into(), ..origin.clone() }),
            ("processor", Origin { cpu: "other".into(), ..origin.clone() }),
            ("agent", Origin { envd: "2".into(), ..origin.clone() }),
        ] {
            let error = origin.check(build(3), &other).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
