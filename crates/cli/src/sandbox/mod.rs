// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox`: commands for single sandboxes.

mod copy;
mod files;
mod forward;
mod local;

use anyhow::{Result, anyhow};
use serde_json::json;
use wrenn_api::{ExecRequest, ProcessInfo, ResumeSandbox, Sandbox, SandboxId, Signal, UpdateSandbox};
use wrenn_client::Client;

use crate::{
    creation::{self, Key, New, seconds, variable},
    exec,
    failure::Report,
    output::{self, Format, note, time},
    progress::during,
    signals::{Stop, exit_status},
    stdin,
};

/// Text after the help of `exec`.
const EXEC_EXAMPLES: &str = "\
Examples:
  wrenn sandbox exec ID python3 -c 'print(6*7)'
  wrenn sandbox exec -u root ID -- apt-get update
  tar c project | wrenn sandbox exec ID -- tar x
  wrenn sandbox exec -d --tag web ID -- python3 -m http.server";
/// Text after the help of `cp`.
const CP_EXAMPLES: &str = "\
One regular file is copied; its mode is kept. `-` is standard input or output.

Examples:
  wrenn sandbox cp main.py ID:              into the home directory
  wrenn sandbox cp main.py ID:/tmp/         into a directory
  wrenn sandbox cp ID:/etc/hostname -       to standard output
  tar cz -C project . | wrenn sandbox cp - ID:project.tgz";

/// Text after the help of `forward`.
const FORWARD_EXAMPLES: &str = "\
Examples:
  wrenn sandbox forward ID 8080:8000        http://127.0.0.1:8080 is port 8000 of the sandbox
  wrenn sandbox forward ID 5432             psql -h 127.0.0.1 reaches the sandbox's database";

