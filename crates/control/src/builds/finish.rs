// SPDX-License-Identifier: Apache-2.0
//! The end of a build: its result becomes a version of the template, together with the build's success.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::MakeImageRequest;

use super::{builder::Builder, plan::Plan, steps::Steps, stop::Stop};
use crate::{
    agents::within,
    db::{
        builds, hosts, layers, snapshots as snapshot_rows,
        templates::{self, NewVersion, Version},
    },
    error::Fault,
    snapshots::{self, Keeps},
};

/// Time limit for an image to be made, and the time after which one that no version refers to is removed.
const IMAGE: Duration = Duration::from_secs(900);
const IMAGE_KEPT: Duration = Duration::from_secs(1200);

/// What a version of a template is.
enum Made {
    /// A snapshot with memory.
    Snapshot { id: Uuid, host: Uuid },
    /// An image that was noted as one to be removed at a time.
    Image { id: Uuid, host: Uuid, size_mb: i64, until: DateTime<Utc> },
    /// The same as another version.
    Same(Box<Version>),
}

impl Builder {
    /// Makes the template of what is in the sandbox: a snapshot if a process is to run, else an image of the disk.
    pub(super) async fn complete(&mut self, steps: &Steps, plan: &Plan) -> Result<i32, Stop> {
        if plan.has_start {
            let snapshot = snapshots::of_build(&self.app, steps.guest().row(), Keeps::Memory).await;
            let snapshot = snapshot.map_err(Stop::of)?;
            return self.publish(plan, Made::Snapshot { id: snapshot.id, host: snapshot.host_id }).await;
        }
        if let Some((snapshot, host)) = steps.kept {
            return self.image(plan, snapshot, host).await?.map_err(Stop::of);
        }
        // No step has changed the disk.
        let snapshot = snapshots::of_build(&self.app, steps.guest().row(), Keeps::Memory).await;
        let snapshot = snapshot.map_err(Stop::of)?;
        let made = self.image(plan, snapshot.id, snapshot.host_id).await;
        snapshots::discard(&self.app, &snapshot).await;
        made?.map_err(Stop::of)
    }

    /// Makes an image of the disk of a snapshot, and a version of it. The fault says why there is none.
    pub(super) async fn image(
        &mut self,
        plan: &Plan,
        snapshot: Uuid,
        host: Uuid,
    ) -> Result<Result<i32, Fault>, Stop> {
        self.log.say(0, "making the image");
        self.log.flush().await?;
        let image = Uuid::now_v7();
        // From here on, whatever happens to this worker leaves no image without a version.
        let until = builds::begin_image(&self.app.db, image, host, IMAGE_KEPT).await?;
        let Some(address) = hosts::address(&self.app.db, host).await? else {
            let message = "the host of the build is no longer registered";
            return Ok(Err(Fault::new(ErrorCode::HostUnavailable, message)));
        };
        let request = MakeImageRequest {
            snapshot_id: snapshot.simple().to_string(),
            image_id: image.simple().to_string(),
            ..Default::default()
        };
        let agent = self.app.agents.at(host.into(), &address);
        match agent.make_image_with_options(request, within(IMAGE)).await {
            Ok(made) => {
                let size_mb = i64::try_from(made.into_owned().size_mb).unwrap_or(i64::MAX);
                self.publish(plan, Made::Image { id: image, host, size_mb, until }).await.map(Ok)
            }
            Err(error) => Ok(Err(error.into())),
        }
    }

    /// Makes a version of what another version was made of, if there is one that was made of the same and whose host responds.
    pub(super) async fn take_same(&mut self, plan: &Plan) -> Result<Option<i32>, Stop> {
        let Some(same) = templates::with_key(&self.app.db, self.job.team_id, &plan.key).await? else {
            return Ok(None);
        };
        if !layers::is_online(&self.app.db, same.host_id).await? {
            return Ok(None);
        }
        self.report.all_cached();
        self.log.say(0, format!("nothing is to be done: it is as version {} of {}", same.version, same.name));
        self.publish(plan, Made::Same(Box::new(same))).await.map(Some)
    }

    /// Records the next version of the template and the success of the build, both or none of them.
    async fn publish(&mut self, plan: &Plan, made: Made) -> Result<i32, Stop> {
        let claim = self.claim();
        let mut tx = self.app.db.begin().await?;
        match builds::hold(&mut tx, claim).await? {
            None => return Err(Stop::Lost),
            Some(true) => return Err(Stop::Cancelled),
            Some(false) => {}
        }
        let user = plan.context.user.to_string();
        let new = NewVersion {
            team_id: self.job.team_id,
            name: &self.job.name,
            build_id: self.job.id,
            key: &plan.key,
            host_id: made.host(),
            snapshot_id: None,
            image_id: None,
            size_mb: self.job.disk_size_mb.into(),
            vcpus: self.job.vcpus,
            memory_mb: self.job.memory_mb,
            disk_size_mb: self.job.disk_size_mb,
            envs: &plan.context.env,
            default_user: &user,
            workdir: &plan.context.workdir,
        };
        let Some(new) = made.keep(&mut tx, new).await? else { return Err(removed()) };
        let version = match templates::insert(&mut tx, &new, &self.job.tag).await {
            Err(sqlx::Error::RowNotFound) => return Err(removed()),
            inserted => inserted?,
        };
        let text = format!("{}:{} is version {version}", self.job.name, self.job.tag);
        self.log.say(0, text);
        self.log.flush_in(&mut tx).await?;
        builds::succeed(&mut tx, claim, self.report.to_json(), version).await?;
        tx.commit().await?;
        Ok(version)
    }
}

impl Made {
    fn host(&self) -> Uuid {
        match self {
            Self::Snapshot { host, .. } | Self::Image { host, .. } => *host,
            Self::Same(same) => same.host_id,
        }
    }

    /// Keeps it until the transaction ends, and adds it to the version; `None` if it is being removed.
    async fn keep<'n>(
        self,
        tx: &mut PgConnection,
        new: NewVersion<'n>,
    ) -> Result<Option<NewVersion<'n>>, Stop> {
        Ok(match self {
            Self::Snapshot { id, .. } => {
                let is_there = snapshot_rows::hold(tx, id).await?;
                is_there.then_some(NewVersion { snapshot_id: Some(id), ..new })
            }
            Self::Image { id, size_mb, until, .. } => {
                let is_there = builds::keep_image(tx, id, until).await?;
                is_there.then_some(NewVersion { image_id: Some(id), size_mb, ..new })
            }
            Self::Same(same) => {
                // Behind the lock of names, so that it is not deleted meanwhile.
                templates::lock_names(&mut *tx, new.team_id).await?;
                let found = templates::with_key(&mut *tx, new.team_id, new.key).await?;
                let found = found
                    .filter(|found| found.snapshot_id == same.snapshot_id && found.image_id == same.image_id);
                let is_there = match found.as_ref().and_then(|found| found.snapshot_id) {
                    Some(snapshot) => snapshot_rows::hold(tx, snapshot).await?,
                    None => found.is_some(),
                };
                is_there.then_some(NewVersion {
                    snapshot_id: same.snapshot_id,
                    image_id: same.image_id,
                    size_mb: same.size_mb,
                    ..new
                })
            }
        })
    }
}

/// The end of a build whose result is being removed: its worker was silent for too long, or somebody deleted what it was the same
/// as.
fn removed() -> Stop {
    let message = "the result of the build was removed before it was recorded: ask for the build again";
    Stop::of(Fault::new(ErrorCode::Conflict, message))
}
