// SPDX-License-Identifier: Apache-2.0
//! A large file through the API, both ways, against a bare TCP connection to a program in the same guest.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::{TryStreamExt as _, stream};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wrenn_client::{Body, Client, ReadOptions, WriteOptions};
use wrenn_testkit::{Stack, short_or_long};

use crate::{guest_server, row::Row};

const PIECE: usize = 1 << 20;
/// Number of transfers of each kind.
const TRANSFERS: usize = 3;
/// Program that writes what comes to a file, confirms it, and sends it back.
const SERVER: &str = "
import os, socket, sys
size = int(sys.argv[1])
listen = socket.create_server(('', 9002))
piece = memoryview(bytearray(1 << 20))
while True:
    peer = listen.accept()[0]
    with open('/home/wrenn-user/bare', 'wb') as file:
        left = size
        while left:
            count = peer.recv_into(piece)
            file.write(piece[:count])
            left -= count
    peer.sendall(b'w')
    peer.recv(1)
    with open('/home/wrenn-user/bare', 'rb') as file:
        while count := file.readinto(piece):
            peer.sendall(piece[:count])
    peer.close()
";

/// Measures uploads and downloads, each alternating with its floor.
pub(crate) async fn against_tcp(stack: &Stack) -> Result<Vec<Row>> {
    let pieces = short_or_long(256, 1024);
    let size = pieces * PIECE;
    let id = stack.api.create(&json!({})).await?;
    let address = guest_server::start(stack, &id, SERVER, &[size.to_string()], 9002).await?;
    let client = Client::new(&stack.url(), Some(stack.api.key()))?;
    let sandbox = id.parse()?;
    let piece: Vec<u8> = (0..PIECE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let piece = Bytes::from(piece);
    let (mut up, mut down, mut bare_up, mut bare_down) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TRANSFERS {
        let (sent, got) = bare(&address, &piece, pieces).await?;
        bare_up.push(sent);
        bare_down.push(got);

        let begin = Instant::now();
        let content = stream::iter((0..pieces).map({
            let piece = piece.clone();
            move |_| Ok::<_, std::io::Error>(piece.clone())
        }));
        let options = WriteOptions { size: Some(size as u64), ..WriteOptions::default() };
        let written = client.write_file(sandbox, "ours", &options, Body::wrap_stream(content)).await?;
        up.push(begin.elapsed());
        ensure!(written.size == size as u64, "{} bytes were written", written.size);

        let begin = Instant::now();
        let mut file = client.read_file(sandbox, "ours", &ReadOptions::default()).await?;
        let mut read = 0;
        while let Some(piece) = file.pieces.try_next().await? {
            read += piece.len();
        }
        down.push(begin.elapsed());
        ensure!(read == size, "{read} bytes were read");
    }
    stack.api.remove(&id).await?;
    Ok(vec![
        Row::ratio("upload of a large file over the API ÷ over a bare TCP connection", &up, &bare_up, 1.67),
        Row::ratio(
            "download of a large file over the API ÷ over a bare TCP connection",
            &down,
            &bare_down,
            1.67,
        ),
    ])
}

/// Times of sending the pieces to a file, and of getting them from it.
async fn bare(address: &str, piece: &[u8], pieces: usize) -> Result<(Duration, Duration)> {
    let mut peer = guest_server::connect(address).await?;
    let begin = Instant::now();
    for _ in 0..pieces {
        peer.write_all(piece).await?;
    }
    peer.read_u8().await.context("it was not written")?;
    let sent = begin.elapsed();
    let begin = Instant::now();
    peer.write_all(b"r").await?;
    let read = guest_server::read_all(&mut peer).await?;
    ensure!(read == pieces * PIECE, "{read} bytes came back");
    Ok((sent, begin.elapsed()))
}
