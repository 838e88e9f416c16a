// SPDX-License-Identifier: Apache-2.0
//! Named snapshots of a sandbox. One that runs stands still only while its memory is captured and its disk copied.

use wrenn_memory::BuildId;
use wrenn_os::fault;

use super::{pause::prepare, steps::PROCESS};
use crate::{
    error::AgentError,
    sandbox::{entry::Entry, environment, phase::Live, record::Sandbox, spec::Spec},
    snapshots::{
        Base, Captured,
        named::{self, NamedSnapshot},
    },
};

/// First part of the names of the fault points.
pub(super) const NAME: &str = "snapshot";
/// Fault points.
#[cfg_attr(not(test), expect(dead_code, reason = "only the test of the fault points reads it"))]
pub(super) const POINTS: [&str; 2] = ["captured", "kept"];

/// Makes snapshot `id` of a sandbox that runs. On an error the guest goes on, unless it is
/// [`Failure::Stuck`].
pub(in crate::sandbox) async fn of_running(
    live: &mut Live,
    sandbox: &mut Sandbox,
    id: &str,
) -> Result<(), Failure> {
    prepare(live, sandbox).await?;
    // An agent that finds this lets the guest go on.
    sandbox.record.write(vec![Entry::Pausing]).await?;
    let captured = capture(live, sandbox, id).await;
    live.vm.resume().await.map_err(|error| Failure::Stuck(error.into()))?;
    let base = sandbox.shared.snapshots.base_after(live.base);
    live.base = match &captured {
        // It is what the changes are since; should it not be kept, it is not found when it is needed.
        Ok(captured) if base == Base::Unknown => Base::Generation(captured.build),
        _ => base,
    };
    let running = vec![Entry::Vmm { process: live.vm.process(), base: live.base }, Entry::Running];
    if let Err(error) = sandbox.record.write(running).await {
        if let Ok(captured) = &captured {
            sandbox.shared.named.drop_parts(captured.build).await;
        }
        return Err(error.into());
    }
    fault::point(PROCESS, NAME, "captured");
    let captured = captured?;
    let build = captured.build;
    let kept = sandbox.shared.snapshots.keep(captured, None).await;
    Ok(finish(sandbox, id, build, kept.map(drop)).await?)
}

/// Makes snapshot `id` of a sandbox that is paused with this memory.
pub(in crate::sandbox) async fn of_paused(
    memory: BuildId,
    sandbox: &Sandbox,
    id: &str,
) -> Result<(), AgentError> {
    sandbox.shared.check_snapshots(false).await?;
    let build = BuildId::new();
    let disk = sandbox.shared.volumes.copy(&sandbox.id, &named::volume_of(build)).await;
    let copied = match disk {
        Ok(()) => sandbox.shared.snapshots.copy(memory, build, &named::label(id)).await,
        Err(error) => Err(error.into()),
    };
    finish(sandbox, id, build, copied).await
}

/// Failure of a snapshot.
pub(in crate::sandbox) enum Failure {
    /// The sandbox is as before.
    Refused(AgentError),
    /// Its guest stands still.
    Stuck(AgentError),
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::Refused(error)
    }
}

/// Stops the guest, and writes its memory and its disk of this instant for snapshot `id`.
async fn capture(live: &Live, sandbox: &Sandbox, id: &str) -> Result<Captured, AgentError> {
    let shared = &sandbox.shared;
    live.vm.pause().await?;
    let captured =
        shared.snapshots.capture(&*live.vm, sandbox.captures(), live.base, &named::label(id)).await?;
    shared.volumes.copy(&sandbox.id, &named::volume_of(captured.build)).await?;
    Ok(captured)
}

/// Keeps the record of a snapshot whose memory was kept or not.
async fn finish(
    sandbox: &Sandbox,
    id: &str,
    build: BuildId,
    memory: Result<(), AgentError>,
) -> Result<(), AgentError> {
    let shared = &sandbox.shared;
    let kept = async {
        memory?;
        fault::point(PROCESS, NAME, "kept");
        shared.volumes.sync(&named::volume_of(build)).await?;
        let Spec { template, vcpus, memory_mb, disk_size_mb, default_user, access_token, .. } =
            &*sandbox.spec;
        let record = NamedSnapshot {
            id: id.to_owned(),
            build,
            template: template.clone(),
            vcpus: *vcpus,
            memory_mb: *memory_mb,
            disk_size_mb: *disk_size_mb,
            default_user: default_user.clone(),
            access_token: access_token.clone(),
            envs: environment::read(sandbox).await?.into_iter().collect(),
        };
        shared.named.keep(record).await
    };
    let kept = kept.await;
    if kept.is_err() {
        shared.named.drop_parts(build).await;
    }
    kept
}
