// SPDX-License-Identifier: Apache-2.0
//! A Firecracker microVM.

use std::{fs, io, path::Path, thread, time::Duration};

use async_trait::async_trait;
use hyper::Method;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    Isolation,
    api::{Api, CALL_LIMIT},
    config::{self, DRIVE_ID, INTERFACE_ID, rate_limiter},
    jail::{Bind, Launch, SOCKET},
    version::Release,
};
use crate::{
    BootSpec, Exit, MemorySource, MicroVm, ProcessId, Snapshot, SnapshotFiles, SnapshotKind, Stats, VmmError,
    care::Care,
    page_server, process,
    running::{Running, blocking, end, failed},
    taken::{self, NEW_MEMORY, NEW_STATE},
};

/// Time limit for Firecracker's first response, and for each call that boots or loads a guest: an overloaded host may stand still for
/// 20 s and more.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Interval between connection attempts during the start.
const START_POLL: Duration = Duration::from_millis(1);
/// Time limit and interval of the thread that waits for the API socket, which exists within milliseconds
/// unless the machine is busy: the runtime's timers are too coarse for this.
const LOOK_LIMIT: Duration = Duration::from_millis(50);
const LOOK_POLL: Duration = Duration::from_micros(100);
/// Minimum throughput assumed for a disk when a snapshot is written, in MiB per second.
const WRITE_RATE: u64 = 50;
/// Last console line of a guest that powered off: Firecracker has no power button, so the VMM continues to
/// run after its virtual CPUs have stopped.
const FAREWELL: &str = "reboot: System halted";

/// A Firecracker process and its files.
pub(super) struct FirecrackerVm {
    running: Running,
    release: Release,
    memory_mb: u32,
}

fn care(memory_mb: u32) -> Care {
    Care { farewell: Some(FAREWELL), before: 0, memory_mb }
}

fn binds(spec: &BootSpec) -> Vec<Bind> {
    let mut binds = vec![Bind::writable(config::RUN, &spec.run_dir)];
    binds.extend(spec.disk.as_ref().map(|disk| Bind::writable(config::DISK, disk)));
    binds
}

/// Waits for the socket of a Firecracker that was just started; blocks for a short time.
fn look_for(socket: &Path, pid: u32) {
    let begin = Instant::now();
    while !socket.exists()
        && begin.elapsed() < LOOK_LIMIT
        && matches!(wrenn_os::process::identify(pid as i32), Ok(Some(_)))
    {
        thread::sleep(LOOK_POLL);
    }
}

async fn start(release: Release, launch: Launch) -> Result<FirecrackerVm, VmmError> {
    let memory_mb = launch.spec.memory_mb;
    let socket = launch.spec.run_dir.join(SOCKET);
    let spec = launch.spec.clone();
    let running = Running::start(&spec, care(memory_mb), move || {
        // A former Firecracker of this directory leaves its socket, and the next one does not replace it.
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let pid = launch.start()?;
        // This thread may block. `ready` checks the result.
        look_for(&socket, pid);
        Ok(pid)
    })
    .await?;
    Ok(FirecrackerVm { running, release, memory_mb })
}

/// Boots a microVM and waits until its guest runs.
pub(super) async fn boot(
    program: &Path,
    release: Release,
    isolation: &Isolation,
    spec: &BootSpec,
) -> Result<FirecrackerVm, VmmError> {
    let mut binds = binds(spec);
    binds.push(Bind::read_only(config::KERNEL, &spec.kernel));
    binds.extend(spec.initrd.as_ref().map(|initrd| Bind::read_only(config::INITRD, initrd)));
    let launch =
        Launch { program: program.to_owned(), isolation: isolation.clone(), spec: spec.clone(), binds };
    let vm = start(release, launch).await?;
    let outcome = vm.make(spec).await;
    vm.or_killed(outcome).await
}

/// Starts a microVM from a snapshot.
pub(super) async fn restore(
    program: &Path,
    release: Release,
    isolation: &Isolation,
    snapshot: &Snapshot,
    spec: &BootSpec,
) -> Result<FirecrackerVm, VmmError> {
    check(release, "load the snapshot")?;
    let mut binds = binds(spec);
    binds.push(Bind::read_only(config::STATE, &snapshot.state));
    if let MemorySource::File(file) | MemorySource::Shared(file) = &snapshot.memory {
        binds.push(Bind::read_only(config::MEMORY, file));
    }
    let binds = blocking("find the snapshot", move || {
        binds.iter().try_for_each(|bind| taken::check(bind.name, &bind.source))?;
        Ok(binds)
    });
    let binds = binds.await?;
    let (isolation, program) = (isolation.clone(), program.to_owned());
    let launch = Launch { program, isolation, spec: spec.clone(), binds };
    let vm = match &snapshot.memory {
        MemorySource::File(_) | MemorySource::Shared(_) => start(release, launch).await?,
        MemorySource::Layers(memory) => {
            let server = page_server::start(spec, memory).await?;
            match start(release, launch).await {
                Ok(vm) => FirecrackerVm { running: vm.running.with_pages(server), ..vm },
                Err(error) => {
                    end(&server, "end the page server").await?;
                    return Err(error);
                }
            }
        }
    };
    let outcome = vm.load(snapshot, spec).await;
    vm.or_killed(outcome).await
}

