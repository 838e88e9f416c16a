// SPDX-License-Identifier: Apache-2.0
//! `wrenn status`: shows the running parts and their addresses.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use wrenn_client::{Client, SandboxFilter};

use crate::{config::Config, down::PARTS, layout::Layout, output::Format, process::Record, running_agent};

/// Exit status if Wrenn does not run.
const NOT_RUNNING: u8 = 3;

/// The output of `wrenn status`.
#[derive(Debug, Serialize)]
struct Status {
    running: bool,
    state_dir: PathBuf,
    url: String,
    docs: String,
    key_file: PathBuf,
    /// Address of the database, without the password.
    database: String,
    /// VMM driver that the agent uses, or why it is not known.
    driver: String,
    /// Whether it keeps hostile code from the host, where that is known.
    security_boundary: Option<bool>,
    processes: Vec<Process>,
    health: String,
    sandboxes: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Process {
    name: &'static str,
    pid: i32,
}

/// Runs `wrenn status`.
pub(crate) async fn run(config: &Config, format: Format) -> Result<u8> {
    Ok(if print(config, format).await? { 0 } else { NOT_RUNNING })
}

/// Prints the status, and returns whether Wrenn runs.
pub(crate) async fn print(config: &Config, format: Format) -> Result<bool> {
    let status = look(config).await?;
    format.print(&status, || status.text())?;
    Ok(status.running)
}

/// Returns the process of `wrenn up`, if it runs.
pub(crate) fn running(layout: &Layout) -> Result<Option<Record>> {
    Record::running(&layout.pid_file("up"))
}

/// Describes the database: the private one, or host, database and user of the configured one.
pub(crate) fn database(config: &Config, layout: &Layout) -> String {
    let own = || format!("private PostgreSQL in {}", layout.postgres().display());
    config.machine().database_url.as_deref().map_or_else(own, wrenn_control::describe_database)
}

async fn look(config: &Config) -> Result<Status> {
    let layout = Layout::new(&config.machine().state_dir);
    let up = running(&layout)?;
    let (mut health, mut sandboxes) = ("not running".to_owned(), None);
    let url = config.local_url();
    if up.is_some() {
        let key = config.api_key_for(&url).ok();
        let client = Client::new(&url, key)?;
        health = client.health().await.map_or_else(|error| error.to_string(), |health| health.status);
        if key.is_some() {
            sandboxes = client.list_all(&SandboxFilter::default()).await.ok().map(|all| all.len());
        }
    }
    let driver = running_agent::driver(config, &layout).await;
    let mut processes = Vec::new();
    for &name in ["up"].iter().chain(PARTS.iter().rev()) {
        let record = Record::running(&layout.pid_file(name))?;
        processes.extend(record.map(|record| Process { name, pid: record.pid }));
    }
    Ok(Status {
        running: up.is_some(),
        state_dir: layout.state().to_owned(),
        docs: format!("{url}/docs"),
        url,
        key_file: config.file().to_owned(),
        database: database(config, &layout),
        driver: driver.as_ref().map_or_else(
            |why| format!("not known: {why}"),
            |driver| format!("{}: {}", driver.name, driver.reason),
        ),
        security_boundary: driver.ok().map(|driver| driver.security_boundary),
        processes,
        health,
        sandboxes,
    })
}

impl Status {
    fn text(&self) -> String {
        let state = self.state_dir.display();
        if !self.running {
            return format!("Wrenn does not run (state directory {state}). Start it with: wrenn up");
        }
        let count = self.sandboxes.map_or_else(
            || "unknown: no valid API key; `wrenn key create --local` makes one".to_owned(),
            |n| n.to_string(),
        );
        let names: Vec<String> = self.processes.iter().map(|p| format!("{} {}", p.name, p.pid)).collect();
        format!(
            "Wrenn runs, health: {}\n  API        {}\n  docs       {}\n  key        in {}\n  \
             state      {state}\n  database   {}\n  driver     {}{}\n  sandboxes  {count}\n  processes  {}",
            self.health,
            self.url,
            self.docs,
            self.key_file.display(),
            self.database,
            self.driver,
            if self.security_boundary == Some(false) { " (no security boundary)" } else { "" },
            names.join(", ")
        )
    }
}
