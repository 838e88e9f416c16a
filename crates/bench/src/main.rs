// SPDX-License-Identifier: Apache-2.0
//! `make bench`: compares Wrenn with the floor, the same work by hand, side by side in one run. Prints a
//! table and writes JSON. Only ratios are comparable between machines.

mod bare;
mod builds;
mod by_hand;
mod capture;
mod clone;
mod control_plane;
mod create;
mod event_streams;
mod exec;
mod first_byte;
mod growth;
mod guest_server;
mod idle;
mod lab;
mod one_core;
mod paging;
mod pause;
mod ports;
mod restore;
mod resume;
mod row;
mod slots;
mod streams;
mod tiers;
mod transfers;
mod unique;
mod unpacking;

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use wrenn_testkit::Stack;

use by_hand::Guest;
use control_plane::ControlPlane;
use row::Row;

/// Directory of the guest's files.
fn share() -> Result<PathBuf> {
    env::var_os("WRENN_SHARE_DIR").map(PathBuf::from).context("WRENN_SHARE_DIR is not set: run `make bench`")
}

/// Measures with a running Wrenn, and with a guest by hand beside it.
async fn beside_wrenn(measure: impl AsyncFnOnce(&Stack, &Guest) -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    eprintln!("bench: starting Wrenn");
    let stack = Stack::start().await?;
    let measured = async {
        let guest = Guest::save(&stack, &share()?).await?;
        measure(&stack, &guest).await
    };
    let (measured, logs) = (measured.await, stack.logs());
    stack.stop().await?;
    measured.context(logs)
}

async fn with_wrenn() -> Result<Vec<Row>> {
    beside_wrenn(async |stack, guest| {
        eprintln!("bench: creating sandboxes");
        let create = create::first_exec(stack, guest).await?;
        eprintln!("bench: running commands");
        let exec = exec::against_envd(stack).await?;
        eprintln!("bench: leaving sandboxes idle");
        let idle = idle::agent(stack).await?;
        Ok([create, exec, idle].concat())
    })
    .await
}

async fn streamed() -> Result<Vec<Row>> {
    beside_wrenn(async |stack, _| {
        eprintln!("bench: streaming");
        let streamed = streams::against_envd(stack).await?;
        eprintln!("bench: sending requests to a port");
        let ports = ports::against_direct(stack).await?;
        eprintln!("bench: sending large files");
        Ok([streamed, ports, transfers::against_tcp(stack).await?].concat())
    })
    .await
}

/// Measures the control plane alone, and with many clients.
async fn people() -> Result<Vec<Row>> {
    eprintln!("bench: starting Wrenn");
    let stack = Stack::start_with(event_streams::setup()).await?;
    let measured = async {
        eprintln!("bench: filling a database");
        let plane = ControlPlane::prepare(&stack).await?;
        let growth = growth::of_database_time(&plane).await?;
        eprintln!("bench: asking on one core");
        let gets = one_core::gets(&plane).await?;
        eprintln!("bench: opening event streams");
        let memory = event_streams::memory(&stack).await?;
        Ok([growth, vec![gets, memory]].concat())
    };
    let (measured, logs): (Result<_>, _) = (measured.await, stack.logs());
    stack.stop().await?;
    measured.context(logs)
}

async fn templates() -> Result<Vec<Row>> {
    eprintln!("bench: unpacking an image");
    let unpacking = tokio::task::spawn_blocking(unpacking::against_tar).await??;
    let built = beside_wrenn(async |stack, _| {
        eprintln!("bench: building templates");
        let mut rows = builds::of_templates(stack).await?;
        eprintln!("bench: keeping metrics");
        rows.push(tiers::kept(stack).await?);
        Ok(rows)
    });
    Ok([vec![unpacking], built.await?].concat())
}

async fn pauses() -> Result<Vec<Row>> {
    beside_wrenn(async |stack, _| {
        eprintln!("bench: pausing sandboxes");
        pause::against_writing(stack).await
    })
    .await
}

async fn resumes() -> Result<Vec<Row>> {
    beside_wrenn(async |stack, guest| {
        eprintln!("bench: resuming a sandbox");
        let resume = resume::first_exec(stack, guest).await?;
        eprintln!("bench: creating many sandboxes at once");
        Ok(vec![resume, create::at_once(stack, guest).await?])
    })
    .await
}

async fn unique() -> Result<Vec<Row>> {
    eprintln!("bench: leaving clones on Firecracker idle");
    let test_guests = unique::of_test_guests().await?;
    let sandboxes = beside_wrenn(async |stack, _| {
        eprintln!("bench: leaving clones idle");
        unique::of_sandboxes(stack).await
    });
    Ok(test_guests.into_iter().chain(sandboxes.await?).collect())
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
    let restores = restore::driver_against_client().await?;
    eprintln!("bench: pausing Firecracker");
    let pauses = capture::pauses().await?;
    eprintln!("bench: restoring Firecracker by page servers");
    let paged = paging::against_mapping().await?;
    Ok(restores.into_iter().chain(pauses).chain(paged).collect())
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
    let alone = [clones().await?, slots().await?, first_byte().await?, restores().await?];
    let beside_wrenn =
        [with_wrenn().await?, streamed().await?, pauses().await?, resumes().await?, unique().await?];
    let templates = [templates().await?, people().await?];
    Ok(alone.into_iter().chain(beside_wrenn).chain(templates).flatten().collect())
}

fn main() -> ExitCode {
    if let Some(served) = wrenn_memory::page_server::run_if_asked() {
        return served;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn measure() -> Result<()> {
    // With two crypto providers in one program, rustls needs an explicit default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let rows = match env::args().nth(1).as_deref() {
        None => all().await?,
        Some("clones") => clones().await?,
        Some("slots") => slots().await?,
        Some("first-byte") => first_byte().await?,
        Some("restores") => restores().await?,
        Some("wrenn") => with_wrenn().await?,
        Some("streams") => streamed().await?,
        Some("pauses") => pauses().await?,
        Some("resumes") => resumes().await?,
        Some("unique") => unique().await?,
        Some("templates") => templates().await?,
        Some("people") => people().await?,
        // Only in the lab, where KVM runs Linux and there is device-mapper.
        Some("snapshots") => snapshots().await?,
        Some("lab") => lab().await?,
        Some(other) => {
            bail!(
                "there is no part {other:?}: give none for all, or clones, slots, first-byte, restores, wrenn, streams, pauses, resumes, unique, templates, people; in the lab lab or snapshots"
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
