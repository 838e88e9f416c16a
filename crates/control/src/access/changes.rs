// SPDX-License-Identifier: Apache-2.0
//! Changes of who may do what, which the servers tell each other through Redis, so that they act at once on all of them.
//! While Redis is away, they act within the lifetime of what is cached.

use std::{
    fmt::{self, Display},
    str::FromStr,
    time::Duration,
};

use futures::StreamExt as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wrenn_api::{ApiKeyId, SessionId, TeamId, UserId};

use super::Access;
use crate::caller::{Caller, Principal};

/// Channel of Redis on which changes are told.
const CHANNEL: &str = "wrenn:access";
/// Time without a message after which the connection is tried.
const QUIET: Duration = Duration::from_secs(10);
/// Time limit of telling a change; what is cached ends without it.
const TELL: Duration = Duration::from_secs(1);
/// Time limit of an answer of Redis.
const ANSWER: Duration = Duration::from_secs(3);
/// Pause before Redis is connected to again.
const PAUSE: Duration = Duration::from_secs(1);

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    /// An API key: its scopes, its expiry, or that it was revoked.
    Key(ApiKeyId),
    /// A session: its team, or that it ended.
    Session(SessionId),
    /// A user: their memberships, their sessions, whether they administer the platform or were shut out.
    User(UserId),
    /// A team: that it was deleted, or roles in it.
    Team(TeamId),
}

impl Changed {
    /// Returns whether a caller may be another one now.
    pub(super) fn concerns(self, caller: &Caller) -> bool {
        match self {
            Self::Key(key) => caller.principal() == Principal::Key(key),
            Self::Session(session) => caller.session() == Some(session),
            // A key does not do more than its maker may, and callers do not know the maker.
            Self::User(user) => {
                caller.user() == Some(user) || matches!(caller.principal(), Principal::Key(_))
            }
            Self::Team(team) => [team, TeamId::NONE].contains(&caller.team()),
        }
    }
}

impl Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => write!(f, "key:{id}"),
            Self::Session(id) => write!(f, "session:{id}"),
            Self::User(id) => write!(f, "user:{id}"),
            Self::Team(id) => write!(f, "team:{id}"),
        }
    }
}

impl FromStr for Changed {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, id) = text.split_once(':').ok_or(())?;
        Ok(match kind {
            "key" => Self::Key(id.parse().map_err(|_| ())?),
            "session" => Self::Session(id.parse().map_err(|_| ())?),
            "user" => Self::User(id.parse().map_err(|_| ())?),
            "team" => Self::Team(id.parse().map_err(|_| ())?),
            _ => return Err(()),
        })
    }
}

impl Access {
    /// Forgets here and on all other servers what is cached of whom a change concerns, and lets their streams check themselves.
    /// To be called after the change was committed.
    pub(crate) async fn forget(&self, changed: Changed) {
        self.apply(Some(changed));
        let told = timeout(TELL, self.store.publish(CHANNEL, &changed.to_string())).await;
        match told {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "other servers learn of a change of access only with time");
            }
            Err(_) => tracing::warn!(
                "other servers learn of a change of access only with time: Redis does not answer"
            ),
        }
    }

    /// Applies a change on this server; `None` if it is not known what changed.
    fn apply(&self, changed: Option<Changed>) {
        for cache in [&self.of_keys, &self.of_tokens, &self.of_cookies] {
            cache.forget(changed);
        }
        // Without a stream nobody listens.
        let _ = self.changes.send(changed);
    }
}

/// Applies the changes that servers tell, until this one stops.
pub(crate) async fn follow(access: &Access, shutdown: &CancellationToken) {
    while !shutdown.is_cancelled() {
        tokio::select! {
            () = shutdown.cancelled() => return,
            ended = listen(access) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "changes of access are not told at present");
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Applies changes until the connection fails.
async fn listen(access: &Access) -> Result<(), redis::RedisError> {
    let Ok(listening) = timeout(ANSWER, access.store.listen(CHANNEL)).await else { return Ok(()) };
    let (mut sink, mut messages) = listening?.split();
    // Nobody listened until now.
    access.apply(None);
    loop {
        match timeout(QUIET, messages.next()).await {
            Ok(Some(message)) => {
                let text: String = message.get_payload()?;
                // What this version does not know, a newer one tells.
                access.apply(text.parse().ok());
            }
            Ok(None) => return Ok(()),
            Err(_) => match timeout(ANSWER, sink.ping::<redis::Value>()).await {
                Ok(answer) => drop(answer?),
                Err(_) => return Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Permissions;

    #[test]
    fn changes_are_told_as_text() {
        let all = [
            Changed::Key(ApiKeyId::new()),
            Changed::Session(SessionId::new()),
            Changed::User(UserId::new()),
            Changed::Team(TeamId::new()),
        ];
        for changed in all {
            assert_eq!(changed.to_string().parse(), Ok(changed));
        }
        for wrong in ["", "key", "key:", "user:sb03halx8fdhw2fu3txwbd0kdw0", "host:1"] {
            assert_eq!(wrong.parse::<Changed>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn a_change_concerns_whose_permissions_it_may_change() {
        let (user, session, team) = (UserId::new(), SessionId::new(), TeamId::new());
        let signed_in = Caller::new(Principal::User { user, session }, team, Permissions::OF_TEAM);
        let key = ApiKeyId::new();
        let program = Caller::new(Principal::Key(key), team, Permissions::OF_TEAM);
        let concerned = |changed: Changed| (changed.concerns(&signed_in), changed.concerns(&program));
        assert_eq!(concerned(Changed::User(user)), (true, true));
        assert_eq!(concerned(Changed::Session(session)), (true, false));
        assert_eq!(concerned(Changed::Team(team)), (true, true));
        assert_eq!(concerned(Changed::Key(key)), (false, true));
        assert_eq!(concerned(Changed::Key(ApiKeyId::new())), (false, false));
        assert_eq!(concerned(Changed::Team(TeamId::new())), (false, false));
        assert!(!Changed::User(UserId::new()).concerns(&signed_in));
    }
}
