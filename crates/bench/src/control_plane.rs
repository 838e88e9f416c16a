// SPDX-License-Identifier: Apache-2.0
//! A control plane of its own in the PostgreSQL and the Redis of a running Wrenn, with as many sandboxes in its database as a
//! measurement asks for. No host answers it, so only the control plane is measured.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use wrenn_api::SandboxId;
use wrenn_control::{Admin, AgentTls, Config, Settings};
use wrenn_testkit::Stack;

/// Name of the database.
const DATABASE: &str = "bench";
/// Sandboxes of each team.
const OF_TEAM: usize = 100;

/// The control plane's database, and the team that is measured.
pub(crate) struct ControlPlane {
    stack_dir: PathBuf,
    contexts: tempfile::TempDir,
    /// API key of the team.
    pub(crate) key: String,
    /// A sandbox of the team.
    pub(crate) sandbox: SandboxId,
}

impl ControlPlane {
    /// Makes the database, with 100 sandboxes of one team, and a host that takes creates and does not answer.
    pub(crate) async fn prepare(stack: &Stack) -> Result<Self> {
        let plane = Self {
            stack_dir: stack.state_dir.clone(),
            contexts: tempfile::tempdir()?,
            key: String::new(),
            sandbox: SandboxId::new(),
        };
        let mut connection = PgConnection::connect(&plane.url("wrenn")).await?;
        execute(&mut connection, &format!("CREATE DATABASE {DATABASE}")).await?;
        connection.close().await?;
        let admin = Admin::new(&plane.database_url())?;
        admin.migrate().await?;
        let plane = Self { key: admin.ensure_api_key(None).await?, ..plane };
        plane.run(HOST).await?;
        plane.fill(OF_TEAM).await?;
        let own = plane
            .number("SELECT count(*)::float8 FROM sandboxes s JOIN api_keys k ON k.team_id = s.team_id")
            .await?;
        ensure!(own >= OF_TEAM as f64, "the team has {own} sandboxes");
        let mut connection = PgConnection::connect(&plane.database_url()).await?;
        let query = "SELECT s.id FROM sandboxes s JOIN api_keys k ON k.team_id = s.team_id LIMIT 1";
        let sandbox: SandboxId =
            sqlx::query_scalar::<_, uuid::Uuid>(query).fetch_one(&mut connection).await?.into();
        Ok(Self { sandbox, ..plane })
    }

    /// Adds teams with 100 paused sandboxes each, until there are so many sandboxes.
    pub(crate) async fn fill(&self, sandboxes: usize) -> Result<()> {
        ensure!(sandboxes.is_multiple_of(OF_TEAM), "teams have {OF_TEAM} sandboxes each");
        let teams = sandboxes / OF_TEAM;
        let statement = format!(
            "INSERT INTO teams (id, name)
                 SELECT gen_random_uuid(), 'bench' FROM generate_series(1, {teams} - 1
                     - (SELECT count(*)::integer FROM teams WHERE name = 'bench'));
             INSERT INTO sandboxes (id, team_id, host_id, template, vcpus, memory_mb, disk_size_mb, status, started_at)
                 SELECT gen_random_uuid(), t.id, h.id, 'minimal', 1, 256, 5120, 'paused', now()
                 FROM teams t CROSS JOIN hosts h CROSS JOIN generate_series(1, {OF_TEAM})
                 WHERE t.id <> '00000000-0000-0000-0000-000000000000'
                     AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.team_id = t.id)"
        );
        self.run(&statement).await?;
        self.run("VACUUM ANALYZE").await?;
        let there =
            self.number("SELECT count(*)::float8 FROM sandboxes WHERE status = 'paused'").await? as usize;
        ensure!(there == sandboxes, "there are {there} sandboxes");
        Ok(())
    }

    /// Configuration of a server.
    pub(crate) fn config(&self, listen: SocketAddr, proxy: SocketAddr) -> Config {
        let mut settings = Settings::default();
        settings.listen = listen;
        settings.proxy.listen = proxy;
        settings.builds.workers = 0;
        settings.builds.context_dir = Some(self.contexts.path().to_owned());
        let redis_url = format!("unix://{}", self.stack_dir.join("run/redis/redis.sock").display());
        let pki = self.stack_dir.join("pki");
        let agent_tls = AgentTls::new(pki.join("ca.pem"), pki.join("control.pem"), pki.join("control.key"));
        Config::new(settings, self.database_url(), redis_url, agent_tls)
    }

    /// URL of the database.
    pub(crate) fn database_url(&self) -> String {
        self.url(DATABASE)
    }

    /// Runs statements in the database.
    pub(crate) async fn run(&self, statements: &str) -> Result<()> {
        let mut connection = PgConnection::connect(&self.database_url()).await?;
        execute(&mut connection, statements).await?;
        Ok(connection.close().await?)
    }

    /// Returns the number that a query gives.
    pub(crate) async fn number(&self, query: &str) -> Result<f64> {
        let mut connection = PgConnection::connect(&self.database_url()).await?;
        let number = sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(&mut connection).await;
        connection.close().await?;
        number.with_context(|| query.to_owned())
    }

    fn url(&self, database: &str) -> String {
        database_url(&self.stack_dir, database)
    }
}

/// URL of a database in the PostgreSQL of the Wrenn with this state directory.
pub(crate) fn database_url(state_dir: &Path, database: &str) -> String {
    let sockets = state_dir.join("run/postgres").display().to_string().replace('/', "%2F");
    format!("postgres://wrenn@{sockets}/{database}")
}

/// A host at an address where nobody listens.
const HOST: &str = "INSERT INTO hosts (id, address, status, cpus, memory_mb, disk_mb, disk_free_mb, max_sandboxes, max_vcpus,
        max_memory_mb, max_disk_size_mb, templates, last_seen_at)
    VALUES (gen_random_uuid(), '127.0.0.1:1', 'online', 1024, 1 << 30, 1 << 30, 1 << 30, 1 << 20, 64, 1 << 20, 1 << 20,
        '{minimal}', now())";

async fn execute(connection: &mut PgConnection, statements: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(connection).await?;
    Ok(())
}
