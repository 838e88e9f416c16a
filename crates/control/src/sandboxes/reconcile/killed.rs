// SPDX-License-Identifier: Apache-2.0
//! Processes that kernels of guests killed for want of memory, as a host tells them of its sandboxes: each is recorded and told once.

use std::collections::HashMap;

use chrono::DateTime;
use uuid::Uuid;
use wrenn_api::{OutOfMemory, SandboxId};
use wrenn_rpc::host::v1::{self, Sandbox as OnHost};

use crate::{db::sandboxes, error::Fault, sandboxes::lookup::cut, state::App, telemetry};

/// Maximum length of a program's name in bytes; a kernel has 15.
const COMMAND_MAX: usize = 64;
/// End of the times that are believed: of the year 9999, in milliseconds since 1970.
const END_MS: i64 = 253_402_300_800_000;

/// The last one of each sandbox of a host that this server has recorded, or found recorded, by its time as the host tells it.
#[derive(Debug, Default)]
pub(super) struct Killed(HashMap<Uuid, i64>);

impl Killed {
    /// Forgets those of sandboxes that the host does not have any more.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Uuid) -> bool) {
        self.0.retain(|id, _| is_there(id));
    }

    /// Records what a host tells of a sandbox with a row, if it is new.
    pub(super) async fn note(&mut self, app: &App, id: Uuid, found: &OnHost) -> Result<(), Fault> {
        let Some(told) = found.last_out_of_memory.as_option() else { return Ok(()) };
        if self.0.get(&id) == Some(&told.at_unix_ms) {
            return Ok(());
        }
        if let Some(killed) = killed(told)
            && sandboxes::out_of_memory(&app.db, id, &killed).await?
        {
            let (sandbox_id, command) = (SandboxId::from(id), killed.command.as_deref());
            tracing::info!(%sandbox_id, pid = killed.pid, command, "a process of a sandbox was killed for want of memory");
            telemetry::out_of_memory(telemetry::Killed::Process);
            app.outbox.notify_one();
        }
        self.0.insert(id, told.at_unix_ms);
        Ok(())
    }
}

/// Converts what a guest says, by way of its host; none if its time is none.
fn killed(told: &v1::OutOfMemory) -> Option<OutOfMemory> {
    let at = Some(told.at_unix_ms).filter(|at| (0..END_MS).contains(at));
    let at = at.and_then(DateTime::from_timestamp_millis)?;
    let command: String = told.command.chars().filter(|letter| !letter.is_control()).collect();
    let command = Some(cut(&command, COMMAND_MAX)).filter(|command| !command.is_empty());
    Some(OutOfMemory { at, pid: Some(told.pid).filter(|pid| *pid > 0), command })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(at_unix_ms: i64, pid: u32, command: &str) -> v1::OutOfMemory {
        v1::OutOfMemory { at_unix_ms, pid, command: command.to_owned(), ..Default::default() }
    }

    #[test]
    fn what_a_guest_says_has_bounds() {
        let known = killed(&told(1_769_851_800_500, 412, "py\u{1b}thon3\n")).expect("known");
        assert_eq!(known.at.to_rfc3339(), "2026-01-31T09:30:00.500+00:00");
        assert_eq!((known.pid, known.command.as_deref()), (Some(412), Some("python3")));
        let unknown = killed(&told(0, 0, "")).expect("known");
        assert_eq!((unknown.pid, unknown.command), (None, None));
        let long = killed(&told(0, 1, &"é".repeat(100))).and_then(|killed| killed.command);
        assert_eq!(long.map(|command| command.len()), Some(COMMAND_MAX));
        for at in [-1, END_MS, i64::MIN, i64::MAX] {
            assert_eq!(killed(&told(at, 1, "a")), None, "{at}");
        }
        assert!(killed(&told(END_MS - 1, 1, "a")).is_some());
    }
}
