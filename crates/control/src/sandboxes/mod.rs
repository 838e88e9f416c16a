// SPDX-License-Identifier: Apache-2.0
//! Sandboxes service: operations of callers on the sandboxes of their team. It knows no surface: requests and
//! results are typed values, and whatever fails is a fault.

mod activity;
mod attached;
mod command;
mod create;
mod destroy;
mod directories;
mod files;
mod from_image;
pub(crate) mod idle;
mod lookup;
mod metadata;
mod metrics;
mod paths;
mod pause;
mod ports;
mod processes;
pub(crate) mod reconcile;
mod resume;
mod rights;
mod running;
mod settle;
mod signed;
mod step;
mod terminals;
mod timeout;
mod update;
mod watch;

use serde_json::json;
use wrenn_api::{
    BackgroundProcess, CreateSandbox, FileEntry, FileOperation, MetricsRange, ProcessInfo, ResumeSandbox,
    Sandbox, SandboxId, SandboxMetrics, SandboxRef, SandboxStatus, Signal, Signalled, TerminalScreen,
    UpdateSandbox,
};

use self::activity::Active;
use crate::{
    agents::{AgentClient, ResponseMemory},
    by::By,
    caller::Caller,
    db::{self, sandboxes::Filter},
    error::Fault,
    idempotency::Idempotency,
    state::App,
};

pub use attached::{Attached, Exit, From, ProcessEvent, ProcessEvents, ProcessInput};
#[cfg(test)]
pub(crate) use command::run;
pub use command::{BackgroundCommand, Finished, TimedCommand};
pub(crate) use destroy::destroy;
pub use files::{Conditions, Destination, Download, Sent, Upload, Written};
pub use paths::{AnyPath, FilePath};
pub use ports::PortPipe;
pub(crate) use ports::{ENVD_PORT, Reached};
pub use processes::Selector;
pub use rights::{OfUser, Rights};
pub use watch::FileChanges;

pub use crate::signatures::{Signature, Subject};

/// Sandboxes of teams.
#[derive(Clone)]
pub struct Sandboxes {
    app: App,
}

/// Part of a list of sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// Maximum number of sandboxes, at most [`Page::MAX`].
    pub limit: u32,
    /// Only sandboxes older than this one.
    pub before: Option<SandboxId>,
    /// Only sandboxes of these statuses. Default: all that are not stopped.
    pub statuses: Vec<SandboxStatus>,
    /// Only the sandbox with this name.
    pub name: Option<String>,
    /// Only sandboxes from this template or snapshot.
    pub template: Option<String>,
    /// Only sandboxes with all these labels, with this value or with any one.
    pub labels: Vec<(String, Option<String>)>,
}

impl Page {
    /// Maximum number of sandboxes of a page.
    pub const MAX: u32 = 100;
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: 50, before: None, statuses: Vec::new(), name: None, template: None, labels: Vec::new() }
    }
}

/// Sandboxes of a page, newest first.
#[derive(Debug)]
#[non_exhaustive]
pub struct Listed {
    /// The sandboxes.
    pub sandboxes: Vec<Sandbox>,
    /// `before` of the next page, if there is one.
    pub next: Option<SandboxId>,
}

impl Sandboxes {
    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Creates a sandbox and waits until it runs; with an idempotency key at most once. It is also completed
    /// if the caller does not wait for it. From an image of a registry, that is so once the image is on a host.
    pub async fn create(
        &self,
        caller: &Caller,
        new: CreateSandbox,
        idempotency: Option<Idempotency>,
    ) -> Result<Sandbox, Fault> {
        let (team, by, mut new) = (caller.team().uuid(), By::caller(caller), new);
        self.app.hooks.before_create(&self.app.db, caller, &mut new).await?;
        let row = match new.image.take() {
            Some(_) if new.template.is_some() => {
                return Err(Fault::invalid("template and image exclude each other: leave one of them out"));
            }
            Some(image) => from_image::create(&self.app, team, &image, new, idempotency, by).await?,
            None if new.registry.is_some() => {
                return Err(Fault::invalid(
                    "registry is the account of an image's registry: name an image, too",
                ));
            }
            None => create::create(&self.app, team, new, idempotency, by).await?,
        };
        Ok(row.public())
    }

