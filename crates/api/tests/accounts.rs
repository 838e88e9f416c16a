// SPDX-License-Identifier: Apache-2.0
//! Bodies about accounts as JSON text: a change of a field's name, order or form is visible here.

use insta::assert_json_snapshot;
use wrenn_api::{
    ChangePassword, DeleteMe, KeptIn, Login, Me, Secret, Session, SignUp, SignedIn, TeamRole, UseLink,
};

fn secret(text: &str) -> Secret {
    Secret::from(text.to_owned())
}

#[test]
fn a_sign_in_of_a_program() {
    let signed_in = SignedIn {
        token: Some(secret("a.b.c")),
        user_id: "us03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        team_id: Some("team03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id")),
        email: "ada@example.com".into(),
        name: "Ada".into(),
        expires_at: "2026-02-07T09:30:00Z".parse().expect("a time"),
        csrf_token: None,
    };
    assert_json_snapshot!(signed_in, @r#"
    {
      "token": "a.b.c",
      "user_id": "us03halx8fdhw2fu3txwbd0kdw0",
      "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
      "email": "ada@example.com",
      "name": "Ada",
      "expires_at": "2026-02-07T09:30:00Z"
    }
    "#);
    assert!(!format!("{signed_in:?}").contains("a.b.c"));
}

#[test]
fn a_sign_in_of_a_browser_without_a_team() {
    let signed_in = SignedIn {
        token: None,
        user_id: "us03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        team_id: None,
        email: "ada@example.com".into(),
        name: "Ada".into(),
        expires_at: "2026-02-07T09:30:00Z".parse().expect("a time"),
        csrf_token: Some(secret("abc")),
    };
    assert_json_snapshot!(signed_in, @r#"
    {
      "user_id": "us03halx8fdhw2fu3txwbd0kdw0",
      "email": "ada@example.com",
      "name": "Ada",
      "expires_at": "2026-02-07T09:30:00Z",
      "csrf_token": "abc"
    }
    "#);
}

#[test]
fn the_signed_in_user() {
    let me = Me {
        user_id: "us03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        email: "ada@example.com".into(),
        name: "Ada".into(),
        has_password: true,
        providers: vec!["github".into()],
        is_admin: false,
        team_id: Some("team03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id")),
        role: Some(TeamRole::Owner),
        created_at: "2026-01-31T09:30:00Z".parse().expect("a time"),
    };
    assert_json_snapshot!(me, @r#"
    {
      "user_id": "us03halx8fdhw2fu3txwbd0kdw0",
      "email": "ada@example.com",
      "name": "Ada",
      "has_password": true,
      "providers": [
        "github"
      ],
      "is_admin": false,
      "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
      "role": "owner",
      "created_at": "2026-01-31T09:30:00Z"
    }
    "#);
}

#[test]
fn a_session() {
    let session = Session {
        id: "se03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        kept_in: KeptIn::Cookie,
        method: "password".into(),
        is_current: true,
        address: Some("192.0.2.7".into()),
        user_agent: None,
        created_at: "2026-01-31T09:30:00Z".parse().expect("a time"),
        last_used_at: "2026-01-31T09:45:00Z".parse().expect("a time"),
        expires_at: "2026-02-07T09:30:00Z".parse().expect("a time"),
    };
    assert_json_snapshot!(session, @r#"
    {
      "id": "se03halx8fdhw2fu3txwbd0kdw0",
      "kept_in": "cookie",
      "method": "password",
      "is_current": true,
      "address": "192.0.2.7",
      "created_at": "2026-01-31T09:30:00Z",
      "last_used_at": "2026-01-31T09:45:00Z",
      "expires_at": "2026-02-07T09:30:00Z"
    }
    "#);
}

#[test]
fn requests_are_strict_and_print_no_secret() {
    let login = r#"{"email":"ada@example.com","password":"hunter2"}"#;
    let parsed: Login = serde_json::from_str(login).expect("a login");
    assert!(!parsed.cookie && parsed.password.reveal() == "hunter2");
    assert!(!format!("{parsed:?}").contains("hunter2"));
    assert!(serde_json::from_str::<Login>(r#"{"email":"a@b","password":"x","team":"y"}"#).is_err());
    let link: UseLink = serde_json::from_str(r#"{"token":"hunter2","cookie":true}"#).expect("a link");
    assert!(link.cookie && !format!("{link:?}").contains("hunter2"));
    let sign_up = r#"{"email":"ada@example.com","password":"hunter2","name":"Ada"}"#;
    let sign_up: SignUp = serde_json::from_str(sign_up).expect("a sign-up");
    assert!(!format!("{sign_up:?}").contains("hunter2"));
    let change: ChangePassword = serde_json::from_str(r#"{"new_password":"hunter2"}"#).expect("a change");
    assert!(change.current_password.is_none() && !format!("{change:?}").contains("hunter2"));
    let delete: DeleteMe = serde_json::from_str(r#"{"confirmation":"ada@example.com"}"#).expect("a deletion");
    assert!(delete.current_password.is_none());
}
