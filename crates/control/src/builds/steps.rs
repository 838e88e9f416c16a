// SPDX-License-Identifier: Apache-2.0
//! Steps of a build in its sandbox: each by its kind.

use std::borrow::Cow;

use uuid::Uuid;
use wrenn_api::BuildSecrets;
use wrenn_context::Context as Files;
use wrenn_recipe::{Action, Command, Context, Copied, Start, User};

use super::{
    guest::Guest,
    log::Log,
    pack,
    plan::Place,
    run::{self, Room},
    start::{self, Started},
    stop::{Failure, Stop},
};
use crate::error::Fault;

/// A sandbox in which steps are done, and what is known of it.
pub(super) struct Steps {
    guest: Box<Guest>,
    files: Files,
    /// Number of the last step that was done in it when it began.
    pub(super) after: u32,
    /// Result of the last step that has one: the snapshot and its host.
    pub(super) kept: Option<(Uuid, Uuid)>,
    /// Whether the process that a step starts is checked by a later one.
    pub(super) is_checked: bool,
    /// What the image begins with that the build starts from, if it is one of a registry.
    pub(super) entrypoint: Vec<String>,
    secrets: BuildSecrets,
    room: Room,
    /// Whether the last step had secrets: nothing more is done in this sandbox, whose memory may have them.
    is_spent: bool,
    /// The step that starts a process.
    start: Option<Place>,
    started: Option<Started>,
}

impl Steps {
    /// Begins in a sandbox in which all steps up to `after` are done.
    pub(super) fn new(
        guest: Box<Guest>,
        files: Files,
        after: u32,
        kept: Option<(Uuid, Uuid)>,
        secrets: BuildSecrets,
    ) -> Self {
        let (room, entrypoint) = (Room::new(&secrets), Vec::new());
        let (is_checked, is_spent, start, started) = (false, false, None, None);
        Self { guest, files, after, kept, is_checked, entrypoint, secrets, room, is_spent, start, started }
    }

    /// Notes that the last step had secrets. What it has left on the disk is kept.
    pub(super) fn spend(&mut self) {
        self.is_spent = true;
    }

    /// Whether the next step is to be done in another sandbox.
    pub(super) const fn is_spent(&self) -> bool {
        self.is_spent
    }

    /// Goes on in another sandbox, whose disk is as that of this one.
    pub(super) fn enter(&mut self, guest: Guest) {
        *self.guest = guest;
        self.is_spent = false;
    }

    /// The sandbox.
    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Passes over a step that was done before.
    pub(super) fn pass(&mut self, place: Place, action: &Action<'_>) {
        if let Action::Start(_) = action {
            self.start = Some(place);
        }
    }

    /// Does a step. Returns the exit status of its command, if it has one.
    pub(super) async fn perform(
        &mut self,
        log: &mut Log,
        place: Place,
        action: Action<'_>,
        context: &Context,
    ) -> Result<Option<i32>, Stop> {
        let (guest, room, secrets) = (&*self.guest, &mut self.room, &self.secrets);
        let in_step = |fault: Fault| Stop::in_step(place, fault);
        let user = context.user.to_string();
        match action {
            Action::Nothing => {}
            Action::MakeDirectory(path) => guest.make_directory(&path, &user).await.map_err(in_step)?,
            Action::FindUser(_) => guest.make_user(&user).await.map_err(in_step)?,
            Action::Copy(copied) => copy(guest, &self.files, log, place, copied, &context.user).await?,
            Action::Run(run) => {
                return run::run(guest, log, place, run, context, room, secrets).await.map(Some);
            }
            Action::Start(start) => {
                let start = with_entrypoint(start, &self.entrypoint);
                let started = start::start(guest, log, place, &start, context, self.is_checked, room).await?;
                (self.start, self.started) = (Some(place), Some(started));
            }
            Action::Check(check) => {
                let started = match (self.started.take(), self.start) {
                    (Some(started), _) => started,
                    (None, Some(start)) => Started::follow(guest, start).await?,
                    (None, None) => return Ok(None),
                };
                start::check(guest, log, place, check, context, started, room).await?;
            }
        }
        Ok(None)
    }

    /// Leaves the process that was started to itself.
    pub(super) fn leave(&mut self) {
        self.started = None;
    }
}

/// Returns what a step starts: if the recipe has a `CMD` and no `ENTRYPOINT`, that is given to the entrypoint of the image.
fn with_entrypoint<'a>(start: &'a Start, entrypoint: &[String]) -> Cow<'a, Start> {
    if !start.after_entrypoint || entrypoint.is_empty() {
        return Cow::Borrowed(start);
    }
    let arguments = match &start.command {
        Command::Exec(words) => words.clone(),
        Command::Shell(text) | Command::Script(text) => {
            vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()]
        }
    };
    let command = Command::Exec([entrypoint, &arguments[..]].concat());
    Cow::Owned(Start { command, ..start.clone() })
}

/// Copies files. They are found on a thread of their own, because they may be many.
async fn copy(
    guest: &Guest,
    files: &Files,
    log: &mut Log,
    place: Place,
    copied: Copied,
    user: &User,
) -> Result<(), Stop> {
    let (files, owner) = (files.clone(), copied.owner.clone());
    let selected = tokio::task::spawn_blocking(move || files.select(&copied)).await;
    let selected = selected.map_err(|error| {
        tracing::error!(%error, "the files of a step cannot be looked for");
        Stop::in_step(place, Fault::internal())
    })?;
    let selected = selected.map_err(|error| Failure::of_step(place, &format!("cannot copy: {error}")))?;
    let owner = owner.as_ref().unwrap_or(user);
    let entries = pack::copy(guest, selected, owner).await.map_err(|fault| Stop::in_step(place, fault))?;
    log.say(place.number, format!("copied {entries} files and directories"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cmd_is_given_to_the_entrypoint_of_the_image() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let entrypoint = words(&["/init", "--"]);
        let started = |command: Command, after_entrypoint, entrypoint: &[String]| {
            let start = Start { command, after_entrypoint };
            with_entrypoint(&start, entrypoint).command.clone()
        };
        let exec = Command::Exec(words(&["serve", "80"]));
        let all = Command::Exec(words(&["/init", "--", "serve", "80"]));
        assert_eq!(started(exec.clone(), true, &entrypoint), all);
        let shell = Command::Shell("serve $PORT".to_owned());
        let all = Command::Exec(words(&["/init", "--", "/bin/sh", "-c", "serve $PORT"]));
        assert_eq!(started(shell.clone(), true, &entrypoint), all);
        // An image without one, and what is no CMD.
        assert_eq!(started(shell.clone(), true, &[]), shell);
        assert_eq!(started(exec.clone(), false, &entrypoint), exec);
    }
}
