// SPDX-License-Identifier: Apache-2.0
//! Worker that sends the mails of the outbox: at least once, by any server, again after failures for a day.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wrenn_rpc::Foreign;

use super::{
    Mail, Mailer,
    smtp::{NotSent, Smtp},
    text,
};
use crate::{
    db::{accounts, mails},
    error::Fault,
    links::{self, LinkKind},
};

/// Interval at which the outbox is looked at: another server may have added a mail.
const IDLE: Duration = Duration::from_secs(1);
/// Delay after a failure of the database.
const PAUSE: Duration = Duration::from_secs(5);
/// Time until the second attempt, which is longer than an attempt takes: each doubles it.
const FIRST: Duration = Duration::from_secs(120);
/// Maximum time between two attempts.
const MOST: Duration = Duration::from_secs(3600);
/// Age after which a mail that cannot be sent is given up.
const GIVEN_UP: Duration = Duration::from_secs(24 * 3600);
/// Maximum length of a reason that is kept, in characters.
const REASON_MAX: usize = 500;

/// Sends mails until the server stops.
pub(crate) async fn run(mailer: &Mailer, db: &PgPool, shutdown: &CancellationToken) {
    let Some(smtp) = &mailer.smtp else {
        // Mails that were queued while there was an SMTP server wait for another one.
        return shutdown.cancelled().await;
    };
    loop {
        let pause = match step(db, smtp).await {
            Ok(true) => Duration::ZERO,
            Ok(false) => IDLE,
            Err(error) => {
                tracing::debug!(%error, "the outbox of mails cannot be read");
                PAUSE
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = mailer.queued.notified(), if pause == IDLE => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Sends one mail; returns false if none is due.
async fn step(db: &PgPool, smtp: &Smtp) -> Result<bool, Fault> {
    let Some(mail) = mails::take(db, FIRST, MOST).await? else { return Ok(false) };
    let id = mail.id;
    let Some(result) = attempt(db, smtp, &mail).await? else {
        mails::done(db, id).await?;
        return Ok(true);
    };
    match result {
        Ok(()) => {
            metrics::counter!("wrenn_mails_total", "outcome" => "sent").increment(1);
            mails::done(db, id).await?;
        }
        Err(NotSent { is_final, reason }) => {
            let is_last = is_final || mail.age_sec >= GIVEN_UP.as_secs_f64();
            let outcome = if is_last { "failed" } else { "delayed" };
            metrics::counter!("wrenn_mails_total", "outcome" => outcome).increment(1);
            // Not the address: a log is read by more people than the database.
            tracing::warn!(mail = %id, attempt = mail.attempts, is_last, reason = %Foreign(&reason), "a mail was not sent");
            let reason: String = reason.chars().take(REASON_MAX).collect();
            mails::failed(db, &mail, &reason, is_last).await?;
        }
    }
    Ok(true)
}

/// Tries to send a mail; `None` if it is not needed any more.
async fn attempt(
    db: &PgPool,
    smtp: &Smtp,
    waiting: &mails::Waiting,
) -> Result<Option<Result<(), NotSent>>, Fault> {
    let mail: Mail = match serde_json::from_value(waiting.mail.clone()) {
        Ok(mail) => mail,
        Err(error) => {
            // A newer server wrote it, and sends it when its turn comes again.
            tracing::debug!(%error, mail = %waiting.id, "a mail is of a kind that this server does not know");
            let reason = "this server does not know this kind of mail".to_owned();
            return Ok(Some(Err(NotSent { is_final: false, reason })));
        }
    };
    let mut tx = db.begin().await?;
    let link = match link(&mut tx, &mail, &waiting.recipient).await? {
        Link::Unneeded => return Ok(None),
        Link::None => None,
        Link::Of(kind, subject) => Some((kind, links::create(&mut tx, kind, subject).await?)),
    };
    tx.commit().await?;
    let url = link.as_ref().map(|(kind, token)| links::url(&smtp.public_url, *kind, token));
    let text = text::write(&mail, &smtp.public_url, url.as_deref());
    // The link of a failed attempt stays: the mail may have arrived although the answer was lost.
    Ok(Some(smtp.send(waiting.id, &waiting.recipient, text).await))
}

/// The link of a mail.
enum Link {
    /// It has none.
    None,
    /// It leads to this subject.
    Of(LinkKind, Uuid),
    /// The mail is not needed any more.
    Unneeded,
}

async fn link(tx: &mut PgConnection, mail: &Mail, recipient: &str) -> Result<Link, Fault> {
    Ok(match mail {
        Mail::Activation { sign_up } => {
            let known = accounts::by_email(&mut *tx, recipient).await?;
            if known.is_some_and(|user| !user.is_deleted()) {
                Link::None
            } else if accounts::sign_up_waits(tx, *sign_up).await? {
                Link::Of(LinkKind::Activation, *sign_up)
            } else {
                Link::Unneeded
            }
        }
        Mail::PasswordReset => match accounts::by_email(&mut *tx, recipient).await? {
            Some(user) if user.is_active() => Link::Of(LinkKind::PasswordReset, user.id),
            _ => Link::Unneeded,
        },
        Mail::Invitation { invitation, .. } => Link::Of(LinkKind::Invitation, invitation.uuid()),
        _ => Link::None,
    })
}
