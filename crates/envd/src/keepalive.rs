// SPDX-License-Identifier: Apache-2.0
//! Keepalive messages of streams: the period that a client asks for.

use std::time::Duration;

use connectrpc::RequestContext;

/// Period when the client does not ask for one.
const USUAL: Duration = Duration::from_secs(90);

/// Returns the period of a call's keepalive messages.
pub(crate) fn of_call(ctx: &RequestContext) -> Duration {
    let asked = ctx.header("keepalive-ping-interval").and_then(|value| value.to_str().ok()?.parse().ok());
    asked.filter(|seconds: &u64| (1..=3600).contains(seconds)).map_or(USUAL, Duration::from_secs)
}