/// Subcommands of `wrenn sandbox`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a sandbox and print its id
    Create {
        #[command(flatten)]
        new: New,
        /// Create at most one sandbox for this key: repeating it within 24 hours prints the same id
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// List the sandboxes
    #[command(visible_alias = "list")]
    Ls,
    /// Show one sandbox
    Get {
        /// The sandbox's id
        id: SandboxId,
    },
    /// Run a command in a sandbox
    #[command(after_help = EXEC_EXAMPLES, after_long_help = format!("{EXEC_EXAMPLES}\n\n{}", exec::EXIT_STATUS))]
    Exec {
        /// The sandbox's id
        id: SandboxId,
        /// Set a variable for the command; may be repeated
        #[arg(long = "env", short = 'e', value_name = "NAME=VALUE", value_parser = variable)]
        envs: Vec<(String, String)>,
        /// Start the command in the background and print its tag; it runs on by itself
        #[arg(long, short = 'd')]
        detach: bool,
        /// Name of the process for `ps`, `kill` and `attach`; with --detach, the default is proc- and 8 hexadecimal digits
        #[arg(long, value_name = "TAG")]
        tag: Option<String>,
        #[command(flatten)]
        command: exec::Program,
    },
    /// List the running processes of a sandbox that were started through the API
    Ps {
        /// The sandbox's id
        id: SandboxId,
    },
    /// End a process of a sandbox with all its descendants, or send them another signal
    Kill {
        /// The sandbox's id
        id: SandboxId,
        /// The process: its id or its tag
        process: String,
        /// The signal, by name or number
        #[arg(long, short = 's', value_name = "SIGNAL", default_value = "TERM")]
        signal: Signal,
    },
    /// Show the output of a process and pass standard input on to it, until it ends; it goes on when this is interrupted
    Attach {
        /// The sandbox's id
        id: SandboxId,
        /// The process: its id or its tag
        process: String,
        /// Where its output begins: beginning, now, or a number of bytes since its start
        #[arg(long, value_name = "WHERE", default_value = "beginning", value_parser = place)]
        from: String,
        /// Pass standard input on even if it is a terminal
        #[arg(long, short = 'i', conflicts_with = "no_stdin")]
        interactive: bool,
        /// Pass no standard input on
        #[arg(long, short = 'n')]
        no_stdin: bool,
    },
    /// Work with the files of a sandbox
    #[command(subcommand)]
    Files(files::Command),
    /// Copy a file into or out of a sandbox
    #[command(after_help = CP_EXAMPLES)]
    Cp(copy::Args),
    /// Print the URL of a port of a sandbox; unless its ports are public, the URL has the token that it needs
    Url {
        /// The sandbox's id
        id: SandboxId,
        /// The port
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Forward a TCP port of this machine to a port of a sandbox, until interrupted
    #[command(after_help = FORWARD_EXAMPLES)]
    Forward {
        /// The sandbox's id
        id: SandboxId,
        /// The port of this machine, on 127.0.0.1, and that of the sandbox; one number for both
        #[arg(value_name = "LOCAL:REMOTE")]
        ports: forward::Pair,
    },
    /// Pause a sandbox: its memory is written to the disk, and it runs nothing
    Pause {
        /// The sandbox's id
        id: SandboxId,
    },
    /// Resume a paused sandbox: its processes go on
    Resume {
        /// The sandbox's id
        id: SandboxId,
        /// Boot it from its disk instead of letting it go on; also for one that has failed
        #[arg(long)]
        from_disk: bool,
        /// Change the time without use after which it is paused: seconds, or with a unit, such as 10m; 0 is never
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        idle_timeout: Option<u32>,
    },
    /// Put off the pause of a sandbox with an idle timeout
    Ping {
        /// The sandbox's id
        id: SandboxId,
    },
    /// Change a sandbox
    Set {
        /// The sandbox's id
        id: SandboxId,
        /// The time without use after which it is paused: seconds, or with a unit, such as 10m; 0 is never
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        idle_timeout: Option<u32>,
        /// Whether a command, a file request or a request to a port resumes it when it is paused
        #[arg(long, value_name = "BOOL")]
        auto_resume: Option<bool>,
        /// Whether everybody may use its ports
        #[arg(long, value_name = "BOOL")]
        public_ports: Option<bool>,
    },
    /// Remove sandboxes
    #[command(visible_alias = "delete")]
    Rm {
        /// The sandboxes' ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<SandboxId>,
    },
}

/// Runs `wrenn sandbox`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Create { new, idempotency_key } => {
            return create(client, new, idempotency_key.as_deref(), format).await;
        }
        Command::Ls => {
            let all = client.list_all().await?;
            format.print(&all, || table(&all))?;
        }
        Command::Get { id } => {
            let sandbox = client.get(*id).await?;
            format.print(&sandbox, || text(&sandbox))?;
        }
        Command::Exec { id, envs, detach: true, tag, command } => {
            let request = command.background(envs, tag.as_deref())?;
            let started = client.start_process(*id, &request).await?;
            format.print(&started, || started.tag.clone())?;
        }
        Command::Ps { id } => {
            let all = client.processes(*id).await?;
            format.print(&all, || processes(&all))?;
        }
        Command::Kill { id, process, signal } => {
            let reached = client.signal_process(*id, process, *signal).await?;
            format.print(&reached, String::new)?;
        }
        Command::Attach { id, process, from, interactive, no_stdin } => {
            let input = stdin::is_passed_on(*interactive, *no_stdin);
            let mut stop = Stop::new()?;
            return tokio::select! {
                status = exec::attach(client, *id, process, from, input, format) => status,
                name = stop.received() => Ok(exit_status(name)),
            };
        }
        Command::Exec { id, envs, detach: false, tag, command } => {
            let request = ExecRequest { tag: tag.clone(), ..command.request(envs)? };
            let mut stop = Stop::new()?;
            // Closing the connection kills the command.
            return tokio::select! {
                status = exec::run(client, *id, &request, format) => status,
                name = stop.received() => Ok(exit_status(name)),
            };
        }
        Command::Files(what) => files::run(client, what, format).await?,
        Command::Cp(args) => {
            let copied = copy::run(client, args).await?;
            // Standard output may be the target of the copy.
            if !args.to_stdout() {
                format.print(&copied, String::new)?;
            }
        }
        Command::Url { id, port } => {
            let address = client.port(*id, *port).await?;
            format.print(&address, || address.browser_url.clone())?;
        }
        Command::Forward { id, ports } => {
            let mut stop = Stop::new()?;
            return tokio::select! {
                ended = forward::run(client, *id, *ports, format) => ended.map(|()| 0),
                name = stop.received() => Ok(exit_status(name)),
            };
        }
        Command::Pause { id } => {
            let sandbox = during("pausing the sandbox", client.pause(*id)).await?;
            format.print(&sandbox, || sandbox.id.to_string())?;
        }
        Command::Resume { id, from_disk, idle_timeout } => {
            let how = ResumeSandbox { timeout_sec: *idle_timeout, memory: from_disk.then_some(false) };
            let sandbox = during("resuming the sandbox", client.resume(*id, &how)).await?;
            format.print(&sandbox, || sandbox.id.to_string())?;
        }
        Command::Ping { id } => {
            client.ping(*id).await?;
            format.print(&json!({ "id": id }), || id.to_string())?;
        }
        Command::Set { id, idle_timeout, auto_resume, public_ports } => {
            let update = UpdateSandbox {
                timeout_sec: *idle_timeout,
                auto_resume: *auto_resume,
                public_ports: *public_ports,
            };
            let sandbox = client.update(*id, &update).await?;
            format.print(&sandbox, || sandbox.id.to_string())?;
        }
        Command::Rm { ids } => return remove(client, ids, format).await,
    }
    Ok(0)
}

