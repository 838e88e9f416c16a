// SPDX-License-Identifier: Apache-2.0
//! Requests to receivers, in the form of each provider: bounded in time, without redirects and proxies, and only to addresses
//! that the guard admits at that moment. No message of an error has the URL, which is a secret of the team.

use std::{error::Error as _, time::Duration};

use aws_lc_rs::hmac;
use chrono::{SecondsFormat, Utc};
use reqwest::{Client, RequestBuilder, Response, Url, header::RETRY_AFTER, redirect::Policy};
use serde_json::{Value, json};
use wrenn_api::Secret;
use wrenn_outbound::Guard;

use super::{
    message::Message,
    target::{ChatForm, Target},
};

/// Time limit for an answer, and for a connection as part of it.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// Time for which an idle connection is kept, and maximum number of these per receiver.
const IDLE: Duration = Duration::from_secs(30);
const IDLE_MAX: usize = 2;
/// Maximum length of the cause of an error, in characters.
const CAUSE_MAX: usize = 200;
/// Maximum time that a receiver may ask to be left alone.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Sends messages to receivers.
pub(crate) struct Sender {
    /// Or why there is no client: TLS needs the certificates of the system.
    http: Result<Client, String>,
    guard: Guard,
}

/// Why a message was not delivered.
#[derive(Debug)]
pub(crate) struct Failure {
    /// HTTP status of the answer, if there was one.
    pub(crate) status: Option<u16>,
    /// What happened, for the team.
    pub(crate) error: String,
    /// Whether other messages to this receiver would fail, too.
    pub(crate) is_down: bool,
    /// Time that the receiver asked to be left alone.
    pub(crate) wait: Option<Duration>,
}

impl Failure {
    /// Creates the failure of a receiver that was not reached.
    pub(crate) fn down(error: impl Into<String>) -> Self {
        Self { status: None, error: error.into(), is_down: true, wait: None }
    }
}

impl Sender {
    pub(crate) fn new(guard: Guard) -> Self {
        let http = Client::builder()
            .user_agent(concat!("wrenn/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_MAX)
            // A redirect could lead anywhere.
            .redirect(Policy::none())
            // A proxy would resolve names itself, into any network.
            .no_proxy()
            .dns_resolver(guard.clone())
            .build();
        Self { http: http.map_err(|error| cause(&error)), guard }
    }

    pub(crate) const fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Sends a message, and returns the status of the answer.
    pub(crate) async fn send(&self, target: &Target, message: &Message) -> Result<u16, Failure> {
        let http = self.http.as_ref().map_err(|error| {
            tracing::error!(
                error,
                "messages to channels cannot be sent: install the package ca-certificates"
            );
            Failure::down("the control plane cannot make TLS connections; its log says why")
        })?;
        let request = request(http, target, message).map_err(Failure::down)?;
        let request = request
            .build()
            .map_err(|_| Failure::down("the configuration of the channel makes no request"))?;
        // Again at each attempt: what is allowed may have changed since the channel was made.
        if !self.guard.admits_url(request.url()) {
            return Err(Failure::down("the receiver's address is in no public network"));
        }
        match http.execute(request).await {
            Ok(response) => answer(&response),
            Err(error) if error.is_timeout() => {
                Err(Failure::down(format!("the receiver did not answer within {} s", ANSWER.as_secs())))
            }
            Err(error) => Err(Failure::down(format!("the receiver cannot be reached: {}", cause(&error)))),
        }
    }
}

/// Judges an answer by its status; its body is not read.
fn answer(response: &Response) -> Result<u16, Failure> {
    let status = response.status().as_u16();
    // Too late, too early, too many; and what is not about this message.
    let (is_down, note) = match status {
        200..=299 => return Ok(status),
        300..=399 => (true, ", a redirect, which is not followed"),
        408 | 425 | 429 | 500.. => (true, ""),
        _ => (false, ""),
    };
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let wait = seconds.map(|seconds| Duration::from_secs(seconds).min(WAIT_MAX));
    let error = format!("the receiver answered {status}{note}");
    Err(Failure { status: Some(status), error, is_down, wait })
}

/// Causes of an error, without the URL.
fn cause(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        let part = error.to_string();
        // Some repeat their cause.
        if !text.ends_with(&part) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
        next = error.source();
    }
    if text.is_empty() {
        text.push_str("the connection broke");
    }
    text.chars().take(CAUSE_MAX).collect()
}

/// Builds the request of a message.
fn request(http: &Client, target: &Target, message: &Message) -> Result<RequestBuilder, String> {
    match target {
        Target::Webhook { url, secret } => signed(http, url, secret, message),
        Target::Chat { url, form } => Ok(http.post(url.clone()).json(&chat(*form, &message.text()))),
        Target::Telegram { url, chat } => {
            let body = json!({"chat_id": chat, "text": message.text(), "link_preview_options": {"is_disabled": true}});
            Ok(http.post(url.clone()).json(&body))
        }
        Target::Matrix { url, token } => {
            let mut url = url.clone();
            // The homeserver takes a message of one id once.
            let id = message.delivery.to_string();
            url.path_segments_mut().map_err(|()| "the homeserver's URL has no path".to_owned())?.push(&id);
            let body = json!({"msgtype": "m.notice", "body": message.text(), "m.mentions": {}});
            Ok(http.put(url).bearer_auth(token.reveal()).json(&body))
        }
    }
}

/// The request to a webhook. The signature is of the time and the body, so that a receiver can refuse what is old.
fn signed(http: &Client, url: &Url, secret: &Secret, message: &Message) -> Result<RequestBuilder, String> {
    let body = serde_json::to_vec(&message.event).map_err(|_| "the event is no JSON".to_owned())?;
    let timestamp = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    Ok(http
        .post(url.clone())
        .header("Content-Type", "application/json")
        .header("X-Wrenn-Signature", signature(secret, &timestamp, &body))
        .header("X-Wrenn-Timestamp", timestamp)
        .header("X-Wrenn-Delivery", message.delivery.to_string())
        .header("X-Wrenn-Event", &message.event.event)
        .header("X-Wrenn-Attempt", message.attempt.to_string())
        .body(body))
}

/// `sha256=` and the HMAC of `TIMESTAMP.BODY` in hexadecimal digits.
fn signature(secret: &Secret, timestamp: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(timestamp.as_bytes());
    context.update(b".");
    context.update(body);
    let digits: String = context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

/// The body of a message in a chat service. No name in it calls anybody.
fn chat(form: ChatForm, text: &str) -> Value {
    let escaped = || text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    match form {
        ChatForm::Slack => json!({"text": escaped()}),
        ChatForm::GoogleChat => json!({"text": text.replace(['<', '>'], "")}),
        ChatForm::Discord => json!({"content": text, "allowed_mentions": {"parse": []}}),
        ChatForm::Teams => {
            // One line each, and as text: a block reads Markdown.
            let runs = text.lines().map(|line| {
                let run = json!({"type": "TextRun", "text": line});
                json!({"type": "RichTextBlock", "inlines": [run]})
            });
            let card = json!({
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": runs.collect::<Vec<_>>(),
            });
            let kind = "application/vnd.microsoft.card.adaptive";
            json!({"type": "message", "attachments": [{"contentType": kind, "content": card}]})
        }
    }
}

#[cfg(test)]
mod tests;
