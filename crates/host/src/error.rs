// SPDX-License-Identifier: Apache-2.0
//! Errors of the agent: a stable code and a message without host paths.

use connectrpc::{ConnectError, ErrorCode as Wire};
use wrenn_api::ErrorCode;
use wrenn_disk::DiskError;
use wrenn_memory::MemoryError;
use wrenn_network::NetworkError;
use wrenn_rpc::fault::{self, Of};
use wrenn_vmm::VmmError;

/// Rejection or failure. The message is for clients; details about this host are only logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct AgentError {
    /// Error code, as in the REST API.
    pub(crate) code: ErrorCode,
    /// Message with the object, the cause and the remedy.
    pub(crate) message: String,
    /// Whose fault it is.
    pub(crate) of: Of,
}

impl AgentError {
    /// Creates an error. Whose fault it is follows from the code.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), of: class(code).1 }
    }

    /// Marks the template as the cause, which would fail on another host too.
    #[must_use]
    pub(crate) fn of_template(self) -> Self {
        Self { of: Of::OF_TEMPLATE, ..self }
    }

    /// Creates an error caused by this host: logs the details and tells the client only what failed.
    pub(crate) fn fault(what: &str, cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "{what} failed");
        Self::new(ErrorCode::AgentError, format!("{what} failed on the host; its agent's log says why"))
    }
}

/// Converts an I/O error on the agent's own files.
pub(crate) fn of_files(what: &str, error: &std::io::Error) -> AgentError {
    if error.kind() == std::io::ErrorKind::StorageFull { full() } else { AgentError::fault(what, error) }
}

pub(crate) fn full() -> AgentError {
    let message = "the host's disk is full: delete sandboxes, or give the host more disk";
    AgentError::new(ErrorCode::InsufficientStorage, message)
}

impl From<DiskError> for AgentError {
    fn from(error: DiskError) -> Self {
        match &error {
            DiskError::UnknownImage(name) => {
                let message =
                    format!("there is no template {name:?} on the host: use another, or build it there");
                Self::new(ErrorCode::NotFound, message).of_template()
            }
            DiskError::InvalidName(_) | DiskError::TooSmall { .. } => {
                Self::new(ErrorCode::InvalidRequest, error.to_string())
            }
            DiskError::Full => full(),
            DiskError::Busy { .. } => {
                let message = "the sandbox's disk is still in use on its host: try again in a moment";
                Self::new(ErrorCode::Conflict, message)
            }
            DiskError::ImageInUse { volumes, .. } => {
                let message = format!(
                    "the image has {volumes} disks of sandboxes and snapshots that depend on it: delete them first"
                );
                Self::new(ErrorCode::Conflict, message)
            }
            // These messages contain no paths.
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

impl From<MemoryError> for AgentError {
    fn from(error: MemoryError) -> Self {
        // These messages contain no paths.
        let code = match &error {
            MemoryError::Missing { .. } => ErrorCode::SnapshotMissing,
            MemoryError::Damaged { .. } | MemoryError::Header { .. } => ErrorCode::SnapshotDamaged,
            MemoryError::Mismatch { .. } => ErrorCode::SnapshotIncompatible,
            MemoryError::InUse { .. } => ErrorCode::Conflict,
            MemoryError::Io { action, source } => return of_files(action, source),
        };
        Self::new(code, error.to_string())
    }
}

impl From<VmmError> for AgentError {
    fn from(error: VmmError) -> Self {
        match &error {
            VmmError::Limit { .. } => Self::new(ErrorCode::ExceedsCapacity, error.to_string()),
            VmmError::Full { .. } => full(),
            // These messages contain no paths.
            VmmError::Missing { .. } | VmmError::Unfit { .. } => {
                Self::new(ErrorCode::AgentError, error.to_string())
            }
            _ => Self::fault("starting the microVM", &error),
        }
    }
}

/// Sends the code as the detail `host.v1.Fault`; other clients of the protocol see only the Connect code.
impl From<AgentError> for ConnectError {
    fn from(error: AgentError) -> Self {
        fault::attach(Self::new(class(error.code).0, error.message), error.code.as_str(), error.of)
    }
}

/// Connect code of an error code, and whose fault such an error usually is: the host's, where another host may
/// succeed, or the caller's.
fn class(code: ErrorCode) -> (Wire, Of) {
    match code {
        ErrorCode::InvalidRequest | ErrorCode::IsADirectory | ErrorCode::NotADirectory => {
            (Wire::InvalidArgument, Of::OF_CALLER)
        }
        ErrorCode::NotFound
        | ErrorCode::ProgramNotFound
        | ErrorCode::UserNotFound
        | ErrorCode::DirectoryNotFound => (Wire::NotFound, Of::OF_CALLER),
        ErrorCode::Forbidden | ErrorCode::ProgramNotExecutable => (Wire::PermissionDenied, Of::OF_CALLER),
        ErrorCode::InvalidState
        | ErrorCode::PortNotOpen
        | ErrorCode::Conflict
        | ErrorCode::SnapshotMissing
        | ErrorCode::SnapshotDamaged
        | ErrorCode::SnapshotIncompatible => (Wire::FailedPrecondition, Of::OF_CALLER),
        ErrorCode::ImageNotFound => (Wire::NotFound, Of::OF_CALLER),
        ErrorCode::RegistryDenied => (Wire::PermissionDenied, Of::OF_CALLER),
        ErrorCode::RegistryUnavailable => (Wire::Unavailable, Of::OF_HOST),
        ErrorCode::ImagePlatformMismatch | ErrorCode::ImageDamaged => {
            (Wire::FailedPrecondition, Of::OF_TEMPLATE)
        }
        ErrorCode::ImageTooLarge => (Wire::OutOfRange, Of::OF_TEMPLATE),
        ErrorCode::ExceedsCapacity => (Wire::OutOfRange, Of::OF_CALLER),
        ErrorCode::TooManyRequests => (Wire::ResourceExhausted, Of::OF_CALLER),
        ErrorCode::InsufficientStorage => (Wire::ResourceExhausted, Of::OF_HOST),
        ErrorCode::NoHostsAvailable | ErrorCode::HostUnavailable => (Wire::Unavailable, Of::OF_HOST),
        ErrorCode::Timeout => (Wire::DeadlineExceeded, Of::OF_HOST),
        ErrorCode::AgentError
        | ErrorCode::InternalError
        | ErrorCode::OutOfMemory
        | ErrorCode::ServiceUnavailable => (Wire::Internal, Of::OF_HOST),
        // Only the control plane has the others.
        _ => (Wire::Internal, Of::OF_CALLER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_travels() {
        for &code in ErrorCode::ALL {
            let error = AgentError::new(code, "x");
            assert_ne!(error.of, Of::OF_UNSPECIFIED, "{code:?}");
            for error in [error.clone(), error.of_template()] {
                let wire = ConnectError::from(error.clone());
                let (read, of) = fault::of(&wire).expect("a detail");
                assert_eq!((read.parse(), of), (Ok(code), error.of));
                assert_eq!(wire.message.as_deref(), Some("x"));
            }
        }
    }
}
