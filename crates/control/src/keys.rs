// SPDX-License-Identifier: Apache-2.0
//! API keys of teams: created, listed, changed and revoked. The secret of a key is shown once, and stored as its hash.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use wrenn_api::{ApiKey, ApiKeyId, CreateApiKey, CreatedApiKey, ErrorCode, UpdateApiKey, UserId};
use wrenn_rpc::Foreign;

use crate::{
    access::Changed,
    caller::{Caller, Permission, Permissions, Principal},
    db::keys,
    deeds::{self, AuditResource},
    error::Fault,
    secrets::{hash, new_key, shown},
    state::State,
};

/// Maximum number of keys of a team.
pub(crate) const KEYS: i64 = 500;
/// Maximum length of a name, in characters.
const NAME_MAX: usize = 100;

/// A page of a list of keys.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct KeyPage {
    /// Maximum number of keys, up to [`KeyPage::MAX`].
    pub limit: u32,
    /// Continue with the keys that are older than this one.
    pub before: Option<ApiKeyId>,
}

impl KeyPage {
    /// Maximum number of keys of a page.
    pub const MAX: u32 = 100;
}

impl Default for KeyPage {
    fn default() -> Self {
        Self { limit: 50, before: None }
    }
}

/// API keys of teams.
#[derive(Clone)]
pub struct Keys {
    state: Arc<State>,
}

impl Keys {
    pub(crate) const fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// Creates a key of the caller's team, with permissions that the caller has. One that a key makes ends no later than that.
    pub async fn create(&self, caller: &Caller, new: CreateApiKey) -> Result<CreatedApiKey, Fault> {
        let name = check_name(&new.name)?;
        check_end(new.expires_at)?;
        let by = self.calling(caller).await?;
        let last = by.as_ref().and_then(|key| key.expires_at);
        check_not_after(new.expires_at, last)?;
        let most = caller.permissions();
        // A key that makes another one gives no more than it has.
        let scopes = match new.scopes {
            Some(names) => Some(scopes(&names, most)?),
            None if caller.user().is_some() || most.has_all(of_team_admin()) => None,
            None => Some(most.without(Permission::PlatformAdmin)),
        };
        let is_admin = scopes.is_some_and(|scopes| scopes.contains(Permission::PlatformAdmin));
        let names = scopes.map(Permissions::names);
        let (id, key) = (ApiKeyId::new(), new_key());
        let row = keys::NewRow {
            id: id.uuid(),
            team: caller.team().uuid(),
            name,
            prefix: shown(&key),
            secret_sha256: &hash(&key),
            is_admin,
            // Who made a key answers for those that it makes.
            created_by: by.map_or_else(|| caller.user().map(UserId::uuid), |key| key.created_by),
            scopes: names.as_deref(),
            expires_at: new.expires_at.or(last),
        };
        let mut tx = self.state.db.begin().await?;
        if !keys::insert(&mut tx, &row, KEYS).await? {
            let message = format!("the team has {KEYS} API keys: revoke some that are not used");
            return Err(Fault::new(ErrorCode::Conflict, message));
        }
        let made = keys::lock(&mut tx, caller.team().uuid(), id.uuid()).await?.ok_or_else(|| unknown(id))?;
        tx.commit().await?;
        deeds::about(AuditResource::new("api_key", id).named(name));
        Ok(CreatedApiKey { key: key.into(), api_key: made.public() })
    }

    /// Returns the key that a caller is; `None` if it is another caller.
    async fn calling(&self, caller: &Caller) -> Result<Option<keys::Key>, Fault> {
        let Principal::Key(key) = caller.principal() else { return Ok(None) };
        // One that has ended since the request began would make keys that are nobody's.
        let ended = || Fault::new(ErrorCode::Unauthorized, "the API key was revoked, or its time is over");
        keys::find_id(&self.state.db, key.uuid()).await?.ok_or_else(ended).map(Some)
    }

    /// Returns a page of the team's keys that were not revoked, the newest first, and the last one of it if there are more.
    pub async fn list(
        &self,
        caller: &Caller,
        page: KeyPage,
    ) -> Result<(Vec<ApiKey>, Option<ApiKeyId>), Fault> {
        let limit = page.limit.clamp(1, KeyPage::MAX) as usize;
        let (team, before) = (caller.team().uuid(), page.before.map(ApiKeyId::uuid));
        // One more row than requested shows whether there is another page.
        let mut rows = keys::page(&self.state.db, team, before, limit as i64 + 1).await?;
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let keys: Vec<ApiKey> = rows.into_iter().map(keys::Row::public).collect();
        let next = keys.last().filter(|_| has_more).map(|key| key.id);
        Ok((keys, next))
    }

    /// Changes a key of the team; its secret stays. Takes effect at once. A key gives no later end than its own, also not to itself.
    pub async fn update(&self, caller: &Caller, id: ApiKeyId, change: UpdateApiKey) -> Result<ApiKey, Fault> {
        let name = change.name.as_deref().map(check_name).transpose()?;
        check_end(change.expires_at)?;
        let by = self.calling(caller).await?;
        check_not_after(change.expires_at, by.and_then(|key| key.expires_at))?;
        let wished = change.scopes.map(|names| scopes(&names, caller.permissions())).transpose()?;
        let mut tx = self.state.db.begin().await?;
        let team = caller.team().uuid();
        let row = keys::lock(&mut tx, team, id.uuid()).await?.ok_or_else(|| unknown(id))?;
        deeds::about(AuditResource::new("api_key", id).named(row.name.clone()));
        let names = wished.map(Permissions::names).or_else(|| row.scopes.clone());
        keys::update(
            &mut tx,
            id.uuid(),
            name.unwrap_or(&row.name),
            names.as_deref(),
            wished.map(|scopes| scopes.contains(Permission::PlatformAdmin)),
            change.expires_at.or(row.expires_at),
        )
        .await?;
        let changed = keys::lock(&mut tx, team, id.uuid()).await?.ok_or_else(|| unknown(id))?;
        tx.commit().await?;
        self.state.access.forget(Changed::Key(id)).await;
        Ok(changed.public())
    }

