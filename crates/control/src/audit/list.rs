// SPDX-License-Identifier: Apache-2.0
//! Reading of the audit log: pages, newest first, that skip nothing, and exports of all that a filter passes.

use std::sync::Arc;

use wrenn_api::{AuditId, AuditRecord, ErrorCode, TeamId};

use super::csv;
use crate::{
    caller::{Caller, Permission},
    db::audit::{self, Row},
    deeds::AuditFilter,
    error::Fault,
    state::State,
};

/// Number of records that an export reads at a time.
const CHUNK: u32 = 500;

/// A page of the audit log.
#[derive(Debug)]
#[non_exhaustive]
pub struct Recorded {
    /// The records, newest first.
    pub records: Vec<AuditRecord>,
    /// The last of them, if older ones follow.
    pub next: Option<AuditId>,
}

/// The audit log.
#[derive(Clone)]
pub struct Audit {
    state: Arc<State>,
}

impl Audit {
    /// Maximum number of records of a page.
    pub const MAX: u32 = 200;
    /// Number of records of a page if nothing else is wanted.
    pub const DEFAULT: u32 = 50;
    /// Maximum number of actions of a filter.
    pub const ACTIONS_MAX: usize = 32;

    pub(crate) const fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// Returns a page of the log of the caller's team, of records that are older than `before`.
    pub async fn list(
        &self,
        caller: &Caller,
        filter: &AuditFilter,
        before: Option<AuditId>,
        limit: u32,
    ) -> Result<Recorded, Fault> {
        caller.require(Permission::AuditRead)?;
        self.page(Some(caller.team()), filter, before, limit).await
    }

    /// Returns a page of the logs of all teams, for administrators of the platform.
    pub async fn list_all(
        &self,
        caller: &Caller,
        filter: &AuditFilter,
        before: Option<AuditId>,
        limit: u32,
    ) -> Result<Recorded, Fault> {
        caller.require(Permission::PlatformAdmin)?;
        self.page(None, filter, before, limit).await
    }

    /// Begins to export what the filter passes of the log of the caller's team, newest first.
    pub async fn export(&self, caller: &Caller, filter: AuditFilter) -> Result<Export, Fault> {
        caller.require(Permission::AuditRead)?;
        audit::order(&self.state.db).await?;
        Ok(Export { state: self.state.clone(), caller: *caller, filter, before: None, done: false })
    }

    async fn page(
        &self,
        team: Option<TeamId>,
        filter: &AuditFilter,
        before: Option<AuditId>,
        limit: u32,
    ) -> Result<Recorded, Fault> {
        let db = &self.state.db;
        // All that was recorded until now is in its order.
        audit::order(db).await?;
        let before = match before {
            Some(id) => Some(audit::place(db, id.uuid()).await?.ok_or_else(|| unknown(id))?),
            None => None,
        };
        let mut rows = audit::page(db, team.map(TeamId::uuid), filter, before, i64::from(limit) + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|last| last.id.into());
        Ok(Recorded { records: rows.into_iter().map(Row::public).collect(), next })
    }
}

fn unknown(id: AuditId) -> Fault {
    Fault::invalid(format!("cursor: no record {id} is kept: begin again without a cursor"))
}

/// Export of the audit log, in parts.
pub struct Export {
    state: Arc<State>,
    caller: Caller,
    filter: AuditFilter,
    before: Option<i64>,
    done: bool,
}

impl Export {
    /// Returns the next records; `None` at the end. Fails if the caller may not read them any more.
    pub async fn next(&mut self) -> Result<Option<Vec<AuditRecord>>, Fault> {
        if self.done {
            return Ok(None);
        }
        if self.before.is_some() {
            let now = self.state.access.again(&self.caller).await?;
            let ended = || {
                Fault::new(
                    ErrorCode::Unauthorized,
                    "the export ends: its caller may not read the audit log any more",
                )
            };
            now.ok_or_else(ended)?.require(Permission::AuditRead)?;
        }
        let team = Some(self.caller.team().uuid());
        let rows = audit::page(&self.state.db, team, &self.filter, self.before, i64::from(CHUNK)).await?;
        self.done = rows.len() < CHUNK as usize;
        self.before = rows.last().map(|last| last.place);
        Ok((!rows.is_empty()).then(|| rows.into_iter().map(Row::public).collect()))
    }

    /// The line of headings of an export as comma-separated values.
    pub const HEADINGS: &str = "id,at,team_id,actor_kind,actor_id,actor_name,action,resource_kind,resource_id,resource_name,\
                                outcome,error_code,address,request_id\r\n";

    /// Renders a record as a line of comma-separated values.
    pub fn csv(record: &AuditRecord) -> String {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let resource = record.resource.as_ref();
        csv::line(&[
            record.id.to_string(),
            record.at.to_rfc3339(),
            record.team_id.to_string(),
            record.actor.kind.to_string(),
            text(&record.actor.id),
            text(&record.actor.name),
            record.action.clone(),
            resource.map(|resource| resource.kind.clone()).unwrap_or_default(),
            resource.map(|resource| resource.id.clone()).unwrap_or_default(),
            resource.and_then(|resource| resource.name.clone()).unwrap_or_default(),
            record.outcome.to_string(),
            text(&record.error_code),
            text(&record.address),
            text(&record.request_id),
        ])
    }

    /// Renders a record as a line of JSON.
    pub fn json(record: &AuditRecord) -> String {
        // A record is always JSON.
        let mut line = serde_json::to_string(record).unwrap_or_default();
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use wrenn_api::{Actor, ActorKind, AuditOutcome, AuditedResource};

    use super::*;

    #[test]
    fn a_line_has_what_the_headings_say() {
        let record = AuditRecord {
            id: AuditId::new(),
            at: Utc::now(),
            team_id: TeamId::new(),
            actor: Actor { kind: ActorKind::User, id: None, name: Some("=HYPERLINK(\"x\")".to_owned()) },
            action: "sandbox.create".to_owned(),
            resource: Some(AuditedResource { kind: "sandbox".to_owned(), id: "a,b".to_owned(), name: None }),
            outcome: AuditOutcome::Refused,
            error_code: Some("forbidden".to_owned()),
            address: None,
            request_id: None,
        };
        let line = Export::csv(&record);
        let columns = Export::HEADINGS.split(',').count();
        // One comma is in quotes.
        assert_eq!(line.matches(',').count(), columns, "{line}");
        assert!(
            line.contains(r#","'=HYPERLINK(""x"")",sandbox.create,sandbox,"a,b",,refused,forbidden,,"#),
            "{line}"
        );
        assert!(line.ends_with("\r\n") && Export::json(&record).ends_with("}\n"));
        let read: AuditRecord = serde_json::from_str(&Export::json(&record)).expect("a record");
        assert_eq!(read, record);
    }
}