    /// Returns a page of the team's sandboxes.
    pub async fn list(&self, caller: &Caller, page: Page) -> Result<Listed, Fault> {
        let limit = page.limit.min(Page::MAX) as usize;
        let (team, before) = (caller.team().uuid(), page.before.map(SandboxId::uuid));
        let mut filter =
            Filter { statuses: page.statuses, name: page.name, template: page.template, ..Filter::default() };
        for (name, value) in page.labels {
            match value {
                Some(value) => filter.labels.push(json!({ name: value })),
                None => filter.labelled.push(name),
            }
        }
        // One more row than requested shows whether there is another page.
        let mut rows = db::sandboxes::page(&self.app.db, team, &filter, before, limit as i64 + 1).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(db::sandboxes::Row::public_id);
        Ok(Listed { sandboxes: rows.iter().map(db::sandboxes::Row::public).collect(), next })
    }

    /// Returns the id of a sandbox of the team that is not deleted, by its name or by the beginning of its id. Fails if
    /// several ids begin so. An id is returned as it is.
    pub async fn resolve(&self, caller: &Caller, reference: &SandboxRef) -> Result<SandboxId, Fault> {
        lookup::resolve(&self.app, caller.team().uuid(), reference).await
    }

    /// Returns a sandbox of the team, also one that was deleted.
    pub async fn get(&self, caller: &Caller, id: SandboxId) -> Result<Sandbox, Fault> {
        Ok(lookup::find(&self.app, caller.team().uuid(), id).await?.public())
    }

    /// Returns what a sandbox of the team has used, which runs or is paused. This is no use of it.
    pub async fn metrics(
        &self,
        caller: &Caller,
        id: SandboxId,
        range: MetricsRange,
    ) -> Result<SandboxMetrics, Fault> {
        metrics::read(&self.app, caller.team().uuid(), id, range).await
    }

    /// Deletes a sandbox. Idempotent. If its host does not respond, the sandbox stays `stopping` and is removed
    /// when the host is back.
    pub async fn destroy(&self, caller: &Caller, id: SandboxId) -> Result<(), Fault> {
        destroy::destroy(&self.app, caller.team().uuid(), id, By::caller(caller)).await
    }

    /// Pauses a sandbox and waits until it is paused. Does nothing if it is. It is also completed if the caller does
    /// not wait for it. If it fails, the sandbox runs on.
    pub async fn pause(&self, caller: &Caller, id: SandboxId) -> Result<Sandbox, Fault> {
        Ok(pause::pause(&self.app, caller.team().uuid(), id, By::caller(caller)).await?.public())
    }

    /// Resumes a sandbox and waits until it runs. If it does, only its timeout begins anew. It is also completed if the
    /// caller does not wait for it.
    pub async fn resume(&self, caller: &Caller, id: SandboxId, how: ResumeSandbox) -> Result<Sandbox, Fault> {
        Ok(resume::resume(&self.app, caller.team().uuid(), id, &how, By::caller(caller)).await?.public())
    }

    /// Notes that a running sandbox is in use.
    pub async fn ping(&self, caller: &Caller, id: SandboxId) -> Result<(), Fault> {
        running::ping(&self.app, caller.team().uuid(), id).await
    }

    /// Changes what is given of a sandbox. A new timeout begins now.
    pub async fn update(
        &self,
        caller: &Caller,
        id: SandboxId,
        update: UpdateSandbox,
    ) -> Result<Sandbox, Fault> {
        update::update(&self.app, caller.team().uuid(), id, update).await
    }

    /// Runs a command and waits until it ends.
    pub async fn exec(
        &self,
        caller: &Caller,
        id: SandboxId,
        command: TimedCommand,
    ) -> Result<Finished, Fault> {
        let team = caller.team().uuid();
        let memory = ResponseMemory::new(self.app.admission.memory.clone(), team);
        let (agent, _active) =
            running::with_memory(&self.app, team, id, memory.clone(), By::caller(caller)).await?;
        command::run(&agent, id, command, &memory).await
    }

