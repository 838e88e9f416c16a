// SPDX-License-Identifier: Apache-2.0
//! Who changes something, and why: given by services to the database, which records it with the change and tells it in the event.

use wrenn_api::{Actor, ActorKind, Cause, Caused, HostId, TeamId};

use crate::caller::{Caller, Principal};

/// Who changes something, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct By {
    pub(crate) cause: Cause,
    pub(crate) who: Who,
}

/// Who changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// A caller.
    Principal(Principal),
    /// Somebody who uses a port through the proxy.
    Visitor,
    /// A host.
    Host(HostId),
    /// The control plane, or who runs it.
    System,
}

impl By {
    /// The control plane, which finishes or undoes what was interrupted.
    pub(crate) const SYSTEM: Self = Self::of_system(Cause::System);
    /// The control plane, because nobody used something for its timeout.
    pub(crate) const IDLE: Self = Self::of_system(Cause::Idle);
    /// The control plane, because something was kept for long enough.
    pub(crate) const LIFETIME: Self = Self::of_system(Cause::Lifetime);
    /// Who runs Wrenn, without a server.
    pub(crate) const OPERATOR: Self = Self::of_system(Cause::Admin);
    /// Somebody who uses a port through the proxy.
    pub(crate) const VISITOR: Self = Self { cause: Cause::User, who: Who::Visitor };

    const fn of_system(cause: Cause) -> Self {
        Self { cause, who: Who::System }
    }

    /// A caller, who acts for a team; for the platform's as its administrator.
    pub(crate) fn caller(caller: &Caller) -> Self {
        let cause = if caller.team() == TeamId::PLATFORM { Cause::Admin } else { Cause::User };
        Self { cause, who: Who::Principal(caller.principal()) }
    }

    /// An administrator of the platform, who acts on what is another team's.
    pub(crate) const fn admin(caller: &Caller) -> Self {
        Self { cause: Cause::Admin, who: Who::Principal(caller.principal()) }
    }

    /// A host, which did it by itself or lost it.
    pub(crate) const fn host(host: HostId) -> Self {
        Self { cause: Cause::Host, who: Who::Host(host) }
    }

    /// A host, on which a sandbox has ended for want of memory.
    pub(crate) const fn out_of_memory(host: HostId) -> Self {
        Self { cause: Cause::OutOfMemory, who: Who::Host(host) }
    }

    /// Describes it, with the name that its actor has now.
    pub(crate) fn named(self, name: Option<String>) -> Caused {
        Caused { cause: self.cause, actor: self.who.named(name) }
    }
}

impl Who {
    /// Describes the actor, with the name that it has now.
    pub(crate) fn named(self, name: Option<String>) -> Actor {
        let (kind, id) = match self {
            Self::Principal(Principal::Key(id)) => (ActorKind::ApiKey, Some(id.to_string())),
            Self::Principal(Principal::User { user, .. }) => (ActorKind::User, Some(user.to_string())),
            Self::Principal(Principal::SignedUrl(id)) => (ActorKind::SignedUrl, Some(id.to_string())),
            Self::Principal(Principal::Extension { name, id }) => {
                return Actor {
                    kind: ActorKind::Extension,
                    id: Some(id.to_string()),
                    name: Some(name.to_owned()),
                };
            }
            Self::Visitor => (ActorKind::Visitor, None),
            Self::Host(id) => (ActorKind::Host, Some(id.to_string())),
            Self::System => (ActorKind::System, None),
        };
        Actor { kind, id, name }
    }
}

#[cfg(test)]
mod tests {
    use wrenn_api::ApiKeyId;

    use super::*;
    use crate::caller::Permissions;

    #[test]
    fn who_acts_for_the_platform_is_an_administrator() {
        let key = ApiKeyId::new();
        let caller = Caller::new(Principal::Key(key), TeamId::new(), Permissions::ALL);
        let caused = By::caller(&caller).named(Some("ci".to_owned()));
        assert_eq!((caused.cause, caused.actor.kind), (Cause::User, ActorKind::ApiKey));
        assert_eq!((caused.actor.id, caused.actor.name.as_deref()), (Some(key.to_string()), Some("ci")));
        let admin = caller.for_platform().expect("an administrator");
        assert_eq!(By::caller(&admin).cause, Cause::Admin);
        assert_eq!(By::admin(&caller).cause, Cause::Admin);
        let host = HostId::new();
        assert_eq!(By::host(host).named(None).actor.id, Some(host.to_string()));
        assert_eq!(By::SYSTEM.named(None), Caused::default());
    }
}
