// SPDX-License-Identifier: Apache-2.0
//! SMTP: how a mail reaches the server that delivers it.

use std::{fs, time::Duration};

use anyhow::{Context, bail, ensure};
use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{Mailbox, MultiPart},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, CertificateStore, Tls, TlsParameters},
        extension::ClientId,
    },
};
use uuid::Uuid;
use wrenn_os::tls_files;

use super::text::Text;
use crate::config::{MailSettings, SmtpTls};

/// Time limit of connecting, and of each answer of the server.
const ANSWER: Duration = Duration::from_secs(20);
/// Time limit of a whole mail.
const WHOLE: Duration = Duration::from_secs(60);
/// Maximum length of the file with the password, in bytes.
const PASSWORD_MAX: u64 = 4096;

/// The SMTP server of this installation.
pub(super) struct Smtp {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    /// URL at which users reach Wrenn.
    pub(super) public_url: String,
}

/// Why a mail was not sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotSent {
    /// Whether another attempt would fail, too.
    pub(super) is_final: bool,
    /// Reason, for the operator.
    pub(super) reason: String,
}

impl Smtp {
    /// Reads the settings; `None` if they name no SMTP server.
    pub(super) fn new(settings: &MailSettings) -> anyhow::Result<Option<Self>> {
        let Some(host) = &settings.host else { return Ok(None) };
        let public_url = settings.public_url.clone().context(
            "server.smtp_host is set, and server.public_url is not: set it to the URL at which users reach Wrenn, for the links \
             in mails",
        )?;
        let from = sender(settings, &public_url)?;
        let name = from.email.domain().to_owned();
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host.as_str())
            .port(settings.port)
            .tls(tls(settings, host)?)
            .timeout(Some(ANSWER))
            .hello_name(ClientId::Domain(name));
        if let Some(credentials) = credentials(settings)? {
            builder = builder.credentials(credentials);
        }
        Ok(Some(Self { transport: builder.build(), from, public_url }))
    }

    /// Sends a mail. Its id is the same at each attempt, so that receivers know a repeated one.
    pub(super) async fn send(&self, id: Uuid, to: &str, text: Text) -> Result<(), NotSent> {
        let message = self.message(id, to, text)?;
        match tokio::time::timeout(WHOLE, self.transport.send(message)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(NotSent { is_final: is_final(&error), reason: error.to_string() }),
            Err(_) => {
                let reason = format!("the SMTP server took longer than {} s", WHOLE.as_secs());
                Err(NotSent { is_final: false, reason })
            }
        }
    }

    fn message(&self, id: Uuid, to: &str, text: Text) -> Result<Message, NotSent> {
        let wrong = |reason: String| NotSent { is_final: true, reason };
        let to: Address = to.parse().map_err(|error| wrong(format!("the address is none: {error}")))?;
        let id = format!("<{}@{}>", id.simple(), self.from.email.domain());
        Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(text.subject)
            .message_id(Some(id))
            .date_now()
            .multipart(MultiPart::alternative_plain_html(text.plain, text.html))
            .map_err(|error| wrong(format!("the mail cannot be written: {error}")))
    }
}

/// Returns whether the server refuses the mail for good. That it refuses the account (530 to 538) is for the operator to set right,
/// and the mail waits for that.
fn is_final(error: &lettre::transport::smtp::Error) -> bool {
    error.is_permanent() && !error.status().is_some_and(|code| code.to_string().starts_with("53"))
}

fn sender(settings: &MailSettings, public_url: &str) -> anyhow::Result<Mailbox> {
    if let Some(from) = &settings.from {
        return from.parse().with_context(|| {
            format!("server.smtp_from is {from:?}: give an address such as `Wrenn <wrenn@example.com>`")
        });
    }
    let host = host_of(public_url).filter(|host| !host.is_empty());
    let host = host.context("server.public_url is no URL: give one such as https://wrenn.example.com")?;
    let address = format!("Wrenn <noreply@{host}>");
    address.parse().with_context(|| {
        format!("mail cannot come from noreply@{host}: set server.smtp_from to an address of yours")
    })
}

/// Host of a URL, without a port.
fn host_of(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let host = rest.split('/').next()?;
    // An IPv6 address, in brackets, is no domain of a mail.
    if host.contains('[') { None } else { host.split(':').next() }
}

