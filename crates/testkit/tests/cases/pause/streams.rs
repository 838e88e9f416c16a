// SPDX-License-Identifier: Apache-2.0
//! Streams of processes that are open when their sandbox is paused: their readers are told, and go on where they were.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::timeout;
use wrenn_api::{ExecRequest, SandboxId};
use wrenn_client::{Client, Error, ProcessEvent, ProcessStream};
use wrenn_testkit::Stack;

use super::small;
use crate::cases::{
    processes::{client, rest},
    support::{delete_wholly, pause, resume, sh},
};

/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(60);
/// Writes one number after another until it is told to end.
const NUMBERS: &str = "n=0; while [ ! -e /tmp/enough ]; do n=$((n+1)); echo $n; sleep 0.05; done; exit 5";

/// A process that writes numbers.
fn numbers(tag: &str) -> ExecRequest {
    let args = ["-c", NUMBERS].map(str::to_owned).to_vec();
    ExecRequest { cmd: "sh".to_owned(), args, tag: Some(tag.to_owned()), ..ExecRequest::default() }
}

/// A reader of a process, and what it has read.
struct Reader {
    stream: ProcessStream,
    tag: &'static str,
    pid: u32,
    output: Vec<u8>,
}

impl Reader {
    /// Reads the start of a stream, and its first output.
    async fn of(tag: &'static str, mut stream: ProcessStream) -> Result<Self> {
        let start = stream.next().await?;
        let Some(ProcessEvent::Start { pid, offset: 0, .. }) = start else { bail!("first came {start:?}") };
        let first = stream.next().await?;
        let Some(ProcessEvent::Stdout(output)) = first else { bail!("{first:?} instead of output") };
        Ok(Self { stream, tag, pid, output: output.to_vec() })
    }

    /// Reads up to the error that ends the stream.
    async fn told(&mut self) -> Result<Error> {
        let reading = async {
            loop {
                match self.stream.next().await {
                    Ok(Some(ProcessEvent::Stdout(bytes))) => self.output.extend_from_slice(&bytes),
                    Ok(other) => bail!("{other:?} instead of an error"),
                    Err(error) => return Ok(error),
                }
            }
        };
        timeout(SOON, reading).await.context("the stream does not end")?
    }

    /// Attaches again after what was read, to the same process.
    async fn attach_again(&mut self, client: &Client, sandbox: SandboxId) -> Result<()> {
        let read = self.output.len() as u64;
        self.stream = client.process_stream(sandbox, self.tag, &read.to_string()).await?;
        let start = self.stream.next().await?;
        let Some(ProcessEvent::Start { pid, offset, .. }) = start else { bail!("first came {start:?}") };
        ensure!(
            (pid, offset) == (self.pid, read),
            "process {pid} from {offset}, not {} from {read}",
            self.pid
        );
        Ok(())
    }

    /// Reads up to the end of the process. Fails unless it has read each number once.
    async fn ends_well(&mut self) -> Result<()> {
        let read = timeout(SOON, rest(&mut self.stream)).await.context("the process does not end")?;
        let (further, code, _) = read?;
        ensure!(code == 5 && !further.is_empty(), "exit status {code} after {further:?}");
        let text = String::from_utf8_lossy(&self.output).into_owned() + &further;
        let numbers = text.lines().map(str::parse).collect::<Result<Vec<u64>, _>>();
        let whole = numbers.is_ok_and(|numbers| numbers.into_iter().eq(1..=text.lines().count() as u64));
        ensure!(whole, "after {} bytes came {further:?}, and {text:?} in all", self.output.len());
        Ok(())
    }
}

/// Streams of a command and of a process that runs by itself end by an error that tells of the pause; both processes go on, and
/// who attaches again after what was read misses nothing.
pub(crate) async fn open_streams_are_told_and_lose_nothing(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    let (sandbox, client): (SandboxId, _) = (id.parse()?, client(&stack)?);
    let command = client.exec_stream(sandbox, &numbers("command")).await?;
    client.start_process(sandbox, &numbers("by-itself")).await?;
    let attached = client.process_stream(sandbox, "by-itself", "beginning").await?;
    let mut command = Reader::of("command", command).await?;
    let mut attached = Reader::of("by-itself", attached).await?;

    let (paused, one, other) = tokio::join!(pause(&stack, &id), command.told(), attached.told());
    paused?;
    for told in [one?, other?] {
        let cause = told.to_string();
        ensure!(told.code() == Some("invalid_state") && cause.contains("paused"), "the cause is {cause:?}");
    }
    resume(&stack, &id).await?;
    for reader in [&mut command, &mut attached] {
        reader.attach_again(&client, sandbox).await.context(reader.tag)?;
    }
    sh(&stack, &id, "touch /tmp/enough").await?;
    for reader in [&mut command, &mut attached] {
        reader.ends_well().await.context(reader.tag)?;
    }
    delete_wholly(&stack, &id).await
}
