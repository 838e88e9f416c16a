//! `wrenn sandbox`: sandboxes one by one.

mod copy;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde_json::json;
use wrenn_api::{Sandbox, SandboxId};
use wrenn_client::Client;

use crate::{
    exec,
    output::{Format, note},
    run::{New, command, idempotency_key, variable},
    signals::{Stop, exit_status},
};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a sandbox and print its id
    Create {
        #[command(flatten)]
        new: New,
        /// The same key gives the same sandbox
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// List the sandboxes
    Ls,
    /// Show one sandbox
    Get {
        /// Which one
        id: SandboxId,
    },
    /// Run a command in a sandbox; its exit status becomes ours
    Exec {
        /// Which sandbox
        id: SandboxId,
        /// A variable for the command; may be repeated
        #[arg(long = "env", short = 'e', value_name = "NAME=VALUE", value_parser = variable)]
        envs: Vec<(String, String)>,
        /// Working directory
        #[arg(long, value_name = "DIR")]
        cwd: Option<String>,
        /// The user to run as
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Copy a file into or out of a sandbox; the sandbox's side is ID:PATH
    Cp {
        /// What to copy
        source: String,
        /// Where to
        destination: String,
    },
    /// Remove sandboxes
    Rm {
        /// Which ones
        #[arg(required = true)]
        ids: Vec<SandboxId>,
    },
}

/// Runs `wrenn sandbox`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Create { new, idempotency_key: key } => {
            let key = key.clone().unwrap_or_else(idempotency_key);
            let sandbox = client.create(&new.request(), Some(&key)).await?;
            format.print(&sandbox, || sandbox.id.to_string())?;
        }
        Command::Ls => {
            let all = client.list_all().await?;
            format.print(&all, || table(&all))?;
        }
        Command::Get { id } => {
            let sandbox = client.get(*id).await?;
            format.print(&sandbox, || text(&sandbox))?;
        }
        Command::Exec { id, envs, cwd, user, command: words } => {
            let mut request = command(words, envs)?;
            (request.cwd, request.user) = (cwd.clone(), user.clone());
            let mut stop = Stop::new()?;
            // Going away ends the command.
            return tokio::select! {
                status = exec::run(client, *id, &request, format) => status,
                name = stop.received() => Ok(exit_status(name)),
            };
        }
        Command::Cp { source, destination } => {
            let copied = copy::run(client, source, destination).await?;
            format.print(&copied, String::new)?;
        }
        Command::Rm { ids } => return remove(client, ids, format).await,
    }
    Ok(0)
}

async fn remove(client: &Client, ids: &[SandboxId], format: Format) -> Result<u8> {
    let (mut removed, mut failed) = (Vec::new(), 0);
    for id in ids {
        match client.delete(*id).await {
            Ok(()) => removed.push(id.to_string()),
            // The others are to go all the same.
            Err(error) => {
                failed += 1;
                note(&format!("wrenn: {id}: {error}"));
            }
        }
    }
    format.print(&json!({ "removed": removed, "failed": failed }), || removed.join("\n"))?;
    Ok(u8::from(failed > 0))
}

fn table(all: &[Sandbox]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ID", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "DISK", "CREATED"]);
    for sandbox in all {
        table.add_row([
            sandbox.id.to_string(),
            sandbox.status.as_str().to_owned(),
            sandbox.template.clone(),
            sandbox.vcpus.to_string(),
            format!("{} MiB", sandbox.memory_mb),
            format!("{} MiB", sandbox.disk_size_mb),
            sandbox.created_at.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Every field that is there, a line each.
fn text(sandbox: &Sandbox) -> String {
    let value = serde_json::to_value(sandbox).unwrap_or_default();
    let fields = value.as_object().into_iter().flatten().flat_map(|(name, value)| match value {
        serde_json::Value::Object(inner) => {
            inner.iter().map(|(key, value)| (format!("{name}.{key}"), plain(value))).collect()
        }
        other => vec![(name.clone(), plain(other))],
    });
    fields.map(|(name, value)| format!("{name:<28} {value}")).collect::<Vec<_>>().join("\n")
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The client for this configuration.
pub(crate) fn client(config: &crate::config::Config) -> Result<Client> {
    let key = config.get("api_key").with_context(|| {
        format!("no API key: set WRENN_API_KEY, or let `wrenn up` write one to {}", config.file().display())
    })?;
    Ok(Client::new(&config.url()?, Some(key))?)
}
