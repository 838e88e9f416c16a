// SPDX-License-Identifier: Apache-2.0
//! The commands `wrenn run` and `wrenn sandbox`: exit status, output, input, files, interrupted creates.

mod pauses;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use wrenn_testkit::{Stack, wait_until};

pub(crate) use self::pauses::{sandboxes_are_paused_and_resumed, snapshots_are_made_and_removed};

/// Runs `wrenn` as the user who ran `wrenn up`.
pub(crate) async fn wrenn(stack: &Stack, args: &[&str], input: Option<&str>) -> Result<Output> {
    output_of(stack.command(args)?, input).await
}

/// Runs a command to its end without blocking the runtime.
pub(crate) async fn output_of(mut command: Command, input: Option<&str>) -> Result<Output> {
    let input = input.map(str::to_owned);
    tokio::task::spawn_blocking(move || {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn()?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // It need not read all of it.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(child.wait_with_output()?)
    })
    .await?
}

/// What a program told on standard error.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The ids of the sandboxes with this much memory: no other case asks for so odd a number.
async fn with_memory(stack: &Stack, memory_mb: u32) -> Result<Vec<String>> {
    let list = stack.api.get("/v1/sandboxes?limit=100").await?.expect(200)?.json();
    let mine = list.as_array().into_iter().flatten().filter(|sandbox| sandbox["memory_mb"] == memory_mb);
    Ok(mine.filter_map(|sandbox| sandbox["id"].as_str()).map(str::to_owned).collect())
}

/// The exit status tells the command's failure from ours, and `--json` gives code and request id.
pub(crate) async fn the_exit_status_tells_whose_failure_it_is(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let script = "printf '#!/no/such/interpreter\\n' > /tmp/script; chmod 755 /tmp/script";
    stack.api.exec(&id, &["sh", "-c", script]).await?;
    let unknown = "sb00000000000000000000000a1";
    for (args, status, told) in [
        (vec!["sandbox", "exec", &id, "false"], 1, ""),
        (vec!["sandbox", "exec", unknown, "false"], 125, unknown),
        (vec!["run", "--template", "nope", "true"], 125, "nope"),
        (vec!["sandbox", "exec", &id, "no-such-program"], 127, "no-such-program"),
        (vec!["sandbox", "exec", &id, "/tmp/script"], 126, "/no/such/interpreter"),
        (vec!["sandbox", "exec", &id, "/etc"], 126, "/etc"),
        (vec!["sandbox", "exec", "-u", "nobody2", &id, "true"], 126, "nobody2"),
        (vec!["sandbox", "exec", "-w", "/no/such/dir", &id, "true"], 126, "/no/such/dir"),
        (vec!["sandbox", "exec", "--timeout", "1", &id, "sleep", "60"], 124, "after 1 s"),
    ] {
        let output = wrenn(&stack, &args, None).await?;
        let text = stderr(&output);
        anyhow::ensure!(output.status.code() == Some(status), "{args:?}: {:?} {text}", output.status);
        anyhow::ensure!(text.contains(told), "{args:?}: {text}");
        anyhow::ensure!(told.is_empty() || text.matches(told).count() == 1, "told twice: {text}");
    }
    let output = wrenn(&stack, &["--json", "sandbox", "exec", unknown, "false"], None).await?;
    let value: Value = serde_json::from_slice(&output.stdout)?;
    let request = value["error"]["request_id"].as_str().unwrap_or_default();
    anyhow::ensure!(value["error"]["code"] == "not_found" && !request.is_empty(), "{value}");
    let output = wrenn(&stack, &["--json", "sandbox", "rm", unknown, &id], None).await?;
    let value: Value = serde_json::from_slice(&output.stdout)?;
    let failed = &value["failed"][0];
    anyhow::ensure!(value["removed"] == json!([id]) && output.status.code() == Some(1), "{value}");
    anyhow::ensure!(failed["id"] == unknown && failed["error"]["code"] == "not_found", "{value}");
    Ok(())
}

