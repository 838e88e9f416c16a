// SPDX-License-Identifier: Apache-2.0
//! API keys of a team, made and revoked by who runs Wrenn: a key that was lost is no dead end.

use anyhow::{Context as _, Error, Result, bail};
use wrenn_api::{ApiKey, ApiKeyId, CreateApiKey, CreatedApiKey, TeamId};

use super::Admin;
use crate::{
    audit,
    by::By,
    caller::{Permission, Permissions},
    db::{keys, teams},
    deeds::{AuditResource, Deed},
    error::Fault,
    keys::{KEYS, check_end, check_name, scopes},
    secrets::{hash, new_key, shown},
};

/// Number of keys that are read at a time; a team has no more than some pages of them.
const PAGE: i64 = 100;

impl Admin {
    /// Creates an API key of a team, of the oldest one by default. It does all that an administrator of the team may, or what its
    /// scopes say; with `administers`, it administers the platform too.
    pub async fn create_key(
        &self,
        team: Option<TeamId>,
        new: &CreateApiKey,
        administers: bool,
    ) -> Result<CreatedApiKey> {
        let team = self.team(team).await?;
        let name = check_name(&new.name).map_err(told)?;
        check_end(new.expires_at).map_err(told)?;
        let scopes =
            new.scopes.as_deref().map(|names| scopes(names, Permissions::ALL)).transpose().map_err(told)?;
        let names = scopes.map(Permissions::names);
        let (id, key) = (ApiKeyId::new(), new_key());
        let row = keys::NewRow {
            id: id.uuid(),
            team: team.uuid(),
            name,
            prefix: shown(&key),
            secret_sha256: &hash(&key),
            is_admin: administers || scopes.is_some_and(|scopes| scopes.contains(Permission::PlatformAdmin)),
            created_by: None,
            scopes: names.as_deref(),
            expires_at: new.expires_at,
        };
        let mut tx = self.db.begin().await?;
        if !keys::insert(&mut tx, &row, KEYS).await? {
            bail!("the team has {KEYS} API keys: revoke some that are not used");
        }
        let made = keys::lock(&mut tx, team.uuid(), id.uuid()).await?.context("the new key is gone")?;
        let deed =
            Deed::new(By::OPERATOR, team, "api_key.create").on(AuditResource::new("api_key", id).named(name));
        audit::record(&mut *tx, &deed).await?;
        tx.commit().await?;
        Ok(CreatedApiKey { key: key.into(), api_key: made.public() })
    }

    /// Lists the API keys of a team, of the oldest one by default, that were not revoked, newest first.
    pub async fn list_keys(&self, team: Option<TeamId>) -> Result<Vec<ApiKey>> {
        let team = self.team(team).await?;
        let mut all: Vec<ApiKey> = Vec::new();
        loop {
            let before = all.last().map(|last| last.id.uuid());
            let page = keys::page(&self.db, team.uuid(), before, PAGE).await?;
            let is_last = page.len() < PAGE as usize;
            all.extend(page.into_iter().map(keys::Row::public));
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Revokes an API key of a team, of the oldest one by default. Servers refuse it within a second, and end streams that are open
    /// by it when they next look.
    pub async fn revoke_key(&self, team: Option<TeamId>, id: ApiKeyId) -> Result<()> {
        let team = self.team(team).await?;
        let name = keys::revoke(&self.db, team.uuid(), id.uuid()).await?;
        let name = name.with_context(|| format!("there is no API key {id} of {team}, or it was revoked"))?;
        let deed =
            Deed::new(By::OPERATOR, team, "api_key.revoke").on(AuditResource::new("api_key", id).named(name));
        audit::record(&self.db, &deed).await.context("it is revoked, but the audit log does not say so")
    }

    /// Returns the team, if it is there, or the oldest one.
    async fn team(&self, team: Option<TeamId>) -> Result<TeamId> {
        let Some(team) = team else {
            return Ok(keys::first_team(&self.db, TeamId::new().uuid(), "default").await?.into());
        };
        let found = teams::find(&self.db, team.uuid(), None).await?;
        found.with_context(|| format!("there is no team {team}"))?;
        Ok(team)
    }
}

fn told(fault: Fault) -> Error {
    Error::msg(fault.message)
}
