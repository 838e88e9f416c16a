// SPDX-License-Identifier: Apache-2.0
//! Programs in a guest that listen on a port, and connections from the host to the guest's own address.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use wrenn_testkit::{Stack, envd::address_and_token};

/// Starts a program in Python with these arguments; returns the address of its port.
pub(crate) async fn start(
    stack: &Stack,
    id: &str,
    program: &str,
    args: &[String],
    port: u16,
) -> Result<String> {
    let args = [&["-c".to_owned(), program.to_owned()], args].concat();
    let body = json!({"cmd": "python3", "args": args, "background": true});
    stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(202)?;
    Ok(address_and_token(stack, id)?.0.replace(":49983", &format!(":{port}")))
}

/// Connects to the program, which may have to start first.
pub(crate) async fn connect(address: &str) -> Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect(address).await {
            Ok(peer) => return Ok(peer),
            Err(error) if begin.elapsed() > Duration::from_secs(30) => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Reads until the program closes the connection; returns the number of bytes.
pub(crate) async fn read_all(peer: &mut TcpStream) -> Result<usize> {
    let (mut piece, mut read) = (vec![0; 1 << 20], 0);
    loop {
        match peer.read(&mut piece).await? {
            0 => return Ok(read),
            size => read += size,
        }
    }
}
