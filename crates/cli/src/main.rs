//! The `wrenn` program: runs Wrenn, and drives it over its API.

mod client_config;
mod config;
mod doctor;
mod down;
mod events;
mod exec;
mod layout;
mod leak_check;
mod logging;
mod output;
mod pki;
mod process;
mod run;
mod sandbox;
mod serve;
mod signals;
mod status;
mod up;
mod users;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory as _, Parser, Subcommand};

use config::Config;
use output::Format;

/// Runs untrusted code in microVMs.
#[derive(Debug, Parser)]
#[command(name = "wrenn", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Print one JSON value instead of text
    #[arg(long, global = true)]
    json: bool,
    /// Where the API is
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// The API key; better in WRENN_API_KEY or the configuration file, where process lists do not show it
    #[arg(long, global = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Where Wrenn keeps everything
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,
    /// Where kernel and templates are
    #[arg(long, global = true, value_name = "DIR")]
    share_dir: Option<String>,
    /// Any key of the configuration, such as agent.driver=tcg; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = run::variable)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start Wrenn on this machine
    Up(up::Args),
    /// Stop Wrenn on this machine
    Down,
    /// Show what runs, and where
    Status,
    /// Check whether Wrenn can run here
    Doctor,
    /// Run a command in a sandbox made for it
    Run(run::Args),
    /// Create, list, use and remove sandboxes
    #[command(subcommand)]
    Sandbox(sandbox::Command),
    /// Show what happens, until interrupted
    Events(events::Args),
    /// Show what a stopped Wrenn left behind
    LeakCheck,
    /// Run the control plane only
    Server,
    /// Run the host agent only
    Agent,
    /// Bring the database to this version
    Migrate,
    /// Print the API's description (OpenAPI, YAML)
    Openapi,
    /// Print completions for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Global {
    fn flags(&self) -> Vec<(String, String)> {
        let named = [
            ("url", &self.url),
            ("api_key", &self.api_key),
            ("state_dir", &self.state_dir),
            ("share_dir", &self.share_dir),
        ];
        let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        self.set.iter().cloned().chain(named).collect()
    }
}

fn main() -> ExitCode {
    // Started by way of /proc/self/exe, it would be called "exe".
    let _ = rustix::thread::set_name(c"wrenn");
    // An error only says that one was installed before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    match start(&cli) {
        Ok(status) => ExitCode::from(status),
        // The reader of our output went away, as `head` does: nothing is wrong.
        Err(error) if output::reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("wrenn: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(cli: &Cli) -> Result<u8> {
    // These need no configuration, so a broken one does not stop them.
    match &cli.command {
        Command::Openapi => return output::line(wrenn_control::openapi_yaml().trim_end()).map(|()| 0),
        Command::Completion { shell } => return completion(*shell),
        _ => {}
    }
    let config = Config::load(cli.global.flags())?;
    let mut builder = match cli.command {
        // Its children are tied to the life of the thread that starts them.
        Command::Up(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    let status = runtime.block_on(dispatch(cli, &config));
    // A thread that waits for a terminal must not keep the program.
    runtime.shutdown_background();
    status
}

async fn dispatch(cli: &Cli, config: &Config) -> Result<u8> {
    let format = if cli.global.json { Format::Json } else { Format::Text };
    match &cli.command {
        Command::Up(args) => up::run(config, args, format).await,
        Command::Down => down::run(config, format).await,
        Command::Status => status::run(config, format).await,
        Command::Doctor => doctor::run(config, format).await,
        Command::Run(args) => run::run(&sandbox::client(config)?, args, format).await,
        Command::Sandbox(what) => sandbox::run(&sandbox::client(config)?, what, format).await,
        Command::Events(args) => events::run(&sandbox::client(config)?, args, format).await,
        Command::LeakCheck => leak_check::run(config, format).await,
        Command::Server => serve::server(config).await,
        Command::Agent => serve::agent(config).await,
        Command::Migrate => serve::migrate(config).await,
        Command::Openapi | Command::Completion { .. } => Ok(0),
    }
}

fn completion(shell: clap_complete::Shell) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wrenn", &mut text);
    output::line(String::from_utf8_lossy(&text).trim_end()).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_behind_two_dashes_is_the_command() -> Result<()> {
        let cli = Cli::try_parse_from(["wrenn", "run", "--env", "A=b", "--", "sh", "-c", "--json"])?;
        assert!(!cli.global.json);
        let flags = ["wrenn", "status", "--set", "agent.driver=tcg", "--state-dir", "/x"];
        let flags = Cli::try_parse_from(flags)?.global.flags();
        assert_eq!(flags.len(), 2);
        Ok(())
    }
}
