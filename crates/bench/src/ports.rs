// SPDX-License-Identifier: Apache-2.0
//! Requests to a server in a sandbox through the proxy against the same requests to the guest directly.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wrenn_client::Client;
use wrenn_testkit::Stack;

use crate::{guest_server, row::Row};

const PORT: u16 = 9001;
/// A server that answers each request of a connection with a few bytes.
const SERVER: &str = "
import asyncio, sys
async def serve(reader, writer):
    while await reader.readuntil(b'\\r\\n\\r\\n'):
        writer.write(b'HTTP/1.1 200 OK\\r\\ncontent-length: 6\\r\\n\\r\\nhello\\n')
async def main():
    server = await asyncio.start_server(serve, '0.0.0.0', int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
";
/// Number of requests one after another.
const REQUESTS: usize = 400;
/// Number of connections at a time, rounds, and requests of each connection in a round.
const CONNECTIONS: usize = 8;
const ROUNDS: usize = 10;
const OF_A_ROUND: usize = 50;

/// Measures the time of a request, and that of many at once, alternating with the floor.
pub(crate) async fn against_direct(stack: &Stack) -> Result<Vec<Row>> {
    let id = stack.api.create(&json!({})).await?;
    let args = [PORT.to_string()];
    let direct = Target::directly(&guest_server::start(stack, &id, SERVER, &args, PORT).await?)?;
    let address = Client::new(&stack.url(), Some(stack.api.key()))?.port(id.parse()?, PORT).await?;
    let proxied = Target::through_proxy(&address.url, address.token.as_deref().context("no token")?)?;
    direct.until_served().await?;
    proxied.until_served().await?;

    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..REQUESTS {
        floor.push(direct.request().await?);
        ours.push(proxied.request().await?);
    }
    let what = "request to a port through the proxy − to the guest directly (ms)";
    let one = Row::difference(what, &ours, &floor, 1.0);
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floor.push(direct.many().await?);
        ours.push(proxied.many().await?);
    }
    stack.api.remove(&id).await?;
    Ok(vec![
        one,
        Row::ratio("400 requests on 8 connections through the proxy ÷ directly", &ours, &floor, 1.43),
    ])
}

/// A way to the server.
#[derive(Clone)]
struct Target {
    client: reqwest::Client,
    url: String,
    headers: Vec<(&'static str, String)>,
}

impl Target {
    fn directly(address: &str) -> Result<Self> {
        Ok(Self { client: client()?, url: format!("http://{address}/"), headers: Vec::new() })
    }

    fn through_proxy(url: &str, token: &str) -> Result<Self> {
        let host = url.strip_prefix("http://").context("no http")?;
        let (_, port) = host.rsplit_once(':').context("no port of the proxy")?;
        let headers = vec![("host", host.to_owned()), ("x-wrenn-traffic-token", token.to_owned())];
        Ok(Self { client: client()?, url: format!("http://127.0.0.1:{port}/"), headers })
    }

    async fn request(&self) -> Result<Duration> {
        let begin = Instant::now();
        let request = self.client.get(&self.url);
        let request =
            self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let text = request.send().await?.error_for_status()?.text().await?;
        ensure!(text == "hello\n", "another answer: {text}");
        Ok(begin.elapsed())
    }

    async fn many(&self) -> Result<Duration> {
        let begin = Instant::now();
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let own = self.clone();
            all.spawn(async move {
                for _ in 0..OF_A_ROUND {
                    own.request().await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = all.join_next().await {
            done??;
        }
        Ok(begin.elapsed())
    }

    async fn until_served(&self) -> Result<()> {
        let begin = Instant::now();
        while let Err(error) = self.request().await {
            ensure!(begin.elapsed() < Duration::from_secs(30), "the server does not answer: {error:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

fn client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().tcp_nodelay(true).build()?)
}
