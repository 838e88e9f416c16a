// SPDX-License-Identifier: Apache-2.0
//! Pauses and snapshots for which the host's disk has too little room.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_testkit::{Reply, Setup, Stack, wait_until};

use super::{
    super::{
        hosts::quick_driver,
        support::{delete_wholly, end, pause, resume, sh, wait_exec, wait_status},
    },
    COUNTER, count,
    rounds::{DATABASE, START_WRITER, bring, writes_on},
};

/// Sizes in MiB of the file system of the state directory, and of the store in it.
const STATE_MB: u64 = 2048;
const STORE_MB: u64 = 1024;
/// Room in MiB that is left: more than the store's reserve, a quarter of it, so that a pause begins, and less than the
/// memory of the sandbox, so that it does not end.
const LEFT_MB: u64 = 280;
const HELD_MB: u64 = 330;

/// Keeps so much memory that it is not written to the room that is left. Prints its process id, and looks at the memory
/// when it is asked to.
const HOLDER: &str = "cat > /root/hold.py <<'END'
import os, time
pages = [os.urandom(4096) for _ in range(MEGABYTES)]
held = [page * 256 for page in pages]
open('/run/held', 'w').write('yes')
while True:
    if os.path.exists('/run/ask'):
        os.unlink('/run/ask')
        whole = all(piece == page * 256 for piece, page in zip(held, pages))
        open('/run/said.new', 'w').write('whole' if whole else 'another one')
        os.rename('/run/said.new', '/run/said')
    time.sleep(0.1)
END
setsid python3 /root/hold.py > /root/hold.log 2>&1 & echo $!";
const ASK: &str =
    "rm -f /run/said; touch /run/ask; while [ ! -e /run/said ]; do sleep 0.1; done; cat /run/said";

/// A file that takes room; dropping it gives the room back.
struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Fills the file system of this directory but for [`LEFT_MB`].
fn fill(dir: &Path) -> Result<Filler> {
    let stat = rustix::fs::statvfs(dir)?;
    let size = (stat.f_bavail * stat.f_frsize).checked_sub(LEFT_MB << 20).context("it is full already")?;
    let filler = Filler(dir.join("filler"));
    let done = Command::new("fallocate").args(["-l", &size.to_string()]).arg(&filler.0).output()?;
    ensure!(done.status.success(), "{} cannot be filled: {done:?}", dir.display());
    Ok(filler)
}

/// Lists what an operation that failed has left: captures, snapshots and their disks.
fn left(stack: &Stack, id: &str) -> Result<Vec<String>> {
    let agent = stack.state_dir.join("agent");
    let mut found = Vec::new();
    for dir in [
        agent.join("sandboxes").join(id).join("captures"),
        agent.join("sandboxes").join(id).join("run"),
        agent.join("volumes/snapshots"),
        agent.join("volumes/volumes"),
        agent.join("named_snapshots"),
    ] {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        found.extend(
            entries.map(|entry| Ok(entry?.path().display().to_string())).collect::<Result<Vec<_>>>()?,
        );
    }
    found.sort();
    Ok(found)
}

/// Sandboxes of the case: one with much memory, and another one on the same host.
struct Two {
    big: String,
    holder: String,
    counter: String,
    other: String,
    writer: String,
    rows: u64,
}

impl Two {
    async fn start(stack: &Stack) -> Result<Self> {
        let big = stack.api.create(&json!({"memory_mb": 512})).await?;
        let other = stack.api.create(&json!({"memory_mb": 256})).await?;
        bring(stack, &other, "database.py", DATABASE).await?;
        let writer = sh(stack, &other, START_WRITER).await?;
        let holder = sh(stack, &big, &HOLDER.replace("MEGABYTES", &HELD_MB.to_string())).await?;
        let counter = sh(stack, &big, COUNTER).await?;
        let held = async || sh(stack, &big, "cat /run/held").await.ok();
        wait_until("the memory to be full", Duration::from_secs(60), held).await?;
        let rows = writes_on(stack, &other, &writer, 0).await?;
        Ok(Self { big, holder, counter, other, writer, rows })
    }

    /// Fails unless both go on as they were.
    async fn go_on(&mut self, stack: &Stack) -> Result<()> {
        for id in [&self.big, &self.other] {
            let got = wait_status(stack, id, &["running"], 10).await?;
            ensure!(got["error"].is_null(), "{got}");
            wait_exec(stack, id, 30).await?;
        }
        let script = format!("kill -0 {} && kill -0 {}", self.holder, self.counter);
        sh(stack, &self.big, &script).await.context("its processes")?;
        let before = count(stack, &self.big).await?;
        let more = async || count(stack, &self.big).await.ok().filter(|now| *now > before);
        wait_until("the counter counts", Duration::from_secs(20), more).await?;
        let memory = sh(stack, &self.big, ASK).await?;
        ensure!(memory == "whole", "its memory is {memory}");
        self.rows =
            writes_on(stack, &self.other, &self.writer, self.rows).await.context("in the other sandbox")?;
        Ok(())
    }

    /// Fails unless a pause and a snapshot are refused, leave nothing, and change nothing for the sandboxes.
    async fn are_refused(&mut self, stack: &Stack) -> Result<()> {
        let before = left(stack, &self.big)?;
        for what in ["a pause", "a snapshot"] {
            let reply = self.ask(stack, what).await?;
            reply.expect_error(507, "insufficient_storage").with_context(|| what.to_owned())?;
            self.go_on(stack).await.with_context(|| format!("after {what}"))?;
            let now = left(stack, &self.big)?;
            ensure!(now == before, "{what} has left {now:#?} where {before:#?} was before");
        }
        let listed = stack.api.get("/v1/snapshots").await?.expect(200)?.json();
        ensure!(listed == json!([]), "{listed}");
        Ok(())
    }

    async fn ask(&self, stack: &Stack, what: &str) -> Result<Reply> {
        if what == "a pause" {
            return stack.api.post(&format!("/v1/sandboxes/{}/pause", self.big), &json!({})).await;
        }
        stack.api.post("/v1/snapshots", &json!({"sandbox_id": self.big, "name": "full"})).await
    }
}

async fn refused(stack: &Stack) -> Result<()> {
    let mut two = Two::start(stack).await?;
    for dir in ["agent/volumes", ""] {
        let filler = fill(&stack.state_dir.join(dir))?;
        let name = if dir.is_empty() { "the state directory" } else { "the store" };
        two.are_refused(stack).await.with_context(|| format!("with {name} full"))?;
        drop(filler);
    }
    pause(stack, &two.big).await.context("with room again")?;
    resume(stack, &two.big).await?;
    two.go_on(stack).await.context("after a pause with room")?;
    for id in [&two.big, &two.other] {
        delete_wholly(stack, id).await?;
    }
    Ok(())
}

/// A pause or a snapshot during which the host's disk becomes full is refused, leaves nothing, and all sandboxes go on;
/// with room again a pause succeeds.
pub(crate) async fn a_disk_that_becomes_full_is_told_and_all_goes_on() -> Result<()> {
    let mut env = quick_driver();
    env.push(("WRENN_AGENT_STORE_SIZE_MB".to_owned(), STORE_MB.to_string()));
    // Its memory would take the room.
    env.push(("WRENN_AGENT_TEMPLATE_SNAPSHOTS_MB".to_owned(), "0".to_owned()));
    let setup = Setup { env, state_mb: Some(STATE_MB), ..Setup::default() };
    let stack = Stack::start_with(setup).await?;
    let result = refused(&stack).await;
    end(stack, result).await
}
