// SPDX-License-Identifier: Apache-2.0
//! `wrenn team`: made, named, joined, left and deleted, and what its members may do in it.

use std::sync::Arc;

use anyhow::{Result, ensure};
use wrenn_testkit::Stack;

use super::home::{Home, signed_in, text, with};
use crate::cases::cli::stderr;

/// Who makes the team.
const TINA: &str = "tina@teams.example";
/// Who joins it.
const TOM: &str = "tom@teams.example";
/// Name of the team.
const NAME: &str = "Difference Engines";

/// Two users run a team together: it is made, renamed and joined by an invitation without mail; roles bound what its members do;
/// who is removed says what becomes of their keys; and its owner hands it over and leaves, and the next one deletes it.
pub(crate) async fn members_come_and_go_and_the_owner_changes(stack: Arc<Stack>) -> Result<()> {
    let (tina, tom) = (signed_in(&stack, TINA, "Tina").await?, signed_in(&stack, TOM, "Tom").await?);
    let id = made(&tina).await?;
    joins(&tina, &tom).await?;
    roles(&tina, &tom).await?;
    removed_with_keys(&stack, &tina, &tom).await?;
    joins(&tina, &tom).await?;

    tina.refused(&["team", "leave", NAME], None, &["transfer the team", "conflict"]).await?;
    tom.refused(&["team", "transfer", TOM], None, &["forbidden"]).await?;
    ensure!(tina.told(&["team", "transfer", TOM], None).await? == TOM, "another member");
    let members = tom.json(&["team", "members"]).await?;
    ensure!(with(&members, "email", TOM)?["role"] == "owner", "{members}");
    ensure!(with(&members, "email", TINA)?["role"] == "admin", "{members}");
    ensure!(tina.told(&["team", "leave", NAME], None).await? == id, "another team");
    tina.get(&format!("/v1/teams/{id}")).await?.expect_error(404, "not_found")?;
    ensure!(
        tina.json(&["whoami"]).await?["team"]["id"] != id.as_str(),
        "she acts for a team that she has left"
    );

    // Without a terminal nobody can be asked.
    tom.refused(&["team", "rm", NAME], None, &[NAME, "--yes"]).await?;
    tom.get(&format!("/v1/teams/{id}")).await?.expect(200)?;
    ensure!(tom.told(&["team", "rm", NAME, "--yes"], None).await? == id, "another team");
    tom.get(&format!("/v1/teams/{id}")).await?.expect_error(404, "not_found")?;
    let left = tom.json(&["team", "ls"]).await?;
    ensure!(left.as_array().is_some_and(|all| all.len() == 1) && left[0]["name"] == "Tom's team", "{left}");
    Ok(())
}

/// Makes the team, acts for it, and renames it; returns its id.
async fn made(tina: &Home) -> Result<String> {
    let id = tina.told(&["team", "create", "Analytical Engines"], None).await?;
    let says = tina.told(&["team", "use", "Analytical Engines"], None).await?;
    ensure!(says == format!("you act for Analytical Engines ({id})"), "{says}");
    ensure!(tina.json(&["whoami"]).await?["team"]["id"] == id.as_str(), "she acts for another team");
    ensure!(tina.told(&["team", "rename", NAME], None).await? == id, "another team");
    let team = tina.get(&format!("/v1/teams/{id}")).await?.expect(200)?.json();
    ensure!(team["name"] == NAME && team["role"] == "owner", "{team}");
    let missing = ["you are in no team", "wrenn team ls"];
    tina.refused(&["team", "use", "Analytical Engines"], None, &missing).await?;
    let table = tina.told(&["team", "ls"], None).await?;
    let listed = |name: &str| table.lines().any(|line| line.contains(name) && line.contains("owner"));
    ensure!(listed(NAME) && listed("Tina's team"), "{table}");
    // By its id, and by its slug.
    let own = text(with(&tina.json(&["team", "ls"]).await?, "name", "Tina's team")?, "slug")?;
    for team in [own.as_str(), &id] {
        tina.told(&["team", "use", team], None).await?;
    }
    let quotas = tina.json(&["team", "quotas"]).await?;
    let running = with(&quotas, "name", "running")?;
    ensure!(running["used"] == 0 && running["limit"].is_u64(), "{quotas}");
    tina.refused(&["team", "quotas", "--team", &id, "--limit", "running=1"], None, &["platform.admin"])
        .await?;
    Ok(id)
}