async fn create(client: &Client, new: &New, key: Option<&str>, format: Format) -> Result<u8> {
    let mut stop = Stop::new()?;
    let used = key.map_or_else(Key::own, |key| Key::Given(key.to_owned()));
    let (sandbox, stopped) =
        during("creating the sandbox", creation::create(client, &new.request(), &used, &mut stop)).await?;
    let id = sandbox.id;
    if let Some(name) = stopped {
        if key.is_some() {
            // An earlier request may have created it, and another process may use it.
            note(&format!("wrenn: the sandbox of this idempotency key is {id}; it was not removed"));
        } else {
            creation::remove(client, id).await?;
            note(&format!("wrenn: removed sandbox {id}"));
        }
        return Ok(exit_status(name));
    }
    format.print(&sandbox, || id.to_string())?;
    Ok(0)
}

async fn remove(client: &Client, ids: &[SandboxId], format: Format) -> Result<u8> {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for id in ids {
        match client.delete(*id).await {
            Ok(()) => removed.push(id.to_string()),
            // The other sandboxes are removed all the same.
            Err(error) => {
                let text = error.to_string();
                let subject = if text.contains(&id.to_string()) { String::new() } else { format!("{id}: ") };
                note(&format!("wrenn: {subject}{text}"));
                failed.push(json!({ "id": id, "error": Report::of(&anyhow!(error)) }));
            }
        }
    }
    format.print(&json!({ "removed": removed, "failed": failed }), || removed.join("\n"))?;
    Ok(u8::from(!failed.is_empty()))
}

/// Checks where the output of a process begins.
fn place(text: &str) -> Result<String, String> {
    let known = ["beginning", "now"].contains(&text) || text.parse::<u64>().is_ok();
    if known { Ok(text.to_owned()) } else { Err("write beginning, now or a number of bytes".to_owned()) }
}

fn processes(all: &[ProcessInfo]) -> String {
    let rows = all.iter().map(|process| {
        let command = [std::slice::from_ref(&process.cmd), &process.args].concat().join(" ");
        [
            process.pid.to_string(),
            process.tag.clone().unwrap_or_default(),
            process.user.clone(),
            time(process.started_at),
            command.escape_debug().to_string(),
        ]
    });
    output::table(["PID", "TAG", "USER", "STARTED", "COMMAND"], rows)
}

fn table(all: &[Sandbox]) -> String {
    let rows = all.iter().map(|sandbox| {
        [
            sandbox.id.to_string(),
            sandbox.status.as_str().to_owned(),
            sandbox.template.clone(),
            sandbox.vcpus.to_string(),
            format!("{} MiB", sandbox.memory_mb),
            format!("{} MiB", sandbox.disk_size_mb),
            time(sandbox.created_at),
        ]
    });
    output::table(["ID", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "DISK", "CREATED"], rows)
}

/// Formats all present fields, one per line.
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

/// Creates the client for this configuration.
pub(crate) fn client(config: &crate::config::Config) -> Result<Client> {
    let url = config.url();
    Ok(Client::new(&url, Some(config.api_key_for(&url)?))?)
}
