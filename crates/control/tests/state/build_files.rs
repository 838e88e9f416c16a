// SPDX-License-Identifier: Apache-2.0
//! Cases of the directory that has the uploaded files of builds: one that cannot be used, and servers that do not share it.

use std::{fs, sync::Arc};

use anyhow::{Context, Result, ensure};
use reqwest::{Method, multipart::Form};
use serde_json::json;
use wrenn_control::{BuildSettings, Limits};
use wrenn_testkit::Reply;

use crate::{
    build_forms::{RECIPE, archive, config, send},
    builds::{PATH, wait},
    fixture::Fixture,
    second,
    stores::Stores,
};

/// The setting that names the directory.
const SETTING: &str = "server.build_context_dir";

fn form() -> Form {
    Form::new().part("config", config(RECIPE)).part("archive", archive())
}

/// Fails unless an upload was refused with the setting and this cause.
fn is_told(reply: Reply, cause: &str) -> Result<()> {
    let told = reply.expect_error(500, "internal_error")?.json();
    let message = told["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains(SETTING) && message.contains(cause), "{message}");
    Ok(())
}

/// A directory that cannot be used is told with its name, the cause and the setting: at the start, after which there is no server, and
/// at each upload, of which nothing is left. When it can be used again, no server has to be restarted.
pub(crate) async fn a_directory_that_cannot_be_used_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    // Another server would make the directory when it starts.
    second::wait_until_over().await;
    let directory = fixture.contexts();
    let (file, away) = (directory.with_file_name("file"), directory.with_file_name("away"));
    fs::write(&file, "")?;
    let within = file.join("contexts");
    fixture.builds.context_dir = Some(within.clone());
    let told = fixture.build_error(|builder| builder).await?;
    for part in [SETTING, within.to_str().context("a path that is no text")?, "Not a directory"] {
        ensure!(told.contains(part), "{part:?} is not told: {told}");
    }

    let load = async || {
        let request = fixture.api.request(Method::POST, "/v1/images?name=app").body("an archive");
        fixture.api.send(request).await
    };
    fs::rename(&directory, &away)?;
    is_told(send(&fixture, form()).await?, "not found").context("a build, without the directory")?;
    is_told(load().await?, "not found").context("an image, without the directory")?;
    fs::rename(&file, &directory)?;
    is_told(send(&fixture, form()).await?, "not a directory").context("a build, with a file in its place")?;
    is_told(load().await?, "not a directory").context("an image, with a file in its place")?;
    let builds = fixture.api.get(PATH).await?.expect(200)?.json();
    ensure!(builds == json!([]), "{builds}");
    ensure!(fixture.agent().now().loads.is_empty(), "a host was asked");

    fs::remove_file(&directory)?;
    fs::rename(&away, &directory)?;
    send(&fixture, form()).await?.expect(201)?;
    load().await?.expect(201)?;
    fixture.stop().await
}

/// A server that works on a build and does not have its files says that the servers must share the directory, before it does anything.
pub(crate) async fn servers_that_share_no_files_are_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut settings = BuildSettings::default();
    settings.workers = 0;
    let mut fixture = Fixture::start_with(stores, name, 1, Limits::default(), settings).await?;
    fixture.builds.workers = 1;
    fixture.builds.context_dir = Some(fixture.contexts().with_file_name("not-shared"));
    fixture.serve().await?;
    let asked = send(&fixture, form()).await?.expect(201)?.json();
    let build = wait(&fixture, asked["id"].as_str().context("no id")?, "failed").await?;
    let message = build["error"]["message"].as_str().unwrap_or_default();
    ensure!(build["error"]["code"] == "internal_error", "{build}");
    ensure!(message.contains(SETTING) && message.contains("all servers must share"), "{build}");
    ensure!(fixture.agent().now().creates.is_empty(), "it has made a sandbox");
    fixture.stop().await
}
