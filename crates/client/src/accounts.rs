// SPDX-License-Identifier: Apache-2.0
//! Accounts of users: sign-up, sign-in, the user's own data, and their sessions.

use reqwest::Method;
use wrenn_api::{
    ChangePassword, ConfirmReset, DeleteMe, Login, Me, Notice, RequestReset, Session, SessionId, SignUp,
    SignedIn, SwitchTeam, TeamId, UpdateMe, UseLink,
};

use crate::{
    Client, Result,
    paging::ALL,
    transport::{ANSWER_MAX, REQUEST_LIMIT},
};

impl Client {
    /// Signs a user up. The server sends a mail with the link that makes an account of it.
    pub async fn sign_up(&self, new: &SignUp) -> Result<Notice> {
        let call = self.request(Method::POST, "/v1/auth/signup").timeout(REQUEST_LIMIT).json(new);
        self.json(call, ANSWER_MAX).await
    }

    /// Makes an account of a sign-up by the link of its mail, and signs the user in.
    pub async fn activate(&self, link: &UseLink) -> Result<SignedIn> {
        let call = self.request(Method::POST, "/v1/auth/activate").timeout(REQUEST_LIMIT).json(link);
        self.json(call, ANSWER_MAX).await
    }

    /// Signs a user in with a password.
    pub async fn log_in(&self, login: &Login) -> Result<SignedIn> {
        let call = self.request(Method::POST, "/v1/auth/login").timeout(REQUEST_LIMIT).json(login);
        self.json(call, ANSWER_MAX).await
    }

    /// Signs a user in with a one-time link.
    pub async fn log_in_by_link(&self, link: &UseLink) -> Result<SignedIn> {
        let call = self.request(Method::POST, "/v1/auth/sign-in-link").timeout(REQUEST_LIMIT).json(link);
        self.json(call, ANSWER_MAX).await
    }

    /// Ends the session.
    pub async fn log_out(&self) -> Result<()> {
        let call = self.request(Method::POST, "/v1/auth/logout").timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }

    /// Lets the session act for another team of the user.
    pub async fn switch_team(&self, team: TeamId) -> Result<Me> {
        let call = self.request(Method::POST, "/v1/auth/switch-team").timeout(REQUEST_LIMIT);
        self.json(call.json(&SwitchTeam { team_id: team }), ANSWER_MAX).await
    }

    /// Asks for a mail with a link to set another password. The answer is the same for an address that has no account.
    pub async fn request_password_reset(&self, email: &str) -> Result<()> {
        let call = self.request(Method::POST, "/v1/auth/password-reset").timeout(REQUEST_LIMIT);
        self.send(call.json(&RequestReset { email: email.to_owned() })).await.map(drop)
    }

    /// Sets another password by the link of a mail, which ends all sessions.
    pub async fn confirm_password_reset(&self, reset: &ConfirmReset) -> Result<()> {
        let call = self.request(Method::POST, "/v1/auth/password-reset/confirm").timeout(REQUEST_LIMIT);
        self.send(call.json(reset)).await.map(drop)
    }

    /// Returns the user who is signed in.
    pub async fn me(&self) -> Result<Me> {
        let call = self.request(Method::GET, "/v1/me").timeout(REQUEST_LIMIT);
        self.json(call, ANSWER_MAX).await
    }

    /// Changes the user who is signed in.
    pub async fn update_me(&self, update: &UpdateMe) -> Result<Me> {
        let call = self.request(Method::PATCH, "/v1/me").timeout(REQUEST_LIMIT).json(update);
        self.json(call, ANSWER_MAX).await
    }

    /// Deletes the account of the user who is signed in.
    pub async fn delete_me(&self, confirmed: &DeleteMe) -> Result<()> {
        let call = self.request(Method::DELETE, "/v1/me").timeout(REQUEST_LIMIT).json(confirmed);
        self.send(call).await.map(drop)
    }

    /// Changes the password, which ends all other sessions.
    pub async fn change_password(&self, change: &ChangePassword) -> Result<()> {
        let call = self.request(Method::POST, "/v1/me/password").timeout(REQUEST_LIMIT).json(change);
        self.send(call).await.map(drop)
    }

    /// Lists the sessions of the user.
    pub async fn list_sessions(&self) -> Result<Vec<Session>> {
        self.every("/v1/me/sessions", &ALL).await
    }

    /// Ends a session of the user.
    pub async fn end_session(&self, session: SessionId) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/me/sessions/{session}")).timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }
}
