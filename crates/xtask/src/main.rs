//! What developers of Wrenn run: `cargo xtask`.

mod lab;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "What developers of Wrenn run")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The virtual host with KVM, device-mapper and Firecracker
    #[command(subcommand)]
    Lab(lab::Task),
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().task {
        Task::Lab(task) => lab::run(task),
    }
}
