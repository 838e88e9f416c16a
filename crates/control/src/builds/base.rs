// SPDX-License-Identifier: Apache-2.0
//! What a build starts from: the meaning of the name in `FROM` at the moment when the build was asked for. It is stored with the
//! build, so that a tag that moves later changes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wrenn_api::{CreateBuild, ErrorCode, TeamId};
use wrenn_recipe::{Context, Instruction, Recipe, UploadedImage, User};

use crate::{
    db::{
        hosts, snapshots,
        templates::{self, Version},
    },
    error::Fault,
    images::{self, Imported, Kept},
    names::LATEST,
    place::Digest,
    state::App,
    templates::{Origin, ROOM_MB, Sizes, Source, within_bounds},
};

/// Template of recipes without a `FROM`.
const DEFAULT: &str = "minimal";
/// Sizes of a build that asks for none, in virtual CPUs and MiB.
const USUAL: Sizes = Sizes { vcpus: 1, memory_mb: 1024, disk_size_mb: 5120 };

/// What a build starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Base {
    /// A template in the files of hosts.
    Platform {
        /// Its name.
        name: String,
        /// SHA-256 of its content when the build was asked for; none if no host has told it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    /// A named snapshot of the team or the platform.
    Snapshot {
        /// Its id.
        id: Uuid,
        /// Host that has it.
        host: Uuid,
        /// Its name.
        name: String,
    },
    /// A version of a template that the team or the platform has built: a snapshot or an image.
    Version {
        /// Name of the template.
        name: String,
        /// Number of the version.
        version: i32,
        /// Host that has it.
        host: Uuid,
        /// The snapshot; the database keeps it as long as a build names it so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot_id: Option<Uuid>,
        /// The image; the database keeps it as long as a build names it so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image_id: Option<Uuid>,
        /// Size of the smallest disk, in MiB.
        least_mb: u32,
        /// Environment, user and directory of its sandboxes.
        context: Context,
    },
    /// An image of a registry that no worker has imported yet.
    Image {
        /// The reference as it stands in the recipe.
        reference: String,
    },
    /// An image of a registry, with what it was when the first worker imported it, or one that was uploaded, with what it was when the
    /// build was asked for: a tag that moves later changes nothing.
    Imported(Box<OfRegistry>),
}

/// What a build starts from that a worker has imported, or that was uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OfRegistry {
    /// The reference as it stands in the recipe.
    pub(super) reference: String,
    /// Digest of the image.
    pub(super) digest: String,
    /// Id of the image; the database keeps it as long as an open build names it so.
    pub(super) image_id: Uuid,
    /// Host that has it.
    pub(super) host: Uuid,
    /// Size of the smallest disk, in MiB.
    pub(super) least_mb: u32,
    /// Environment, user and directory of the image.
    pub(super) context: Context,
    /// Program that the image begins with, and what it gives to that.
    pub(super) entrypoint: Vec<String>,
    pub(super) cmd: Vec<String>,
}

impl Base {
    /// Finds what a recipe starts from, and the sizes of its build.
    pub(super) async fn resolve(
        app: &App,
        team: Uuid,
        recipe: &Recipe,
        new: &CreateBuild,
    ) -> Result<(Self, Sizes), Fault> {
        let Some((line, text, image)) = named(recipe) else {
            return Ok((Self::on_hosts(app, DEFAULT).await?, chosen(new, 0)?));
        };
        if let Some(image) = UploadedImage::of_reference(&text).and_then(Result::ok) {
            let told =
                |fault: Fault| Fault { message: format!("line {line}, FROM: {}", fault.message), ..fault };
            let found = images::find(app, team, &image).await.map_err(told)?;
            let sizes = chosen(new, 0)?;
            let sizes = Sizes { disk_size_mb: disk_with(sizes.disk_size_mb, found.size_mb), ..sizes };
            return Ok((Self::of_imported(&text, found).map_err(told)?, sizes));
        }
        let name = text.strip_prefix("template:").unwrap_or(&text);
        let (name, tag) = name.split_once(':').map_or((name, None), |(name, tag)| (name, Some(tag)));
        if let Some(version) = templates::find(&app.db, team, name, tag.unwrap_or(LATEST)).await? {
            return Ok((Self::of_version(&version), sizes_on(&version, &text, new)?));
        }
        // Only versions have tags.
        if tag.is_none()
            && let Some(found) = Self::of_snapshot(app, team, name, new).await?
        {
            return Ok(found);
        }
        let mut known = templates::some_tags(&app.db, team, name).await?;
        if known.is_empty() {
            let platform = TeamId::PLATFORM.uuid();
            if let Some(version) = templates::find(&app.db, platform, name, tag.unwrap_or(LATEST)).await? {
                return Ok((Self::of_version(&version), sizes_on(&version, &text, new)?));
            }
            if tag.is_none()
                && let Some(found) = Self::of_snapshot(app, platform, name, new).await?
            {
                return Ok(found);
            }
            // With another tag it may be an image that has the same name.
            if !image {
                known = templates::some_tags(&app.db, platform, name).await?;
            }
        }
        if tag.is_none() && hosts::has_template(&app.db, name).await? {
            return Ok((Self::on_hosts(app, name).await?, chosen(new, 0)?));
        }
        if image && known.is_empty() {
            return Ok((Self::Image { reference: text }, chosen(new, 0)?));
        }
        Err(unknown(line, &text, &known))
    }

