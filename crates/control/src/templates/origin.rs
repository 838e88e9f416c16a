// SPDX-License-Identifier: Apache-2.0
//! Origins of new sandboxes: what the name of a template means at the moment when it is asked for, or an image of a registry.

use std::collections::BTreeMap;

use uuid::Uuid;
use wrenn_api::{ErrorCode, TeamId};
use wrenn_recipe::UploadedImage;

use super::artifact::{Artifact, Kind};
use crate::{
    db::{
        snapshots,
        templates::{self, Version},
    },
    error::Fault,
    images::{self, Imported, Kept},
    names::template_reference,
    place::{Digest, On},
    state::App,
};

/// Template of those who name none.
const DEFAULT: &str = "minimal";

/// Room in MiB that a disk of the usual size has beside an image of a registry.
pub(crate) const ROOM_MB: u32 = 1024;

/// Sizes of a sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) disk_size_mb: u32,
}

/// What a host makes a sandbox from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The template of the platform with the name, which many hosts have.
    Platform,
    /// A snapshot with memory on one host. The sandbox has its sizes.
    Snapshot { id: Uuid, host: Uuid, sizes: Sizes },
    /// An image on one host, for disks of this size or larger ones.
    Image { id: Uuid, host: Uuid, least_mb: u32 },
    /// An image of a registry that a host is to import first, which any one can.
    Registry,
}

/// What a new sandbox starts from, and what it has by that.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Name of the template, or reference of the image, as it was asked for, which the sandbox shows.
    pub(crate) template: String,
    pub(crate) source: Source,
    /// Content that the template of the platform is to have, if that matters.
    pub(crate) digest: Option<Digest>,
    /// What the sandbox keeps of the image of a registry.
    pub(crate) image: Option<Kept>,
    /// Whether it is a version of a template: its name may mean another one later.
    pub(crate) is_version: bool,
    /// Whether other hosts can get it from the one that has it, or from the store.
    pub(crate) moves: bool,
    /// Environment, to which a request can add.
    pub(crate) envs: BTreeMap<String, String>,
    /// User and directory of commands that name none; empty for the default of what it starts from.
    pub(crate) default_user: String,
    pub(crate) workdir: String,
}

impl Origin {
    /// Finds what `NAME` or `NAME:TAG` means: a version of a template that the team has built, a snapshot of the team, a version
    /// of a template that the platform has built, a snapshot of the platform, or a template that its hosts have, in this order. Whether
    /// a host has the latter is found out when one is chosen.
    pub(crate) async fn resolve(app: &App, team: Uuid, template: Option<&str>) -> Result<Self, Fault> {
        let Some(text) = template else { return Ok(Self::of_platform(DEFAULT)) };
        let (name, tag) = template_reference(text)?;
        // Only versions have tags.
        let is_tagged = name.len() < text.len();
        for owner in [team, TeamId::PLATFORM.uuid()] {
            if let Some(version) = templates::find(&app.db, owner, name, tag).await? {
                return Ok(Self::of_version(text, &version));
            }
            if !is_tagged && let Some(snapshot) = snapshots::find(&app.db, owner, name).await? {
                return Ok(Self::of_snapshot(text, &snapshot));
            }
            let tags = templates::some_tags(&app.db, owner, name).await?;
            if !tags.is_empty() {
                return Err(no_tag(name, tag, &tags));
            }
        }
        if is_tagged {
            let message = format!("nobody has built a template {name:?}, and only such templates have tags");
            return Err(Fault::new(ErrorCode::NotFound, message));
        }
        Ok(Self::of_platform(name))
    }

    /// The template of the platform with this name.
    pub(crate) fn of_platform(name: &str) -> Self {
        Self::of(name, Source::Platform)
    }

    /// A snapshot that was made, asked for by this name.
    pub(crate) fn of_snapshot(template: &str, row: &snapshots::Row) -> Self {
        let sizes = sizes(row.vcpus, row.memory_mb, row.disk_size_mb);
        Self { moves: true, ..Self::of(template, Source::Snapshot { id: row.id, host: row.host_id, sizes }) }
    }

