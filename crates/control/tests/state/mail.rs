// SPDX-License-Identifier: Apache-2.0
//! Cases of mail by SMTP servers that demand TLS and an account, and by such as are not trusted.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use wrenn_control::{Limits, MailSettings, SmtpTls};
use wrenn_testkit::{Api, MailDemands, MailServer, wait_until};

use crate::{
    accounts::{new_user, sign_up},
    fixture::{Fixture, SOON},
    log_scan,
    stores::Stores,
};

/// A server behind a reverse proxy that serves it below a path.
const PUBLIC_URL: &str = "https://wrenn.test/wrenn";
const USER: &str = "robot";
const PASSWORD: &str = "hush-of-the-account-for-mail";

/// Files for TLS with an SMTP server and for its account: `authority`, `certificate` with its `key`, and `password`.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    /// Makes an authority, and a certificate of it for a host.
    fn of(host: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut of_authority = CertificateParams::default();
        of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Its own name, so that one authority is not taken for another.
        of_authority.distinguished_name.push(DnType::CommonName, dir.path().display().to_string());
        let authority = CertifiedIssuer::self_signed(of_authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &authority)?;
        let files = Self { dir };
        for (name, text) in [
            ("authority", authority.pem()),
            ("certificate", certificate.pem()),
            ("key", key.serialize_pem()),
            ("password", PASSWORD.to_owned()),
        ] {
            fs::write(files.path(name), format!("{text}\n"))?;
        }
        log_scan::look_for(PASSWORD);
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a server with the certificate demands.
    fn demands(&self, tls: SmtpTls, mechanism: &'static str) -> MailDemands {
        MailDemands {
            certificate: self.path("certificate"),
            key: self.path("key"),
            is_wrapped: tls == SmtpTls::Tls,
            user: USER.to_owned(),
            password: PASSWORD.to_owned(),
            mechanism,
        }
    }

    /// Settings that trust the authority, and use the account.
    fn settings(&self, port: u16, tls: SmtpTls) -> MailSettings {
        let mut settings = MailSettings::default();
        settings.public_url = Some(PUBLIC_URL.to_owned());
        settings.host = Some("127.0.0.1".to_owned());
        (settings.port, settings.tls) = (port, tls);
        settings.ca_file = Some(self.path("authority"));
        settings.user = Some(USER.to_owned());
        settings.password_file = Some(self.path("password"));
        settings
    }
}

/// Starts a server with these settings in place of the one before, and returns a client of it without a key.
async fn serve(fixture: &mut Fixture, settings: MailSettings) -> Result<Api> {
    fixture.stop_first().await?;
    fixture.mail = settings;
    Ok(fixture.serve().await?.with_key(""))
}

/// Waits until the mail was not sent, and returns what becomes of it, and why.
async fn not_sent(fixture: &Fixture) -> Result<String> {
    let query = "SELECT CASE WHEN failed_at IS NULL THEN 'waits: ' ELSE 'given up: ' END || error
        FROM mails WHERE error <> ''";
    let found = async || fixture.value(query).await.ok().filter(|found| !found.is_empty());
    wait_until("the reason why a mail was not sent", SOON, found).await
}

/// Mails go by STARTTLS and by TLS from the beginning, with an account, by whichever mechanism the SMTP server has. Their links have the
/// path of the server.
pub(crate) async fn mails_go_by_tls_with_an_account(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let files = Files::of("127.0.0.1")?;
    for (tls, mechanism) in [(SmtpTls::Starttls, "LOGIN"), (SmtpTls::Tls, "PLAIN")] {
        let mail = MailServer::demanding(files.demands(tls, mechanism)).await?;
        let api = serve(&mut fixture, files.settings(mail.port(), tls)).await?;
        let email = format!("ada.{}@example.com", mechanism.to_lowercase());
        new_user(&api, &mail, &email).await.with_context(|| format!("{tls:?}, {mechanism}"))?;
        let received = mail.wait(&email, 1).await?;
        ensure!(received.header("X-Came") == format!("by TLS, {mechanism}"), "{}", received.text);
        let link = format!("{PUBLIC_URL}/account/activate#token=");
        ensure!(received.text.contains(&link), "{}", received.text);
    }
    fixture.stop().await
}

