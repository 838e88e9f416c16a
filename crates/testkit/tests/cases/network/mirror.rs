// SPDX-License-Identifier: Apache-2.0
//! A mirror of Debian's packages on a simulated internet, whose resolver gives every name the mirror's address. Its files are
//! those that `scripts/debian-mirror` has put into a directory.

use std::{
    net::{TcpListener, UdpSocket},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    fs,
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use wrenn_testkit::{Setup, Stack};

use super::{
    names::{FOUR, RESOLVERS, Resolver},
    space::{Space, apart, ip, replace_file},
    world::{DNS, HOST, INTERNET, link, serve_datagrams},
};
use crate::cases::{hosts::quick_driver, support::end};

/// Port of the mirror.
const HTTP: u16 = 80;

/// Runs a case with a Wrenn whose guests reach a mirror, which serves this directory, and nothing else.
pub(crate) async fn with_mirror<F>(dir: &Path, case: F) -> Result<()>
where
    F: AsyncFnOnce(&Stack) -> Result<()> + Send + 'static,
{
    ensure!(dir.is_dir(), "{} is missing: `make test-long` fills it", dir.display());
    let dir = dir.canonicalize()?;
    apart(async move || {
        // It is there until the case has ended.
        let _internet = internet(dir)?;
        let stack = Stack::start_with(Setup { env: quick_driver(), ..Setup::default() }).await?;
        let result = case(&stack).await;
        end(stack, result).await
    })
    .await
}

/// Makes the internet, with the host's resolvers and the mirror, which are served by this thread's runtime.
fn internet(dir: PathBuf) -> Result<Space> {
    let configuration = RESOLVERS.map(|resolver| format!("nameserver {resolver}\n")).concat();
    replace_file("/etc/resolv.conf", &configuration)?;
    let internet = Space::new()?;
    link("up0", INTERNET, HOST, &internet, true)?;
    let (listener, sockets) = internet.run(move || {
        for address in RESOLVERS.into_iter().chain([FOUR]) {
            ip(&format!("addr add {address}/32 dev in0"))?;
        }
        let sockets = RESOLVERS.into_iter().map(|resolver| UdpSocket::bind((resolver, DNS)));
        Ok((TcpListener::bind((FOUR, HTTP))?, sockets.collect::<Result<Vec<_>, _>>()?))
    })?;
    ip("link set up0 up")?;
    ip(&format!("route add default via {INTERNET}"))?;
    let resolver = Arc::new(Resolver::default());
    for socket in sockets {
        let resolver = resolver.clone();
        serve_datagrams(socket, Arc::default(), move |datagram| resolver.answer(datagram))?;
    }
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let dir = dir.clone();
            tokio::spawn(async move {
                if let Err(error) = serve(stream, &dir).await {
                    println!("  the mirror: {error:#}");
                }
            });
        }
    });
    Ok(internet)
}

/// Answers the requests of a connection one after another.
async fn serve(stream: TcpStream, dir: &Path) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut first, mut line) = (String::new(), String::new());
        if stream.read_line(&mut first).await? == 0 {
            return Ok(());
        }
        while stream.read_line(&mut line).await? > 2 {
            line.clear();
        }
        let found = match file_of(&first, dir) {
            Some(path) => fs::read(path).await.ok(),
            None => None,
        };
        let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
        let content = found.unwrap_or_default();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", content.len());
        stream.write_all(head.as_bytes()).await.context("the guest is gone")?;
        stream.write_all(&content).await.context("the guest is gone")?;
    }
}

/// The file that a request asks for, by its first line.
fn file_of(line: &str, dir: &Path) -> Option<PathBuf> {
    let mut words = line.split_whitespace();
    let target = words.next().filter(|method| *method == "GET").and(words.next())?;
    // apt writes the signs of file names as `%2b`.
    let path = target.trim_start_matches('/').replace("%2b", "+").replace("%7e", "~");
    let path = Path::new(&path);
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| dir.join(path))
}