/// With `--json` output is exact, and input is passed on unless it is not wanted.
pub(crate) async fn output_and_input_are_exact(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let args = ["--json", "sandbox", "exec", &id, "printf", "\\211PNG\\377"];
    let ran: Value = serde_json::from_slice(&wrenn(&stack, &args, None).await?.stdout)?;
    anyhow::ensure!(ran["encoding"] == "base64" && ran["stdout"] == "iVBOR/8=", "{ran}");
    anyhow::ensure!(
        ran["timed_out"] == false && ran["truncated"] == false && ran["lost_bytes"] == 0,
        "{ran}"
    );
    anyhow::ensure!(ran["duration_ms"].is_u64() && ran["cmd"] == "printf", "{ran}");
    let output = wrenn(&stack, &["sandbox", "exec", &id, "cat"], Some("hello")).await?;
    anyhow::ensure!(
        output.status.success() && output.stdout == b"hello" && output.stderr.is_empty(),
        "{output:?}"
    );
    let output = wrenn(&stack, &["sandbox", "exec", &id, "cat"], Some("")).await?;
    anyhow::ensure!(
        output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
    let output = wrenn(&stack, &["sandbox", "exec", "-n", &id, "cat"], Some("hello")).await?;
    anyhow::ensure!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    // More than it reads, as `yes | head` in a pipeline.
    let lines = "line\n".repeat(100_000);
    let output = wrenn(&stack, &["sandbox", "exec", &id, "head", "-n", "1"], Some(&lines)).await?;
    anyhow::ensure!(output.status.success() && output.stdout == b"line\n", "{output:?}");
    stack.give_back(id);
    Ok(())
}

/// A command is started detached, listed, attached to and ended; files are listed, moved and removed.
pub(crate) async fn processes_and_files_are_worked_with(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let run = async |args: &[&str], input: Option<&str>| {
        let output = wrenn(&stack, &[&["sandbox"], args].concat(), input).await?;
        anyhow::Ok((output.status.code(), String::from_utf8(output.stdout.clone())?, stderr(&output)))
    };
    let script = "echo begun; read line; echo \"got $line\"; exit 4";
    let started = run(&["exec", "-d", "-i", "--tag", "job", &id, "sh", "-c", script], None).await?;
    anyhow::ensure!(started == (Some(0), "job\n".to_owned(), String::new()), "{started:?}");
    let (code, listed, _) = run(&["ps", &id], None).await?;
    anyhow::ensure!(
        code == Some(0) && ["PID", "job", "sh -c"].iter().all(|text| listed.contains(text)),
        "{listed}"
    );
    let attached = run(&["attach", &id, "job"], Some("this\n")).await?;
    anyhow::ensure!(attached == (Some(4), "begun\ngot this\n".to_owned(), String::new()), "{attached:?}");
    for (args, told) in [
        (vec!["files", "mkdir", &id, "dir/sub"], ""),
        (vec!["files", "ls", &id, "dir"], "dir/sub/"),
        (vec!["files", "mv", &id, "dir/sub", "dir/other"], ""),
        (vec!["files", "stat", &id, "dir/other"], "drwxr-xr-x"),
        (vec!["files", "cat", &id, "/etc/hostname"], &id),
        (vec!["files", "rm", &id, "dir"], ""),
    ] {
        let (code, listed, error) = run(&args, None).await?;
        anyhow::ensure!(
            code == Some(0) && listed.contains(told) && listed.is_empty() == told.is_empty(),
            "{args:?}: {listed} {error}"
        );
    }
    let (code, _, told) = run(&["files", "ls", &id, "dir"], None).await?;
    anyhow::ensure!(code == Some(1) && told.contains("not_found"), "{code:?}: {told}");
    let (_, tag, _) = run(&["exec", "--detach", &id, "sleep", "1000"], None).await?;
    let killed = run(&["kill", "-s", "KILL", &id, tag.trim()], None).await?;
    anyhow::ensure!(killed.0 == Some(0) && killed.1.is_empty(), "{killed:?}");
    let (code, _, told) = run(&["attach", "-n", &id, tag.trim()], None).await?;
    anyhow::ensure!(code == Some(137), "{code:?}: {told}");
    let (code, _, told) = run(&["kill", &id, "nothing"], None).await?;
    anyhow::ensure!(code == Some(1) && told.contains("nothing"), "{code:?}: {told}");
    let (code, _, told) = run(&["attach", &id, "nothing"], None).await?;
    anyhow::ensure!(code == Some(125) && told.contains("nothing"), "{code:?}: {told}");
    stack.api.remove(&id).await.map(drop)
}

/// `wrenn run --detach` leaves a sandbox with its command, and variables come from files and options.
pub(crate) async fn a_detached_run_stays(stack: Arc<Stack>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("variables").display().to_string();
    fs::write(&file, "# of the sandbox\nA='one two'\nB=file\n")?;
    let script = "echo $A $B; exec sleep 1000";
    let run =
        ["--json", "run", "-d", "--memory", "256", "--env-file", &file, "-e", "B=option", "sh", "-c", script];
    let ran = wrenn(&stack, &run, None).await?;
    anyhow::ensure!(ran.status.success(), "{}", stderr(&ran));
    let told: Value = serde_json::from_slice(&ran.stdout)?;
    let field = |of: &str, name: &str| told[of][name].as_str().map(str::to_owned).context("no such field");
    let (id, tag) = (field("sandbox", "id")?, field("process", "tag")?);
    let printed = async || {
        let logs = wrenn(&stack, &["logs", &id, &tag], None).await.ok()?;
        (logs.stdout == b"one two option\n").then_some(())
    };
    wait_until("the output of the command", Duration::from_secs(60), printed).await?;
    let listed = wrenn(&stack, &["ps", &id], None).await?;
    anyhow::ensure!(String::from_utf8_lossy(&listed.stdout).contains(&tag), "{listed:?}");
    stack.api.remove(&id).await.map(drop)
}

/// Sandboxes are named, found by names, beginnings of ids and labels, and removed together.
pub(crate) async fn names_and_labels_find_sandboxes(stack: Arc<Stack>) -> Result<()> {
    let run = async |args: &[&str]| {
        let output = wrenn(&stack, args, None).await?;
        anyhow::Ok((output.status.code(), String::from_utf8(output.stdout.clone())?, stderr(&output)))
    };
    let create = ["create", "--memory", "256m", "--disk", "1g", "--label", "suite=cli-names"];
    let (code, id, told) =
        run(&[&create[..], &["--name", "cli-web", "--idle-timeout", "1h"]].concat()).await?;
    anyhow::ensure!(code == Some(0), "{told}");
    let id = id.trim();
    let (code, _, told) = run(&[&create[..], &["--name", "cli-web"]].concat()).await?;
    anyhow::ensure!(code == Some(1) && told.contains("sandbox_name_taken"), "{told}");
    for reference in ["cli-web", &id[..26], id] {
        let (code, out, told) = run(&["exec", "-n", reference, "hostname"]).await?;
        anyhow::ensure!(code == Some(0) && out.trim() == id, "{reference}: {out} {told}");
    }
    let (code, _, told) = run(&["exec", "-n", "cli-nobody", "true"]).await?;
    anyhow::ensure!(code == Some(125) && told.contains("cli-nobody"), "{code:?} {told}");
    let (_, table, _) = run(&["ls", "-l", "suite=cli-names"]).await?;
    let row: Vec<_> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    anyhow::ensure!(
        row.len() == 11 && id.starts_with(row[0]) && row[1..3] == ["cli-web", "running"],
        "{table}"
    );
    anyhow::ensure!(row[4..9] == ["1", "256", "MiB", "1", "GiB"] && row[10] == "suite=cli-names", "{table}");
    for (args, expected) in [
        (&["ls", "-q", "--name", "cli-web"][..], id),
        (&["ls", "-q", "-l", "suite=cli-names", "--status", "paused,error"], ""),
        (&["set", "cli-web", "--name", "cli-renamed", "--label", "more=1"], id),
        (&["ls", "-q", "--label", "more"], id),
        (&["set", "cli-renamed", "--remove-label", "more"], id),
        (&["ls", "-q", "--label", "more"], ""),
        (
            &[
                "exec",
                "-d",
                "--tag",
                "job",
                "cli-renamed",
                "sh",
                "-c",
                "echo out; echo err >&2; exec sleep 1000",
            ],
            "job",
        ),
    ] {
        let (code, out, told) = run(args).await?;
        anyhow::ensure!(code == Some(0) && out.trim() == expected, "{args:?}: {out:?} {told}");
    }
    // What is there is shown, and not waited for; the only process need not be named.
    let shown = async || {
        let logs = run(&["logs", "cli-renamed"]).await.ok()?;
        (logs == (Some(0), "out\n".to_owned(), "err\n".to_owned())).then_some(())
    };
    wait_until("the output of the job", Duration::from_secs(30), shown).await?;
    run(&["kill", "cli-renamed", "job"]).await?;
    let (code, out, _) = run(&["logs", "-f", "cli-renamed", "job"]).await?;
    anyhow::ensure!(code == Some(0) && out == "out\n", "{code:?} {out:?}");
    // Without a terminal nothing is removed that was not named.
    let (code, _, told) = run(&["rm", "--label", "suite=cli-names"]).await?;
    anyhow::ensure!(code == Some(1) && told.contains("--yes") && told.contains(id), "{told}");
    let (code, out, told) = run(&["rm", "--label", "suite=cli-names", "--yes"]).await?;
    anyhow::ensure!(code == Some(0) && out.trim() == id, "{out} {told}");
    let (code, out, told) = run(&["rm", "--label", "suite=cli-names", "--yes"]).await?;
    anyhow::ensure!(code == Some(0) && out.is_empty(), "{out} {told}");
    let (_, out, _) = run(&["ls", "-q", "--all", "--label", "suite=cli-names"]).await?;
    anyhow::ensure!(out.trim() == id, "{out}");
    Ok(())
}

/// Events are lines that can be read, of one sandbox or type, from some time ago.
pub(crate) async fn events_are_lines(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256, "name": "cli-events"})).await?;
    let mut command = stack.command(&["events", "--since", "10m", "-s", "cli-events", "-t", "running"])?;
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().context("no output")?;
    let line = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        let mut byte = [0];
        while std::io::Read::read(&mut stdout, &mut byte)? == 1 && byte != *b"\n" {
            text.extend(byte);
        }
        anyhow::Ok(String::from_utf8(text)?)
    });
    let line = tokio::time::timeout(Duration::from_secs(30), line).await;
    child.kill()?;
    child.wait()?;
    let line = line.context("no event")???;
    let words: Vec<_> = line.split_whitespace().collect();
    anyhow::ensure!(words.len() > 5 && words[0].ends_with('Z'), "{line}");
    // After these comes the name of the key.
    anyhow::ensure!(words[1..6] == ["running", id.as_str(), "cli-events", "minimal", "by"], "{line}");
    let output = wrenn(&stack, &["events", "-s", "cli-nobody"], None).await?;
    anyhow::ensure!(stderr(&output).contains("not_found"), "{output:?}");
    stack.api.remove(&id).await.map(drop)
}

