// SPDX-License-Identifier: Apache-2.0
//! Templates service: what the team's sandboxes can be created from, and the versions and tags of templates that it has built.

mod artifact;
mod images;
mod origin;

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use wrenn_api::{ErrorCode, PrunedCache, Snapshot, TeamId, Template, TemplateKind, TemplateVersion};
use wrenn_rpc::Foreign;

pub(crate) use self::{
    artifact::{Artifact, Kind},
    images::upkeep,
    origin::{Origin, ROOM_MB, Sizes, Source, within_bounds},
};
use crate::{
    caller::Caller,
    claims::has_template,
    db::{
        hosts, layers, snapshots,
        templates::{self, Tag, Version},
    },
    error::Fault,
    names::{TAG_RULE, is_tag, is_template_name},
    state::App,
};

/// Maximum number of tags of a template; those that builds add are not refused.
const TAGS_MAX: usize = 100;
/// Maximum number of results of steps that one statement forgets.
const PRUNED: i64 = 1000;

/// Templates of teams.
#[derive(Clone)]
pub struct Templates {
    app: App,
}

impl Templates {
    /// Maximum number of versions of a list.
    pub const VERSIONS_MAX: u32 = 100;

    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Lists what the team's sandboxes can be created from: the platform's templates, those on online hosts and those that it has
    /// built, by name, and its snapshots, the newest first; then those of the team in the same order. What the name of another one of
    /// the team means is not listed.
    pub async fn list(&self, caller: &Caller) -> Result<Vec<Template>, Fault> {
        let team = caller.team();
        let own = self.of_team(team).await?;
        let names = own.iter().map(|one| one.name.clone()).collect();
        let mut all = self.of_platform(team, &names).await?;
        all.extend(own);
        Ok(all)
    }

    /// Lists the platform's templates, without those that it has built, or made as snapshots, under these names.
    async fn of_platform(&self, team: TeamId, names: &HashSet<String>) -> Result<Vec<Template>, Fault> {
        let mut all: Vec<_> = hosts::templates(&self.app.db).await?.into_iter().map(on_hosts).collect();
        if team != TeamId::PLATFORM {
            let others = self.of_team(TeamId::PLATFORM).await?;
            all.extend(others.into_iter().filter(|one| !names.contains(&one.name)));
        }
        Ok(all)
    }

    /// Lists the templates that a team has built, by name, and then its snapshots, the newest first.
    async fn of_team(&self, team: TeamId) -> Result<Vec<Template>, Fault> {
        let mut all = self.built_by(team).await?;
        let made = snapshots::of_team(&self.app.db, team.uuid()).await?;
        let platform = team == TeamId::PLATFORM;
        all.extend(made.iter().map(|row| Template { platform, ..of_snapshot(row.public()) }));
        Ok(all)
    }

    /// Lists the templates that a team has built, by name.
    async fn built_by(&self, team: TeamId) -> Result<Vec<Template>, Fault> {
        let (db, is_platform) = (&self.app.db, team == TeamId::PLATFORM);
        let versions = templates::of_team(db, team.uuid()).await?;
        let names: Vec<_> = versions.iter().map(|version| version.name.clone()).collect();
        let mut tags: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        for Tag { name, tag, version } in templates::tags(db, team.uuid(), &names).await? {
            tags.entry(name).or_default().insert(tag, version as u32);
        }
        let describe = |version: Version| {
            let tags = tags.remove(&version.name).unwrap_or_default();
            Template { platform: is_platform, ..built(version, tags) }
        };
        Ok(versions.into_iter().map(describe).collect())
    }

