//! What the agent answers when it cannot do what was asked: a stable code and a message without host paths.

use connectrpc::{ConnectError, ErrorCode as Wire};
use wrenn_api::ErrorCode;
use wrenn_disk::DiskError;
use wrenn_network::NetworkError;
use wrenn_vmm::VmmError;

use crate::sandbox::journal::JournalError;

/// A refusal or a failure. The message is for clients; details of this host go to its log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct AgentError {
    /// The code, as in the REST API.
    pub(crate) code: ErrorCode,
    /// Thing, cause and remedy.
    pub(crate) message: String,
}

impl AgentError {
    /// An error of this code.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A fault of this host: the details are logged, the client learns what failed.
    pub(crate) fn fault(what: &str, cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "{what} failed");
        Self::new(ErrorCode::AgentError, format!("{what} failed on the host; its agent's log says why"))
    }
}

/// A failed operation on the agent's own files.
pub(crate) fn of_files(what: &str, error: &std::io::Error) -> AgentError {
    if error.kind() == std::io::ErrorKind::StorageFull { full() } else { AgentError::fault(what, error) }
}

impl From<JournalError> for AgentError {
    fn from(error: JournalError) -> Self {
        match &error {
            JournalError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => full(),
            _ => Self::fault("writing the sandbox's journal", &error),
        }
    }
}

fn full() -> AgentError {
    let message = "the host's disk is full: delete sandboxes, or give the host more disk";
    AgentError::new(ErrorCode::InsufficientStorage, message)
}

impl From<DiskError> for AgentError {
    fn from(error: DiskError) -> Self {
        match &error {
            DiskError::UnknownImage(name) => Self::new(
                ErrorCode::NotFound,
                format!("there is no template {name:?} on the host: use another, or build it there"),
            ),
            DiskError::InvalidName(_) | DiskError::TooSmall { .. } => {
                Self::new(ErrorCode::InvalidRequest, error.to_string())
            }
            DiskError::Full => full(),
            DiskError::Busy { .. } => {
                let message = "the sandbox's disk is still in use on its host: try again in a moment";
                Self::new(ErrorCode::Conflict, message)
            }
            // They name no path.
            DiskError::Invalidated(_) | DiskError::CowMissing(_) | DiskError::ImageChanged(_) => {
                Self::new(ErrorCode::AgentError, error.to_string())
            }
            _ => Self::fault("making the sandbox's disk", &error),
        }
    }
}

impl From<NetworkError> for AgentError {
    fn from(error: NetworkError) -> Self {
        match &error {
            NetworkError::Exhausted(_) => Self::new(ErrorCode::NoHostsAvailable, error.to_string()),
            _ => Self::fault("making the sandbox's network", &error),
        }
    }
}

impl From<VmmError> for AgentError {
    fn from(error: VmmError) -> Self {
        match &error {
            VmmError::Limit { .. } => Self::new(ErrorCode::ExceedsCapacity, error.to_string()),
            VmmError::Full { .. } => full(),
            // They name no path.
            VmmError::Missing { .. } | VmmError::Unfit { .. } => {
                Self::new(ErrorCode::AgentError, error.to_string())
            }
            _ => Self::fault("starting the microVM", &error),
        }
    }
}

/// How codes travel in Connect; `wrenn-control` reads them back by the same table (proto/host.proto).
impl From<AgentError> for ConnectError {
    fn from(error: AgentError) -> Self {
        let code = match error.code {
            ErrorCode::InvalidRequest => Wire::InvalidArgument,
            ErrorCode::NotFound => Wire::NotFound,
            ErrorCode::Forbidden => Wire::PermissionDenied,
            ErrorCode::InvalidState => Wire::FailedPrecondition,
            ErrorCode::Conflict => Wire::AlreadyExists,
            ErrorCode::ExceedsCapacity => Wire::OutOfRange,
            ErrorCode::InsufficientStorage => Wire::ResourceExhausted,
            ErrorCode::NoHostsAvailable => Wire::Aborted,
            ErrorCode::HostUnavailable => Wire::Unavailable,
            ErrorCode::Timeout => Wire::DeadlineExceeded,
            // It was not begun.
            ErrorCode::TooManyRequests => Wire::Canceled,
            _ => Wire::Internal,
        };
        ConnectError::new(code, error.message)
    }
}
