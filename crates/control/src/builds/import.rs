// SPDX-License-Identifier: Apache-2.0
//! The base of a build that is an image of a registry: imported by the first worker, which records what it is, and by its digest
//! from then on.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep};
use uuid::Uuid;
use wrenn_api::{ErrorCode, RegistryAccount};
use wrenn_recipe::{Instruction, Recipe};

use super::{
    base::{Base, disk_with},
    builder::{AGAIN, Builder, FOR_ROOM},
    guest::Guest,
    plan::Place,
    stop::{Failure, Stop},
};
use crate::{
    db::builds,
    error::Fault,
    images::{self, Imported, Progress, Wish},
    names::template_reference,
    place::{Need, On},
    state::App,
};

/// Interval between messages how far an import is: with the time in which a host answers it is at most ten seconds.
const SILENCE: Duration = Duration::from_secs(8);
/// Maximum number of entries that were left out of an image which the log names.
const SKIPPED: usize = 20;

impl Builder {
    /// Finds out what the base is, if that is not known yet. From here on a tag that moves changes nothing for this build.
    pub(super) async fn known(&mut self, recipe: &Recipe, base: Base) -> Result<Base, Stop> {
        let from = recipe.steps.iter().position(|step| matches!(step.instruction, Instruction::From { .. }));
        if let Some(at) = from {
            self.from = Place { number: at as u32 + 1, line: recipe.steps[at].span.line };
        }
        if base.is_known() { Ok(base) } else { self.import(&base).await }
    }

    /// Creates the sandbox in which the build begins with its base. An image of a registry is on the host then: if this worker has
    /// not imported it, it does so, and once more if the image was removed in between.
    pub(super) async fn create_from(&mut self, base: &mut Base) -> Result<Result<Guest, Fault>, Stop> {
        let is_of_registry = matches!(&*base, Base::Imported(image) if !image.is_uploaded());
        if is_of_registry && !self.has_imported {
            *base = self.import(base).await?;
        }
        match self.create(base.origin(self.sizes())).await? {
            Err(fault) if is_of_registry && fault.code == ErrorCode::NotFound => {
                *base = self.import(base).await?;
                self.create(base.origin(self.sizes())).await
            }
            created => Ok(created),
        }
    }

    /// Imports the image that the build starts from, and records what it is.
    async fn import(&mut self, base: &Base) -> Result<Base, Stop> {
        let (reference, digest) = match base {
            Base::Image { reference } => (reference.clone(), None),
            Base::Imported(image) => (image.reference.clone(), Some(image.digest.clone())),
            _ => return Ok(base.clone()),
        };
        let (at, begun) = (self.from, Instant::now());
        self.report.running(at.number);
        self.log.say(at.number, format!("importing {reference}"));
        self.save().await?;
        let imported = match self.imported(&reference, digest.as_deref()).await {
            Ok(imported) => imported,
            Err(stop) => {
                self.report.failed(at.number, Some(begun.elapsed()), None);
                return Err(stop);
            }
        };
        self.tell_imported(&imported);
        let known = Base::of_imported(&reference, imported);
        let known = known.map_err(|fault| not_imported(at, &reference, fault))?;
        self.pin(&known).await?;
        self.has_imported = true;
        self.report.done(at.number, Some(begun.elapsed()), None);
        Ok(known)
    }

    /// Imports the image of this reference, or the one that had this digest. Waits for a host with room for the build, for a while.
    async fn imported(&mut self, reference: &str, digest: Option<&str>) -> Result<Imported, Stop> {
        let (at, app, begun) = (self.from, self.app.clone(), Instant::now());
        let wish = self.wish(reference, digest).await?;
        let sizes = self.sizes();
        let need = Need {
            template: reference,
            vcpus: sizes.vcpus as i32,
            memory_mb: sizes.memory_mb as i32,
            disk_size_mb: sizes.disk_size_mb as i32,
            on: On::Any,
        };
        let mut is_told = false;
        let (asking, asked) = watch::channel(None);
        loop {
            let mut importing = pin!(images::import(&app, &wish, &need, &asking));
            let ended = loop {
                tokio::select! {
                    ended = &mut importing => break ended,
                    progress = after_silence(&app, &asked, &wish) => {
                        let how_far = progress.map(|progress| format!(": {progress}")).unwrap_or_default();
                        let seconds = begun.elapsed().as_secs();
                        self.log.say(at.number, format!("still importing after {seconds} s{how_far}"));
                        self.log.flush().await?;
                    }
                }
            };
            match ended {
                Ok(imported) => return Ok(imported),
                Err(fault) if fault.code == ErrorCode::NoHostsAvailable && begun.elapsed() < FOR_ROOM => {
                    if !std::mem::replace(&mut is_told, true) {
                        self.log.say(at.number, format!("waiting for a host: {}", fault.message));
                        self.log.flush().await?;
                    }
                    sleep(AGAIN).await;
                }
                Err(fault) => return Err(not_imported(at, reference, fault)),
            }
        }
    }

