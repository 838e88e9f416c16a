// SPDX-License-Identifier: Apache-2.0
//! Files and a database over many pauses.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_testkit::{Stack, short_or_long, wait_until};

use super::{
    super::support::{delete_wholly, pause, post, resume, sh},
    small,
};

const TREE: &str = include_str!("tree.py");
/// Script with a writer of a database, and a check.
pub(super) const DATABASE: &str = include_str!("database.py");
/// Makes the database, starts the writer, and prints its process id.
pub(super) const START_WRITER: &str = "cd /root && python3 database.py make log.db || exit 1
    setsid python3 database.py write log.db > writer.log 2>&1 & echo $!";

/// Writes a script into the directory of root.
pub(super) async fn bring(stack: &Stack, id: &str, name: &str, script: &str) -> Result<()> {
    let path = format!("/tmp/{name}");
    stack.api.write(id, &path, script.as_bytes().to_vec()).await?.expect(204)?;
    sh(stack, id, &format!("mv {path} /root/{name}")).await.map(drop)
}

/// Checks the database; returns the number of rows that were written.
pub(super) async fn rows(stack: &Stack, id: &str) -> Result<u64> {
    let checked = sh(stack, id, "python3 /root/database.py check /root/log.db").await;
    Ok(checked.context("the database")?.parse()?)
}

/// Fails unless the writer is this process and goes on beyond `before` rows; returns how many there are now.
pub(super) async fn writes_on(stack: &Stack, id: &str, writer: &str, before: u64) -> Result<u64> {
    sh(stack, id, &format!("kill -0 {writer} || {{ cat /root/writer.log >&2; exit 1; }}"))
        .await
        .context("the writer has ended")?;
    let mut last = Ok(0);
    let more = async || {
        last = rows(stack, id).await;
        match &last {
            Ok(now) if *now <= before => None,
            _ => Some(()),
        }
    };
    wait_until(&format!("more than {before} rows"), Duration::from_secs(30), more).await?;
    last
}

/// Checksum of the tree as it is on the disk, and not in the guest's memory.
async fn sum(stack: &Stack, id: &str) -> Result<String> {
    let script = "sync; echo 3 > /proc/sys/vm/drop_caches; python3 /root/tree.py sum /root/tree";
    sh(stack, id, script).await
}

/// A tree with changes of every kind, and a database that is written all the time, are whole after every pause, and after
/// a boot from the disk.
pub(crate) async fn files_and_a_database_stay_whole(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    bring(&stack, &id, "tree.py", TREE).await?;
    bring(&stack, &id, "database.py", DATABASE).await?;
    let writer = sh(&stack, &id, START_WRITER).await?;
    let (mut last, mut tree) = (writes_on(&stack, &id, &writer, 0).await?, String::new());
    for round in 0..short_or_long(3, 20) {
        sh(&stack, &id, &format!("python3 /root/tree.py change /root/tree {round}")).await?;
        tree = sum(&stack, &id).await?;
        pause(&stack, &id).await?;
        resume(&stack, &id).await?;
        let after = sum(&stack, &id).await?;
        ensure!(after == tree, "the tree is {after} after pause {round}, and was {tree}");
        last = writes_on(&stack, &id, &writer, last).await.with_context(|| format!("after pause {round}"))?;
    }
    pause(&stack, &id).await?;
    post(&stack, &id, "resume", &json!({"memory": false})).await?;
    let after = sum(&stack, &id).await?;
    ensure!(after == tree, "the tree is {after} after a boot, and was {tree}");
    let found = rows(&stack, &id).await?;
    ensure!(found >= last, "{found} rows are there after a boot, and {last} had been written");
    delete_wholly(&stack, &id).await
}
