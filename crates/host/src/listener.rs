//! Where the agent listens.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
use tokio::net::TcpListener;

/// A connection on which nothing moves is asked for a sign of life after this.
const QUIET: Duration = Duration::from_secs(30);
/// Between two questions.
const AGAIN: Duration = Duration::from_secs(10);
/// Questions without an answer after which it ends.
const QUESTIONS: u32 = 3;

/// Listens at this address. What a control plane that has vanished left behind ends by itself: its streams, and the commands
/// of those, would otherwise go on for ever.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} cannot be listened on: is another agent running?"))?;
    // Connections inherit it.
    set_socket_keepalive(&listener, true)
        .and_then(|()| set_tcp_keepidle(&listener, QUIET))
        .and_then(|()| set_tcp_keepintvl(&listener, AGAIN))
        .and_then(|()| set_tcp_keepcnt(&listener, QUESTIONS))
        .context("the kernel takes no keep-alive for the agent's listener")?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::{socket_keepalive, tcp_keepidle};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn connections_are_asked_for_signs_of_life() -> anyhow::Result<()> {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let _client = TcpStream::connect(listener.local_addr()?).await?;
        let (connection, _) = listener.accept().await?;
        assert!(socket_keepalive(&connection)?);
        assert_eq!(tcp_keepidle(&connection)?, QUIET);
        Ok(())
    }
}
