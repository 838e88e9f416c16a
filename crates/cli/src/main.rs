// SPDX-License-Identifier: Apache-2.0
//! The `wrenn` program: runs Wrenn, and is a client of its API.

mod audit;
mod channel;
mod channel_key;
mod client_config;
mod completion;
mod config;
mod confirm;
mod contexts;
mod creation;
mod doctor;
mod down;
mod events;
mod exec;
mod failure;
mod host_id;
mod image;
mod key;
mod layout;
mod leak_check;
mod log_rate;
mod logging;
mod login;
mod memory_limits;
mod output;
mod password;
mod pieces;
mod pki;
mod process;
mod progress;
mod registry;
mod restart;
mod run;
mod running_agent;
mod sandbox;
mod serve;
mod settings;
mod signals;
mod snapshot;
mod status;
mod stdin;
mod team;
mod template;
mod terminal;
mod up;
mod usage;
mod user;
mod users;
mod variables;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use config::{Config, Request};
use failure::Report;
use output::Format;

/// Heading of the options that all commands have.
const GLOBAL: &str = "Global options";
/// Text after the help of `wrenn` itself.
const MORE: &str = "\
Examples:
  wrenn up --detach                            start Wrenn (as root)
  wrenn run python3 -c 'print(6*7)'            run a command in a sandbox of its own
  wrenn run --image debian:bookworm -- ls /    run one in an image of a registry
  wrenn create --name web                      create a sandbox that stays
  wrenn exec web sh -c 'ls | wc'               run a command in it
  wrenn rm web                                 remove it
  wrenn template build app                     build a template from the Wrennfile or Dockerfile of this directory
  source <(wrenn completion bash)              complete commands on Tab

Commands of `wrenn sandbox` work without this word too: `wrenn ls` is `wrenn sandbox ls`. They take a sandbox by its id, by the
beginning of its id, or by its name.

Environment:
  WRENN_URL, WRENN_API_KEY   address and key of the API; else those of the context that is used (`wrenn context`), else from
                             ~/.config/wrenn/config.toml (or WRENN_CONFIG). What is kept for a URL is sent only there
  WRENN_REGISTRY_PASSWORD    password of the account that --registry-user names
  Other keys and their variables: docs/operations.md. No file of the working directory is read.

Exit status: 0 success; 1 failure; 2 wrong command line. `run`, `exec` and `attach` pass the command's on, and have 125 for a
failure of Wrenn: see their --help. With --json an error is an object on standard output.";

/// Runs untrusted code in microVMs.
#[derive(Debug, Parser)]
#[command(name = "wrenn", version, propagate_version = true, after_help = MORE)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Print one JSON value instead of text, also for errors: {"error":{"code","message","request_id"}}
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// Address of the API, http://HOST:PORT
    #[arg(long, global = true, value_name = "URL", help_heading = GLOBAL)]
    url: Option<String>,
    /// API key; better in WRENN_API_KEY or the configuration file, because process lists show arguments
    #[arg(long, global = true, value_name = "KEY", help_heading = GLOBAL)]
    api_key: Option<String>,
    /// Context to use: a server that `wrenn login` has signed in to
    #[arg(long, global = true, value_name = "CONTEXT", help_heading = GLOBAL)]
    use_context: Option<String>,
    /// Directory in which Wrenn keeps its state [default: /var/lib/wrenn]
    #[arg(long, global = true, value_name = "DIR", help_heading = GLOBAL)]
    state_dir: Option<String>,
    /// Directory with the guest kernel and the templates
    #[arg(long, global = true, value_name = "DIR", help_heading = GLOBAL)]
    share_dir: Option<String>,
    /// Set a key of the configuration, such as agent.driver=tcg; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = variables::assignment, help_heading = GLOBAL)]
    set: Vec<(String, String)>,
}

/// Global options of commands that run on the server's machine.
const MACHINE_OPTIONS: &[&str] = &["state_dir", "share_dir", "set"];
/// Global options of clients.
const CLIENT_OPTIONS: &[&str] = &["url", "api_key", "use_context"];
const CLIENT_COMMANDS: &[&str] = &[
    "run", "sandbox", "snapshot", "template", "image", "events", "login", "logout", "whoami", "context",
    "team", "channel", "audit", "usage",
];
const MACHINE_COMMANDS: &[&str] =
    &["up", "down", "restart", "doctor", "leak-check", "server", "agent", "migrate", "rotate-signing-key"];
