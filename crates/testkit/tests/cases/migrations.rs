// SPDX-License-Identifier: Apache-2.0
//! Database migration by several servers that start at once.

use std::sync::Arc;

use anyhow::Result;
use futures::future::try_join_all;
use wrenn_testkit::Stack;

/// All succeed, and the schema is created once.
pub(crate) async fn several_at_once(stack: Arc<Stack>) -> Result<()> {
    stack.sql("CREATE DATABASE fresh")?;
    let sockets = stack.state_dir.join("run/postgres").display().to_string().replace('/', "%2F");
    let setting = format!("database_url=postgres://wrenn@{sockets}/fresh");
    let runs = (0..4).map(|_| {
        let (stack, setting) = (stack.clone(), setting.clone());
        tokio::task::spawn_blocking(move || stack.wrenn(&["--set", &setting, "migrate"]))
    });
    for output in try_join_all(runs).await? {
        let output = output?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let again = stack.wrenn(&["--set", &setting, "migrate"])?;
    anyhow::ensure!(again.status.success(), "repeating it: {}", String::from_utf8_lossy(&again.stderr));
    stack.sql("DROP DATABASE fresh")?;
    Ok(())
}