/// The sandbox of a `wrenn run` that was killed is deleted when it was idle.
pub(crate) async fn a_killed_run_leaves_no_sandbox(stack: Arc<Stack>) -> Result<()> {
    let mut command =
        stack.command(&["run", "--memory-mb", "261", "--idle-timeout", "10", "sleep", "1000"])?;
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let of_it = async || {
        let ids = with_memory(&stack, 261).await.ok()?;
        let id = ids.first()?;
        let record = stack.api.get(&format!("/v1/sandboxes/{id}")).await.ok()?.json();
        let processes = stack.api.get(&format!("/v1/sandboxes/{id}/processes")).await.ok()?.json();
        let runs = record["status"] == "running" && processes["processes"][0]["cmd"] == "sleep";
        runs.then_some(record)
    };
    let record = wait_until("the command", Duration::from_secs(60), of_it).await;
    child.kill()?;
    child.wait()?;
    let record = record?;
    anyhow::ensure!(record["on_timeout"] == "delete" && record["timeout_sec"] == 10, "{record}");
    let gone = async || with_memory(&stack, 261).await.ok().filter(Vec::is_empty);
    wait_until("no sandbox", Duration::from_secs(60), gone).await.map(drop)
}

/// The shell is offered sandboxes and templates.
pub(crate) async fn values_are_completed(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256, "name": "cli-completed"})).await?;
    let complete = async |words: &[&str]| {
        let stack = stack.clone();
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        tokio::task::spawn_blocking(move || {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let mut command = stack.command(&[&["--", "wrenn"], words.as_slice()].concat())?;
            let last = words.len().to_string();
            // As the script for bash asks.
            command.envs([("WRENN_COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", &last), ("_CLAP_IFS", "\n")]);
            command.envs([("_CLAP_COMPLETE_COMP_TYPE", "9"), ("_CLAP_COMPLETE_SPACE", "false")]);
            let output = command.output()?;
            anyhow::ensure!(output.status.success(), "{output:?}");
            Ok(String::from_utf8(output.stdout)?)
        })
        .await?
    };
    for (words, expected) in [
        (&["exec", "cli-comp"][..], "cli-completed"),
        (&["sandbox", "rm", &id[..20]], id.as_str()),
        (&["run", "--template", "mini"], "minimal"),
        (&["sandbo"], "sandbox"),
    ] {
        let offered = complete(words).await?;
        anyhow::ensure!(offered.lines().any(|line| line.trim() == expected), "{words:?}: {offered:?}");
    }
    stack.api.remove(&id).await.map(drop)
}

