// SPDX-License-Identifier: Apache-2.0
//! Where a channel leads to: the fields of a configuration that its provider needs, checked. Pure.

use aws_lc_rs::rand;
use reqwest::Url;
use wrenn_api::{ChannelConfig, ChannelProvider, Secret};
use wrenn_outbound::Guard;

use crate::error::Fault;

/// Maximum length of a field.
const FIELD_MAX: usize = 2048;
/// Length of the secret of a webhook: minimum, maximum, and number of random bytes of one that the server makes.
const SECRET_MIN: usize = 16;
const SECRET_MAX: usize = 256;
const SECRET_BYTES: usize = 32;
/// Bot API of Telegram.
const TELEGRAM: &str = "https://api.telegram.org";

/// Place that messages are sent to.
pub(crate) enum Target {
    /// A server of the team's own.
    Webhook { url: Url, secret: Secret },
    /// An incoming webhook of a chat service, with its form of messages.
    Chat { url: Url, form: ChatForm },
    /// A chat of Telegram; the URL is that of the method that sends.
    Telegram { url: Url, chat: String },
    /// A room of Matrix; the URL is that of the messages of the room, without the id of the next one.
    Matrix { url: Url, token: Secret },
}

/// Form of the messages of a chat service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChatForm {
    Slack,
    Discord,
    Teams,
    GoogleChat,
}

