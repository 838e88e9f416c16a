//! Whether the control plane has seen this machine's agent since we started it.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;
use wrenn_api::HostId;

const LIMIT: Duration = Duration::from_secs(5);

/// A look into the table of hosts. The API does not tell: hosts are the operator's business.
pub(super) struct Online {
    database: PgConnection,
    host: HostId,
    since: DateTime<Utc>,
}

impl Online {
    /// Begins before the agent is started, by the database's clock.
    pub(super) async fn watch(database_url: &str, host: HostId) -> Result<Self> {
        let begin = async {
            let mut database = PgConnection::connect(database_url).await?;
            let since = sqlx::query_scalar("SELECT now()").fetch_one(&mut database).await?;
            Ok::<_, sqlx::Error>(Self { database, host, since })
        };
        timeout(LIMIT, begin)
            .await
            .context("the database does not answer")?
            .context("cannot ask the database")
    }

    /// Whether the agent answered the control plane since then.
    pub(super) async fn seen(&mut self) -> bool {
        let text = "SELECT status = 'online' AND last_seen_at > $2 FROM hosts WHERE id = $1";
        let query = sqlx::query_scalar(text).bind(self.host.uuid()).bind(self.since);
        let answer: Result<sqlx::Result<Option<Option<bool>>>, _> =
            timeout(LIMIT, query.fetch_optional(&mut self.database)).await;
        matches!(answer, Ok(Ok(Some(Some(true)))))
    }
}
