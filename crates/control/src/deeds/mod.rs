// SPDX-License-Identifier: Apache-2.0
//! Deeds: what somebody did, as the audit log records it, and what is known of it before it is recorded. What is found out while a
//! request is worked on is noted with [`about`] and [`by`].

mod filter;
mod notes;
mod unwritten;

use std::{borrow::Cow, fmt::Display, net::IpAddr};

use chrono::{DateTime, Utc};
use wrenn_api::{AuditId, AuditOutcome, ErrorCode, TeamId};

use crate::by::{By, Who};

pub use filter::AuditFilter;
pub(crate) use notes::{Notes, about, by, noted};
pub(crate) use unwritten::{Unwritten, lose};

/// Maximum length of a text in a record, in bytes: names come from clients.
const TEXT_MAX: usize = 512;

/// What somebody did.
#[derive(Debug, Clone)]
pub(crate) struct Deed {
    pub(crate) id: AuditId,
    pub(crate) at: DateTime<Utc>,
    /// Team whose log it is in.
    pub(crate) team: TeamId,
    pub(crate) who: Who,
    /// Kind of thing and verb, such as `sandbox.create`.
    pub(crate) action: Cow<'static, str>,
    pub(crate) resource: Option<AuditResource>,
    pub(crate) outcome: AuditOutcome,
    pub(crate) error: Option<ErrorCode>,
    /// Address of the client.
    pub(crate) address: Option<IpAddr>,
    pub(crate) request_id: Option<String>,
}

/// What a deed is done to. The layer takes it from the path; a handler of an extension that makes something puts it into the extensions
/// of its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditResource {
    pub(crate) kind: Cow<'static, str>,
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    pub(crate) team: Option<TeamId>,
}

impl AuditResource {
    /// Creates it from the kind of thing, such as `sandbox`, and its id.
    pub fn new(kind: impl Into<Cow<'static, str>>, id: impl Display) -> Self {
        Self { kind: kind.into(), id: cut(id.to_string()), name: None, team: None }
    }

    /// Adds the name that it has now.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: Some(cut(name.into())), ..self }
    }

    /// Names the team in whose log the deed is, if that is not the team of the caller.
    #[must_use]
    pub fn of_team(self, team: TeamId) -> Self {
        Self { team: Some(team), ..self }
    }
}

impl Deed {
    /// Creates a deed that has succeeded, of something that happens without a request.
    pub(crate) fn new(by: By, team: TeamId, action: impl Into<Cow<'static, str>>) -> Self {
        Self {
            id: AuditId::new(),
            at: Utc::now(),
            team,
            who: by.who,
            action: action.into(),
            resource: None,
            outcome: AuditOutcome::Succeeded,
            error: None,
            address: None,
            request_id: None,
        }
    }

    /// Adds what it was done to.
    #[must_use]
    pub(crate) fn on(self, resource: AuditResource) -> Self {
        let team = resource.team.unwrap_or(self.team);
        Self { team, resource: Some(resource), ..self }
    }

    /// Adds what became of it.
    #[must_use]
    pub(crate) fn with_outcome(self, outcome: AuditOutcome, error: Option<ErrorCode>) -> Self {
        Self { outcome, error, ..self }
    }
}

/// Makes a text what a record takes: not too long, and without what PostgreSQL has no place for.
fn cut(mut text: String) -> String {
    text.retain(|letter| letter != '\0');
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_name_is_bounded() {
        let resource = AuditResource::new("template", "é".repeat(TEXT_MAX)).named("x".repeat(TEXT_MAX + 1));
        assert_eq!((resource.id.len(), resource.name.map(|name| name.len())), (TEXT_MAX, Some(TEXT_MAX)));
        assert_eq!(cut("a\0b".to_owned()), "ab");
    }

    #[test]
    fn a_resource_of_another_team_is_in_the_log_of_that_team() {
        let (own, other) = (TeamId::new(), TeamId::new());
        let deed = Deed::new(By::SYSTEM, own, "sandbox.delete");
        assert_eq!(deed.clone().on(AuditResource::new("sandbox", "x")).team, own);
        assert_eq!(deed.on(AuditResource::new("sandbox", "x").of_team(other)).team, other);
    }
}
