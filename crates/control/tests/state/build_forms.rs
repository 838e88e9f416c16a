// SPDX-License-Identifier: Apache-2.0
//! Case of builds that are asked for with files, in forms.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::json;
use wrenn_control::Limits;
use wrenn_testkit::Reply;

use crate::{fixture::Fixture, stores::Stores};

const PATH: &str = "/v1/templates/builds";
/// A recipe that copies what [`archive`] has.
pub(crate) const RECIPE: &str = "FROM minimal\nCOPY site /srv\n";

/// A tar archive with one file.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [b'\0'; 512];
    let size = format!("{:011o}\0", content.len());
    // The checksum is made with spaces in its place.
    for (at, field) in [
        (0, name),
        (100, "0000644\0"),
        (108, "0000000\0"),
        (116, "0000000\0"),
        (124, size.as_str()),
        (136, "00000000000\0"),
        (148, "        "),
        (156, "0"),
        (257, "ustar\0"),
        (263, "00"),
    ] {
        header[at..at + field.len()].copy_from_slice(field.as_bytes());
    }
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

/// The part that says what is to be built.
pub(crate) fn config(recipe: &str) -> Part {
    Part::text(json!({"name": "web", "recipe": recipe}).to_string())
}

/// The part with the files.
pub(crate) fn archive() -> Part {
    Part::bytes(tar("site/index.html", b"<p>hello</p>\n")).file_name("context.tar")
}

/// Sends a form.
pub(crate) async fn send(fixture: &Fixture, form: Form) -> Result<Reply> {
    fixture.api.send(fixture.api.request(Method::POST, PATH).multipart(form)).await
}

/// Parts come in any order, once each; what is wrong is told.
pub(crate) async fn files_come_in_forms(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    for form in [
        Form::new().part("config", config(RECIPE)).part("archive", archive()),
        Form::new().part("archive", archive()).part("config", config(RECIPE)),
        // Files that no step copies.
        Form::new().part("config", config("FROM minimal\nRUN true\n")).part("archive", archive()),
    ] {
        let build = send(&fixture, form).await?.expect(201)?.json();
        ensure!(build["name"] == "web" && build["tag"] == "latest", "{build}");
        let found = fixture.api.get(&format!("{PATH}/{}", build["id"].as_str().context("no id")?)).await?;
        ensure!(found.expect(200)?.json()["id"] == build["id"]);
    }
    let text = |text: &'static str| Part::text(text);
    for (what, form, told) in [
        ("no config", Form::new().part("archive", archive()), "no part `config`"),
        ("no archive", Form::new().part("config", config(RECIPE)), "no part `archive`"),
        (
            "two",
            Form::new().part("config", config(RECIPE)).part("config", config(RECIPE)),
            "\"config\" too many",
        ),
        ("unknown", Form::new().part("config", config(RECIPE)).part("file", archive()), "\"file\" too many"),
        ("an array", Form::new().part("config", text(r#"["web", "FROM minimal"]"#)), "JSON object"),
        (
            "a field",
            Form::new().part("config", text(r#"{"name":"a","recipe":"","x":1}"#)),
            "not as documented",
        ),
        (
            "other files",
            Form::new().part("config", config("FROM minimal\nCOPY other /srv\n")).part("archive", archive()),
            "other",
        ),
        ("a text", Form::new().part("config", config(RECIPE)).part("archive", text("hello")), "archive"),
    ] {
        let reply = send(&fixture, form).await?.expect_error(400, "invalid_request").context(what)?;
        let message = reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        ensure!(message.contains(told), "{what}: {message}");
    }
    let without = json!({"name": "web", "recipe": RECIPE});
    let reply = fixture.api.post(PATH, &without).await?.expect_error(400, "invalid_request")?;
    ensure!(
        reply.json()["error"]["message"].as_str().is_some_and(|told| told.contains("site")),
        "{}",
        reply.json()
    );
    for kind in ["multipart/form-data", "multipart/mixed; boundary=x", "text/plain"] {
        let reply = fixture.send(Method::POST, PATH, Some((kind, "x"))).await?;
        reply.expect_error(415, "unsupported_media_type").context(kind)?;
    }
    for query in ["limit=0", "limit=101", "template=a/b", "status=failed"] {
        let reply = fixture.api.get(&format!("{PATH}?{query}")).await?;
        reply.expect_error(400, "invalid_request").context(query)?;
    }
    let listed = fixture.api.get(&format!("{PATH}?template=web&limit=2")).await?.expect(200)?.json();
    ensure!(listed.as_array().is_some_and(|all| all.len() == 2), "{listed}");
    fixture.stop().await
}
