// SPDX-License-Identifier: Apache-2.0
//! Log of long-running commands, on standard error.

use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    config::Config,
    log_rate::LogRate,
    output::note,
    settings::{LogFormat, Machine},
};

/// Starts logging with the configured filter and format.
pub(crate) fn start(config: &Config) {
    let Machine { log: text, log_format, .. } = config.machine();
    let filter = EnvFilter::try_new(&text).unwrap_or_else(|error| {
        note(&format!("WRENN_LOG {text:?} is not a filter ({error}): info is used"));
        EnvFilter::new("info")
    });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let started = if log_format == LogFormat::Json {
        // Without the list of spans, which would repeat the current one.
        builder.json().with_span_list(false).finish().with(LogRate::default()).try_init()
    } else {
        builder.with_ansi(ansi).finish().with(LogRate::default()).try_init()
    };
    if let Err(error) = started {
        note(&format!("there is no log: {error}"));
    }
}
