// SPDX-License-Identifier: Apache-2.0
//! Quotas of teams: limits on what a team has at a time, from the settings of the server or set for the team. They are checked in the
//! transaction that adds to what the team has, behind a lock of the team, so that no two requests exceed one together.

use chrono::{TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use wrenn_api::{ErrorCode, Quota, QuotaName, TeamId};

use crate::{
    config::Limits,
    db::{
        builds,
        quotas::{self, OfSandboxes, Own},
        snapshots,
    },
    error::Fault,
    place::Need,
};

/// A team that is locked until the transaction ends, with its quotas.
pub(crate) struct Locked<'a> {
    team: Uuid,
    quotas: Quotas<'a>,
}

/// Quotas of a team: its own, and else those of the server.
struct Quotas<'a> {
    own: Option<serde_json::Value>,
    limits: &'a Limits,
}

/// Locks a team, whose other requests wait from here on. Fails if it was deleted.
pub(crate) async fn lock<'a>(
    tx: &mut PgConnection,
    team: Uuid,
    limits: &'a Limits,
) -> Result<Locked<'a>, Fault> {
    let Own { quotas: own } = quotas::lock(tx, team).await?.ok_or_else(|| gone(team))?;
    Ok(Locked { team, quotas: Quotas { own, limits } })
}

/// Lists the quotas of a team, and what it uses of them.
pub(crate) async fn list(
    connection: &mut PgConnection,
    team: Uuid,
    limits: &Limits,
) -> Result<Vec<Quota>, Fault> {
    let Own { quotas: own } = quotas::own(connection, team).await?.ok_or_else(|| gone(team))?;
    let quotas = Quotas { own, limits };
    let used = quotas::of_sandboxes(connection, team).await?;
    let mut all = Vec::new();
    for name in QuotaName::ALL.iter().copied() {
        let used = match name {
            QuotaName::Snapshots => snapshots::count(connection, team, None).await?,
            QuotaName::Templates => quotas::templates(connection, team, "").await?,
            QuotaName::Builds => builds::count_open(connection, team).await?,
            QuotaName::CreatesPerMinute => quotas::created_from(connection, team, a_minute_ago()).await?,
            name => of_sandboxes(&used, name),
        };
        all.push(Quota { name, limit: u64::from(quotas.limit(name)), used: used.max(0).unsigned_abs() });
    }
    Ok(all)
}

impl Locked<'_> {
    /// Fails if a sandbox that needs this would exceed a quota.
    pub(crate) async fn check_create(&self, tx: &mut PgConnection, need: &Need<'_>) -> Result<(), Fault> {
        let created = quotas::created_from(tx, self.team, a_minute_ago()).await?;
        self.quotas.check(QuotaName::CreatesPerMinute, created, 1)?;
        let used = quotas::of_sandboxes(tx, self.team).await?;
        self.quotas.check(QuotaName::Sandboxes, used.sandboxes, 1)?;
        self.quotas.check(QuotaName::DiskMb, used.disk_mb, need.disk_size_mb.into())?;
        self.quotas.check_run(&used, need.vcpus, need.memory_mb)
    }

    /// Fails if a sandbox of these sizes that does not run cannot be resumed without exceeding a quota.
    pub(crate) async fn check_resume(
        &self,
        tx: &mut PgConnection,
        vcpus: i32,
        memory_mb: i32,
    ) -> Result<(), Fault> {
        self.quotas.check_run(&quotas::of_sandboxes(tx, self.team).await?, vcpus, memory_mb)
    }

    /// Fails if the team has as many paused sandboxes as it may. What is idle is paused all the same.
    pub(crate) async fn check_pause(&self, tx: &mut PgConnection) -> Result<(), Fault> {
        let used = quotas::of_sandboxes(tx, self.team).await?;
        self.quotas.check(QuotaName::Paused, used.paused, 1)
    }

    /// Fails if the team has as many named snapshots as it may, without the one that has the name `replaced`.
    pub(crate) async fn check_snapshot(
        &self,
        tx: &mut PgConnection,
        replaced: Option<&str>,
    ) -> Result<(), Fault> {
        let count = snapshots::count(tx, self.team, replaced).await?;
        self.quotas.check(QuotaName::Snapshots, count, 1)
    }

    /// Fails if a build of a template of this name would exceed a quota.
    pub(crate) async fn check_build(&self, tx: &mut PgConnection, name: &str) -> Result<(), Fault> {
        self.quotas.check(QuotaName::Builds, builds::count_open(tx, self.team).await?, 1)?;
        self.quotas.check(QuotaName::Templates, quotas::templates(tx, self.team, name).await?, 1)
    }
}

impl Quotas<'_> {
    /// Returns the limit of a quota.
    fn limit(&self, name: QuotaName) -> u32 {
        // One by one, so that a quota that this version does not know hides none of the others.
        let own = self.own.as_ref().and_then(|own| own.get(name.as_str())?.as_u64());
        own.map_or_else(|| of_server(self.limits, name), |own| own.try_into().unwrap_or(u32::MAX))
    }

    fn check_run(&self, used: &OfSandboxes, vcpus: i32, memory_mb: i32) -> Result<(), Fault> {
        self.check(QuotaName::Running, used.running, 1)?;
        self.check(QuotaName::Vcpus, used.vcpus, vcpus.into())?;
        self.check(QuotaName::MemoryMb, used.memory_mb, memory_mb.into())
    }

    /// Fails if `more` cannot be added to what is used.
    fn check(&self, name: QuotaName, used: i64, more: i64) -> Result<(), Fault> {
        let limit = self.limit(name);
        if used.saturating_add(more) <= i64::from(limit) {
            return Ok(());
        }
        Err(exceeded(name, limit, used, more))
    }
}

