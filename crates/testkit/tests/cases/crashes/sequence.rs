// SPDX-License-Identifier: Apache-2.0
//! Random operations on a few sandboxes, while agent and control plane are killed before and during them, compared with a
//! model.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use wrenn_testkit::{Reply, Stack, short_or_long, wait_until};

use super::{
    super::{
        faults::{POINTS, kill_at},
        pause::{COUNTER, count},
        support::{
            delete_wholly, exported, listed, nothing_remains, patiently, record, sh, wait_exec, wait_status,
        },
    },
    dice::{Dice, seed},
    model::{Content, Counter, Model, Sandbox, Snapshot, Status, Step},
};

const PARTS: [&str; 2] = ["agent", "server"];
/// Statuses on which a user can act, and how many seconds it may take to reach one after a crash.
const OPERABLE: [&str; 3] = ["running", "paused", "error"];
const SETTLE_SEC: u64 = 60;
/// Maximum delay in milliseconds of a crash during an operation: most take less.
const DELAY_MS: u64 = 1500;

/// What disturbs a step.
#[derive(Debug, Clone, Copy)]
enum Crash {
    None,
    /// This process is killed before it.
    Before(&'static str),
    /// A process is killed when it reaches this point.
    At(&'static str),
    /// This process is killed so many milliseconds after its begin.
    After(&'static str, u64),
}

impl Crash {
    /// Whether the step must succeed all the same.
    fn leaves_it(self) -> bool {
        matches!(self, Self::None | Self::Before(_))
    }
}

struct Run<'a> {
    stack: &'a Stack,
    dice: Dice,
    model: Model,
    /// Number of names that were given.
    named: u32,
    /// Whether the last create was disturbed: a host with several failed ones gets no more.
    create_failed: bool,
}

/// Operations in any order, and crashes at any time: each sandbox soon has a status on which its user can act, keeps its
/// files and, but for a boot, its processes, and can be deleted; it is counted right, and nothing is left at the end.
pub(crate) async fn operations_in_any_order(stack: Arc<Stack>) -> Result<()> {
    let seed = seed()?;
    println!("  operations with SEED={seed}");
    let (model, dice) = (Model::default(), Dice::new(seed));
    let mut run = Run { stack: &stack, dice, model, named: 0, create_failed: false };
    let mut history = Vec::new();
    for number in 0..short_or_long(16, 100) {
        let step = run.model.choose(&mut run.dice);
        let crash = run.choose_crash(step);
        history.push(format!("{number}: {step:?}, {crash:?}"));
        let done = run.step(step, crash).await;
        done.with_context(|| {
            let before = history.join("\n");
            format!(
                "SEED={seed} repeats these operations, after the last of which it failed:\n{before}\n{:#?}",
                run.model
            )
        })?;
    }
    run.counts_agree().await.with_context(|| format!("SEED={seed}:\n{}", history.join("\n")))?;
    run.end().await.with_context(|| format!("at the end of SEED={seed}:\n{}", history.join("\n")))
}

/// Status of a sandbox with this record.
fn status(record: &Value) -> Status {
    match (record["status"].as_str(), record["error"].is_null()) {
        (Some("running"), _) => Status::Running,
        (Some("paused"), true) => Status::Paused,
        _ => Status::Lost,
    }
}

impl Run<'_> {
    fn choose_crash(&mut self, step: Step) -> Crash {
        let part = *self.dice.one_of(&PARTS);
        let points: Vec<_> = POINTS.lines().filter(|point| step.reaches(point)).collect();
        let kind = self.dice.below(10);
        let (point, delay) = (self.dice.below(points.len().max(1) as u64), self.dice.below(DELAY_MS));
        let undisturbed = self.model.is_idle(step) || step.creates() && self.create_failed;
        match kind {
            0..=3 => Crash::None,
            4..=5 => Crash::Before(part),
            _ if undisturbed => Crash::None,
            6..=7 if !points.is_empty() => Crash::At(points[point as usize]),
            _ => Crash::After(part, delay),
        }
    }

    /// Does a step, and checks everything afterwards.
    async fn step(&mut self, step: Step, crash: Crash) -> Result<()> {
        if step.creates() {
            self.create_failed = !crash.leaves_it();
        }
        match step {
            Step::Create => self.create(None, crash).await,
            Step::Clone(index) => self.create(Some(index), crash).await,
            Step::Write(index) => self.write(index, crash).await,
            Step::Pause(index) => self.change(index, "pause", &json!({}), Status::Paused, crash).await,
            Step::Resume(index) => self.change(index, "resume", &json!({}), Status::Running, crash).await,
            Step::Boot(index) => self.boot(index, crash).await,
            Step::Snapshot(index) => self.snapshot(index, crash).await,
            Step::Delete(index) => self.delete(index, crash).await,
            Step::DeleteSnapshot(index) => self.delete_snapshot(index, crash).await,
        }?;
        self.delete_strays().await?;
        for index in 0..self.model.sandboxes.len() {
            self.check(index).await.with_context(|| format!("sandbox {index}"))?;
        }
        Ok(())
    }

    /// Sends a request, disturbed by a crash; returns its answer if that is a success. It has to be one unless the crash
    /// was during the operation.
    async fn ask(
        &self,
        request: impl AsyncFn() -> Result<Reply>,
        success: u16,
        crash: Crash,
    ) -> Result<Option<Reply>> {
        let stack = self.stack;
        let answer = match crash {
            Crash::None => patiently(&request).await,
            Crash::Before(part) => {
                stack.kill_and_wait(part).await?;
                patiently(&request).await
            }
            Crash::At(point) => {
                let mut answer = None;
                kill_at(stack, point, async { answer = Some(request().await) }).await?;
                answer.context("no request")?
            }
            Crash::After(part, delay) => {
                let old = stack.child(part)?;
                let kill = async {
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                    kill_process(old, Signal::KILL)?;
                    stack.restarted(part, old).await
                };
                let (answer, killed) = tokio::join!(request(), kill);
                killed?;
                stack.wait_healthy().await?;
                answer
            }
        };
        match answer {
            Ok(reply) if reply.status == success => Ok(Some(reply)),
            _ if !crash.leaves_it() => Ok(None),
            Ok(reply) => reply.expect(success).map(Some),
            Err(error) => Err(error),
        }
    }

    async fn create(&mut self, snapshot: Option<usize>, crash: Crash) -> Result<()> {
        let from = snapshot.map(|index| &self.model.snapshots[index]);
        let (body, content) = match from {
            Some(Snapshot { name, content }) => (json!({"template": name}), content.clone()),
            None => (json!({"memory_mb": 256}), Content::default()),
        };
        let made = self.ask(async || self.stack.api.post("/v1/sandboxes", &body).await, 201, crash).await?;
        if let Some(reply) = made {
            let id = reply.json()["id"].as_str().context("no id")?.to_owned();
            self.model.sandboxes.push(Sandbox { id, status: Status::Running, content });
        }
        Ok(())
    }

    async fn write(&mut self, index: usize, crash: Crash) -> Result<()> {
        self.named += 1;
        let (name, content) =
            (format!("file{}", self.named), format!("content {}", self.dice.below(u64::MAX)));
        let script = format!("mkdir -p /root/files && echo '{content}' > /root/files/{name} && sync");
        let sandbox = &self.model.sandboxes[index];
        let (path, body) = (
            format!("/v1/sandboxes/{}/exec", sandbox.id),
            json!({"cmd": "sh", "args": ["-c", script], "user": "root"}),
        );
        let ran = self.ask(async || self.stack.api.post(&path, &body).await, 200, crash).await?;
        if let Some(reply) = ran {
            ensure!(reply.json()["exit_code"] == 0, "{}", reply.json());
            self.model.sandboxes[index].content.files.insert(name, content);
        }
        Ok(())
    }

    /// Pauses or resumes, after which the sandbox has the status `after`, or is as it was if a crash prevented that.
    async fn change(
        &mut self,
        index: usize,
        verb: &str,
        body: &Value,
        after: Status,
        crash: Crash,
    ) -> Result<()> {
        let Sandbox { id, status: before, .. } = &self.model.sandboxes[index];
        let path = format!("/v1/sandboxes/{id}/{verb}");
        let done = self.ask(async || self.stack.api.post(&path, body).await, 200, crash).await?.is_some();
        let record = wait_status(self.stack, id, &OPERABLE, SETTLE_SEC).await?;
        let now = status(&record);
        ensure!(now == after || !done && now == *before, "{verb}: {record}");
        self.model.sandboxes[index].status = now;
        Ok(())
    }

    /// Boots a paused sandbox from its disk. If a crash prevents that, its memory may be gone all the same.
    async fn boot(&mut self, index: usize, crash: Crash) -> Result<()> {
        let Sandbox { id, .. } = &self.model.sandboxes[index];
        let (path, body) = (format!("/v1/sandboxes/{id}/resume"), json!({"memory": false}));
        let done = self.ask(async || self.stack.api.post(&path, &body).await, 200, crash).await?.is_some();
        let record = wait_status(self.stack, id, &OPERABLE, SETTLE_SEC).await?;
        let sandbox = &mut self.model.sandboxes[index];
        let now = status(&record);
        ensure!(now == Status::Running || !done, "a boot: {record}");
        ensure!(
            now != Status::Paused || sandbox.status == Status::Paused,
            "its lost memory is back: {record}"
        );
        sandbox.status = now;
        if now != Status::Paused {
            sandbox.content.counter = None;
        }
        Ok(())
    }

    async fn snapshot(&mut self, index: usize, crash: Crash) -> Result<()> {
        self.named += 1;
        let name = format!("any-{}", self.named);
        let Sandbox { id, content, .. } = &self.model.sandboxes[index];
        let body = json!({"sandbox_id": id, "name": name});
        let made = self.ask(async || self.stack.api.post("/v1/snapshots", &body).await, 201, crash).await?;
        let there = self.settled_snapshots().await?.contains(&name);
        ensure!(there || made.is_none(), "snapshot {name} was made and is not there");
        if there {
            let content = content.clone();
            self.model.snapshots.push(Snapshot { name, content });
        }
        Ok(())
    }

    async fn delete_snapshot(&mut self, index: usize, crash: Crash) -> Result<()> {
        let name = self.model.snapshots[index].name.clone();
        let path = format!("/v1/snapshots/{name}");
        let gone = self.ask(async || self.stack.api.delete(&path).await, 204, crash).await?;
        let there = self.settled_snapshots().await?.contains(&name);
        ensure!(!there || gone.is_none(), "snapshot {name} was deleted and is there");
        if !there {
            self.model.snapshots.remove(index);
        }
        Ok(())
    }

    /// Names of the snapshots, as soon as none is being made or deleted.
    async fn settled_snapshots(&self) -> Result<Vec<String>> {
        let settled = async || {
            let unfinished = self.stack.sql("SELECT count(*) FROM snapshots WHERE status <> 'ready'").ok()?;
            (unfinished == "0").then_some(())
        };
        wait_until("the end of all snapshots", Duration::from_secs(SETTLE_SEC), settled).await?;
        let listed = self.stack.api.get("/v1/snapshots").await?.expect(200)?.json();
        let names = listed.as_array().context("no list")?.iter();
        Ok(names.filter_map(|snapshot| snapshot["name"].as_str()).map(str::to_owned).collect())
    }

    async fn delete(&mut self, index: usize, crash: Crash) -> Result<()> {
        let Sandbox { id, .. } = self.model.sandboxes.remove(index);
        let path = format!("/v1/sandboxes/{id}");
        self.ask(async || self.stack.api.delete(&path).await, 204, crash).await?;
        // A delete that was marked has to be finished by itself; another one changes nothing.
        let last = record(self.stack, &id).await.context("no record")?;
        if ["stopping", "stopped"].contains(&last["status"].as_str().unwrap_or_default()) {
            wait_status(self.stack, &id, &["stopped"], SETTLE_SEC).await?;
        }
        delete_wholly(self.stack, &id).await
    }

    /// Deletes what creates have left whose answers were lost. It has a status on which a user can act.
    async fn delete_strays(&self) -> Result<()> {
        for id in listed(self.stack).await? {
            if self.model.sandboxes.iter().any(|sandbox| sandbox.id == id) {
                continue;
            }
            let found = wait_status(self.stack, &id, &["running", "error", "stopped"], SETTLE_SEC).await?;
            if found["status"] == "running" {
                wait_exec(self.stack, &id, SETTLE_SEC).await?;
            }
            delete_wholly(self.stack, &id).await?;
        }
        Ok(())
    }

    /// Fails unless a sandbox is as it has to be. Starts its counter if it has none.
    async fn check(&mut self, index: usize) -> Result<()> {
        let stack = self.stack;
        let Sandbox { id, status: expected, content } = &mut self.model.sandboxes[index];
        let record = wait_status(stack, id, &OPERABLE, SETTLE_SEC).await?;
        ensure!(status(&record) == *expected, "it is not {expected:?}: {record}");
        if *expected != Status::Running {
            return Ok(());
        }
        wait_exec(stack, id, SETTLE_SEC).await?;
        has_files(stack, id, &content.files).await?;
        content.counter = Some(match content.counter.take() {
            Some(counter) => counts_on(stack, id, counter).await?,
            None => Counter { pid: sh(stack, id, COUNTER).await?, at: count(stack, id).await? },
        });
        Ok(())
    }

    /// Fails unless the list, the metrics and the statistics of a new server soon have the same numbers of sandboxes.
    async fn counts_agree(&self) -> Result<()> {
        self.stack.kill_and_wait("server").await?;
        let mut last = String::new();
        let agree = async || {
            let (listed, exported, running) = match counts(self.stack).await {
                Ok(counts) => counts,
                Err(error) => {
                    last = format!("{error:#}");
                    return None;
                }
            };
            last =
                format!("listed: {listed:?}, exported: {exported:?}, running in the statistics: {running}");
            let of_model = self.model.sandboxes.len() as u64 == listed.values().sum::<u64>();
            let same = listed == exported && running == listed.get("running").copied().unwrap_or_default();
            (of_model && same).then_some(())
        };
        let agreed = wait_until("the same numbers everywhere", Duration::from_secs(SETTLE_SEC), agree).await;
        agreed.with_context(|| format!("of {} sandboxes: {last}", self.model.sandboxes.len()))
    }

    /// Deletes everything; nothing is left.
    async fn end(mut self) -> Result<()> {
        while !self.model.sandboxes.is_empty() {
            self.delete(0, Crash::None).await?;
        }
        while !self.model.snapshots.is_empty() {
            self.delete_snapshot(0, Crash::None).await?;
        }
        nothing_remains(self.stack, "snapshot.").await?;
        let records = self.stack.state_dir.join("agent/named_snapshots");
        let left: Vec<_> = fs::read_dir(records)?.flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "records of snapshots are left: {left:?}");
        Ok(())
    }
}

