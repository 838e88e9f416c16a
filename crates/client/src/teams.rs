// SPDX-License-Identifier: Apache-2.0
//! Teams: their members, invitations into them, and their quotas.

use reqwest::Method;
use wrenn_api::{
    AcceptInvitation, CreateInvitation, CreateTeam, GivenRole, Invitation, InvitationId, MadeInvitation,
    MadeKeys, MyInvitation, Quota, Team, TeamId, TeamMember, TransferTeam, UpdateMember, UpdateTeam, UserId,
};

use crate::{
    Client, Result,
    paging::ALL,
    transport::{ANSWER_MAX, REQUEST_LIMIT},
};

impl Client {
    /// Lists the teams of the user, or the team of the API key.
    pub async fn list_teams(&self) -> Result<Vec<Team>> {
        self.every("/v1/teams", &ALL).await
    }

    /// Creates a team that the user owns.
    pub async fn create_team(&self, name: &str) -> Result<Team> {
        let call = self.request(Method::POST, "/v1/teams").timeout(REQUEST_LIMIT);
        self.json(call.json(&CreateTeam { name: name.to_owned() }), ANSWER_MAX).await
    }

    /// Returns a team.
    pub async fn get_team(&self, team: TeamId) -> Result<Team> {
        let call = self.request(Method::GET, &format!("/v1/teams/{team}")).timeout(REQUEST_LIMIT);
        self.json(call, ANSWER_MAX).await
    }

    /// Gives a team another name.
    pub async fn rename_team(&self, team: TeamId, name: &str) -> Result<Team> {
        let call = self.request(Method::PATCH, &format!("/v1/teams/{team}")).timeout(REQUEST_LIMIT);
        self.json(call.json(&UpdateTeam { name: name.to_owned() }), ANSWER_MAX).await
    }

    /// Deletes a team with everything that it has.
    pub async fn delete_team(&self, team: TeamId) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/teams/{team}")).timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }

    /// Leaves a team. Fails with `member_has_keys` if the user made API keys of it, and it is not said what becomes of them.
    pub async fn leave_team(&self, team: TeamId, keys: Option<MadeKeys>) -> Result<()> {
        let call = self.request(Method::POST, &format!("/v1/teams/{team}/leave")).timeout(REQUEST_LIMIT);
        let keys: Vec<_> = keys.iter().map(|keys| ("keys", keys.as_str())).collect();
        self.send(call.query(&keys)).await.map(drop)
    }

    /// Makes a member the owner of a team, whose owner becomes an admin of it.
    pub async fn transfer_team(&self, team: TeamId, user: UserId) -> Result<()> {
        let call = self.request(Method::POST, &format!("/v1/teams/{team}/transfer")).timeout(REQUEST_LIMIT);
        self.send(call.json(&TransferTeam { user_id: user })).await.map(drop)
    }

    /// Lists the members of a team.
    pub async fn list_members(&self, team: TeamId) -> Result<Vec<TeamMember>> {
        self.every(&format!("/v1/teams/{team}/members"), &ALL).await
    }

    /// Gives a member another role.
    pub async fn update_member(&self, team: TeamId, user: UserId, role: GivenRole) -> Result<TeamMember> {
        let call = self.request(Method::PATCH, &format!("/v1/teams/{team}/members/{user}"));
        self.json(call.timeout(REQUEST_LIMIT).json(&UpdateMember { role }), ANSWER_MAX).await
    }

    /// Removes a member. Fails with `member_has_keys` if the member made API keys, and it is not said what becomes of them.
    pub async fn remove_member(&self, team: TeamId, user: UserId, keys: Option<MadeKeys>) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/teams/{team}/members/{user}"));
        let keys: Vec<_> = keys.iter().map(|keys| ("keys", keys.as_str())).collect();
        self.send(call.timeout(REQUEST_LIMIT).query(&keys)).await.map(drop)
    }

    /// Lists the invitations into a team that were not accepted yet.
    pub async fn list_invitations(&self, team: TeamId) -> Result<Vec<Invitation>> {
        self.every(&format!("/v1/teams/{team}/invitations"), &ALL).await
    }

    /// Invites the user of an address into a team.
    pub async fn invite(&self, team: TeamId, email: &str, role: GivenRole) -> Result<MadeInvitation> {
        let call = self.request(Method::POST, &format!("/v1/teams/{team}/invitations"));
        let new = CreateInvitation { email: email.to_owned(), role };
        self.json(call.timeout(REQUEST_LIMIT).json(&new), ANSWER_MAX).await
    }

    /// Takes an invitation back.
    pub async fn delete_invitation(&self, team: TeamId, invitation: InvitationId) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/teams/{team}/invitations/{invitation}"));
        self.send(call.timeout(REQUEST_LIMIT)).await.map(drop)
    }

    /// Lists the invitations of the user.
    pub async fn my_invitations(&self) -> Result<Vec<MyInvitation>> {
        self.every("/v1/me/invitations", &ALL).await
    }

    /// Accepts an invitation of the user; returns the team.
    pub async fn accept_invitation(&self, which: &AcceptInvitation) -> Result<Team> {
        let call = self.request(Method::POST, "/v1/invitations/accept").timeout(REQUEST_LIMIT).json(which);
        self.json(call, ANSWER_MAX).await
    }

    /// Lists the limits of a team, and how much of each is used.
    pub async fn team_quotas(&self, team: TeamId) -> Result<Vec<Quota>> {
        let call = self.request(Method::GET, &format!("/v1/teams/{team}/quotas")).timeout(REQUEST_LIMIT);
        self.json(call, ANSWER_MAX).await
    }
}
