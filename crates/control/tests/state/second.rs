// SPDX-License-Identifier: Apache-2.0
//! A second server beside that of a case, which is killed amid it: with `WRENN_STATE_SECOND=1` all cases run so.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::Result;
use tokio_util::sync::CancellationToken;
use wrenn_control::ServerBuilder;

/// Life of a second server: the least, and what a case may have more, so that cases are hit at different moments.
const LIFE: (Duration, Duration) = (Duration::from_millis(800), Duration::from_millis(400));
/// Number of different lives.
const LIVES: u32 = 8;

/// Starts a second server for a case if that is asked for.
pub(crate) fn start_if_asked(
    case: &str,
    builder: impl FnOnce() -> Result<(ServerBuilder, SocketAddr)>,
) -> Result<()> {
    if !is_asked() {
        return Ok(());
    }
    let (builder, _) = builder()?;
    let more = case.bytes().map(u32::from).sum::<u32>() % LIVES;
    start(builder, LIFE.0 + LIFE.1 * more)
}

/// Waits until no second server is left, for cases whose own servers can do what it cannot.
pub(crate) async fn wait_until_over() {
    if is_asked() {
        tokio::time::sleep(LIFE.0 + LIFE.1 * LIVES).await;
    }
}

fn is_asked() -> bool {
    std::env::var_os("WRENN_STATE_SECOND").is_some()
}

/// Starts a server with threads of its own. When its life is over, all that it does is dropped wherever it is: it finishes nothing, and
/// its connections break.
pub(crate) fn start(builder: ServerBuilder, life: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.spawn(async move { builder.build().await?.run(CancellationToken::new()).await });
    thread::spawn(move || {
        thread::sleep(life);
        runtime.shutdown_background();
    });
    Ok(())
}