/// Files are copied into directories, keep their modes, and replace regular files only.
pub(crate) async fn files_are_copied_as_by_cp(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let dir = tempfile::tempdir()?;
    let local = |name: &str| dir.path().join(name).display().to_string();
    fs::write(local("tool"), "#!/bin/sh\necho works\n")?;
    fs::set_permissions(local("tool"), fs::Permissions::from_mode(0o755))?;
    let copy = async |from: &str, to: &str, input: Option<&str>| {
        let output = wrenn(&stack, &["sandbox", "cp", from, to], input).await?;
        anyhow::ensure!(output.status.success(), "{from} to {to}: {}", stderr(&output));
        anyhow::Ok(output.stdout)
    };
    for (to, path) in
        [("", "tool"), (".", "tool"), ("/tmp", "/tmp/tool"), ("/tmp/", "/tmp/tool"), ("new/name", "new/name")]
    {
        copy(&local("tool"), &format!("{id}:{to}"), None).await?;
        let ran = stack.api.exec(&id, &["stat", "-c", "%a", path]).await?;
        anyhow::ensure!(ran["stdout"] == "755\n", "{to:?}: {ran}");
        stack.api.exec(&id, &["rm", path]).await?;
    }
    copy("-", &format!("{id}:piped"), Some("from a pipe")).await?;
    anyhow::ensure!(copy(&format!("{id}:piped"), "-", None).await? == b"from a pipe");
    stack.api.exec(&id, &["chmod", "750", "piped"]).await?;
    copy(&format!("{id}:piped"), dir.path().to_str().context("path")?, None).await?;
    let mode = fs::metadata(local("piped"))?.permissions().mode() & 0o777;
    anyhow::ensure!(mode & 0o707 == 0o700, "{mode:o}");
    // Only regular files are replaced.
    symlink("target", local("link"))?;
    copy(&format!("{id}:piped"), &local("link"), None).await?;
    anyhow::ensure!(fs::symlink_metadata(local("link"))?.is_symlink(), "the link was replaced");
    anyhow::ensure!(fs::read(local("target"))? == b"from a pipe");
    copy(&format!("{id}:piped"), "/dev/null", None).await?;
    anyhow::ensure!(fs::metadata("/dev/null")?.file_type().is_char_device(), "/dev/null was replaced");
    anyhow::ensure!(copy(&format!("{id}:piped"), "/dev/stdout", None).await?.starts_with(b"from a pipe"));
    let refused =
        wrenn(&stack, &["sandbox", "cp", "-r", &dir.path().display().to_string(), &id], None).await?;
    anyhow::ensure!(!refused.status.success(), "{refused:?}");
    // More than a form may have.
    let large = fs::File::create(local("large"))?;
    large.set_len(101 << 20)?;
    copy(&local("large"), &format!("{id}:/tmp/large"), None).await?;
    let size = stack.api.exec(&id, &["stat", "-c", "%s", "/tmp/large"]).await?;
    anyhow::ensure!(size["stdout"] == format!("{}\n", 101 << 20), "{size}");
    stack.api.exec(&id, &["rm", "/tmp/large"]).await?;
    stack.give_back(id);
    Ok(())
}