    /// Revokes a key of the team at once, also for streams that are open.
    pub async fn revoke(&self, caller: &Caller, id: ApiKeyId) -> Result<(), Fault> {
        let name = keys::revoke(&self.state.db, caller.team().uuid(), id.uuid()).await?;
        let name = name.ok_or_else(|| unknown(id))?;
        deeds::about(AuditResource::new("api_key", id).named(name));
        self.state.access.forget(Changed::Key(id)).await;
        Ok(())
    }
}

/// Permissions of a key without scopes.
fn of_team_admin() -> Permissions {
    Permissions::OF_TEAM.without(Permission::TeamDelete)
}

/// Reads the permissions that a key is to have. Fails for one that its maker does not have, or that no key can have.
pub(crate) fn scopes(names: &[String], most: Permissions) -> Result<Permissions, Fault> {
    if names.is_empty() {
        return Err(Fault::invalid(
            "scopes is empty: name the permissions that the key has, or leave it out",
        ));
    }
    let mut scopes = Permissions::NONE;
    for name in names {
        let shown = Foreign(name);
        let permission = name.parse::<Permission>().ok().filter(|one| *one != Permission::AccountSelf);
        let permission = permission.ok_or_else(|| {
            let possible = Permissions::ALL.without(Permission::AccountSelf).names().join(", ");
            Fault::invalid(format!(
                "scopes has {shown}, which is no permission of a key: there are {possible}"
            ))
        })?;
        if !most.contains(permission) {
            let message = format!(
                "scopes has {shown}, which you do not have yourself: a key does no more than its maker may"
            );
            return Err(Fault::new(ErrorCode::Forbidden, message));
        }
        scopes = scopes.and(permission);
    }
    Ok(scopes)
}

pub(crate) fn check_name(name: &str) -> Result<&str, Fault> {
    let length = name.chars().count();
    let is_name =
        (1..=NAME_MAX).contains(&length) && name.trim() == name && !name.chars().any(char::is_control);
    if is_name {
        return Ok(name);
    }
    Err(Fault::invalid(format!(
        "name is {}: it must be 1 to {NAME_MAX} characters, none of them a control character, without spaces around it",
        Foreign(name)
    )))
}

pub(crate) fn check_end(expires_at: Option<DateTime<Utc>>) -> Result<(), Fault> {
    match expires_at {
        Some(end) if end <= Utc::now() => {
            Err(Fault::invalid("expires_at is not in the future: give a later time, or leave it out"))
        }
        _ => Ok(()),
    }
}

/// Fails if a key would get a later end than the key that asks for it has.
fn check_not_after(expires_at: Option<DateTime<Utc>>, last: Option<DateTime<Utc>>) -> Result<(), Fault> {
    match (expires_at, last) {
        (Some(end), Some(last)) if end > last => {
            let message = format!(
                "expires_at is later than {}, when your own API key ends: give that time or an earlier one, or let a user do it",
                last.to_rfc3339()
            );
            Err(Fault::new(ErrorCode::Forbidden, message))
        }
        _ => Ok(()),
    }
}

fn unknown(id: ApiKeyId) -> Fault {
    Fault::new(ErrorCode::NotFound, format!("there is no API key {id}, or it was revoked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_no_scope_that_its_maker_has_not() {
        let most = Permissions::NONE.and(Permission::SandboxRead).and(Permission::AccountSelf);
        let wished = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            scopes(&names, most).map_err(|fault| fault.code)
        };
        assert_eq!(wished(&["sandbox.read"]), Ok(Permissions::NONE.and(Permission::SandboxRead)));
        assert_eq!(wished(&["sandbox.read", "sandbox.exec"]), Err(ErrorCode::Forbidden));
        assert_eq!(wished(&["platform.admin"]), Err(ErrorCode::Forbidden));
        for wrong in [&[][..], &["account.self"], &["sandbox"], &[""]] {
            assert_eq!(wished(wrong), Err(ErrorCode::InvalidRequest), "{wrong:?}");
        }
    }

    #[test]
    fn a_key_gives_no_later_end_than_its_own() {
        let at = |second| DateTime::from_timestamp(second, 0);
        assert!(check_not_after(at(1), at(1)).is_ok() && check_not_after(at(1), at(2)).is_ok());
        assert!(check_not_after(at(2), None).is_ok() && check_not_after(None, at(1)).is_ok());
        assert_eq!(check_not_after(at(2), at(1)).map_err(|fault| fault.code), Err(ErrorCode::Forbidden));
    }

    #[test]
    fn names_are_short_and_printable() {
        for name in ["ci", "Ada's laptop", "ключ"] {
            assert_eq!(check_name(name).ok(), Some(name));
        }
        for name in ["", " ", "a ", "a\nb", &"x".repeat(101)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
