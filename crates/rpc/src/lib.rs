// SPDX-License-Identifier: Apache-2.0
//! Services and messages of proto/: `process` and `filesystem` (envd) and `host::v1` (host agent). Does no
//! I/O.
#![allow(refining_impl_trait_internal, refining_impl_trait_reachable)]

pub mod fault;
mod foreign;

pub use foreign::Foreign;

/// Header with the id of the host for which a `host.v1.Host` call is meant. An agent of another host rejects
/// the call, because an address can pass to another host.
pub const HOST_HEADER: &str = "x-wrenn-host";
/// Header of the response to `Exec`: the bytes of output in it, so that the control plane can wait until it has room for them.
pub const OUTPUT_HEADER: &str = "x-wrenn-output";

#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
mod generated {
    connectrpc::include_generated!();
}
pub use generated::*;
