// SPDX-License-Identifier: Apache-2.0
//! Builds of templates: asked for with the files that they copy, looked at, cancelled, and their logs.

use std::time::Duration;

use futures::{Stream, stream};
use reqwest::{
    Body, Method,
    multipart::{Form, Part},
};
use wrenn_api::{Build, BuildId, BuildLogEntry, CreateBuild};

use crate::{
    Client, Error, Result,
    reconnecting::{Place, Reconnecting},
    transport::{ANSWER_MAX, REQUEST_LIMIT, decode},
};

/// Time limit of an upload and of what the server does with it. The server ends an upload that stands still long before.
const UPLOAD_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Maximum size of a list in bytes.
const LIST_MAX: usize = 64 << 20;

/// What the log of a build has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildLogEvent {
    /// An entry.
    Entry(BuildLogEntry),
    /// The build has ended so; this is the last event.
    End(Box<Build>),
}

impl Client {
    /// Path of builds, or of the one with this id.
    fn builds_path(&self, id: Option<BuildId>) -> String {
        let all = if self.is_of_platform() { "/v1/admin/builds" } else { "/v1/templates/builds" };
        id.map_or_else(|| all.to_owned(), |id| format!("{all}/{id}"))
    }

    /// Asks for a build of a template. `archive` has the files that its recipe copies, as tar, tar.gz or zip; it is sent as a
    /// stream.
    pub async fn create_build(&self, new: &CreateBuild, archive: Option<Body>) -> Result<Build> {
        let call = self.request(Method::POST, &self.builds_path(None));
        let call = match archive {
            None => call.timeout(REQUEST_LIMIT).json(new),
            Some(archive) => call.timeout(UPLOAD_LIMIT).multipart(form(new, archive)?),
        };
        self.json(call, ANSWER_MAX).await
    }

    /// Returns what is known of a build.
    pub async fn get_build(&self, id: BuildId) -> Result<Build> {
        let call = self.request(Method::GET, &self.builds_path(Some(id)));
        self.json(call.timeout(REQUEST_LIMIT), ANSWER_MAX).await
    }

    /// Lists the newest builds, of all templates or of one, at most 100.
    pub async fn list_builds(&self, template: Option<&str>, limit: u32) -> Result<Vec<Build>> {
        let limit = limit.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(template.map(|template| ("template", template)));
        let call = self.request(Method::GET, &self.builds_path(None)).timeout(REQUEST_LIMIT).query(&query);
        self.json(call, LIST_MAX).await
    }

    /// Asks that a build is cancelled, which it is soon afterwards.
    pub async fn cancel_build(&self, id: BuildId) -> Result<()> {
        let call = self.request(Method::DELETE, &self.builds_path(Some(id)));
        self.send(call.timeout(REQUEST_LIMIT)).await.map(drop)
    }

    /// Streams the log of a build after the entry with the offset `after` (0: from the beginning), of all steps or of one, until
    /// the build ends. Reconnects after the last entry if the connection breaks; ends with an error if that fails for too long.
    pub async fn build_log(
        &self,
        id: BuildId,
        after: i64,
        step: Option<u32>,
    ) -> Result<impl Stream<Item = Result<BuildLogEvent>> + Send + Unpin + use<>> {
        let place = Place {
            what: "log of the build",
            path: format!("{}/logs", self.builds_path(Some(id))),
            query: step.map(|step| ("step", step.to_string())).into_iter().collect(),
            after: (after > 0).then(|| after.to_string()),
        };
        let log = Reconnecting::open(self, place).await?;
        Ok(Box::pin(stream::try_unfold(Some(log), next)))
    }
}

/// Returns the next event of a log; nothing after its end.
async fn next(log: Option<Reconnecting>) -> Result<Option<(BuildLogEvent, Option<Reconnecting>)>> {
    let Some(mut log) = log else { return Ok(None) };
    loop {
        let message = log.next().await?;
        match message.kind.as_str() {
            "log" => {
                let entry = decode(message.data.as_bytes())?;
                return Ok(Some((BuildLogEvent::Entry(entry), Some(log))));
            }
            "end" => return Ok(Some((BuildLogEvent::End(decode(message.data.as_bytes())?), None))),
            // Of a newer server.
            _ => {}
        }
    }
}

/// The form of a build with files. What it is comes first, so that the server can refuse it before it has the files.
fn form(new: &CreateBuild, archive: Body) -> Result<Form> {
    let unusable = |error: String| Error::Protocol(format!("the request cannot be written: {error}"));
    let config = serde_json::to_string(new).map_err(|error| unusable(error.to_string()))?;
    let of_type = |part: Part, kind: &str| part.mime_str(kind).map_err(|error| unusable(error.to_string()));
    let config = of_type(Part::text(config), "application/json")?;
    let archive = of_type(Part::stream(archive).file_name("context"), "application/octet-stream")?;
    Ok(Form::new().part("config", config).part("archive", archive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_those_of_the_team_or_of_the_platform() {
        let client = Client::new("http://127.0.0.1:1", None).expect("a client");
        let id = BuildId::new();
        assert_eq!(client.builds_path(Some(id)), format!("/v1/templates/builds/{id}"));
        let platform = client.for_platform();
        assert_eq!(platform.builds_path(Some(id)), format!("/v1/admin/builds/{id}"));
        assert_eq!(platform.builds_path(None), "/v1/admin/builds");
    }
}
