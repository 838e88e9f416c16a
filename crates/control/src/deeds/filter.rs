// SPDX-License-Identifier: Apache-2.0
//! Which deeds are wanted.

use chrono::{DateTime, Utc};
use wrenn_api::{ActorKind, AuditOutcome};

/// Which records are wanted. With several conditions a record meets all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditFilter {
    /// Kind of the actor.
    pub actor_kind: Option<ActorKind>,
    /// Id of the actor.
    pub actor: Option<String>,
    /// Actions; none: all.
    pub actions: Vec<String>,
    /// Kind of the resource.
    pub resource_kind: Option<String>,
    /// Id of the resource.
    pub resource: Option<String>,
    /// Outcome.
    pub outcome: Option<AuditOutcome>,
    /// Not before this time.
    pub from: Option<DateTime<Utc>>,
    /// Before this time.
    pub to: Option<DateTime<Utc>>,
}
