// SPDX-License-Identifier: Apache-2.0
//! Client of QMP, QEMU's control protocol: one JSON object per line.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

use crate::{VmmError, socket};

/// Time limit of a command: longer than an overloaded host may stand still, because a resume that is given up loses the memory.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// Maximum length of a line, in bytes.
const LINE_MAX: usize = 1 << 20;

/// A QMP session; QEMU accepts one at a time, so it is closed after use.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

fn io_error(action: &str, source: std::io::Error) -> VmmError {
    VmmError::Io { action: action.to_owned(), source }
}

impl Qmp {
    /// Connects and negotiates.
    pub(super) async fn connect(path: &Path) -> Result<Self, VmmError> {
        let open = async {
            let stream = socket::connect(path).await.map_err(|e| io_error("reach the VMM", e))?;
            let mut qmp = Self { stream: BufReader::new(stream) };
            qmp.line().await?;
            qmp.send("qmp_capabilities", &json!({}), "negotiate").await?;
            Ok(qmp)
        };
        let late = VmmError::Deadline { action: "answer", limit: COMMAND_LIMIT };
        timeout(COMMAND_LIMIT, open).await.unwrap_or(Err(late))
    }

    /// Runs a command without arguments.
    pub(super) async fn execute(&mut self, command: &str, action: &'static str) -> Result<Value, VmmError> {
        self.execute_with(command, &json!({}), action).await
    }

    /// Runs a command with these arguments, an object.
    pub(super) async fn execute_with(
        &mut self,
        command: &str,
        arguments: &Value,
        action: &'static str,
    ) -> Result<Value, VmmError> {
        let late = VmmError::Deadline { action, limit: COMMAND_LIMIT };
        timeout(COMMAND_LIMIT, self.send(command, arguments, action)).await.unwrap_or(Err(late))
    }

    async fn send(
        &mut self,
        command: &str,
        arguments: &Value,
        action: &'static str,
    ) -> Result<Value, VmmError> {
        let request = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream.get_mut().write_all(request.as_bytes()).await.map_err(|e| io_error(action, e))?;
        loop {
            let mut answer = self.line().await?;
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(VmmError::Refused { action, reason });
            }
            // Other lines are events, which may arrive at any time.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    async fn line(&mut self) -> Result<Value, VmmError> {
        let mut line = Vec::new();
        loop {
            let chunk = self.stream.fill_buf().await.map_err(|e| io_error("hear from the VMM", e))?;
            let end = chunk.iter().position(|&byte| byte == b'\n');
            if chunk.is_empty() || line.len() + chunk.len() > LINE_MAX {
                return Err(io_error("hear from the VMM", std::io::ErrorKind::UnexpectedEof.into()));
            }
            let taken = end.map_or(chunk.len(), |end| end + 1);
            line.extend_from_slice(&chunk[..taken]);
            self.stream.consume(taken);
            if end.is_some() {
                return serde_json::from_slice(&line).map_err(|e| io_error("hear from the VMM", e.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, proptest};
    use wrenn_testkit::fuzz;

    use super::*;

    /// The run directory belongs to the VMM's user, who may create a link to another VMM's socket there.
    #[tokio::test]
    async fn a_link_in_the_sockets_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (dir.path().join("own"), dir.path().join("other"));
        let listener = tokio::net::UnixListener::bind(&other).unwrap();
        std::os::unix::fs::symlink(&other, &own).unwrap();
        let refused = Qmp::connect(&own).await.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("reach the VMM"), "{refused}");
        drop(listener);
    }

    const ANSWERS: &[&str] = &[
        "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n{\"return\": {}}\n{\"return\": {\"status\": \"running\"}}\n",
        "{\"QMP\": 1}\n{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1}}\n{\"error\": {\"desc\": \"no\"}}\n",
    ];

    proptest! {
        #![proptest_config(fuzz::config())]

        /// A guest that took over its VMM says what it likes: the command ends, with a result or an error.
        #[test]
        fn whatever_a_vmm_answers_the_command_ends(answer in fuzz::damaged(ANSWERS)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let ran = runtime.block_on(async {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("qmp");
                let listener = tokio::net::UnixListener::bind(&path).unwrap();
                let vmm = async {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    // It fails if the other side has given up.
                    let _ = stream.write_all(&answer).await;
                };
                let ask = async { Qmp::connect(&path).await?.execute("query-status", "ask").await };
                tokio::join!(vmm, ask).1
            });
            if let Err(error) = ran {
                prop_assert!(!matches!(error, VmmError::Deadline { .. }), "{error}");
            }
        }
    }
}
