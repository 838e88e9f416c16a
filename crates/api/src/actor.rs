// SPDX-License-Identifier: Apache-2.0
//! Who did something, and why it happened, as events and the audit log tell it.

use std::{fmt, fmt::Display, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why something happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[schema(example = "user")]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Somebody of the team wanted it.
    User,
    /// Its time was over: it was kept for as long as such things are.
    Lifetime,
    /// Nobody had used it for its timeout.
    Idle,
    /// It had no memory left.
    OutOfMemory,
    /// Its host did so, or lost it.
    Host,
    /// Who administers the platform wanted it.
    Admin,
    /// The control plane did it, as to finish what was interrupted.
    #[default]
    System,
}

/// Kind of an actor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[schema(example = "api_key")]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// A person who has signed in.
    User,
    /// A program with an API key.
    ApiKey,
    /// Somebody with a signed URL.
    SignedUrl,
    /// Somebody who is not known: who uses a port of a sandbox through the proxy, or whose sign-in failed.
    Visitor,
    /// A host.
    Host,
    /// Somebody whom an extension of the control plane knows.
    Extension,
    /// The control plane, or who runs it.
    #[default]
    System,
}

/// Who did something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"kind": "api_key", "id": "key03halx8fdhw2fu3txwbd0kdw0", "name": "ci"}))]
pub struct Actor {
    /// What the actor is.
    pub kind: ActorKind,
    /// Id of the user, the API key or the host; of a signed URL, that of its sandbox; otherwise what the extension chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<String>,
    /// Name that the user or the API key had at that time; that of the extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<String>,
}

/// Why something happened, and who did it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caused {
    /// Why it happened.
    #[serde(default)]
    pub cause: Cause,
    /// Who did it.
    #[serde(default)]
    pub actor: Actor,
}

/// Implements the text form of an enum: `texts!(Type, what it is: Variant = "text", …)`.
macro_rules! texts {
    ($type:ident, $what:literal: $($variant:ident = $text:literal),* $(,)?) => {
        impl $type {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value as it stands in JSON and in the database.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.iter().find(|value| value.as_str() == text);
                found.copied().ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|value| value.as_str()).collect();
                    format!("{} is one of {}", $what, all.join(", "))
                })
            }
        }
    };
}

texts!(Cause, "a cause": User = "user", Lifetime = "lifetime", Idle = "idle", OutOfMemory = "out_of_memory",
    Host = "host", Admin = "admin", System = "system");
texts!(ActorKind, "the kind of an actor": User = "user", ApiKey = "api_key", SignedUrl = "signed_url", Visitor = "visitor",
    Host = "host", Extension = "extension", System = "system");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_json() {
        for cause in Cause::ALL {
            assert_eq!(serde_json::json!(cause), cause.as_str());
            assert_eq!(cause.to_string().parse(), Ok(*cause));
        }
        for kind in ActorKind::ALL {
            assert_eq!(serde_json::json!(kind), kind.as_str());
            assert_eq!(kind.to_string().parse(), Ok(*kind));
        }
        assert!("robot".parse::<ActorKind>().is_err_and(|told| told.contains("user, api_key")));
    }
}
