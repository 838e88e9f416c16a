// SPDX-License-Identifier: Apache-2.0
//! A private PostgreSQL and a private Redis for all cases; each case has a database of its own.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use wrenn_testkit::wait_until;

/// Both servers, which are stopped when this is dropped.
pub(crate) struct Stores {
    dir: tempfile::TempDir,
    postgres: Child,
    redis: Child,
}

fn programs() -> Result<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .context("install PostgreSQL")?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("postgres").exists())
        .collect();
    all.sort();
    all.pop().context("install PostgreSQL")
}

/// A program of PostgreSQL, which refuses to run as root.
fn command(program: &Path) -> Command {
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

impl Stores {
    pub(crate) async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("wcs").tempdir_in("/tmp")?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777))?;
        let (bin, data) = (programs()?, dir.path().join("data"));
        let made = command(&bin.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args(["-U", "wrenn", "-A", "trust", "-N"])
            .status()?;
        ensure!(made.success(), "initdb failed");
        let mut postgres = command(&bin.join("postgres"));
        postgres.arg("-D").arg(&data);
        let sockets = format!("unix_socket_directories={}", dir.path().display());
        for setting in ["listen_addresses=", "fsync=off", "max_connections=400", &sockets] {
            postgres.args(["-c", setting]);
        }
        let log = std::fs::File::create(dir.path().join("postgres.log"))?;
        let redis_log = log.try_clone()?;
        let mut postgres = postgres.stderr(log).spawn().context("postgres")?;
        let mut redis = Command::new("redis-server");
        redis.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
        let redis = redis.arg(dir.path().join("redis")).stdin(Stdio::null()).stdout(redis_log).spawn();
        let redis = redis.inspect_err(|_| drop(postgres.kill())).context("redis-server")?;
        let stores = Self { dir, postgres, redis };
        let socket = stores.dir.path().join("redis");
        let ready =
            async || (stores.execute("postgres", "SELECT 1").await.is_ok() && socket.exists()).then_some(());
        wait_until("PostgreSQL and Redis", Duration::from_secs(60), ready).await?;
        Ok(stores)
    }

    pub(crate) fn redis_url(&self) -> String {
        format!("unix://{}", self.dir.path().join("redis").display())
    }

    /// Socket of PostgreSQL.
    pub(crate) fn postgres_socket(&self) -> PathBuf {
        self.dir.path().join(".s.PGSQL.5432")
    }

    pub(crate) fn database_url(&self, name: &str) -> String {
        let sockets = self.dir.path().display().to_string().replace('/', "%2F");
        format!("postgres://wrenn:secret@{sockets}/{name}")
    }

    pub(crate) async fn connect(&self, name: &str) -> Result<sqlx::PgConnection> {
        Ok(<sqlx::PgConnection as sqlx::Connection>::connect(&self.database_url(name)).await?)
    }

    /// Runs statements in a database.
    pub(crate) async fn execute(&self, name: &str, statements: &str) -> Result<()> {
        let mut connection = self.connect(name).await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned())).execute(&mut connection).await?;
        Ok(sqlx::Connection::close(connection).await?)
    }

    /// Returns the first column of a query, which is text.
    pub(crate) async fn column(&self, name: &str, query: &str) -> Result<Vec<String>> {
        let mut connection = self.connect(name).await?;
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(query.to_owned()));
        let all = query.fetch_all(&mut connection).await?;
        sqlx::Connection::close(connection).await?;
        Ok(all)
    }

    /// Creates an empty database.
    pub(crate) async fn create(&self, name: &str) -> Result<()> {
        self.execute("postgres", &format!("CREATE DATABASE {name}")).await
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        // SIGINT makes PostgreSQL stop without waiting for clients, and leaves nothing in shared memory.
        let _ = Pid::from_raw(self.postgres.id() as i32).map(|pid| kill_process(pid, Signal::INT));
        let _ = self.postgres.wait();
        let _ = self.redis.kill();
        let _ = self.redis.wait();
    }
}
