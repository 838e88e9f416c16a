// SPDX-License-Identifier: Apache-2.0
//! Processes: in the background, attached to, with input, signalled with all their descendants, and out of memory.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_api::{ExecRequest, SandboxId, Signal};
use wrenn_client::{Client, ProcessEvent, ProcessStream};
use wrenn_testkit::{Stack, wait_until};

use super::support::{delete_wholly, pause, resume, sh, wait_status};

pub(crate) fn client(stack: &Stack) -> Result<Client> {
    Ok(Client::new(&stack.url(), Some(stack.api.key()))?)
}

/// Output up to the end of a process, its exit status, and whether it ran out of memory.
pub(crate) async fn rest(stream: &mut ProcessStream) -> Result<(String, i32, bool)> {
    let mut output = Vec::new();
    loop {
        match stream.next().await? {
            Some(ProcessEvent::Stdout(bytes)) => output.extend_from_slice(&bytes),
            Some(ProcessEvent::Exit { exit_code, out_of_memory, .. }) => {
                return Ok((String::from_utf8(output)?, exit_code, out_of_memory));
            }
            Some(ProcessEvent::Lost { bytes }) => anyhow::bail!("{bytes} bytes are lost"),
            Some(_) => {}
            None => anyhow::bail!("no exit"),
        }
    }
}

/// Reads until `text` has come.
async fn until(stream: &mut ProcessStream, text: &str) -> Result<u64> {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        match stream.next().await? {
            Some(ProcessEvent::Stdout(bytes)) => read.extend_from_slice(&bytes),
            Some(ProcessEvent::Start { .. }) => {}
            other => {
                anyhow::bail!("{other:?} instead of {text:?}, after {:?}", String::from_utf8_lossy(&read))
            }
        }
    }
    Ok(read.len() as u64)
}

/// A process that was started detached is listed, read from the beginning and from a cursor, sent input, and survives a pause
/// with its id, tag and start.
pub(crate) async fn one_runs_by_itself_and_is_attached_to(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let (sandbox, client): (SandboxId, _) = (id.parse()?, client(&stack)?);
    let script = "echo begun; while read line; do echo \"got $line\"; done; echo over; exit 5";
    let body =
        json!({"cmd": "sh", "args": ["-c", script], "background": true, "tag": "worker", "stdin": true});
    let path = format!("/v1/sandboxes/{id}/exec");
    let started = stack.api.post(&path, &body).await?.expect(202)?.json();
    ensure!(
        started["tag"] == "worker" && started["pid"].as_u64() > Some(1) && started["cmd"] == "sh",
        "{started}"
    );
    stack.api.post(&path, &body).await?.expect_error(409, "conflict")?;
    let unnamed = json!({"cmd": "sleep", "args": ["1000"], "background": true});
    let unnamed = stack.api.post(&path, &unnamed).await?.expect(202)?.json();
    let tag = unnamed["tag"].as_str().context("a tag")?;
    ensure!(tag.strip_prefix("proc-").is_some_and(|hex| hex.len() == 8), "{unnamed}");
    let list = async || {
        anyhow::Ok(stack.api.get(&format!("/v1/sandboxes/{id}/processes")).await?.expect(200)?.json())
    };
    let before = list().await?;
    let worker = before["processes"][0].clone();
    ensure!(
        worker["pid"] == started["pid"] && worker["tag"] == "worker" && worker["args"][1] == script,
        "{before}"
    );

    let mut stream = client.process_stream(sandbox, "worker", "beginning").await?;
    let first = stream.next().await?;
    ensure!(
        matches!(&first, Some(ProcessEvent::Start { tag: Some(tag), offset: 0, .. }) if tag == "worker"),
        "{first:?}"
    );
    stream.input().write(b"one\n").await?;
    let read = until(&mut stream, "got one\n").await?;
    drop(stream);
    pause(&stack, &id).await?;
    resume(&stack, &id).await?;
    ensure!(list().await? == before, "{} after a pause, {before} before", list().await?);
    // By its id, from where it was read last.
    let pid = worker["pid"].to_string();
    let mut stream = client.process_stream(sandbox, &pid, &read.to_string()).await?;
    stream.input().write(b"two\n").await?;
    stream.input().close().await?;
    ensure!(rest(&mut stream).await? == ("got two\nover\n".to_owned(), 5, false), "another output");
    // Also after its end.
    let mut stream = client.process_stream(sandbox, "worker", "beginning").await?;
    ensure!(
        rest(&mut stream).await? == ("begun\ngot one\ngot two\nover\n".to_owned(), 5, false),
        "another output"
    );

    let gone = format!("/v1/sandboxes/{id}/processes/worker");
    stack.api.delete(&gone).await?.expect_error(404, "not_found")?;
    let killed = client.signal_process(sandbox, tag, Signal::KILL).await?;
    ensure!(killed.processes == 1 && killed.signal == 9 && unnamed["pid"] == killed.pid, "{killed:?}");
    let none = async || list().await.ok().filter(|list| list["processes"] == json!([]));
    wait_until("no process", Duration::from_secs(10), none).await?;
    delete_wholly(&stack, &id).await
}

