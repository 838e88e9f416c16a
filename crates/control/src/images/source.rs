// SPDX-License-Identifier: Apache-2.0
//! What the reference to an image means: one of a registry, or one that the team has uploaded.

use tokio::sync::watch;
use uuid::Uuid;
use wrenn_api::RegistryAccount;
use wrenn_recipe::UploadedImage;

use super::{Imported, Wish, check_account, find, import, parsed, whole};
use crate::{error::Fault, place::Need, state::App};

/// Where an image comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A registry.
    Registry(Wish),
    /// An archive that the team has uploaded.
    Uploaded {
        /// The team.
        team: Uuid,
        /// Name of the image.
        image: UploadedImage,
    },
}

impl Source {
    /// Parses a reference of a team. Only a registry has accounts.
    pub(crate) fn of(team: Uuid, reference: &str, account: Option<RegistryAccount>) -> Result<Self, Fault> {
        account.as_ref().map_or(Ok(()), check_account)?;
        if let Some(image) = uploaded(reference)? {
            if account.is_some() {
                let message = "registry: an image that was uploaded is in no registry: leave the account out";
                return Err(Fault::invalid(message));
            }
            return Ok(Self::Uploaded { team, image });
        }
        let reference = parsed(reference)?;
        let known_as = whole(&reference);
        Ok(Self::Registry(Wish { team, reference, known_as, account }))
    }

    /// Returns the whole name of the image.
    pub(crate) fn known_as(&self) -> String {
        match self {
            Self::Registry(wish) => wish.known_as.clone(),
            Self::Uploaded { image, .. } => image.reference(),
        }
    }

    /// Returns the image on a host: imports that of a registry, unless it is there.
    pub(crate) async fn imported(&self, app: &App, need: &Need<'_>) -> Result<Imported, Fault> {
        match self {
            Self::Registry(wish) => import(app, wish, need, &watch::Sender::default()).await,
            Self::Uploaded { team, image } => find(app, *team, image).await,
        }
    }
}

/// Parses a reference. `None` if it is not one to an image that was uploaded.
pub(super) fn uploaded(reference: &str) -> Result<Option<UploadedImage>, Fault> {
    let parsed = UploadedImage::of_reference(reference).transpose();
    parsed.map_err(|error| Fault::invalid(format!("image: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_with_the_prefix_is_an_upload_which_has_no_account() {
        let of = |reference: &str, account: Option<RegistryAccount>| {
            Source::of(Uuid::nil(), reference, account).map(|source| source.known_as())
        };
        let account = || Some(RegistryAccount { username: "robot".into(), password: "secret".into() });
        assert_eq!(of("uploaded:app", None).expect("valid"), "uploaded:app:latest");
        assert_eq!(of("uploaded:app:1", None).expect("valid"), "uploaded:app:1");
        let library = "docker.io/library/uploaded:app";
        assert_eq!(of(library, account()).expect("valid"), library);
        let refused = of("uploaded:app", account()).expect_err("refused");
        assert!(
            !refused.message.contains("secret") && refused.message.starts_with("registry: "),
            "{refused}"
        );
        assert!(of("uploaded:", None).is_err_and(|fault| fault.message.starts_with("image: ")));
    }
}
