// SPDX-License-Identifier: Apache-2.0
//! Images of registries, and those that teams upload. A host imports one before a sandbox or a build starts from it there, unless it
//! has it; which team uses which image on which host is recorded, so that what nobody needs any more is removed.

mod source;
mod team;
mod uploads;

pub use self::team::Images;
pub(crate) use self::{source::Source, uploads::find};

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use connectrpc::{ConnectError, ErrorCode as Wire};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;
use wrenn_api::{ErrorCode, RegistryAccount, SandboxImage};
use wrenn_recipe::ImageReference;
use wrenn_rpc::host::v1::{GetImportProgressRequest, ImportImageRequest, ImportImageResponse};

use crate::{
    agents::{deadline, within},
    db::{
        hosts,
        images::{self, Use},
        uploaded_images::Uploaded,
    },
    error::Fault,
    place::{Need, place},
    request_trace,
    state::App,
};

/// Maximum length of the name and of the password of an account, in characters.
const USERNAME_MAX: usize = 255;
const PASSWORD_MAX: usize = 16_384;
/// Maximum size of what an image runs, in bytes, and number of its words, for the record of a sandbox to have it.
const COMMAND_MAX: usize = 64 << 10;
const WORDS_MAX: usize = 4096;
/// Version of the ids of imported images, which hosts make of their digests.
const OF_DIGEST: usize = 8;
/// Maximum number of images of a host that are looked at.
const LISTED_MAX: usize = 10_000;
/// Number of times that a host is asked for an image which is removed meanwhile, the interval between looks whether that has ended,
/// and how long it may take: longer than the lease of a removal.
const TRIES: usize = 3;
const LOOK: Duration = Duration::from_millis(500);
const REMOVAL: Duration = Duration::from_secs(90);

/// An image to import for a team.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) team: Uuid,
    /// What the registry is asked for.
    pub(crate) reference: ImageReference,
    /// Whole name by which its use is recorded.
    pub(crate) known_as: String,
    pub(crate) account: Option<RegistryAccount>,
}

/// An image that was imported on a host.
#[derive(Debug, Clone)]
pub(crate) struct Imported {
    pub(crate) image_id: Uuid,
    pub(crate) host: Uuid,
    /// Digest of the manifest for the host's processor.
    pub(crate) digest: String,
    /// Size of the smallest disk.
    pub(crate) size_mb: u32,
    pub(crate) config: ImageConfig,
    /// Number of entries and attributes that were left out, and the first of them.
    pub(crate) skipped: u64,
    pub(crate) first_skipped: Vec<String>,
}

/// How far an import is, in bytes of the layers as the registry has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    total: u64,
    fetched: u64,
    unpacked: u64,
}

/// What an image says of its program. It is stored in this form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageConfig {
    pub(crate) env: BTreeMap<String, String>,
    /// Name or number of the user, and after a colon the group if the image names one.
    pub(crate) user: String,
    /// Absolute path of the directory.
    pub(crate) workdir: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
}

/// What the record of a sandbox has of its image: what is told of it, and its id. It is stored in this form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Kept {
    id: Uuid,
    #[serde(flatten)]
    told: SandboxImage,
}

/// Parses a reference.
pub(crate) fn parsed(text: &str) -> Result<ImageReference, Fault> {
    text.parse::<ImageReference>().map_err(|error| Fault::invalid(format!("image: {error}")))
}

/// Returns the whole name of an image, with the registry, the repository and the tag that a short reference means.
pub(crate) fn whole(reference: &ImageReference) -> String {
    if reference.tag.is_none() && reference.digest.is_none() {
        return format!("{reference}:latest");
    }
    reference.to_string()
}

/// Returns the reference of the image that has this digest, whatever becomes of the tag.
pub(crate) fn pinned(reference: &ImageReference, digest: &str) -> ImageReference {
    ImageReference { tag: None, digest: Some(digest.to_owned()), ..reference.clone() }
}

/// Checks an account. What is wrong with a password is told without it.
pub(crate) fn check_account(account: &RegistryAccount) -> Result<(), Fault> {
    if !fits(&account.username, USERNAME_MAX) || account.username.contains(':') {
        let message = format!(
            "registry: username has 1 to {USERNAME_MAX} characters, and no colon and no control character"
        );
        return Err(Fault::invalid(message));
    }
    if !fits(&account.password, PASSWORD_MAX) {
        let message =
            format!("registry: password has 1 to {PASSWORD_MAX} characters, and no control character");
        return Err(Fault::invalid(message));
    }
    Ok(())
}

fn fits(text: &str, max: usize) -> bool {
    let count = text.chars().take(max + 1).count();
    (1..=max).contains(&count) && !text.bytes().any(|byte| byte.is_ascii_control())
}

