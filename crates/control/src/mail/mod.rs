// SPDX-License-Identifier: Apache-2.0
//! Mail to users: written to an outbox in the transaction of the change that it tells of, and sent by a worker.
//!
//! No mail in the outbox has a secret: a link with a one-time token is made only when the mail is sent, so that neither the
//! database nor its backups ever have one.

mod smtp;
mod text;
mod worker;

pub(crate) use worker::run;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::sync::Notify;
use uuid::Uuid;
use wrenn_api::{ErrorCode, InvitationId};

use self::smtp::Smtp;
use crate::{config::MailSettings, db::mails, error::Fault};

/// A mail to be sent. It is stored as JSON until it is sent, so a change of a field must read what older servers wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Mail {
    /// The link with which a sign-up becomes an account. If there is an account with the address, its owner is told instead that
    /// somebody signed up with it.
    Activation {
        /// The sign-up.
        sign_up: Uuid,
    },
    /// The link with which the user of the address sets another password. If there is none, nothing is sent: this is found out only
    /// here, so that whoever asks for the link learns nothing, not even by the time that it takes.
    PasswordReset,
    /// The password was changed, and all other sessions ended.
    PasswordChanged,
    /// The account was deleted, and is removed for good after some days.
    AccountDeleted {
        /// Number of days until it is removed.
        days: u32,
    },
    /// The link with which the user of the address joins a team.
    Invitation {
        /// The invitation. Its token is taken with [`crate::links::take`], kind `LinkKind::Invitation`.
        invitation: InvitationId,
        /// Name of the team.
        team: String,
        /// Who invites: an e-mail address.
        inviter: String,
        /// The role that the user gets.
        role: String,
    },
    /// The user is in a team no more.
    Removed {
        /// Name of the team.
        team: String,
    },
    /// A team of the user was deleted.
    TeamDeleted {
        /// Name of the team.
        team: String,
    },
    /// The user is the owner of a team now.
    Ownership {
        /// Name of the team.
        team: String,
    },
}

impl Mail {
    /// Whether nothing can go on without the mail; other mails only tell what happened.
    const fn is_needed(&self) -> bool {
        matches!(self, Self::Activation { .. } | Self::PasswordReset | Self::Invitation { .. })
    }
}

/// Sends mail by SMTP, if it is configured.
pub(crate) struct Mailer {
    smtp: Option<Smtp>,
    /// Notifies the worker of a new mail.
    queued: Notify,
}

impl Mailer {
    /// Creates the service. Fails if the settings do not fit together.
    pub(crate) fn new(settings: &MailSettings) -> anyhow::Result<Self> {
        Ok(Self { smtp: Smtp::new(settings)?, queued: Notify::new() })
    }

    /// Fails if no mail can be sent, because no SMTP server is configured.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.smtp.is_some() {
            return Ok(());
        }
        let message = "this server sends no mail: its operator has to configure an SMTP server (server.smtp_host), or to make \
                       the account with `wrenn user create`";
        Err(Fault::new(ErrorCode::MailUnavailable, message))
    }

    /// Queues a mail in the transaction of the change that it tells of; call [`Self::wake`] after the commit. Without an SMTP
    /// server, it fails if nothing can go on without the mail, and else does nothing.
    pub(crate) async fn send(&self, tx: &mut PgConnection, to: &str, mail: &Mail) -> Result<(), Fault> {
        if mail.is_needed() {
            self.check()?;
        } else if self.smtp.is_none() {
            return Ok(());
        }
        let json = serde_json::to_value(mail).map_err(|error| {
            tracing::error!(%error, "a mail cannot be written");
            Fault::internal()
        })?;
        mails::put(tx, Uuid::now_v7(), to, &json).await.map_err(Into::into)
    }

    /// Lets the worker look for new mails at once.
    pub(crate) fn wake(&self) {
        self.queued.notify_one();
    }
}
