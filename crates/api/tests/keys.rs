// SPDX-License-Identifier: Apache-2.0
//! Bodies of API keys and tickets as JSON text: a change of a field's name, order or form is visible here.

use insta::assert_json_snapshot;
use serde_json::json;
use wrenn_api::{ApiKey, CreateApiKey, CreatedApiKey, CreatedTicket, KeyMaker, UpdateApiKey};

fn key() -> ApiKey {
    ApiKey {
        id: "key03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        name: "ci".to_owned(),
        prefix: "wrn_3f9a".to_owned(),
        scopes: None,
        created_by: None,
        created_at: "2026-01-31T09:30:00.125Z".parse().expect("a time"),
        last_used_at: None,
        expires_at: None,
    }
}

#[test]
fn what_a_key_has_not_is_absent() {
    assert_json_snapshot!(key(), @r#"
    {
      "id": "key03halx8fdhw2fu3txwbd0kdw0",
      "name": "ci",
      "prefix": "wrn_3f9a",
      "created_at": "2026-01-31T09:30:00.125Z"
    }
    "#);
    let maker = KeyMaker {
        id: "us03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        name: Some("Ada".to_owned()),
        email: None,
    };
    let key = ApiKey { scopes: Some(vec!["sandbox.read".to_owned()]), created_by: Some(maker), ..key() };
    assert_json_snapshot!(CreatedApiKey { key: "wrn_00".to_owned().into(), api_key: key }, @r#"
    {
      "key": "wrn_00",
      "api_key": {
        "id": "key03halx8fdhw2fu3txwbd0kdw0",
        "name": "ci",
        "prefix": "wrn_3f9a",
        "scopes": [
          "sandbox.read"
        ],
        "created_by": {
          "id": "us03halx8fdhw2fu3txwbd0kdw0",
          "name": "Ada"
        },
        "created_at": "2026-01-31T09:30:00.125Z"
      }
    }
    "#);
}

#[test]
fn a_ticket_has_its_end() {
    let expires_at = "2026-01-31T09:30:30.125Z".parse().expect("a time");
    assert_json_snapshot!(CreatedTicket { ticket: "abc".to_owned().into(), expires_at }, @r#"
    {
      "ticket": "abc",
      "expires_at": "2026-01-31T09:30:30.125Z"
    }
    "#);
}

#[test]
fn requests_have_no_other_fields() {
    let create = |value| serde_json::from_value::<CreateApiKey>(value);
    assert!(create(json!({"name": "ci"})).is_ok_and(|new| new.scopes.is_none() && new.expires_at.is_none()));
    assert!(create(json!({})).is_err());
    assert!(create(json!({"name": "ci", "is_admin": true})).is_err());
    assert!(serde_json::from_value::<UpdateApiKey>(json!({"key": "wrn_0"})).is_err());
    assert_eq!(serde_json::from_value::<UpdateApiKey>(json!({})).ok(), Some(UpdateApiKey::default()));
}
