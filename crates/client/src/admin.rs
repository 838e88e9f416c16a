// SPDX-License-Identifier: Apache-2.0
//! Administration of the platform: users, teams, hosts, sandboxes and templates of all teams.

use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};
use wrenn_api::{
    AdminHost, AdminSandbox, AdminTeam, AdminTemplate, AdminUser, MadeKeys, SandboxId, SetActive, SetAdmin,
    SetByoc, TeamId, TeamQuotas, UserId,
};

use crate::{
    Client, Result,
    paging::ALL,
    transport::{ANSWER_MAX, REQUEST_LIMIT},
};

impl Client {
    /// Lists the users.
    pub async fn all_users(&self) -> Result<Vec<AdminUser>> {
        self.every("/v1/admin/users", &ALL).await
    }

    /// Finds a user by its address.
    pub async fn user_by_email(&self, email: &str) -> Result<Option<AdminUser>> {
        let (found, _) = self.page("/v1/admin/users", &[("email", email)], None).await?;
        Ok(found.into_iter().next())
    }

    /// Lets a user sign in, or shuts it out, which ends its sessions. `keys` says what becomes of the API keys of a user who is shut
    /// out; needed if there are any.
    pub async fn set_user_active(
        &self,
        user: UserId,
        active: bool,
        keys: Option<MadeKeys>,
    ) -> Result<AdminUser> {
        self.put(&format!("/v1/admin/users/{user}/active"), &SetActive { active, keys }).await
    }

    /// Makes a user an administrator of the platform, or takes that back.
    pub async fn set_user_admin(&self, user: UserId, admin: bool) -> Result<AdminUser> {
        self.put(&format!("/v1/admin/users/{user}/admin"), &SetAdmin { admin }).await
    }

    /// Deletes a user. `keys` says what becomes of the API keys that it made; needed if there are any.
    pub async fn delete_user(&self, user: UserId, keys: Option<MadeKeys>) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/admin/users/{user}")).timeout(REQUEST_LIMIT);
        let keys: Vec<_> = keys.iter().map(|keys| ("keys", keys.as_str())).collect();
        self.send(call.query(&keys)).await.map(drop)
    }

    /// Lists the teams, or with `deleted` those too that were deleted.
    pub async fn all_teams(&self, deleted: bool) -> Result<Vec<AdminTeam>> {
        self.every("/v1/admin/teams", &[("deleted", deleted)]).await
    }

    /// Lets a team bring hosts of its own, or takes that back.
    pub async fn set_team_byoc(&self, team: TeamId, enabled: bool) -> Result<AdminTeam> {
        self.put(&format!("/v1/admin/teams/{team}/byoc"), &SetByoc { enabled }).await
    }

    /// Gives a team other quotas than those of the server; what is left out is that of the server.
    pub async fn set_team_quotas(&self, team: TeamId, quotas: &TeamQuotas) -> Result<AdminTeam> {
        self.put(&format!("/v1/admin/teams/{team}/quotas"), quotas).await
    }

    /// Deletes any team with everything that it has.
    pub async fn delete_any_team(&self, team: TeamId) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/admin/teams/{team}")).timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }

    /// Lists the hosts.
    pub async fn all_hosts(&self) -> Result<Vec<AdminHost>> {
        self.every("/v1/admin/hosts", &ALL).await
    }

    /// Lists the sandboxes of all teams.
    pub async fn all_sandboxes(&self) -> Result<Vec<AdminSandbox>> {
        self.every("/v1/admin/sandboxes", &ALL).await
    }

    /// Deletes a sandbox of any team.
    pub async fn delete_any_sandbox(&self, sandbox: SandboxId) -> Result<()> {
        let call =
            self.request(Method::DELETE, &format!("/v1/admin/sandboxes/{sandbox}")).timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }

    /// Lists the templates that teams and the platform have built.
    pub async fn all_templates(&self) -> Result<Vec<AdminTemplate>> {
        self.every("/v1/admin/templates", &ALL).await
    }

    async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let call = self.request(Method::PUT, path).timeout(REQUEST_LIMIT).json(body);
        self.json(call, ANSWER_MAX).await
    }
}
