// SPDX-License-Identifier: Apache-2.0
//! A proxy to PostgreSQL that breaks the connection at a chosen statement: before it reaches the database, or before its answer
//! reaches the server.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Result, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_util::task::AbortOnDropHandle;

/// Maximum size of a message.
const MESSAGE_MAX: usize = 16 << 20;
/// Messages with which a client has a statement executed: a simple query, and the execution of a prepared one.
const STATEMENTS: [u8; 2] = [b'Q', b'E'];
/// Statement that ends a transaction, which is a simple query.
const COMMIT: &[u8] = b"COMMIT\0";
/// Message of the database after which it waits for the next statement.
const READY: u8 = b'Z';

/// When the connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Before the statement reaches the database.
    Before,
    /// When the statement was executed, before its answer reaches the server.
    After,
}

/// The proxy.
pub(crate) struct Cutter {
    address: SocketAddr,
    plan: Arc<Plan>,
    _serving: AbortOnDropHandle<()>,
}

/// What passed from when a cut was planned until it was made.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Number of statements.
    pub(crate) statements: usize,
    /// Which of them were COMMIT.
    pub(crate) commits: Vec<usize>,
    pub(crate) was_cut: bool,
}

/// What is to be cut.
#[derive(Default)]
struct Plan(Mutex<State>);

#[derive(Default)]
struct State {
    /// Number of statements before the one at which the connection breaks.
    left: Option<(usize, When)>,
    seen: Seen,
}

impl Plan {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a statement, and returns how to break its connection if it is the chosen one.
    fn statement(&self, is_commit: bool) -> Option<When> {
        let mut state = self.state();
        let (left, when) = state.left?;
        let number = state.seen.statements;
        if is_commit {
            state.seen.commits.push(number);
        }
        state.seen.statements = number + 1;
        state.left = left.checked_sub(1).map(|left| (left, when));
        state.seen.was_cut = left == 0;
        (left == 0).then_some(when)
    }
}

impl Cutter {
    /// Starts the proxy to the PostgreSQL with this socket.
    pub(crate) async fn start(socket: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, plan) = (listener.local_addr()?, Arc::new(Plan::default()));
        let serving = tokio::spawn({
            let plan = plan.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (plan, socket) = (plan.clone(), socket.clone());
                    // An error is what this is for.
                    tokio::spawn(async move { drop(pass(client, socket, &plan).await) });
                }
            }
        });
        Ok(Self { address, plan, _serving: AbortOnDropHandle::new(serving) })
    }

    /// URL of a database through the proxy.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://wrenn:secret@{}/{database}?sslmode=disable", self.address)
    }

    /// Breaks the connection at a statement, with this number of statements before it from now on.
    pub(crate) fn arm(&self, left: usize, when: When) {
        *self.plan.state() = State { left: Some((left, when)), seen: Seen::default() };
    }

    /// Returns whether the connection at the chosen statement was broken.
    pub(crate) fn has_cut(&self) -> bool {
        self.plan.state().seen.was_cut
    }

    /// Breaks no connection any more; returns whether one was broken, and what passed before.
    pub(crate) fn disarm(&self) -> Seen {
        std::mem::take(&mut *self.plan.state()).seen
    }
}

/// Passes a connection on until it ends or is to break.
async fn pass(client: TcpStream, socket: PathBuf, plan: &Plan) -> Result<()> {
    // Messages are passed on one by one: without this, each answer waits 40 ms for the acknowledgement of its first message.
    client.set_nodelay(true)?;
    let database = UnixStream::connect(socket).await?;
    let ((from_client, to_client), (from_database, to_database)) =
        (client.into_split(), database.into_split());
    let is_silent = AtomicBool::new(false);
    tokio::select! {
        ended = requests(from_client, to_database, plan, &is_silent) => ended,
        ended = answers(from_database, to_client, &is_silent) => ended,
    }
}

async fn requests(
    mut client: impl AsyncRead + Unpin,
    mut database: impl AsyncWrite + Unpin,
    plan: &Plan,
    is_silent: &AtomicBool,
) -> Result<()> {
    // The first message has no type.
    let length = client.read_u32().await?;
    database.write_u32(length).await?;
    database.write_all(&rest(&mut client, length).await?).await?;
    loop {
        let (kind, length) = (client.read_u8().await?, client.read_u32().await?);
        let rest = rest(&mut client, length).await?;
        if STATEMENTS.contains(&kind) {
            match plan.statement(rest == COMMIT) {
                Some(When::Before) => return Ok(()),
                Some(When::After) => is_silent.store(true, Ordering::SeqCst),
                None => {}
            }
        }
        write(&mut database, kind, length, &rest).await?;
    }
}

async fn answers(
    mut database: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    is_silent: &AtomicBool,
) -> Result<()> {
    loop {
        let (kind, length) = (database.read_u8().await?, database.read_u32().await?);
        let rest = rest(&mut database, length).await?;
        match is_silent.load(Ordering::SeqCst) {
            true if kind == READY => return Ok(()),
            true => {}
            false => write(&mut client, kind, length, &rest).await?,
        }
    }
}

/// Reads the rest of a message; its length counts itself.
async fn rest(stream: &mut (impl AsyncRead + Unpin), length: u32) -> Result<Vec<u8>> {
    let length = length as usize;
    if !(4..=MESSAGE_MAX).contains(&length) {
        bail!("a message of {length} bytes");
    }
    let mut rest = vec![0; length - 4];
    stream.read_exact(&mut rest).await?;
    Ok(rest)
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), kind: u8, length: u32, rest: &[u8]) -> Result<()> {
    let message = [&[kind][..], &length.to_be_bytes(), rest].concat();
    Ok(stream.write_all(&message).await?)
}
