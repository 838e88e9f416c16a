// SPDX-License-Identifier: Apache-2.0
//! Tests of the sender with receivers on loopback.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use wrenn_api::{ChannelConfig, ChannelProvider, TeamId};

use super::*;

/// A receiver that gives one answer to all, and keeps the requests as text.
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let got = Arc::new(Mutex::new(Vec::new()));
        let kept = got.clone();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
                while !is_whole(&bytes) {
                    match connection.read(&mut part).await {
                        Ok(length) if length > 0 => bytes.extend_from_slice(&part[..length]),
                        _ => break,
                    }
                }
                kept.lock().expect("no panic").push(String::from_utf8_lossy(&bytes).into_owned());
                let text = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = connection.write_all(text.as_bytes()).await;
            }
        });
        Self { url, got }
    }

    fn got(&self) -> Vec<String> {
        self.got.lock().expect("no panic").clone()
    }
}

/// Whether a request is complete, by its length.
fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// A field of a head.
fn field<'a>(request: &'a str, name: &str) -> &'a str {
    let is = |line: &&str| line.split(':').next().is_some_and(|found| found.eq_ignore_ascii_case(name));
    let line = request.lines().find(is).unwrap_or_default();
    line.split_once(": ").map_or("", |(_, value)| value)
}

fn loopback() -> Sender {
    Sender::new(Guard::public_and(|address| address.is_loopback()))
}

#[expect(clippy::unnecessary_wraps, reason = "as the fields have it")]
fn secret(text: &str) -> Option<Secret> {
    Some(Secret::from(text.to_owned()))
}

fn message() -> Message {
    Message::test(TeamId::from(uuid::Uuid::nil()))
}

async fn send(sender: &Sender, provider: ChannelProvider, config: &ChannelConfig) -> Result<u16, Failure> {
    let target = Target::of(provider, config, sender.guard()).expect("a target");
    sender.send(&target, &message()).await
}

/// The configuration of a provider with this receiver.
fn config(provider: ChannelProvider, url: &str) -> ChannelConfig {
    let none = ChannelConfig::default();
    match provider {
        ChannelProvider::Webhook => {
            ChannelConfig { url: secret(url), secret: secret("0123456789abcdef"), ..none }
        }
        ChannelProvider::Telegram => ChannelConfig {
            bot_token: secret("1:x"),
            chat_id: Some("@ops".to_owned()),
            api_url: Some(url.to_owned()),
            ..none
        },
        ChannelProvider::Matrix => ChannelConfig {
            homeserver_url: Some(url.to_owned()),
            access_token: secret("syt_x"),
            room_id: Some("!a:b".to_owned()),
            ..none
        },
        _ => ChannelConfig { webhook_url: secret(&format!("{url}/hook")), ..none },
    }
}

#[tokio::test]
async fn each_provider_gets_its_form() {
    let (receiver, sender) = (Receiver::start("200 OK").await, loopback());
    for provider in ChannelProvider::ALL {
        let sent = send(&sender, provider, &config(provider, &receiver.url)).await;
        assert_eq!(sent.expect("delivered"), 200, "{provider}");
    }
    let got = receiver.got();
    let body = |at: usize| -> Value {
        serde_json::from_str(got[at].split_once("\r\n\r\n").expect("a body").1).expect("JSON")
    };
    assert!(
        got[1].starts_with("POST /hook ")
            && body(1)["text"].as_str().is_some_and(|text| text.contains("Cause: user"))
    );
    assert_eq!(body(2)["allowed_mentions"], json!({"parse": []}));
    assert_eq!(body(3)["attachments"][0]["content"]["body"][1]["inlines"][0]["text"], "Cause: user");
    assert!(body(4)["text"].is_string());
    assert!(got[5].starts_with("POST /bot1:x/sendMessage ") && body(5)["chat_id"] == "@ops");
    assert!(got[6].starts_with("PUT /_matrix/client/v3/rooms/!a:b/send/m.room.message/de"), "{}", got[6]);
    assert_eq!(field(&got[6], "authorization"), "Bearer syt_x");
}