    async fn wish(&self, reference: &str, digest: Option<&str>) -> Result<Wish, Stop> {
        let parsed = images::parsed(reference).map_err(|fault| Stop::in_step(self.from, fault))?;
        let known_as = images::whole(&parsed);
        let account = builds::registry(&self.app.db, self.claim()).await?;
        let account = account.map(serde_json::from_value::<RegistryAccount>).transpose();
        let account = account.map_err(|_| {
            // The error may quote it.
            tracing::error!("the account of a build's registry cannot be read");
            Stop::of(Fault::internal())
        })?;
        let asked = match digest {
            Some(digest) => images::pinned(&parsed, digest),
            None => parsed,
        };
        Ok(Wish { team: self.job.team_id, reference: asked, known_as, account })
    }

    fn tell_imported(&mut self, imported: &Imported) {
        let number = self.from.number;
        self.log.say(number, format!("{}, {} MiB", imported.digest, imported.size_mb));
        if imported.skipped > 0 {
            self.log.say(number, format!("{} entries or attributes were left out:", imported.skipped));
            imported.first_skipped.iter().take(SKIPPED).for_each(|skipped| self.log.say(number, skipped));
        }
    }

    /// Records what the base is, and gives the build a disk that is large enough for it.
    async fn pin(&mut self, base: &Base) -> Result<(), Stop> {
        if let Base::Imported(image) = base {
            let disk = disk_with(self.sizes().disk_size_mb, image.least_mb);
            if disk > self.sizes().disk_size_mb {
                self.log.say(self.from.number, format!("the disk has {disk} MiB, for the size of the image"));
                self.job.disk_size_mb = disk as i32;
            }
        }
        let stored = serde_json::to_value(base).map_err(|error| {
            tracing::error!(%error, "the base of a build cannot be written down");
            Stop::of(Fault::internal())
        })?;
        if builds::pin(&self.app.db, self.claim(), stored, self.job.disk_size_mb).await? {
            return self.save().await;
        }
        Err(Stop::Lost)
    }
}

/// Waits for the next message that an import goes on, and asks the host that does it how far it is.
async fn after_silence(app: &App, asked: &watch::Receiver<Option<Uuid>>, wish: &Wish) -> Option<Progress> {
    sleep(SILENCE).await;
    let host = *asked.borrow();
    images::progress(app, host?, wish).await
}

/// The end of a build whose base cannot be imported. What is wrong with the image, or with its registry, has its own code.
fn not_imported(from: Place, reference: &str, fault: Fault) -> Stop {
    use ErrorCode::{ImageDamaged, ImageNotFound, ImagePlatformMismatch, ImageTooLarge, RegistryDenied};
    let code = fault.code;
    let failure = match Stop::in_step(from, fault) {
        Stop::Failed(failure) => failure,
        other => return other,
    };
    // Those whose status is that of a host or a registry have it already.
    let is_of_image =
        matches!(code, ImageDamaged | ImageNotFound | ImagePlatformMismatch | ImageTooLarge | RegistryDenied);
    let failure = if is_of_image { Failure { code: code.as_str(), ..failure } } else { failure };
    // A template that is not there looks like an image.
    if matches!(code, ImageNotFound | RegistryDenied) && template_reference(reference).is_ok() {
        let message = format!("{}; there is no template {reference} either", failure.message);
        return Failure { message, ..failure }.into();
    }
    failure.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Place = Place { number: 1, line: 2 };

    fn failure(reference: &str, code: ErrorCode) -> Failure {
        match not_imported(FROM, reference, Fault::new(code, "why")) {
            Stop::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_with_an_image_has_its_own_code() {
        let missing = failure("registry.example.com/a:1", ErrorCode::ImageNotFound);
        assert_eq!((missing.code, missing.step), ("image_not_found", Some(FROM)));
        assert_eq!(missing.message, "step 1 (line 2): why");
        let misspelt = failure("minmal", ErrorCode::RegistryDenied);
        assert_eq!(misspelt.message, "step 1 (line 2): why; there is no template minmal either");
        assert_eq!(failure("a:1", ErrorCode::InvalidRequest).code, "build_failed");
        let of = |code| not_imported(FROM, "a:1", Fault::new(code, "why"));
        assert!(matches!(of(ErrorCode::HostUnavailable), Stop::Away(_)));
        assert!(matches!(of(ErrorCode::ServiceUnavailable), Stop::Lost));
    }
}
