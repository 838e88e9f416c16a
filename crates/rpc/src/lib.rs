//! Services and messages of proto/: `process` and `filesystem` (envd) and `host::v1` (host agent).
//! No I/O happens here.
#![allow(refining_impl_trait_internal, refining_impl_trait_reachable)]

pub mod fault;
mod foreign;

pub use foreign::Foreign;

/// The header of every call of `host.v1.Host` that names the host it is meant for. An agent of another host refuses the
/// call: addresses change hands.
pub const HOST_HEADER: &str = "x-wrenn-host";

#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
mod generated {
    connectrpc::include_generated!();
}
pub use generated::*;