    /// Starts a command in the background: it runs on without a reader.
    pub async fn start_process(
        &self,
        caller: &Caller,
        id: SandboxId,
        command: BackgroundCommand,
    ) -> Result<BackgroundProcess, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        processes::start(&agent, id, command).await
    }

    /// Lists the running processes of a sandbox that were started through the API, in the order of their starts.
    pub async fn processes(&self, caller: &Caller, id: SandboxId) -> Result<Vec<ProcessInfo>, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        processes::list(&agent, id).await
    }

    /// Sends a signal to a process and all its descendants.
    pub async fn signal_process(
        &self,
        caller: &Caller,
        id: SandboxId,
        process: Selector,
        signal: Signal,
    ) -> Result<Signalled, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        processes::signal(&agent, id, process, signal).await
    }

    /// Reads what the terminal of a process shows.
    pub async fn screen(
        &self,
        caller: &Caller,
        id: SandboxId,
        process: Selector,
    ) -> Result<TerminalScreen, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        terminals::screen(&agent, id, process).await
    }

    /// Lists a directory of a sandbox, `depth` levels deep, by path.
    pub async fn list_files(
        &self,
        caller: &Caller,
        id: SandboxId,
        path: AnyPath,
        depth: Option<u32>,
    ) -> Result<Vec<FileEntry>, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        directories::list(&agent, id, path, depth).await
    }

    /// Describes an entry of a sandbox's file system.
    pub async fn stat_file(
        &self,
        caller: &Caller,
        id: SandboxId,
        path: AnyPath,
        user: OfUser,
    ) -> Result<FileEntry, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        directories::stat(&agent, id, path, user).await
    }

    /// Creates a directory and its parents. Fails if it exists.
    pub async fn make_directory(
        &self,
        caller: &Caller,
        id: SandboxId,
        path: AnyPath,
        user: OfUser,
    ) -> Result<FileEntry, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        directories::make(&agent, id, path, user).await
    }

    /// Moves an entry; a file that is there is replaced.
    pub async fn move_file(
        &self,
        caller: &Caller,
        id: SandboxId,
        source: AnyPath,
        destination: AnyPath,
    ) -> Result<FileEntry, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        directories::r#move(&agent, id, source, destination).await
    }

    /// Removes an entry, and a directory with its content. Fails if there is none.
    pub async fn remove_file(
        &self,
        caller: &Caller,
        id: SandboxId,
        path: AnyPath,
        user: OfUser,
    ) -> Result<(), Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        directories::remove(&agent, id, path, user).await
    }

    /// Copies an entry, and a directory with its content, to a path where nothing is.
    pub async fn copy_file(
        &self,
        caller: &Caller,
        id: SandboxId,
        source: AnyPath,
        destination: AnyPath,
        user: OfUser,
    ) -> Result<FileEntry, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        directories::copy(&agent, id, source, destination, user).await
    }

    /// Changes mode, owner and group of an entry; with `recursive` also of all below it.
    pub async fn change_file(
        &self,
        caller: &Caller,
        id: SandboxId,
        path: AnyPath,
        user: OfUser,
        rights: Rights,
        recursive: bool,
    ) -> Result<FileEntry, Fault> {
        let (agent, _active) = self.reach(caller, id).await?;
        directories::change(&agent, id, path, user, rights, recursive).await
    }

    /// Signs a URL with which a file is read or written without an API key, for a number of seconds.
    pub async fn sign_file(
        &self,
        caller: &Caller,
        id: SandboxId,
        file: (FilePath, OfUser),
        operation: FileOperation,
        seconds: Option<u32>,
    ) -> Result<(Subject, Signature), Fault> {
        signed::sign(&self.app, caller, id, file, operation, seconds).await
    }

    /// Reaches a running sandbox for one call. As long as the second value exists, the sandbox is active.
    async fn reach(&self, caller: &Caller, id: SandboxId) -> Result<(AgentClient, Active), Fault> {
        let team = caller.team().uuid();
        let memory = ResponseMemory::new(self.app.admission.memory.clone(), team);
        running::with_memory(&self.app, team, id, memory, By::caller(caller)).await
    }

    /// Attaches to a running sandbox for one stream: a process with its input and output, or a file.
    pub async fn attach(&self, caller: &Caller, id: SandboxId) -> Result<Attached, Fault> {
        let (agent, active) =
            running::dedicated(&self.app, caller.team().uuid(), id, By::caller(caller)).await?;
        Ok(Attached::new(agent, id).keeping(active))
    }
}
