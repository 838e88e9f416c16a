// SPDX-License-Identifier: Apache-2.0
//! Tickets: browsers cannot send a header with a WebSocket or an `EventSource`, and a key or token does not belong into a URL. A
//! ticket stands in the URL for its maker, in one request within seconds.

use std::time::Duration;

use wrenn_api::{CreatedTicket, ErrorCode, TeamId};

use super::{Access, CREDENTIAL_MAX, members, sessions};
use crate::{
    caller::{Caller, Principal},
    db::{keys, sessions as rows, tickets},
    error::Fault,
    secrets::hash,
};

/// Time within which a ticket is used.
const LIFETIME: Duration = Duration::from_secs(30);
/// Maximum number of unused tickets of a session or key.
const UNUSED: i64 = 100;
/// Maximum length of a path, in bytes.
const PATH_MAX: usize = 4096;

impl Access {
    /// Makes a ticket for one request with this method and path, as the caller.
    pub async fn create_ticket(
        &self,
        caller: &Caller,
        method: &str,
        path: &str,
    ) -> Result<CreatedTicket, Fault> {
        check(method, path)?;
        let (session, key) = match caller.principal() {
            Principal::User { session, .. } => (Some(session.uuid()), None),
            Principal::Key(key) => (None, Some(key.uuid())),
            Principal::SignedUrl(_) | Principal::Extension { .. } => {
                let message = "only users and API keys make tickets";
                return Err(Fault::new(ErrorCode::Forbidden, message));
            }
        };
        let ticket = sessions::secret();
        let row = tickets::NewRow {
            secret_sha256: &hash(&ticket),
            session,
            key,
            team: caller.team().uuid(),
            method,
            path,
            lifetime_sec: LIFETIME.as_secs_f64(),
        };
        let expires_at = tickets::insert(&self.db, &row, UNUSED).await?.ok_or_else(|| {
            let message =
                format!("you have {UNUSED} tickets that were not used: use them, or wait until they end");
            Fault::new(ErrorCode::TooManyRequests, message)
        })?;
        Ok(CreatedTicket { ticket: ticket.into(), expires_at })
    }

    /// Returns the caller who made a ticket for this request, with what that one may do now; `None` if it is not valid. It is not
    /// valid a second time, and not after a try at another method or path either.
    pub async fn by_ticket(&self, ticket: &str, method: &str, path: &str) -> Result<Option<Caller>, Fault> {
        if ticket.is_empty() || ticket.len() > CREDENTIAL_MAX {
            return Ok(None);
        }
        let Some(used) = tickets::take(&self.db, &hash(ticket)).await? else { return Ok(None) };
        if used.method != method || used.path != path {
            return Ok(None);
        }
        let team = TeamId::from(used.team_id);
        let caller = match (used.session_id, used.key_id) {
            (Some(session), _) => {
                let row = rows::in_team(&self.db, session, used.team_id).await?;
                row.map(|row| members::caller_in(&row, team))
            }
            (None, Some(key)) => keys::find_id(&self.db, key).await?.map(|row| members::caller_of_key(&row)),
            (None, None) => None,
        };
        Ok(caller.filter(|caller| caller.team() == team))
    }
}

/// Checks what a ticket is for.
fn check(method: &str, path: &str) -> Result<(), Fault> {
    if method != "GET" {
        return Err(Fault::invalid(
            "method: a ticket is for GET, with which streams and WebSockets are opened",
        ));
    }
    let is_path = path.starts_with("/v1/")
        && path.len() <= PATH_MAX
        && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_path || path.contains(['?', '#']) {
        return Err(Fault::invalid(
            "path: a ticket is for a path such as /v1/events/stream, as it stands in the URL, without the query",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_for_one_path() {
        assert!(check("GET", "/v1/events/stream").is_ok());
        for (method, path) in [
            ("POST", "/v1/sandboxes"),
            ("get", "/v1/events/stream"),
            ("GET", "v1/events/stream"),
            ("GET", "/v1/events/stream?since=0"),
            ("GET", "/v1/a b"),
            ("GET", "/health"),
        ] {
            let fault = check(method, path).expect_err("refused");
            assert_eq!(fault.code, ErrorCode::InvalidRequest, "{method} {path}");
        }
    }
}
