// SPDX-License-Identifier: Apache-2.0
//! Time limit for stalled transfers, so that they do not keep their resources for ever.

use std::time::Duration;

use wrenn_api::ErrorCode;

use crate::error::Fault;

/// Time without progress after which a transfer is aborted.
pub(crate) const STILL: Duration = Duration::from_secs(60);

/// Cause of a stall.
#[derive(Debug, Clone, Copy)]
pub(crate) enum By {
    /// The client has sent nothing.
    ClientSends,
    /// The client has taken nothing.
    ClientTakes,
    /// The sandbox has sent nothing.
    SandboxSends,
    /// The sandbox has taken nothing.
    SandboxTakes,
}

impl By {
    fn error(self) -> Fault {
        let (what, remedy) = match self {
            Self::ClientSends => ("the client sent nothing", "send without long pauses"),
            Self::ClientTakes => ("the client took nothing", "read without long pauses"),
            Self::SandboxSends => ("the sandbox sent nothing", "see whether its guest still works"),
            Self::SandboxTakes => ("the sandbox took nothing", "see whether its guest still works"),
        };
        let message = format!("the transfer was broken off: for {} s {what}; {remedy}", STILL.as_secs());
        Fault::new(ErrorCode::Timeout, message)
    }
}

/// Waits for one step of a transfer.
pub(crate) async fn moving<T>(by: By, step: impl Future<Output = T>) -> Result<T, Fault> {
    tokio::time::timeout(STILL, step).await.map_err(|_| by.error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_ends_with_the_one_who_is_waited_for() {
        let moved = moving(By::ClientSends, tokio::time::sleep(STILL / 2)).await;
        assert!(moved.is_ok());
        let stuck = moving(By::SandboxTakes, std::future::pending::<()>()).await;
        let error = stuck.err().map(|error| (error.code, error.message));
        let (code, message) = error.unwrap_or((ErrorCode::InternalError, String::new()));
        assert_eq!(code, ErrorCode::Timeout);
        assert!(message.contains("60 s the sandbox took nothing"), "{message}");
    }
}
