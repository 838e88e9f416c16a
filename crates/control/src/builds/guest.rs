// SPDX-License-Identifier: Apache-2.0
//! The sandbox of a build: an ordinary one of the team, in which the agent of its host does the steps.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use uuid::Uuid;
use wrenn_api::{BuildId, CreateSandbox, ErrorCode, ExecStart, HostId, OnTimeout, SandboxId};
use wrenn_recipe::Secret;
use wrenn_rpc::{
    filesystem::FileType,
    host::v1::{
        Command, MakeDirectoryRequest, MakeUserRequest, MetricsRequest, PutSecretRequest, RemoveFileRequest,
        RemoveSecretsRequest, StartProcessRequest, StatFileRequest,
    },
};

use crate::{
    agents::{AgentClient, deadline, within},
    by::By,
    config::BuildSettings,
    db::{
        builds::Job,
        hosts,
        sandboxes::{self, Filter, Row},
    },
    error::Fault,
    sandboxes::{
        Attached, Destination, FilePath, From as Since, OfUser, ProcessEvents, ProcessInput, Rights,
        Sandboxes, Selector, Upload, destroy,
    },
    state::App,
    templates::{Origin, Sizes},
};

/// Label of the sandbox of a build, whose value is the build's id.
const LABEL: &str = "wrenn.build";
/// User who does what no step does by itself.
pub(super) const ROOT: &str = "root";
/// Time limit of an operation on files, longer than the agent's own.
const FILES: Duration = Duration::from_secs(75);
/// Maximum number of sandboxes that are looked for.
const LEFT: i64 = 16;

/// The sandbox of a build.
pub(super) struct Guest {
    app: App,
    row: Row,
    host: HostId,
    address: String,
}

impl Guest {
    /// Creates the sandbox of a build and waits until it runs. If nobody keeps it in use, it is deleted after a while, whatever
    /// becomes of its worker. Of one that could not be created nothing is left.
    pub(super) async fn create(app: &App, job: &Job, origin: Origin, sizes: Sizes) -> Result<Self, Fault> {
        let new = CreateSandbox {
            vcpus: Some(sizes.vcpus),
            memory_mb: Some(sizes.memory_mb),
            disk_size_mb: Some(sizes.disk_size_mb),
            name: Some(format!("build-{}", &job.id.simple().to_string()[24..])),
            labels: BTreeMap::from([(LABEL.to_owned(), BuildId::from(job.id).to_string())]),
            timeout_sec: Some(app.builds.keep.as_secs() as u32),
            on_timeout: Some(OnTimeout::Delete),
            ..Default::default()
        };
        let team = job.team_id;
        let created = Sandboxes::new(app.clone()).create_from(team, new, origin).await;
        let id = match created {
            Ok(sandbox) => sandbox.id,
            Err(fault) => {
                if let Some(left) = fault.sandbox_id {
                    remove(app, team, left).await;
                }
                return Err(fault);
            }
        };
        let gone = || Fault::new(ErrorCode::Conflict, "the sandbox of the build was deleted");
        let row = sandboxes::find(&app.db, team, id.uuid()).await?.ok_or_else(gone)?;
        let host = row.host_id.ok_or_else(gone)?;
        let address = hosts::address(&app.db, host).await?.ok_or_else(gone)?;
        Ok(Self { app: app.clone(), row, host: host.into(), address })
    }

    /// Its record, as it was when it began to run.
    pub(super) const fn row(&self) -> &Row {
        &self.row
    }

    /// Its id.
    pub(super) fn id(&self) -> SandboxId {
        self.row.public_id()
    }

    /// Settings of builds.
    pub(super) fn settings(&self) -> &BuildSettings {
        &self.app.builds
    }

    /// Starts a command, which is killed with its descendants when both results are dropped.
    pub(super) async fn start(&self, command: ExecStart) -> Result<(ProcessInput, ProcessEvents), Fault> {
        Attached::new(self.stream(), self.id()).start(command).await
    }

    /// Starts a command that goes on running.
    pub(super) async fn start_process(&self, command: Command) -> Result<(), Fault> {
        let sandbox_id = self.id().to_string();
        let request = StartProcessRequest { sandbox_id, command: command.into(), ..Default::default() };
        self.calls().start_process_with_options(request, within(deadline::EXEC_EXTRA)).await?;
        Ok(())
    }

    /// Follows the output of the process with this tag from its beginning on. The process goes on when the results are dropped.
    pub(super) async fn follow(&self, tag: &str) -> Result<(ProcessInput, ProcessEvents), Fault> {
        let attached = Attached::new(self.stream(), self.id());
        attached.connect(Selector::Tag(tag.to_owned()), Since::Beginning).await
    }

