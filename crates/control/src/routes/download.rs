//! The body of a download. A task of its own reads from the sandbox and waits for the client: while a client takes
//! nothing its connection asks for nothing, so that nobody else would notice.

use std::{io, pin::pin};

use bytes::Bytes;
use futures::{SinkExt as _, Stream, StreamExt as _, channel::mpsc, stream};
use tokio_util::task::AbortOnDropHandle;

use super::progress::{By, moving};
use crate::error::ApiError;

/// Pieces on their way to the client.
const PENDING: usize = 4;

/// The content of `source`, which is given up when either side stands still, or the client is gone. `held` is kept as long
/// as the transfer lasts.
pub(super) fn body(
    source: impl Stream<Item = Result<Bytes, ApiError>> + Send + 'static,
    held: impl Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (pieces, taken) = mpsc::channel(PENDING);
    let pumping = AbortOnDropHandle::new(tokio::spawn(async move {
        let _held = held;
        pump(source, pieces).await
    }));
    let end = stream::once(async move {
        let ended = pumping.await.map_err(io::Error::other)?;
        ended.map_err(io::Error::other)
    });
    // An error breaks the transfer off, visibly: the length has been announced.
    let failure = end.filter_map(async |ended| ended.err().map(Err));
    taken.map(Ok).chain(failure)
}

async fn pump(
    source: impl Stream<Item = Result<Bytes, ApiError>>,
    mut pieces: mpsc::Sender<Bytes>,
) -> Result<(), ApiError> {
    let mut source = pin!(source);
    while let Some(piece) = moving(By::SandboxSends, source.next()).await? {
        let passed = moving(By::ClientTakes, pieces.send(piece?)).await;
        let passed = passed.inspect_err(|error| tracing::warn!(%error, "a download"))?;
        if passed.is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::TryStreamExt as _;

    use super::*;

    const PIECE: Bytes = Bytes::from_static(b"piece");

    async fn until_free(held: &Arc<()>) {
        while Arc::strong_count(held) > 1 {
            tokio::time::sleep(super::super::progress::STILL).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_of_it_comes_and_nothing_is_held_then() {
        let held = Arc::new(());
        let body = body(stream::iter(vec![Ok(PIECE); 100]), held.clone());
        let pieces: Vec<Bytes> = body.try_collect().await.expect("the whole");
        assert_eq!(pieces.len(), 100);
        until_free(&held).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_holds_nothing_for_ever_and_sees_no_whole_file() {
        let held = Arc::new(());
        let body = body(stream::repeat_with(|| Ok(PIECE)), held.clone());
        until_free(&held).await;
        let error = body.try_collect::<Vec<Bytes>>().await.expect_err("broken off");
        assert!(error.to_string().contains("the client took nothing"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_that_sends_nothing_ends_the_transfer() {
        let source = stream::iter([Ok(PIECE)]).chain(stream::pending());
        let error = body(source, ()).try_collect::<Vec<Bytes>>().await.expect_err("broken off");
        assert!(error.to_string().contains("the sandbox sent nothing"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_gone_holds_nothing() {
        let held = Arc::new(());
        drop(body(stream::pending(), held.clone()));
        until_free(&held).await;
    }
}
