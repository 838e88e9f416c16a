// SPDX-License-Identifier: Apache-2.0
//! Streaming output of commands.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::json;
use wrenn_api::{ExecRequest, SandboxId};
use wrenn_client::{Client, Error, ProcessEvent, ProcessStream};
use wrenn_testkit::{Stack, wait_until};

async fn start(stack: &Stack, id: &str, command: &[&str]) -> Result<ProcessStream> {
    let (cmd, args) = command.split_first().context("no command")?;
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let request = ExecRequest { cmd: (*cmd).to_owned(), args, ..ExecRequest::default() };
    let id: SandboxId = id.parse()?;
    Ok(Client::new(&stack.url(), Some(stack.api.key()))?.exec_stream(id, &request).await?)
}

/// Returns the events after the first one, which must be `Start`.
async fn rest(stream: &mut ProcessStream) -> Result<Vec<ProcessEvent>> {
    let first = stream.next().await?;
    anyhow::ensure!(
        matches!(first, Some(ProcessEvent::Start { pid, .. }) if pid > 1),
        "first came {first:?}"
    );
    let mut events = Vec::new();
    while let Some(event) = stream.next().await? {
        events.push(event);
    }
    Ok(events)
}

/// Events are start, output in the order in which it was written, exit.
pub(crate) async fn output_comes_in_order(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let script =
        "echo one; sleep 0.5; echo two >&2; sleep 0.5; printf 'dr\\303'; sleep 0.5; printf '\\244i'; exit 7";
    let events = rest(&mut start(&stack, &id, &["sh", "-c", script]).await?).await?;
    let Some((ProcessEvent::Exit { exit_code: 7, .. }, output)) = events.split_last() else {
        anyhow::bail!("it did not end with exit 7: {events:?}")
    };
    let [ProcessEvent::Stdout(one), ProcessEvent::Stderr(two), three @ ..] = output else {
        anyhow::bail!("not in order: {events:?}")
    };
    let three: Vec<u8> = three.iter().flat_map(|event| stdout(event).to_vec()).collect();
    let text = [one.as_ref(), two.as_ref(), &three].concat();
    anyhow::ensure!(text == "one\ntwo\ndräi".as_bytes(), "{events:?}");
    stack.give_back(id);
    Ok(())
}

fn stdout(event: &ProcessEvent) -> &[u8] {
    match event {
        ProcessEvent::Stdout(bytes) => bytes,
        _ => &[],
    }
}

/// Pseudorandom bytes.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// 1 MiB of binary output arrives unchanged.
pub(crate) async fn bytes_that_are_no_text_are_exact(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let content = noise(1 << 20);
    stack.api.write(&id, "noise", content.clone()).await?.expect(204)?;
    let events = rest(&mut start(&stack, &id, &["cat", "noise"]).await?).await?;
    anyhow::ensure!(
        matches!(
            events.last(),
            Some(ProcessEvent::Exit { exit_code: 0, timed_out: false, out_of_memory: false, .. })
        ),
        "{:?}",
        events.last()
    );
    let got: Vec<u8> = events.iter().flat_map(|event| stdout(event).to_vec()).collect();
    let same = got.iter().zip(&content).take_while(|(a, b)| a == b).count();
    anyhow::ensure!(got == content, "{} bytes, the first {same} are right", got.len());
    stack.give_back(id);
    Ok(())
}

/// Closing the stream kills its command and the command's children.
pub(crate) async fn a_closed_stream_ends_its_command(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let mut stream = start(&stack, &id, &["sh", "-c", "sleep 1000 & sleep 1000; echo over"]).await?;
    stream.next().await?;
    let pgrep = async || stack.api.exec(&id, &["pgrep", "-c", "sleep"]).await.ok();
    let both = async || pgrep().await.filter(|ran| ran["stdout"] == "2\n").map(drop);
    wait_until("two processes", Duration::from_secs(15), both).await?;
    drop(stream);
    let mut last = None;
    let none = async || {
        last = pgrep().await;
        last.as_ref().filter(|ran| ran["stdout"] == "0\n").map(drop)
    };
    let ended = wait_until("the end of the processes", Duration::from_secs(15), none).await;
    ended.with_context(|| format!("pgrep says {last:?}"))?;
    stack.give_back(id);
    Ok(())
}

/// A command that cannot be started is reported as an error with its code.
pub(crate) async fn errors_are_frames_or_answers(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    for (command, wanted) in [("no-such-command", "program_not_found"), ("", "invalid_request")] {
        let mut stream = start(&stack, &id, &[command]).await?;
        let first = stream.next().await;
        let is_it =
            matches!(&first, Err(Error::Api { code, message, .. }) if code == wanted && message.len() > 10);
        anyhow::ensure!(is_it, "{command:?}: {first:?}");
    }
    let path = format!("/v1/sandboxes/{id}/exec/stream");
    stack.api.get(&path).await?.expect_error(400, "invalid_request")?;
    let other =
        stack.api.request(Method::GET, &path).header("Connection", "Upgrade").header("Upgrade", "h2c");
    stack.api.send(other).await?.expect_error(400, "invalid_request")?;
    stack.api.remove(&id).await?;
    stack.api.get(&path).await?.expect_error(409, "invalid_state")?;
    Ok(())
}

/// Deleting a sandbox ends its commands, and waiting clients get an error at once.
pub(crate) async fn a_deleted_sandbox_ends_its_commands(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let mut stream = start(&stack, &id, &["sleep", "1000"]).await?;
    stream.next().await?;
    let path = format!("/v1/sandboxes/{id}/exec");
    let body = json!({"cmd": "sleep", "args": ["1001"], "timeout_sec": 60});
    let waiting = stack.api.post(&path, &body);
    let deleting = async {
        let both = async || {
            let ran = stack.api.exec(&id, &["pgrep", "-c", "sleep"]).await.ok()?;
            (ran["stdout"] == "2\n").then_some(())
        };
        wait_until("two commands", Duration::from_secs(15), both).await?;
        stack.api.remove(&id).await?;
        anyhow::Ok(Instant::now())
    };
    let (reply, deleted) = tokio::join!(async { (waiting.await, Instant::now()) }, deleting);
    let (reply, deleted) = ((reply.0?, reply.1), deleted?);
    reply.0.expect_error(409, "invalid_state")?;
    let late = reply.1.saturating_duration_since(deleted);
    anyhow::ensure!(late < Duration::from_secs(5), "the answer came {late:?} after the delete");
    let last = tokio::time::timeout(Duration::from_secs(5), stream.next()).await;
    let last = last.context("the stream goes on after the delete")?;
    anyhow::ensure!(matches!(last, Err(Error::Api { status: 409, .. })), "{last:?}");
    Ok(())
}
