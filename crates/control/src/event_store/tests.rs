// SPDX-License-Identifier: Apache-2.0
//! Tests with a real Redis.
#![allow(clippy::unwrap_used)]

use std::{
    process::{Child, Command, Stdio},
    time::Instant,
};

use wrenn_api::{Caused, Sandbox};

use super::*;

/// Time limit of the start of Redis.
const STARTED: Duration = Duration::from_secs(30);

/// A Redis, which ends when this is dropped.
pub(crate) struct Redis {
    process: Child,
    dir: tempfile::TempDir,
}

impl Redis {
    /// Starts one, and returns a store in it.
    pub(crate) async fn start() -> (Self, EventStore) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("redis.sock");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let redis = Self { process, dir };
        let events = EventStore::new(&format!("unix://{}", socket.display())).unwrap();
        // The socket is there before Redis listens on it.
        let begun = Instant::now();
        while let Err(error) = events.ping().await {
            assert!(begun.elapsed() < STARTED, "redis-server does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (redis, events)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = &self.dir;
    }
}

fn sandbox(template: &str) -> Sandbox {
    let json = serde_json::json!({
        "id": "sb03halx8fdhw2fu3txwbd0kdw0", "status": "running", "template": template, "vcpus": 1, "memory_mb": 512,
        "disk_size_mb": 5120, "created_at": "2026-01-31T09:30:00Z", "last_updated": "2026-01-31T09:30:00Z",
    });
    serde_json::from_value(json).unwrap()
}

/// Appends events of sandboxes whose templates are numbers.
async fn append(events: &EventStore, team: Uuid, count: usize) {
    for number in 0..count {
        let event =
            serde_json::to_value(Event::changed(sandbox(&number.to_string()), Caused::default())).unwrap();
        events.append(team, &event).await.unwrap();
    }
}

/// Returns the template of an event's sandbox, or `resync`.
fn label(stored: &Stored) -> String {
    match &stored.event {
        Event::Sandbox(event) => event.sandbox.template.clone(),
        other => other.kind().to_string(),
    }
}

async fn after(events: &EventStore, team: Uuid, id: EventId) -> Vec<(EventId, String)> {
    from(events, team, Start::After(id)).await
}

async fn from(events: &EventStore, team: Uuid, start: Start) -> Vec<(EventId, String)> {
    let mut reader = events.reader(team, start).await.unwrap();
    reader.next().await.unwrap().iter().map(|event| (event.id, label(event))).collect()
}

fn labels(events: &[(EventId, String)]) -> Vec<&str> {
    events.iter().map(|(_, label)| label.as_str()).collect()
}

#[tokio::test]
async fn a_reader_that_may_have_missed_events_is_told_to_look_again() {
    let (_redis, events) = Redis::start().await;
    let team = Uuid::now_v7();
    append(&events, team, 4).await;
    let beginning = EventId::default();
    let all = after(&events, team, beginning).await;
    assert_eq!(labels(&all), ["0", "1", "2", "3"]);
    assert_eq!(labels(&after(&events, team, all[1].0).await), ["2", "3"]);

    // An id in the future, as after a loss of Redis, or from another server.
    let future = EventId { time: all[3].0.time + 31_536_000_000, sequence: 0 };
    assert_eq!(after(&events, team, future).await, [(all[3].0, "resync".to_owned())]);
    let mut reader = events.reader(team, Start::After(future)).await.unwrap();
    reader.next().await.unwrap();
    append(&events, team, 1).await;
    assert_eq!(label(&reader.next().await.unwrap()[0]), "0", "it goes on with what is new");

    // An id older than all stored events.
    let mut connection = events.shared().await.unwrap();
    let trimmed: u64 = redis::cmd("XTRIM")
        .arg(stream_of(team))
        .arg("MAXLEN")
        .arg(2)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(trimmed, 3);
    assert_eq!(labels(&after(&events, team, all[1].0).await), ["resync"]);
    assert_eq!(labels(&after(&events, team, beginning).await), ["3", "0"], "all that is kept");
    assert_eq!(labels(&after(&events, team, all[3].0).await), ["0"]);

    // An event of a newer server.
    let newer = serde_json::json!({"type": "host.joined", "at": "2026-01-31T09:30:00Z"});
    events.append(team, &newer).await.unwrap();
    assert_eq!(labels(&after(&events, team, all[3].0).await), ["0", "resync"]);

    // Redis has lost all events, and has new ones: what came in between is nowhere.
    let _: u64 = redis::cmd("DEL").arg(stream_of(team)).query_async(&mut connection).await.unwrap();
    append(&events, team, 1).await;
    assert_eq!(labels(&after(&events, team, all[3].0).await), ["resync"]);

    // No event is stored.
    assert_eq!(labels(&after(&events, Uuid::now_v7(), all[0].0).await), ["resync"]);
}

#[tokio::test]
async fn a_reader_begins_at_a_time() {
    let (_redis, events) = Redis::start().await;
    let (team, begin) = (Uuid::now_v7(), Utc::now() - chrono::TimeDelta::minutes(1));
    append(&events, team, 3).await;
    let since = async |time| from(&events, team, Start::Since(time)).await;
    let all = since(begin).await;
    assert_eq!(labels(&all), ["0", "1", "2"]);
    let time = |id: EventId| DateTime::from_timestamp_millis(id.time as i64).unwrap();
    // The first event of its millisecond is one of them.
    let first = all.iter().position(|(id, _)| id.time == all[2].0.time).unwrap();
    assert_eq!(since(time(all[2].0)).await, all[first..]);

    // Later than all: only what comes is told, without a `resync`.
    let mut reader =
        events.reader(team, Start::Since(Utc::now() + chrono::TimeDelta::hours(1))).await.unwrap();
    append(&events, team, 1).await;
    assert_eq!(label(&reader.next().await.unwrap()[0]), "0");

    // What was trimmed is told, and then comes what is kept.
    let mut connection = events.shared().await.unwrap();
    let mut trim = redis::cmd("XTRIM");
    trim.arg(stream_of(team)).arg("MAXLEN").arg(2).exec_async(&mut connection).await.unwrap();
    let mut reader = events.reader(team, Start::Since(begin)).await.unwrap();
    assert_eq!(label(&reader.next().await.unwrap()[0]), "resync");
    let rest: Vec<_> = reader.next().await.unwrap().iter().map(label).collect();
    assert_eq!(rest, ["2", "0"]);
}

/// Returns how many connections Redis has.
async fn connections(events: &EventStore) -> usize {
    let mut connection = events.shared().await.unwrap();
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await.unwrap();
    list.lines().count()
}

#[tokio::test]
async fn readers_of_a_team_wait_on_one_connection_and_end_with_it() {
    let (mut redis, events) = Redis::start().await;
    let teams = [Uuid::now_v7(), Uuid::now_v7()];
    let before = connections(&events).await;
    let readers = (0..20).map(|number| events.reader(teams[number % 2], Start::New));
    let mut readers = futures::future::try_join_all(readers).await.unwrap();
    assert_eq!(connections(&events).await, before + 2, "one for each team");
    for number in 0..3 {
        append(&events, teams[0], 1).await;
        for reader in readers.iter_mut().step_by(2) {
            assert_eq!(reader.next().await.unwrap().len(), 1, "event {number}");
        }
    }
    let of_other_team = tokio::time::timeout(Duration::from_millis(50), readers[1].next()).await;
    assert!(of_other_team.is_err(), "it got {of_other_team:?}");

    // The last one of a team ends it, and the next one begins another.
    readers.retain(|reader| reader.stream == stream_of(teams[0]));
    while connections(&events).await > before + 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut reader = events.reader(teams[1], Start::New).await.unwrap();
    append(&events, teams[1], 1).await;
    assert_eq!(reader.next().await.unwrap().len(), 1);

    redis.process.kill().unwrap();
    redis.process.wait().unwrap();
    for reader in &mut readers {
        assert!(reader.next().await.is_err(), "it goes on without Redis");
    }
    assert!(events.reader(teams[0], Start::New).await.is_err());
}

#[test]
fn ids_of_events_are_two_numbers() {
    let id = |text: &str| text.parse::<EventId>();
    assert_eq!(id("1700000000000-5"), Ok(EventId { time: 1_700_000_000_000, sequence: 5 }));
    assert_eq!(id("5").map(|id| id.to_string()), Ok("5-0".to_owned()));
    for wrong in ["", "$", "1-", "-1", "+1", "1-+1", "99999999999999999999-1", "1-2-3"] {
        assert_eq!(id(wrong), Err(()), "{wrong}");
    }
}
