// SPDX-License-Identifier: Apache-2.0
//! Time of a pause over the API of a guest that changed a certain amount of memory, compared with writing as much by
//! hand to the same file system, and in a large sandbox compared with a small one.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use wrenn_testkit::Stack;

use crate::row::Row;

const ROUNDS: usize = 20;
/// Rounds that are not counted: the first pause also writes what changed since the boot.
const WARM: usize = 2;
/// Amount of changed memory, the same as in [`WRITER`].
const CHANGED: usize = 64 << 20;
/// Memory of the two sandboxes.
const SMALL_MB: u32 = 256;
const LARGE_MB: u32 = 4096;

/// Starts a process that changes each page of 64 MiB of random bytes whenever `/tmp/go` appears, and then removes it.
const WRITER: &str = "cat > /tmp/writer.py <<'END'
import os, time
memory, number = bytearray(64 << 20), 0
for at in range(0, len(memory), 1 << 20):
    memory[at:at + (1 << 20)] = os.urandom(1 << 20)
while True:
    while not os.path.exists('/tmp/go'):
        time.sleep(0.02)
    number += 1
    for at in range(0, len(memory), 4096):
        memory[at:at + 8] = number.to_bytes(8, 'big')
    os.remove('/tmp/go')
END
setsid python3 /tmp/writer.py > /tmp/writer.log 2>&1 &";
/// Has it change them once.
const CHANGE: &str = "touch /tmp/go; while [ -e /tmp/go ]; do sleep 0.05; done";

/// Sandbox with that process.
struct Writer<'a> {
    stack: &'a Stack,
    id: String,
}

impl<'a> Writer<'a> {
    async fn create(stack: &'a Stack, memory_mb: u32) -> Result<Self> {
        let id = stack.api.create(&json!({ "memory_mb": memory_mb })).await?;
        let writer = Self { stack, id };
        writer.run(WRITER).await?;
        Ok(writer)
    }

    async fn run(&self, script: &str) -> Result<()> {
        let ran = self.stack.api.exec(&self.id, &["sh", "-c", script]).await?;
        ensure!(ran["exit_code"] == 0, "{ran}");
        Ok(())
    }

    /// Returns the time of a pause after the memory was changed.
    async fn pause(&self) -> Result<Duration> {
        resume(self.stack, &self.id).await?;
        self.run(CHANGE).await?;
        // What others have not written yet is none of its work.
        rustix::fs::sync();
        let begin = Instant::now();
        pause(self.stack, &self.id).await?;
        Ok(begin.elapsed())
    }
}

async fn change(stack: &Stack, id: &str, verb: &str) -> Result<()> {
    stack.api.post(&format!("/v1/sandboxes/{id}/{verb}"), &json!({})).await?.expect(200).map(drop)
}

/// Pauses a sandbox and waits until it is paused.
pub(crate) async fn pause(stack: &Stack, id: &str) -> Result<()> {
    change(stack, id, "pause").await
}

/// Resumes a sandbox and waits until it runs; does nothing if it runs.
pub(crate) async fn resume(stack: &Stack, id: &str) -> Result<()> {
    change(stack, id, "resume").await
}

/// Returns the time until this content is in a new file in `dir` and on the disk.
fn written(dir: &Path, content: &[u8]) -> Result<Duration> {
    let path = dir.join("bench");
    rustix::fs::sync();
    let begin = Instant::now();
    let mut file = File::create_new(&path)?;
    file.write_all(content)?;
    file.sync_all()?;
    let took = begin.elapsed();
    fs::remove_file(path)?;
    Ok(took)
}

fn random() -> Result<Vec<u8>> {
    let mut content = vec![0; CHANGED];
    File::open("/dev/urandom")?.read_exact(&mut content)?;
    Ok(content)
}

/// Measures all three alternately; one sandbox at a time runs.
pub(crate) async fn against_writing(stack: &Stack) -> Result<Vec<Row>> {
    let store = stack.state_dir.join("agent/volumes");
    let (mut small, mut large, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    let content = random()?;
    let sandboxes = [Writer::create(stack, SMALL_MB).await?, Writer::create(stack, LARGE_MB).await?];
    for round in 0..ROUNDS + WARM {
        let took = [sandboxes[0].pause().await?, sandboxes[1].pause().await?, written(&store, &content)?];
        if round >= WARM {
            for (times, took) in [&mut small, &mut large, &mut floor].into_iter().zip(took) {
                times.push(took);
            }
        }
    }
    for sandbox in sandboxes {
        stack.api.remove(&sandbox.id).await?;
    }
    Ok(vec![
        Row::ratio("pause with 64 MiB changed ÷ writing 64 MiB with fsync", &small, &floor, 1.5),
        Row::ratio("that pause in a sandbox of 4 GiB ÷ of 256 MiB", &large, &small, 1.1),
    ])
}