/// A mail waits while the SMTP server refuses the account, and goes once the operator has set the password right.
pub(crate) async fn a_mail_waits_for_the_right_password(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let (files, email) = (Files::of("127.0.0.1")?, "ada.password@example.com");
    for (tls, mechanism) in [(SmtpTls::Starttls, "PLAIN"), (SmtpTls::Tls, "LOGIN")] {
        let mail = MailServer::demanding(files.demands(tls, mechanism)).await?;
        fs::write(files.path("password"), "hush-of-another-account")?;
        let api = serve(&mut fixture, files.settings(mail.port(), tls)).await?;
        sign_up(&api, email).await?;
        let told = not_sent(&fixture).await?;
        ensure!(told.starts_with("waits: ") && told.contains("535"), "{tls:?}, {mechanism}: {told}");
        ensure!(mail.to(email).is_empty(), "{tls:?}, {mechanism}: it was sent");
        fs::write(files.path("password"), PASSWORD)?;
        serve(&mut fixture, files.settings(mail.port(), tls)).await?;
        fixture.sql("UPDATE mails SET next_attempt_at = now()").await?;
        mail.wait(email, 1).await?;
        fixture.wait_value("SELECT count(*)::text FROM mails", "0").await?;
    }
    fixture.stop().await
}

/// No mail goes to an SMTP server whose certificate is of an unknown authority, or for another host. The reason says which.
pub(crate) async fn no_mail_goes_to_a_stranger(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let (own, of_stranger) = (Files::of("127.0.0.1")?, Files::of("127.0.0.1")?);
    let of_other_host = Files::of("mail.example.com")?;
    let email = "ada.stranger@example.com";
    for (tls, server, client, expected) in [
        (SmtpTls::Starttls, &of_stranger, &own, "UnknownIssuer"),
        (SmtpTls::Tls, &of_stranger, &own, "UnknownIssuer"),
        (SmtpTls::Tls, &of_other_host, &of_other_host, "not valid for name"),
    ] {
        let mail = MailServer::demanding(server.demands(tls, "PLAIN")).await?;
        let api = serve(&mut fixture, client.settings(mail.port(), tls)).await?;
        sign_up(&api, email).await?;
        let told = not_sent(&fixture).await?;
        ensure!(told.starts_with("waits: ") && told.contains(expected), "{tls:?}, {expected}: {told}");
        ensure!(mail.to(email).is_empty(), "{tls:?}, {expected}: it was sent");
        fixture.sql("DELETE FROM mails").await?;
    }
    fixture.stop().await
}

/// An SMTP server that offers no TLS, takes everything, and keeps what it hears.
struct InClear {
    port: u16,
    heard: Heard,
    serving: JoinHandle<()>,
}

type Heard = Arc<Mutex<Vec<u8>>>;

impl InClear {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (port, heard) = (listener.local_addr()?.port(), Heard::default());
        let kept = heard.clone();
        let serving = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(take_everything(connection, kept.clone()));
            }
        });
        Ok(Self { port, heard, serving })
    }

    fn heard(&self) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&heard).into_owned()
    }
}

impl Drop for InClear {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take_everything(mut connection: TcpStream, heard: Heard) {
    let mut answer: &[u8] = b"220 clear.test ESMTP\r\n";
    let mut piece = [0_u8; 4096];
    while connection.write_all(answer).await.is_ok() {
        let Ok(length @ 1..) = connection.read(&mut piece).await else { return };
        let said = &piece[..length];
        heard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(said);
        answer = if said.starts_with(b"EHLO") {
            b"250-clear.test\r\n250 AUTH PLAIN LOGIN\r\n"
        } else if said.starts_with(b"DATA") {
            b"354 go on\r\n"
        } else {
            b"250 OK\r\n"
        };
    }
}

/// Of what TLS is asked for, nothing is sent in clear, whatever the SMTP server offers: neither password nor mail.
pub(crate) async fn nothing_is_sent_in_clear(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let (files, email) = (Files::of("127.0.0.1")?, "ada.clear@example.com");
    for (tls, expected) in [(SmtpTls::Starttls, "STARTTLS"), (SmtpTls::Tls, "corrupt message")] {
        let clear = InClear::start().await?;
        let api = serve(&mut fixture, files.settings(clear.port, tls)).await?;
        sign_up(&api, email).await?;
        let told = not_sent(&fixture).await?;
        ensure!(told.starts_with("waits: ") && told.contains(expected), "{tls:?}: {told}");
        // It may read what came only after the client has given up.
        let asked = async || Some(clear.heard()).filter(|heard| !heard.is_empty());
        let heard = wait_until("the SMTP server to be asked", SOON, asked).await?;
        for secret in ["AUTH", "MAIL FROM", "RCPT TO", email, PASSWORD] {
            ensure!(!heard.contains(secret), "{tls:?}: it heard {secret}: {heard:?}");
        }
        fixture.sql("DELETE FROM mails").await?;
    }
    fixture.stop().await
}
