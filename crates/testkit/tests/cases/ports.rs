// SPDX-License-Identifier: Apache-2.0
//! Ports of sandboxes: through the proxy, and by API key.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use wrenn_api::PortAddress;
use wrenn_client::Client;
use wrenn_testkit::{
    Reply, Stack,
    envd::{address_and_token, framed},
    wait_until,
};

use super::support::{delete_wholly, pause, record, sh, wait_status};

/// The server that runs in the sandboxes.
const SERVER: &[u8] = include_bytes!("ports/server.py");
/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(60);

/// Starts the server in a sandbox, and waits until it listens.
async fn serve(stack: &Stack, id: &str, address: &str, port: u16) -> Result<()> {
    stack.api.write(id, "/tmp/server.py", SERVER.to_vec()).await?.expect(204)?;
    let body =
        json!({"cmd": "python3", "args": ["/tmp/server.py", address, port.to_string()], "background": true});
    stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(202)?;
    let script =
        format!("until grep -qi ':{port:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done");
    sh(stack, id, &script).await.map(drop)
}

/// A port at the proxy.
struct Port {
    http: reqwest::Client,
    address: PortAddress,
    /// Host and address of the proxy.
    host: String,
    proxy: String,
}

impl Port {
    async fn of(stack: &Stack, id: &str, port: u16) -> Result<Self> {
        let client = Client::new(&stack.url(), Some(stack.api.key()))?;
        let address = client.port(id.parse()?, port).await?;
        let host = address.url.strip_prefix("http://").context("no http")?.to_owned();
        let (name, at) = host.rsplit_once(':').context("no port")?;
        ensure!(name == format!("{port}-{id}.localhost"), "{host}");
        let proxy = format!("127.0.0.1:{at}");
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { http, address, host, proxy })
    }

    fn token(&self) -> Result<&str> {
        self.address.token.as_deref().context("no token")
    }

    /// A request by its host, without a token.
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.proxy)).header("host", &self.host)
    }

    /// A request with the token.
    fn allowed(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        Ok(self.request(method, path).header("x-wrenn-traffic-token", self.token()?))
    }

    /// Sends a request that the server in the sandbox has to answer.
    async fn served(&self, stack: &Stack, request: RequestBuilder) -> Result<Reply> {
        let reply = stack.api.send(request).await?;
        ensure!(
            reply.headers.get("x-wrenn-hop").is_some_and(|hop| hop == "sandbox"),
            "{}: {}",
            reply.status,
            reply.json()
        );
        Ok(reply)
    }

    /// Upgrades a connection, and returns it after the head of the response.
    async fn upgrade(&self, path: &str, protocol: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.proxy).await?;
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: {protocol}\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.host
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer
                .push(stream.read_u8().await.with_context(|| String::from_utf8_lossy(&answer).into_owned())?);
        }
        let text = String::from_utf8(answer)?;
        ensure!(text.starts_with("HTTP/1.1 101 "), "{text}");
        let accepted = text.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=");
        ensure!(protocol != "websocket" || accepted, "{text}");
        Ok(stream)
    }
}