const PRINTING_COMMANDS: &[&str] = &["openapi", "completion"];

/// Additional options of long-running commands.
#[derive(Debug, clap::Args)]
struct Service {
    /// Read variables from this file; those of the environment are stronger
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a sandbox made for it
    #[command(after_help = run::EXAMPLES, after_long_help = format!("{}\n\n{}", run::EXAMPLES, exec::EXIT_STATUS))]
    Run(run::Args),
    /// Create, list, use and remove sandboxes
    #[command(subcommand)]
    Sandbox(sandbox::Command),
    #[command(flatten)]
    Direct(sandbox::Command),
    /// Make, list and remove snapshots of sandboxes
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Build templates, which sandboxes are created from, and list, tag and remove them
    #[command(subcommand)]
    Template(template::Command),
    /// Upload images, which sandboxes and templates start from, and list and remove them
    #[command(subcommand)]
    Image(image::Command),
    /// Stream sandbox events until interrupted
    #[command(after_help = events::EXAMPLES)]
    Events(events::Args),
    /// Sign in to a server, as a user or with an API key
    #[command(after_help = login::EXAMPLES)]
    Login(login::Args),
    /// Sign out of a server
    Logout,
    /// Show which server is used, and as whom
    Whoami,
    /// List, choose and forget the servers that you have signed in to
    #[command(subcommand, after_help = contexts::EXAMPLES)]
    Context(contexts::Command),
    /// Make and manage users of the platform
    #[command(subcommand, after_help = user::EXAMPLES)]
    User(user::Command),
    /// Manage teams, their members and their quotas
    #[command(subcommand, after_help = team::EXAMPLES)]
    Team(team::Command),
    /// Create, list, change and revoke API keys
    #[command(subcommand, after_help = key::EXAMPLES)]
    Key(key::Command),
    /// Manage where events are delivered: webhooks and chats
    #[command(subcommand, after_help = channel::EXAMPLES)]
    Channel(channel::Command),
    /// Show who did what
    #[command(after_help = audit::EXAMPLES)]
    Audit(audit::Args),
    /// Show what the team's sandboxes have used
    #[command(after_help = usage::EXAMPLES)]
    Usage(usage::Args),
    /// Start Wrenn on this machine
    Up {
        #[command(flatten)]
        up: up::Args,
        #[command(flatten)]
        service: Service,
    },
    /// Stop Wrenn on this machine and pause its sandboxes
    Down(down::Args),
    /// Stop Wrenn on this machine and start it again in the background, with the same options; its sandboxes run on
    Restart,
    /// Show which parts of Wrenn run, and their addresses
    Status,
    /// Check whether Wrenn can run on this machine
    Doctor,
    /// List kernel resources that a stopped Wrenn did not clean up
    LeakCheck,
    /// Run the control plane only
    Server(Service),
    /// Run the host agent only
    Agent(Service),
    /// Bring the database to this version
    Migrate(Service),
    /// Replace the key with which URLs of files are signed
    RotateSigningKey {
        #[command(flatten)]
        service: Service,
        /// Let the URLs that were signed before end now
        #[arg(long)]
        revoke: bool,
    },
    /// Print the API's description (OpenAPI; YAML, or JSON with --json)
    Openapi,
    /// Print a completion script for a shell; it completes sandboxes and templates too
    #[command(after_help = completion::EXAMPLES)]
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
            ("context", &self.use_context),
            ("state_dir", &self.state_dir),
            ("share_dir", &self.share_dir),
        ];
        let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        self.set.iter().cloned().chain(named).collect()
    }

    fn format(&self) -> Format {
        if self.json { Format::Json } else { Format::Text }
    }
}

impl Cli {
    /// Sources of the configuration.
    fn request(&self) -> Request {
        let service = match &self.command {
            Command::Up { service, .. }
            | Command::Server(service)
            | Command::Agent(service)
            | Command::RotateSigningKey { service, .. }
            | Command::Migrate(service) => Some(service),
            _ => None,
        };
        Request {
            flags: self.global.flags(),
            env_file: service.and_then(|service| service.env_file.clone()),
            strict: service.is_some(),
        }
    }