/// Returns the ids of imported images among those that a host has told.
pub(crate) fn of_digests(told: &[String]) -> Vec<Uuid> {
    let ids = told.iter().take(LISTED_MAX).filter_map(|id| id.parse::<Uuid>().ok());
    ids.filter(|id| id.get_version_num() == OF_DIGEST).collect()
}

/// Returns the id of an image as its host knows it: that of an imported image, which is made of its digest, is written with
/// hyphens, and that of one that was made of a snapshot, which the control plane has chosen, without.
pub(crate) fn on_host(id: Uuid) -> String {
    if id.get_version_num() == OF_DIGEST { id.hyphenated().to_string() } else { id.simple().to_string() }
}

/// Imports an image on a host with room for what is to start from it: one on which the team has used it before, if there is one.
/// Which host is asked is told through `asking`.
pub(crate) async fn import(
    app: &App,
    wish: &Wish,
    need: &Need<'_>,
    asking: &watch::Sender<Option<Uuid>>,
) -> Result<Imported, Fault> {
    let mut free = place(&hosts::candidates(&app.db).await?, need)?;
    let before = images::hosts_of(&app.db, wish.team, &wish.known_as).await?;
    // Those of equal rank stay in their order.
    free.sort_by_key(|host| before.iter().position(|known| known == host).unwrap_or(usize::MAX));
    let mut away = None;
    for host in free {
        asking.send_replace(Some(host));
        match on(app, host, wish).await {
            Err(fault) if fault.code == ErrorCode::HostUnavailable => away = Some(fault),
            ended => return ended,
        }
    }
    Err(away.unwrap_or_else(Fault::internal))
}

/// Imports an image on this host, and records its use. Both are completed if the caller does not wait: nobody would remove an
/// image that is not recorded.
async fn on(app: &App, host: Uuid, wish: &Wish) -> Result<Imported, Fault> {
    let (app, wish) = (app.clone(), wish.clone());
    let task = request_trace::spawn(async move { recorded(&app, host, &wish).await });
    task.await.map_err(|error| {
        tracing::error!(%error, "the task of an import failed");
        Fault::internal()
    })?
}

/// Imports an image on this host and records its use; once more if it was removed meanwhile.
async fn recorded(app: &App, host: Uuid, wish: &Wish) -> Result<Imported, Fault> {
    for _ in 0..TRIES {
        let asked_at = images::now(&app.db).await?;
        let imported = ask(app, host, wish).await?;
        if record(app, wish, &imported, asked_at).await? {
            return Ok(imported);
        }
        until_removed(app, imported.image_id, host).await?;
    }
    Err(being_removed())
}