    /// Finds the snapshot of a team with this name, and the sizes of a build on it.
    async fn of_snapshot(
        app: &App,
        team: Uuid,
        name: &str,
        new: &CreateBuild,
    ) -> Result<Option<(Self, Sizes)>, Fault> {
        let Some(row) = snapshots::find(&app.db, team, name).await? else { return Ok(None) };
        let sizes = of_snapshot(new, name, (row.vcpus, row.memory_mb, row.disk_size_mb))?;
        Ok(Some((Self::Snapshot { id: row.id, host: row.host_id, name: row.name }, sizes)))
    }

    /// The template of this name in the files of hosts, with the content that most of them have.
    async fn on_hosts(app: &App, name: &str) -> Result<Self, Fault> {
        let digest = hosts::template_digest(&app.db, name).await?;
        Ok(Self::Platform { name: name.to_owned(), digest })
    }

    /// What an image of this reference has turned out to be. Fails if no step can have its user.
    pub(super) fn of_imported(reference: &str, imported: Imported) -> Result<Self, Fault> {
        let config = imported.config;
        let user = config.user.parse::<User>().map_err(|error| {
            Fault::new(ErrorCode::ImageDamaged, format!("the user of {reference} cannot be used: {error}"))
        })?;
        let context = Context { env: config.env, args: BTreeMap::new(), workdir: config.workdir, user };
        Ok(Self::Imported(Box::new(OfRegistry {
            reference: reference.to_owned(),
            digest: imported.digest,
            image_id: imported.image_id,
            host: imported.host,
            least_mb: imported.size_mb,
            context,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
        })))
    }

    fn of_version(version: &Version) -> Self {
        let user = version.default_user.parse().unwrap_or_else(|_| User::root());
        let context =
            Context { env: version.envs(), args: BTreeMap::new(), workdir: version.workdir.clone(), user };
        Self::Version {
            name: version.name.clone(),
            version: version.version,
            host: version.host_id,
            snapshot_id: version.snapshot_id,
            image_id: version.image_id,
            least_mb: least(version),
            context,
        }
    }

    /// Returns the state in which the first step is done.
    pub(super) fn context(&self) -> Context {
        match self {
            Self::Platform { .. } | Self::Snapshot { .. } | Self::Image { .. } => Context::default(),
            Self::Version { context, .. } => context.clone(),
            Self::Imported(image) => image.context.clone(),
        }
    }

    /// Whether it is known what is there for the first step: of an image, this is so once it was imported.
    pub(super) const fn is_known(&self) -> bool {
        !matches!(self, Self::Image { .. })
    }

    /// What the image begins with, to which a `CMD` of the recipe gives arguments.
    pub(super) fn entrypoint(&self) -> &[String] {
        match self {
            Self::Imported(image) => &image.entrypoint,
            _ => &[],
        }
    }

    /// Returns what makes it another base: the name and the content of a template of the platform, the id of what a host has, or the
    /// digest of an image, with its id, which depends on how it was unpacked, too.
    pub(super) fn identity(&self) -> (&'static str, String) {
        match self {
            Self::Platform { name, digest: None } => ("platform", name.clone()),
            Self::Platform { name, digest: Some(digest) } => ("platform", format!("{name}@{digest}")),
            Self::Snapshot { id, .. } | Self::Version { snapshot_id: Some(id), .. } => {
                ("snapshot", id.simple().to_string())
            }
            Self::Version { image_id, .. } => ("image", image_id.unwrap_or_default().simple().to_string()),
            Self::Image { reference } => ("reference", reference.clone()),
            Self::Imported(image) => ("registry", format!("{} {}", image.digest, image.image_id.simple())),
        }
    }

