// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox forward`: a port of this machine whose connections are those of a port of a sandbox.

use std::{net::Ipv4Addr, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use wrenn_api::SandboxId;
use wrenn_client::Client;

use crate::output::{Format, note};

/// Maximum number of connections at a time; others wait.
const CONNECTIONS: usize = 128;
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(200);

/// A port of this machine, and that of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    local: u16,
    remote: u16,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            "write LOCAL:REMOTE, such as 8080:8000, or one port for both; LOCAL 0 is any free one".to_owned()
        };
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let (local, remote) = (local.parse().map_err(|_| form())?, remote.parse().map_err(|_| form())?);
        if remote == 0 { Err(form()) } else { Ok(Self { local, remote }) }
    }
}

/// Forwards connections until it is interrupted.
pub(crate) async fn run(client: &Client, id: SandboxId, pair: Pair, format: Format) -> Result<()> {
    // A sandbox that is not there is told now.
    client.port(id, pair.remote).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, pair.local)).await;
    let listener = listener
        .with_context(|| format!("cannot listen on port {} of this machine: choose another", pair.local))?;
    let (local, port) = (listener.local_addr()?, pair.remote);
    let told = json!({"sandbox_id": id, "local": local.to_string(), "port": port});
    format.print(&told, || format!("{local} is port {port} of {id}; stop by Ctrl-C"))?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await?;
        match listener.accept().await {
            Ok((stream, _)) => {
                let client = client.clone();
                tokio::spawn(async move {
                    if let Err(error) = forward(&client, id, port, stream).await {
                        note(&format!("wrenn: {error:#}"));
                    }
                    drop(place);
                });
            }
            Err(error) => {
                note(&format!("wrenn: cannot accept a connection: {error}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn forward(client: &Client, id: SandboxId, port: u16, mut stream: TcpStream) -> Result<()> {
    let mut connection = client.connect_port(id, port).await?;
    // Failing, it is only slower.
    let _ = stream.set_nodelay(true);
    // How it ended is seen by both ends.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut connection).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_is_both() {
        assert_eq!("8080:80".parse(), Ok(Pair { local: 8080, remote: 80 }));
        assert_eq!("80".parse(), Ok(Pair { local: 80, remote: 80 }));
        assert_eq!("0:80".parse(), Ok(Pair { local: 0, remote: 80 }));
        for text in ["", ":", "80:", "80:0", "0", "1:2:3", "70000", "x:80"] {
            assert!(text.parse::<Pair>().is_err_and(|error| error.contains("LOCAL:REMOTE")), "{text}");
        }
    }
}
