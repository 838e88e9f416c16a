// SPDX-License-Identifier: Apache-2.0
//! Hooks of extensions: asked before a sandbox is created, and told of every event in the transaction that takes it out of the
//! outbox.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::timeout;
use wrenn_api::{CreateSandbox, ErrorCode, Event, TeamId};

use crate::{caller::Caller, error::Fault};

/// Time limit of one call of a hook.
const LIMIT: Duration = Duration::from_secs(5);

/// What an extension does at points of the life of sandboxes. All its parts are optional. A call that takes longer than 5 s has
/// failed.
pub trait Hooks: Send + Sync + 'static {
    /// Called before a caller's request for a sandbox is looked at, on every surface. It may change the request, and refuses it
    /// by failing: [`Fault::of_extension`] has a code of the extension's own. A request that is repeated with its idempotency key
    /// comes here again. Sandboxes that builds make are not asked for by a caller, and do not. The database is there for tables of the
    /// extension.
    fn before_create<'a>(
        &'a self,
        _database: &'a PgPool,
        _caller: &'a Caller,
        _new: &'a mut CreateSandbox,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Called with each event of a team, in their order, in the transaction that takes the event out of the outbox: what it writes
    /// with this connection is there exactly once, whichever server or program wrote the event. If it fails, what it wrote is
    /// undone, and the events of this team wait until it succeeds.
    fn on_event<'a>(
        &'a self,
        _transaction: &'a mut PgConnection,
        _team: TeamId,
        _event: &'a Event,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The hooks of all extensions of a server, in the order of the extensions.
#[derive(Default)]
pub(crate) struct AllHooks(Vec<(&'static str, Arc<dyn Hooks>)>);

impl AllHooks {
    /// Collects hooks with the names of their extensions.
    pub(crate) const fn new(all: Vec<(&'static str, Arc<dyn Hooks>)>) -> Self {
        Self(all)
    }

    /// Asks all hooks about a request for a sandbox, until one refuses it.
    pub(crate) async fn before_create(
        &self,
        database: &PgPool,
        caller: &Caller,
        new: &mut CreateSandbox,
    ) -> Result<(), Fault> {
        for (name, hooks) in &self.0 {
            within(name, hooks.before_create(database, caller, new)).await?;
        }
        Ok(())
    }

    /// Tells all hooks of an event, as JSON. If one of them fails, nothing of what they wrote for it is left.
    pub(crate) async fn on_event(
        &self,
        transaction: &mut PgConnection,
        team: TeamId,
        json: &serde_json::Value,
    ) -> Result<(), Fault> {
        if self.0.is_empty() {
            return Ok(());
        }
        let event: Event = match serde_json::from_value(json.clone()) {
            Ok(event) => event,
            // A newer server wrote it, whose hooks know it.
            Err(error) => {
                tracing::debug!(%error, "an event is of a type that this server does not know");
                return Ok(());
            }
        };
        let mut point = transaction.begin().await?;
        for (name, hooks) in &self.0 {
            within(name, hooks.on_event(&mut point, team, &event)).await?;
        }
        Ok(point.commit().await?)
    }
}

async fn within(extension: &str, call: impl Future<Output = Result<(), Fault>>) -> Result<(), Fault> {
    timeout(LIMIT, call).await.unwrap_or_else(|_| {
        tracing::error!(extension, "a hook did not answer within {} s", LIMIT.as_secs());
        let message = format!("the extension {extension} of this server did not answer in time; try again");
        Err(Fault::new(ErrorCode::ServiceUnavailable, message))
    })
}

#[cfg(test)]
mod tests {
    use connectrpc::Router;

    use super::*;
    use crate::{
        config::Limits,
        testing::{app, caller},
    };

    /// Gives every sandbox a label, refuses large ones, and never answers for some.
    struct Labels;

    impl Hooks for Labels {
        fn before_create<'a>(
            &'a self,
            _: &'a PgPool,
            _: &'a Caller,
            new: &'a mut CreateSandbox,
        ) -> BoxFuture<'a, Result<(), Fault>> {
            Box::pin(async move {
                match new.vcpus {
                    Some(8..) => Err(Fault::of_extension("plan_exceeded", ErrorCode::Forbidden, "too large")),
                    Some(7) => std::future::pending().await,
                    _ => {
                        new.labels.insert("plan".to_owned(), "free".to_owned());
                        Ok(())
                    }
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hook_changes_and_refuses_and_has_a_time_limit() {
        let (state, _) = app(Limits::default(), Router::new()).await;
        let caller = caller(TeamId::new());
        let hooks = AllHooks::new(vec![("labels", Arc::new(Labels))]);
        let ask = async |vcpus| {
            let mut new = CreateSandbox { vcpus: Some(vcpus), ..CreateSandbox::default() };
            hooks.before_create(&state.db, &caller, &mut new).await.map(|()| new)
        };
        let changed = ask(1).await.expect("it may be created");
        assert_eq!(changed.labels.get("plan").map(String::as_str), Some("free"));
        let refused = ask(8).await.expect_err("too large");
        assert_eq!((refused.own_code, refused.code), (Some("plan_exceeded"), ErrorCode::Forbidden));
        let late = ask(7).await.expect_err("it never answers");
        assert_eq!(late.code, ErrorCode::ServiceUnavailable);
        assert!(late.message.contains("labels"), "{}", late.message);
    }
}