fn tls(settings: &MailSettings, host: &str) -> anyhow::Result<Tls> {
    ensure!(
        settings.tls != SmtpTls::None || settings.ca_file.is_none(),
        "server.smtp_ca_file is set, and server.smtp_tls is none: use starttls or tls"
    );
    Ok(match settings.tls {
        SmtpTls::None => Tls::None,
        SmtpTls::Starttls => Tls::Required(parameters(settings, host)?),
        SmtpTls::Tls => Tls::Wrapper(parameters(settings, host)?),
    })
}

/// Returns what the server must prove: its name, by a certificate of an authority that is trusted.
fn parameters(settings: &MailSettings, host: &str) -> anyhow::Result<TlsParameters> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(file) = &settings.ca_file {
        builder = builder.certificate_store(CertificateStore::None);
        for authority in tls_files::certificates(file).context("server.smtp_ca_file")? {
            builder = builder.add_root_certificate(Certificate::from_der(authority.to_vec())?);
        }
    }
    builder.build().with_context(|| format!("TLS with the SMTP server {host} cannot be prepared"))
}

fn credentials(settings: &MailSettings) -> anyhow::Result<Option<Credentials>> {
    let (Some(user), Some(file)) = (&settings.user, &settings.password_file) else {
        if settings.user.is_some() || settings.password_file.is_some() {
            bail!("set both server.smtp_user and server.smtp_password_file, or none of them");
        }
        return Ok(None);
    };
    ensure!(
        settings.tls != SmtpTls::None || settings.host.as_deref().is_some_and(is_loopback),
        "server.smtp_tls is none: the password would be sent in clear; use starttls or tls"
    );
    let read = || {
        ensure!(fs::metadata(file)?.len() <= PASSWORD_MAX, "it has more than {PASSWORD_MAX} bytes");
        anyhow::Ok(fs::read_to_string(file)?)
    };
    let password = read().with_context(|| format!("server.smtp_password_file {}", file.display()))?;
    Ok(Some(Credentials::new(user.clone(), password.trim_end_matches(['\r', '\n']).to_owned())))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(host: &str, url: Option<&str>) -> MailSettings {
        MailSettings {
            host: Some(host.to_owned()),
            public_url: url.map(str::to_owned),
            tls: SmtpTls::None,
            ..MailSettings::default()
        }
    }

    fn refusal(settings: &MailSettings) -> String {
        Smtp::new(settings).err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        assert!(Smtp::new(&MailSettings::default()).expect("no mail").is_none());
        assert!(refusal(&settings("localhost", None)).contains("server.public_url"));
        assert!(refusal(&settings("localhost", Some("wrenn"))).contains("server.public_url"));
        let url = Some("https://wrenn.example.com:8443/x");
        let without = MailSettings { user: Some("robot".into()), ..settings("localhost", url) };
        assert!(refusal(&without).contains("server.smtp_password_file"));
        let file = Some("/nonexistent/password".into());
        let clear = MailSettings {
            user: Some("robot".into()),
            password_file: file,
            ..settings("mail.example.com", url)
        };
        assert!(refusal(&clear).contains("in clear"));
        let from = MailSettings { from: Some("nobody".into()), ..settings("localhost", url) };
        assert!(refusal(&from).contains("server.smtp_from"));
        let of_authority = |tls| MailSettings {
            tls,
            ca_file: Some("/nonexistent/authority".into()),
            ..settings("localhost", url)
        };
        assert!(refusal(&of_authority(SmtpTls::None)).contains("server.smtp_tls"));
        let missing = refusal(&of_authority(SmtpTls::Tls));
        assert!(missing.contains("server.smtp_ca_file: /nonexistent/authority"), "{missing}");
    }

    #[test]
    fn mails_come_from_the_host_of_the_url_and_keep_their_id() {
        let smtp = Smtp::new(&settings("localhost", Some("https://wrenn.example.com:8443/x")));
        let smtp = smtp.expect("settings").expect("a server");
        let text = || Text { subject: "A".into(), plain: "b".into(), html: "<p>b</p>".into() };
        let id = Uuid::nil();
        let mail = smtp.message(id, "jo@example.org", text()).expect("a mail");
        let written = String::from_utf8(mail.formatted()).expect("text");
        for line in [
            "From: Wrenn <noreply@wrenn.example.com>\r\n",
            "To: jo@example.org\r\n",
            "Message-ID: <00000000000000000000000000000000@wrenn.example.com>\r\n",
            "Date: ",
            "multipart/alternative",
        ] {
            assert!(written.contains(line), "{line}: {written}");
        }
        let wrong = smtp.message(id, "jo", text()).expect_err("no address");
        assert!(wrong.is_final, "{wrong:?}");
    }
}
