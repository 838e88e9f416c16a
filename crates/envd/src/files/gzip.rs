// SPDX-License-Identifier: Apache-2.0
//! Streams to and from gzip. Each step is done on a blocking thread, and what it makes is bounded whatever it gets.

use std::io::{self, Write as _};

use axum::body::Bytes;
use bytes::Buf as _;
use flate2::{
    Compression,
    write::{GzEncoder, MultiGzDecoder},
};
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::PIECE;

/// Maximum number of responses that are compressed at a time, each with 400 KiB of state.
const AT_A_TIME: usize = 16;
static PLACES: Semaphore = Semaphore::const_new(AT_A_TIME);

/// Takes a place among the responses that are compressed. If all are taken, waits for one, or returns `None`.
pub(super) async fn place(wait: bool) -> Option<SemaphorePermit<'static>> {
    if wait { PLACES.acquire().await.ok() } else { PLACES.try_acquire().ok() }
}

/// Compresses bytes.
pub(super) async fn compress_all(bytes: Bytes) -> io::Result<Bytes> {
    blocking(move || {
        let mut encoder = encoder();
        encoder.write_all(&bytes)?;
        encoder.finish().map(Bytes::from)
    })
    .await
}

/// Compresses a stream.
pub(super) fn compress(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
    place: SemaphorePermit<'static>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold(Some((pieces, encoder(), place)), |state| async move {
        let Some((mut pieces, mut encoder, place)) = state else { return Ok(None) };
        loop {
            let Some(piece) = pieces.next().await.transpose()? else {
                let rest = blocking(move || encoder.finish()).await?;
                return Ok(Some((rest.into(), None)));
            };
            let made;
            (encoder, made) = blocking(move || {
                encoder.write_all(&piece)?;
                let made = std::mem::take(encoder.get_mut());
                Ok((encoder, made))
            })
            .await?;
            if !made.is_empty() {
                return Ok(Some((made.into(), Some((pieces, encoder, place)))));
            }
        }
    })
}

/// Fastest level: the network is not slower than what a higher one would save.
fn encoder() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), Compression::fast())
}

/// Decompresses a stream. Ends with an error if that is no gzip, or breaks off.
pub(super) fn decompress(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let decoder = MultiGzDecoder::new(Vec::new());
    stream::try_unfold(Some((pieces, decoder, Bytes::new())), |state| async move {
        let Some((mut pieces, mut decoder, mut input)) = state else { return Ok(None) };
        loop {
            if input.is_empty() {
                let Some(piece) = pieces.next().await.transpose()? else {
                    decoder.try_finish()?;
                    let rest = std::mem::take(decoder.get_mut());
                    return Ok((!rest.is_empty()).then(|| (rest.into(), None)));
                };
                input = piece;
            }
            let made;
            (decoder, input, made) = blocking(move || {
                // Each write makes at most a buffer of the decoder's (32 KiB), and may leave input for the next one.
                while !input.is_empty() && decoder.get_ref().len() < PIECE {
                    let taken = decoder.write(&input)?;
                    if taken == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    input.advance(taken);
                }
                let made = std::mem::take(decoder.get_mut());
                Ok((decoder, input, made))
            })
            .await?;
            if !made.is_empty() {
                return Ok(Some((made.into(), Some((pieces, decoder, input)))));
            }
        }
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    fn of(bytes: &[u8], size: usize) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces)
    }

    async fn decompressed(bytes: &[u8], size: usize) -> io::Result<Vec<u8>> {
        decompress(of(bytes, size))
            .try_fold(Vec::new(), async |all, piece| Ok([all, piece.to_vec()].concat()))
            .await
    }

    #[tokio::test]
    async fn what_is_compressed_comes_back() {
        let content: Vec<u8> = (0..300_000_u32).flat_map(|i| (i % 1000).to_le_bytes()).collect();
        let pieces: Vec<Bytes> =
            compress(of(&content, 70_000), place(true).await.unwrap()).try_collect().await.unwrap();
        let zipped = pieces.concat();
        assert!(zipped.len() < content.len() / 2);
        for size in [1, 1000, zipped.len()] {
            assert!(decompressed(&zipped, size).await.unwrap() == content, "{size}");
        }
        // Several members are one content.
        let two = [&zipped[..], &compress_all(Bytes::from_static(b"end")).await.unwrap()].concat();
        assert!(decompressed(&two, 999).await.unwrap() == [&content[..], b"end"].concat());
        assert!(decompressed(&compress_all(Bytes::new()).await.unwrap(), 1).await.unwrap().is_empty());
        assert_eq!(PLACES.available_permits(), AT_A_TIME);
    }

    #[tokio::test]
    async fn what_is_no_whole_gzip_is_an_error() {
        let zipped = compress_all(vec![b'a'; 100_000].into()).await.unwrap();
        let mut wrong = zipped.to_vec();
        let check = wrong.len() - 6;
        wrong[check] ^= 1;
        let long_name = [&b"\x1f\x8b\x08\x08\0\0\0\0\0\xff"[..], &vec![b'n'; 1 << 20]].concat();
        let cases = [&b""[..], b"hello", &zipped[..zipped.len() - 1], &zipped[..20], &wrong, &long_name];
        for case in cases {
            assert!(decompressed(case, 4096).await.is_err(), "{} bytes", case.len());
        }
        let trailing = [&zipped[..], b"trailing"].concat();
        assert!(decompressed(&trailing, 4096).await.is_err());
    }

    #[tokio::test]
    async fn a_bomb_is_made_in_small_pieces() {
        let zipped = compress_all(vec![0; 64 << 20].into()).await.unwrap();
        let mut total = 0;
        let mut pieces = std::pin::pin!(decompress(of(&zipped, zipped.len())));
        while let Some(piece) = pieces.next().await {
            let length = piece.unwrap().len();
            assert!(length <= 2 * PIECE, "a piece of {length} bytes");
            total += length;
        }
        assert_eq!(total, 64 << 20);
    }
}