/// A create that is interrupted removes its sandbox; one that repeats an old key names a deleted sandbox.
pub(crate) async fn an_interrupted_create_leaves_no_sandbox(stack: Arc<Stack>) -> Result<()> {
    let mut command = stack.command(&["sandbox", "create", "--memory-mb", "257"])?;
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = Pid::from_child(&child);
    let begun = async || with_memory(&stack, 257).await.ok().filter(|ids| !ids.is_empty());
    let ids = wait_until("the sandbox", Duration::from_secs(30), begun).await?;
    kill_process(pid, Signal::INT)?;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    let text = stderr(&output);
    anyhow::ensure!(output.status.code() == Some(130) && output.stdout.is_empty(), "{output:?}");
    anyhow::ensure!(
        text.contains("interrupted") && text.contains(&format!("removed sandbox {}", ids[0])),
        "{text}"
    );
    anyhow::ensure!(with_memory(&stack, 257).await?.is_empty(), "the sandbox is left");

    let create = ["sandbox", "create", "--memory-mb", "257", "--idempotency-key", "cli-key"];
    let output = wrenn(&stack, &create, None).await?;
    let id = String::from_utf8(output.stdout)?.trim().to_owned();
    stack.api.remove(&id).await?;
    let again = wrenn(&stack, &create, None).await?;
    let text = stderr(&again);
    anyhow::ensure!(!again.status.success() && again.stdout.is_empty(), "{again:?}");
    anyhow::ensure!(text.contains(&id) && text.contains("deleted"), "{text}");
    Ok(())
}

