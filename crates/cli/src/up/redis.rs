// SPDX-License-Identifier: Apache-2.0
//! The private Redis: Debian's program, reachable by a unix socket only; every write is flushed to the disk.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use super::{
    child::{Privileges, Spec, Supervised},
    postgres::{STORE_OOM_SCORE, text},
};
use crate::{layout::Layout, users::User};

/// Time limit of the start, with loading the file.
const READY_LIMIT: Duration = Duration::from_secs(60);
const PING_LIMIT: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(8);
/// Maximum memory of Redis, in addition to the trimming of streams.
const MEMORY_MAX: &str = "512mb";

/// Path of the program.
pub(crate) fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin".into(), "/usr/local/bin".into()])
        .map(|dir| dir.join("redis-server"))
        .find(|program| program.is_file())
        .context("no redis-server: install Redis (Debian: apt-get install redis-server)")
}

/// Returns the child's specification.
pub(crate) fn prepare(layout: &Layout, user: &User) -> Result<Spec> {
    let settings = [
        ("port", "0".to_owned()),
        ("unixsocket", text(&layout.redis_socket())?),
        // Its directory gives it the group of the control plane; other users have no access.
        ("unixsocketperm", "770".to_owned()),
        ("dir", text(&layout.redis())?),
        ("appendonly", "yes".to_owned()),
        ("save", String::new()),
        ("maxmemory", MEMORY_MAX.to_owned()),
        ("maxmemory-policy", "noeviction".to_owned()),
        ("daemonize", "no".to_owned()),
    ];
    Ok(Spec {
        name: "redis",
        program: program()?,
        arg0: None,
        args: settings.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]).collect(),
        env: Vec::new(),
        privileges: Privileges::User(user.clone()),
        oom_score: STORE_OOM_SCORE,
        group: None,
        stop: Signal::TERM,
        grace: GRACE,
    })
}

/// Waits until it responds.
pub(crate) async fn ready(child: &Supervised, layout: &Layout) -> Result<()> {
    let socket = layout.redis_socket();
    child.ready(READY_LIMIT, async || timeout(PING_LIMIT, pong(&socket)).await.is_ok_and(|pong| pong)).await
}

async fn pong(socket: &std::path::Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket).await else { return false };
    let mut answer = [0; 5];
    stream.write_all(b"PING\r\n").await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && &answer == b"+PONG"
}