/// A signal ends what the process started, in whatever session, also when it outlives the process; nothing comes back after a
/// pause.
pub(crate) async fn a_signal_reaches_all_descendants(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let path = format!("/v1/sandboxes/{id}/exec");
    let start = async |script: &str, tag: &str| {
        let body = json!({"cmd": "sh", "args": ["-c", script], "background": true, "tag": tag});
        stack.api.post(&path, &body).await?.expect(202).map(drop)
    };
    let signal = async |tag: &str, signal: &str| {
        let path = format!("/v1/sandboxes/{id}/processes/{tag}?signal={signal}");
        stack.api.delete(&path).await
    };
    let running = "pgrep -c -f 'sleep 99[9]|http.serve[r]'; true";
    let count = async |wanted: &'static str| {
        let counted = async || (sh(&stack, &id, running).await.ok()? == wanted).then_some(());
        wait_until(&format!("{wanted} processes"), Duration::from_secs(20), counted).await
    };
    start("setsid sleep 999 & exec python3 -m http.server 8000", "server").await?;
    count("2").await?;
    signal("server", "NONE").await?.expect_error(400, "invalid_request")?;
    signal("server", "65").await?.expect_error(400, "invalid_request")?;
    let reached: Value = signal("server", "TERM").await?.expect(200)?.json();
    ensure!(reached["processes"] == 2 && reached["signal"] == 15, "{reached}");
    count("0").await?;
    sh(&stack, &id, "python3 -c \"import socket; s = socket.socket(); s.bind(('0.0.0.0', 8000))\"").await?;
    // What outlives its process.
    start("setsid sleep 999 > /dev/null 2>&1 &", "parent").await?;
    count("1").await?;
    let list =
        async || stack.api.get(&format!("/v1/sandboxes/{id}/processes")).await.ok().map(|list| list.json());
    let ended = async || list().await.filter(|list| list["processes"] == json!([]));
    wait_until("the end of the parent", Duration::from_secs(10), ended).await?;
    pause(&stack, &id).await?;
    resume(&stack, &id).await?;
    let reached = signal("parent", "9").await?.expect(200)?.json();
    ensure!(reached["processes"] == 1, "{reached}");
    count("0").await?;
    delete_wholly(&stack, &id).await
}

