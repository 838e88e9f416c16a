// SPDX-License-Identifier: Apache-2.0
//! Records of the audit log: who did what, to what, from where, and with which outcome.

use std::{fmt, fmt::Display, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Actor, AuditId, TeamId};

/// A record of the audit log. It stays as it was written: it names who acted and what was acted on as they were called then, also
/// when both are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "au03halx8fdhw2fu3txwbd0kdw0", "at": "2026-01-31T09:30:02.5Z", "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
    "actor": {"kind": "api_key", "id": "key03halx8fdhw2fu3txwbd0kdw0", "name": "ci"}, "action": "sandbox.create",
    "resource": {"kind": "sandbox", "id": "sb03halx8fdhw2fu3txwbd0kdw0"}, "outcome": "succeeded", "address": "192.0.2.7",
    "request_id": "019c139e1c4b7c6d8a5f0123456789ab"
}))]
pub struct AuditRecord {
    /// Id of the record.
    #[schema(value_type = String, pattern = "^au[0-9a-e][0-9a-z]{24}$")]
    pub id: AuditId,
    /// When it was done.
    pub at: DateTime<Utc>,
    /// Team whose log this is in. What was done for no team, such as a sign-in that failed, is in that of the platform.
    #[schema(value_type = String, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: TeamId,
    /// Who did it.
    pub actor: Actor,
    /// What was done: a kind of thing and a verb, such as `sandbox.create`.
    #[schema(pattern = "^[a-z0-9_]+\\.[a-z0-9_]+$")]
    pub action: String,
    /// What it was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub resource: Option<AuditedResource>,
    /// What became of it.
    pub outcome: AuditOutcome,
    /// Code of the error, if it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error_code: Option<String>,
    /// Address of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub address: Option<String>,
    /// Id of the request, as in its response and in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub request_id: Option<String>,
}

/// What something was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"kind": "sandbox", "id": "sb03halx8fdhw2fu3txwbd0kdw0", "name": "web"}))]
pub struct AuditedResource {
    /// What kind of thing it is, such as `sandbox`.
    pub kind: String,
    /// Its id, or its name if it has no id.
    pub id: String,
    /// Name that it had then, if that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<String>,
}

/// What became of what somebody did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[schema(example = "succeeded")]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// It was done.
    Succeeded,
    /// It was refused: the actor may not do it, or what was asked for is wrong.
    Refused,
    /// It failed, through no fault of the actor.
    Failed,
    /// Nobody waited for it to end: the client went away. It may have been done.
    Unknown,
}

impl AuditOutcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Refused, Self::Failed, Self::Unknown];

    /// The outcome as it stands in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl Display for AuditOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AuditOutcome {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text).ok_or(())
    }
}

/// Form of an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// Comma-separated values, with a line of headings.
    Csv,
    /// A JSON object per line.
    #[default]
    Jsonl,
}

impl FromStr for ExportFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "csv" => Ok(Self::Csv),
            "jsonl" => Ok(Self::Jsonl),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_json() {
        for outcome in AuditOutcome::ALL {
            assert_eq!(serde_json::json!(outcome), outcome.as_str());
            assert_eq!(outcome.as_str().parse(), Ok(outcome));
        }
        assert_eq!("done".parse::<AuditOutcome>(), Err(()));
    }
}
