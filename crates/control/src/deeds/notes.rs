// SPDX-License-Identifier: Apache-2.0
//! What is found out while a request is worked on, for its record: what it is about, and who it is that signs in.

use std::sync::{Arc, Mutex, PoisonError};

use wrenn_api::{SessionId, TeamId, UserId};

use super::AuditResource;
use crate::{by::Who, caller::Principal};

tokio::task_local! {
    static NOTES: Notes;
}

/// Notes of one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Noted>>);

/// What was noted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Noted {
    /// Who acts, and for which team, if the credentials of the request do not tell.
    pub(crate) who: Option<(Who, TeamId)>,
    /// What the request is about.
    pub(crate) resource: Option<AuditResource>,
}

impl Notes {
    /// Returns what was noted.
    pub(crate) fn take(&self) -> Noted {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, write: impl FnOnce(&mut Noted)) {
        write(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Works on a request, and takes notes.
pub(crate) async fn noted<T>(notes: Notes, work: impl Future<Output = T>) -> T {
    NOTES.scope(notes, work).await
}

/// Notes what the current request is about; without effect outside of a request.
pub(crate) fn about(resource: AuditResource) {
    let _ = NOTES.try_with(|notes| notes.note(|noted| noted.resource = Some(resource)));
}

/// Notes who it is that the current request concerns, which has no credentials: the user who signs in, also if that fails. Their
/// team is the one that they act for, or [`TeamId::NONE`].
pub(crate) fn by(user: UserId, team: TeamId) {
    // Records have no session.
    let session = SessionId::from(uuid::Uuid::nil());
    let who = Who::Principal(Principal::User { user, session });
    let _ = NOTES.try_with(|notes| notes.note(|noted| noted.who = Some((who, team))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn notes_are_of_their_request() {
        about(AuditResource::new("sandbox", "nobodys"));
        let (notes, user, team) = (Notes::default(), UserId::new(), TeamId::new());
        noted(notes.clone(), async {
            by(user, team);
            about(AuditResource::new("sandbox", "a"));
            about(AuditResource::new("sandbox", "b"));
        })
        .await;
        let noted = notes.take();
        assert_eq!(noted.resource, Some(AuditResource::new("sandbox", "b")));
        assert!(
            noted.who.is_some_and(|(who, of)| of == team && who.named(None).id == Some(user.to_string()))
        );
        assert!(notes.take().resource.is_none());
    }
}