/// Large input arrives whole; a command that does not read it ends all the same, and its caller is told.
pub(crate) async fn input_arrives_whole(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let (sandbox, client): (SandboxId, _) = (id.parse()?, client(&stack)?);
    let start = async |cmd: &str| {
        let request = ExecRequest {
            cmd: "sh".to_owned(),
            args: vec!["-c".to_owned(), cmd.to_owned()],
            stdin: true,
            ..ExecRequest::default()
        };
        client.exec_stream(sandbox, &request).await
    };
    let content: Vec<u8> =
        (0..5_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut stream = start("cksum").await?;
    let input = stream.input();
    let sending = async {
        input.write(&content).await?;
        input.close().await
    };
    let (sent, read) = tokio::join!(sending, rest(&mut stream));
    sent?;
    let (sum, code, _) = read?;
    stack.api.write(&id, "same", content.clone()).await?.expect(204)?;
    let expected = stack.api.exec(&id, &["sh", "-c", "cksum < same"]).await?["stdout"].clone();
    ensure!(code == 0 && expected == sum.as_str(), "{sum:?} instead of {expected}");

    let mut stream = start("head -c 1; exec 0<&-; sleep 1; echo end").await?;
    let input = stream.input();
    let sending = tokio::spawn(async move { input.write(&content).await });
    let (mut told, mut output) = (false, Vec::new());
    let code = loop {
        match stream.next().await?.context("no exit")? {
            ProcessEvent::InputClosed { .. } => told = true,
            ProcessEvent::Stdout(bytes) => output.extend_from_slice(&bytes),
            ProcessEvent::Exit { exit_code, .. } => break exit_code,
            _ => {}
        }
    };
    sending.abort();
    ensure!(told && code == 0 && output.ends_with(b"end\n"), "told: {told}, {code}, {output:?}");
    let mut stream = start("trap 'echo told; exit 3' INT; echo ready; while :; do sleep 0.1; done").await?;
    until(&mut stream, "ready\n").await?;
    stream.input().signal(Signal::INT).await?;
    ensure!(rest(&mut stream).await? == ("told\n".to_owned(), 3, false), "the signal did not reach it");
    stack.give_back(id);
    Ok(())
}

/// A command that takes all memory is killed, which is told, and the sandbox works on.
pub(crate) async fn a_memory_hog_is_killed_and_the_sandbox_works_on(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let client = client(&stack)?;
    let request = ExecRequest {
        cmd: "python3".to_owned(),
        args: vec!["-c".to_owned(), "data = []\nwhile True: data.append(b'x' * 1000000)".to_owned()],
        ..ExecRequest::default()
    };
    let mut stream = client.exec_stream(id.parse()?, &request).await?;
    let (_, code, out_of_memory) = rest(&mut stream).await?;
    ensure!(code == 137 && out_of_memory, "exit code {code}, out of memory: {out_of_memory}");
    ensure!(sh(&stack, &id, "echo works").await? == "works");
    wait_status(&stack, &id, &["running"], 1).await?;
    delete_wholly(&stack, &id).await
}

/// A command that takes all tasks that it may have does not stop the guest's agent: others run beside it, and a signal ends it.
pub(crate) async fn a_bomb_of_tasks_is_contained(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    // Threads, because processes take the memory before, which is another limit.
    let bomb = "import threading, time
threading.stack_size(65536)
try:
    while True: threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
except RuntimeError: print('limit', threading.active_count(), flush=True)
time.sleep(1000)";
    let body = json!({"cmd": "python3", "args": ["-c", bomb], "background": true, "tag": "bomb"});
    stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(202)?;
    let client = client(&stack)?;
    let mut stream = client.process_stream(id.parse()?, "bomb", "beginning").await?;
    until(&mut stream, "limit ").await?;
    let script =
        "cd /proc/$(pgrep -x python3); cat /sys/fs/cgroup$(cut -d: -f3 cgroup)/pids.max; ls task | wc -l";
    let told = sh(&stack, &id, script).await?;
    let (limit, tasks) = told.split_once('\n').context("two numbers")?;
    let (limit, tasks): (u32, u32) = (limit.parse()?, tasks.parse()?);
    ensure!((limit - 8..=limit).contains(&tasks), "{tasks} tasks with a limit of {limit}");
    wait_status(&stack, &id, &["running"], 1).await?;
    client.signal_process(id.parse()?, "bomb", Signal::KILL).await?;
    let left = async || (sh(&stack, &id, "pgrep -c python3; true").await.ok()? == "0").then_some(());
    wait_until("its end", Duration::from_secs(30), left).await?;
    delete_wholly(&stack, &id).await
}

/// What cannot be is refused before anything is started.
pub(crate) async fn requests_that_cannot_be(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let path = format!("/v1/sandboxes/{id}/exec");
    for body in [
        json!({"cmd": "true", "stdin": true}),
        json!({"cmd": "true", "tag": "1"}),
        json!({"cmd": "true", "tag": "a b", "background": true}),
        json!({"cmd": "true", "tag": "x".repeat(129)}),
        json!({"cmd": "true", "background": "yes"}),
        json!({"cmd": "true", "background": true, "timeout_sec": 0}),
    ] {
        stack
            .api
            .post(&path, &body)
            .await?
            .expect_error(400, "invalid_request")
            .with_context(|| body.to_string())?;
    }
    let of = |what: &str| format!("/v1/sandboxes/{id}/processes/{what}");
    stack.api.delete(&of("99999")).await?.expect_error(404, "not_found")?;
    stack.api.delete(&of("99999999999")).await?.expect_error(404, "not_found")?;
    stack.api.delete(&of("no-such")).await?.expect_error(404, "not_found")?;
    stack.api.delete(&of("a%20b")).await?.expect_error(400, "invalid_request")?;
    stack.api.delete(&of("x?signale=9")).await?.expect_error(400, "invalid_request")?;
    stack.api.get(&of("x/stream")).await?.expect_error(400, "invalid_request")?;
    let client = client(&stack)?;
    let mut stream = client.process_stream(id.parse()?, "no-such", "now").await?;
    let error = stream.next().await.err().context("it is there")?;
    ensure!(error.code() == Some("not_found"), "{error}");
    // A background command ends at its timeout.
    let body =
        json!({"cmd": "sleep", "args": ["1000"], "background": true, "timeout_sec": 1, "tag": "short"});
    stack.api.post(&path, &body).await?.expect(202)?;
    let mut stream = client.process_stream(id.parse()?, "short", "beginning").await?;
    ensure!(rest(&mut stream).await?.1 == 137, "it was not killed");
    let request = stack.api.request(Method::POST, &path).json(&json!({"cmd": "no-such", "background": true}));
    stack.api.send(request).await?.expect_error(404, "program_not_found")?;
    stack.give_back(id);
    Ok(())
}
