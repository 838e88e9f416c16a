// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask lab`: a virtual host with KVM, device-mapper and Firecracker. See `docs/lab.md`.

mod interrupt;
mod runs;
mod test;

use std::{
    process::{Command, ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use wrenn_testkit::{Lab, LabConfig, lab::Subnet, short_or_long};

use crate::programs::repository;

/// Subcommands for the lab.
#[derive(Subcommand)]
pub(crate) enum Task {
    /// Build the lab's image unless it is up to date
    Build,
    /// Boot a lab, run a command in it, and exit with the command's status
    Run {
        #[command(flatten)]
        machine: MachineArgs,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Boot a lab and open a shell in it
    Shell {
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Run the tests that need the features of a lab
    Test {
        #[command(flatten)]
        machine: MachineArgs,
        /// Number of labs at the same time
        #[arg(long, default_value_t = 2)]
        labs: usize,
        /// Only test programs whose name contains this
        filter: Option<String>,
    },
}

/// Options of a lab.
#[derive(Args)]
pub(crate) struct MachineArgs {
    /// Name of the lab; only one lab of a name can run at a time
    #[arg(long, default_value = "lab")]
    name: String,
    /// Memory in MiB
    #[arg(long, default_value_t = 4096)]
    memory: u32,
    /// Number of CPUs; with more than one the lab sometimes hangs
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Time limit in minutes after which the lab is killed; with `test`, the limit for all labs
    #[arg(long, default_value_t = short_or_long(45, 150))]
    minutes: u64,
    /// Subnet; labs of one subnet can reach each other [default: 10.200.77.0/24]
    #[arg(long, env = "LAB_SUBNET")]
    subnet: Option<Subnet>,
    /// File or directory to provide in the lab, as HERE=THERE
    #[arg(long = "file", value_name = "HERE=THERE", value_parser = file)]
    files: Vec<(String, String)>,
}

fn file(text: &str) -> Result<(String, String)> {
    let (here, there) = text.split_once('=').context("give it as HERE=THERE")?;
    Ok((here.to_owned(), there.to_owned()))
}

impl MachineArgs {
    fn config(self) -> LabConfig {
        let mut config = LabConfig::new(&self.name).with_product();
        config.memory_mb = self.memory;
        config.cpus = self.cpus;
        config.time_limit = Duration::from_secs(self.minutes.saturating_mul(60));
        config.subnet = self.subnet.unwrap_or_default();
        self.files.into_iter().fold(config, |config, (here, there)| config.with_file(here, there))
    }
}

pub(crate) fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Build => build().map(|()| ExitCode::SUCCESS),
        Task::Run { machine, command } => {
            let lab = start(&machine.config())?;
            let status = lab.run_live(&command)?;
            if !status.success() {
                collect_logs(&lab);
            }
            Ok(finish(lab, status))
        }
        Task::Shell { machine } => {
            let lab = start(&machine.config())?;
            eprintln!("lab: {} is {}; it stops when this shell exits", lab.name(), lab.address());
            let status = lab.shell::<&str>(&[])?;
            Ok(finish(lab, status))
        }
        Task::Test { machine, labs, filter } => test::run(machine.config(), labs, filter.as_deref()),
    }
}

fn build() -> Result<()> {
    let script = repository().join("lab/build");
    let status =
        Command::new(&script).status().with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(status.success(), "{} failed: {status}", script.display());
    Ok(())
}

/// Builds the image and starts a lab. From now on Ctrl-C stops the command in the lab, and the lab is stopped
/// properly.
fn start(config: &LabConfig) -> Result<Lab> {
    build()?;
    interrupt::outlive()?;
    let lab = Lab::start(config)?;
    eprintln!("lab: started in {:.1} s", lab.started_in().as_secs_f64());
    Ok(lab)
}

/// Stops the lab and returns the exit code of the command.
fn finish(lab: Lab, status: ExitStatus) -> ExitCode {
    lab.stop();
    // A command ended by a signal has no code; the exact value does not matter.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(130);
    ExitCode::from(code)
}

fn collect_logs(lab: &Lab) {
    match lab.logs() {
        Ok(dir) => eprintln!("lab: logs are in {}", dir.display()),
        Err(error) => eprintln!("lab: {error:#}; its console is in {}", lab.dir().display()),
    }
}
