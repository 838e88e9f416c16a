// SPDX-License-Identifier: Apache-2.0
//! Bodies of channels as JSON text: a change of a field's name, order or form is visible here.

use insta::assert_json_snapshot;
use uuid::Uuid;
use wrenn_api::{
    ActorKind, Cause, Channel, ChannelActor, ChannelEvent, ChannelProvider, ChannelResource, CreateChannel,
    Delivery, DeliveryStatus, Secret, TeamId,
};

fn channel(secret: Option<&str>) -> Channel {
    let at = |text: &str| text.parse().expect("a time");
    Channel {
        id: Uuid::nil().into(),
        team_id: Uuid::nil().into(),
        name: "ops".into(),
        provider: ChannelProvider::Webhook,
        events: vec!["sandbox.running".into()],
        failing_since: secret.is_none().then(|| at("2026-01-31T09:30:02.5Z")),
        created_at: at("2026-01-31T09:30:00.125Z"),
        updated_at: at("2026-01-31T09:30:00.125Z"),
        secret: secret.map(|text| Secret::from(text.to_owned())),
    }
}

#[test]
fn a_new_and_a_failing_channel() {
    assert_json_snapshot!(channel(Some("0123456789abcdef")), @r#"
    {
      "id": "ch0000000000000000000000000",
      "team_id": "team0000000000000000000000000",
      "name": "ops",
      "provider": "webhook",
      "events": [
        "sandbox.running"
      ],
      "created_at": "2026-01-31T09:30:00.125Z",
      "updated_at": "2026-01-31T09:30:00.125Z",
      "secret": "0123456789abcdef"
    }
    "#);
    assert_json_snapshot!(channel(None), @r#"
    {
      "id": "ch0000000000000000000000000",
      "team_id": "team0000000000000000000000000",
      "name": "ops",
      "provider": "webhook",
      "events": [
        "sandbox.running"
      ],
      "failing_since": "2026-01-31T09:30:02.500Z",
      "created_at": "2026-01-31T09:30:00.125Z",
      "updated_at": "2026-01-31T09:30:00.125Z"
    }
    "#);
}

#[test]
fn a_delivery_that_waits() {
    let at = |text: &str| text.parse().expect("a time");
    let delivery = Delivery {
        id: Uuid::nil().into(),
        channel_id: Uuid::nil().into(),
        event: "sandbox.running".into(),
        event_id: Uuid::nil(),
        subject: "sb0000000000000000000000000".into(),
        status: DeliveryStatus::Pending,
        attempts: 3,
        response_status: Some(503),
        error: Some("the receiver answered 503".into()),
        created_at: at("2026-01-31T09:30:00.125Z"),
        attempted_at: Some(at("2026-01-31T09:30:07Z")),
        next_attempt_at: Some(at("2026-01-31T09:30:11Z")),
        ended_at: None,
    };
    assert_json_snapshot!(delivery, @r#"
    {
      "id": "de0000000000000000000000000",
      "channel_id": "ch0000000000000000000000000",
      "event": "sandbox.running",
      "event_id": "00000000-0000-0000-0000-000000000000",
      "subject": "sb0000000000000000000000000",
      "status": "pending",
      "attempts": 3,
      "response_status": 503,
      "error": "the receiver answered 503",
      "created_at": "2026-01-31T09:30:00.125Z",
      "attempted_at": "2026-01-31T09:30:07Z",
      "next_attempt_at": "2026-01-31T09:30:11Z"
    }
    "#);
}

#[test]
fn what_a_webhook_gets() {
    let event = ChannelEvent {
        id: Uuid::nil(),
        event: "sandbox.paused".into(),
        timestamp: "2026-01-31T09:30:02.5Z".parse().expect("a time"),
        team_id: TeamId::from(Uuid::nil()),
        cause: Cause::Idle,
        actor: ChannelActor { kind: ActorKind::System, id: None, name: None },
        resource: ChannelResource { kind: "sandbox".into(), id: "sb0000000000000000000000000".into() },
        data: None,
    };
    assert_json_snapshot!(event, @r#"
    {
      "id": "00000000-0000-0000-0000-000000000000",
      "event": "sandbox.paused",
      "timestamp": "2026-01-31T09:30:02.500Z",
      "team_id": "team0000000000000000000000000",
      "cause": "idle",
      "actor": {
        "type": "system"
      },
      "resource": {
        "type": "sandbox",
        "id": "sb0000000000000000000000000"
      }
    }
    "#);
}

#[test]
fn a_request_names_only_what_is_known() {
    let read = |text: &str| serde_json::from_str::<CreateChannel>(text);
    let good = r#"{"name": "ops", "provider": "slack", "config": {"webhook_url": "https://x"}, "events": ["host.up"]}"#;
    assert!(read(good).is_ok());
    for (part, wrong) in
        [("slack", "pager"), ("webhook_url", "hook"), ("host.up", "resync"), ("\"name\"", "\"title\"")]
    {
        assert!(read(&good.replace(part, wrong)).is_err(), "{wrong}");
    }
}