#[tokio::test]
async fn a_webhook_can_check_who_sent_it_and_when() {
    let (receiver, sender) = (Receiver::start("204 No Content").await, loopback());
    let config = config(ChannelProvider::Webhook, &receiver.url);
    assert_eq!(send(&sender, ChannelProvider::Webhook, &config).await.expect("delivered"), 204);
    let got = receiver.got().remove(0);
    let (_, body) = got.split_once("\r\n\r\n").expect("a body");
    let timestamp = field(&got, "x-wrenn-timestamp");
    let expected = signature(&Secret::from("0123456789abcdef".to_owned()), timestamp, body.as_bytes());
    assert_eq!(field(&got, "x-wrenn-signature"), expected);
    let age = Utc::now() - chrono::DateTime::parse_from_rfc3339(timestamp).expect("a time").to_utc();
    assert!(age.num_seconds().abs() < 60, "{timestamp}");
    assert!(
        field(&got, "x-wrenn-delivery").starts_with("de") && field(&got, "x-wrenn-event") == "channel.test"
    );
    // Of another program: printf 1.x | openssl dgst -sha256 -hmac key
    let known = "sha256=fc4913c41a7bf793267e2a384f3261c9436ec2cd097bd745e7b0d99113f510ec";
    assert_eq!(signature(&Secret::from("key".to_owned()), "1", b"x"), known);
}

#[tokio::test]
async fn answers_are_judged_by_their_status() {
    let sender = loopback();
    for (answer, is_down, wait) in [
        ("400 Bad Request", false, None),
        ("404 Not Found", false, None),
        ("429 Too Many Requests\r\nRetry-After: 7", true, Some(7)),
        ("503 Unavailable\r\nRetry-After: 99999", true, Some(3600)),
        ("307 Temporary Redirect\r\nLocation: /other", true, None),
    ] {
        let receiver = Receiver::start(answer).await;
        let config = config(ChannelProvider::Slack, &receiver.url);
        let failure = send(&sender, ChannelProvider::Slack, &config).await.expect_err(answer);
        assert_eq!((failure.is_down, failure.wait), (is_down, wait.map(Duration::from_secs)), "{answer}");
        assert_eq!(failure.status.map(|status| status.to_string()).as_deref(), answer.get(..3));
        assert!(failure.error.contains(&answer[..3]), "{}", failure.error);
        assert_eq!(receiver.got().len(), 1, "a redirect was followed");
    }
}

#[tokio::test]
async fn what_is_not_allowed_any_more_is_not_asked() {
    let (receiver, allowed) = (Receiver::start("200 OK").await, loopback());
    for url in [receiver.url.clone(), receiver.url.replace("127.0.0.1", "localhost")] {
        let config = config(ChannelProvider::Slack, &url);
        let target = Target::of(ChannelProvider::Slack, &config, allowed.guard()).expect("a target");
        let failure = Sender::new(Guard::public()).send(&target, &message()).await.expect_err("it was sent");
        assert!(failure.is_down && failure.error.contains("public network"), "{}", failure.error);
        assert!(!failure.error.contains("/hook"), "the URL is told: {}", failure.error);
    }
    assert!(receiver.got().is_empty());
}

#[tokio::test]
async fn a_receiver_that_is_not_there_is_named_without_its_url() {
    let config = config(ChannelProvider::Slack, "http://127.0.0.1:1");
    let failure = send(&loopback(), ChannelProvider::Slack, &config).await.expect_err("it was sent");
    assert!(
        failure.is_down && failure.status.is_none() && failure.error.contains("refused"),
        "{}",
        failure.error
    );
    assert!(!failure.error.contains("hook"), "{}", failure.error);
}

#[test]
fn names_call_nobody() {
    let text = "<!channel> & @everyone";
    assert_eq!(chat(ChatForm::Slack, text)["text"], "&lt;!channel&gt; &amp; @everyone");
    assert_eq!(chat(ChatForm::GoogleChat, text)["text"], "!channel & @everyone");
}