/// Waits until no removal of an image from a host is in work.
async fn until_removed(app: &App, image: Uuid, host: Uuid) -> Result<(), Fault> {
    let begun = Instant::now();
    while images::is_removed_since(&app.db, image, host, images::now(&app.db).await?).await? {
        if begun.elapsed() > REMOVAL {
            return Err(being_removed());
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// The fault of an image whose removal does not end.
fn being_removed() -> Fault {
    let message =
        "the image is being removed from its host, because nothing needed it: try again in a minute";
    Fault::new(ErrorCode::HostUnavailable, message)
}

/// Asks a host how far its import of an image is. `None` if it does not know, does not answer, or is older than the question: the
/// import itself tells what is wrong.
pub(crate) async fn progress(app: &App, host: Uuid, wish: &Wish) -> Option<Progress> {
    let address = hosts::address(&app.db, host).await.ok()??;
    let (reference, team_id) = (whole(&wish.reference), wish.team.to_string());
    let request = GetImportProgressRequest { reference, team_id, ..Default::default() };
    let agent = app.agents.at(host.into(), &address);
    let told =
        agent.get_import_progress_with_options(request, within(deadline::ANSWER)).await.ok()?.into_owned();
    (told.total > 0).then_some(Progress { total: told.total, fetched: told.fetched, unpacked: told.unpacked })
}

/// Asks a host to import an image.
async fn ask(app: &App, host: Uuid, wish: &Wish) -> Result<Imported, Fault> {
    let gone = || Fault::new(ErrorCode::HostUnavailable, "the image's host is no longer registered");
    let address = hosts::address(&app.db, host).await?.ok_or_else(gone)?;
    let account = wish.account.clone();
    let (username, password) =
        account.map(|account| (account.username, account.password)).unwrap_or_default();
    let reference = whole(&wish.reference);
    let team_id = wish.team.to_string();
    let request = ImportImageRequest { reference, username, password, team_id, ..Default::default() };
    let limit = app.limits.image_import;
    let agent = app.agents.at(host.into(), &address);
    let imported = agent.import_image_with_options(request, within(limit)).await;
    Imported::of(host, imported.map_err(|error| not_imported(error, limit))?.into_owned())
}

/// Records the use of an image. False if it may have been removed since its host was asked for it.
async fn record(app: &App, wish: &Wish, imported: &Imported, asked_at: DateTime<Utc>) -> Result<bool, Fault> {
    let config = serde_json::to_value(&imported.config).unwrap_or_default();
    let new = Use {
        team_id: wish.team,
        reference: &wish.known_as,
        host_id: imported.host,
        image_id: imported.image_id,
        digest: &imported.digest,
        size_mb: imported.size_mb.into(),
        config,
        asked_at,
    };
    Ok(images::put(&app.db, new).await?)
}

/// Converts the error of an import. If the time is over, the host goes on.
fn not_imported(error: ConnectError, limit: Duration) -> Fault {
    if matches!(error.code, Wire::DeadlineExceeded) && wrenn_rpc::fault::of(&error).is_none() {
        let message = format!(
            "the image was not imported within {} s (server.image_import_secs): its host goes on, so ask again later",
            limit.as_secs()
        );
        return Fault::new(ErrorCode::Timeout, message);
    }
    Fault::from(error)
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        let total = mib(self.total);
        if self.fetched < self.total {
            write!(f, "{:.1} of {total:.1} MiB fetched", mib(self.fetched))
        } else if self.unpacked < self.total {
            write!(f, "{total:.1} MiB fetched, {:.1} of them unpacked", mib(self.unpacked))
        } else {
            write!(f, "{total:.1} MiB unpacked, its file system is being made")
        }
    }
}

impl Imported {
    /// Reads what is recorded of an image that was uploaded.
    fn of_uploaded(row: Uploaded) -> Result<Self, Fault> {
        let config = serde_json::from_value(row.config).map_err(|error| {
            tracing::error!(%error, image = %row.image_id, "what an uploaded image runs cannot be read");
            Fault::internal()
        })?;
        Ok(Self {
            image_id: row.image_id,
            host: row.host_id,
            digest: row.digest,
            size_mb: row.size_mb.try_into().unwrap_or(u32::MAX),
            config,
            skipped: 0,
            first_skipped: Vec::new(),
        })
    }

    /// Reads the answer of a host.
    fn of(host: Uuid, answer: ImportImageResponse) -> Result<Self, Fault> {
        let image_id = answer.image_id.parse::<Uuid>().map_err(|error| {
            tracing::error!(%error, "a host has told an id of an image that is none");
            Fault::new(ErrorCode::AgentError, "the host could not import the image; its log says why")
        })?;
        let config = ImageConfig {
            // Of several variables with one name, the last one counts.
            env: answer.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
            user: if answer.user.is_empty() { "root".to_owned() } else { answer.user },
            workdir: if answer.workdir.starts_with('/') { answer.workdir } else { "/".to_owned() },
            entrypoint: answer.entrypoint,
            cmd: answer.cmd,
        };
        Ok(Self {
            image_id,
            host,
            digest: answer.digest,
            size_mb: answer.size_mb.try_into().unwrap_or(u32::MAX),
            config,
            skipped: answer.skipped,
            first_skipped: answer.first_skipped,
        })
    }

    /// Returns what the record of a sandbox has of it, which was asked for by this reference.
    pub(crate) fn kept(&self, reference: &str) -> Kept {
        Kept::new(self.image_id, reference, &self.digest, &self.config.entrypoint, &self.config.cmd)
    }
}

impl Kept {
    /// Makes it of an image, which was asked for by this reference. If what the image runs is too much for a record, it has
    /// nothing of that.
    pub(crate) fn new(
        id: Uuid,
        reference: &str,
        digest: &str,
        entrypoint: &[String],
        cmd: &[String],
    ) -> Self {
        let words = [entrypoint, cmd].concat();
        let size: usize = words.iter().map(String::len).sum();
        let is_short = size <= COMMAND_MAX && words.len() <= WORDS_MAX;
        let command = if is_short { words } else { Vec::new() };
        Self {
            id,
            told: SandboxImage { reference: reference.to_owned(), digest: digest.to_owned(), command },
        }
    }
}

#[cfg(test)]
mod tests {
    use wrenn_rpc::host::v1::import_image_response::Variable;

    use super::*;

    fn answer() -> ImportImageResponse {
        let variable = |name: &str, value: &str| Variable {
            name: name.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        };
        ImportImageResponse {
            image_id: "0a0a0a0a-0a0a-8a0a-8a0a-0a0a0a0a0a0a".to_owned(),
            digest: "sha256:00".to_owned(),
            size_mb: 117,
            env: vec![variable("A", "1"), variable("B", ""), variable("A", "2")],
            user: "app:staff".to_owned(),
            workdir: "/srv".to_owned(),
            entrypoint: vec!["/init".to_owned()],
            cmd: vec!["serve".to_owned()],
            ..Default::default()
        }
    }

    #[test]
    fn an_answer_is_read_as_programs_are_started() {
        let imported = Imported::of(Uuid::nil(), answer()).expect("an image");
        let env: Vec<_> = imported.config.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!((env, imported.size_mb), (vec!["A=2".to_owned(), "B=".to_owned()], 117));
        assert_eq!((imported.config.user.as_str(), imported.config.workdir.as_str()), ("app:staff", "/srv"));
        let bare = ImportImageResponse { user: String::new(), workdir: String::new(), ..answer() };
        let bare = Imported::of(Uuid::nil(), bare).expect("an image").config;
        assert_eq!((bare.user.as_str(), bare.workdir.as_str()), ("root", "/"));
        assert!(Imported::of(Uuid::nil(), ImportImageResponse { image_id: "x".into(), ..answer() }).is_err());
    }

    #[test]
    fn progress_tells_what_is_done_of_how_much() {
        let of = |fetched, unpacked| Progress { total: 84 << 20, fetched, unpacked }.to_string();
        assert_eq!(of(0, 0), "0.0 of 84.0 MiB fetched");
        assert_eq!(of(12_897_485, 0), "12.3 of 84.0 MiB fetched");
        assert_eq!(of(84 << 20, 21 << 19), "84.0 MiB fetched, 10.5 of them unpacked");
        assert_eq!(of(84 << 20, 84 << 20), "84.0 MiB unpacked, its file system is being made");
    }

    /// The database looks for the id in it.
    #[test]
    fn the_record_of_a_sandbox_has_the_id_and_what_is_told() {
        let imported = Imported::of(Uuid::nil(), answer()).expect("an image");
        let kept = serde_json::to_string(&imported.kept("app:1")).expect("JSON");
        let expected = r#"{"id":"0a0a0a0a-0a0a-8a0a-8a0a-0a0a0a0a0a0a","reference":"app:1","digest":"sha256:00","command":["/init","serve"]}"#;
        assert_eq!(kept, expected);
        let told: SandboxImage = serde_json::from_str(&kept).expect("what is told");
        assert_eq!(told.command, ["/init", "serve"]);
        let long = ImportImageResponse { cmd: vec!["x".repeat(COMMAND_MAX)], ..answer() };
        let long = Imported::of(Uuid::nil(), long).expect("an image");
        assert!(long.kept("app:1").told.command.is_empty());
    }

    #[test]
    fn a_host_knows_an_image_by_the_text_that_it_was_given_or_has_made() {
        let of_digest = "0a0a0a0a-0a0a-8a0a-8a0a-0a0a0a0a0a0a";
        assert_eq!(on_host(of_digest.parse().expect("an id")), of_digest);
        let chosen = Uuid::now_v7();
        assert_eq!(on_host(chosen), chosen.simple().to_string());
    }

    #[test]
    fn only_imported_images_are_looked_at() {
        let of_digest = "0a0a0a0a-0a0a-8a0a-8a0a-0a0a0a0a0a0a";
        let told = [of_digest.to_owned(), Uuid::now_v7().simple().to_string(), "x".to_owned()];
        assert_eq!(of_digests(&told), [of_digest.parse::<Uuid>().expect("an id")]);
    }

    #[test]
    fn names_are_whole_and_pinned() {
        let reference = |text: &str| parsed(text).expect("a reference");
        assert_eq!(whole(&reference("debian")), "docker.io/library/debian:latest");
        assert_eq!(whole(&reference("localhost:5000/a:1")), "localhost:5000/a:1");
        let digest = format!("sha256:{}", "0".repeat(64));
        let pinned = pinned(&reference("debian:bookworm"), &digest);
        assert_eq!(whole(&pinned), format!("docker.io/library/debian@{digest}"));
        assert!(parsed("Debian").is_err_and(|fault| fault.message.starts_with("image: ")));
    }

    #[test]
    fn accounts_have_bounds_and_nothing_quotes_a_password() {
        let check = |username: &str, password: &str| {
            let (username, password) = (username.to_owned(), password.to_owned());
            check_account(&RegistryAccount { username, password })
        };
        let (longest, long) = ("x".repeat(PASSWORD_MAX), "x".repeat(PASSWORD_MAX + 1));
        assert!(check("robot$team+ci", "tök€n: a b").is_ok() && check("r", &longest).is_ok());
        for (username, password) in
            [("", "x"), ("a:b", "x"), ("a\n", "x"), ("a", ""), ("a", "hunter2\0"), ("a", &long)]
        {
            let fault = check(username, password).expect_err("refused");
            assert!(!fault.message.contains("hunter2") && fault.message.len() < 200, "{}", fault.message);
        }
    }
}