    /// A version of a template, asked for by this name.
    pub(crate) fn of_version(template: &str, version: &Version) -> Self {
        let host = version.host_id;
        let source = match (version.snapshot_id, version.image_id) {
            (Some(id), _) => {
                let sizes = sizes(version.vcpus, version.memory_mb, version.disk_size_mb);
                Source::Snapshot { id, host, sizes }
            }
            // One of both is there, as the database checks.
            (None, image) => {
                let least_mb = version.size_mb.try_into().unwrap_or(u32::MAX);
                Source::Image { id: image.unwrap_or_default(), host, least_mb }
            }
        };
        Self {
            is_version: true,
            moves: true,
            envs: version.envs(),
            default_user: version.default_user.clone(),
            workdir: version.workdir.clone(),
            ..Self::of(template, source)
        }
    }

    /// An image of a registry that is not imported yet, asked for by this reference.
    pub(crate) fn of_registry(reference: &str) -> Self {
        Self::of(reference, Source::Registry)
    }

    /// An image that was imported or uploaded, asked for by this reference. Any host can import one of a registry by itself.
    pub(crate) fn of_image(reference: &str, imported: &Imported) -> Self {
        let (id, host, least_mb) = (imported.image_id, imported.host, imported.size_mb);
        Self {
            image: Some(imported.kept(reference)),
            moves: UploadedImage::of_reference(reference).is_some(),
            envs: imported.config.env.clone(),
            default_user: imported.config.user.clone(),
            workdir: imported.config.workdir.clone(),
            ..Self::of(reference, Source::Image { id, host, least_mb })
        }
    }

    fn of(template: &str, source: Source) -> Self {
        Self {
            template: template.to_owned(),
            source,
            digest: None,
            image: None,
            is_version: false,
            moves: false,
            envs: BTreeMap::new(),
            default_user: String::new(),
            workdir: String::new(),
        }
    }

    /// The hosts that have it, as far as it is known without the copies that others have got.
    pub(crate) const fn hosts(&self) -> On<'_> {
        match &self.source {
            Source::Platform => match self.digest {
                Some(digest) => On::TemplateWith(digest),
                None => On::Template,
            },
            Source::Snapshot { host, .. } | Source::Image { host, .. } => {
                On::Hosts(std::slice::from_ref(host))
            }
            Source::Registry => On::Any,
        }
    }

    /// What other hosts can get of it. They cannot get what all have by themselves or import from a registry, nor results in the
    /// cache of builds, which are used where they were made.
    pub(crate) fn artifact(&self) -> Option<Artifact> {
        match self.source {
            Source::Snapshot { id, host, .. } if self.moves => {
                Some(Artifact { kind: Kind::Snapshot, id, host })
            }
            Source::Image { id, host, .. } if self.moves => Some(Artifact { kind: Kind::Image, id, host }),
            _ => None,
        }
    }

    /// Ids of the snapshot and of the image that it is, as a host's agent knows them; empty if it is none.
    pub(crate) fn ids(&self) -> (String, String) {
        match self.source {
            Source::Platform | Source::Registry => (String::new(), String::new()),
            Source::Snapshot { id, .. } => (id.simple().to_string(), String::new()),
            Source::Image { id, .. } => (String::new(), images::on_host(id)),
        }
    }

    /// Name of the template without a tag, or the reference of the image.
    pub(crate) fn name(&self) -> &str {
        match self.template.split_once(':') {
            Some((name, _)) if self.image.is_none() => name,
            _ => &self.template,
        }
    }
}

/// The fault of a tag that a template does not have; it has at least these.
fn no_tag(name: &str, tag: &str, tags: &[String]) -> Fault {
    let message = format!("template {name:?} has no tag {tag:?}; it has {}", tags.join(", "));
    Fault::new(ErrorCode::NotFound, message)
}

fn sizes(vcpus: i32, memory_mb: i32, disk_size_mb: i32) -> Sizes {
    Sizes { vcpus: vcpus as u32, memory_mb: memory_mb as u32, disk_size_mb: disk_size_mb as u32 }
}

/// Returns a size that a request asks for, or else the default. Fails if it is out of bounds.
pub(crate) fn within_bounds(
    field: &str,
    value: Option<u32>,
    default: u32,
    min: u32,
    max: u32,
) -> Result<u32, Fault> {
    let value = value.unwrap_or(default);
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(Fault::invalid(format!("{field} is {value}: it must be {min} to {max}")))
}