    /// Whether the exit status is that of a command in a sandbox, so that Wrenn's own failures need distinct
    /// ones.
    fn passes_status_on(&self) -> bool {
        match &self.command {
            Command::Run(_) => true,
            Command::Sandbox(what) | Command::Direct(what) => matches!(
                what,
                sandbox::Command::Exec { .. }
                    | sandbox::Command::Attach { .. }
                    | sandbox::Command::Connect { .. }
            ),
            _ => false,
        }
    }
}

/// Commands of `wrenn sandbox` that the help of `wrenn` lists too.
const SHOWN: &[&str] = &["create", "ls", "exec", "cp", "logs", "stats", "top", "rm"];

/// Names of the commands of `wrenn sandbox`.
fn sandbox_commands(command: &clap::Command) -> Vec<String> {
    let sandbox = command.find_subcommand("sandbox");
    let commands = sandbox.into_iter().flat_map(clap::Command::get_subcommands);
    commands.map(|command| command.get_name().to_owned()).collect()
}

/// Builds the command line; the help of each command shows only the global options that it uses.
fn command_line() -> clap::Command {
    let mut command = Cli::command();
    let hide = |names: &[&str], command: &clap::Command| -> Vec<clap::Arg> {
        let options = command.get_arguments().filter(|option| names.contains(&option.get_id().as_str()));
        options.map(|option| option.clone().hide(true)).collect()
    };
    let (machine, client) = (hide(MACHINE_OPTIONS, &command), hide(CLIENT_OPTIONS, &command));
    for name in sandbox_commands(&command) {
        let shown = SHOWN.contains(&name.as_str());
        command = command.mut_subcommand(name, |command| command.args(&machine).hide(!shown));
    }
    for (commands, hidden) in [
        (CLIENT_COMMANDS, &machine),
        (MACHINE_COMMANDS, &client),
        (PRINTING_COMMANDS, &machine),
        (PRINTING_COMMANDS, &client),
    ] {
        for name in commands {
            command = command.mut_subcommand(name, |command| command.args(hidden));
        }
    }
    completion::with_values(command)
}

fn main() -> ExitCode {
    if let Some(done) = wrenn_host::unpack_image_if_asked() {
        return done;
    }
    if let Some(served) = wrenn_memory::page_server::run_if_asked() {
        return served;
    }
    // First of all: files that the parent shell had open must not reach VMMs or other children.
    if let Err(error) = wrenn_os::inherit::close_files_on_exec() {
        output::note(&format!("wrenn: cannot keep open files from children: {error}"));
        return ExitCode::FAILURE;
    }
    // Before any thread starts.
    forget_relative_path();
    // The name would be "exe" when started by /proc/self/exe.
    let _ = rustix::thread::set_name(c"wrenn");
    // An error only means that one is already installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Ends the program if the shell asks for a completion.
    completion::answer(command_line);
    let parsed = command_line().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && wants_json() => {
            failure::tell_usage(&error);
            return ExitCode::from(failure::USAGE);
        }
        Err(error) => error.exit(),
    };
    match start(&cli) {
        Ok(status) => ExitCode::from(status),
        // The reader of standard output closed it, as `head` does: not an error.
        Err(error) if output::reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            failure::tell(&error, cli.global.format());
            if cli.passes_status_on() {
                return ExitCode::from(Report::of(&error).exit_status());
            }
            ExitCode::FAILURE
        }
    }
}

/// Removes directories that depend on the working directory from PATH, so that no program is run from there.
fn forget_relative_path() {
    let Some(path) = std::env::var_os("PATH") else { return };
    let absolute: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    if let Ok(path) = std::env::join_paths(absolute) {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var("PATH", path) };
    }
}