    /// Makes a directory with its parents as this user, unless it is there.
    pub(super) async fn make_directory(&self, path: &str, user: &str) -> Result<(), Fault> {
        let (sandbox_id, path, user) = (self.id().to_string(), path.to_owned(), user.to_owned());
        let known = (sandbox_id.clone(), path.clone(), user.clone());
        let stat =
            StatFileRequest { sandbox_id: known.0, path: known.1, user: known.2, ..Default::default() };
        match self.calls().stat_file_with_options(stat, within(FILES)).await.map_err(Fault::from) {
            Ok(found) => {
                let entry = found.into_owned().entry.into_option().unwrap_or_default();
                if entry.r#type.as_known() == Some(FileType::FILE_TYPE_FILE) {
                    return Err(Fault::new(ErrorCode::NotADirectory, format!("{path} is no directory")));
                }
                return Ok(());
            }
            Err(fault) if fault.code == ErrorCode::NotFound => {}
            Err(fault) => return Err(fault),
        }
        let make = MakeDirectoryRequest { sandbox_id, path, user, ..Default::default() };
        self.calls().make_directory_with_options(make, within(FILES)).await?;
        Ok(())
    }

    /// Creates a user, and the group that may stand after it, unless they are there.
    pub(super) async fn make_user(&self, name: &str) -> Result<(), Fault> {
        let (sandbox_id, user) = (self.id().to_string(), name.to_owned());
        let request = MakeUserRequest { sandbox_id, user, ..Default::default() };
        self.calls().make_user_with_options(request, within(FILES)).await?;
        Ok(())
    }

    /// Puts a secret into the memory of the sandbox, where this user can read it.
    pub(super) async fn put_secret(&self, secret: &Secret, user: &str, value: &str) -> Result<(), Fault> {
        let request = PutSecretRequest {
            sandbox_id: self.id().to_string(),
            id: secret.id.clone(),
            target: secret.target.clone().unwrap_or_default(),
            user: user.to_owned(),
            value: value.as_bytes().to_vec(),
            ..Default::default()
        };
        self.calls().put_secret_with_options(request, within(FILES)).await?;
        Ok(())
    }

    /// Overwrites and removes all secrets.
    pub(super) async fn remove_secrets(&self) -> Result<(), Fault> {
        let request = RemoveSecretsRequest { sandbox_id: self.id().to_string(), ..Default::default() };
        self.calls().remove_secrets_with_options(request, within(FILES)).await?;
        Ok(())
    }

    /// Writes a file that everybody can run.
    pub(super) async fn write_program(&self, path: &str, text: &str) -> Result<(), Fault> {
        let rights = Rights::new(Some("0755"), None, None)?;
        let to = Destination::file(FilePath::new(path)?, OfUser::new(Some(ROOT.to_owned()))?, rights);
        let text = bytes::Bytes::from(text.to_owned());
        let attached = Attached::new(self.stream(), self.id());
        let content = |mut upload: Upload| async move {
            upload.send(text).await?;
            Ok::<_, Fault>(upload)
        };
        attached.write_file(to, content).await.map(drop)
    }

    /// Removes a file, unless it is gone.
    pub(super) async fn remove_file(&self, path: &str) -> Result<(), Fault> {
        let (sandbox_id, path, user) = (self.id().to_string(), path.to_owned(), ROOT.to_owned());
        let request = RemoveFileRequest { sandbox_id, path, user, ..Default::default() };
        match self.calls().remove_file_with_options(request, within(FILES)).await.map_err(Fault::from) {
            Err(fault) if fault.code != ErrorCode::NotFound => Err(fault),
            _ => Ok(()),
        }
    }

    /// Bytes that its disk occupied on the host when that was measured last; `None` if that is not known.
    pub(super) async fn disk_bytes(&self) -> Option<i64> {
        let request =
            MetricsRequest { sandbox_id: self.id().to_string(), range_sec: 60, ..Default::default() };
        let answer =
            self.calls().metrics_with_options(request, within(deadline::STATE)).await.ok()?.into_owned();
        let bytes = answer.points.last()?.disk_bytes;
        i64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
    }

    /// Deletes it. If that fails, it is deleted when it was not in use for a while.
    pub(super) async fn delete(&self) {
        remove(&self.app, self.row.team_id, self.id()).await;
    }

    /// Client for calls with a deadline.
    fn calls(&self) -> AgentClient {
        self.app.agents.at(self.host, &self.address)
    }

    /// Client for one stream.
    pub(super) fn stream(&self) -> AgentClient {
        self.app.agents.dedicated(self.host, &self.address)
    }
}

/// Deletes all sandboxes of a build: those that a worker before has left.
pub(super) async fn remove_all(app: &App, job: &Job) -> Result<(), Fault> {
    let label = json!({ LABEL: BuildId::from(job.id).to_string() });
    let filter = Filter { labels: vec![label], ..Filter::default() };
    for row in sandboxes::page(&app.db, job.team_id, &filter, None, LEFT).await? {
        destroy(app, job.team_id, row.public_id(), By::SYSTEM).await?;
    }
    Ok(())
}

/// Deletes a sandbox. If that fails, it is deleted when it was not in use for a while.
pub(super) async fn remove(app: &App, team: Uuid, id: SandboxId) {
    if let Err(error) = destroy(app, team, id, By::SYSTEM).await {
        tracing::warn!(sandbox_id = %id, %error, "the sandbox of a build is deleted later");
    }
}