/// Returns the limit of teams that have none of their own.
const fn of_server(limits: &Limits, name: QuotaName) -> u32 {
    match name {
        QuotaName::Sandboxes => limits.sandboxes_per_team,
        QuotaName::Running => limits.running_per_team,
        QuotaName::Paused => limits.paused_per_team,
        QuotaName::Vcpus => limits.vcpus_per_team,
        QuotaName::MemoryMb => limits.memory_per_team_mb,
        QuotaName::DiskMb => limits.disk_per_team_mb,
        QuotaName::Snapshots => limits.snapshots_per_team,
        QuotaName::Templates => limits.templates_per_team,
        QuotaName::Builds => limits.builds_per_team,
        QuotaName::CreatesPerMinute => limits.creates_per_minute,
    }
}

/// Returns what sandboxes use of a quota; nothing of a quota of something else.
const fn of_sandboxes(used: &OfSandboxes, name: QuotaName) -> i64 {
    match name {
        QuotaName::Sandboxes => used.sandboxes,
        QuotaName::Running => used.running,
        QuotaName::Paused => used.paused,
        QuotaName::Vcpus => used.vcpus,
        QuotaName::MemoryMb => used.memory_mb,
        QuotaName::DiskMb => used.disk_mb,
        QuotaName::Snapshots | QuotaName::Templates | QuotaName::Builds | QuotaName::CreatesPerMinute => 0,
    }
}

/// The fault of a quota that would be exceeded: which one, how much of it is used, and what to do.
fn exceeded(name: QuotaName, limit: u32, used: i64, more: i64) -> Fault {
    let (what, remedy) = match name {
        QuotaName::Sandboxes => ("sandboxes", "delete some"),
        QuotaName::Running => ("running sandboxes", "pause or delete some"),
        QuotaName::Paused => ("paused sandboxes", "delete some, also failed ones"),
        QuotaName::Vcpus => ("vCPUs of running sandboxes", "pause or delete some"),
        QuotaName::MemoryMb => ("MiB of memory of running sandboxes", "pause or delete some"),
        QuotaName::DiskMb => ("MiB of disks of sandboxes", "delete some"),
        QuotaName::Snapshots => ("named snapshots", "delete some"),
        QuotaName::Templates => ("templates", "delete some"),
        QuotaName::Builds => ("builds that have not ended", "cancel some, or wait"),
        QuotaName::CreatesPerMinute => ("sandboxes created within a minute", "try again in a moment"),
    };
    let message = format!(
        "the team may have {limit} {what} (quota {name}), it has {used}, and this needs {more} more: {remedy}, or ask an \
         administrator of the platform for a larger quota"
    );
    Fault::new(ErrorCode::QuotaExceeded, message)
}

fn gone(team: Uuid) -> Fault {
    Fault::new(ErrorCode::NotFound, format!("there is no team {}: it was deleted", TeamId::from(team)))
}

/// Returns an id that is less than those that were made in the last minute, and greater than all others: ids begin with their time.
fn a_minute_ago() -> Uuid {
    let begin = (Utc::now() - TimeDelta::minutes(1)).timestamp_millis();
    uuid::Builder::from_unix_timestamp_millis(begin.max(0).unsigned_abs(), &[0; 10]).into_uuid()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wrenn_api::SandboxId;

    use super::*;

    #[test]
    fn a_team_has_its_own_limits_and_else_those_of_the_server() {
        let limits = Limits { running_per_team: 5, ..Limits::default() };
        let quotas = |own| Quotas { own, limits: &limits };
        assert_eq!(quotas(None).limit(QuotaName::Running), 5);
        let own = quotas(Some(json!({"vcpus": 0, "of_a_later_version": "x", "running": null})));
        assert_eq!((own.limit(QuotaName::Running), own.limit(QuotaName::Vcpus)), (5, 0));
        assert_eq!(quotas(Some(json!({"running": u64::MAX}))).limit(QuotaName::Running), u32::MAX);
    }

    #[test]
    fn a_refusal_says_which_limit_and_how_much_is_used() {
        let limits = Limits { vcpus_per_team: 10, ..Limits::default() };
        let quotas = Quotas { own: None, limits: &limits };
        assert!(quotas.check(QuotaName::Vcpus, 8, 2).is_ok());
        let fault = quotas.check(QuotaName::Vcpus, 8, 3).expect_err("refused");
        assert_eq!(fault.code, ErrorCode::QuotaExceeded);
        let begin = "the team may have 10 vCPUs of running sandboxes (quota vcpus), it has 8, and this needs 3 more: pause or delete";
        assert!(fault.message.starts_with(begin), "{}", fault.message);
        // Of a limit that was lowered below what there is, nothing more is given.
        assert!(quotas.check(QuotaName::Vcpus, 11, 0).is_err());
    }

    #[test]
    fn ids_of_the_last_minute_are_greater() {
        let begin = a_minute_ago();
        assert!(SandboxId::new().uuid() > begin && begin.get_version_num() == 7);
        let earlier = (Utc::now() - TimeDelta::seconds(61)).timestamp_millis().unsigned_abs();
        let earlier = uuid::Builder::from_unix_timestamp_millis(earlier, &[0xff; 10]).into_uuid();
        assert!(earlier < begin);
    }
}