/// Numbers of sandboxes by status in the list and in the metrics, and of those that run in the statistics.
async fn counts(stack: &Stack) -> Result<(BTreeMap<String, u64>, BTreeMap<String, u64>, u64)> {
    let list = stack.api.get("/v1/sandboxes?limit=100").await?.expect(200)?.json();
    let mut listed = BTreeMap::new();
    for sandbox in list.as_array().context("no list")? {
        let status = sandbox["status"].as_str().context("no status")?;
        *listed.entry(status.to_owned()).or_default() += 1;
    }
    let text = exported(stack).await?;
    let mut exported = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("wrenn_sandboxes{status=\"")) {
        let (status, count) = line.split_once("\"} ").with_context(|| line.to_owned())?;
        exported.insert(status.to_owned(), count.parse::<f64>()? as u64);
    }
    // Those of which there are none are in the metrics alone.
    exported.retain(|_, count| *count > 0);
    let stats = stack.api.get("/v1/stats").await?.expect(200)?.json();
    Ok((listed, exported, stats["current"]["running"].as_u64().context("no statistics")?))
}

/// Fails unless a sandbox has these files; it may have others, of writes whose answers were lost.
async fn has_files(stack: &Stack, id: &str, files: &BTreeMap<String, String>) -> Result<()> {
    let text = sh(stack, id, "mkdir -p /root/files && cd /root/files && grep -r . . || true").await?;
    let found: BTreeMap<_, _> =
        text.lines().filter_map(|line| line.strip_prefix("./")?.split_once(':')).collect();
    for (name, content) in files {
        let now = found.get(name.as_str());
        ensure!(
            now == Some(&content.as_str()),
            "file {name} is {now:?} and has to be {content:?}; there are {found:?}"
        );
    }
    Ok(())
}

/// Fails unless a sandbox's counter is the same process, has not fallen back, and counts on.
async fn counts_on(stack: &Stack, id: &str, Counter { pid, at }: Counter) -> Result<Counter> {
    let now =
        sh(stack, id, "kill -0 $(cat /tmp/pid) && cat /tmp/pid").await.context("the counter is gone")?;
    ensure!(now == pid, "the counter is process {now}, and was {pid}");
    let number = count(stack, id).await?;
    ensure!(number >= at, "the counter is at {number}, and was at {at}");
    let more = async || count(stack, id).await.ok().filter(|now| *now > number);
    let at = wait_until("the counter counts", Duration::from_secs(20), more).await?;
    Ok(Counter { pid, at })
}
