// SPDX-License-Identifier: Apache-2.0
//! Every operation of the OpenAPI document is called with secrets wherever a request can have one: the log of the servers has none of
//! them, at whatever level.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::{Method, multipart};
use serde_json::{Value, json};
use wrenn_control::Limits;
use wrenn_testkit::Api;

use crate::{fixture::Fixture, log_scan, stores::Stores};

/// Time for which an answer is waited for: what counts is what is logged meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// Parts of names of fields and parameters whose values are secrets.
const PARTS: [&str; 8] = ["password", "token", "secret", "ticket", "signature", "envs", "csrf", "credential"];
/// Whole names of such. The addresses of many channels are secrets.
const WHOLE: [&str; 4] = ["code", "state", "url", "webhook_url"];

fn is_secret(name: &str) -> bool {
    PARTS.iter().any(|part| name.contains(part)) || WHOLE.contains(&name)
}

/// Secrets of the walk, each of its own kind.
struct Secrets {
    number: usize,
}

impl Secrets {
    /// Returns another secret, which no log may have.
    fn next(&mut self, kind: &str) -> String {
        self.number += 1;
        let secret = format!(
            "hush{:04}{}",
            self.number,
            kind.replace(|letter: char| !letter.is_ascii_alphanumeric(), "")
        );
        log_scan::look_for(&secret);
        secret
    }

    /// Puts secrets into all fields of a body that can have some.
    fn fill(&mut self, value: &mut Value, name: &str) {
        let is_secret = is_secret(name);
        match value {
            Value::Object(fields) => {
                for (field, value) in fields {
                    // Those of a field with a secret name are all secrets, as variables are.
                    let name = if is_secret { name } else { field.as_str() };
                    self.fill(value, name);
                }
            }
            Value::Array(all) => all.iter_mut().for_each(|value| self.fill(value, name)),
            Value::String(text) if is_secret => *text = self.next(name),
            _ => {}
        }
    }
}

pub(crate) async fn no_log_has_a_secret(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let probe = "hush-probe-of-the-scan";
    log_scan::look_for(probe);
    tracing::trace!(target: "wrenn_control::probe", "a line with {probe}");
    ensure!(log_scan::found(probe).is_some(), "the log is not scanned");
    log_scan::forget(probe);
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    log_scan::look_for("hush-of-the-sandbox");
    let document = fixture.api.get("/openapi.json").await?.expect(200)?.json();
    let sandbox =
        fixture.api.create(&json!({"memory_mb": 256, "envs": {"KEY": "hush-of-the-sandbox"}})).await?;
    let mut secrets = Secrets { number: 0 };
    let mut count = 0;
    for (path, item) in document["paths"].as_object().context("no paths")? {
        for (method, operation) in item.as_object().context("no operations")? {
            let method: Method = method.to_uppercase().parse()?;
            call(&fixture.api, &document, (&method, path.as_str(), operation), &sandbox, &mut secrets)
                .await?;
            count += 1;
        }
    }
    ensure!(count >= 40 && secrets.number > 2 * count, "{count} operations, {} secrets", secrets.number);
    let found = log_scan::all_found();
    ensure!(found.is_empty(), "the log has secrets:\n{}", found.join("\n"));
    fixture.stop().await
}

/// Calls an operation with the key, and with credentials that are made up, whatever it answers.
async fn call(
    api: &Api,
    document: &Value,
    (method, path, operation): (&Method, &str, &Value),
    sandbox: &str,
    secrets: &mut Secrets,
) -> Result<()> {
    // It would be gone for the others.
    let id = if method == Method::DELETE { "nobodys" } else { sandbox };
    let mut filled = String::new();
    for part in path.split_inclusive('/') {
        let part = match part.trim_end_matches('/') {
            "{id}" => part.replace("{id}", id),
            "{port}" => part.replace("{port}", "8000"),
            name if name.starts_with('{') => part.replace(name, "nobodys"),
            _ => part.to_owned(),
        };
        filled.push_str(&part);
    }
    let mut query = vec![("ticket".to_owned(), secrets.next("ticket"))];
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap_or_default();
        match parameter["in"].as_str() {
            Some("query") if is_secret(name) => {
                query.push((name.to_owned(), secrets.next(name)));
            }
            Some("query") if parameter["required"] == true => {
                query.push((name.to_owned(), parameter["example"].as_str().unwrap_or_default().to_owned()));
            }
            _ => {}
        }
    }
    let content = operation["requestBody"]["content"].as_object().and_then(|all| all.iter().next());
    for credential in ["key", "wrong_key", "bearer", "cookie", "ticket"] {
        let sender = if credential == "key" { api.clone() } else { api.with_key("") };
        let mut request = sender.request(method.clone(), &filled).timeout(PATIENCE);
        request = match credential {
            "wrong_key" => request.header("X-API-Key", format!("wrn_{}", secrets.next("key"))),
            "bearer" => request.bearer_auth(secrets.next("bearer")),
            "cookie" => request
                .header("Cookie", format!("wrenn_session={}", secrets.next("cookie")))
                .header("X-CSRF-Token", secrets.next("csrf")),
            "ticket" => request.query(&query),
            _ => request,
        };
        if let Some((kind, content)) = content {
            let mut body = example(document, content);
            secrets.fill(&mut body, "");
            request = match (kind.as_str(), body.as_object()) {
                ("multipart/form-data", Some(parts)) => request.multipart(form(parts)),
                ("application/json", _) => request.json(&body),
                _ => request.body(secrets.next("content")),
            };
        }
        // Only the head of an answer that does not end.
        drop(request.send().await);
    }
    Ok(())
}

/// Returns the example of a body.
fn example(document: &Value, content: &Value) -> Value {
    let choices = content["schema"]["oneOf"].as_array().cloned().unwrap_or_default();
    let named = choices.iter().chain([&content["schema"]]).find_map(|schema| schema["$ref"].as_str());
    let schema = named.and_then(|path| document.pointer(path.trim_start_matches('#')));
    schema.map(|schema| schema["example"].clone()).unwrap_or_default()
}

fn form(parts: &serde_json::Map<String, Value>) -> multipart::Form {
    parts.iter().fold(multipart::Form::new(), |form, (name, value)| {
        form.text(name.clone(), value.as_str().unwrap_or_default().to_owned())
    })
}
