// SPDX-License-Identifier: Apache-2.0
//! What a guest uses of its memory and of its disk, and what its kernel killed for want of memory, as its envd says. It is input.

use std::time::Duration;

use http::Method;
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use super::{
    exit::program,
    guest::{Guest, empty},
    spec::Spec,
};

/// Path of the question; envd need not measure its CPUs.
const PATH: &str = "/metrics?cpu=false";
/// Time limit for the answer, and its maximum size in bytes.
const LIMIT: Duration = Duration::from_secs(2);
const ANSWER_MAX: usize = 16 << 10;

/// What a guest says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) figures: Figures,
    /// What its kernel killed last for want of memory.
    pub(crate) last_kill: Option<Kill>,
}

/// Figures of a guest in KiB, which are whole pages. No more is used than there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) mem_used: u32,
    pub(crate) mem_total: u32,
    /// Of its root file system.
    pub(crate) disk_used: u32,
    pub(crate) disk_total: u32,
}

impl Figures {
    /// Returns whether the guest has said them: each has memory.
    pub(crate) const fn are_known(&self) -> bool {
        self.mem_total > 0
    }
}

/// A process that the kernel of a guest killed for want of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    /// Unix time in milliseconds.
    pub(crate) at_ms: u64,
    pub(crate) pid: u32,
    /// Name of its program, printable.
    pub(crate) command: String,
}

/// Asks a guest. `None` if it has no answer that is understood, in time.
pub(crate) async fn ask(guest: &Guest, spec: &Spec) -> Option<Usage> {
    let request = guest.request(Method::GET, PATH, empty()).ok()?;
    let asking = async {
        let response = guest.http.request(request).await.ok().filter(|it| it.status().is_success())?;
        Some(Limited::new(response.into_body(), ANSWER_MAX).collect().await.ok()?.to_bytes())
    };
    let answer = guest.meanwhile(tokio::time::timeout(LIMIT, asking)).await.ok()?.ok()??;
    parse(&answer, spec)
}

/// Answer of envd. One of an older version does not know of kills.
#[derive(Deserialize)]
struct Told {
    mem_total: u64,
    mem_used: u64,
    disk_total: u64,
    disk_used: u64,
    /// The oldest first.
    #[serde(default)]
    out_of_memory: Vec<ToldKill>,
}

#[derive(Deserialize)]
struct ToldKill {
    at: u64,
    pid: u32,
    command: String,
}

/// Reads an answer. A guest has no more than it was given, whatever it says.
fn parse(answer: &[u8], spec: &Spec) -> Option<Usage> {
    let told: Told = serde_json::from_slice(answer).ok()?;
    let last_kill = told.out_of_memory.last().map(|kill| Kill {
        at_ms: kill.at,
        pid: kill.pid,
        command: program(&kill.command),
    });
    let (mem_used, mem_total) = kib(told.mem_used, told.mem_total, spec.memory_mb);
    let (disk_used, disk_total) = kib(told.disk_used, told.disk_total, spec.disk_size_mb);
    let figures = Figures { mem_used, mem_total, disk_used, disk_total };
    let figures = if figures.are_known() { figures } else { Figures::default() };
    Some(Usage { figures, last_kill })
}

/// Use and size in KiB of what has so many bytes and at most so many MiB.
fn kib(used: u64, total: u64, most_mb: u64) -> (u32, u32) {
    let most = most_mb.saturating_mul(1024).min(u32::MAX.into());
    let total = (total >> 10).min(most);
    ((used >> 10).min(total) as u32, total as u32)
}

#[cfg(test)]
mod tests {
    use axum::{
        Json,
        response::{IntoResponse as _, Response},
    };
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::memory::{Memory, Share};

    fn spec() -> Spec {
        Spec { memory_mb: 512, disk_size_mb: 2048, ..Spec::default() }
    }

    /// A guest whose envd answers so.
    async fn guest(answer: impl Fn() -> Response + Clone + Send + Sync + 'static) -> anyhow::Result<Guest> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let guest = Guest::at(listener.local_addr()?.to_string(), "t", Share::of(Memory::new(1 << 20)))?;
        let router = axum::Router::new().fallback(move || std::future::ready(answer()));
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(guest)
    }

    #[tokio::test]
    async fn a_guest_says_what_it_uses() -> anyhow::Result<()> {
        let answer = json!({
            "ts": 1, "mem_total": 500 << 20, "mem_used": 70 << 20,
            "disk_total": 2000_u64 << 20, "disk_used": 4096,
            "out_of_memory": [
                {"at": 5, "pid": 3, "command": "first"},
                {"at": 1_800_000_000_000_u64, "pid": 412, "command": "\u{202e}a\nb and more of it"},
            ],
        });
        let padded = " ".repeat(ANSWER_MAX) + &answer.to_string();
        let says = guest(move || Json(answer.clone()).into_response()).await?;
        let expected = Usage {
            figures: Figures {
                mem_used: 70 << 10,
                mem_total: 500 << 10,
                disk_used: 4,
                disk_total: 2000 << 10,
            },
            last_kill: Some(Kill {
                at_ms: 1_800_000_000_000,
                pid: 412,
                command: "?a?b and more o".to_owned(),
            }),
        };
        assert_eq!(ask(&says, &spec()).await, Some(expected));

        let too_long = guest(move || padded.clone().into_response()).await?;
        assert_eq!(ask(&too_long, &spec()).await, None);
        let refuses = guest(|| http::StatusCode::UNAUTHORIZED.into_response()).await?;
        assert_eq!(ask(&refuses, &spec()).await, None);
        says.end();
        assert_eq!(ask(&says, &spec()).await, None, "it ended");
        Ok(())
    }

    #[tokio::test]
    async fn a_guest_that_hangs_is_not_waited_for() -> anyhow::Result<()> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let guest = Guest::at(listener.local_addr()?.to_string(), "t", Share::of(Memory::new(1 << 20)))?;
        let begin = std::time::Instant::now();
        assert_eq!(ask(&guest, &spec()).await, None);
        assert!(begin.elapsed() < LIMIT * 5);
        Ok(())
    }

    #[test]
    fn an_older_envd_says_nothing_of_kills() {
        let answer = br#"{"mem_total":1048576,"mem_used":2097152,"disk_total":0,"disk_used":9}"#;
        let figures = Figures { mem_used: 1024, mem_total: 1024, ..Figures::default() };
        assert_eq!(parse(answer, &spec()), Some(Usage { figures, last_kill: None }));
        for answer in ["", "[]", "{}", r#"{"mem_total":-1,"mem_used":0,"disk_total":0,"disk_used":0}"#] {
            assert_eq!(parse(answer.as_bytes(), &spec()), None, "{answer}");
        }
    }

    proptest! {
        #[test]
        fn no_more_is_used_than_there_is(used: u64, total: u64, most_mb: u64) {
            let (used_kib, total_kib) = kib(used, total, most_mb);
            prop_assert!(used_kib <= total_kib && u64::from(total_kib) <= most_mb.saturating_mul(1024));
            prop_assert!(u64::from(total_kib) <= total >> 10 && u64::from(used_kib) <= used >> 10);
        }
    }
}
