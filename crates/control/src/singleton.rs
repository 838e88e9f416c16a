// SPDX-License-Identifier: Apache-2.0
//! Workers that run on one server at a time: on the one that holds the advisory lock of their name in PostgreSQL.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::{sleep, timeout};

/// Interval at which the other servers look whether the lock is free, and the one that has it whether it still has.
const LOOK: Duration = Duration::from_secs(5);
/// Time limit of such a look. A server that was cut off from PostgreSQL may go on for as long as an interval and this.
const ANSWER: Duration = Duration::from_secs(3);

/// Runs a task as soon as this server has the lock of its name, and drops it when it has lost the lock.
pub(crate) async fn run<F: Future<Output = ()>>(db: &PgPool, name: &'static str, task: impl Fn() -> F) {
    let mut lock = wait(db, name).await;
    tokio::select! {
        () = task() => {}
        error = lost(&mut lock) => tracing::warn!(worker = name, error, "the lock of a worker is lost"),
    }
    // It also ends with the connection.
    let _ = timeout(ANSWER, lock.close()).await;
}

/// Waits until this server has the lock, and returns the connection that holds it.
async fn wait(db: &PgPool, name: &'static str) -> PgConnection {
    loop {
        match take(db, name).await {
            Ok(Some(lock)) => return lock,
            Ok(None) => {}
            Err(error) => tracing::debug!(worker = name, %error, "the lock of a worker cannot be asked for"),
        }
        sleep(LOOK).await;
    }
}

/// Takes the lock if no other server has it.
async fn take(db: &PgPool, name: &str) -> sqlx::Result<Option<PgConnection>> {
    let mut connection = db.acquire().await?;
    let ours = sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_lock(hashtextextended('wrenn worker ' || $1::text, 0)) AS "ours!""#,
        name
    )
    .fetch_one(&mut *connection)
    .await?;
    // The pool gets another one instead: this one is used for nothing else.
    Ok(ours.then(|| connection.detach()))
}

/// Waits until the connection that holds a lock is gone, and returns why.
async fn lost(lock: &mut PgConnection) -> String {
    loop {
        sleep(LOOK).await;
        match timeout(ANSWER, lock.ping()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return format!("no answer within {} s", ANSWER.as_secs()),
        }
    }
}