    /// Lists the versions of a template that the team has built, or else the platform, the newest first: at most
    /// [`Self::VERSIONS_MAX`], and only those that are older than `before`.
    pub async fn versions(
        &self,
        caller: &Caller,
        name: &str,
        before: Option<u32>,
        limit: u32,
    ) -> Result<Vec<TemplateVersion>, Fault> {
        check(name)?;
        let (db, team) = (&self.app.db, self.owner(caller.team(), name).await?.uuid());
        let before = before.map(|before| before.try_into().unwrap_or(i32::MAX));
        let limit = limit.min(Self::VERSIONS_MAX);
        let versions = templates::versions(db, team, name, before, limit.into()).await?;
        if versions.is_empty() && templates::some_tags(db, team, name).await?.is_empty() {
            return Err(none(name));
        }
        let tags = templates::tags(db, team, &[name.to_owned()]).await?;
        Ok(versions.into_iter().map(|version| described(version, &tags)).collect())
    }

    /// Makes a tag of a template lead to one of its versions.
    pub async fn move_tag(
        &self,
        caller: &Caller,
        name: &str,
        tag: &str,
        version: u32,
    ) -> Result<TemplateVersion, Fault> {
        check(name)?;
        if !is_tag(tag) {
            return Err(Fault::invalid(format!("{} is no tag: {TAG_RULE}", Foreign(tag))));
        }
        let number = i32::try_from(version).ok().filter(|number| *number > 0);
        let wrong = || Fault::invalid(format!("version is {version}: it must be 1 to {}", i32::MAX));
        let number = number.ok_or_else(wrong)?;
        let team = caller.team().uuid();
        let mut tx = self.app.db.begin().await?;
        templates::lock_names(&mut tx, team).await?;
        let names = [name.to_owned()];
        let tags = templates::tags(&mut *tx, team, &names).await?;
        if tags.is_empty() {
            return Err(none(name));
        }
        let found = templates::numbered(&mut tx, team, name, number).await?;
        let missing = || {
            Fault::new(ErrorCode::NotFound, format!("template {name:?} has no version {version}: list them"))
        };
        let found = found.ok_or_else(missing)?;
        if tags.len() >= TAGS_MAX && tags.iter().all(|one| one.tag != tag) {
            let message =
                format!("template {name:?} has {} tags, as many as it may: move one of them", tags.len());
            return Err(Fault::new(ErrorCode::TooManyRequests, message));
        }
        templates::put_tag(&mut tx, team, name, tag, number).await?;
        let tags = templates::tags(&mut *tx, team, &names).await?;
        tx.commit().await?;
        Ok(described(found, &tags))
    }

    /// Deletes a template that the team has built, with all its versions and tags. Sandboxes that were created from it do not
    /// need it. What it has on hosts is removed there later, when nothing else needs it.
    pub async fn delete(&self, caller: &Caller, name: &str) -> Result<(), Fault> {
        check(name)?;
        let team = caller.team().uuid();
        let mut tx = self.app.db.begin().await?;
        templates::lock_names(&mut tx, team).await?;
        if templates::delete(&mut tx, team, name).await? > 0 {
            return Ok(tx.commit().await?);
        }
        let is_snapshot = templates::is_snapshot(&mut tx, team, name).await?;
        drop(tx);
        Err(self.not_deleted(caller.team(), name, is_snapshot).await?)
    }

    /// Forgets results of steps of the team's builds that were not used for longer than this, but not those that a build in work
    /// may have found. Versions of templates need none of them. Their disks are removed from the hosts within the hour.
    pub async fn prune(&self, caller: &Caller, age: Duration) -> Result<PrunedCache, Fault> {
        let team = caller.team().uuid();
        let mut all = PrunedCache { results: 0, bytes: 0 };
        loop {
            let pruned = layers::prune(&self.app.db, team, age, PRUNED).await?;
            all.results += pruned.results.unsigned_abs();
            all.bytes += pruned.bytes.max(0).unsigned_abs();
            if pruned.results < PRUNED {
                return Ok(all);
            }
        }
    }

    /// The team whose template a name means: the platform, if only that has built one.
    async fn owner(&self, team: TeamId, name: &str) -> Result<TeamId, Fault> {
        let is_own = templates::is_built(&self.app.db, team.uuid(), name).await?;
        Ok(if is_own { team } else { TeamId::PLATFORM })
    }

