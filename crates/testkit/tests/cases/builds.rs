// SPDX-License-Identifier: Apache-2.0
//! Templates that are built from recipes by the command line: what is built, what the cache says, and what can be done with a
//! build that fails or lasts.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use wrenn_testkit::{Stack, wait_until};

use super::{
    cli::{stderr, wrenn},
    support::{sh, wait_status},
};

/// Time limit for a step to begin: before it, the sandbox of the build boots.
const BEGUN: Duration = Duration::from_secs(120);

/// The example with every instruction, and its files. The last one is not copied.
const EVERY: &str = include_str!("../../../../examples/web/Wrennfile");
const EVERY_FILES: [(&str, &str); 6] = [
    ("server.py", include_str!("../../../../examples/web/server.py")),
    ("check.py", include_str!("../../../../examples/web/check.py")),
    ("a.txt", include_str!("../../../../examples/web/a.txt")),
    ("b.txt", include_str!("../../../../examples/web/b.txt")),
    ("pages/deep/c", include_str!("../../../../examples/web/pages/deep/c")),
    ("README.md", include_str!("../../../../examples/web/README.md")),
];

/// A directory with a recipe and files.
pub(crate) fn context(recipe: &str, files: &[(&str, &str)]) -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    for (name, content) in [("Wrennfile", recipe)].iter().chain(files) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().context("no directory")?)?;
        fs::write(path, content)?;
    }
    Ok(dir)
}

/// Arguments of a build that prints JSON and says why steps are not cached.
fn arguments<'a>(name: &'a str, directory: &'a str) -> Vec<&'a str> {
    let sizes = ["--memory", "256", "--disk-size", "1g"];
    let what = ["--json", "template", "build", name, "--context", directory, "--explain-cache"];
    [&what[..], &sizes].concat()
}

/// Builds a template; returns the exit status, the build, and what was told of it.
pub(crate) async fn build(
    stack: &Arc<Stack>,
    name: &str,
    context: &Path,
) -> Result<(Option<i32>, Value, String)> {
    let directory = context.display().to_string();
    let output = wrenn(stack, &arguments(name, &directory), None).await?;
    let build = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok((output.status.code(), build, stderr(&output)))
}