/// Adds the secret of a webhook that has none; returns it then.
pub(crate) fn complete(
    provider: ChannelProvider,
    config: &mut ChannelConfig,
) -> Result<Option<Secret>, Fault> {
    if provider != ChannelProvider::Webhook || config.secret.is_some() {
        return Ok(None);
    }
    let mut bytes = [0; SECRET_BYTES];
    rand::fill(&mut bytes).map_err(|_| Fault::internal())?;
    let secret = Secret::from(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    config.secret = Some(secret.clone());
    Ok(Some(secret))
}

impl Target {
    /// Checks a configuration. The fault names the field, and quotes none.
    pub(crate) fn of(
        provider: ChannelProvider,
        config: &ChannelConfig,
        guard: &Guard,
    ) -> Result<Self, Fault> {
        superfluous(provider, config)?;
        let secret =
            |name: &str, secret: &Option<Secret>| needed(provider, name, secret.as_ref().map(Secret::reveal));
        let chat = |form| -> Result<Self, Fault> {
            let url = secret("webhook_url", &config.webhook_url)?;
            Ok(Self::Chat { url: url_of("webhook_url", &url, guard)?, form })
        };
        match provider {
            ChannelProvider::Webhook => {
                let url = url_of("url", &secret("url", &config.url)?, guard)?;
                let secret = secret("secret", &config.secret)?;
                if !(SECRET_MIN..=SECRET_MAX).contains(&secret.len()) {
                    let message = format!(
                        "config.secret has {} bytes: it must have {SECRET_MIN} to {SECRET_MAX}",
                        secret.len()
                    );
                    return Err(Fault::invalid(message));
                }
                Ok(Self::Webhook { url, secret: secret.into() })
            }
            ChannelProvider::Slack => chat(ChatForm::Slack),
            ChannelProvider::Discord => chat(ChatForm::Discord),
            ChannelProvider::Teams => chat(ChatForm::Teams),
            ChannelProvider::Googlechat => chat(ChatForm::GoogleChat),
            ChannelProvider::Telegram => {
                let token = secret("bot_token", &config.bot_token)?;
                let known = |byte: u8| byte.is_ascii_alphanumeric() || b":_-".contains(&byte);
                if !token.bytes().all(known) {
                    return Err(Fault::invalid(
                        "config.bot_token is no token of a bot: copy it from BotFather",
                    ));
                }
                let chat = needed(provider, "chat_id", config.chat_id.as_deref())?;
                let base = config.api_url.as_deref().unwrap_or(TELEGRAM);
                let base = url_of("api_url", base, guard)?;
                let url = below("api_url", base, &[&format!("bot{token}"), "sendMessage"])?;
                Ok(Self::Telegram { url, chat })
            }
            ChannelProvider::Matrix => {
                let room = needed(provider, "room_id", config.room_id.as_deref())?;
                let token = secret("access_token", &config.access_token)?;
                let base = needed(provider, "homeserver_url", config.homeserver_url.as_deref())?;
                let base = url_of("homeserver_url", &base, guard)?;
                let path = ["_matrix", "client", "v3", "rooms", &room, "send", "m.room.message"];
                Ok(Self::Matrix { url: below("homeserver_url", base, &path)?, token: token.into() })
            }
        }
    }
}

/// Fails if there is a field that the provider does not have.
fn superfluous(provider: ChannelProvider, config: &ChannelConfig) -> Result<(), Fault> {
    let fields: &[&str] = match provider {
        ChannelProvider::Webhook => &["url", "secret"],
        ChannelProvider::Slack
        | ChannelProvider::Discord
        | ChannelProvider::Teams
        | ChannelProvider::Googlechat => &["webhook_url"],
        ChannelProvider::Telegram => &["bot_token", "chat_id", "api_url"],
        ChannelProvider::Matrix => &["homeserver_url", "access_token", "room_id"],
    };
    let given = [
        ("url", config.url.is_some()),
        ("secret", config.secret.is_some()),
        ("webhook_url", config.webhook_url.is_some()),
        ("bot_token", config.bot_token.is_some()),
        ("chat_id", config.chat_id.is_some()),
        ("api_url", config.api_url.is_some()),
        ("homeserver_url", config.homeserver_url.is_some()),
        ("access_token", config.access_token.is_some()),
        ("room_id", config.room_id.is_some()),
    ];
    match given.iter().find(|(name, is_given)| *is_given && !fields.contains(name)) {
        Some((name, _)) => {
            let message = format!("config.{name} is no field of {provider}: it has {}", fields.join(", "));
            Err(Fault::invalid(message))
        }
        None => Ok(()),
    }
}

/// Returns a field that the provider needs.
fn needed(provider: ChannelProvider, name: &str, value: Option<&str>) -> Result<String, Fault> {
    let value = value.filter(|value| !value.is_empty());
    let value =
        value.ok_or_else(|| Fault::invalid(format!("config.{name} is missing: {provider} needs it")))?;
    if value.len() > FIELD_MAX || value.chars().any(char::is_control) {
        let message = format!("config.{name} is longer than {FIELD_MAX} bytes, or has a control character");
        return Err(Fault::invalid(message));
    }
    Ok(value.to_owned())
}

/// Parses a URL of a receiver.
fn url_of(name: &str, text: &str, guard: &Guard) -> Result<Url, Fault> {
    let wrong = |why: &str| Fault::invalid(format!("config.{name} {why}"));
    if text.len() > FIELD_MAX {
        return Err(wrong(&format!("is longer than {FIELD_MAX} bytes")));
    }
    let url = Url::parse(text).map_err(|_| wrong("is no URL: give one that begins with https://"))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(wrong("does not begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("has a user or a password: leave them out"));
    }
    if !guard.admits_url(&url) {
        return Err(wrong(
            "leads to an address that is in no public network: the operator can allow it with server.channels_allow",
        ));
    }
    Ok(url)
}

/// Returns the URL of a path below another one.
fn below(name: &str, mut base: Url, path: &[&str]) -> Result<Url, Fault> {
    let no_base = |()| Fault::invalid(format!("config.{name} is no URL of a server"));
    base.path_segments_mut().map_err(no_base)?.pop_if_empty().extend(path);
    base.set_query(None);
    base.set_fragment(None);
    Ok(base)
}

#[cfg(test)]
mod tests {
    use wrenn_api::ErrorCode;

    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "as the fields have it")]
    fn secret(text: &str) -> Option<Secret> {
        Some(Secret::from(text.to_owned()))
    }

    fn webhook(url: &str) -> ChannelConfig {
        ChannelConfig { url: secret(url), secret: secret("0123456789abcdef"), ..ChannelConfig::default() }
    }

    fn of(provider: ChannelProvider, config: &ChannelConfig) -> Result<Target, Fault> {
        Target::of(provider, config, &Guard::public())
    }

    #[test]
    fn each_provider_has_fields_of_its_own() {
        let config =
            ChannelConfig { webhook_url: secret("https://example.com/hook"), ..ChannelConfig::default() };
        for provider in ChannelProvider::ALL {
            let told = of(provider, &ChannelConfig::default()).err().map(|fault| fault.message);
            assert!(told.is_some_and(|told| told.contains("is missing")), "{provider} needs nothing");
            let is_chat = matches!(of(provider, &config), Ok(Target::Chat { .. }));
            let takes = of(provider, &config).is_ok();
            assert_eq!(is_chat, takes, "{provider}");
        }
        let fault = of(ChannelProvider::Webhook, &config).err().expect("refused");
        assert_eq!(fault.code, ErrorCode::InvalidRequest);
        assert_eq!(fault.message, "config.webhook_url is no field of webhook: it has url, secret");
    }

    #[test]
    fn urls_into_private_networks_are_refused_and_not_quoted() {
        for url in [
            "http://127.0.0.1:9000/token",
            "http://[::ffff:127.0.0.1]/token",
            "https://169.254.169.254/token",
            "http://0x7f.1/token",
            "https://user:token@example.com/",
            "file:///token",
            "token",
            "",
        ] {
            let fault = of(ChannelProvider::Webhook, &webhook(url)).err().expect(url);
            assert!(
                fault.code == ErrorCode::InvalidRequest && !fault.message.contains("token"),
                "{}",
                fault.message
            );
        }
        let loopback = Guard::public_and(|address| address.is_loopback());
        assert!(Target::of(ChannelProvider::Webhook, &webhook("http://127.0.0.1:9000/"), &loopback).is_ok());
    }

    #[test]
    fn parts_of_a_path_stay_parts() {
        let telegram = ChannelConfig {
            bot_token: secret("123:ab_C-d"),
            chat_id: Some("@ops".to_owned()),
            ..ChannelConfig::default()
        };
        let Ok(Target::Telegram { url, .. }) = of(ChannelProvider::Telegram, &telegram) else {
            panic!("refused")
        };
        assert_eq!(url.as_str(), "https://api.telegram.org/bot123:ab_C-d/sendMessage");
        let away = ChannelConfig { bot_token: secret("1/../x"), ..telegram };
        assert!(of(ChannelProvider::Telegram, &away).is_err());
        let matrix = ChannelConfig {
            homeserver_url: Some("https://matrix.example.com/".to_owned()),
            access_token: secret("syt_token"),
            room_id: Some("!a/b?c:example.com".to_owned()),
            ..ChannelConfig::default()
        };
        let Ok(Target::Matrix { url, .. }) = of(ChannelProvider::Matrix, &matrix) else { panic!("refused") };
        let expected =
            "https://matrix.example.com/_matrix/client/v3/rooms/!a%2Fb%3Fc:example.com/send/m.room.message";
        assert_eq!(url.as_str(), expected);
    }

    #[test]
    fn a_webhook_without_a_secret_gets_one() {
        let mut config = ChannelConfig { secret: None, ..webhook("https://example.com/") };
        let made = complete(ChannelProvider::Webhook, &mut config).expect("random").expect("a secret");
        assert_eq!((made.reveal().len(), config.secret.clone()), (64, Some(made)));
        assert_eq!(complete(ChannelProvider::Webhook, &mut config).expect("random"), None);
        let short = ChannelConfig { secret: secret("short"), ..config };
        assert!(of(ChannelProvider::Webhook, &short).is_err());
        let mut slack = ChannelConfig::default();
        assert_eq!(complete(ChannelProvider::Slack, &mut slack).expect("random"), None);
    }
}