/// Adopts a running Firecracker.
pub(super) async fn adopt(
    release: Release,
    spec: &BootSpec,
    recorded: Option<&ProcessId>,
) -> Result<Option<FirecrackerVm>, VmmError> {
    let adopted = Running::adopt(&spec.run_dir, care(spec.memory_mb), recorded).await?;
    let Some(mut running) = adopted else { return Ok(None) };
    if process::has_page_server(&spec.run_dir) {
        let Some(server) = page_server::adopt(&spec.run_dir).await? else {
            tracing::warn!(id = spec.id, "killing a VMM whose page server has ended");
            running.kill().await?;
            return Ok(None);
        };
        running = running.with_pages(server);
    }
    Ok(Some(FirecrackerVm { running, release, memory_mb: spec.memory_mb }))
}

impl FirecrackerVm {
    /// Kills the VMM after a failed start.
    async fn or_killed(self, outcome: Result<(), VmmError>) -> Result<Self, VmmError> {
        match outcome {
            Ok(()) => Ok(self),
            Err(error) => {
                // If it has ended, its log says more than its closed socket.
                let ended = self.running.check_alive().await.err();
                self.running.kill().await?;
                Err(ended.filter(|_| matches!(error, VmmError::Io { .. })).unwrap_or(error))
            }
        }
    }

    async fn api(&self, action: &'static str) -> Result<Api, VmmError> {
        Api::connect(self.running.run_dir(), action).await
    }

    /// Waits until Firecracker listens; it has no guest yet.
    async fn ready(&self) -> Result<Api, VmmError> {
        let begin = Instant::now();
        loop {
            self.running.check_alive().await?;
            if let Ok(api) = self.api("start").await {
                return Ok(api);
            }
            if begin.elapsed() > START_LIMIT {
                return Err(VmmError::Deadline { action: "start", limit: START_LIMIT });
            }
            sleep(START_POLL).await;
        }
    }

    async fn make(&self, spec: &BootSpec) -> Result<(), VmmError> {
        let mut api = self.ready().await?;
        for (path, body, action) in config::calls(spec) {
            api.call((Method::PUT, &path), &body, action, START_LIMIT).await?;
        }
        Ok(())
    }

    async fn load(&self, snapshot: &Snapshot, spec: &BootSpec) -> Result<(), VmmError> {
        let mut api = self.ready().await?;
        let (kind, path) = match &snapshot.memory {
            MemorySource::File(_) | MemorySource::Shared(_) => ("File", config::MEMORY.to_owned()),
            MemorySource::Layers(_) => ("Uffd", format!("{}/{}", config::RUN, process::PAGES_SOCKET)),
        };
        let mut body = json!({
            "snapshot_path": config::STATE,
            "mem_backend": { "backend_type": kind, "backend_path": path },
            "resume_vm": false,
        });
        body[self.release.tracking_field()] = spec.track_changes.into();
        api.call((Method::PUT, "/snapshot/load"), &body, "load the snapshot", START_LIMIT).await?;
        set_rates(&mut api, spec).await?;
        if snapshot.run { set_state(&mut api, "Resumed", "resume").await } else { Ok(()) }
    }
}

/// Fails if this release's snapshots are faulty.
fn check(release: Release, action: &'static str) -> Result<(), VmmError> {
    match release.snapshot_fault() {
        Some(fault) => Err(VmmError::Refused { action, reason: fault.to_owned() }),
        None => Ok(()),
    }
}

/// Time limit of a snapshot, by the amount of memory to write.
fn snapshot_limit(memory_mb: u32) -> Duration {
    CALL_LIMIT + Duration::from_secs(20 + u64::from(memory_mb) / WRITE_RATE)
}

