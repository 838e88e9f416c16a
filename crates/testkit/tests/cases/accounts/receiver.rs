// SPDX-License-Identifier: Apache-2.0
//! Receiver of a webhook on this machine, which takes and keeps every request.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use wrenn_testkit::wait_until;

/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(60);

/// A request that was taken.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    /// Lines of its head, in small letters.
    head: String,
    pub(super) body: Value,
}

impl Taken {
    /// Returns the value of a header.
    pub(super) fn header(&self, name: &str) -> &str {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }
}

/// A receiver, which ends when this is dropped.
pub(super) struct Receiver {
    address: SocketAddr,
    taken: Arc<Mutex<Vec<Taken>>>,
    serving: JoinHandle<()>,
}

impl Receiver {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, taken) = (listener.local_addr()?, Arc::<Mutex<Vec<Taken>>>::default());
        let kept = taken.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // What breaks off is sent again.
                if let Ok(Ok(one)) = timeout(SOON, take(stream)).await {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                }
            }
        });
        Ok(Self { address, taken, serving })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Waits until there are this many requests, and returns the last one of them.
    pub(super) async fn wait(&self, number: usize) -> Result<Taken> {
        let taken = || self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let arrived = async || taken().into_iter().nth(number.checked_sub(1)?);
        let found = wait_until(&format!("request {number}"), SOON, arrived).await;
        found.with_context(|| format!("there are {:?}", taken()))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Takes a request, and answers it.
async fn take(mut stream: TcpStream) -> Result<Taken> {
    let mut bytes = Vec::<u8>::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            break end;
        }
        ensure!(stream.read_buf(&mut bytes).await? > 0, "the request broke off");
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let mut one = Taken { head, body: Value::Null };
    let (begin, length): (usize, usize) = (end + 4, one.header("content-length").parse()?);
    while bytes.len() < begin + length {
        ensure!(stream.read_buf(&mut bytes).await? > 0, "the request broke off");
    }
    one.body = serde_json::from_slice(&bytes[begin..])?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
    stream.shutdown().await?;
    Ok(one)
}