/// Servers that only the sandbox's own programs could reach are served: requests as they are written, bodies of any size, events
/// as they come, WebSockets, and connections that end in one direction first.
pub(crate) async fn servers_on_loopback_are_served(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    for (address, number) in [("127.0.0.1", 8000), ("::1", 8001)] {
        serve(&stack, &id, address, number).await?;
        let port = Port::of(&stack, &id, number).await?;
        let asked = port.allowed(Method::GET, "/a%2Fb//c?d=%20")?.header("x-forwarded-for", "1.2.3.4");
        let told = port.served(&stack, asked).await?.expect(200)?.json();
        let headers = &told["headers"];
        ensure!(told["path"] == "/a%2Fb//c?d=%20", "{told}");
        ensure!(
            headers["host"] == port.host.as_str() && headers["x-forwarded-host"] == port.host.as_str(),
            "{told}"
        );
        ensure!(
            headers["x-forwarded-for"] == "127.0.0.1" && headers["x-forwarded-proto"] == "http",
            "{told}"
        );
        ensure!(headers["x-wrenn-traffic-token"].is_null(), "{told}");

        let content: Vec<u8> =
            (0..4_u32 << 20).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let sum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        let pieces: Vec<_> =
            content.chunks(70_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
        let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
        let reply = port.served(&stack, port.allowed(Method::POST, "/")?.body(body)).await?.expect(200)?;
        ensure!(reply.bytes == sum.as_bytes(), "another sum");
    }
    let port = Port::of(&stack, &id, 8000).await?;
    let mut connections = BTreeSet::new();
    for _ in 0..10 {
        let told = port.served(&stack, port.allowed(Method::GET, "/")?).await?.expect(200)?.json();
        connections.insert(told["connection"].as_u64().context("no connection")?);
    }
    ensure!(connections.len() < 10, "each request had a connection of its own");
    let mut events = port.allowed(Method::GET, "/events")?.send().await?.bytes_stream();
    let first = tokio::time::timeout(SOON, events.next()).await?.context("no event")??;
    ensure!(&first[..] == b"data: one\n\n", "{first:?}");
    sh(&stack, &id, "touch /tmp/go").await?;
    let second = tokio::time::timeout(SOON, events.next()).await?.context("no event")??;
    ensure!(&second[..] == b"data: two\n\n", "{second:?}");

    let path = format!("/?wrenn_traffic_token={}", port.token()?);
    let mut socket = port.upgrade(&path, "websocket").await?;
    for text in ["hello", "again"] {
        let masked: Vec<u8> = text.bytes().map(|byte| byte ^ 1).collect();
        socket.write_all(&[&[0x81, 0x80 | text.len() as u8, 1, 1, 1, 1], &masked[..]].concat()).await?;
        let mut frame = vec![0; 2 + text.len()];
        socket.read_exact(&mut frame).await?;
        ensure!(frame[2..] == *text.as_bytes(), "{frame:?}");
    }
    drop(socket);
    let mut counted = port.upgrade(&path, "count").await?;
    counted.write_all(&vec![7; 1_000_000]).await?;
    counted.shutdown().await?;
    let mut answer = String::new();
    tokio::time::timeout(SOON, counted.read_to_string(&mut answer)).await??;
    ensure!(answer == "1000000", "{answer}");

    stack.api.send(port.allowed(Method::GET, "/broken")?).await?.expect_error(502, "port_failed")?;
    let nothing = Port::of(&stack, &id, 8002).await?;
    let reply =
        stack.api.send(nothing.allowed(Method::GET, "/")?).await?.expect_error(502, "port_not_open")?;
    let told = reply.json();
    ensure!(reply.headers["x-wrenn-hop"] == "proxy" && reply.headers["access-control-allow-origin"] == "*");
    ensure!(told["port"] == 8002 && told["sandboxId"] == id.as_str() && told["code"] == 502, "{told}");
    ensure!(told["message"].as_str().is_some_and(|text| text.contains("port is not open")), "{told}");
    let page = nothing.allowed(Method::GET, "/")?.header("accept", "text/html");
    let page = stack.api.send(page).await?.expect(502)?;
    ensure!(page.bytes.starts_with(b"<!doctype html>"), "no page");
    let stream = command_of_envd(&stack, &id).await?;
    delete_wholly(&stack, &id).await?;
    // Clients take a broken connection for a fault of the network, and this for the end of the sandbox.
    let last = tokio::time::timeout(SOON, stream.bytes()).await??;
    let told = String::from_utf8_lossy(&last);
    ensure!(told.contains(r#"{"error":{"code":"unavailable""#), "{told}");
    // What was known of it is forgotten.
    let gone = async || {
        let reply = stack.api.send(port.allowed(Method::GET, "/").ok()?).await.ok()?;
        (reply.status == 502 && reply.code() == "not_found").then_some(())
    };
    wait_until("the port is gone", SOON, gone).await
}

/// Starts a command that does not end, as clients of envd do; returns the response after its first message.
async fn command_of_envd(stack: &Stack, id: &str) -> Result<reqwest::Response> {
    let (_, token) = address_and_token(stack, id)?;
    let envd = Port::of(stack, id, 49983).await?;
    let message = framed(&json!({"process": {"cmd": "sleep", "args": ["1000"]}}));
    let request = envd.request(Method::POST, "/process.Process/Start").header("x-access-token", token);
    let request = request.header("content-type", "application/connect+json").body(message);
    let mut response = request.send().await?.error_for_status()?;
    response.chunk().await?.context("no message")?;
    Ok(response)
}

/// Ports are for those with the token of their sandbox, in whatever way they send it, until they are made public; envd's is for
/// those with its own.
pub(crate) async fn private_ones_need_the_token(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    serve(&stack, &id, "127.0.0.1", 8000).await?;
    let port = Port::of(&stack, &id, 8000).await?;
    let token = port.token()?.to_owned();
    let get = || port.request(Method::GET, "/x?a=b");
    let wrong = "0".repeat(64);
    for refused in [
        get(),
        get().header("x-wrenn-traffic-token", &wrong),
        get().header("cookie", format!("wrenn-traffic-token={wrong}")),
        get().query(&[("wrenn_traffic_token", &wrong)]),
        // A page of another sandbox has the browser send the cookie.
        get().header("cookie", format!("wrenn-traffic-token={token}")).header("sec-fetch-site", "same-site"),
    ] {
        let reply = stack.api.send(refused).await?.expect_error(403, "forbidden")?;
        ensure!(!String::from_utf8_lossy(&reply.bytes).contains(&token), "it tells the token");
    }
    for allowed in [
        get().header("e2b-traffic-access-token", &token),
        get().query(&[("wrenn_traffic_token", &token)]),
        get().header("cookie", format!("z=1; wrenn-traffic-token={token}")),
    ] {
        let told = port.served(&stack, allowed).await?.expect(200)?;
        ensure!(!String::from_utf8_lossy(&told.bytes).contains(&token), "the sandbox gets the token");
        ensure!(told.json()["path"] == "/x?a=b", "{}", told.json());
    }
    // A browser is sent on without the token, with a cookie.
    let page = get().query(&[("wrenn_traffic_token", &token)]).header("accept", "text/html");
    let sent_on = stack.api.send(page).await?.expect(307)?;
    let cookie = sent_on.headers["set-cookie"].to_str()?;
    ensure!(sent_on.headers["location"] == "/x?a=b" && cookie.contains("HttpOnly"), "{:?}", sent_on.headers);
    let again = get().header("cookie", cookie.split(';').next().unwrap_or_default());
    port.served(&stack, again).await?.expect(200)?;
    let preflight = port.request(Method::OPTIONS, "/").header("origin", "http://a.example");
    stack.api.send(preflight.header("access-control-request-method", "PUT")).await?.expect(204)?;

    // Without wildcard names: by headers, or by the path.
    let plain = |path: &str| {
        port.http.get(format!("http://{}{path}", port.proxy)).header("e2b-traffic-access-token", &token)
    };
    let told = plain("/y").header("e2b-sandbox-id", &id).header("e2b-sandbox-port", "8000");
    ensure!(port.served(&stack, told).await?.expect(200)?.json()["path"] == "/y");
    let told = port.served(&stack, plain(&format!("/8000-{id}/z%2F?q"))).await?.expect(200)?.json();
    ensure!(
        told["path"] == "/z%2F?q" && told["headers"]["x-forwarded-prefix"] == format!("/8000-{id}"),
        "{told}"
    );
    let moved = port.served(&stack, plain(&format!("/8000-{id}/moved"))).await?.expect(302)?;
    ensure!(moved.headers["location"] == format!("/8000-{id}/there?x"), "{:?}", moved.headers);
    stack.api.send(plain("/")).await?.expect_error(400, "invalid_request")?;
    stack.api.send(plain("/8000-sb00000000000000000000000a1/")).await?.expect_error(502, "not_found")?;

    // Another sandbox's token is no token of this one.
    let other = stack.api.create(&json!({"memory_mb": 256, "public_ports": true})).await?;
    let open = Port::of(&stack, &other, 8000).await?;
    ensure!(open.address.public && open.address.token.is_none(), "{:?}", open.address);
    serve(&stack, &other, "0.0.0.0", 8000).await?;
    open.served(&stack, open.request(Method::GET, "/")).await?.expect(200)?;
    let path = format!("/v1/sandboxes/{other}");
    let closed = stack.api.request(Method::PATCH, &path).json(&json!({"public_ports": false}));
    ensure!(stack.api.send(closed).await?.expect(200)?.json()["public_ports"] == false);
    let refused = async || {
        let request = open.request(Method::GET, "/").header("x-wrenn-traffic-token", &token);
        (stack.api.send(request).await.ok()?.status == 403).then_some(())
    };
    wait_until("the ports are private", SOON, refused).await?;

    let envd = Port::of(&stack, &id, 49983).await?;
    envd.served(&stack, envd.request(Method::GET, "/health")).await?.expect(204)?;
    envd.served(&stack, envd.allowed(Method::GET, "/files?path=/etc/passwd")?).await?.expect(401)?;
    for hidden in ["/init", "/%69nit", "//snapshot/warm", "/connect?port=8000"] {
        let reply = stack.api.send(envd.request(Method::POST, hidden)).await?.expect(404)?;
        ensure!(reply.headers["x-wrenn-hop"] == "proxy", "{hidden} came to envd");
    }
    delete_wholly(&stack, &other).await?;
    delete_wholly(&stack, &id).await
}

/// A request to a paused sandbox resumes it if it is to be resumed by its use, and keeps it awake as long as it takes.
pub(crate) async fn requests_resume_and_keep_awake(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    serve(&stack, &id, "127.0.0.1", 8000).await?;
    let port = Port::of(&stack, &id, 8000).await?;
    let get = || port.allowed(Method::GET, "/");
    port.served(&stack, get()?).await?.expect(200)?;
    let mut connected =
        Client::new(&stack.url(), Some(stack.api.key()))?.connect_port(id.parse()?, 8000).await?;
    pause(&stack, &id).await?;
    // It ends with the pause.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, connected.read_to_end(&mut rest)).await?;
    ensure!(rest.is_empty(), "{ended:?} {rest:?}");
    let refused = stack.api.send(get()?).await?.expect_error(502, "invalid_state")?;
    ensure!(
        refused.json()["message"].as_str().is_some_and(|text| text.contains("paused")),
        "{}",
        refused.json()
    );
    let stream = stack.api.get(&format!("/v1/sandboxes/{id}/ports/8000/stream")).await?;
    stream.expect_error(400, "invalid_request")?;

    let path = format!("/v1/sandboxes/{id}");
    let update =
        stack.api.request(Method::PATCH, &path).json(&json!({"auto_resume": true, "timeout_sec": 3}));
    stack.api.send(update).await?.expect(200)?;
    let (one, other) = tokio::join!(port.served(&stack, get()?), port.served(&stack, get()?));
    one?.expect(200)?;
    other?.expect(200)?;
    // As long as a request takes, whatever the timeout.
    let events = port.allowed(Method::GET, "/events")?.send().await?;
    let mut events = events.bytes_stream();
    tokio::time::timeout(SOON, events.next()).await?.context("no event")??;
    let begin = record(&stack, &id).await.context("no record")?["last_active_at"].clone();
    let noted = async || record(&stack, &id).await.filter(|now| now["last_active_at"] != begin);
    for _ in 0..4 {
        let now = wait_until("its use is noted", SOON, noted).await?;
        ensure!(now["status"] == "running", "{now}");
    }
    drop(events);
    wait_status(&stack, &id, &["paused"], 60).await?;
    port.served(&stack, get()?).await?.expect(200)?;
    delete_wholly(&stack, &id).await
}

/// `wrenn sandbox url`, `wrenn sandbox forward` and `wrenn run --port` lead to servers in sandboxes.
pub(crate) async fn the_command_line_leads_to_them(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    serve(&stack, &id, "::1", 8000).await?;
    let port = Port::of(&stack, &id, 8000).await?;
    let printed = stack.wrenn(&["sandbox", "url", &id, "8000"])?;
    let url = String::from_utf8(printed.stdout)?;
    ensure!(url.trim() == port.address.browser_url && url.contains(port.token()?), "{url}");

    let mut command = stack.command(&["--json", "sandbox", "forward", &id, "0:8000"])?;
    let mut forward = command.stdout(Stdio::piped()).spawn()?;
    let output = forward.stdout.take().context("no output")?;
    let line = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(output).lines();
        let mut text = String::new();
        loop {
            text.push_str(&lines.next().context("no line")??);
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                return anyhow::Ok(value);
            }
        }
    });
    let local = line.await??["local"].as_str().context("no address")?.to_owned();
    let told = reqwest::get(format!("http://{local}/x")).await?.json::<Value>().await?;
    ensure!(told["path"] == "/x" && told["headers"]["host"] == local.as_str(), "{told}");
    let mut counted = TcpStream::connect(&local).await?;
    counted.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: count\r\n\r\n").await?;
    counted.write_all(&(0..=255).cycle().take(300_000).collect::<Vec<u8>>()).await?;
    counted.shutdown().await?;
    let mut answer = String::new();
    tokio::time::timeout(SOON, counted.read_to_string(&mut answer)).await??;
    ensure!(answer.ends_with("\r\n\r\n300000"), "{answer}");
    kill_process(Pid::from_child(&forward), Signal::INT)?;
    let status = tokio::task::spawn_blocking(move || forward.wait()).await??;
    ensure!(status.code() == Some(130), "{status}");

    // Its sandbox is removed with it.
    let mut command = stack.command(&[
        "run",
        "--memory",
        "260",
        "--port",
        "8000",
        "--",
        "python3",
        "-m",
        "http.server",
        // Else it asks for its name, and no resolver answers here.
        "--bind",
        "127.0.0.1",
        "8000",
    ])?;
    // A pipe that nobody reads on would end it.
    let errors = tempfile::NamedTempFile::new()?;
    let mut run = command.stderr(errors.reopen()?).stdout(Stdio::null()).spawn()?;
    let line = async || {
        let text = std::fs::read_to_string(errors.path()).ok()?;
        text.lines().find(|line| line.contains("http://")).map(str::to_owned)
    };
    let line = wait_until("its URL", SOON, line).await?;
    let url = line.split_whitespace().last().context("no URL")?.to_owned();
    let (host, path) = url.trim_start_matches("http://").split_once('/').context("no path")?;
    let listed = async || {
        let request = port.http.get(format!("http://{}/{path}", port.proxy)).header("host", host);
        let reply = stack.api.send(request).await.ok()?;
        (reply.status == 200).then_some(reply.bytes)
    };
    let page = wait_until("the page of the server", SOON, listed).await?;
    ensure!(String::from_utf8_lossy(&page).contains("Directory listing"), "another page");
    // Its server goes on after a pause, and a request resumes it.
    let all = stack.api.get("/v1/sandboxes?status=running").await?.expect(200)?.json();
    let its_own = all.as_array().into_iter().flatten().find(|sandbox| sandbox["memory_mb"] == 260);
    let its_own = its_own.and_then(|sandbox| sandbox["id"].as_str()).context("its sandbox")?.to_owned();
    let may = json!({"auto_resume": true});
    let change = stack.api.request(Method::PATCH, &format!("/v1/sandboxes/{its_own}")).json(&may);
    stack.api.send(change).await?.expect(200)?;
    pause(&stack, &its_own).await?;
    // It waits for the resume instead of ending, which would remove the sandbox.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(run.try_wait()?.is_none(), "it has ended at the pause");
    wait_until("the page after a pause", SOON, listed).await?;
    wait_status(&stack, &its_own, &["running"], 10).await?;
    kill_process(Pid::from_child(&run), Signal::INT)?;
    let status = tokio::task::spawn_blocking(move || run.wait()).await??;
    ensure!(status.code() == Some(130), "{status}");
    let all = stack.api.get("/v1/sandboxes?limit=100").await?.expect(200)?.json();
    let its_own = all.as_array().into_iter().flatten().find(|sandbox| sandbox["memory_mb"] == 260);
    ensure!(its_own.is_none_or(|left| left["status"] == "stopping"), "it was left: {all}");
    delete_wholly(&stack, &id).await
}