    /// Kind and name of a base whose content may become another one under its name, and the digest of what it is.
    pub(super) fn digest(&self) -> Option<(&'static str, &str, &str)> {
        match self {
            Self::Platform { name, digest } => Some(("platform", name.as_str(), digest.as_deref()?)),
            Self::Imported(image) => Some(("imported", image.reference.as_str(), image.digest.as_str())),
            _ => None,
        }
    }

    /// Name that the sandbox of a build shows as its template.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Platform { name, .. } | Self::Snapshot { name, .. } | Self::Version { name, .. } => name,
            Self::Image { reference } => reference,
            Self::Imported(image) => &image.reference,
        }
    }

    /// Returns what the sandbox of a build of these sizes is made from, if no step is in the cache.
    pub(super) fn origin(&self, sizes: Sizes) -> Origin {
        let (source, image) = match self {
            Self::Platform { .. } => (Source::Platform, None),
            Self::Snapshot { id, host, .. } | Self::Version { snapshot_id: Some(id), host, .. } => {
                (Source::Snapshot { id: *id, host: *host, sizes }, None)
            }
            Self::Version { image_id, host, least_mb, .. } => {
                (Source::Image { id: image_id.unwrap_or_default(), host: *host, least_mb: *least_mb }, None)
            }
            Self::Image { .. } => (Source::Registry, None),
            Self::Imported(image) => {
                let (id, host, least_mb) = (image.image_id, image.host, image.least_mb);
                (Source::Image { id, host, least_mb }, Some(image.kept()))
            }
        };
        let digest = match self {
            Self::Platform { digest, .. } => digest.as_deref().and_then(Digest::of),
            _ => None,
        };
        let moves = match self {
            Self::Imported(image) => image.is_uploaded(),
            _ => true,
        };
        Origin { source, digest, image, is_version: true, moves, ..Origin::of_platform(self.name()) }
    }
}

impl OfRegistry {
    /// Whether it was uploaded: no registry has it, and its host keeps it as long as the build is open.
    pub(super) fn is_uploaded(&self) -> bool {
        UploadedImage::of_reference(&self.reference).is_some()
    }

    fn kept(&self) -> Kept {
        Kept::new(self.image_id, &self.reference, &self.digest, &self.entrypoint, &self.cmd)
    }
}

/// Returns the line, the text and whether it may be an image, of what a recipe starts from.
fn named(recipe: &Recipe) -> Option<(u32, String, bool)> {
    recipe.steps.iter().find_map(|step| match &step.instruction {
        Instruction::From { base } => Some((step.span.line, base.to_string(), base.image().is_some())),
        _ => None,
    })
}

/// Returns the sizes of a build on a version of a template, which stands in the recipe as this text.
fn sizes_on(version: &Version, text: &str, new: &CreateBuild) -> Result<Sizes, Fault> {
    match version.snapshot_id {
        Some(_) => of_snapshot(new, text, (version.vcpus, version.memory_mb, version.disk_size_mb)),
        None => chosen(new, least(version)),
    }
}

/// Size of the smallest disk of a version.
fn least(version: &Version) -> u32 {
    version.size_mb.try_into().unwrap_or(u32::MAX)
}

/// The fault of a `FROM` that names nothing that is known, and can be no image.
fn unknown(line: u32, text: &str, tags: &[String]) -> Fault {
    let message = match tags {
        [] => format!("line {line}, FROM: there is no template {text}"),
        _ => format!("line {line}, FROM: {text} has no such tag; it has {}", tags.join(", ")),
    };
    Fault::new(ErrorCode::NotFound, message)
}

/// Returns the sizes that a build asks for, or the usual ones. Its disk has at least `least_mb`.
fn chosen(new: &CreateBuild, least_mb: u32) -> Result<Sizes, Fault> {
    let disk = USUAL.disk_size_mb.max(least_mb);
    Ok(Sizes {
        vcpus: within_bounds("vcpus", new.vcpus, USUAL.vcpus, 1, 64)?,
        memory_mb: within_bounds("memory_mb", new.memory_mb, USUAL.memory_mb, 128, 1 << 20)?,
        disk_size_mb: within_bounds("disk_size_mb", new.disk_size_mb, disk, 512_u32.max(least_mb), 1 << 20)?,
    })
}

