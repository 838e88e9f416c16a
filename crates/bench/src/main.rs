//! `make bench`: ours against the floor, the same work by hand, side by side in one run. Prints a table and
//! writes JSON. Ratios count: they hold on any machine.

mod by_hand;
mod clone;
mod create;
mod exec;
mod row;

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use wrenn_testkit::Stack;

use row::Row;

/// Where the guest's parts are.
fn share() -> Result<PathBuf> {
    env::var_os("WRENN_SHARE_DIR").map(PathBuf::from).context("WRENN_SHARE_DIR is not set: run `make bench`")
}

async fn measure() -> Result<Vec<Row>> {
    eprintln!("bench: cloning images");
    let mut rows = vec![clone::large_against_small().await?];
    rows.extend(clone::snapshots().await?);
    eprintln!("bench: starting Wrenn");
    let stack = Stack::start().await?;
    let measured = async {
        eprintln!("bench: creating sandboxes");
        let create = create::first_exec(&stack, &share()?).await?;
        eprintln!("bench: running commands");
        Ok::<_, anyhow::Error>([vec![create], exec::against_envd(&stack).await?].concat())
    }
    .await;
    stack.stop().await?;
    rows.extend(measured?);
    Ok(rows)
}

#[tokio::main]
async fn main() -> Result<()> {
    // Two providers in one program would make rustls ask which.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // In the lab, where device-mapper is, only its row: `wrenn-bench snapshots`.
    let rows = match env::args().nth(1).as_deref() {
        None => measure().await?,
        Some("snapshots") => Vec::from_iter(clone::snapshots().await?),
        Some(other) => bail!("there is no part {other:?}: give none, or `snapshots`"),
    };
    println!("{}", row::table(&rows));
    let path =
        env::var_os("WRENN_BENCH_JSON").map_or_else(|| PathBuf::from("target/bench.json"), PathBuf::from);
    fs::write(&path, serde_json::to_vec_pretty(&rows)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("figures: {}", path.display());
    Ok(())
}
