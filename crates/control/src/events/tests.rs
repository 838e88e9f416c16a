// SPDX-License-Identifier: Apache-2.0
//! Tests with a real Redis.
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};

use super::*;

struct Redis {
    process: Child,
    dir: tempfile::TempDir,
}

impl Redis {
    async fn start() -> (Self, Events) {
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
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let events = Events::new(&format!("unix://{}", socket.display())).unwrap();
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

async fn append(events: &Events, team: Uuid, count: usize) {
    for number in 0..count {
        let event = serde_json::json!({ "type": format!("sandbox.{number}") });
        events.append(team, &event).await.unwrap();
    }
}

async fn after(events: &Events, team: Uuid, id: EventId) -> Vec<(EventId, String)> {
    let mut reader = events.reader(team, Some(id)).await.unwrap();
    reader.next().await.unwrap().iter().map(|event| (event.id, event.kind())).collect()
}

fn kinds(events: &[(EventId, String)]) -> Vec<&str> {
    events.iter().map(|(_, kind)| kind.as_str()).collect()
}

#[tokio::test]
async fn a_reader_that_may_have_missed_events_is_told_to_look_again() {
    let (_redis, events) = Redis::start().await;
    let team = Uuid::now_v7();
    append(&events, team, 4).await;
    let beginning = EventId::default();
    let all = after(&events, team, beginning).await;
    assert_eq!(kinds(&all), ["sandbox.0", "sandbox.1", "sandbox.2", "sandbox.3"]);
    assert_eq!(kinds(&after(&events, team, all[1].0).await), ["sandbox.2", "sandbox.3"]);

    // An id in the future, as after a loss of Redis, or from another server.
    let future = EventId { time: all[3].0.time + 31_536_000_000, sequence: 0 };
    assert_eq!(after(&events, team, future).await, [(all[3].0, "resync".to_owned())]);
    let mut reader = events.reader(team, Some(future)).await.unwrap();
    reader.next().await.unwrap();
    append(&events, team, 1).await;
    assert_eq!(reader.next().await.unwrap()[0].kind(), "sandbox.0", "it goes on with what is new");

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
    assert_eq!(kinds(&after(&events, team, all[1].0).await), ["resync"]);
    assert_eq!(kinds(&after(&events, team, beginning).await), ["sandbox.3", "sandbox.0"], "all that is kept");
    assert_eq!(kinds(&after(&events, team, all[3].0).await), ["sandbox.0"]);

    // No event is stored.
    assert_eq!(kinds(&after(&events, Uuid::now_v7(), all[0].0).await), ["resync"]);
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