/// Whether an invalid command line asks for JSON.
fn wants_json() -> bool {
    std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

fn start(cli: &Cli) -> Result<u8> {
    // These need no configuration, so they work with an invalid one.
    match &cli.command {
        Command::Openapi => return openapi(cli.global.format()),
        Command::Completion { shell } => return completion::print(*shell),
        _ => {}
    }
    let config = Config::load(cli.request())?;
    let mut builder = match cli.command {
        // Its children are killed when the thread that started them ends.
        Command::Up { .. } => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    let status = runtime.block_on(dispatch(cli, &config));
    // A thread that waits for a terminal must not block the exit.
    runtime.shutdown_background();
    status
}

async fn dispatch(cli: &Cli, config: &Config) -> Result<u8> {
    let format = cli.global.format();
    match &cli.command {
        Command::Up { up, .. } => up::run(config, up, format).await,
        Command::Down(args) => down::run(config, args, format).await,
        Command::Restart => restart::run(config).await,
        Command::Status => status::run(config, format).await,
        Command::Doctor => doctor::run(config, format).await,
        Command::Run(args) => run::run(&sandbox::client(config)?, args, format).await,
        Command::Sandbox(what) | Command::Direct(what) => {
            sandbox::run(&sandbox::client(config)?, what, format).await
        }
        Command::Snapshot(what) => snapshot::run(&sandbox::client(config)?, what, format).await,
        Command::Template(what) => template::run(&sandbox::client(config)?, what, format).await,
        Command::Image(what) => image::run(&sandbox::client(config)?, what, format).await,
        Command::Events(args) => events::run(&sandbox::client(config)?, args, format).await,
        Command::Login(args) => login::run(config, args, format).await,
        Command::Logout => login::log_out(config, format).await,
        Command::Whoami => login::who_am_i(config, format).await,
        Command::Context(what) => contexts::run(config, what, format),
        Command::User(what) => user::run(config, what, format).await,
        Command::Team(what) => team::run(&sandbox::client(config)?, what, format).await,
        Command::Key(what) => key::run(config, what, format).await,
        Command::Channel(what) => channel::run(&sandbox::client(config)?, what, format).await,
        Command::Audit(args) => audit::run(&sandbox::client(config)?, args, format).await,
        Command::Usage(args) => usage::run(&sandbox::client(config)?, args, format).await,
        Command::LeakCheck => leak_check::run(config, format).await,
        Command::Server(_) => serve::server(config).await,
        Command::Agent(_) => serve::agent(config).await,
        Command::Migrate(_) => serve::migrate(config).await,
        Command::RotateSigningKey { revoke, .. } => serve::rotate_signing_key(config, *revoke).await,
        Command::Openapi | Command::Completion { .. } => Ok(0),
    }
}

fn openapi(format: Format) -> Result<u8> {
    let document = wrenn_control::document(&[])?;
    let text = match format {
        Format::Text => document.to_yaml().context("cannot write YAML")?,
        Format::Json => document.to_pretty_json().context("cannot write JSON")?,
    };
    output::line(text.trim_end()).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn parse(words: &[&str]) -> Result<Cli> {
        let matches = command_line().try_get_matches_from(words)?;
        Ok(Cli::from_arg_matches(&matches)?)
    }

    #[test]
    fn the_command_line_is_consistent() {
        command_line().debug_assert();
    }

    #[test]
    fn what_is_behind_the_program_is_the_command_s() -> Result<()> {
        let id = wrenn_api::SandboxId::new().to_string();
        for words in [
            &["wrenn", "run", "--env", "A=b", "--", "sh", "-c", "--json"][..],
            &["wrenn", "run", "--env", "A=b", "sh", "-c", "--json"],
            &["wrenn", "sandbox", "exec", &id, "sh", "-c", "--json"],
            &["wrenn", "exec", "web", "sh", "-c", "--json"],
            &["wrenn", "sandbox", "exec", "-u", "root", &id, "--", "sh", "-c", "--json"],
        ] {
            let cli = parse(words)?;
            assert!(!cli.global.json, "{words:?}");
            let request = match &cli.command {
                Command::Run(args) => args.command()?.request,
                Command::Sandbox(sandbox::Command::Exec { command, .. })
                | Command::Direct(sandbox::Command::Exec { command, .. }) => {
                    command.command(BTreeMap::new(), terminal::Leaving::Stays)?.request
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(
                (request.cmd.as_str(), request.args.as_slice()),
                ("sh", &["-c", "--json"].map(str::to_owned)[..])
            );
        }
        // A second `--` is an argument, and a misspelt flag is no program.
        let cli = parse(&["wrenn", "run", "env", "--", "x"])?;
        let Command::Run(args) = &cli.command else { panic!("{cli:?}") };
        assert_eq!(args.command()?.request.args, ["--", "x"]);
        assert!(parse(&["wrenn", "run", "--tmeplate", "x", "true"]).is_err());
        Ok(())
    }

    #[test]
    fn an_image_needs_no_command_and_its_account_no_password_among_the_arguments() -> Result<()> {
        for words in [
            "run --image debian:bookworm",
            "run --image debian:bookworm -- sh -c ls",
            "run --image a/b:1 --registry-user robot --registry-password-stdin",
            "create --image a/b:1 --registry-user robot --registry-password-stdin",
            "template build web --registry-user robot",
        ] {
            parse(&words_of(words))?;
        }
        for words in [
            "run",
            "run --template minimal",
            "run --image a --template minimal true",
            "run --image a --registry-user robot --registry-password x",
            "create --image a --registry-password-stdin",
        ] {
            assert!(parse(&words_of(words)).is_err(), "{words}");
        }
        Ok(())
    }

    fn words_of(text: &str) -> Vec<&str> {
        ["wrenn"].into_iter().chain(text.split(' ')).collect()
    }

    #[test]
    fn commands_of_sandbox_need_not_that_word_and_have_the_names_that_hands_know() -> Result<()> {
        for words in [
            &["ls", "--label", "a=b", "--status", "running,paused", "-q"][..],
            &["list", "-a"],
            &["ps"],
            &["ps", "web"],
            &["rm", "web", "sb03hal"],
            &["delete", "-f", "web"],
            &["rm", "--all", "--yes"],
            &["rm", "--label", "a"],
            &["prune", "-y"],
            &["cp", "a", "b"],
            &["logs", "web", "job", "-f"],
            &["stats", "web", "sb03hal"],
            &["top", "--sort", "memory"],
            &[
                "create",
                "--name",
                "web",
                "--label",
                "a=b",
                "--memory",
                "1g",
                "--disk",
                "20G",
                "--idle-timeout",
                "10m",
            ],
            &["set", "web", "--name", "", "--label", "a=b", "--remove-label", "c"],
        ] {
            let direct = parse(&[&["wrenn"], words].concat())?;
            let whole = parse(&[&["wrenn", "sandbox"], words].concat())?;
            let (Command::Direct(direct), Command::Sandbox(whole)) = (&direct.command, &whole.command) else {
                panic!("{words:?}: {direct:?}, {whole:?}")
            };
            assert_eq!(format!("{direct:?}"), format!("{whole:?}"));
        }
        for words in [
            &["rm"][..],
            &["rm", "--all", "web"],
            &["ls", "--status", "flying"],
            &["get", "Not A Name"],
            &["top", "--sort", "age"],
        ] {
            assert!(parse(&[&["wrenn"], words].concat()).is_err(), "{words:?}");
        }
        let help = command_line().render_help().to_string();
        let listed = |name: &str| help.lines().any(|line| line.trim_start().starts_with(&format!("{name} ")));
        assert!(SHOWN.iter().all(|name| listed(name)) && !listed("ping"), "{help}");
        Ok(())
    }

    #[test]
    fn templates_have_tags_and_builds_ids() -> Result<()> {
        let build = wrenn_api::BuildId::new().to_string();
        for words in [
            &["build", "web"][..],
            &["build", "web:next", "-f", "x", "--context", "app", "--no-cache-from", "3", "--explain-cache"],
            &[
                "build",
                "web",
                "--vcpus",
                "2",
                "--memory",
                "1g",
                "--disk-size",
                "10g",
                "--no-cache",
                "--detach",
            ],
            &["ls"],
            &["inspect", "web:next"],
            &["history", "web"],
            &["tag", "web", "3", "latest"],
            &["rm", "web", "other"],
            &["builds", "--template", "web", "-n", "5"],
            &["logs", &build, "--step", "2", "--follow"],
            &["cancel", &build],
            &["debug", &build],
        ] {
            parse(&[&["wrenn", "template"], words].concat()).with_context(|| format!("{words:?}"))?;
        }
        let sandbox = wrenn_api::SandboxId::new().to_string();
        for words in [
            &["build"][..],
            &["build", "../web"],
            &["build", "web", "--no-cache", "--no-cache-from", "2"],
            &["build", "web", "--no-cache-from", "0"],
            &["inspect", "web:"],
            &["history", "web:latest"],
            &["tag", "web", "0", "latest"],
            &["rm"],
            &["builds", "-n", "101"],
            &["logs", &sandbox],
        ] {
            assert!(parse(&[&["wrenn", "template"], words].concat()).is_err(), "{words:?}");
        }
        Ok(())
    }

    #[test]
    fn people_teams_and_keys_are_managed() -> Result<()> {
        let (team, key) = (wrenn_api::TeamId::new().to_string(), wrenn_api::ApiKeyId::new().to_string());
        let delivery = wrenn_api::DeliveryId::new().to_string();
        for words in [
            &["login", "--email", "ada@example.com"][..],
            &["login", "--url", "https://wrenn.example", "--key", "--stdin"],
            &["login", "--link", "--use-context", "prod"],
            &["logout"],
            &["whoami", "--json"],
            &["context", "ls"],
            &["context", "use", "prod"],
            &["context", "rm", "a", "b"],
            &["user", "create", "ada@example.com", "--admin"],
            &["user", "rm", "ada@example.com", "--keys", "revoke", "--yes"],
            &["team", "invite", "grace@example.com", "--role", "admin", "--team", &team],
            &["team", "remove", "grace@example.com", "--keys", "keep"],
            &["team", "quotas", "--team", &team, "--limit", "running=5", "--limit", "vcpus=server"],
            &["team", "accept"],
            &["team", "use", &team],
            &["team", "switch", "--platform"],
            &["key", "create", "ci", "--scope", "sandbox.read", "--expires", "90d"],
            &["key", "create", "--local", "--admin", "--team", &team],
            &["key", "update", &key, "--scope", "sandbox.read"],
            &["key", "revoke", &key],
            &[
                "channel",
                "create",
                "ops",
                "--provider",
                "webhook",
                "--event",
                "sandbox.error",
                "--config",
                "file",
            ],
            &["channel", "redeliver", "ops", &delivery],
            &["audit", "--from", "7d", "--action", "a.b", "--action", "c.d", "-n", "5"],
            &["audit", "--export", "csv"],
            &["usage", "--from", "2026-01-01", "--csv"],
            &["usage", "--now"],
            &["usage", "--now", "24h"],
        ] {
            parse(&[&["wrenn"], words].concat()).with_context(|| format!("{words:?}"))?;
        }
        for words in [
            &["login", "--email", "ada@example.com", "--password", "x"][..],
            &["login", "--email", "ada@example.com", "--key"],
            &["key", "create", "--admin"],
            &["key", "create", "--team", &team],
            &["key", "revoke", &team],
            &["team", "invite", "grace@example.com", "--role", "owner"],
            &["team", "quotas", "--limit", "running=5"],
            &["team", "use"],
            &["team", "use", &team, "--platform"],
            &["channel", "create", "ops", "--provider", "pager", "--event", "sandbox.error"],
            &["channel", "update", "ops"],
            &["audit", "--export", "csv", "--platform"],
            &["usage", "--now", "2h"],
        ] {
            assert!(parse(&[&["wrenn"], words].concat()).is_err(), "{words:?}");
        }
        Ok(())
    }

    #[test]
    fn global_options_stand_before_and_behind_the_command_hidden_or_not() -> Result<()> {
        let flags = ["wrenn", "status", "--set", "agent.driver=tcg", "--state-dir", "/x"];
        assert_eq!(parse(&flags)?.global.flags().len(), 2);
        assert_eq!(parse(&["wrenn", "--set", "a=b", "migrate"])?.global.flags().len(), 1);
        assert_eq!(parse(&["wrenn", "sandbox", "ls", "--state-dir", "/x"])?.global.flags().len(), 1);
        assert_eq!(parse(&["wrenn", "--state-dir", "/x", "sandbox", "ls"])?.global.flags().len(), 1);
        Ok(())
    }

    #[test]
    fn commands_show_the_options_that_they_have_a_use_for() -> Result<()> {
        let mut command = command_line();
        command.build();
        let mut help = |words: &[&str]| -> Result<String> {
            let mut found = &mut command;
            for word in words {
                found = found.find_subcommand_mut(word).context("no such command")?;
            }
            Ok(found.render_long_help().to_string())
        };
        for words in [&["run"][..], &["sandbox", "exec"], &["sandbox", "ls"], &["ls"]] {
            let text = help(words)?;
            assert!(text.contains("Global options:") && text.contains("--url"), "{text}");
            assert!(!text.contains("--state-dir") && !text.contains("--set"), "{text}");
        }
        let text = help(&["up"])?;
        assert!(
            text.contains("--state-dir") && text.contains("--env-file") && !text.contains("--api-key"),
            "{text}"
        );
        for words in [&["run"][..], &["sandbox", "exec"]] {
            let text = help(words)?;
            assert!(["Exit status:", "125", "Examples:"].iter().all(|part| text.contains(part)), "{text}");
        }
        Ok(())
    }
}