    /// Deletes all that the team has of templates, images and snapshots, and cancels its builds: for a team that is deleted. What
    /// hosts and the store have of it is removed there later. Returns the number of versions and snapshots.
    pub async fn delete_all(&self, caller: &Caller) -> Result<u64, Fault> {
        let team = caller.team().uuid();
        let mut tx = self.app.db.begin().await?;
        templates::lock_names(&mut tx, team).await?;
        let deleted = templates::delete_all(&mut tx, team).await?;
        tx.commit().await?;
        Ok(deleted)
    }

    /// Returns why there was nothing to delete.
    async fn not_deleted(&self, team: TeamId, name: &str, is_snapshot: bool) -> Result<Fault, Fault> {
        if is_snapshot {
            let message = format!("{name:?} is a snapshot: delete it as a snapshot");
            return Ok(Fault::new(ErrorCode::NotFound, message));
        }
        let is_on_hosts = hosts::has_template(&self.app.db, name).await?;
        if is_on_hosts && team == TeamId::PLATFORM {
            let message = format!("{name:?} is a template in the hosts' files: remove it there");
            return Ok(Fault::new(ErrorCode::Forbidden, message));
        }
        if is_on_hosts || has_template(&self.app, TeamId::PLATFORM.uuid(), name).await? {
            let message = format!("{name:?} is a template of the platform, which teams cannot delete");
            return Ok(Fault::new(ErrorCode::Forbidden, message));
        }
        Ok(none(name))
    }
}

/// Fails if nothing can have this name.
fn check(name: &str) -> Result<(), Fault> {
    if is_template_name(name) { Ok(()) } else { Err(none(name)) }
}

/// The fault of a template that is not there.
fn none(name: &str) -> Fault {
    Fault::new(ErrorCode::NotFound, format!("the team has built no template named {}", Foreign(name)))
}

/// Describes a template in the files of hosts.
fn on_hosts(name: String) -> Template {
    Template {
        name,
        kind: TemplateKind::Base,
        platform: true,
        version: None,
        tags: BTreeMap::new(),
        vcpus: None,
        memory_mb: None,
        created_at: None,
    }
}

fn of_snapshot(snapshot: Snapshot) -> Template {
    Template {
        name: snapshot.name,
        kind: TemplateKind::Snapshot,
        platform: false,
        version: None,
        tags: BTreeMap::new(),
        vcpus: Some(snapshot.vcpus),
        memory_mb: Some(snapshot.memory_mb),
        created_at: Some(snapshot.created_at),
    }
}

/// Describes a template that the team has built, by one of its versions.
fn built(version: Version, tags: BTreeMap<String, u32>) -> Template {
    let is_snapshot = version.snapshot_id.is_some();
    Template {
        name: version.name,
        kind: kind(is_snapshot),
        platform: false,
        version: Some(version.version as u32),
        tags,
        vcpus: is_snapshot.then_some(version.vcpus as u32),
        memory_mb: is_snapshot.then_some(version.memory_mb as u32),
        created_at: Some(version.created_at),
    }
}

/// Describes a version; the tags are all of its template.
fn described(version: Version, tags: &[Tag]) -> TemplateVersion {
    let is_snapshot = version.snapshot_id.is_some();
    let tags = tags.iter().filter(|tag| tag.version == version.version);
    TemplateVersion {
        tags: tags.map(|tag| tag.tag.clone()).collect(),
        kind: kind(is_snapshot),
        envs: version.envs(),
        version: version.version as u32,
        build_id: version.build_id.into(),
        cache_key: version.key,
        size_mb: version.size_mb as u64,
        vcpus: is_snapshot.then_some(version.vcpus as u32),
        memory_mb: is_snapshot.then_some(version.memory_mb as u32),
        disk_size_mb: is_snapshot.then_some(version.disk_size_mb as u32),
        name: version.name,
        user: version.default_user,
        workdir: version.workdir,
        created_at: version.created_at,
    }
}

const fn kind(is_snapshot: bool) -> TemplateKind {
    if is_snapshot { TemplateKind::Snapshot } else { TemplateKind::Base }
}
