// SPDX-License-Identifier: Apache-2.0
//! Manifests, which list the layers of an image, and indexes, which list manifests by platform.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, platform::Platform};

/// Maximum size of a manifest or an index in bytes, the one that registries accept.
pub(crate) const MANIFEST_MAX: u64 = 4 << 20;
/// Maximum number of layers of an image, and of manifests in an index.
const LAYERS_MAX: usize = 512;
const MANIFESTS_MAX: usize = 1024;
/// Types of configurations that are those of container images. The last one is of early images on Docker Hub.
const CONFIGS: [&str; 4] = [
    "",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
];
/// Annotation of manifests that tell how another one was built, and are no images.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// Type, digest and size of something that a manifest or an index refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Platform that a manifest is made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Further properties.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Configuration and layers of an image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of the format, which is 2.
    pub schema_version: u32,
    /// Configuration.
    pub config: Descriptor,
    /// Layers, the lowest first. At most 512.
    pub layers: Vec<Descriptor>,
}

/// Manifests of an image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Manifests, and further indexes. At most 1024.
    pub manifests: Vec<Descriptor>,
}

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A manifest.
    Manifest(Manifest),
    /// An index.
    Index(Index),
}

/// Fields of both.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<u32>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Parses a manifest or an index in the format of OCI or Docker. What could be read as both is refused.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let schema_version = wire.schema_version.unwrap_or(2);
        if schema_version != 2 {
            let cause = "it is in version 1 of the format; push the image again with a current tool";
            return Err(cause.to_owned());
        }
        match (wire.config, wire.layers, wire.manifests) {
            (Some(config), Some(layers), None) => {
                Manifest { schema_version, config, layers }.checked().map(Self::Manifest)
            }
            (None, None, Some(manifests)) if manifests.len() <= MANIFESTS_MAX => {
                Ok(Self::Index(Index { manifests }))
            }
            (None, None, Some(_)) => Err("it has more than 1024 manifests".to_owned()),
            _ => Err("it is neither a manifest nor an index of manifests".to_owned()),
        }
    }
}

impl Manifest {
    fn checked(self) -> Result<Self, String> {
        if self.layers.len() > LAYERS_MAX {
            return Err("it has more than 512 layers".to_owned());
        }
        if !CONFIGS.contains(&self.config.media_type.as_str()) {
            return Err("it is of something else than a container image".to_owned());
        }
        Ok(self)
    }
}

impl Index {
    /// Chooses what suits a machine best: the newest variant that it runs, of equal ones the first. If none is told to, but
    /// the only one that tells no platform may.
    pub(crate) fn choose(&self, machine: &Platform) -> Option<&Descriptor> {
        let suits =
            |entry: &&Descriptor| entry.platform.as_ref().and_then(|platform| platform.suits(machine));
        let told = self.images().filter_map(|entry| Some((suits(&entry)?, entry)));
        let best = told.reduce(|best, next| if next.0 > best.0 { next } else { best });
        let mut silent = self.images().filter(|entry| entry.platform.is_none());
        best.map(|(_, entry)| entry).or_else(|| silent.next().filter(|_| silent.next().is_none()))
    }

    /// Lists the platforms for a message.
    pub(crate) fn platforms(&self) -> String {
        let mut all: Vec<_> =
            self.images().filter_map(|entry| entry.platform.as_ref()).map(ToString::to_string).collect();
        all.sort();
        all.dedup();
        all.truncate(20);
        if all.is_empty() { "no platform".to_owned() } else { all.join(", ") }
    }

    /// Lists what is an image, or an index of some.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Descriptor> {
        let unknown = |platform: &Platform| platform.os == "unknown" || platform.architecture == "unknown";
        self.manifests.iter().filter(move |entry| {
            !entry.annotations.contains_key(ATTESTATION) && !entry.platform.as_ref().is_some_and(unknown)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn entry(of: &str, platform: Option<&str>) -> Value {
        let mut entry = json!({ "mediaType": "x", "digest": Digest::of(of.as_bytes()), "size": 1 });
        if let Some(platform) = platform {
            entry["platform"] = json!(platform.parse::<Platform>().unwrap());
        }
        entry
    }

    fn index(entries: &[Value]) -> Index {
        match Document::parse(json!({ "schemaVersion": 2, "manifests": entries }).to_string().as_bytes()) {
            Ok(Document::Index(index)) => index,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_platform_decides() {
        let mut attestation = entry("attestation", Some("linux/amd64"));
        attestation["annotations"] = json!({ ATTESTATION: "attestation-manifest" });
        let cases: [(&[Value], &str, Option<&str>); 8] = [
            (
                &[entry("arm", Some("linux/arm64")), entry("amd", Some("linux/amd64"))],
                "linux/amd64",
                Some("amd"),
            ),
            (
                &[entry("amd", Some("linux/amd64")), entry("arm", Some("linux/arm64/v8"))],
                "linux/arm64",
                Some("arm"),
            ),
            (
                &[entry("v1", Some("linux/amd64")), entry("v3", Some("linux/amd64/v3"))],
                "linux/amd64",
                Some("v1"),
            ),
            (
                &[entry("v1", Some("linux/amd64")), entry("v3", Some("linux/amd64/v3"))],
                "linux/amd64/v4",
                Some("v3"),
            ),
            (&[entry("arm", Some("linux/arm64"))], "linux/amd64", None),
            (
                &[attestation, entry("one", None), entry("?", Some("unknown/unknown"))],
                "linux/amd64",
                Some("one"),
            ),
            (&[entry("one", None), entry("two", None)], "linux/amd64", None),
            (&[], "linux/amd64", None),
        ];
        for (entries, machine, expected) in cases {
            let index = index(entries);
            let chosen = index.choose(&machine.parse().unwrap()).map(|entry| entry.digest);
            assert_eq!(chosen, expected.map(|name| Digest::of(name.as_bytes())), "{entries:?} on {machine}");
        }
        let both = index(&[
            entry("a", Some("linux/arm64")),
            entry("b", Some("linux/amd64")),
            entry("c", Some("linux/arm64")),
        ]);
        assert_eq!(both.platforms(), "linux/amd64, linux/arm64");
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let layer = entry("layer", None);
        let mut chart = layer.clone();
        chart["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        let mut config = layer.clone();
        config["mediaType"] = json!(CONFIGS[1]);
        let mut damaged = layer.clone();
        damaged["digest"] = json!("sha256:../../x");
        let good = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        assert!(matches!(Document::parse(good.to_string().as_bytes()), Ok(Document::Manifest(_))));
        for bad in [
            json!({ "schemaVersion": 1, "fsLayers": [] }),
            json!({ "schemaVersion": 2, "config": config, "layers": [layer], "manifests": [] }),
            json!({ "schemaVersion": 2, "config": chart, "layers": [layer] }),
            json!({ "schemaVersion": 2, "config": config, "layers": [damaged] }),
            json!({ "schemaVersion": 2, "config": config, "layers": vec![layer.clone(); 513] }),
            json!({ "schemaVersion": 2, "manifests": vec![layer.clone(); 1025] }),
            json!({ "errors": [] }),
            json!([]),
        ] {
            assert!(Document::parse(bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        assert!(Document::parse(b"{").is_err() && Document::parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