/// A server that is killed during the create of `wrenn run` costs a moment, an agent the create; nothing is left.
pub(crate) async fn a_create_whose_answer_is_lost_leaves_no_sandbox(stack: Arc<Stack>) -> Result<()> {
    let run = ["run", "--memory-mb", "259", "echo", "works"];
    for (point, status, told) in [
        ("server.create.inserted", None, "asking again"),
        ("server.create.running", Some(0), "asking again"),
        ("agent.create.volume", Some(125), "wrenn: "),
    ] {
        let part = point.split('.').next().context("no part")?;
        let old = stack.child(part)?;
        stack.arm(point)?;
        let output = wrenn(&stack, &run, None).await?;
        stack.restarted(part, old).await?;
        stack.wait_healthy().await?;
        let text = stderr(&output);
        anyhow::ensure!(!stack.armed(point) && text.contains(told), "{point}: {output:?}");
        anyhow::ensure!(
            status.is_none_or(|status| output.status.code() == Some(status)),
            "{point}: {output:?}"
        );
        // A host that is away removes it when it is back.
        let gone = async || with_memory(&stack, 259).await.ok().filter(Vec::is_empty);
        let gone = wait_until("no sandbox", Duration::from_secs(20), gone).await;
        gone.with_context(|| format!("{point}: {text}"))?;
        if status == Some(0) {
            anyhow::ensure!(output.stdout == b"works\n", "{point}: {output:?}");
        }
    }
    Ok(())
}
