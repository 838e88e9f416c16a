// SPDX-License-Identifier: Apache-2.0
//! Bodies of the audit log, of usage and of statistics as JSON text: a change of a field's name, order or form is visible here.

use insta::assert_json_snapshot;
use wrenn_api::{
    Actor, ActorKind, AuditOutcome, AuditRecord, AuditedResource, Stats, StatsLevel, StatsPoint, StatsRange,
    Usage, UsageAmounts, UsageDay,
};

#[test]
fn a_record_of_the_audit_log() {
    let record = AuditRecord {
        id: "au03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        at: "2026-01-31T09:30:02Z".parse().expect("a time"),
        team_id: "team03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        actor: Actor {
            kind: ActorKind::ApiKey,
            id: Some("key03halx8fdhw2fu3txwbd0kdw0".to_owned()),
            name: Some("ci".to_owned()),
        },
        action: "sandbox.create".to_owned(),
        resource: Some(AuditedResource {
            kind: "sandbox".to_owned(),
            id: "sb03halx8fdhw2fu3txwbd0kdw0".to_owned(),
            name: Some("web".to_owned()),
        }),
        outcome: AuditOutcome::Refused,
        error_code: Some("quota_exceeded".to_owned()),
        address: Some("192.0.2.7".to_owned()),
        request_id: Some("mine-1".to_owned()),
    };
    assert_json_snapshot!(record, @r#"
    {
      "id": "au03halx8fdhw2fu3txwbd0kdw0",
      "at": "2026-01-31T09:30:02Z",
      "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
      "actor": {
        "kind": "api_key",
        "id": "key03halx8fdhw2fu3txwbd0kdw0",
        "name": "ci"
      },
      "action": "sandbox.create",
      "resource": {
        "kind": "sandbox",
        "id": "sb03halx8fdhw2fu3txwbd0kdw0",
        "name": "web"
      },
      "outcome": "refused",
      "error_code": "quota_exceeded",
      "address": "192.0.2.7",
      "request_id": "mine-1"
    }
    "#);
    let bare = AuditRecord {
        actor: Actor::default(),
        resource: None,
        outcome: AuditOutcome::Succeeded,
        error_code: None,
        address: None,
        request_id: None,
        ..record
    };
    assert_json_snapshot!(bare, @r#"
    {
      "id": "au03halx8fdhw2fu3txwbd0kdw0",
      "at": "2026-01-31T09:30:02Z",
      "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
      "actor": {
        "kind": "system"
      },
      "action": "sandbox.create",
      "outcome": "succeeded"
    }
    "#);
}

#[test]
fn usage() {
    let amounts =
        UsageAmounts { vcpu_seconds: 7320, memory_mb_seconds: 3_747_840, disk_mb_seconds: 442_368_000 };
    let date = "2026-01-31".parse().expect("a day");
    let usage = Usage { from: date, to: date, total: amounts, days: vec![UsageDay { date, amounts }] };
    assert_json_snapshot!(usage, @r#"
    {
      "from": "2026-01-31",
      "to": "2026-01-31",
      "total": {
        "vcpu_seconds": 7320,
        "memory_mb_seconds": 3747840,
        "disk_mb_seconds": 442368000
      },
      "days": [
        {
          "date": "2026-01-31",
          "vcpu_seconds": 7320,
          "memory_mb_seconds": 3747840,
          "disk_mb_seconds": 442368000
        }
      ]
    }
    "#);
}

#[test]
fn statistics() {
    let level = StatsLevel { running: 2, vcpus: 4, memory_mb: 2048 };
    let at = "2026-01-31T09:30:00Z".parse().expect("a time");
    let series = vec![StatsPoint { at, level }];
    let stats = Stats { range: StatsRange::default(), current: level, peaks: level, series };
    assert_json_snapshot!(stats, @r#"
    {
      "range": "1h",
      "current": {
        "running": 2,
        "vcpus": 4,
        "memory_mb": 2048
      },
      "peaks": {
        "running": 2,
        "vcpus": 4,
        "memory_mb": 2048
      },
      "series": [
        {
          "at": "2026-01-31T09:30:00Z",
          "running": 2,
          "vcpus": 4,
          "memory_mb": 2048
        }
      ]
    }
    "#);
}