/// Starts such a build as a program of its own.
fn start(stack: &Stack, name: &str, context: &Path) -> Result<Child> {
    let directory = context.display().to_string();
    let mut command = stack.command(&arguments(name, &directory))?;
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Waits until the newest build of a template does a step in its first attempt.
async fn step_runs(stack: &Stack, name: &str, step: usize) -> Result<Value> {
    attempt_runs(stack, name, 1, step).await
}

/// Waits until the newest build of a template does a step in this attempt.
async fn attempt_runs(stack: &Stack, name: &str, attempt: u32, step: usize) -> Result<Value> {
    let path = format!("/v1/templates/builds?template={name}&limit=1");
    let runs = async || {
        let build = stack.api.get(&path).await.ok()?.json()[0].clone();
        (build["attempt"] == attempt && build["steps"][step - 1]["status"] == "running").then_some(build)
    };
    wait_until(&format!("step {step} of {name}"), BEGUN, runs).await
}

/// Waits until the log of a build has this line: a step runs before its command prints.
async fn log_has(stack: &Arc<Stack>, build: &str, line: &str) -> Result<()> {
    let has = async || stdout(stack, &["template", "logs", build]).await.ok()?.contains(line).then_some(());
    wait_until(&format!("{line:?} in the log of {build}"), BEGUN, has).await
}

pub(crate) async fn stdout(stack: &Arc<Stack>, args: &[&str]) -> Result<String> {
    let output = wrenn(stack, args, None).await?;
    ensure!(output.status.success(), "{args:?}: {}", stderr(&output));
    Ok(String::from_utf8(output.stdout)?)
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value[field].as_str().with_context(|| format!("no {field} in {value}"))
}

/// Every instruction is done, a second build takes all of it from the cache and says so, and a sandbox of it has the process that
/// was started, and its user, directory and environment.
pub(crate) async fn every_instruction_is_done_and_cached(stack: Arc<Stack>) -> Result<()> {
    let context = context(EVERY, &EVERY_FILES)?;
    let (code, first, told) = build(&stack, "e2e-every:first", context.path()).await?;
    ensure!(code == Some(0) && first["status"] == "succeeded" && first["version"] == 1, "{first} {told}");
    let steps = first["steps"].as_array().context("no steps")?;
    ensure!(steps.len() == 14 && steps.iter().all(|step| step["status"] == "succeeded"), "{first}");
    for line in [
        "[4/14] RUN echo \"as $(id -un): $GREETING\" | tee /who",
        "      not cached: ",
        "      as root: hello",
        "[4/14] done in ",
        "wrenn: e2e-every version 1 has the tag first in ",
    ] {
        ensure!(told.lines().any(|shown| shown.starts_with(line)), "{line:?} is not told:\n{told}");
    }

    let (code, second, told) = build(&stack, "e2e-every", context.path()).await?;
    ensure!(code == Some(0) && second["version"] == 2, "{second} {told}");
    let cached = second["steps"].as_array().context("no steps")?.iter();
    ensure!(cached.filter(|step| step["status"] == "cached").count() == 14, "{second}");
    for step in 1..=14 {
        let is_told = |line: &str| line.starts_with(&format!("[{step}/14] ")) && line.ends_with("  CACHED");
        ensure!(told.lines().any(is_told), "step {step} is not told as cached:\n{told}");
    }

    for template in ["e2e-every:first", "e2e-every"] {
        let id = stack.api.create(&json!({"template": template, "envs": {"MORE": "1"}})).await?;
        started_process_goes_on(&stack, &id).await?;
        let script = "cd /srv/app; cat /who made shell notes/NOTE deep/c; stat -c '%n %a %U %G' docs/*";
        let files = sh(&stack, &id, script).await?;
        let expected = "as root: hello\nhello world /srv/app app\nbash\nmode test\nc\
            docs/a.txt 640 app www-data\ndocs/b.txt 640 app www-data";
        ensure!(files == expected, "{template}: {files}");
        let absent = stack.api.exec(&id, &["ls", "/srv/app/README.md"]).await?;
        ensure!(absent["exit_code"] != 0, "{absent}");
        stack.api.remove(&id).await?;
    }
    versions_and_tags(&stack, "e2e-every").await
}

/// The process of `START` goes on from where the build left it, and commands have the context of the recipe.
async fn started_process_goes_on(stack: &Stack, id: &str) -> Result<()> {
    let processes = stack.api.get(&format!("/v1/sandboxes/{id}/processes")).await?.expect(200)?.json();
    let process = &processes["processes"][0];
    ensure!(
        process["tag"] == "start" && process["cmd"] == "python3" && process["user"] == "app",
        "{processes}"
    );
    let answer = stack.api.exec(id, &["python3", "check.py"]).await?;
    let expected = format!("hello world /srv/app app {}\n", process["pid"]);
    ensure!(answer["stdout"] == expected, "{expected}: {answer}");
    let ran =
        stack.api.exec(id, &["sh", "-c", "id -un; pwd; echo $MODE, $MESSAGE, $MORE, $GREETING"]).await?;
    ensure!(ran["stdout"] == "app\n/srv/app\ntest, hello world, 1,\n", "{ran}");
    Ok(())
}

/// Versions are listed, a tag goes back to an older one, and all are removed.
async fn versions_and_tags(stack: &Arc<Stack>, name: &str) -> Result<()> {
    let history = stdout(stack, &["template", "history", name]).await?;
    let rows: Vec<Vec<_>> = history.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    ensure!(rows.len() == 2 && rows[0][..3] == ["2", "latest", "snapshot"], "{history}");
    ensure!(rows[1][..3] == ["1", "first", "snapshot"], "{history}");
    let moved = stdout(stack, &["template", "tag", name, "1", "latest"]).await?;
    ensure!(moved == format!("{name}:latest\n"), "{moved}");
    let inspected: Value =
        serde_json::from_str(&stdout(stack, &["--json", "template", "inspect", name]).await?)?;
    ensure!(inspected["version"] == 1 && inspected["tags"] == json!(["first", "latest"]), "{inspected}");
    ensure!(inspected["user"] == "app" && inspected["workdir"] == "/srv/app", "{inspected}");
    ensure!(inspected["envs"]["MODE"] == "test" && inspected["memory_mb"] == 256, "{inspected}");
    let listed = stdout(stack, &["template", "ls"]).await?;
    let row = listed.lines().find(|row| row.starts_with(name)).context("not listed")?;
    ensure!(row.contains("first=1,latest=1") && row.contains("snapshot"), "{listed}");
    let builds = stdout(stack, &["template", "builds", "--template", name]).await?;
    ensure!(builds.matches("succeeded").count() == 2, "{builds}");

    ensure!(stdout(stack, &["template", "rm", name]).await? == format!("{name}\n"));
    stack.api.post("/v1/sandboxes", &json!({"template": name})).await?.expect_error(404, "not_found")?;
    let again = wrenn(stack, &["template", "rm", name], None).await?;
    ensure!(again.status.code() == Some(1) && stderr(&again).contains("not_found"), "{again:?}");
    Ok(())
}

/// Files are copied with their modes, without what is ignored, and a changed one is the reason why it is copied again.
pub(crate) async fn files_are_copied_and_a_changed_one_misses(stack: Arc<Stack>) -> Result<()> {
    let files = [
        ("tool", "#!/bin/sh\n"),
        ("deep/x", "one"),
        ("deep/y.log", ""),
        ("z.log", ""),
        (".wrennignore", "**/*.log\n!z.log\nWrennfile\n.wrennignore\n"),
    ];
    let recipe = "FROM minimal\nCOPY . /copied/\nRUN cp -a /copied/deep /made\nENV KEPT=yes\n";
    let context = context(recipe, &files)?;
    let at = |name: &str| context.path().join(name);
    fs::set_permissions(at("tool"), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(at("deep"), fs::Permissions::from_mode(0o700))?;
    fs::set_permissions(at("z.log"), fs::Permissions::from_mode(0o604))?;
    symlink("deep/x", at("link"))?;
    let (code, first, told) = build(&stack, "e2e-copies", context.path()).await?;
    ensure!(code == Some(0) && first["version"] == 1, "{first} {told}");
    fs::write(at("deep/x"), "two")?;
    let (code, second, told) = build(&stack, "e2e-copies", context.path()).await?;
    ensure!(code == Some(0) && second["version"] == 2, "{second} {told}");
    let miss = |step: usize| second["steps"][step - 1]["miss"].as_str().unwrap_or_default();
    ensure!(miss(2).contains("deep/x changed") && miss(3) == "an earlier step is not cached", "{second}");
    ensure!(told.lines().any(|line| line == format!("      not cached: {}", miss(2))), "{told}");

    // Without START its sandboxes choose their sizes.
    let id =
        stack.api.create(&json!({"template": "e2e-copies", "memory_mb": 300, "disk_size_mb": 2048})).await?;
    let script = "cd /copied; stat -c '%n %a %U' $(ls -A) | sort; ls -A deep; cat link /made/x";
    let found = sh(&stack, &id, script).await?;
    let expected = "deep 700 root\nlink 777 root\ntool 755 root\nz.log 604 root\nx\ntwotwo";
    ensure!(found == expected, "{found}");
    // What the recipe does not say is as in an image that says nothing.
    let ran = stack.api.exec(&id, &["sh", "-c", "id -un; pwd; echo $KEPT"]).await?;
    ensure!(ran["stdout"] == "root\n/\nyes\n", "{ran}");
    stack.api.remove(&id).await?;
    stdout(&stack, &["template", "rm", "e2e-copies"]).await.map(drop)
}

/// A secret is a file for one step and its user, is not shown in the log, and is nowhere afterwards: not in the next step, not in a
/// sandbox of the template, and not in what the host keeps of it.
pub(crate) async fn secrets_are_there_for_one_step(stack: Arc<Stack>) -> Result<()> {
    let random = |part: &str| format!("{part}-{}", wrenn_api::SandboxId::new());
    let (value, marker) = (random("secret"), random("marker"));
    let recipe = format!(
        "FROM minimal\nUSER app:web\n\
         RUN --secret=token,target=/tmp/token cat /run/secrets/token /tmp/token; \
         stat -c '%a %U %G %n' /run/secrets/token; id -ng; echo {marker} > /home/app/marker\n\
         RUN cat /tmp/token; ls -A /run/secrets; id -ng > /home/app/group\n"
    );
    let content = format!("{value}\n");
    let context = context(&recipe, &[("the-secret", content.as_str())])?;
    let begun = tempfile::NamedTempFile::new()?;
    let directory = context.path().display().to_string();
    let secret = format!("id=token,src={directory}/the-secret");
    let arguments = [&arguments("e2e-secret", &directory)[..], &["--secret", secret.as_str()]].concat();
    let output = wrenn(&stack, &arguments, None).await?;
    let (built, told) = (String::from_utf8(output.stdout.clone())?, stderr(&output));
    ensure!(output.status.success(), "{built} {told}");
    let id = text(&serde_json::from_str::<Value>(&built)?, "id")?.to_owned();
    let log = stdout(&stack, &["template", "logs", &id]).await?;
    for line in ["***", "400 app web /run/secrets/token", "web"] {
        ensure!(log.lines().any(|shown| shown.trim_start() == line), "{line:?}: {log}");
    }
    for text in [&built, &told, &log] {
        ensure!(!text.contains(&value), "{text}");
    }
    ensure!(log.contains("/tmp/token: No such file"), "{log}");

    let sandbox = stack.api.create(&json!({"template": "e2e-secret"})).await?;
    let ran = stack.api.exec(&sandbox, &["sh", "-c", "id -ng; cat ~/group ~/marker"]).await?;
    ensure!(ran["stdout"] == format!("web\nweb\n{marker}\n"), "{ran}");
    let found =
        sh(&stack, &sandbox, &format!("grep -rlsF {value} /run /tmp /root /home /etc || true")).await?;
    ensure!(found.is_empty(), "{found}");
    stack.api.remove(&sandbox).await?;
    let kept = |text: String| {
        let (agent, newer) = (stack.state_dir.join("agent"), begun.path().to_owned());
        tokio::task::spawn_blocking(move || {
            let mut find = std::process::Command::new("find");
            find.arg(agent).args(["-type", "f", "-newer"]).arg(newer);
            // Lines end with a zero: a hole would be one line, and as much memory.
            let output = find.args(["-exec", "grep", "-lszaF", &text, "{}", "+"]).output()?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        })
    };
    let image = kept(marker.clone()).await??;
    ensure!(!image.is_empty(), "what the step has left is not found, so no secret would be");
    // The sandboxes of the build are deleted when it has ended.
    let mut found = String::new();
    let is_nowhere = async || {
        found = kept(value.clone()).await.ok()?.ok()?;
        found.is_empty().then_some(())
    };
    let waited = wait_until("no file with the secret", BEGUN, is_nowhere).await;
    waited.with_context(|| format!("it is in {found}"))?;
    stdout(&stack, &["template", "rm", "e2e-secret"]).await.map(drop)
}

/// A step that fails is told with its line and its output, and its sandbox can be looked into.
pub(crate) async fn a_failing_step_is_told_and_looked_into(stack: Arc<Stack>) -> Result<()> {
    let recipe = "FROM minimal\nRUN echo left > /left\n\n# It fails.\nRUN echo to-stdout; echo to-stderr >&2; exit 3\n\
        RUN never\n";
    let context = context(recipe, &[])?;
    let (code, failed, told) = build(&stack, "e2e-fails", context.path()).await?;
    let id = text(&failed, "id")?.to_owned();
    ensure!(
        code == Some(1) && failed["status"] == "failed" && failed["version"].is_null(),
        "{failed} {told}"
    );
    ensure!(failed["error"]["code"] == "build_failed" && failed["error"]["step"] == 3, "{failed}");
    let step = &failed["steps"][2];
    ensure!(step["status"] == "failed" && step["exit_code"] == 3 && step["line"] == 5, "{failed}");
    ensure!(failed["steps"][3]["status"] == "pending", "{failed}");
    for part in [
        "[3/4] RUN echo to-stdout",
        "      to-stdout",
        "      to-stderr",
        "[3/4] failed with exit status 3",
        "Wrennfile:5\n  5 | RUN echo to-stdout",
        "(build_failed)",
        &format!("wrenn template debug {id}"),
    ] {
        ensure!(told.contains(part), "{part:?} is not told:\n{told}");
    }
    let log = stdout(&stack, &["template", "logs", &id, "--step", "3"]).await?;
    ensure!(log.contains("      to-stdout\n") && log.contains("      to-stderr\n"), "{log}");
    ensure!(!log.contains("/left"), "that is another step: {log}");

    let looked = wrenn(&stack, &["template", "debug", &id], Some("cat /left; id -un\nexit 7\n")).await?;
    let shown = String::from_utf8_lossy(&looked.stdout).into_owned();
    ensure!(looked.status.code() == Some(7), "{looked:?}");
    ensure!(["left\r\n", "root\r\n"].iter().all(|part| shown.contains(part)), "{shown:?}");
    let sandbox = text(&failed, "sandbox_id")?;
    let record = stack.api.get(&format!("/v1/sandboxes/{sandbox}")).await?.expect(200)?.json();
    ensure!(record["labels"]["wrenn.build"] == id, "{record}");
    stack.api.remove(sandbox).await?;
    let nothing = stack.api.post("/v1/sandboxes", &json!({"template": "e2e-fails"})).await?;
    nothing.expect_error(404, "not_found").map(drop)
}

/// An interrupted build and one that is cancelled end, and leave no sandbox.
pub(crate) async fn a_cancelled_build_leaves_nothing(stack: Arc<Stack>) -> Result<()> {
    let context = context("FROM minimal\nRUN echo begun; sleep 1000\n", &[])?;
    let child = start(&stack, "e2e-cancelled", context.path())?;
    let pid = Pid::from_child(&child);
    let begun = step_runs(&stack, "e2e-cancelled", 2).await;
    kill_process(pid, Signal::INT)?;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    let (begun, told) = (begun?, stderr(&output));
    ensure!(output.status.code() == Some(130) && told.contains("Cancelling the build"), "{output:?}");
    let build: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(build["status"] == "cancelled", "{build}");
    wait_status(&stack, text(&begun, "sandbox_id")?, &["stopped"], 60).await?;

    let directory = context.path().display().to_string();
    let detached = [&arguments("e2e-cancelled", &directory)[1..], &["--detach"]].concat();
    let id = stdout(&stack, &detached).await?.trim().to_owned();
    let begun = step_runs(&stack, "e2e-cancelled", 2).await?;
    ensure!(begun["id"] == id, "{begun}");
    log_has(&stack, &id, "      begun\n").await?;
    ensure!(stdout(&stack, &["template", "cancel", &id]).await?.trim() == id);
    // What follows it ends with it.
    stdout(&stack, &["template", "logs", &id, "--follow"]).await?;
    let build = stack.api.get(&format!("/v1/templates/builds/{id}")).await?.expect(200)?.json();
    ensure!(build["status"] == "cancelled" && build["version"].is_null(), "{build}");
    wait_status(&stack, text(&begun, "sandbox_id")?, &["stopped"], 60).await?;
    let again = wrenn(&stack, &["template", "cancel", &id], None).await?;
    ensure!(again.status.code() == Some(1), "{again:?}");
    let looked = wrenn(&stack, &["template", "debug", &id], None).await?;
    ensure!(stderr(&looked).contains("is cancelled"), "{looked:?}");
    Ok(())
}

/// What is wrong with a recipe is told with its lines, before anything is built.
pub(crate) async fn wrong_recipes_are_shown_where_they_are_wrong(stack: Arc<Stack>) -> Result<()> {
    for (recipe, parts) in [
        (
            "FROM minimal\nRUN true\nCOPY --mode=1 a b\nRNU x\n",
            &[
                "the recipe has 2 errors",
                "Wrennfile:3:6: COPY",
                "  3 | COPY --mode=1 a b\n    |      ^",
                "Wrennfile:4:1",
            ][..],
        ),
        ("FROM minimal\n\nCOPY missing /x\n", &["Wrennfile:3", "  3 | COPY missing /x", "invalid_request"]),
        ("FROM template:none\n", &["Wrennfile:1", "  1 | FROM template:none", "not_found"]),
        (
            "FROM minimal\nRUN --secret=key true\n",
            &["Wrennfile:2", "  2 | RUN --secret", "it needs the secret key", "invalid_request"],
        ),
    ] {
        let context = context(recipe, &[])?;
        let directory = context.path().display().to_string();
        let output =
            wrenn(&stack, &["template", "build", "e2e-wrong", "--context", &directory], None).await?;
        let told = stderr(&output);
        ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{recipe}: {output:?}");
        for part in parts {
            ensure!(told.contains(part), "{recipe}: {part:?} is not told:\n{told}");
        }
    }
    let builds = stack.api.get("/v1/templates/builds?template=e2e-wrong").await?.expect(200)?.json();
    ensure!(builds == json!([]), "{builds}");
    Ok(())
}

/// A build goes on after its control plane and then its agent was killed, each time from the last step that was done, and who follows
/// it sees it to its end.
pub(crate) async fn a_build_survives_its_worker_and_its_agent(stack: Arc<Stack>) -> Result<()> {
    let recipe = "FROM minimal\nRUN echo first; date +%s%N > /first\nRUN sleep 15; echo second\n";
    let context = context(recipe, &[])?;
    let child = start(&stack, "e2e-survives", context.path())?;
    let following = tokio::task::spawn_blocking(move || child.wait_with_output());
    step_runs(&stack, "e2e-survives", 3).await?;
    stack.kill_and_wait("server").await?;
    attempt_runs(&stack, "e2e-survives", 2, 3).await?;
    stack.kill_and_wait("agent").await?;
    let output = following.await??;
    let told = stderr(&output);
    let build: Value = serde_json::from_slice(&output.stdout).with_context(|| told.clone())?;
    ensure!(output.status.success() && build["status"] == "succeeded", "{build} {told}");
    // The second worker waits for the agent if that goes before it has begun a step.
    ensure!(matches!(build["attempt"].as_u64(), Some(2 | 3)), "{build}");
    ensure!(told.matches("      first\n").count() == 1, "a step was done or told twice:\n{told}");
    ensure!(told.contains("      second\n"), "{told}");
    stdout(&stack, &["template", "rm", "e2e-survives"]).await.map(drop)
}
