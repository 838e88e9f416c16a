// SPDX-License-Identifier: Apache-2.0
//! Errors of imports: what went wrong at a registry or in the process that unpacks, as an error of the agent.

use std::{fmt::Display, time::Duration};

use wrenn_api::ErrorCode;
use wrenn_disk::DiskError;
use wrenn_oci::SourceError;

use super::job::{Failure, Kind};
use crate::error::{AgentError, full};

/// What is not done when this fails.
pub(super) const IMPORTING: &str = "importing the image";
/// Maximum number of characters that the message of the process that unpacks has.
const TOLD_MAX: usize = 2048;

/// Converts an error of a registry. Its message has no paths of this host.
pub(super) fn of_source(error: &SourceError) -> AgentError {
    let code = match error {
        SourceError::Missing { .. } => ErrorCode::ImageNotFound,
        SourceError::Denied { .. } => ErrorCode::RegistryDenied,
        SourceError::Platform { .. } => ErrorCode::ImagePlatformMismatch,
        SourceError::TooLarge { .. } => ErrorCode::ImageTooLarge,
        SourceError::Unreachable { .. } => ErrorCode::RegistryUnavailable,
        SourceError::Malformed { .. } | SourceError::Damaged { .. } => ErrorCode::ImageDamaged,
        SourceError::Ambiguous { .. } => ErrorCode::InvalidRequest,
        SourceError::Files { .. } => return AgentError::fault(IMPORTING, error),
    };
    AgentError::new(code, error.to_string())
}

/// Converts a failure that the process has reported. `by_room` says whether it had less room than an image may take.
pub(super) fn of_failure(failure: &Failure, by_room: bool) -> AgentError {
    // The process has read what strangers wrote.
    let told = shown(&failure.message, TOLD_MAX);
    let code = match failure.kind {
        Kind::Damaged => ErrorCode::ImageDamaged,
        Kind::TooLarge if by_room => return full(),
        Kind::TooLarge => ErrorCode::ImageTooLarge,
        Kind::Full => return full(),
        Kind::Host => return AgentError::fault(IMPORTING, &told),
    };
    AgentError::new(code, told)
}

/// Converts an error of the volume store.
pub(super) fn of_store(error: &DiskError) -> AgentError {
    match error {
        DiskError::Full => full(),
        other => AgentError::fault(IMPORTING, other),
    }
}

/// Makes the error of an image that cannot be used on any host.
pub(super) fn unfit(image: &str, cause: impl Display) -> AgentError {
    AgentError::new(ErrorCode::ImageDamaged, format!("{image} cannot be used: {cause}"))
}

/// Makes the error of an image whose layers have more bytes than they may.
pub(super) fn too_large(image: &str, most_mb: u64) -> AgentError {
    let message = format!(
        "{image} is larger than {most_mb} MiB: use a smaller image, or let the host's operator raise agent.image_max_mb"
    );
    AgentError::new(ErrorCode::ImageTooLarge, message)
}

/// Makes the error of a registry that sends too slowly.
pub(super) fn slow_registry(image: &str, limit: Duration) -> AgentError {
    let message = format!(
        "{image}: its registry did not deliver within {} s: try again later, or let the host's operator raise \
         agent.image_pull_timeout_sec",
        limit.as_secs()
    );
    AgentError::new(ErrorCode::RegistryUnavailable, message)
}

/// Makes the error of an archive that is larger than this host takes.
pub(super) fn large_archive(most_mb: u64) -> AgentError {
    let message = format!(
        "the archive is larger than an image of {most_mb} MiB can be: save one image only, use a smaller one, or let the host's \
         operator raise agent.image_max_mb"
    );
    AgentError::new(ErrorCode::ImageTooLarge, message)
}

/// Makes the error of an archive that does not arrive, or of which reading takes too long.
pub(super) fn slow_archive(limit: Duration) -> AgentError {
    let message = format!(
        "the archive was not received and read within {} s: send it faster, or let the host's operator raise \
         agent.image_pull_timeout_sec",
        limit.as_secs()
    );
    AgentError::new(ErrorCode::Timeout, message)
}