/// Invites a user, who sees and accepts the invitation, and acts for the team as its administrator.
async fn joins(tina: &Home, tom: &Home) -> Result<()> {
    let taken_back = tina.told(&["team", "invite", "tom2@teams.example"], None).await?;
    let invited = tina.run(&["team", "invite", TOM, "--role", "admin"], None).await?;
    ensure!(invited.status.success() && stderr(&invited).contains("sends no mail"), "{invited:?}");
    let invitation = String::from_utf8(invited.stdout)?.trim().to_owned();
    let all = tina.json(&["team", "invitations"]).await?;
    ensure!(
        with(&all, "id", &invitation)?["role"] == "admin" && with(&all, "id", &taken_back).is_ok(),
        "{all}"
    );
    ensure!(tina.told(&["team", "uninvite", &taken_back], None).await? == taken_back, "another invitation");
    // It is of another address.
    tina.refused(&["team", "accept", &invitation], None, &["not_found"]).await?;
    tom.refused(&["team", "accept", &taken_back], None, &["not_found"]).await?;
    let mine = tom.json(&["team", "invitations", "--mine"]).await?;
    ensure!(with(&mine, "id", &invitation)?["team_name"] == NAME && mine[0]["inviter"] == TINA, "{mine}");
    let says = tom.told(&["team", "accept", &invitation], None).await?;
    ensure!(says.starts_with(&format!("you are in {NAME} (")), "{says}");
    tom.told(&["team", "use", NAME], None).await?;
    let table = tina.told(&["team", "members"], None).await?;
    let has = |email: &str, role: &str| table.lines().any(|row| row.contains(email) && row.contains(role));
    ensure!(has(TINA, "owner") && has(TOM, "admin") && table.lines().count() == 3, "{table}");
    ensure!(tina.told(&["team", "invitations"], None).await?.lines().count() == 1, "an invitation is left");
    Ok(())
}

/// An administrator becomes a member, who sees the team and changes nothing of it.
async fn roles(tina: &Home, tom: &Home) -> Result<()> {
    let says = tina.told(&["team", "role", TOM, "member"], None).await?;
    ensure!(says == format!("{TOM}  member"), "{says}");
    for (args, permission) in [
        (&["team", "rename", "Mine"][..], "team.update"),
        (&["team", "invite", "tom3@teams.example"], "member.manage"),
        (&["team", "remove", TINA], "member.manage"),
        (&["key", "create"], "key.manage"),
        (&["audit"], "audit.read"),
        (&["team", "rm", NAME, "--yes"], "team.delete"),
    ] {
        tom.refused(args, None, &[permission, "forbidden"]).await?;
    }
    tom.told(&["team", "members"], None).await?;
    tina.refused(&["team", "role", TINA, "member"], None, &["stays its owner", "conflict"]).await?;
    tina.refused(&["team", "remove", "tom2@teams.example"], None, &["no member", "wrenn team members"])
        .await?;
    tina.misused(&["team", "role", TOM, "owner"], "member or admin").await?;
    tina.told(&["team", "role", TOM, "admin"], None).await.map(drop)
}

/// Who has made a key is removed once it is said what becomes of it, and sees nothing more of the team.
async fn removed_with_keys(stack: &Stack, tina: &Home, tom: &Home) -> Result<()> {
    let made = tom.json(&["key", "create", "deploy"]).await?;
    let program = stack.api.with_key(&text(&made, "key")?);
    program.get("/v1/sandboxes").await?.expect(200)?;
    tina.refused(&["team", "remove", TOM], None, &["member_has_keys", "deploy"]).await?;
    let removed = tina.told(&["team", "remove", TOM, "--keys", "revoke"], None).await?;
    ensure!(removed == TOM, "{removed}");
    program.get("/v1/sandboxes").await?.expect_error(401, "unauthorized")?;
    let table = tom.told(&["team", "ls"], None).await?;
    ensure!(!table.contains(NAME), "{table}");
    tom.refused(&["team", "use", NAME], None, &["you are in no team"]).await?;
    ensure!(
        tom.json(&["whoami"]).await?["team"]["name"] == "Tom's team",
        "he acts for a team that he is not in"
    );
    Ok(())
}
