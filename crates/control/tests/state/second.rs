// SPDX-License-Identifier: Apache-2.0
//! A second server beside that of a case, which is killed amid it: by the case, or with `WRENN_STATE_SECOND=1` amid all cases.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::Result;
use tokio::runtime::{Builder, Runtime};
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
    let second = Second::start(builder)?;
    thread::spawn(move || {
        thread::sleep(LIFE.0 + LIFE.1 * more);
        drop(second);
    });
    Ok(())
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

/// A server with threads of its own. When this is dropped, all that it does is dropped wherever it is: it finishes nothing, and its
/// connections break.
pub(crate) struct Second(Option<Runtime>);

impl Second {
    pub(crate) fn start(builder: ServerBuilder) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.spawn(async move { builder.build().await?.run(CancellationToken::new()).await });
        Ok(Self(Some(runtime)))
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
