// SPDX-License-Identifier: Apache-2.0
//! Development tasks of Wrenn: `cargo xtask`.

mod lab;
mod programs;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "Development tasks of Wrenn")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Virtual host with KVM, device-mapper and Firecracker
    #[command(subcommand)]
    Lab(lab::Task),
    /// Run all tests, side by side, with a report of their times
    Test(test::Options),
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().task {
        Task::Lab(task) => lab::run(task),
        Task::Test(options) => test::run(&options),
    }
}
