// SPDX-License-Identifier: Apache-2.0
//! Bodies of the audit log, of usage and statistics, of what administrators see, and some small ones, as JSON text:
//! a change of a field's name, order or form is visible here.

use std::collections::BTreeMap;

use insta::assert_json_snapshot;
use wrenn_api::{
    Actor, ActorKind, AdminHost, AdminSandbox, AdminTeam, AdminTemplate, AdminUser, AuditOutcome,
    AuditRecord, AuditedResource, GivenRole, MyInvitation, OnTimeout, PrunedCache, Sandbox, SandboxStatus,
    Stats, StatsLevel, StatsPoint, StatsRange, TeamQuotas, TemplateKind, TestedChannel, Usage, UsageAmounts,
    UsageDay, UserStatus,
};

const TEAM: &str = "team03halx8fdhw2fu3txwbd0kdw0";
const HOST: &str = "host03halx8fdhw2fu3txwbd0kdw0";

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
    let stats =
        Stats { range: StatsRange::default(), current: level, peaks: level, out_of_memory: 3, series };
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
      "out_of_memory": 3,
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

#[test]
fn a_user_as_administrators_see_it() {
    let user = AdminUser {
        id: "us03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        email: "ada@example.com".to_owned(),
        name: "Ada".to_owned(),
        is_admin: true,
        status: UserStatus::Active,
        created_at: "2026-01-31T09:30:00Z".parse().expect("a time"),
        last_login_at: Some("2026-01-31T10:00:00Z".parse().expect("a time")),
        teams_joined: 2,
        teams_owned: 1,
    };
    assert_json_snapshot!(user, @r#"
    {
      "id": "us03halx8fdhw2fu3txwbd0kdw0",
      "email": "ada@example.com",
      "name": "Ada",
      "is_admin": true,
      "status": "active",
      "created_at": "2026-01-31T09:30:00Z",
      "last_login_at": "2026-01-31T10:00:00Z",
      "teams_joined": 2,
      "teams_owned": 1
    }
    "#);
    let bare = AdminUser { status: UserStatus::Inactive, last_login_at: None, ..user };
    assert_json_snapshot!(bare, @r#"
    {
      "id": "us03halx8fdhw2fu3txwbd0kdw0",
      "email": "ada@example.com",
      "name": "Ada",
      "is_admin": true,
      "status": "inactive",
      "created_at": "2026-01-31T09:30:00Z",
      "teams_joined": 2,
      "teams_owned": 1
    }
    "#);
}

#[test]
fn a_team_as_administrators_see_it() {
    let at = |text: &str| text.parse().expect("a time");
    let team = AdminTeam {
        id: TEAM.parse().expect("an id"),
        name: "Analytical Engines".to_owned(),
        slug: Some("5f0c1a-93be27".to_owned()),
        is_byoc: false,
        created_at: at("2026-01-31T09:30:00Z"),
        deleted_at: Some(at("2026-02-01T09:30:00Z")),
        emptied_at: Some(at("2026-02-01T09:31:00Z")),
        member_count: 3,
        owner_name: Some("Ada".to_owned()),
        owner_email: Some("ada@example.com".to_owned()),
        active_sandbox_count: 7,
        channel_count: 1,
        quotas: TeamQuotas { running: Some(50), ..TeamQuotas::default() },
    };
    assert_json_snapshot!(team, @r#"
    {
      "id": "team03halx8fdhw2fu3txwbd0kdw0",
      "name": "Analytical Engines",
      "slug": "5f0c1a-93be27",
      "is_byoc": false,
      "created_at": "2026-01-31T09:30:00Z",
      "deleted_at": "2026-02-01T09:30:00Z",
      "emptied_at": "2026-02-01T09:31:00Z",
      "member_count": 3,
      "owner_name": "Ada",
      "owner_email": "ada@example.com",
      "active_sandbox_count": 7,
      "channel_count": 1,
      "quotas": {
        "running": 50
      }
    }
    "#);
    let bare = AdminTeam {
        slug: None,
        deleted_at: None,
        emptied_at: None,
        owner_name: None,
        owner_email: None,
        quotas: TeamQuotas::default(),
        ..team
    };
    assert_json_snapshot!(bare, @r#"
    {
      "id": "team03halx8fdhw2fu3txwbd0kdw0",
      "name": "Analytical Engines",
      "is_byoc": false,
      "created_at": "2026-01-31T09:30:00Z",
      "member_count": 3,
      "active_sandbox_count": 7,
      "channel_count": 1,
      "quotas": {}
    }
    "#);
}

#[test]
fn a_host_as_administrators_see_it() {
    let at = |text: &str| text.parse().expect("a time");
    let host = AdminHost {
        id: HOST.parse().expect("an id"),
        kind: "byoc".to_owned(),
        team_id: Some(TEAM.parse().expect("an id")),
        address: "10.0.0.7:9726".to_owned(),
        status: "online".to_owned(),
        last_seen_at: Some(at("2026-01-31T09:30:00Z")),
        agent_version: "0.1.0".to_owned(),
        driver: "firecracker".to_owned(),
        driver_reason: "/dev/kvm can be used".to_owned(),
        security_boundary: true,
        quarantine: Some("another database had it before".to_owned()),
        ejected_until: Some(at("2026-01-31T09:35:00Z")),
        cpus: 16,
        memory_mb: 65_536,
        disk_mb: 1_048_576,
        disk_free_mb: 524_288,
        max_sandboxes: 64,
        reserved_sandboxes: 7,
        reserved_vcpus: 9,
        reserved_memory_mb: 4096,
        templates: vec!["minimal".to_owned()],
        created_at: at("2026-01-01T00:00:00Z"),
    };
    assert_json_snapshot!(host, @r#"
    {
      "id": "host03halx8fdhw2fu3txwbd0kdw0",
      "kind": "byoc",
      "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
      "address": "10.0.0.7:9726",
      "status": "online",
      "last_seen_at": "2026-01-31T09:30:00Z",
      "agent_version": "0.1.0",
      "driver": "firecracker",
      "driver_reason": "/dev/kvm can be used",
      "security_boundary": true,
      "quarantine": "another database had it before",
      "ejected_until": "2026-01-31T09:35:00Z",
      "cpus": 16,
      "memory_mb": 65536,
      "disk_mb": 1048576,
      "disk_free_mb": 524288,
      "max_sandboxes": 64,
      "reserved_sandboxes": 7,
      "reserved_vcpus": 9,
      "reserved_memory_mb": 4096,
      "templates": [
        "minimal"
      ],
      "created_at": "2026-01-01T00:00:00Z"
    }
    "#);
    let bare = AdminHost {
        kind: "regular".to_owned(),
        team_id: None,
        status: "unreachable".to_owned(),
        last_seen_at: None,
        quarantine: None,
        ejected_until: None,
        templates: Vec::new(),
        ..host
    };
    assert_json_snapshot!(bare, @r#"
    {
      "id": "host03halx8fdhw2fu3txwbd0kdw0",
      "kind": "regular",
      "address": "10.0.0.7:9726",
      "status": "unreachable",
      "agent_version": "0.1.0",
      "driver": "firecracker",
      "driver_reason": "/dev/kvm can be used",
      "security_boundary": true,
      "cpus": 16,
      "memory_mb": 65536,
      "disk_mb": 1048576,
      "disk_free_mb": 524288,
      "max_sandboxes": 64,
      "reserved_sandboxes": 7,
      "reserved_vcpus": 9,
      "reserved_memory_mb": 4096,
      "templates": [],
      "created_at": "2026-01-01T00:00:00Z"
    }
    "#);
}

/// A sandbox of which only what all have is known.
fn sandbox() -> Sandbox {
    let at = |text: &str| text.parse().expect("a time");
    Sandbox {
        id: "sb03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        name: None,
        labels: BTreeMap::new(),
        status: SandboxStatus::Starting,
        template: "minimal".to_owned(),
        image: None,
        vcpus: 1,
        memory_mb: 512,
        disk_size_mb: 5120,
        timeout_sec: 0,
        on_timeout: OnTimeout::Pause,
        auto_resume: false,
        public_ports: false,
        created_at: at("2026-01-31T09:20:00Z"),
        started_at: None,
        last_active_at: None,
        expires_at: None,
        last_updated: at("2026-01-31T09:30:02Z"),
        metadata: BTreeMap::new(),
        last_out_of_memory: None,
        error: None,
    }
}

#[test]
fn a_sandbox_and_a_template_as_administrators_see_them() {
    let host = HOST.parse().expect("an id");
    let seen =
        AdminSandbox { team_id: TEAM.parse().expect("an id"), host_id: Some(host), sandbox: sandbox() };
    assert_json_snapshot!(seen, @r#"
    {
      "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
      "host_id": "host03halx8fdhw2fu3txwbd0kdw0",
      "sandbox": {
        "id": "sb03halx8fdhw2fu3txwbd0kdw0",
        "labels": {},
        "status": "starting",
        "template": "minimal",
        "vcpus": 1,
        "memory_mb": 512,
        "disk_size_mb": 5120,
        "timeout_sec": 0,
        "on_timeout": "pause",
        "auto_resume": false,
        "public_ports": false,
        "created_at": "2026-01-31T09:20:00Z",
        "last_updated": "2026-01-31T09:30:02Z"
      }
    }
    "#);
    let nowhere = serde_json::to_value(AdminSandbox { host_id: None, ..seen }).expect("JSON");
    assert!(nowhere.get("host_id").is_none(), "{nowhere}");
    let template = AdminTemplate {
        team_id: TEAM.parse().expect("an id"),
        name: "web".to_owned(),
        kind: TemplateKind::Base,
        version: 3,
        size_mb: 912,
        host_id: host,
        created_at: "2026-01-31T09:30:00Z".parse().expect("a time"),
    };
    assert_json_snapshot!(template, @r#"
    {
      "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
      "name": "web",
      "kind": "base",
      "version": 3,
      "size_mb": 912,
      "host_id": "host03halx8fdhw2fu3txwbd0kdw0",
      "created_at": "2026-01-31T09:30:00Z"
    }
    "#);
}

#[test]
fn an_invitation_as_who_is_invited_sees_it() {
    let invitation = MyInvitation {
        id: "iv03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        team_id: TEAM.parse().expect("an id"),
        team_name: "Analytical Engines".to_owned(),
        role: GivenRole::Member,
        inviter: "ada@example.com".to_owned(),
        created_at: "2026-01-31T09:30:00Z".parse().expect("a time"),
        expires_at: "2026-02-07T09:30:00Z".parse().expect("a time"),
    };
    assert_json_snapshot!(invitation, @r#"
    {
      "id": "iv03halx8fdhw2fu3txwbd0kdw0",
      "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
      "team_name": "Analytical Engines",
      "role": "member",
      "inviter": "ada@example.com",
      "created_at": "2026-01-31T09:30:00Z",
      "expires_at": "2026-02-07T09:30:00Z"
    }
    "#);
}

#[test]
fn a_tested_channel_and_a_pruned_cache() {
    assert_json_snapshot!(TestedChannel { status: "ok".to_owned() }, @r#"
    {
      "status": "ok"
    }
    "#);
    assert_json_snapshot!(PrunedCache { results: 12, bytes: 734_003_200 }, @r#"
    {
      "results": 12,
      "bytes": 734003200
    }
    "#);
}

#[test]
fn quotas_of_a_team() {
    let quotas = TeamQuotas {
        sandboxes: Some(1),
        running: Some(2),
        paused: Some(0),
        vcpus: Some(4),
        memory_mb: Some(5),
        disk_mb: Some(6),
        snapshots: Some(7),
        templates: Some(8),
        builds: Some(9),
        creates_per_minute: Some(10),
    };
    assert_json_snapshot!(quotas, @r#"
    {
      "sandboxes": 1,
      "running": 2,
      "paused": 0,
      "vcpus": 4,
      "memory_mb": 5,
      "disk_mb": 6,
      "snapshots": 7,
      "templates": 8,
      "builds": 9,
      "creates_per_minute": 10
    }
    "#);
    assert_json_snapshot!(TeamQuotas::default(), @"{}");
}