/// Returns the sizes of a snapshot. Fails if the build asks for others.
fn of_snapshot(new: &CreateBuild, base: &str, has: (i32, i32, i32)) -> Result<Sizes, Fault> {
    let sizes = Sizes { vcpus: has.0 as u32, memory_mb: has.1 as u32, disk_size_mb: has.2 as u32 };
    let all = [
        ("vcpus", new.vcpus, sizes.vcpus),
        ("memory_mb", new.memory_mb, sizes.memory_mb),
        ("disk_size_mb", new.disk_size_mb, sizes.disk_size_mb),
    ];
    for (field, given, has) in all {
        if let Some(given) = given.filter(|given| *given != has) {
            let message =
                format!("{field} is {given}, and {base} goes on with its memory and has {has}: leave it out");
            return Err(Fault::invalid(message));
        }
    }
    Ok(sizes)
}

/// Returns the size of the disk of a build that asks for this one, if its base needs at least `least_mb`: of the usual size there is
/// room left beside the base.
pub(super) fn disk_with(asked_mb: u32, least_mb: u32) -> u32 {
    let room = if asked_mb == USUAL.disk_size_mb { ROOM_MB } else { 0 };
    asked_mb.max(least_mb.saturating_add(room))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ImageConfig;

    fn new() -> CreateBuild {
        CreateBuild {
            name: "web".to_owned(),
            recipe: String::new(),
            vcpus: None,
            memory_mb: None,
            disk_size_mb: None,
            no_cache_from: None,
            registry: None,
            secrets: wrenn_api::BuildSecrets::default(),
        }
    }

    /// Bases are stored in this form: a change needs a migration, and the database looks for ids in it.
    #[test]
    fn bases_in_json() {
        let id = Uuid::from_u128(1);
        let version = Base::Version {
            name: "web".to_owned(),
            version: 3,
            host: id,
            snapshot_id: None,
            image_id: Some(id),
            least_mb: 912,
            context: Context::default(),
        };
        let nil = "00000000-0000-0000-0000-000000000001";
        let imported = Base::Imported(Box::new(OfRegistry {
            reference: "debian:bookworm".to_owned(),
            digest: "sha256:00".to_owned(),
            image_id: id,
            host: id,
            least_mb: 117,
            context: Context::default(),
            entrypoint: vec!["/init".to_owned()],
            cmd: Vec::new(),
        }));
        for (base, expected) in [
            (
                Base::Image { reference: "debian:bookworm".to_owned() },
                r#"{"kind":"image","reference":"debian:bookworm"}"#.to_owned(),
            ),
            (
                imported,
                format!(
                    r#"{{"kind":"imported","reference":"debian:bookworm","digest":"sha256:00","image_id":"{nil}","host":"{nil}",{},{}}}"#,
                    r#""least_mb":117,"context":{"env":{},"args":{},"workdir":"/","user":"root"}"#,
                    r#""entrypoint":["/init"],"cmd":[]"#
                ),
            ),
            (
                Base::Platform { name: "minimal".to_owned(), digest: None },
                r#"{"kind":"platform","name":"minimal"}"#.to_owned(),
            ),
            (
                Base::Platform { name: "minimal".to_owned(), digest: Some("00".to_owned()) },
                r#"{"kind":"platform","name":"minimal","digest":"00"}"#.to_owned(),
            ),
            (
                Base::Snapshot { id, host: id, name: "s".to_owned() },
                format!(r#"{{"kind":"snapshot","id":"{nil}","host":"{nil}","name":"s"}}"#),
            ),
            (
                version,
                format!(
                    r#"{{"kind":"version","name":"web","version":3,"host":"{nil}","image_id":"{nil}","least_mb":912,{}}}"#,
                    r#""context":{"env":{},"args":{},"workdir":"/","user":"root"}"#
                ),
            ),
        ] {
            assert_eq!(serde_json::to_string(&base).expect("JSON"), expected);
            assert_eq!(serde_json::from_str::<Base>(&expected).expect("a base"), base);
        }
    }

    #[test]
    fn sizes_are_asked_for_or_those_of_the_base() {
        assert_eq!(chosen(&new(), 0).expect("the usual"), USUAL);
        assert_eq!(chosen(&new(), 6000).expect("larger").disk_size_mb, 6000);
        assert!(chosen(&CreateBuild { disk_size_mb: Some(5000), ..new() }, 6000).is_err());
        assert!(chosen(&CreateBuild { vcpus: Some(65), ..new() }, 0).is_err());
        let has = (2, 512, 4096);
        let sizes = Sizes { vcpus: 2, memory_mb: 512, disk_size_mb: 4096 };
        assert_eq!(of_snapshot(&new(), "s", has).expect("its own"), sizes);
        assert_eq!(of_snapshot(&CreateBuild { vcpus: Some(2), ..new() }, "s", has).expect("the same"), sizes);
        let other = of_snapshot(&CreateBuild { memory_mb: Some(1024), ..new() }, "s", has);
        assert!(other.is_err_and(|fault| fault.message.contains("memory_mb is 1024, and s goes on")));
    }

    #[test]
    fn the_disk_of_a_build_is_large_enough_for_its_image() {
        let disks = [(5120, 117), (5120, 5000), (512, 117), (512, 600), (9000, 8000)];
        assert_eq!(disks.map(|(asked, least)| disk_with(asked, least)), [5120, 6024, 512, 600, 9000]);
    }

    #[test]
    fn what_is_not_known_is_told_with_what_there_is() {
        let told = |tags: &[&str]| {
            let tags: Vec<_> = tags.iter().map(|tag| (*tag).to_owned()).collect();
            unknown(2, "web:v9", &tags).message
        };
        assert_eq!(told(&[]), "line 2, FROM: there is no template web:v9");
        assert_eq!(told(&["latest", "v1"]), "line 2, FROM: web:v9 has no such tag; it has latest, v1");
    }

    #[test]
    fn a_template_of_the_platform_is_another_base_once_its_content_is_another_one() {
        let of = |digest: Option<&str>| Base::Platform {
            name: "minimal".to_owned(),
            digest: digest.map(|digit| digit.repeat(64)),
        };
        let (unknown, one, other) = (of(None), of(Some("a")), of(Some("b")));
        assert_eq!(unknown.identity(), ("platform", "minimal".to_owned()));
        assert_ne!(one.identity(), other.identity());
        assert!(unknown.digest().is_none() && unknown.origin(USUAL).digest.is_none());
        assert_eq!(one.digest(), Some(("platform", "minimal", &*"a".repeat(64))));
        assert_eq!(one.origin(USUAL).digest, Digest::of(&"a".repeat(64)));
    }

    #[test]
    fn an_image_that_was_uploaded_is_told_from_one_of_a_registry() {
        for (reference, is_uploaded) in [("uploaded:app", true), ("uploaded:app:1", true), ("app:1", false)] {
            let of = |reference: &str| OfRegistry {
                reference: reference.to_owned(),
                digest: "sha256:0".to_owned(),
                image_id: Uuid::nil(),
                host: Uuid::nil(),
                least_mb: 1,
                context: Context::default(),
                entrypoint: Vec::new(),
                cmd: Vec::new(),
            };
            assert_eq!(of(reference).is_uploaded(), is_uploaded, "{reference}");
        }
    }

    #[test]
    fn an_image_is_another_base_once_its_digest_is_another_one() {
        let imported = |digest: &str, user: &str| {
            let config = ImageConfig {
                env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
                user: user.to_owned(),
                workdir: "/srv".to_owned(),
                entrypoint: vec!["/init".to_owned()],
                cmd: vec!["serve".to_owned()],
            };
            let imported = Imported {
                image_id: Uuid::from_u128(1),
                host: Uuid::from_u128(2),
                digest: digest.to_owned(),
                size_mb: 117,
                config,
                skipped: 0,
                first_skipped: Vec::new(),
            };
            Base::of_imported("app:1", imported)
        };
        let (one, other) = (imported("sha256:1", "app").expect("a base"), imported("sha256:2", "app"));
        assert_ne!(one.identity(), other.expect("a base").identity());
        assert!(one.identity().1.starts_with("sha256:1 "), "{:?}", one.identity());
        let context = one.context();
        assert_eq!((context.user.to_string().as_str(), context.workdir.as_str()), ("app", "/srv"));
        assert_eq!((context.env["A"].as_str(), one.entrypoint()), ("1", &["/init".to_owned()][..]));
        let refused = imported("sha256:1", "no user").map_err(|fault| fault.code);
        assert_eq!(refused, Err(ErrorCode::ImageDamaged));
    }
}