/// Sets the rates of the devices: the snapshot contains those of the microVM that it was taken of.
async fn set_rates(api: &mut Api, spec: &BootSpec) -> Result<(), VmmError> {
    let action = "set the devices' rates";
    if spec.disk.is_some() {
        let body = json!({ "drive_id": DRIVE_ID, "rate_limiter": rate_limiter(spec.disk_rate) });
        api.call((Method::PATCH, &format!("/drives/{DRIVE_ID}")), &body, action, CALL_LIMIT).await?;
    }
    if spec.tap.is_some() {
        let limiter = rate_limiter(spec.network_rate);
        let body =
            json!({ "iface_id": INTERFACE_ID, "rx_rate_limiter": limiter, "tx_rate_limiter": limiter });
        let path = format!("/network-interfaces/{INTERFACE_ID}");
        api.call((Method::PATCH, &path), &body, action, CALL_LIMIT).await?;
    }
    Ok(())
}

async fn set_state(api: &mut Api, state: &str, action: &'static str) -> Result<(), VmmError> {
    api.call((Method::PATCH, "/vm"), &json!({ "state": state }), action, CALL_LIMIT).await.map(drop)
}

/// Checks and clears the snapshot's files in the run directory. A diff is only possible if the last snapshot
/// was taken: a state that is still here shows that it was not, and Firecracker may have reset its list of
/// changed pages.
fn make_room(kind: SnapshotKind, state: &Path, memory: &Path) -> io::Result<()> {
    if kind == SnapshotKind::Diff && state.symlink_metadata().is_ok() {
        let reason =
            "the last snapshot was not finished, so what changed since is not known: take a full one";
        return Err(io::Error::other(reason));
    }
    // Firecracker would merge a diff into the rest of another one.
    match fs::remove_file(memory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[async_trait]
impl MicroVm for FirecrackerVm {
    fn process(&self) -> ProcessId {
        self.running.id().clone()
    }

    async fn pause(&self) -> Result<(), VmmError> {
        set_state(&mut self.api("pause").await?, "Paused", "pause").await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        set_state(&mut self.api("resume").await?, "Resumed", "resume").await
    }

    fn freeze(&self, frozen: bool) -> Result<(), VmmError> {
        self.running.freeze(frozen)
    }

    async fn snapshot(&self, kind: SnapshotKind, files: &SnapshotFiles) -> Result<(), VmmError> {
        check(self.release, "write the snapshot")?;
        let run_dir = self.running.run_dir().to_owned();
        let parts = [(NEW_STATE, &files.state), (NEW_MEMORY, &files.memory)]
            .map(|(name, to)| (run_dir.join(name), to.clone()));
        let body = json!({
            "snapshot_type": match kind {
                SnapshotKind::Full => "Full",
                SnapshotKind::Diff => "Diff",
            },
            "snapshot_path": format!("{}/{NEW_STATE}", config::RUN),
            "mem_file_path": format!("{}/{NEW_MEMORY}", config::RUN),
        });
        let action = "write the snapshot";
        let (state, memory) = (parts[0].0.clone(), parts[1].0.clone());
        let made = tokio::task::spawn_blocking(move || make_room(kind, &state, &memory)).await;
        made.unwrap_or_else(|error| Err(error.into())).map_err(|error| failed(action, error))?;
        let target = (Method::PUT, "/snapshot/create");
        let mut api = self.api(action).await?;
        let written = api.call(target, &body, action, snapshot_limit(self.memory_mb)).await;
        let taken = tokio::task::spawn_blocking(move || {
            let moved = |_| taken::all(&parts).map_err(|error| failed(action, error));
            let outcome = written.and_then(moved);
            if outcome.is_err() {
                // Half a snapshot is useless. A state, if there is one, stays and marks the failure.
                drop(fs::remove_file(&parts[1].0));
            }
            outcome
        });
        taken.await.unwrap_or_else(|error| Err(failed(action, error.into())))
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.running.kill().await
    }

    async fn exited(&self) -> Exit {
        self.running.exited().await
    }

    fn stats(&self) -> Result<Stats, VmmError> {
        self.running.stats()
    }

    async fn console(&self, max: usize) -> Vec<u8> {
        self.running.console(max).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_memory_has_the_time_that_it_takes_to_write() {
        assert!(snapshot_limit(8 << 10) > Duration::from_secs(8 * 1024 / WRITE_RATE));
        assert!(snapshot_limit(0) > CALL_LIMIT);
    }

    #[test]
    fn no_diff_follows_a_snapshot_that_was_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let [state, memory] = [NEW_STATE, NEW_MEMORY].map(|name| dir.path().join(name));
        make_room(SnapshotKind::Diff, &state, &memory).unwrap();
        fs::write(&memory, "remains").unwrap();
        make_room(SnapshotKind::Diff, &state, &memory).unwrap();
        assert!(!memory.exists());
        fs::write(&state, "unfinished").unwrap();
        assert!(make_room(SnapshotKind::Diff, &state, &memory).is_err());
        make_room(SnapshotKind::Full, &state, &memory).unwrap();
        assert!(state.exists(), "until the full one is taken");
    }
}
