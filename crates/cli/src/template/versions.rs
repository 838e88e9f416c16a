// SPDX-License-Identifier: Apache-2.0
//! Templates with their versions and tags: list, show, move a tag, remove.

use anyhow::Result;
use serde_json::json;
use wrenn_api::{Template, TemplateKind, TemplateVersion};
use wrenn_client::Client;

use super::reference::{LATEST, Reference};
use crate::{
    failure::Failure,
    output::{self, Format, fields, time},
};

/// Runs `wrenn template ls`.
pub(super) async fn list(client: &Client, format: Format) -> Result<()> {
    let all = client.list_templates().await?;
    format.print(&all, || templates(&all))
}

/// Runs `wrenn template inspect`.
pub(super) async fn inspect(client: &Client, template: &Reference, format: Format) -> Result<()> {
    let versions = match client.template_versions(&template.name).await {
        Err(error) if error.code() == Some("not_found") && template.tag.is_none() => {
            // The platform's and snapshots have no versions.
            let all = client.list_templates().await?;
            let found = all.into_iter().find(|other| other.name == template.name).ok_or(error)?;
            return format.print(&found, || fields(&found));
        }
        other => other?,
    };
    let wanted = template.tag.as_deref().unwrap_or(LATEST);
    let found = versions.iter().find(|version| version.tags.iter().any(|tag| tag == wanted));
    let found = found.ok_or_else(|| no_tag(&template.name, wanted, &versions))?;
    format.print(found, || fields(found))
}

/// Runs `wrenn template history`.
pub(super) async fn history(client: &Client, name: &str, format: Format) -> Result<()> {
    let all = client.template_versions(name).await?;
    format.print(&all, || versions(&all))
}

/// Runs `wrenn template tag`.
pub(super) async fn tag(client: &Client, name: &str, version: u32, tag: &str, format: Format) -> Result<()> {
    let moved = client.move_tag(name, tag, version).await?;
    format.print(&moved, || format!("{name}:{tag}"))
}

/// Runs `wrenn template rm`.
pub(super) async fn remove(client: &Client, names: &[String], format: Format) -> Result<()> {
    for name in names {
        client.delete_template(name).await?;
    }
    format.print(&json!({ "removed": names }), || names.join("\n"))
}

fn no_tag(name: &str, wanted: &str, all: &[TemplateVersion]) -> Failure {
    let tags: Vec<_> = all.iter().flat_map(|version| &version.tags).map(String::as_str).collect();
    let has = if tags.is_empty() { "none".to_owned() } else { tags.join(", ") };
    Failure::new("not_found", format!("template {name} has no tag {wanted}: it has {has}"))
}

fn templates(all: &[Template]) -> String {
    let rows = all.iter().map(|template| {
        let tags: Vec<_> = template.tags.iter().map(|(tag, version)| format!("{tag}={version}")).collect();
        [
            template.name.clone(),
            if template.platform { "platform" } else { "team" }.to_owned(),
            kind(template.kind).to_owned(),
            shown(template.version, ""),
            if tags.is_empty() { "-".to_owned() } else { tags.join(",") },
            shown(template.vcpus, ""),
            shown(template.memory_mb, " MiB"),
            template.created_at.map_or("-".to_owned(), time),
        ]
    });
    output::table(["NAME", "OWNER", "KIND", "VERSION", "TAGS", "VCPUS", "MEMORY", "CREATED"], rows)
}

fn versions(all: &[TemplateVersion]) -> String {
    let rows = all.iter().map(|version| {
        [
            version.version.to_string(),
            if version.tags.is_empty() { "-".to_owned() } else { version.tags.join(",") },
            kind(version.kind).to_owned(),
            format!("{} MiB", version.size_mb),
            version.build_id.to_string(),
            time(version.created_at),
        ]
    });
    output::table(["VERSION", "TAGS", "KIND", "SIZE", "BUILD", "CREATED"], rows)
}

fn kind(kind: TemplateKind) -> &'static str {
    match kind {
        TemplateKind::Base => "base",
        TemplateKind::Snapshot => "snapshot",
    }
}

fn shown(number: Option<u32>, unit: &str) -> String {
    number.map_or("-".to_owned(), |number| format!("{number}{unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squeezed(text: &str) -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn templates_are_listed_with_versions_and_tags() {
        let value = json!([{"name": "minimal", "kind": "base", "platform": true}, {"name": "web", "kind": "snapshot", "version": 3,
            "tags": {"latest": 3, "stable": 2}, "vcpus": 2, "memory_mb": 512, "created_at": "2026-01-31T09:30:00Z"}]);
        let all: Vec<Template> = serde_json::from_value(value).expect("templates");
        assert_eq!(
            squeezed(&templates(&all)),
            [
                "NAME OWNER KIND VERSION TAGS VCPUS MEMORY CREATED",
                "minimal platform base - - - - -",
                "web team snapshot 3 latest=3,stable=2 2 512 MiB 2026-01-31 09:30:00 UTC"
            ]
        );
    }

    #[test]
    fn a_missing_tag_is_told_with_those_that_there_are() {
        let id = wrenn_api::BuildId::new();
        let version = |number: u32, tags: &[&str]| {
            json!({"name": "web", "version": number, "kind": "base", "tags": tags, "build_id": id, "cache_key": "k",
                "size_mb": 912, "envs": {}, "user": "root", "workdir": "/", "created_at": "2026-01-31T09:30:00Z"})
        };
        let value = json!([version(2, &["latest", "next"]), version(1, &[])]);
        let all: Vec<TemplateVersion> = serde_json::from_value(value).expect("versions");
        let lines = squeezed(&versions(&all));
        assert_eq!(lines[1], format!("2 latest,next base 912 MiB {id} 2026-01-31 09:30:00 UTC"));
        assert_eq!(lines[2], format!("1 - base 912 MiB {id} 2026-01-31 09:30:00 UTC"));
        let told = no_tag("web", "stable", &all).to_string();
        assert_eq!(told, "template web has no tag stable: it has latest, next");
    }
}
