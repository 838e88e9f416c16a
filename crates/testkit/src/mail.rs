// SPDX-License-Identifier: Apache-2.0
//! A real SMTP server on this machine, aiosmtpd, which keeps what it takes in a directory.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::wait_until;

/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(60);
/// Server that demands something.
const DEMANDING: &str = include_str!("mail_server.py");

/// An SMTP server, which is stopped when this is dropped.
#[derive(Debug)]
pub struct MailServer {
    address: SocketAddr,
    dir: tempfile::TempDir,
    demands: Option<MailDemands>,
    process: Option<Child>,
}

/// What a server demands before it takes a mail: TLS, and its account.
#[derive(Debug, Clone)]
pub struct MailDemands {
    /// PEM file of its certificate.
    pub certificate: PathBuf,
    /// PEM file of the key of the certificate.
    pub key: PathBuf,
    /// Whether TLS begins with the connection, instead of by STARTTLS.
    pub is_wrapped: bool,
    /// Name of its only account.
    pub user: String,
    /// Password of the account.
    pub password: String,
    /// The only mechanism by which the account signs in: `PLAIN` or `LOGIN`.
    pub mechanism: &'static str,
}

/// A mail that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedMail {
    /// The whole mail, with its headers.
    pub text: String,
}

impl ReceivedMail {
    /// Returns the token of the link in the mail.
    pub fn token(&self) -> Result<String> {
        let rest = self.text.split_once("token=").context("the mail has no link")?.1;
        let is_part = |character: &char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
        Ok(rest.chars().take_while(is_part).collect())
    }

    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> &str {
        let head = self.text.split("\n\n").next().unwrap_or_default();
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    }
}

impl MailServer {
    /// Chooses an address for a server that does not run yet.
    pub fn stopped() -> Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let dir = tempfile::Builder::new().prefix("wrenn-mail").tempdir()?;
        Ok(Self { address, dir, demands: None, process: None })
    }

    /// Starts a server that takes mails only so. They get a header `X-Came`, which says how they came.
    pub async fn demanding(demands: MailDemands) -> Result<Self> {
        let mut server = Self::stopped()?;
        server.demands = Some(demands);
        server.run().await?;
        Ok(server)
    }

    /// Starts a server.
    pub async fn start() -> Result<Self> {
        let mut server = Self::stopped()?;
        server.run().await?;
        Ok(server)
    }

    /// Starts this server.
    pub async fn run(&mut self) -> Result<()> {
        // Debian's own interpreter, which finds Debian's packages.
        let mut command = Command::new("/usr/bin/python3");
        match &self.demands {
            None => {
                command.args(["-m", "aiosmtpd", "--nosetuid", "--listen", &self.address.to_string()]);
                command.args(["--class", "aiosmtpd.handlers.Mailbox"]).arg(self.mails());
            }
            Some(demands) => {
                command.args(["-c", DEMANDING]).arg(self.asked(demands).to_string());
            }
        }
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("python3")?;
        self.process = Some(process);
        let address = self.address;
        let listens = async || tokio::net::TcpStream::connect(address).await.ok().map(drop);
        wait_until("the SMTP server (is python3-aiosmtpd installed?)", SOON, listens).await
    }

    /// Port of the server, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What the server that demands something is told.
    fn asked(&self, demands: &MailDemands) -> serde_json::Value {
        json!({
            "port": self.port(),
            "mails": self.mails(),
            "certificate": demands.certificate,
            "key": demands.key,
            "is_wrapped": demands.is_wrapped,
            "user": demands.user,
            "password": demands.password,
            "mechanism": demands.mechanism,
        })
    }

    fn mails(&self) -> PathBuf {
        self.dir.path().join("mails")
    }

    /// Returns all mails to an address, in the order in which they came.
    pub fn to(&self, address: &str) -> Vec<ReceivedMail> {
        // The directory comes with the first mail.
        let entries = std::fs::read_dir(self.mails().join("new")).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
        // Names begin with the time and a count.
        files.sort_by_key(|path| path.metadata().and_then(|data| data.modified()).ok());
        let mails = files.iter().filter_map(|path| std::fs::read_to_string(path).ok());
        // As quoted-printable text, long lines are broken, and the equals sign of a link is escaped.
        let plain = |text: String| text.replace("\r\n", "\n").replace("=\n", "").replace("=3D", "=");
        let mails = mails.map(|text| ReceivedMail { text: plain(text) });
        mails.filter(|mail| mail.header("To").contains(address)).collect()
    }

    /// Waits until there are this many mails to an address, and returns the last one of them.
    pub async fn wait(&self, address: &str, number: usize) -> Result<ReceivedMail> {
        let arrived = async || self.to(address).into_iter().nth(number.checked_sub(1)?);
        wait_until(&format!("mail {number} to {address}"), SOON, arrived).await
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
