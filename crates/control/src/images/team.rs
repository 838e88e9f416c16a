// SPDX-License-Identifier: Apache-2.0
//! Images service: what a team has uploaded and what hosts have for it of registries.

use wrenn_api::{BuildId, ErrorCode, Image, SandboxId};
use wrenn_recipe::UploadedImage;
use wrenn_rpc::Foreign;

use super::uploads::{self, Archive};
use crate::{
    caller::Caller,
    db::uploaded_images::{self, Listed, Users},
    error::Fault,
    state::App,
    upload::Upload,
};

/// Images of teams.
#[derive(Clone)]
pub struct Images {
    app: App,
}

impl Images {
    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Lists the images that the team has uploaded, and those of registries that hosts have for it, by reference.
    pub async fn list(&self, caller: &Caller) -> Result<Vec<Image>, Fault> {
        let all = uploaded_images::of_team(&self.app.db, caller.team().uuid()).await?;
        Ok(all.into_iter().map(public).collect())
    }

    /// Makes an image of an archive that was received. Without a name, it has the one that the archive gives to it. It takes the
    /// place of the one that had its name; sandboxes, builds and templates that began with that stay as they are.
    pub(crate) async fn load(
        &self,
        caller: &Caller,
        name: Option<UploadedImage>,
        upload: Upload,
        size: u64,
    ) -> Result<Image, Fault> {
        uploads::load(&self.app, Archive { team: caller.team().uuid(), name, upload, size }).await
    }

    /// Deletes an image that the team has uploaded. Fails if anything of the team uses it. It is removed from hosts later.
    pub async fn delete(&self, caller: &Caller, name: &str) -> Result<(), Fault> {
        let team = caller.team().uuid();
        let image: UploadedImage = name.parse().map_err(|_| none(name))?;
        let reference = image.reference();
        let mut tx = self.app.db.begin().await?;
        let id = uploaded_images::locked(&mut tx, team, &reference).await?.ok_or_else(|| none(name))?;
        let users = uploaded_images::users(&mut tx, team, id).await?;
        if !users.is_empty() {
            return Err(in_use(&image, &users));
        }
        uploaded_images::forget(&mut tx, team, &reference).await?;
        Ok(tx.commit().await?)
    }
}

/// The fault of an image that was not uploaded.
fn none(name: &str) -> Fault {
    let message = format!("the team has uploaded no image named {}", Foreign(name));
    Fault::new(ErrorCode::NotFound, message)
}

/// The fault of an image that is used. It names who uses it.
fn in_use(image: &UploadedImage, users: &Users) -> Fault {
    let sandboxes = users.sandboxes.iter().map(|id| format!("sandbox {}", SandboxId::from(*id)));
    let builds = users.builds.iter().map(|id| format!("build {}", BuildId::from(*id)));
    let versions = users.versions.iter().map(|version| format!("template {version}"));
    let all: Vec<_> = sandboxes.chain(builds).chain(versions).collect();
    let message = format!("image {image} is used by {}: delete these first", all.join(", "));
    Fault::new(ErrorCode::Conflict, message)
}

fn public(listed: Listed) -> Image {
    Image {
        reference: listed.reference,
        uploaded: listed.uploaded,
        digest: listed.digest,
        size_mb: listed.size_mb as u64,
        hosts: listed.hosts.into_iter().map(Into::into).collect(),
        last_used_at: listed.last_used_at,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn who_uses_an_image_is_named() {
        let image: UploadedImage = "app:1".parse().expect("a name");
        assert!(Users::default().is_empty());
        let (sandboxes, builds) = (vec![Uuid::nil()], vec![Uuid::nil()]);
        let users = Users { sandboxes, builds, versions: vec!["web version 3".to_owned()] };
        let fault = in_use(&image, &users);
        let (sandbox, build) = (SandboxId::from(Uuid::nil()), BuildId::from(Uuid::nil()));
        let expected = format!(
            "image app:1 is used by sandbox {sandbox}, build {build}, template web version 3: delete these first"
        );
        assert_eq!((fault.code, fault.message), (ErrorCode::Conflict, expected));
    }
}
