// SPDX-License-Identifier: Apache-2.0
//! Ends of `wrenn up`, by the command line and by signals, and restarts: no sandbox is lost.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use wrenn_testkit::{Setup, Stack, envd::address_and_token};

use super::{COUNTER, clock_is_right, small};
use crate::cases::{
    hosts::quick_driver,
    support::{end, pause, resume, sh, wait_exec, wait_status},
};

/// A sandbox with a process that counts.
struct Counting {
    id: String,
    pid: String,
    /// Address in its network slot.
    address: String,
}

impl Counting {
    async fn start(stack: &Stack) -> Result<Self> {
        let id = small(stack).await?;
        let pid = sh(stack, &id, COUNTER).await?;
        let (address, _) = address_and_token(stack, &id)?;
        Ok(Self { id, pid, address })
    }

    /// Fails unless its process is still the same.
    async fn counts(&self, stack: &Stack) -> Result<()> {
        let found = sh(stack, &self.id, "kill -0 $(cat /tmp/pid) && cat /tmp/pid").await?;
        ensure!(found == self.pid, "process {found}, and not {}", self.pid);
        Ok(())
    }

    /// Resumes it, which was paused with its memory.
    async fn comes_back(&mut self, stack: &Stack) -> Result<()> {
        let got = wait_status(stack, &self.id, &["paused"], 10).await?;
        ensure!(got["error"].is_null(), "{got}");
        resume(stack, &self.id).await?;
        self.counts(stack).await?;
        clock_is_right(stack, &self.id).await?;
        (self.address, _) = address_and_token(stack, &self.id)?;
        Ok(())
    }
}

/// Resumes both, the last one first: it takes the slot of the other, which goes on in another one.
async fn both_come_back(stack: &Stack, two: &mut [Counting; 2]) -> Result<()> {
    two.reverse();
    let [first, second] = two;
    let taken = second.address.clone();
    first.comes_back(stack).await?;
    ensure!(first.address == taken, "{} has no other slot than before: this shows nothing", first.id);
    second.comes_back(stack).await?;
    ensure!(second.address != taken, "both have the slot of {taken}");
    Ok(())
}

async fn end_and_restart(stack: &mut Stack) -> Result<()> {
    let mut two = [Counting::start(stack).await?, Counting::start(stack).await?];
    pause(stack, &two[0].id).await?;
    stack.down().await?;
    stack.up_again().await?;
    both_come_back(stack, &mut two).await.context("after `wrenn down`")?;
    // As service managers and terminals do it. `wrenn down` would do itself what `wrenn up` left out.
    for signal in [Signal::TERM, Signal::INT] {
        stack.end_by(signal).await?;
        stack.up_again().await?;
        both_come_back(stack, &mut two).await.with_context(|| format!("after {signal:?}"))?;
    }
    let runs = &two[0];
    let vmm = stack.vmm(&runs.id)?;
    let restarted = stack.wrenn(&["restart"])?;
    ensure!(restarted.status.success(), "{restarted:?}");
    ensure!(stack.vmm(&runs.id)? == vmm, "another VMM");
    wait_exec(stack, &runs.id, 20).await?;
    runs.counts(stack).await
}

/// `wrenn down`, and signals to `wrenn up`, pause what runs; `wrenn up` has it again, in whatever slots are free; and
/// `wrenn restart` lets it run on.
pub(crate) async fn nothing_that_restarts_loses_a_sandbox() -> Result<()> {
    // Without warm slots each sandbox gets the lowest free one.
    let mut env = quick_driver();
    env.push(("WRENN_AGENT_WARM_SLOTS".to_owned(), "0".to_owned()));
    let mut stack = Stack::start_with(Setup { env, ..Setup::default() }).await?;
    let result = end_and_restart(&mut stack).await;
    end(stack, result).await
}