/// Makes the error of an image that takes too long to be unpacked.
pub(super) fn slow_unpacking(limit: Duration) -> AgentError {
    let message = format!(
        "the image could not be unpacked within {} s: use one with fewer files, above all in one directory, or let the \
         host's operator raise agent.image_unpack_timeout_sec",
        limit.as_secs()
    );
    AgentError::new(ErrorCode::Timeout, message).of_template()
}

/// Returns text as it may be part of a message: on one line, and cut if it is long.
pub(super) fn shown(text: &str, most: usize) -> String {
    let plain = |c: char| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { '?' } else { c };
    text.chars().take(most).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use wrenn_oci::{Digest, Platform};
    use wrenn_rpc::fault::Of;

    use super::*;

    #[test]
    fn each_trouble_of_a_registry_has_its_code() {
        let image = || "docker.io/library/x:1".to_owned();
        let text = str::to_owned;
        let cases = [
            (
                SourceError::Missing { image: image(), what: text("manifest") },
                "image_not_found",
                Of::OF_CALLER,
            ),
            (SourceError::Denied { image: image(), cause: text("401") }, "registry_denied", Of::OF_CALLER),
            (
                SourceError::Platform {
                    image: image(),
                    machine: Platform::linux("amd64"),
                    has: text("linux/arm64, linux/s390x"),
                },
                "image_platform_mismatch",
                Of::OF_TEMPLATE,
            ),
            (
                SourceError::Malformed { image: image(), what: text("a"), cause: text("b") },
                "image_damaged",
                Of::OF_TEMPLATE,
            ),
            (SourceError::Damaged { image: image(), what: text("a") }, "image_damaged", Of::OF_TEMPLATE),
            (
                SourceError::TooLarge { image: image(), what: text("a"), most: 7 },
                "image_too_large",
                Of::OF_TEMPLATE,
            ),
            (
                SourceError::Unreachable { image: image(), host: text("h"), cause: text("refused") },
                "registry_unavailable",
                Of::OF_HOST,
            ),
        ];
        for (error, code, of) in cases {
            let told = error.to_string();
            let error = of_source(&error);
            assert_eq!((error.code.as_str(), error.of, error.message), (code, of, told));
        }
        let source = std::io::Error::other("/var/lib/secret");
        let of_host = of_source(&SourceError::Files { image: image(), source });
        assert_eq!((of_host.code, of_host.of), (ErrorCode::AgentError, Of::OF_HOST));
        assert!(!of_host.message.contains("secret"), "{of_host}");
    }

    #[test]
    fn what_the_process_reports_is_bounded_and_a_full_disk_is_the_host_s() {
        let failure = |kind: Kind| Failure { kind, message: format!("a\n\u{1b}b{}", "x".repeat(9999)) };
        let error = of_failure(&failure(Kind::Damaged), false);
        assert_eq!((error.code, error.of), (ErrorCode::ImageDamaged, Of::OF_TEMPLATE));
        assert!(error.message.starts_with("a??bx") && error.message.len() == TOLD_MAX, "{error}");
        assert_eq!(of_failure(&failure(Kind::TooLarge), false).code, ErrorCode::ImageTooLarge);
        for full in [of_failure(&failure(Kind::TooLarge), true), of_failure(&failure(Kind::Full), false)] {
            assert_eq!((full.code, full.of), (ErrorCode::InsufficientStorage, Of::OF_HOST));
        }
        assert_eq!(of_store(&DiskError::Full).code, ErrorCode::InsufficientStorage);
        let host = of_failure(&failure(Kind::Host), false);
        assert!(host.code == ErrorCode::AgentError && !host.message.contains("xx"), "{host}");
        assert!(unfit("x", Digest::of(b"")).message.starts_with("x cannot be used: sha256:"));
    }
}
