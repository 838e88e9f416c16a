// SPDX-License-Identifier: Apache-2.0
//! Context of each call to the agent: the id of the client's request, and a tracing span that adds it and the
//! sandbox id to each log line. Rejects calls meant for another host.

use connectrpc::RequestContext;
use tracing::Span;
use wrenn_api::{ErrorCode, HostId};
use wrenn_rpc::HOST_HEADER;

use crate::error::AgentError;

/// Header with the id of the client's request.
pub(crate) const REQUEST_ID: &str = "x-request-id";
/// Maximum length of a request id in bytes.
const REQUEST_ID_MAX: usize = 255;

/// Context of a call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Id of the client's request; empty if there is none.
    pub(crate) request_id: String,
    /// Span of everything done for the call.
    pub(crate) span: Span,
}

impl Call {
    /// Reads the call's headers. Rejects a call for another host, which had this address before.
    pub(crate) fn of(
        context: &RequestContext,
        host: HostId,
        operation: &'static str,
        sandbox: &str,
    ) -> Result<Self, AgentError> {
        let header = |name| context.header(name).and_then(|value| value.to_str().ok());
        if header(HOST_HEADER).is_some_and(|meant| meant.parse() != Ok(host)) {
            let message = format!(
                "the host at this address is {host}, and not the one that is asked for: register hosts with the \
                 addresses that they have now"
            );
            return Err(AgentError::new(ErrorCode::HostUnavailable, message));
        }
        let valid = |id: &&str| id.len() <= REQUEST_ID_MAX && id.bytes().all(|byte| byte.is_ascii_graphic());
        let request_id = header(REQUEST_ID).filter(valid).unwrap_or_default().to_owned();
        let span = tracing::info_span!("call", operation, sandbox = ?Short(sandbox), request_id);
        Ok(Self { request_id, span })
    }
}

/// Sandbox id of a request, which may be any text before it is looked up.
struct Short<'a>(&'a str);

impl std::fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.parse::<wrenn_api::SandboxId>() {
            Ok(id) => write!(f, "{id}"),
            Err(_) => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[test]
    fn a_call_for_another_host_is_refused_and_ids_are_kept() -> anyhow::Result<()> {
        let here = HostId::new();
        let call = |host: Option<&str>, request: &str| {
            let mut headers = HeaderMap::new();
            if let Some(host) = host {
                headers.insert(HOST_HEADER, host.parse()?);
            }
            headers.insert(REQUEST_ID, request.parse()?);
            anyhow::Ok(Call::of(&RequestContext::new(headers), here, "exec", "sb"))
        };
        assert_eq!(call(None, "abc")??.request_id, "abc");
        assert_eq!(call(Some(&here.to_string()), &"x".repeat(256))??.request_id, "");
        for other in [HostId::new().to_string().as_str(), "", "x"] {
            assert_eq!(call(Some(other), "abc")?.expect_err(other).code, ErrorCode::HostUnavailable);
        }
        Ok(())
    }
}
