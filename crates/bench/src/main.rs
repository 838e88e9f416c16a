// SPDX-License-Identifier: Apache-2.0
//! `make bench`: compares Wrenn with the floor, the same work by hand, side by side in one run. Prints a
//! table and writes JSON. Only ratios are comparable between machines.

mod bare;
mod by_hand;
mod clone;
mod create;
mod exec;
mod first_byte;
mod idle;
mod lab;
mod restore;
mod row;
mod slots;

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use wrenn_testkit::Stack;

use row::Row;

/// Directory of the guest's files.
fn share() -> Result<PathBuf> {
    env::var_os("WRENN_SHARE_DIR").map(PathBuf::from).context("WRENN_SHARE_DIR is not set: run `make bench`")
}

/// Measures what needs a running Wrenn.
async fn with_wrenn() -> Result<Vec<Row>> {
    eprintln!("bench: starting Wrenn");
    let stack = Stack::start().await?;
    let measured = async {
        eprintln!("bench: creating sandboxes");
        let create = create::first_exec(&stack, &share()?).await?;
        eprintln!("bench: running commands");
        let exec = exec::against_envd(&stack).await?;
        eprintln!("bench: leaving sandboxes idle");
        let idle = idle::agent_memory(&stack).await?;
        Ok::<_, anyhow::Error>([create, exec, vec![idle]].concat())
    }
    .await;
    stack.stop().await?;
    measured
}

async fn slots() -> Result<Vec<Row>> {
    eprintln!("bench: building network slots");
    tokio::task::spawn_blocking(slots::warm_and_built).await?
}

async fn first_byte() -> Result<Vec<Row>> {
    eprintln!("bench: starting Firecracker");
    Ok(Vec::from_iter(first_byte::agent_against_client(&share()?).await?))
}

async fn restores() -> Result<Vec<Row>> {
    eprintln!("bench: restoring Firecracker");
    restore::driver_against_client().await
}

async fn clones() -> Result<Vec<Row>> {
    eprintln!("bench: cloning images");
    Ok(vec![clone::large_against_small().await?])
}

async fn snapshots() -> Result<Vec<Row>> {
    eprintln!("bench: cloning images by device-mapper");
    Ok(Vec::from_iter(clone::snapshots().await?))
}

async fn lab() -> Result<Vec<Row>> {
    eprintln!("bench: booting Linux with Firecracker");
    let boot = lab::until_envd(&share()?).await?;
    Ok([vec![boot], snapshots().await?].concat())
}

/// Measures everything that needs no lab.
async fn all() -> Result<Vec<Row>> {
    Ok([clones().await?, slots().await?, first_byte().await?, restores().await?, with_wrenn().await?]
        .concat())
}

#[tokio::main]
async fn main() -> Result<()> {
    // With two crypto providers in one program, rustls needs an explicit default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let rows = match env::args().nth(1).as_deref() {
        None => all().await?,
        Some("clones") => clones().await?,
        Some("slots") => slots().await?,
        Some("first-byte") => first_byte().await?,
        Some("restores") => restores().await?,
        Some("wrenn") => with_wrenn().await?,
        // Only in the lab, where KVM runs Linux and there is device-mapper.
        Some("snapshots") => snapshots().await?,
        Some("lab") => lab().await?,
        Some(other) => {
            bail!(
                "there is no part {other:?}: give none for all, or clones, slots, first-byte, restores, wrenn; in the lab lab or snapshots"
            )
        }
    };
    write(&rows)
}

/// Prints the table and writes the figures as JSON, to standard output if BENCH_JSON is `-`.
fn write(rows: &[Row]) -> Result<()> {
    let (table, json) = (row::table(rows), serde_json::to_vec_pretty(rows)?);
    let path = env::var_os("BENCH_JSON").map_or_else(|| PathBuf::from("target/bench.json"), PathBuf::from);
    if path == Path::new("-") {
        eprintln!("{table}");
        return Ok(io::stdout().write_all(&json)?);
    }
    println!("{table}");
    fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))?;
    println!("figures: {}", path.display());
    Ok(())
}
